"""What the study of pretexts found: gains per network, intervals clustered by network, wins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medinit_jax.downstream.intervals import bootstrap
from medinit_jax.downstream.metrics import paired_difference

Entries = Sequence[Mapping[str, Any]]
OTHERS = ("random", "matched", "untrained", "rotnet")
# Both controls at once: of each network the smaller of its two gains.
CONTROLS = ("random", "matched")
BOTH = "both"
# A figure of an entry; None where there is none.
Figure = Callable[[Mapping[str, Any]], float | None]


def rule_score(runs: Sequence[Entries], fractions: Iterable[float], figure: Figure) -> float:
    """Returns by what a pair of pretext and recipe is chosen.

    Args:
        runs: Entries of one evaluation per hypernetwork seed.
        fractions: Shares of labels that count.
        figure: Of an entry.

    Returns:
        The mean over these shares of the smaller of the mean gains over random and over matched; a
        pair of which nothing is finite has -infinity.
    """
    smaller = []
    for fraction in fractions:
        gains = [gain_by_network(runs, fraction, other, figure) for other in CONTROLS]
        if not all(gains):
            return -np.inf
        smaller.append(min(float(np.mean(list(g.values()))) for g in gains))
    return float(np.mean(smaller))


def probe_figure(depth: float) -> Figure:
    """Returns the function from a "probe" entry to its mean AUC at a depth."""

    def figure(entry: Mapping[str, Any]) -> float | None:
        if abs(entry["depth"] - depth) > 1e-9 or entry["mean"] is None:
            return None
        return float(entry["mean"])

    return figure


def finetune_figure(epoch: int | None) -> Figure:
    """Returns the function from a "finetune" entry to its mean AUC after an epoch, from 1.

    None is the last epoch.
    """

    def figure(entry: Mapping[str, Any]) -> float | None:
        curve = entry["mean"]
        last = len(curve) if epoch is None else epoch
        return float(curve[last - 1]) if len(curve) >= last else None

    return figure


def dice_figure(entry: Mapping[str, Any]) -> float | None:
    """Returns the Dice coefficient of an entry of a segmentation."""
    return None if entry["dice"] is None else float(entry["dice"])


def gain_by_network(
    runs: Sequence[Entries], fraction: float, other: str, figure: Figure
) -> dict[str, float]:
    """Returns for each network how far the hypernetwork's start lies above another one.

    Args:
        runs: Entries of one evaluation per hypernetwork seed.
        fraction: Share of labels.
        other: The start to compare with.
        figure: Of an entry.

    Returns:
        {network: mean over hypernetwork seeds}, of networks that have the figure in every seed.
    """
    found: dict[str, list[float]] = {}
    for entries in runs:
        held: dict[tuple[str, str], float] = {}
        for entry in entries:
            value = figure(entry) if abs(entry["fraction"] - fraction) < 1e-9 else None
            if value is not None and np.isfinite(value):
                held[entry["network"], entry["start"]] = value
        for network, start in held:
            if start == "hyper" and (network, other) in held:
                gain = held[network, "hyper"] - held[network, other]
                found.setdefault(network, []).append(gain)
    return {name: float(np.mean(g)) for name, g in found.items() if len(g) == len(runs)}


def _over(runs: Sequence[Entries], fraction: float, other: str, figure: Figure) -> dict[str, float]:
    """Returns `gain_by_network`, of `BOTH` the smaller gain of networks that have two."""
    if other != BOTH:
        return gain_by_network(runs, fraction, other, figure)
    first, second = (gain_by_network(runs, fraction, one, figure) for one in CONTROLS)
    return {name: min(first[name], second[name]) for name in first if name in second}


def judged(
    runs: Sequence[Entries],
    fractions: Iterable[float],
    figure: Figure,
    margin: float,
    interval: Callable[[np.ndarray], list[float]],
) -> dict[str, dict[str, Any]]:
    """Returns gains, intervals and wins over every other start, and `BOTH`, by share of labels.

    Args:
        runs: Entries of one evaluation per hypernetwork seed.
        fractions: Shares of labels.
        figure: Of an entry.
        margin: A network is won if its gain is at least this.
        interval: Gains of the networks -> ends of the interval of their mean.

    Returns:
        {start: {"gain", "interval", "wins", "ahead", "networks", "by_network": each by share}};
        "ahead" counts gains above 0.
    """  # fmt: skip
    result: dict[str, dict[str, Any]] = {}
    for other in (*OTHERS, BOTH):
        parts: dict[str, dict[str, Any]] = {}
        for fraction in fractions:
            gains = _over(runs, fraction, other, figure)
            if not gains:
                continue
            values, share = np.array(list(gains.values())), f"{fraction:g}"
            for name, value in (
                ("gain", float(values.mean())),
                ("interval", interval(values)),
                ("wins", int((values >= margin).sum())),
                ("ahead", int((values > 0).sum())),
                ("networks", len(values)),
                ("by_network", gains),
            ):
                parts.setdefault(name, {})[share] = value
        if parts:
            result[other] = parts
    return result


def _by_bootstrap(resamples: int) -> Callable[[np.ndarray], list[float]]:
    def interval(values: np.ndarray) -> list[float]:
        figure = lambda weights: float(np.average(values, weights=weights))  # noqa: E731
        found = bootstrap(figure, len(values), resamples=resamples)
        return [found.low, found.high]

    return interval


def _by_student(values: np.ndarray) -> list[float]:
    """Returns the interval of a mean over few values, of which a bootstrap's would be too short."""
    found = paired_difference(values, np.zeros_like(values))
    return [found.low, found.high]


