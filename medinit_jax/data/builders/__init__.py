"""The datasets that can be prepared, by name."""

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.drive import MedinitDrive
from medinit_jax.data.builders.phantom import MedinitPhantom

BUILDERS: dict[str, type[Builder]] = {
    "medinit_drive": MedinitDrive,
    "medinit_phantom": MedinitPhantom,
}
