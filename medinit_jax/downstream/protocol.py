"""The rules of a fair comparison of starts: who is labeled, which seeds, which learning rate."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.metrics import mean_sd

# The start that is put to the test comes first, the three it is compared with follow.
STARTS: dict[str, str] = {
    "hyper": "parameters predicted by the trained hypernetwork",
    "random": "the network's own random initialization (He)",
    "matched": "the predicted values, permuted within each tensor",
    "untrained": "parameters predicted by the hypernetwork before its training",
}


# Starts that are compared where they are asked for: they cost a training of their own.
FURTHER_STARTS: dict[str, str] = {
    "rotnet": "the network pretrained alone on rotation, without labels",
}


def fold_seed(seed: int, *names: object) -> int:
    """Fold names into a seed, so that every random choice has a stream of its own.

    Args:
        seed: the run's seed.
        *names: anything with a stable text form, such as "order" and an epoch.

    Returns:
        An integer in [0, 2^31), equal on every machine and in every process.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def split_patients(
    labels: ArrayLike,
    patients: Sequence | np.ndarray,
    shares: Mapping[str, float],
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Split images into named sets, stratified by label, all images of a patient in one set.

    Args:
        labels: (n,) integers; a patient counts as the largest label of their images.
        patients: (n,) ids.
        shares: set name to share of the images, such as {"train": 0.6, "val": 0.2, "test": 0.2};
            they sum to 1.
        seed: chooses among splits.

    Returns:
        Set name to sorted int64 image indices; the sets cover all images once.

    Raises:
        UsageError: the shares do not sum to 1 or a set would be empty.
    """
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise UsageError(f"Split shares must be positive and sum to 1, got {dict(shares)}.")
    image_set = np.empty(len(_ids(labels, patients)), np.int64)
    for images, ends in _strata(labels, patients, seed):
        first, share = 0, 0.0
        for number, part in enumerate(shares.values()):
            share += part
            last = _nearest(ends, share * len(images)) if number < len(shares) - 1 else len(images)
            image_set[images[first:last]] = number
            first = last
    sets = {name: np.flatnonzero(image_set == i) for i, name in enumerate(shares)}
    empty = [name for name, index in sets.items() if len(index) == 0]
    if empty:
        raise UsageError(
            f"The split leaves {', '.join(empty)} without images: {len(np.unique(patients))} "
            "patients are too few for these shares."
        )
    return sets


def label_subset(
    labels: ArrayLike, patients: Sequence | np.ndarray, fraction: float, seed: int = 0
) -> np.ndarray:
    """Choose the images whose labels may be seen, stratified by label, patients never split.

    Subsets of one seed are nested: every patient in the 2 % subset is in the 10 % subset. A
    patient's rank depends on the seed and their id alone, so adding images of other patients
    changes no one's rank.

    Args:
        labels: (n,) integers; a patient counts as the largest label of their images.
        patients: (n,) ids.
        fraction: share of the images, in (0, 1]; at least one patient per label is kept.
        seed: chooses among subsets.

    Returns:
        Sorted int64 image indices.

    Raises:
        UsageError: the fraction is outside (0, 1] or the lengths differ.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"A label fraction lies in (0, 1], got {fraction}.")
    chosen = [
        images[: max(_nearest(ends, fraction * len(images)), int(ends[0]))]
        for images, ends in _strata(labels, patients, seed)
    ]
    return np.sort(np.concatenate(chosen))


