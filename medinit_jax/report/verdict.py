"""What the comparison of starts allows one to say, and no more."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from medinit_jax.downstream.metrics import Difference, paired_difference
from medinit_jax.report.markup import is_number, signed

NAMES: dict[str, str] = {
    "hyper": "the hyper-initializer",
    "random": "random initialization",
    "matched": "matched statistics",
    "untrained": "the untrained hypernetwork",
}
BEATS, DRAWS, LOSES, UNKNOWN = "beats", "does not beat", "falls behind", "one seed, no claim"


class Comparison(NamedTuple):
    """The hyper start against another one.

    Attributes:
        other: key of the other start.
        outcome: `BEATS`, `DRAWS`, `LOSES` or `UNKNOWN`.
        difference: hyper minus other, paired over seeds; each seed's figure is its mean over
            the settings, because settings of one seed share images and are not independent.
        settings: number of settings (network, fraction, depth) that hold both starts.
        ahead: number of those where the mean difference is positive.
    """

    other: str
    outcome: str
    difference: Difference
    settings: int
    ahead: int


def last_epoch(entry: dict[str, Any]) -> list[float]:
    """The last test figure of each seed of a fine-tuning entry."""
    return [curve[-1] for curve in curves(entry) if curve]


def mean_epoch(entry: dict[str, Any]) -> list[float]:
    """The mean over epochs of each seed of a fine-tuning entry: high when it rises early."""
    return [float(np.mean(curve)) for curve in curves(entry) if curve]


def seed_values(entry: dict[str, Any]) -> list[float]:
    """The figure of each seed of a probe entry."""
    seeds = entry.get("seeds")
    return [v for v in seeds if is_number(v)] if isinstance(seeds, list) else []


def curves(entry: dict[str, Any]) -> list[list[float]]:
    """The test figure per epoch of each seed; a seed with a gap is left empty."""
    seeds = entry.get("seeds")
    found = []
    for seed in seeds if isinstance(seeds, list) else []:
        values = seed.get("auc_per_epoch") if isinstance(seed, dict) else None
        whole = isinstance(values, list) and all(is_number(v) for v in values)
        found.append(list(values) if isinstance(values, list) and whole else [])
    return found


def setting(entry: dict[str, Any]) -> tuple[str, Any, Any]:
    """Network, fraction and depth: what two starts must share to be compared."""
    return str(entry.get("network")), entry.get("fraction"), entry.get("depth")


def compare(
    entries: Sequence[dict[str, Any]],
    other: str,
    measure: Callable[[dict[str, Any]], list[float]] = last_epoch,
    first: str = "hyper",
) -> Comparison | None:
    """Compare a start with another one over every setting that holds both.

    Args:
        entries: fine-tuning or probe entries of `summary.json`.
        other: key of the start to compare with.
        measure: an entry to one figure per seed, in the order of the seeds.
        first: key of the start under test.

    Returns:
        The comparison, or None if no setting holds both starts with equally many seeds.
    """
    table: dict[tuple, dict[str, list[float]]] = {}
    for entry in entries:
        table.setdefault(setting(entry), {})[str(entry.get("start"))] = measure(entry)
    pairs = [
        np.array([starts[first], starts[other]])
        for starts in table.values()
        if starts.get(first) and len(starts[first]) == len(starts.get(other, ()))
    ]
    if not pairs:
        return None
    seeds = min(pair.shape[1] for pair in pairs)
    means = np.mean([pair[:, :seeds] for pair in pairs], axis=0)
    difference = paired_difference(means[0], means[1])
    ahead = sum(bool(pair[0].mean() > pair[1].mean()) for pair in pairs)
    return Comparison(other, _outcome(difference), difference, len(pairs), ahead)


def compare_all(
    entries: Sequence[dict[str, Any]],
    measure: Callable[[dict[str, Any]], list[float]] = last_epoch,
) -> list[Comparison]:
    """Compare the hyper start with each other start that was run, in a fixed order."""
    found = [compare(entries, other, measure) for other in NAMES if other != "hyper"]
    return [comparison for comparison in found if comparison is not None]


def headline(comparisons: Sequence[Comparison]) -> str:
    """Say in one sentence without figures what the comparisons show.

    Args:
        comparisons: of `compare_all`.

    Returns:
        A sentence; the empty string without comparisons.
    """
    if not comparisons:
        return ""
    by_outcome: dict[str, list[str]] = {}
    for comparison in comparisons:
        by_outcome.setdefault(comparison.outcome, []).append(NAMES[comparison.other])
    if UNKNOWN in by_outcome:
        return "One seed was run: the starts can be looked at, but nothing can be claimed."
    if len(comparisons) == 3 and len(by_outcome.get(BEATS, ())) == 3:
        return "The hyper-initializer beats all three other starts."
    clauses = [
        f"{outcome} {listed(by_outcome[outcome], 'or' if outcome == DRAWS else 'and')}"
        for outcome in (BEATS, DRAWS, LOSES)
        if outcome in by_outcome
    ]
    return f"The hyper-initializer {listed(clauses, 'but' if len(clauses) == 2 else 'and')}."


def sentence(comparisons: Sequence[Comparison]) -> str:
    """The comparisons with their figures in one sentence, such as a paper would print it.

    Args:
        comparisons: of `compare_all`.

    Returns:
        A sentence; the empty string without comparisons.
    """
    if not comparisons:
        return ""
    parts = []
    for comparison in comparisons:
        mean, _, low, high, _ = comparison.difference
        name = NAMES[comparison.other]
        if comparison.outcome == UNKNOWN:
            parts.append(f"{signed(mean)} against {name}")
        else:
            interval = f"95\u00a0% interval {signed(low)} to {signed(high)}"
            parts.append(f"{signed(mean)} against {name} ({interval})")
    counts = sorted({comparison.difference.count for comparison in comparisons})
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    seeds = "one seed, so without a spread" if counts == [1] else f"paired over {number} seeds"
    return f"The hyper-initializer ends at {listed(parts, 'and')}, {seeds}."


def reading(comparisons: Sequence[Comparison]) -> str:
    """What the pattern of outcomes means, without going beyond it.

    Args:
        comparisons: of `compare_all`.

    Returns:
        One or two sentences; the empty string if random initialization was not compared.
    """
    outcome = {comparison.other: comparison.outcome for comparison in comparisons}
    random = outcome.get("random")
    if random is None or random == UNKNOWN:
        return ""
    if random == LOSES:
        return "Random initialization is the better start here."
    if random == DRAWS:
        low, high = next(c.difference[2:4] for c in comparisons if c.other == "random")
        return (
            "These runs show no gain over random initialization; they leave room for a "
            f"difference between {signed(low)} and {signed(high)}."
        )
    doubts = []
    if outcome.get("matched") == DRAWS:
        doubts.append(
            "the same values permuted within each tensor cannot be told apart from it, so the "
            "gain is not shown to be more than the scale of the weights"
        )
    if outcome.get("matched") == LOSES:
        doubts.append(
            "the same values permuted within each tensor do better still, so the scale of the "
            "weights helps and their arrangement does not"
        )
    if outcome.get("untrained") in (DRAWS, LOSES):
        doubts.append(
            "a hypernetwork that was never trained is not beaten, so the gain is not shown to "
            "come from its training"
        )
    if doubts:
        return f"It gains over random initialization, but {listed(doubts, 'and')}."
    if "matched" in outcome and "untrained" in outcome:
        return (
            "Neither the scale of the weights (matched statistics) nor the form of the "
            "predictor alone (untrained hypernetwork) explains the gain."
        )
    return "It gains over random initialization; the controls were not all run."


def _outcome(difference: Difference) -> str:
    if difference.count < 2:
        return UNKNOWN
    if difference.low > 0:
        return BEATS
    return LOSES if difference.high < 0 else DRAWS


def listed(items: Sequence[str], word: str = "and") -> str:
    """Items as in a sentence: a, b and c; two items joined by `but` take a comma."""
    if len(items) == 1:
        return items[0]
    comma = "," if word == "but" else ""
    return f"{', '.join(items[:-1])}{comma} {word} {items[-1]}"
