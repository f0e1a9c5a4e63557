"""The datasets that can be prepared, by name."""

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.drive import MedinitDrive
from medinit_jax.data.builders.table import MedinitTable

BUILDERS: dict[str, type[Builder]] = {
    "medinit_drive": MedinitDrive,
    "medinit_table": MedinitTable,
}
