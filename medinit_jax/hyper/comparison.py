"""Fine-tuning and frozen probes of unseen networks from the four starts, under one budget."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax.core import cluster
from medinit_jax.core.errors import UsageError
from medinit_jax.core.ledger import Ledger
from medinit_jax.core.progress import Progress
from medinit_jax.downstream import classify
from medinit_jax.downstream.classify import Budget, Labeled, Task
from medinit_jax.downstream.metrics import mean_sd
from medinit_jax.downstream.pool import Pool
from medinit_jax.downstream.probe import ridge_probe
from medinit_jax.downstream.protocol import (
    STARTS,
    Cell,
    choose_learning_rates,
    fold_seed,
    grid_cells,
    label_subset,
    run_seeds,
    summarize_seeds,
)
from medinit_jax.hyper.hypernetwork import HyperInitializer, Theta
from medinit_jax.hyper.pretexts.rotation import Rotation
from medinit_jax.hyper.starts import (
    Transfer,
    hyper_start,
    matched_start,
    predict_body,
    random_start,
    untrained_theta,
)
from medinit_jax.models.initial import Params
from medinit_jax.models.network import Network, feature_taps
from medinit_jax.models.zoo import by_name

_ANGLES = (0, 90, 180, 270)


class _Probe(NamedTuple):
    """A share of the labels, a start and a seed."""

    fraction: float
    start: str
    seed: int


class Comparison:
    """One network's runs; finished ones come from the ledger.

    Args:
        config: The experiment.
        module: The hypernetwork.
        theta: Its trained parameters.
        pool: Labeled images.
        ledger: Where results are kept.
        name: The network, see `models.zoo.by_name`.
        space: The design space.
        report: Called after each run.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        module: HyperInitializer,
        theta: Theta,
        pool: Pool,
        ledger: Ledger,
        name: str,
        space: Any,
        report: Callable[[], None] = lambda: None,
    ):
        self.settings = config.evaluate.downstream
        self.module, self.pool, self.ledger, self.name = module, pool, ledger, name
        self.seed, self.report = config.seed, report
        self.network: Network = by_name(name, pool.classes, space)
        self.transfer = transfer_of(self.settings)
        self.starts = tuple(self.settings.starts)
        self.budget = budget_of(config)
        self._rules = digest_of(self.settings)
        self._theta = theta
        self._predicted = functools.cache(self._predict)
        self._rotnet = functools.cache(self._train_alone)
        self.twin = functools.partial(by_name, name, space=space)

    def _predict(self, trained: bool) -> Params:
        theta = self._theta if trained else untrained_theta(self.module, self.seed)
        return predict_body(self.module, theta, self.network.program)

    def _train_alone(self) -> Params:
        """Trains the network from its own initialization on rotations of the training images."""
        settings = self.settings.rotnet
        network: Network = self.twin(len(_ANGLES))
        images = self.pool.train.images[: settings.images]
        views, angles = Rotation().views(images, jax.random.key(0))
        start = random_start(network.program, jax.random.key(fold_seed(self.seed, "rotnet")))
        budget = dataclasses.replace(self.budget, epochs=settings.epochs, flip=False)
        labeled = Labeled(np.asarray(views), np.asarray(angles))
        rate = settings.learning_rate
        return classify.train(network, start, labeled, budget, rate, self.seed)

    def start(self, start: str, seed: int) -> Params:
        """Returns the parameters of a start; starts of one seed share the classifier's."""
        program = self.network.program
        key = jax.random.key(fold_seed(self.seed, "start", self.name, seed))
        if start == "random":
            return random_start(program, key)
        if start == "rotnet":
            own = random_start(program, key)
            learned = self._rotnet()
            return {name: own[name] if name == program.head else learned[name] for name in own}
        predicted = self._predicted(start != "untrained")
        make = matched_start if start == "matched" else hyper_start
        return make(self.module, self._theta, program, key, self.transfer, predicted)

    def labeled(self, fraction: float, seed: int) -> Labeled:
        """Returns the images whose labels may be seen; every seed has its own."""
        labels = self.pool.train.labels
        return self.pool.train.subset(label_subset(labels, self.pool.patients, fraction, seed))

    def courses(self, cells: Sequence[Cell]) -> dict[Cell, dict[str, Any]]:
        """Fine-tunes, or takes what an earlier run found: the fields of `classify.Course`."""
        keys = {
            cell: "/".join(["finetune", self._rules, *(str(field) for field in cell)])
            for cell in cells
        }
        self._divide({key: functools.partial(self._course, cell) for cell, key in keys.items()})
        return {cell: self.ledger[key] for cell, key in keys.items()}

    def _course(self, cell: Cell) -> dict[str, Any]:
        task = Task(self.labeled(cell.fraction, cell.seed), self.pool.val, self.pool.test)
        start = self.start(cell.start, cell.seed)
        return classify.fine_tune(
            self.network, start, task, self.budget, cell.learning_rate, cell.seed
        )._asdict()

    def probes(self, wanted: Sequence[_Probe]) -> dict[_Probe, list[float | None]]:
        """Returns the test AUC of frozen features at each depth, or None where not finite."""
        keys = {
            one: f"probe/{self._rules}/{self.name}/{one.fraction:g}/{one.start}/{one.seed}"
            for one in wanted
        }
        self._divide({key: functools.partial(self._probe, *one) for one, key in keys.items()})
        return {one: self.ledger[key] for one, key in keys.items()}

    def _probe(self, fraction: float, start: str, seed: int) -> list[float | None]:
        labeled = self.labeled(fraction, seed)
        params = self.start(start, seed)
        statistics = classify.calibrate(self.network, params, labeled, self.budget)
        taps = feature_taps(self.network.program, tuple(self.settings.probe_depths))
        parts = (labeled, self.pool.val, self.pool.test)
        features = [
            classify.outputs(self.network, params, statistics, part.images, taps) for part in parts
        ]
        return [
            probe_auc([f[depth] for f in features], [part.labels for part in parts])
            for depth in range(len(taps))
        ]

    def _divide(self, pieces: Mapping[str, Callable[[], Any]]) -> None:
        """Finds what is not known yet; several processes divide it."""
        self.ledger.divide(pieces, lambda name: self.report())

    def finetune_entries(self) -> list[dict[str, Any]]:
        """Runs the grid, chooses learning rates on validation, and summarizes every start."""
        settings = self.settings
        rates = tuple(settings.learning_rates)
        seeds = run_seeds(self.seed, settings.seeds)
        grid_seeds = seeds[: settings.grid_seeds or None]
        fractions = finetuned(settings)
        searched = [f for f in fractions if f in tuple(settings.lr_fractions)] or list(fractions)
        chosen: dict[tuple[str, float], float] = {}
        for fraction in searched:
            cells = grid_cells([self.name], [fraction], rates, grid_seeds, self.starts)
            courses = self.courses(cells)
            figures = {cell: max(course["val_auc"]) for cell, course in courses.items()}
            for (_, share, start), rate in choose_learning_rates(figures).items():
                chosen[start, share] = rate
        nearest = {
            fraction: min(searched, key=lambda f: abs(math.log(f / fraction)))
            for fraction in fractions
        }
        final = {
            (fraction, start, seed): Cell(
                self.name, fraction, start, chosen[start, nearest[fraction]], seed
            )
            for fraction, start, seed in itertools.product(fractions, self.starts, seeds)
        }
        found = self.courses(list(final.values()))
        entries = []
        for fraction in fractions:
            for start in self.starts:
                courses = [found[final[fraction, start, seed]] for seed in seeds]
                summary = summarize_seeds(
                    [c["test_auc"] for c in courses], [c["val_auc"] for c in courses]
                )
                entries.append(
                    {
                        "network": self.name,
                        "fraction": fraction,
                        "start": start,
                        "learning_rate": chosen[start, nearest[fraction]],
                        "learning_rate_from": nearest[fraction],
                        "diverged": sum(c["diverged"] for c in courses),
                        **summary,
                    }
                )
        return entries

    def probe_entries(self) -> list[dict[str, Any]]:
        """Probes the frozen features of every start at each fraction and depth."""
        entries = []
        seeds, fractions = run_seeds(self.seed, self.settings.seeds), self.settings.fractions
        found = self.probes(
            [_Probe(f, start, seed) for f in fractions for start in self.starts for seed in seeds]
        )
        for fraction in fractions:
            for start in self.starts:
                rows = [found[_Probe(fraction, start, seed)] for seed in seeds]
                for depth, column in zip(
                    self.settings.probe_depths, zip(*rows, strict=True), strict=True
                ):
                    values = [v for v in column if v is not None]
                    mean, sd = mean_sd(values) if values else (math.nan, math.nan)
                    entries.append(
                        {
                            "network": self.name,
                            "fraction": fraction,
                            "start": start,
                            "depth": depth,
                            "seeds": list(column),
                            "mean": float(mean),
                            "sd": float(sd),
                        }
                    )
        return entries

    def tensors(self) -> list[dict[str, Any]]:
        """Returns mean and deviation of every tensor in every start, as `parameters.json` does."""
        seed = run_seeds(self.seed, 1)[0]
        starts = {start: self.start(start, seed) for start in STARTS if start in self.starts}
        return [
            {
                "name": f"{name}.{leaf}",
                "shape": list(shape),
                **{start: _moments(tree[name][leaf]) for start, tree in starts.items()},
            }
            for name, leaves in self.network.program.parameter_shapes().items()
            for leaf, shape in leaves.items()
        ]


