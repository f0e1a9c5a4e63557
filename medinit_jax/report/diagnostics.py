"""What predicted networks see, as tables: ranks, likeness, twins, probes over time, families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medinit_jax.report.markup import Html, fixed, percent
from medinit_jax.report.sections import section
from medinit_jax.report.tables import table
from medinit_jax.report.workdir import Record, part

_NAMES = {"hyper": "Hyper-initializer", "random": "Random", "matched": "Matched statistics"}


def diagnostics(record: Record) -> Html | None:
    """The section of a run's page; None if nothing of it was asked for."""
    found = part(record.summary, "diagnostics", dict)
    parts = [*rank_table([found]), *_probe_curve(record), *_families(record)]
    return section("What the networks see", *parts) if parts else None


def rank_table(runs: Sequence[Mapping[str, Any]]) -> list[Html]:
    """Effective ranks by depth, likeness and distance to twins, means over networks and runs."""
    runs = [run for run in runs if run.get("effective_rank")]
    if not runs:
        return []
    rows = []
    for start, name in _NAMES.items():
        ranks = np.concatenate([run["effective_rank"][start] for run in runs]).mean(0)
        likeness = [run["cka"][start] for run in runs if run["cka"][start] is not None]
        cka = fixed(float(np.mean(likeness))) if likeness else "–"
        rows.append([name, *(fixed(rank, 1) for rank in ranks), cka])
    twins = [d for run in runs for d in run["twin_distance"] if d is not None and np.isfinite(d)]
    distance = fixed(float(np.mean(twins))) if twins else "not known"
    depths = [f"Rank at {percent(depth)}" for depth in runs[0]["depths"]]
    caption = (
        f"{len(runs[0]['networks'])} unseen networks, {runs[0]['images']} held-out images: "
        "effective rank of pooled features by depth, and likeness (CKA) of the last features of "
        f"two networks. Distance of a network to its permuted twin (1 - CKA): {distance}."
    )
    return [table(caption, ["Start", *depths, "Likeness"], rows)]


def _probe_curve(record: Record) -> list[Html]:
    if "val/probe" not in record.metrics:
        return []
    steps, values = record.metrics["val/probe"]
    return probe_curves([("AUC", steps.tolist(), values.tolist())])


def probe_curves(curves: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> list[Html]:
    """Transfer probes over training, a column each.

    Args:
        curves: (name, steps, ROC areas) of each training.
    """
    held = {name: dict(zip(steps, values, strict=True)) for name, steps, values in curves}
    steps = sorted({step for curve in held.values() for step in curve})
    rows = [
        [str(int(step)), *(fixed(curve.get(step)) for curve in held.values())] for step in steps
    ]
    caption = "Transfer probe of validation networks by step of training"
    return [table(caption, ["Step", *held], rows)] if rows else []


def _families(record: Record) -> list[Html]:
    by_family: dict[str, list[float]] = {}
    for figures in part(record.summary, "rotation_accuracy", dict).values():
        if isinstance(figures, dict) and figures.get("families"):
            for family, value in zip(figures["families"], figures["per_network"], strict=True):
                by_family.setdefault(family, []).append(value)
    if len(by_family) < 2:
        return []
    rows = [
        [family, str(len(values)), fixed(float(np.mean(values))), fixed(min(values))]
        for family, values in sorted(by_family.items())
    ]
    return [table("Rotation accuracy by family", ["Family", "Networks", "Mean", "Least"], rows)]
