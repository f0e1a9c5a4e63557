"""How the study of pretexts judges hypernetworks by segmentation: encoders that they start.

A U-Net, its encoder started in each way and its decoder at random, is fine-tuned on a few labeled
images: the route `finetune`, planned as every study plans it, with a learning rate for each start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from medinit_jax.core.errors import UsageError
from medinit_jax.data.tasks import TASKS
from medinit_jax.study.hyper_starts import RANDOM
from medinit_jax.study.job import REFERENCE, Job
from medinit_jax.study.paired_images import compare_on_images
from medinit_jax.study.plan import Cell, Plan, Point, Rule, plain, size_of

_PREDICTED = ("hyper", "matched", "untrained")
STARTS = ("random", *_PREDICTED)


class SegmentationPlan(Plan):
    """The fine-tunings that judge one hypernetwork with one recipe.

    Random starts are the same jobs for every hypernetwork of a phase.

    Args:
        config: The study, see `configs/pretext_study.py`.
        phase: "choose", where validation images judge, or "confirm", where test images do.
        tasks: Benchmark tasks.
        training: The job that trains the hypernetwork.
        recipe: What of `config.init` the recipe of transfer sets.

    Raises:
        UsageError: A task or start is none of segmentation.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        phase: str,
        tasks: Sequence[str],
        training: Job,
        recipe: Mapping[str, Any],
    ):
        key = f"config.sizes.{config.size}.segmentation"
        size = plain(size_of(config).segmentation)
        unknown = [task for task in tasks if task not in config.base.finetune]
        if unknown:
            raise UsageError(
                f"{key}.tasks names {unknown[0]!r}; the tasks are: "
                f"{', '.join(config.base.finetune)}."
            )
        wrong = [start for start in size["starts"][phase] if start not in STARTS]
        if wrong:
            raise UsageError(
                f"{key}.starts.{phase} names {wrong[0]!r}; the starts are {', '.join(STARTS)}."
            )
        # Seeds choose the labeled images, so that none is in both phases.
        first = config.first_seed + (0 if phase == "choose" else size["seeds"]["choose"])
        held = {
            "first_seed": first,
            "size": config.size,
            "budget": "epochs",
            "base": {"finetune": plain(config.base.finetune)},
            "finetune": plain(config.finetune),
            "sizes": {config.size: {**size, "seeds": size["seeds"][phase], "segmentation": {}}},
        }
        cells = [
            Cell(phase, task, model, start, float(fraction))
            for task in tasks
            for model in size["networks"][phase]
            for fraction in size["fractions"]
            for start in size["starts"][phase]
        ]
        rules = {start: _predicted(start, training, recipe) for start in _PREDICTED}
        self.training = training
        # A study asks for its jobs again and again, and has thousands of them.
        self._made: dict[Any, Job] = {}
        super().__init__(ml_collections.ConfigDict(held), cells, {"random": RANDOM, **rules})

    def job(self, cell: Cell, seed: int, point: Point, fold: int) -> Job:
        """Returns one fine-tuning of a cell, which tells the hypernetwork of its start."""
        key = (cell, seed, point, fold)
        if key not in self._made:
            job = self._made[key] = super().job(cell, seed, point, fold)
            if cell.start in _PREDICTED:
                origin = {name: self.training.facts[name] for name in ("modality", "pretext")}
                job.facts |= {**origin, "initializer": self.training.id}
        return self._made[key]

    def is_done(self, jobs_dir: Path) -> bool:
        """Tells whether every cell has all its runs."""
        runs = [self.finals(cell, jobs_dir) for cell in self.cells]
        return all(jobs and all(job.is_done(jobs_dir) for job in jobs) for jobs in runs)

    def entries(self, jobs_dir: Path) -> list[dict[str, Any]]:
        """Returns a row per run: its figure on the images that judge the phase.

        Returns:
            "task", "network" (task, network and seed: what is paired), "fraction", "start", and
            "dice", on validation images or, of the epoch that validates best, on test images.
        """
        found = []
        for cell in self.cells:
            for job in self.finals(cell, jobs_dir):
                best = job.summary(jobs_dir).get("best") or {}
                dice = best.get("validation")
                if cell.experiment == "confirm":
                    dice = best.get("test", {}).get("metric")
                found.append(
                    {
                        "task": cell.task,
                        "network": f"{cell.task} {cell.model} s{job.facts['seed']}",
                        "fraction": cell.fraction,
                        "start": cell.start,
                        "dice": dice,
                    }
                )
        return found


def _predicted(start: str, training: Job, recipe: Mapping[str, Any]) -> Rule:
    def changes(plan: Plan, cell: Cell, ids: list[str]) -> dict[str, Any]:
        del plan, cell
        path = f"{REFERENCE}{ids[-1]}"
        return {"init": {"start": start, "path": path, "unknown_types": "nearest", **recipe}}

    return Rule(lambda plan, cell: "", lambda plan, cell: [training], changes)


def on_images(plans: Sequence[SegmentationPlan], jobs_dir: Path) -> list[dict[str, Any]]:
    """Compares the hypernetworks' start with every other one on the same test images.

    Args:
        plans: Of one pair of pretext and recipe, one for each hypernetwork; all done.
        jobs_dir: Where the jobs are.

    Returns:
        "task", "model", "fraction", "other", and what `compare_on_images` found: the interval is
        over test images, with the networks as they are.
    """
    rows = []
    for cell in plans[0].cells:
        if cell.start == "hyper":
            continue
        own, other = (
            [
                [job.folder(jobs_dir)]
                for plan in plans
                for job in plan.finals(cell._replace(start=start), jobs_dir)
            ]
            for start in ("hyper", cell.start)
        )
        found = compare_on_images(own, other, TASKS[cell.task].metric)
        if found is not None:
            place = {"task": cell.task, "model": cell.model, "fraction": cell.fraction}
            rows.append({**place, "other": cell.start, **found})
    return rows
