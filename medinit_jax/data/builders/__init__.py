"""The datasets that can be prepared, by name."""

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.chase_db1 import MedinitChaseDb1
from medinit_jax.data.builders.drive import MedinitDrive
from medinit_jax.data.builders.refuge import MedinitRefuge
from medinit_jax.data.builders.refuge2 import MedinitRefuge2
from medinit_jax.data.builders.stare import MedinitStare

BUILDERS: dict[str, type[Builder]] = {
    "medinit_chase_db1": MedinitChaseDb1,
    "medinit_drive": MedinitDrive,
    "medinit_refuge": MedinitRefuge,
    "medinit_refuge2": MedinitRefuge2,
    "medinit_stare": MedinitStare,
}