def halves(labels: ArrayLike, patients: Sequence | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divides images in two that both have every label, as far as its patients allow.

    Args:
        labels: (n,) integers; a patient counts as the largest label of their images.
        patients: (n,) ids; none is in both halves.

    Returns:
        Sorted int64 image indices of each half.
    """
    count = len(np.asarray(labels))
    first = label_subset(labels, patients, 0.5) if count else np.zeros(0, np.int64)
    return first, np.setdiff1d(np.arange(count), first)


def run_seeds(base: int, count: int) -> tuple[int, ...]:
    """Seeds of the repetitions; every start uses the same ones, so that seeds pair across starts.

    Args:
        base: the run's seed.
        count: how many repetitions.

    Returns:
        `count` consecutive integers from `base`.
    """
    return tuple(base + i for i in range(count))


class Cell(NamedTuple):
    """One fine-tuning run of the comparison.

    Attributes:
        network: name of the network.
        fraction: share of labels.
        start: a key of `STARTS`.
        learning_rate: of the grid.
        seed: of the repetition.
    """

    network: str
    fraction: float
    start: str
    learning_rate: float
    seed: int


def grid_cells(
    networks: Iterable[str],
    fractions: Iterable[float],
    learning_rates: Iterable[float],
    seeds: Iterable[int],
    starts: Iterable[str] = tuple(STARTS),
) -> list[Cell]:
    """List every run of a complete comparison, in a fixed order.

    Args:
        networks: names.
        fractions: shares of labels; pass one to search the learning rate at that fraction only.
        learning_rates: one grid for all starts.
        seeds: of the repetitions.
        starts: keys of `STARTS` or `FURTHER_STARTS`.

    Returns:
        The product, networks slowest and seeds fastest.

    Raises:
        UsageError: a start is unknown.
    """
    names = tuple(starts)
    known = STARTS | FURTHER_STARTS
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UsageError(f"Unknown start {unknown[0]!r}; the starts are {', '.join(known)}.")
    rates, repeats, shares = tuple(learning_rates), tuple(seeds), tuple(fractions)
    return [
        Cell(network, share, start, rate, seed)
        for network in networks
        for share in shares
        for start in names
        for rate in rates
        for seed in repeats
    ]


def choose_learning_rates(
    validation: Mapping[Cell, float],
) -> dict[tuple[str, float, str], float]:
    """Choose, for every network, fraction and start, the rate with the best validation mean.

    Every start is judged by the same rule on the same grid and seeds. A run that diverged
    counts as the worst there is; of equal rates the smaller wins.

    Args:
        validation: a run to its validation figure, larger is better, NaN if it diverged.

    Returns:
        (network, fraction, start) to learning rate.

    Raises:
        UsageError: the rates of one choice were run with different seeds, or all diverged.
    """
    table: dict[tuple[str, float, str], dict[float, dict[int, float]]] = {}
    for cell, value in validation.items():
        key = (cell.network, cell.fraction, cell.start)
        rates = table.setdefault(key, {})
        rates.setdefault(cell.learning_rate, {})[cell.seed] = (
            value if math.isfinite(value) else -math.inf
        )
    chosen = {}
    for (network, fraction, start), rates in table.items():
        place = f"{network} with {100 * fraction:g} % of the labels from the {start} start"
        if len({frozenset(seeds) for seeds in rates.values()}) > 1:
            raise UsageError(f"Learning rates of {place} were run with different seeds.")
        mean = {rate: sum(seeds.values()) / len(seeds) for rate, seeds in rates.items()}
        best = min(mean, key=lambda rate: (-mean[rate], rate))
        if mean[best] == -math.inf:
            raise UsageError(f"Every learning rate of {place} diverged: add a smaller one.")
        chosen[network, fraction, start] = best
    return chosen


def best_epoch(validation: ArrayLike) -> int:
    """Index of the best validation epoch, the first of equals; NaN epochs are passed over.

    Args:
        validation: (epochs,) floats, larger is better.

    Returns:
        An index into the epochs; 0 when every epoch is NaN.
    """
    values = np.asarray(validation, np.float64)
    return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))


def summarize_seeds(
    test_curves: Sequence[Sequence[float]], validation_curves: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Summarize the runs of one network, fraction and start, as `summary.json` holds them.

    Args:
        test_curves: per seed, the test figure after each epoch.
        validation_curves: per seed, the validation figure after each epoch, same lengths.

    Returns:
        "seeds" (a list of {"auc_per_epoch", "best_epoch"}), "mean" and "sd" per epoch, and mean
        and sd of the last epoch ("final_...") and of the test figure at the best validation
        epoch ("best_..."). A deviation of one seed is None.

    Raises:
        UsageError: the numbers of seeds or epochs differ.
    """
    curves = np.asarray(test_curves, np.float64)
    checks = np.asarray(validation_curves, np.float64)
    if curves.ndim != 2 or curves.shape != checks.shape or curves.size == 0:
        raise UsageError(
            "Every seed needs as many test as validation epochs: "
            f"{[len(c) for c in test_curves]} and {[len(c) for c in validation_curves]}."
        )
    epochs = [best_epoch(check) for check in checks]
    best = curves[np.arange(len(curves)), epochs]
    mean, sd = mean_sd(curves)
    best_mean, best_sd = (float(v) for v in mean_sd(best))
    return {
        "seeds": [
            {"auc_per_epoch": curve.tolist(), "best_epoch": epoch}
            for curve, epoch in zip(curves, epochs, strict=True)
        ],
        "mean": mean.tolist(),
        "sd": [_none_if_nan(value) for value in sd.tolist()],
        "final_mean": float(mean[-1]),
        "final_sd": _none_if_nan(float(sd[-1])),
        "best_mean": best_mean,
        "best_sd": _none_if_nan(best_sd),
    }


def _none_if_nan(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _ids(labels: ArrayLike, patients: Sequence | np.ndarray) -> np.ndarray:
    ids = np.asarray(patients).astype(str)
    if ids.ndim != 1 or ids.shape != np.shape(labels) or ids.size == 0:
        raise UsageError(
            f"Every image needs a patient: {ids.shape} ids, {np.shape(labels)} labels."
        )
    return ids


def _strata(
    labels: ArrayLike, patients: Sequence | np.ndarray, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per patient label: image indices ordered by the patients' ranks, and each patient's end."""
    names, member = np.unique(_ids(labels, patients), return_inverse=True)
    worst = np.full(len(names), np.iinfo(np.int64).min)
    np.maximum.at(worst, member, np.asarray(labels, np.int64))
    digests = [hashlib.sha256(f"{seed}/patient/{name}".encode()).digest() for name in names]
    rank = np.empty(len(names), np.int64)
    rank[sorted(range(len(names)), key=digests.__getitem__)] = np.arange(len(names))
    strata = []
    for label in np.unique(worst):
        images = np.flatnonzero(worst[member] == label)
        images = images[np.argsort(rank[member[images]], kind="stable")]
        owner = member[images]
        strata.append((images, np.flatnonzero(np.r_[owner[1:] != owner[:-1], True]) + 1))
    return strata


def _nearest(ends: np.ndarray, target: float) -> int:
    """The patient boundary (0 included) nearest to a number of images; grows with the target."""
    bounds = np.r_[0, ends]
    return int(bounds[np.argmin(np.abs(bounds - target))])
