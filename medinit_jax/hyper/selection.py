"""Which step of a run is published: the last one, or the one that transfers best.

More training of a pretext can transfer worse, and its own accuracy does not tell. The transfer
probe does: a ridge classifier on frozen features of validation networks with predicted parameters,
fitted on labeled training images, its penalty chosen on one half of the validation images and
scored on the other. No test image and no test network takes part.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medinit_jax.arch.program import Program
from medinit_jax.core import cluster
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parallel import own_devices
from medinit_jax.core.parameters import load_params, save_params
from medinit_jax.data.augment import Augmentation
from medinit_jax.data.catalog import batch_options
from medinit_jax.data.pipeline import load_examples
from medinit_jax.data.sources import Source, patients_of
from medinit_jax.downstream.pool import LABELS
from medinit_jax.downstream.probe import ridge_probe
from medinit_jax.downstream.protocol import halves
from medinit_jax.hyper.bilevel import meta_batch
from medinit_jax.hyper.hypernetwork import Theta
from medinit_jax.hyper.initializer import graph_of
from medinit_jax.hyper.objective import split as split_heads
from medinit_jax.hyper.setup import Bilevel, make_bilevel
from medinit_jax.models.ops import pooled

BEST_FOLDER = "best"
SELECTIONS = ("auto", "last", "probe")


def probes(config: Any) -> bool:
    """Returns whether the step that is published is chosen by the transfer probe.

    Args:
        config: The experiment; "auto" looks at the labels of drawn images alone.

    Raises:
        UsageError: `config.train.select` means nothing.
    """
    select = config.train.select
    if select not in SELECTIONS:
        raise UsageError(f"config.train.select={select!r} is none of {', '.join(SELECTIONS)}.")
    return select == "probe" or (select == "auto" and config.data.source == "phantom")


class TransferProbe:
    """Scores a hypernetwork by what its validation networks are worth untouched.

    Batch statistics are those of groups, as in training, so that compiled blocks serve here too.

    Args:
        bilevel: What training runs on; `config.train.probe` says how many images and which label.
        sources: Images by split; "train" and "val" are read.
        programs: Networks by name.

    Raises:
        UsageError: The images have no labels of two kinds, or do not fill a batch.
    """

    def __init__(
        self, bilevel: Bilevel, sources: Mapping[str, Source], programs: Mapping[str, Program]
    ):
        config = bilevel.config
        self.bilevel = bilevel
        self.rows = bilevel.objective.rows(config.train.batch_size)
        options = batch_options(config.data, config.seed)
        mirrored = options.augmentation.normalize_laterality
        plain = dataclasses.replace(
            options, augmentation=Augmentation(normalize_laterality=mirrored)
        )
        counts = config.train.probe.images
        self._images, self._labels = {}, {}
        for split in ("train", "val"):
            held, wanted = len(sources[split]), min(len(sources[split]), counts[split])
            # In random order: where images lie by class, a group would have one class only.
            chosen = np.random.default_rng([config.seed, held]).permutation(held)[:wanted]
            examples = load_examples(sources[split], chosen, plain)
            labels = examples.get("label", np.full(len(chosen), -1))
            known = np.flatnonzero(labels >= 0)
            known = known[: len(known) // self.rows * self.rows]
            if config.train.probe.label == "any":
                labels = np.minimum(labels, 1)
            self._images[split] = [
                bilevel.parallel.shard(part)
                for part in np.split(examples["image"][known], len(known) // self.rows or 1)
            ]
            self._labels[split] = labels[known]
            if split == "val":
                names = patients_of(sources[split])
                self._halves = halves(labels[known], [names[int(i)] for i in chosen[known]])
        self._check(config)
        module = bilevel.module
        self._batches = {
            name: (program, meta_batch([program], [graph_of(module, program)], module))
            for name, program in programs.items()
        }
        self._pool = {
            token: bilevel.parallel.map(lambda x, t=token: pooled(x, t)) for token in (False, True)
        }

    def _check(self, config: Any) -> None:
        if config.train.probe.label not in LABELS:
            raise UsageError(
                f"config.train.probe.label={config.train.probe.label!r}; set it to any or class."
            )
        train, val = self._labels["train"], self._labels["val"]
        parts = (train, *(val[half] for half in self._halves))
        classes = range(int(max((part.max() for part in parts if len(part)), default=0)) + 1)
        self._classes = [
            k for k in (classes if len(classes) > 2 else (1,))
            if all((part == k).any() and (part != k).any() for part in parts)
        ]  # fmt: skip
        if not self._classes:
            raise UsageError(
                "config.train.select=probe needs labels of two kinds among config.train.probe."
                f"images={dict(config.train.probe.images)} and at least {self.rows} labeled images "
                "of each split; give them, or set config.train.select=last."
            )

    def __call__(self, theta: Theta) -> float:
        """Returns the mean ROC area over networks (and classes); one that is not finite is 0.5."""
        return float(np.mean([self._score(theta, name) for name in self._batches]))

    def _score(self, theta: Theta, name: str) -> float:
        program, batch = self._batches[name]
        parallel, tape = self.bilevel.parallel, self.bilevel.tape
        (raw,), _ = self.bilevel.writer.write(theta, batch)
        raw = parallel.copy(raw)
        pool = self._pool[program.reads_token]
        features = {}
        for split, images in self._images.items():
            rows = [np.asarray(pool(tape.features(program, raw, part))) for part in images]
            features[split] = np.concatenate([x.reshape(-1, x.shape[-1]) for x in rows])
        train, val = features["train"], features["val"]
        if not (np.isfinite(train).all() and np.isfinite(val).all()):
            return 0.5
        known = self._labels["train"]
        held = [self._labels["val"][half] for half in self._halves]
        first, second = (val[half] for half in self._halves)
        return float(
            np.mean(
                [
                    ridge_probe(train, known == k, first, held[0] == k, second, held[1] == k)["auc"]
                    for k in self._classes
                ]
            )
        )


class Best:
    """The parameters with the best probe so far, in a folder of the workdir.

    Args:
        workdir: The run's.
        step: Where the run goes on; a best of a later step is forgotten, as it comes again.
    """

    def __init__(self, workdir: Path, step: int):
        self.folder = workdir / BEST_FOLDER
        self.step, self.score = -1, -np.inf
        if self.folder.is_dir():
            _, metadata = load_params(self.folder)
            if metadata["step"] <= step:
                self.step, self.score = metadata["step"], metadata["score"]
            else:
                shutil.rmtree(self.folder)

    def consider(self, step: int, theta: Theta, score: float) -> None:
        """Keeps the parameters of a step if none before scored as high."""
        if score <= self.score:
            return
        self.step, self.score = step, score
        shutil.rmtree(self.folder, ignore_errors=True)
        save_params(self.folder, jax.device_get(theta), {"step": step, "score": score})

    def theta(self) -> Theta:
        """Returns the parameters that were kept."""
        return load_params(self.folder)[0]


def open_selection(
    bilevel: Bilevel,
    sources: Mapping[str, Source],
    programs: Mapping[str, Program],
    workdir: Path,
    started_at: int,
) -> tuple[Callable[[int, Any], float], Best | None] | None:
    """Returns (step, params) -> the transfer probe, and where its best is kept.

    None if the last step is published. Of several processes the first one scores and keeps, on its
    own devices, and the others wait; they keep nothing.

    Args:
        bilevel: What training runs on.
        sources: Images by split.
        programs: Validation networks by name.
        workdir: The run's.
        started_at: The step where the run goes on.

    Raises:
        UsageError: `config.train.select` means nothing, or there is nothing to probe.
    """
    train = bilevel.config.train
    if not probes(bilevel.config):
        return None
    if not train.validate_every or not programs:
        raise UsageError(
            "config.train.select=probe needs validation: set config.train.validate_every and "
            "config.train.validation_networks above 0, or set select=last."
        )
    if not cluster.first():
        return lambda step, params: cluster.once(float), None
    judge = bilevel if cluster.alone() else make_bilevel(bilevel.config, own_devices())
    probe, best = TransferProbe(judge, sources, programs), Best(workdir, started_at)

    def score(step: int, params: Any) -> float:
        theta, _ = split_heads(bilevel.world.local(params))
        found = probe(theta)
        best.consider(step, theta, found)
        return found

    return lambda step, params: cluster.once(lambda: score(step, params)), best
