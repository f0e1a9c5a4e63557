"""The route `patches`: a trained labeler scores photographs, and pairs of patches are written."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax.core import cluster
from medinit_jax.core.errors import UsageError
from medinit_jax.core.interrupt import Stop, stop_on_signal
from medinit_jax.core.parallel import Parallel, own_devices
from medinit_jax.core.progress import Progress
from medinit_jax.core.provenance import provenance
from medinit_jax.core.workdir import claimed, is_finished, write_json
from medinit_jax.finetune.tuned import Model
from medinit_jax.report.patch_page import write_patch_report
from medinit_jax.swcl import SCORE_FREE, patch_plan, score_model, score_sets
from medinit_jax.swcl.cam_scores import MASKS
from medinit_jax.swcl.patch_figures import Panel, write_figures
from medinit_jax.swcl.patch_geometry import boxes
from medinit_jax.swcl.patch_pairs import abnormality, one_sided, open_pairs
from medinit_jax.swcl.patch_plan import Eye, Plan, places, plan_pairs
from medinit_jax.swcl.patch_store import swap_builder, write_files, write_prepared
from medinit_jax.swcl.patch_table import PairTable
from medinit_jax.swcl.score_model import Score, Settings, rows
from medinit_jax.swcl.score_sets import Photographs
from medinit_jax.swcl.score_stream import Stream, batches, padded

LAYOUTS = ("prepared", "workdir", "authors")
# In the workdir, for the layout of the authors.
FOLDER = "patches"
# Photographs that the report shows with their maps.
_PANELS = 8


def run(
    config: ml_collections.ConfigDict, workdir: Path, parallel: Parallel | None = None
) -> dict[str, Any]:
    """Scores photographs and writes pairs of patches, see `configs/patches.py`.

    Args:
        config: `labeler`, `labelled`, `unlabelled`, and how they are scored and written.
        workdir: Where `summary.json`, `report.html` and, in the authors' layout, `patches/` go.
        parallel: Devices; all of this process by default. Of several processes each scores parts
            of the photographs by itself.

    Returns:
        What `summary.json` holds.

    Raises:
        UsageError: Labeler, sets or settings make no patches; the sentence says which and why.
        KeyboardInterrupt: A signal came; the same command goes on.
    """
    _check(config)
    parallel = parallel or own_devices()
    console = cluster.console()
    labeler = score_model.load_labeler(config.labeler)
    photographs = score_sets.open_sets(config, console)
    plan = plan_pairs(photographs.eyes)
    batch = -(-config.batch // parallel.size) * parallel.size
    settings = Settings(config.image_size, config.crop, config.mask, batch)
    origin = _origin(labeler, photographs, settings)
    cluster.check_alike(
        "photographs and labeler",
        {**json.loads(origin), "photographs": plan.digest(), "at a time": batch},
    )
    if config.layout == "prepared":
        # Before the workdir takes this name for its own, it is looked whether another set has it.
        swap_builder(config.data_dir, config.name, plan, config.crop, config.quality, origin)
    work = _Work(labeler, photographs, plan, settings, origin)
    with claimed(workdir, config, "patches", SCORE_FREE):
        if not is_finished(workdir, console):
            return _score(config, workdir, parallel, work, console)
        if cluster.first() and not (workdir / "report.html").is_file():
            write_patch_report(workdir)
        return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))


class _Work(NamedTuple):
    """What is scored: by which labeler, which photographs, in which order, how, and from where."""

    labeler: Model
    photographs: Photographs
    plan: Plan
    settings: Settings
    origin: str


def _score(
    config: ml_collections.ConfigDict,
    workdir: Path,
    parallel: Parallel,
    work: _Work,
    console: Console,
) -> dict[str, Any]:
    """Scores and writes, and returns what `summary.json` holds."""
    labeler, photographs, plan, settings, origin = work
    batch = settings.batch
    started = time.monotonic()
    score = score_model.compiled(labeler, settings, parallel)
    workers = config.workers or os.cpu_count() or 1

    def read(number: int) -> np.ndarray:
        return photographs.images[number]["image"]

    with (
        stop_on_signal() as stopped,
        ThreadPoolExecutor(workers) as readers,
        ThreadPoolExecutor(1) as fetcher,
    ):
        stream = Stream(read, score, batch, readers, fetcher, lambda: _refuse_stopped(stopped))
        place = _write(config, workdir, plan, stream, origin, console)
        panels = _panels(plan, read, score, batch, stopped) if cluster.first() else []
        if cluster.any_of(stopped.is_set()):
            raise stopped.error()
    pace = _pace(stream)
    return cluster.once(
        lambda: _finish(config, workdir, work, place, panels, pace, started, console)
    )


def _finish(
    config: ml_collections.ConfigDict,
    workdir: Path,
    work: _Work,
    place: str,
    panels: list[Panel],
    pace: dict[str, Any],
    started: float,
    console: Console,
) -> dict[str, Any]:
    """Writes figures, summary and report of patches that are written; returns the summary."""
    labeler, photographs, plan, *_ = work
    shown = str(workdir / place) if config.layout == "authors" else place
    inside = config.layout == "workdir"
    table = open_pairs(shown, str(workdir) if inside else config.data_dir).table
    write_figures(workdir, _by_trust(table, plan), panels, config.crop, config.threshold)
    warning = one_sided(table.scores, config.threshold)
    summary = {
        "place": place,
        # "." is the workdir itself, which may be moved.
        "data_dir": {"prepared": config.data_dir, "workdir": "."}.get(config.layout, ""),
        **_figures(table, plan, photographs, config.threshold),
        "labeler": {
            "path": str(config.labeler),
            "model": labeler.record["model"]["name"],
            "task": labeler.record["task"],
            "sha256": score_model.checksum(labeler),
        },
        "threshold": config.threshold,
        "seconds": round(time.monotonic() - started, 1),
        **pace,
        "provenance": provenance(shlex.join(sys.argv), "patches"),
        "notes": [note for note in (config.note, warning) if note],
    }
    write_json(workdir / "summary.json", summary)
    if warning:
        console.print(f"WARNING: {warning}", soft_wrap=True, highlight=False, markup=False)
    page = write_patch_report(workdir)
    console.print(
        f"{summary['pairs']} pairs of patches of {summary['patients']} patients: {shown}; "
        f"{summary['share_abnormal']:.1%} abnormal; {page}",
        soft_wrap=True,
        highlight=False,
    )
    return summary


def _pace(stream: Stream) -> dict[str, Any]:
    """Returns how many photographs all processes scored, and how fast.

    Of this call: after a stop, of the part that was left. The slowest process counts, and of the
    busy shares their mean.
    """
    own = json.dumps([stream.scored, stream.seconds, stream.busy_share])
    counts, seconds, shares = zip(*map(json.loads, cluster.everyone("pace", own)), strict=True)
    scored, busy = sum(counts), [share for share in shares if share is not None]
    return {
        "scored": scored,
        "device_busy_share": float(np.mean(busy)) if busy else None,
        "photographs_per_s": scored / max(seconds) if scored else None,
    }


def _check(config: ml_collections.ConfigDict) -> None:
    if not config.labeler:
        raise UsageError(
            "config.labeler is empty; name the workdir of a fine-tuned classifier of normal and "
            "abnormal photographs."
        )
    if config.layout not in LAYOUTS or config.mask not in MASKS:
        raise UsageError(
            f"config.layout={config.layout!r} and config.mask={config.mask!r}; set the layout to "
            f"{', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}, the mask to {' or '.join(MASKS)}."
        )
    if not 0 < config.crop <= config.image_size:
        raise UsageError(
            f"config.crop={config.crop} does not fit into config.image_size={config.image_size}; "
            f"set it to 1 to {config.image_size} pixels."
        )
    boxes(config.image_size, config.crop)
    abnormality(np.zeros(0), config.threshold)
    most = 2 * patch_plan.PART
    if not 1 <= config.batch <= most or config.workers < 0:
        raise UsageError(
            f"config.batch={config.batch} and config.workers={config.workers}; set the batch to 1 "
            f"to {most} photographs, workers to at least 1, or to 0 for one per core."
        )


def _refuse_stopped(stopped: Stop) -> None:
    if cluster.told(stopped.is_set()):
        raise stopped.error()


def _origin(labeler: Model, photographs: Photographs, settings: Settings) -> str:
    """Returns all that scores depend on, as text; the batch changes no more than rounding."""
    return json.dumps(
        {
            "labeler": score_model.checksum(labeler),
            "normalization": [labeler.plan.mean, labeler.plan.std],
            "sets": [[one["source"], one["role"], one["sha256"]] for one in photographs.sets],
            "side": settings.side,
            "mask": settings.mask,
        }
    )


def _write(
    config: ml_collections.ConfigDict,
    workdir: Path,
    plan: Plan,
    stream: Stream,
    origin: str,
    console: Console,
) -> str:
    """Writes the patches and returns where they are."""
    bar: Progress | None = None

    def report(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            # What was written before counts as done, but not for the rate.
            bar = Progress("score", total, console, start=done, unit="patients")
            bar.__enter__()
        bar.update(done)

    options = {
        "crop": config.crop,
        "quality": config.quality,
        "origin": origin,
        "workers": config.workers or None,
        "report": report,
    }
    try:
        if config.layout != "authors":
            data_dir = config.data_dir if config.layout == "prepared" else str(workdir)
            write_prepared(data_dir, config.name, plan, stream, **options)
            return f"retinal_swap/{config.name}"
        write_files(workdir / FOLDER, plan, stream, **options)
        return FOLDER
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)


def _panels(
    plan: Plan, read: Callable[[int], np.ndarray], score: Score, batch: int, stopped: Stop
) -> list[Panel]:
    """Returns some photographs of every kind with their maps, fewer if a signal comes."""
    eyes = _shown(plan)
    panels = []
    for part in batches(eyes, batch):
        if stopped.is_set():
            break
        images = [read(eye.index) for eye in part]
        maps, scores = score(padded(images, batch))
        found = zip(part, images, rows(maps, 3), rows(scores, 2), strict=False)
        panels += [
            Panel(f"{eye.source}_{eye.patient}_{eye.eye}", eye.eye, image, one, values, eye.known)
            for eye, image, one, values in found
        ]
    return panels


def _shown(plan: Plan) -> list[Eye]:
    """Returns eyes evenly spaced among those of every kind, right and left in turn."""
    kinds: dict[int, list[Eye]] = {}
    for number, both in enumerate(plan.pairs):
        eye = both[number % 2]
        kinds.setdefault(eye.known, []).append(eye)
    each = _PANELS // len(kinds)
    eyes = []
    for _, members in sorted(kinds.items(), reverse=True):
        spaced = np.linspace(0, len(members) - 1, min(each, len(members)))
        eyes += [members[round(place)] for place in spaced]
    return eyes


def _by_trust(table: PairTable, plan: Plan) -> PairTable:
    """Returns the table with the labels of labelled sets alone, by which figures are grouped."""
    labels = [
        [eye.known for eye in part[patient]]
        for part in plan.parts
        for patient, _ in places(len(part))
    ]
    return table._replace(labels=np.array(labels, np.int32))


def _figures(
    table: PairTable, plan: Plan, photographs: Photographs, threshold: float
) -> dict[str, Any]:
    """Returns counts and shares of all patches, and of every source."""
    abnormal = abnormality(table.scores, threshold)
    sources = np.array(table.sources)
    unpaired = [*plan.left_out(), *photographs.left_out]
    return {
        "patients": len(plan.pairs),
        "pairs": len(abnormal),
        "patches": int(abnormal.size),
        "share_abnormal": float(abnormal.mean()),
        "by_source": {
            name: {
                "patients": sum(left.source == name for left, _ in plan.pairs),
                "patches": int(abnormal[sources == name].size),
                "share_abnormal": float(abnormal[sources == name].mean()),
                "unpaired": sum(line.startswith(f"{name} ") for line in unpaired),
            }
            for name in dict.fromkeys(table.sources)
        },
        "unpaired": {"count": len(unpaired), "photographs": unpaired},
        "sets": photographs.sets,
    }
