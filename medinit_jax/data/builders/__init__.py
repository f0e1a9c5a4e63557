"""The datasets that can be prepared, by name."""

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.drive import MedinitDrive
from medinit_jax.data.builders.messidor import MedinitMessidor
from medinit_jax.data.builders.oia_odir import MedinitOiaOdir

BUILDERS: dict[str, type[Builder]] = {
    "medinit_drive": MedinitDrive,
    "medinit_messidor": MedinitMessidor,
    "medinit_oia_odir": MedinitOiaOdir,
}
