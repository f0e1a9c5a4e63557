"""The studies of the hyper-initializer paper (arXiv 2206.03661) as cells.

Table 2 names its networks; the figures do not, so that they are drawn with both of Table 2's on
three modalities, a ResNet-18 and a RegNetY-1.6GF. Rows of the printed table are shifted: the row
"RSNA-IHD DRIVE" is DRIVE with a U-Net, the next two are RSNA-IHD, the last two RSNA-CXR.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_collections

from medinit_jax.data.tasks import TASKS
from medinit_jax.study.plan import Cell, size_of

_TABLE2 = (
    ("T2a", "eyepacs_dr", ("resnet18", "resnet50", "resnet101", "regnet_y_1_6gf")),
    ("T2b", "aptos_dr", ("regnet_y_1_6gf",)),
    ("T2c", "refuge2_seg", ("unet",)),
    ("T2d", "drive_seg", ("unet",)),
    ("T2e", "rsna_ihd", ("resnet18", "regnet_y_1_6gf")),
    ("T2f", "rsna_cxr", ("resnet18", "regnet_y_1_6gf")),
)
_FIGURE_TASKS = ("eyepacs_dr", "rsna_ihd", "rsna_cxr")
_FIGURE_MODELS = ("resnet18", "regnet_y_1_6gf")


def table2(config: ml_collections.ConfigDict) -> list[Cell]:
    """Returns Table 2: every task and network from every start."""
    return [
        Cell(experiment, task, model, start, paper=_printed(task, model, start))
        for experiment, task, models in _TABLE2
        for model in models
        for start in config.starts
    ]


def _printed(task: str, model: str, start: str) -> float | None:
    return TASKS[task].reported.get(model, {}).get(start)


def _figure(experiment: str, fractions: bool = False) -> Callable[..., list[Cell]]:
    def cells(config: ml_collections.ConfigDict) -> list[Cell]:
        shares = size_of(config).fractions if fractions else (1.0,)
        return [
            Cell(experiment, task, model, start, float(share), _printed(task, model, start))
            for task in _FIGURE_TASKS
            for model in _FIGURE_MODELS
            for share in shares
            for start in config.starts
        ]

    return cells


CELLS: dict[str, Callable[[ml_collections.ConfigDict], list[Cell]]] = {
    "hyper_table2": table2,
    "hyper_fig2": _figure("F2", fractions=True),
    "hyper_fig3": _figure("F3"),
    "hyper_fig4": _figure("F4"),
}
