"""The benchmark tasks of the two papers, and the datasets that names stand for.

`reported` holds what the papers print, in the metric's own scale: {network: {start: value}}. The
hyper-initializer paper (arXiv 2206.03661, Table 2) compares "random" and "hyper", the SWCL paper
(Table II, mean of five runs with a ResNet-50x1) eleven starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from etils import epath

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders import BUILDERS
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.config import Config
from medinit_jax.data.builders.table import HOW_TO, TableConfig
from medinit_jax.data.image_table import Columns

# Where sets are prepared, unless told otherwise; the default of `config.data.data_dir`.
DATA_DIR = "data"
_SEED = re.compile(r"(?P<config>.+)_seed(?P<seed>\d+)$")
_STARTS = (
    *("random", "SimCLR", "BYOL", "DINO", "OIA-ODIR", "Kaggle-EyePACS", "BiT-S", "BiT-M"),
    *("CE-multitask", "SWCL-image", "SWCL"),
)
_BIT = "resnetv2_50x1"


class Task(NamedTuple):
    """A benchmark task.

    Attributes:
        dataset: "builder/config".
        modality: "fundus", "CT" or "X-ray".
        kind: What is predicted.
        metric: How it is scored.
        labels: Features that are predicted; several are predicted jointly.
        counts: Images that the paper trains, validates and tests on; 0: it has no such part.
        reported: {network: {start: value}}.
        note: What differs from the plain reading of the counts.
    """

    dataset: str
    modality: str
    kind: Literal["classification", "joint classification", "segmentation"]
    metric: str
    labels: tuple[str, ...]
    counts: tuple[int, int, int]
    reported: Mapping[str, Mapping[str, float]]
    note: str = ""


def _hyper(**networks: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {
        network: {"random": random, "hyper": hyper} for network, (random, hyper) in networks.items()
    }


def _swcl(*percent: float) -> dict[str, dict[str, float]]:
    return {
        _BIT: {s: round(p / 100, 4) for s, p in zip(_STARTS, percent, strict=True)},
    }


_KAPPA, _AUC, _JOINT = "quadratic weighted kappa", "AUC", "joint accuracy"

TASKS: dict[str, Task] = {
    "eyepacs_dr": Task(
        "medinit_eyepacs/paper",
        "fundus",
        "classification",
        _KAPPA,
        ("label",),
        (35125, 0, 42670),
        _hyper(
            resnet18=(0.7433, 0.7835),
            resnet50=(0.7870, 0.7940),
            resnet101=(0.7311, 0.7734),
            regnet_y_1_6gf=(0.6867, 0.7981),
        ),
    ),
    "aptos_dr": Task(
        "medinit_aptos2019/paper",
        "fundus",
        "classification",
        _KAPPA,
        ("label",),
        (2929, 0, 733),
        _hyper(regnet_y_1_6gf=(0.8472, 0.8931)),
        "The paper's division is unpublished; this one is our own.",
    ),
    "refuge2_seg": Task(
        "medinit_refuge2/paper",
        "fundus",
        "segmentation",
        "Dice, mean of disc and cup",
        ("mask",),
        (800, 0, 400),
        _hyper(unet=(0.7086, 0.7816)),
        "Trained on REFUGE-1's train and validation, tested on its test images.",
    ),
    "drive_seg": Task(
        "medinit_drive/default",
        "fundus",
        "segmentation",
        "Dice (= F1) of vessels",
        ("mask",),
        (20, 0, 20),
        _hyper(unet=(0.6853, 0.7079))
        | _swcl(76.83, 77.11, 76.15, 76.30, 76.29, 77.99, 78.88, 77.93, 78.24, 78.05, 78.08),
        "The SWCL paper validates on 4 of the 20 training images.",
    ),
    "rsna_ihd": Task(
        "medinit_rsna_ihd/paper10",
        "CT",
        "classification",
        _AUC,
        ("label",),
        (60224, 0, 15056),
        _hyper(resnet18=(0.9584, 0.9639), regnet_y_1_6gf=(0.9589, 0.9605)),
        "A tenth of the slices; slices of one patient may lie on both sides.",
    ),
    "rsna_cxr": Task(
        "medinit_rsna_cxr/paper_rows",
        "X-ray",
        "classification",
        _AUC,
        ("label",),
        (24181, 0, 6046),
        _hyper(resnet18=(0.8844, 0.9006), regnet_y_1_6gf=(0.8976, 0.9020)),
        "Rows of the label table, so one patient may lie on both sides.",
    ),
    "messidor": Task(
        "medinit_messidor/swcl",
        "fundus",
        "joint classification",
        f"{_JOINT}, 5 folds",
        ("referable", "dme"),
        (1196, 0, 0),
        _swcl(60.96, 66.81, 67.14, 64.46, 64.05, 67.06, 76.59, 79.35, 66.56, 70.65, 71.57),
    ),
    "idrid": Task(
        "medinit_idrid/grading",
        "fundus",
        "joint classification",
        _JOINT,
        ("dr", "dme"),
        (330, 83, 103),
        _swcl(32.62, 45.83, 38.25, 40.19, 38.64, 46.41, 54.76, 53.59, 45.05, 48.54, 51.26),
    ),
    "refuge_cls": Task(
        "medinit_refuge/default",
        "fundus",
        "classification",
        _AUC,
        ("label",),
        (400, 400, 400),
        _swcl(85.27, 93.19, 91.96, 92.59, 86.68, 91.80, 91.99, 93.73, 90.97, 92.93, 95.86),
    ),
    "stare_seg": Task(
        "medinit_stare/ah",
        "fundus",
        "segmentation",
        "F1 of vessels",
        ("mask",),
        (8, 2, 10),
        _swcl(74.34, 75.02, 72.52, 74.54, 76.96, 77.41, 78.88, 79.37, 77.24, 78.44, 78.45),
    ),
    "chase_seg": Task(
        "medinit_chase_db1/first",
        "fundus",
        "segmentation",
        "F1 of vessels",
        ("mask",),
        (16, 4, 8),
        _swcl(76.52, 77.64, 76.32, 77.15, 77.46, 77.92, 78.19, 78.50, 78.57, 78.34, 78.61),
    ),
    "refuge_seg": Task(
        "medinit_refuge/default",
        "fundus",
        "segmentation",
        "F1, mean of disc and cup",
        ("mask",),
        (400, 400, 400),
        _swcl(85.66, 88.01, 85.66, 84.74, 83.95, 88.30, 90.70, 90.91, 89.30, 90.01, 89.65),
    ),
}


def make_builder(
    name: str,
    data_dir: epath.PathLike = DATA_DIR,
    split_seed: int = 0,
    columns: Columns | None = None,
    **options: Any,
) -> Builder:
    """Returns the builder that a name stands for.

    Args:
        name: A task id, "phantom_" and a task id for its twin, "builder", "builder/config", or
            "builder/config_seed3" for a division with another seed, or "builder/config_512px" for
            images stored at another size, see `Builder.config_named`.
        data_dir: Where sets are prepared.
        split_seed: Seed of divisions that the dataset does not make itself. Each has a folder of
            its own, by the suffix of the config's name.
        columns: Of "medinit_table/NAME", a table of the user's own; NAME is free.
        **options: See `Builder`.

    Raises:
        UsageError: There is no such set or config, or what was prepared of it is damaged.
    """

    def known(config: str) -> Config | None:
        return BUILDERS[dataset].config_named(config, data_dir)

    full = TASKS[name].dataset if name in TASKS else name
    if full.startswith("phantom_"):
        full = f"medinit_phantom/{full}"
    dataset, _, config = full.partition("/")
    if dataset not in BUILDERS:
        names = [*BUILDERS, *TASKS]
        near = difflib.get_close_matches(name, names, 3) or names
        raise UsageError(
            f"There is no dataset {dataset!r} here; `python -m medinit_jax.data list` shows all. "
            f"Perhaps one of: {', '.join(near)}."
        )
    if split_seed < 0:
        raise UsageError(f"The split seed is {split_seed}; set --split-seed to 0 or more.")
    configs = [one.name for one in BUILDERS[dataset].BUILDER_CONFIGS]
    seeded = _SEED.match(config)
    if seeded and (columns is not None or known(config) is None):
        config, own_seed = seeded["config"], int(seeded["seed"])
        if split_seed not in (0, own_seed):
            raise UsageError(f"{name} names a split seed other than {split_seed}; give one.")
        split_seed = own_seed
    if columns is not None:
        if dataset != "medinit_table" or not config or config in configs:
            raise UsageError(
                f"Columns belong to medinit_table/NAME with a NAME of your own, not to {name}."
            )
        chosen: Config | None = TableConfig(
            name=f"{config}_seed{split_seed}" if split_seed else config,
            columns=columns,
            split_seed=split_seed,
            description="A table of one's own.",
        )
    else:
        config = config or configs[0]
        chosen = known(config)
        if chosen is None and dataset == "medinit_table":
            raise UsageError(
                f"No table is prepared as {name} in {data_dir}; prepare it by its columns: "
                f"{HOW_TO.format(name='NAME')}; or say with --data-dir (data.data_dir) where it "
                f"lies."
            )
        if chosen is None:
            raise UsageError(
                f"{dataset} has no config {config!r}; use one of: {', '.join(configs)}."
            )
        if split_seed:
            own = f"{config}_seed{split_seed}"
            chosen = dataclasses.replace(chosen, name=own, split_seed=split_seed)
    try:
        # tfds would take "" for a folder of its own.
        return BUILDERS[dataset](data_dir=epath.Path(data_dir), config=chosen, **options)
    except UsageError:
        raise
    except Exception as error:
        # What tfds raises of a damaged description depends on the damage.
        folder = epath.Path(data_dir) / dataset / chosen.name
        described = folder / str(BUILDERS[dataset].VERSION) / "dataset_info.json"
        if not described.exists():
            raise
        raise UsageError(
            f"{described} is damaged ({str(error).splitlines()[0]}); delete its folder and prepare "
            f"the set again."
        ) from error