def confirmed(
    summaries: Sequence[Mapping[str, Any]],
    fractions: Sequence[float],
    *,
    depth: float,
    epoch: int,
    margin: float,
    resamples: int,
) -> dict[str, Any]:
    """Returns what the confirmation of one modality found.

    Args:
        summaries: `summary.json` of one evaluation per hypernetwork seed.
        fractions: Shares of labels.
        depth: Where features are probed.
        epoch: After which fine-tuned networks are judged, beside the last one.
        margin: What has to be gained to win a network.
        resamples: Of the bootstrap over networks.

    Returns:
        "networks", "families", "hypernetwork_seeds", "margin", "probe_gain_over_START" (START may
        be "both"), "finetune_epoch3_gain_over_START", "finetune_last_gain_over_START" and the like
        by share of labels, intervals beside them, and "probe", "finetune" and "finetune_last" with
        the figures of every network.
    """
    runs = {name: [s.get(name, []) for s in summaries] for name in ("probe", "finetune")}
    found: dict[str, Any] = {
        "networks": sorted({entry["network"] for run in runs["probe"] for entry in run}),
        "families": {name: f for s in summaries for name, f in s.get("families", {}).items()},
        "hypernetwork_seeds": len(summaries),
        "margin": margin,
    }
    for name, source, prefix, figure in (
        ("probe", "probe", "probe", probe_figure(depth)),
        ("finetune", "finetune", f"finetune_epoch{epoch}", finetune_figure(epoch)),
        ("finetune_last", "finetune", "finetune_last", finetune_figure(None)),
    ):
        parts = judged(runs[source], fractions, figure, margin, _by_bootstrap(resamples))
        found[name] = parts
        found |= _named(prefix, parts)
    return found


def confirmed_segmentation(runs: Sequence[Entries], fractions: Sequence[float]) -> dict[str, Any]:
    """Returns what the confirmation of one modality found by segmentation.

    Args:
        runs: Entries of one hypernetwork each: "task", "network" (task, network and seed), ...
        fractions: Shares of labels.

    Returns:
        "networks", "hypernetwork_seeds", "dice_gain_over_START" and the like by share of labels,
        Student's intervals over tasks, networks and seeds beside them, "dice" with the figures of
        every run, and "dice_by_task".
    """
    tasks = sorted({entry["task"] for run in runs for entry in run})
    by_task = {
        task: [[entry for entry in run if entry["task"] == task] for run in runs] for task in tasks
    }
    parts = judged(runs, fractions, dice_figure, 0.0, _by_student)
    return {
        "networks": sorted({entry["network"] for run in runs for entry in run}),
        "hypernetwork_seeds": len(runs),
        "dice": parts,
        "dice_by_task": {
            task: judged(own, fractions, dice_figure, 0.0, _by_student)
            for task, own in by_task.items()
        },
        **_named("dice", parts),
    }


def _named(prefix: str, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what `judged` found under names such as "probe_gain_over_matched"."""
    return {
        f"{prefix}_{what}_over_{other}": by_share[what]
        for other, by_share in parts.items()
        for what in ("gain", "interval", "wins", "ahead")
    }
