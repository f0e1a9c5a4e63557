"""From a study's configuration to its jobs: initializers, grids, and the runs that count."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from medinit_jax.core.errors import UsageError
from medinit_jax.data.tasks import TASKS
from medinit_jax.study.job import Job


class Cell(NamedTuple):
    """One entry of a table: a task, a network and a start, over all seeds.

    Attributes:
        experiment: Which row of the paper it belongs to, such as "T2a".
        task: Benchmark task.
        model: Network, a name of the zoo.
        start: Name of a start.
        fraction: Share of the labels.
        paper: The figure that the paper has for it.
    """

    experiment: str
    task: str
    model: str
    start: str
    fraction: float = 1.0
    paper: float | None = None

    @property
    def name(self) -> str:
        """For people; without the experiment, so that studies share what they have in common."""
        share = "" if self.fraction == 1 else f" {100 * self.fraction:g}%"
        return f"{self.task} {self.model}{share} {self.start}"


class Point(NamedTuple):
    """A point of the grid."""

    learning_rate: float
    weight_decay: float


class Rule(NamedTuple):
    """How a start comes to be.

    Attributes:
        absent: (plan, cell) -> why the cell cannot be run; "" if it can.
        jobs: (plan, cell) -> what has to be trained first, in order; the last one holds the start.
        changes: (plan, cell, ids of these jobs) -> what a fine-tuning's configuration has in its
            place, such as {"init": {"start": "random", "path": ""}}.
    """

    absent: Callable[[Plan, Cell], str]
    jobs: Callable[[Plan, Cell], list[Job]]
    changes: Callable[[Plan, Cell, list[str]], dict[str, Any]]


class Plan:
    """The jobs of a study.

    Args:
        config: The study, see `configs/study.py`.
        cells: What the study compares.
        starts: How each start comes to be.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        cells: Sequence[Cell],
        starts: Mapping[str, Rule],
    ):
        self.config, self.cells = config, tuple(cells)
        self.size = size_of(config)
        self.seeds = tuple(config.first_seed + i for i in range(self.size.seeds))
        self.grid = tuple(
            Point(float(rate), float(decay))
            for rate in self.size.learning_rates
            for decay in self.size.weight_decays
        )
        self.starts = starts
        unknown = sorted({cell.start for cell in self.cells} - set(starts))
        if unknown:
            raise UsageError(
                f"config.starts names {unknown[0]!r}; the starts are {', '.join(starts)}."
            )

    def absent(self, cell: Cell) -> str:
        """Returns why a cell is not run; "" if it is."""
        return self.starts[cell.start].absent(self, cell)

    def preparatory(self) -> list[Job]:
        """Returns the jobs that others need, such as an initializer per modality."""
        jobs: dict[str, Job] = {}
        for cell in self.cells:
            if self.absent(cell):
                continue
            for job in self.starts[cell.start].jobs(self, cell):
                jobs.setdefault(job.id, job)
        return list(jobs.values())

    def folds(self, cell: Cell) -> tuple[int, ...]:
        """Returns the folds that a cell's figure is the mean of; (-1,): the set has test images."""
        return tuple(self.size.get("folds", {}).get(cell.task, (-1,)))

    def job(self, cell: Cell, seed: int, point: Point, fold: int) -> Job:
        """Returns one fine-tuning of a cell."""
        config = self.finetune(cell, seed)
        config["protocol"]["fold"] = fold
        config["optim"] |= {
            "learning_rate": point.learning_rate,
            "weight_decay": point.weight_decay,
        }
        facts = {**cell._asdict(), "seed": seed, "grid": point._asdict(), "role": "run"}
        name = f"{cell.name} s{seed}" + (f" fold {fold}" if fold >= 0 else "")
        return Job("finetune", name, config, {**facts, "fold": fold})

    def grid_jobs(self, cell: Cell) -> list[Job]:
        """Returns a cell's fine-tunings at every point of the grid: first seed, first fold."""
        fold = self.folds(cell)[0]
        return [self.job(cell, self.seeds[0], point, fold) for point in self.grid]

    def chosen(self, cell: Cell, jobs_dir: Path) -> Point | None:
        """Returns the point with the best validation figure; None while one is not done.

        Of equal figures the smaller learning rate wins; a run that diverged counts as the worst,
        and where all did there is no choice: None.
        """
        if len(self.grid) == 1:
            return self.grid[0]
        figures: dict[Point, float] = {}
        for point, job in zip(self.grid, self.grid_jobs(cell), strict=True):
            if not job.is_done(jobs_dir):
                return None
            summary = job.summary(jobs_dir)
            value = (summary.get("best") or {}).get("validation")
            if value is None or summary.get("diverged"):
                value = -math.inf
            figures[point] = value
        best = min(figures, key=lambda point: (-figures[point], point))
        return None if figures[best] == -math.inf else best

    def finals(self, cell: Cell, jobs_dir: Path) -> list[Job]:
        """Returns the fine-tunings of all seeds at the chosen point; none before it is known.

        Those of one seed follow each other, in the order of the folds.
        """
        point = self.chosen(cell, jobs_dir)
        if point is None:
            return []
        return [
            self.job(cell, seed, point, fold) for seed in self.seeds for fold in self.folds(cell)
        ]

    def known(self, jobs_dir: Path) -> list[Job]:
        """Returns every job that can be named by now, in an order in which they can run."""
        jobs = {job.id: job for job in self.preparatory()}
        for cell in self.cells:
            if not self.absent(cell):
                for job in [*self.grid_jobs(cell), *self.finals(cell, jobs_dir)]:
                    jobs.setdefault(job.id, job)
        return list(jobs.values())

    def finetune(self, cell: Cell, seed: int) -> dict[str, Any]:
        """Returns the configuration of a fine-tuning of a cell."""
        size = self.size
        config = plain(self.config.base.finetune[cell.task])
        update(config, plain(size.finetune))
        kind = "segmentation" if TASKS[cell.task].kind == "segmentation" else "classification"
        update(config, plain(size[kind]))
        update(config, given(plain(self.config.finetune)))
        config["task"] = task_name(cell.task, size)
        config["seed"] = seed
        config["model"]["name"] = cell.model
        update(config["model"], plain(size.models.get(cell.model, {})))
        config["protocol"]["fraction"] = cell.fraction
        if self.config.budget == "steps" and cell.fraction < 1:
            # As many updates as all labels would have had.
            config["train"]["epochs"] = math.ceil(config["train"]["epochs"] / cell.fraction)
        elif self.config.budget not in ("epochs", "steps"):
            raise UsageError(
                f"config.budget={self.config.budget!r}; set it to epochs or steps, whichever is "
                "the same for all fractions."
            )
        rule = self.starts[cell.start]
        update(config, rule.changes(self, cell, [job.id for job in rule.jobs(self, cell)]))
        return config


