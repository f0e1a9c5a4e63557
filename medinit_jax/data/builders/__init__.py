"""The datasets that can be prepared, by name."""

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.drive import MedinitDrive
from medinit_jax.data.builders.rsna_cxr import MedinitRsnaCxr
from medinit_jax.data.builders.rsna_ihd import MedinitRsnaIhd

BUILDERS: dict[str, type[Builder]] = {
    "medinit_drive": MedinitDrive,
    "medinit_rsna_cxr": MedinitRsnaCxr,
    "medinit_rsna_ihd": MedinitRsnaIhd,
}
