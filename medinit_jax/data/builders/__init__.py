"""The datasets that can be prepared, by name."""

from medinit_jax.data.builders.aptos2019 import MedinitAptos2019
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.chase_db1 import MedinitChaseDb1
from medinit_jax.data.builders.drive import MedinitDrive
from medinit_jax.data.builders.eyepacs import MedinitEyepacs
from medinit_jax.data.builders.idrid import MedinitIdrid
from medinit_jax.data.builders.messidor import MedinitMessidor
from medinit_jax.data.builders.oia_odir import MedinitOiaOdir
from medinit_jax.data.builders.phantom import MedinitPhantom
from medinit_jax.data.builders.phantom_pretrain import MedinitPhantomPretrain
from medinit_jax.data.builders.refuge import MedinitRefuge
from medinit_jax.data.builders.refuge2 import MedinitRefuge2
from medinit_jax.data.builders.retinal_swap import RetinalSwap
from medinit_jax.data.builders.rsna_cxr import MedinitRsnaCxr
from medinit_jax.data.builders.rsna_ihd import MedinitRsnaIhd
from medinit_jax.data.builders.stare import MedinitStare
from medinit_jax.data.builders.table import MedinitTable

BUILDERS: dict[str, type[Builder]] = {
    "medinit_aptos2019": MedinitAptos2019,
    "medinit_chase_db1": MedinitChaseDb1,
    "medinit_drive": MedinitDrive,
    "medinit_eyepacs": MedinitEyepacs,
    "medinit_idrid": MedinitIdrid,
    "medinit_messidor": MedinitMessidor,
    "medinit_oia_odir": MedinitOiaOdir,
    "medinit_phantom": MedinitPhantom,
    "medinit_phantom_pretrain": MedinitPhantomPretrain,
    "medinit_refuge": MedinitRefuge,
    "medinit_refuge2": MedinitRefuge2,
    "medinit_rsna_cxr": MedinitRsnaCxr,
    "medinit_rsna_ihd": MedinitRsnaIhd,
    "medinit_stare": MedinitStare,
    "medinit_table": MedinitTable,
    "retinal_swap": RetinalSwap,
}
