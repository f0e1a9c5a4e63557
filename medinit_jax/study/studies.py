"""All studies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import ml_collections

from medinit_jax.core.errors import UsageError
from medinit_jax.study import hyper_paper, hyper_starts, swcl_paper, swcl_starts
from medinit_jax.study.plan import Cell, Plan, Rule


class Study(NamedTuple):
    """What a study compares.

    Attributes:
        cells: Configuration -> its cells.
        starts: How each start comes to be.
    """

    cells: Callable[[ml_collections.ConfigDict], list[Cell]]
    starts: Mapping[str, Rule]


STUDIES: dict[str, Study] = {
    **{name: Study(cells, hyper_starts.RULES) for name, cells in hyper_paper.CELLS.items()},
    **{name: Study(cells, swcl_starts.RULES) for name, cells in swcl_paper.CELLS.items()},
}


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """Returns the plan of the study that `config.study` names.

    Raises:
        UsageError: There is no such study, size or start.
    """
    if config.study not in STUDIES:
        raise UsageError(f"config.study={config.study!r}; set it to one of: {', '.join(STUDIES)}.")
    study = STUDIES[config.study]
    return Plan(config, study.cells(config), study.starts)
