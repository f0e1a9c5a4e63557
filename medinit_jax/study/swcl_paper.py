"""The studies of SWCL's paper (arXiv 2108.02122) as cells: its two tables, and one chain."""

from __future__ import annotations

from collections.abc import Callable

import ml_collections

from medinit_jax.core.errors import UsageError
from medinit_jax.data.tasks import TASKS
from medinit_jax.study.plan import Cell, size_of

# In the order of the paper's columns.
TASKS_OF_TABLE2 = (
    "messidor", "idrid", "refuge_cls", "drive_seg", "chase_seg", "stare_seg", "refuge_seg",
)  # fmt: skip
# The paper's names of the starts.
PRINTED = {
    "random": "random",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "dino": "DINO",
    "odir": "OIA-ODIR",
    "eyepacs": "Kaggle-EyePACS",
    "bit_s": "BiT-S",
    "bit_m": "BiT-M",
    "multitask": "CE-multitask",
    "swcl_image": "SWCL-image",
    "swcl": "SWCL",
}
# Table III: area under the ROC curve of REFUGE's validation images with a ResNet-18.
TABLE3 = {
    "random": 0.7188,
    "imagenet": 0.8818,
    "swcl_t03": 0.9503,
    "swcl": 0.9652,
    "swcl_t05": 0.9291,
    "swcl_no_position": 0.9578,
    "swcl_no_abnormality": 0.9300,
    "swcl_no_patient": 0.9568,
    "swcl_only_patient": 0.9443,
    "swcl_only_abnormality": 0.8751,
    "swcl_only_position": 0.8585,
}


def table2(config: ml_collections.ConfigDict) -> list[Cell]:
    """Returns Table II: seven tasks from eleven starts, ResNet-50x1 or a DeepLabv3+ on it."""
    encoder = size_of(config).encoder
    return [
        Cell("T2", task, _network(task, encoder), start, paper=_printed(task, start))
        for task in TASKS_OF_TABLE2
        for start in config.starts
    ]


def table3(config: ml_collections.ConfigDict) -> list[Cell]:
    """Returns Table III: REFUGE-cls from SWCL with other thresholds and with labels taken away."""
    return [
        Cell("T3", "refuge_cls", "resnet18", start, paper=TABLE3.get(start))
        for start in config.starts
    ]


def compare(config: ml_collections.ConfigDict) -> list[Cell]:
    """Returns glaucoma and retinopathy with a share of the labels, from every start."""
    size = size_of(config)
    return [
        Cell("S", task, size.encoder, start, float(share))
        for task in ("refuge_cls", "aptos_dr")
        for share in size.fractions
        for start in config.starts
    ]


def chain(config: ml_collections.ConfigDict) -> list[Cell]:
    """Returns one task, fine-tuned from SWCL and from random initialization.

    Raises:
        UsageError: There is no such task.
    """
    if config.task not in config.base.finetune:
        raise UsageError(
            f"config.task={config.task!r}; set it to one of: {', '.join(config.base.finetune)}."
        )
    encoder = size_of(config).encoder
    return [
        Cell(
            "C",
            config.task,
            _network(config.task, encoder),
            start,
            paper=_printed(config.task, start),
        )
        for start in config.starts
    ]


def _network(task: str, encoder: str) -> str:
    return f"deeplabv3plus_{encoder}" if TASKS[task].kind == "segmentation" else encoder


def _printed(task: str, start: str) -> float | None:
    return TASKS[task].reported.get("resnetv2_50x1", {}).get(PRINTED.get(start, ""))


CELLS: dict[str, Callable[[ml_collections.ConfigDict], list[Cell]]] = {
    "swcl_table2": table2,
    "swcl_table3": table3,
    "swcl_compare": compare,
    "swcl_chain": chain,
}