def size_of(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the settings of `config.size`, with those of the study over them.

    Raises:
        UsageError: There is no such size.
    """
    if config.size not in config.sizes:
        raise UsageError(
            f"config.size={config.size!r}; set it to one of: {', '.join(config.sizes)}."
        )
    return config.sizes[config.size]


def task_name(task: str, size: Mapping[str, Any]) -> str:
    """Returns the task as `data.tasks.make_builder` takes it: the set itself, or its twin."""
    if not size["phantom"]:
        return task
    pixels = f"_{size['pixels']}px" if size["pixels"] != 256 else ""
    share = size["shares"].get(task, 1.0)
    return f"phantom_{task}{pixels}" + (f"_x{share:g}" if share != 1 else "")


def plain(config: Any) -> dict[str, Any]:
    """Returns a copy of a configuration as plain dicts."""
    return copy.deepcopy(config.to_dict() if hasattr(config, "to_dict") else dict(config))


def given(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what has a value."""
    parts = {k: given(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    return {key: value for key, value in parts.items() if value is not None}


def update(config: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Sets dotted keys, which have to be there.

    Raises:
        UsageError: A key is not there.
    """
    for key, value in changes.items():
        if isinstance(value, Mapping):
            if key not in config:
                raise UsageError(f"A study sets {key!r}, which the run's configuration lacks.")
            update(config[key], value)
        elif key not in config:
            raise UsageError(f"A study sets {key!r}, which the run's configuration lacks.")
        else:
            config[key] = value