def digest_of(settings: ml_collections.ConfigDict) -> str:
    """Names what a run depends on beside its cell: labels, images, transfer, budget, depths."""
    keys = ("label", "images", "judge", "probe_depths", "depth_fraction", "init_noise", "budget")
    keys += ("kinds", "orthogonal", "deviation", "rotnet")
    given = settings.to_dict()
    text = json.dumps({key: given[key] for key in keys}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def transfer_of(settings: ml_collections.ConfigDict) -> Transfer:
    """Reads from `config.evaluate.downstream` how predicted values enter a network."""
    return Transfer(
        depth_fraction=settings.depth_fraction,
        init_noise=settings.init_noise,
        orthogonal=settings.orthogonal,
        kinds=tuple(settings.kinds),
        deviation=settings.deviation,
    )


def budget_of(config: ml_collections.ConfigDict) -> Budget:
    """Reads the budget from `config.evaluate.downstream.budget`."""
    return Budget(**config.evaluate.downstream.budget)


def probe_auc(features: list[np.ndarray], labels: list[np.ndarray]) -> float | None:
    """Returns the test AUC of a ridge probe: of two classes, or the mean of one against the rest.

    Args:
        features: Of the labeled, the validation and the test images, (n, d) each.
        labels: Theirs, (n,) each.
    """
    if not all(np.isfinite(part).all() for part in features):
        return None
    train, val, test = features
    classes = int(max(part.max() for part in labels)) + 1
    wanted = range(classes) if classes > 2 else (1,)
    figures = [
        ridge_probe(train, labels[0] == k, val, labels[1] == k, test, labels[2] == k)["auc"]
        for k in wanted
        if all((part == k).any() for part in labels)
    ]
    return float(np.mean(figures)) if figures else None


def finetuned(settings: ml_collections.ConfigDict) -> tuple[float, ...]:
    """Returns the shares of labels at which networks are fine-tuned.

    Raises:
        UsageError: One is no share that is compared.
    """
    fractions, chosen = tuple(settings.fractions), tuple(settings.finetune_fractions)
    unknown = sorted(set(chosen) - set(fractions))
    if unknown:
        raise UsageError(
            f"config.evaluate.downstream.finetune_fractions names {unknown[0]:g}, which is none of "
            f"fractions={fractions}."
        )
    return chosen or fractions


def count_runs(settings: ml_collections.ConfigDict) -> int:
    """Returns how many fine-tunings and probes are asked for, repeated requests included."""
    fractions, seeds = finetuned(settings) if settings.finetune else (), settings.seeds
    grid_seeds = min(settings.grid_seeds or seeds, seeds)
    searched = sum(f in tuple(settings.lr_fractions) for f in fractions) or len(fractions)
    grid = searched * len(settings.learning_rates) * grid_seeds
    each = grid + (len(fractions) + len(settings.fractions)) * seeds
    return len(settings.networks) * len(settings.starts) * each


def compare(
    config: ml_collections.ConfigDict,
    module: HyperInitializer,
    theta: Theta,
    pool: Pool,
    ledger: Ledger,
    space: Any,
    console: Console,
) -> dict[str, Any]:
    """Compares the four starts on every downstream network of the configuration.

    Args:
        config: The experiment.
        module: The hypernetwork.
        theta: Its trained parameters.
        pool: Labeled images.
        ledger: Where results are kept.
        space: The design space.
        console: Where progress is shown.

    Returns:
        "finetune" and "probe" entries of `summary.json`, and "parameters" of `parameters.json`.
    """
    settings = config.evaluate.downstream
    found: dict[str, Any] = {"finetune": [], "probe": [], "parameters": {}}
    done = 0
    with Progress("compare", count_runs(settings), console, unit="runs") as bar:

        def report() -> None:
            nonlocal done
            done += 1
            bar.update(done)

        for name in settings.networks:
            comparison = Comparison(config, module, theta, pool, ledger, name, space, report)
            found["probe"] += comparison.probe_entries()
            if settings.finetune:
                found["finetune"] += comparison.finetune_entries()
            # The first process alone writes them.
            found["parameters"][name] = comparison.tensors() if cluster.first() else []
            classify.forget_compiled()
    return found


def _moments(values: Any) -> dict[str, float]:
    array = np.asarray(values, np.float64)
    return {"mean": float(array.mean()), "std": float(array.std())}
