"""The study of pretexts: which one, transferred how, carries over, chosen first and then confirmed.

Everything is in the configuration before the first run. *Choose*: every pretext of every modality
is trained once, and every recipe probed on validation networks and validation images. The rule of
the configuration names one pair per modality. *Confirm*: the pair is trained anew from further
seeds and judged on test networks and test images, from all starts, by probe and fine-tuning.

A modality that has tasks of segmentation is judged by them in the place of probes: U-Nets are
fine-tuned on few labeled images, and Dice is that of validation images, then that of test images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.report.pretext_results import dice_figure, probe_figure, rule_score
from medinit_jax.study.job import REFERENCE, Job
from medinit_jax.study.plan import given, plain, size_of, update
from medinit_jax.study.pretext_segmentation import SegmentationPlan

PHASES = ("choose", "confirm")


class Pair(NamedTuple):
    """What is compared in the first phase.

    Attributes:
        modality: Such as "fundus".
        pretext: Key of `config.pretexts`.
        recipe: Key of `config.recipes`.
    """

    modality: str
    pretext: str
    recipe: str


class PretextPlan:
    """The jobs of the study.

    Args:
        config: See `configs/pretext_study.py`.

    Raises:
        UsageError: A key means nothing, or networks or seeds are in both phases.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        self.config, self.size = config, size_of(config)
        self._segmentations: dict[tuple[str, Pair, int], SegmentationPlan] = {}
        if config.last not in PHASES:
            raise UsageError(f"config.last={config.last!r}; set it to choose or confirm.")
        both = set(self.size.networks.choose) & set(self.size.networks.confirm)
        if both:
            raise UsageError(
                f"The network {min(both)} is in both config.sizes.{config.size}.networks.choose "
                "and .confirm; what was chosen on it cannot be confirmed on it."
            )
        self.pairs = [
            Pair(modality, pretext, recipe)
            for modality in self.size.modalities
            for pretext in self.size.pretexts
            for recipe in self.size.recipes
        ]

    def tasks(self, modality: str) -> tuple[str, ...]:
        """Returns the tasks of segmentation that judge a modality; () if probes do."""
        return tuple(self.size.segmentation.tasks[modality])

    def seeds(self, phase: str) -> tuple[int, ...]:
        """Returns the hypernetwork seeds of a phase; no seed is in both."""
        first = self.config.first_seed
        chosen = self.size.seeds.choose
        if phase == "choose":
            return tuple(first + i for i in range(chosen))
        return tuple(first + chosen + i for i in range(self.size.seeds.confirm))

    def training(self, pair: Pair, seed: int) -> Job:
        """Returns the job that trains a hypernetwork; recipes share it."""
        config = self._base(pair, seed)
        config["stages"] = ["train"]
        facts = {"role": "initializer", **pair._asdict(), "seed": seed}
        name = f"initializer {pair.modality} {pair.pretext} s{seed}"
        return Job("hyper", name, config, facts)

    def evaluation(self, phase: str, pair: Pair, seed: int) -> Job:
        """Returns the job that compares the starts of a trained hypernetwork."""
        config = self._base(pair, seed)
        config["stages"] = ["evaluate"]
        evaluate = config["evaluate"]
        evaluate["initializer"] = f"{REFERENCE}{self.training(pair, seed).id}"
        evaluate["splits"] = dict.fromkeys(evaluate["splits"], 0)
        downstream = evaluate["downstream"]
        # Where segmentation judges, only the diagnostics are left.
        judged = () if self.tasks(pair.modality) else self.size.networks[phase]
        downstream["networks"] = list(judged)
        shares = self.config.rule.fractions if phase == "choose" else self.size.fractions
        downstream["fractions"] = list(shares)
        update(downstream, plain(self.size.downstream[phase]))
        update(downstream, plain(self.config.recipes[pair.recipe]))
        update(evaluate["diagnostics"], plain(self.size.diagnostics[phase]))
        facts = {"role": phase, **pair._asdict(), "seed": seed}
        name = f"{phase} {pair.modality} {pair.pretext} {pair.recipe} s{seed}"
        return Job("hyper", name, config, facts)

    def segmentation(self, phase: str, pair: Pair, seed: int) -> SegmentationPlan:
        """Returns the fine-tunings that judge a trained hypernetwork by segmentation."""
        key = (phase, pair, seed)
        if key not in self._segmentations:
            recipe = plain(self.config.recipes[pair.recipe])
            training, tasks = self.training(pair, seed), self.tasks(pair.modality)
            self._segmentations[key] = SegmentationPlan(self.config, phase, tasks, training, recipe)
        return self._segmentations[key]

    def _base(self, pair: Pair, seed: int) -> dict[str, Any]:
        config = plain(self.config.base.hyper[pair.modality])
        update(config, plain(self.size.hyper))
        update(config, given(plain(self.size.hyper_of[pair.modality])))
        update(config, plain(self.config.pretexts[pair.pretext]))
        config["seed"] = seed
        if config["data"]["source"] in ("phantom", "prepared"):
            return config
        folder = self.config.images[pair.modality]
        if not folder:
            raise UsageError(
                f"The study at size {self.config.size} has no images of {pair.modality}: set "
                f"config.images.{pair.modality}, or take it out of config.sizes."
                f"{self.config.size}.modalities."
            )
        config["data"]["path"] = folder
        return config

    def jobs(self, phase: str, pairs: Iterable[Pair], jobs_dir: Path) -> list[Job]:
        """Returns the jobs of a phase in an order in which they can run, each once.

        Args:
            phase: "choose" or "confirm".
            pairs: What is compared.
            jobs_dir: Where they are: what a grid of learning rates decides is known when it is
                done.
        """
        found: dict[str, Job] = {}
        for pair in pairs:
            for seed in self.seeds(phase):
                judging = [self.evaluation(phase, pair, seed)]
                if self.tasks(pair.modality):
                    diagnosed = phase == "confirm" and self.size.diagnostics.confirm.networks
                    judging = judging if diagnosed else []
                    judging += self.segmentation(phase, pair, seed).known(jobs_dir)
                for job in (self.training(pair, seed), *judging):
                    found.setdefault(job.id, job)
        return list(found.values())

    def scores(self, jobs_dir: Path) -> dict[Pair, float | None]:
        """Returns what the rule makes of every pair; None where no figures are there for it."""
        return {pair: self._score(pair, jobs_dir) for pair in self.pairs}

    def _score(self, pair: Pair, jobs_dir: Path) -> float | None:
        seeds = self.seeds("choose")
        if self.tasks(pair.modality):
            plans = [self.segmentation("choose", pair, seed) for seed in seeds]
            if not all(plan.is_done(jobs_dir) for plan in plans):
                return None
            entries = [plan.entries(jobs_dir) for plan in plans]
            score = rule_score(entries, self.size.segmentation.fractions, dice_figure)
        else:
            jobs = [self.evaluation("choose", pair, seed) for seed in seeds]
            if not all(job.is_done(jobs_dir) for job in jobs):
                return None
            entries = [job.summary(jobs_dir).get("probe", []) for job in jobs]
            figure = probe_figure(self.config.depth)
            score = rule_score(entries, self.config.rule.fractions, figure)
        return score if np.isfinite(score) else None

    def chosen(self, scores: Mapping[Pair, float | None]) -> dict[str, Pair]:
        """Returns the pair with the best score of each modality that is done as far as it goes."""
        winners = {}
        for modality in self.size.modalities:
            own = {p: s for p, s in scores.items() if p.modality == modality and s is not None}
            if own:
                winners[modality] = max(own, key=own.__getitem__)
        return winners
