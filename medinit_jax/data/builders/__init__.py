"""The datasets that can be prepared, by name."""

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.chase_db1 import MedinitChaseDb1
from medinit_jax.data.builders.drive import MedinitDrive
from medinit_jax.data.builders.stare import MedinitStare

BUILDERS: dict[str, type[Builder]] = {
    "medinit_chase_db1": MedinitChaseDb1,
    "medinit_drive": MedinitDrive,
    "medinit_stare": MedinitStare,
}
