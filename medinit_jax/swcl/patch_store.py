"""Writes pairs of patches: as a prepared set, or as the files that SWCL's code makes.

Several processes share the parts, and the first one puts together what all have written. Both are
written in parts. Photographs are scored here in the order of the plan, while threads cut,
encode and write what was scored before. A part counts as written when the file with its rows is
there; one that was begun is written anew, from the same photographs in the same batches, so that
the result has the same bytes however often the writer was stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from medinit_jax.core import cluster
from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.config import Item
from medinit_jax.data.builders.retinal_swap import PAIRS, SPLIT, RetinalSwap, SwapConfig
from medinit_jax.data.layout import Tree
from medinit_jax.data.manifest import MANIFEST
from medinit_jax.data.prepare import PLAN, begin, finish, working_folder, written_before
from medinit_jax.data.shards import Report, Shard, write_shard, write_text
from medinit_jax.swcl.patch_cut import Patch, Shown, cut_pair
from medinit_jax.swcl.patch_plan import PART, Eye, Plan, places
from medinit_jax.swcl.patch_table import Row, table_text

TABLE = "labels.csv"
AUTHORS_QUALITY = 75
# Given the eyes of all parts that are not written yet, yields photograph uint8 (S, S, 3) and scores
# float (5,) of each, as `cam_scores.abnormality` has them. It may read ahead; what it yields of an
# eye must not depend on which parts are missing.
Scored = Callable[[Sequence[Eye]], Iterable[tuple[np.ndarray, np.ndarray]]]
# Parts that may wait to be written.
_WAITING = 2


def write_prepared(
    data_dir: str | os.PathLike[str],
    name: str,
    plan: Plan,
    scored: Scored,
    *,
    crop: int = 224,
    quality: int = 0,
    origin: str = "",
    workers: int | None = None,
    report: Report = lambda done, total: None,
) -> dict[str, Any]:
    """Writes the prepared set `retinal_swap/NAME`; what an earlier call has written is kept.

    Args:
        data_dir: Where sets are prepared.
        name: Its name, as "default".
        plan: What is written.
        scored: Opens and scores photographs.
        crop: Side of a patch in pixels.
        quality: Of patches stored as JPEG; 0 stores them as PNG, see `SwapConfig`.
        origin: What the scores depend on, as checksums of labeler and images; any text.
        workers: Threads that encode and write; None: as many as there are cores.
        report: Told how many patients are scored, those of earlier calls among them.

    Returns:
        The manifest; patients with one eye are listed under `ignored`, and counted in `notes`.

    Raises:
        UsageError: A score is none, something else has this name already, or processes do not share
            the folder.
    """
    builder = swap_builder(data_dir, name, plan, crop, quality, origin)
    target = Path(builder.data_path)
    work = working_folder(target)
    count = len(plan.parts)

    def is_written() -> bool:
        if written_before(builder) is None:
            begin(work, _plan_text(plan, crop, quality, origin), alone=True)
            return False
        # It may have been stopped after its last step but this one.
        _forget_rows(target, count)
        return True

    if cluster.once(is_written):
        return _manifest(target)
    cluster.check_shared(work / PLAN, "config.data_dir")
    shards = [Shard(SPLIT, number, count, ()) for number in range(count)]

    def write(number: int, patches: Sequence[Patch]) -> None:
        items = tuple(_item(patch, crop) for patch in patches)
        write_shard(builder, work, shards[number]._replace(items=items))

    def join() -> None:
        builder.ignored = plan.left_out()
        builder.notes = [f"{len(plan.unpaired)} patients with one eye are left out"]
        texts = {PAIRS: table_text(_all_rows(work, count), labels=True)}
        finish(builder, work, target, shards, Tree(builder.name, builder.data_path), texts)
        _forget_rows(target, count)

    _write_parts(work, plan, scored, crop, quality, write, workers, report)
    cluster.meet()
    cluster.once(join)
    return _manifest(target)


def _manifest(target: Path) -> dict[str, Any]:
    return json.loads((target / MANIFEST).read_text(encoding="utf-8"))


def swap_builder(
    data_dir: str | os.PathLike[str],
    name: str,
    plan: Plan,
    crop: int,
    quality: int,
    origin: str,
) -> RetinalSwap:
    """Returns the builder of `retinal_swap/NAME`, see `write_prepared`.

    Raises:
        UsageError: The name is none, or a set has it that was made of other images or scores.
    """
    config = SwapConfig(
        name=name,
        description=f"Patches of side {crop} of {len(plan.pairs)} patients.",
        crop=crop,
        quality=quality,
        origin=hashlib.sha256(f"{plan.digest()} {origin}".encode()).hexdigest(),
    )
    return RetinalSwap(data_dir=Path(data_dir), config=config)


def write_files(
    folder: Path,
    plan: Plan,
    scored: Scored,
    *,
    crop: int = 224,
    quality: int = AUTHORS_QUALITY,
    origin: str = "",
    workers: int | None = None,
    report: Report = lambda done, total: None,
) -> Path:
    """Writes the files of SWCL's code: an image for every patch, and `labels.csv`.

    Args:
        folder: Where they will lie; until all are there, in a folder of that name beside it with
            the ending ".incomplete".
        plan: What is written.
        scored: Opens and scores photographs.
        crop: Side of a patch in pixels.
        quality: Of JPEG files; the authors' is 75. 0 writes PNG files.
        origin: What the scores depend on, as checksums of labeler and images; any text.
        workers: Threads that encode and write; None: as many as there are cores.
        report: Told how many patients are scored, those of earlier calls among them.

    Returns:
        The table.

    Raises:
        UsageError: A score is none, or something else lies in the folder's place.
    """
    text = _plan_text(plan, crop, quality, origin)
    work = working_folder(folder)

    def is_written() -> bool:
        if not folder.exists():
            begin(work, text, alone=True)
            return False
        if not (folder / PLAN).is_file() or (folder / PLAN).read_text() != text:
            raise UsageError(
                f"{folder} exists and holds something else than these patches; delete it, or name "
                f"another folder."
            )
        return True

    if cluster.once(is_written):
        return folder / TABLE
    cluster.check_shared(work / PLAN, "--workdir")
    suffix = ".jpg" if quality else ".png"

    def write(number: int, patches: Sequence[Patch]) -> None:
        del number
        for patch in patches:
            for name, content in zip((patch.row.left, patch.row.right), patch.images, strict=True):
                (work / f"{name}{suffix}").write_bytes(content)

    def join() -> None:
        if not (work / TABLE).exists():
            write_text(work / TABLE, table_text(_all_rows(work, len(plan.parts)), labels=False))
        _forget_rows(work, len(plan.parts))
        for stray in work.glob("*.tmp"):
            stray.unlink()
        os.rename(work, folder)

    if not cluster.once((work / TABLE).exists):
        _write_parts(work, plan, scored, crop, quality, write, workers, report)
    cluster.meet()
    cluster.once(join)
    return folder / TABLE


def _plan_text(plan: Plan, crop: int, quality: int, origin: str) -> str:
    """Returns digests of what is asked for, and of what it is made from."""
    asked = hashlib.sha256(f"{plan.digest()} {crop} {quality} {PART}".encode()).hexdigest()
    return f"{asked}\n{hashlib.sha256(origin.encode()).hexdigest()}\n"


def _write_parts(
    work: Path,
    plan: Plan,
    scored: Scored,
    crop: int,
    quality: int,
    write: Callable[[int, Sequence[Patch]], None],
    workers: int | None,
    report: Report,
) -> None:
    """Writes those of this process's parts that are not there yet, the rows of a part last."""
    parts = plan.parts
    process, processes = cluster.share()
    own = range(process, len(parts), processes)
    total = sum(len(parts[number]) for number in own)
    missing = [number for number in own if not _rows_file(work, number).exists()]
    opened = _opened([both for number in missing for both in parts[number]], scored)
    done = total - sum(len(parts[number]) for number in missing)
    report(done, total)

    def write_part(number: int, cut: Sequence[Future[dict[str, Patch]]]) -> None:
        # What is waited for was handed to the pool before this, so that even one thread gets here.
        both = [future.result() for future in cut]
        patches = [both[patient][position] for patient, position in places(len(both))]
        write(number, patches)
        write_text(_rows_file(work, number), json.dumps([patch.row for patch in patches]))

    workers = workers or os.cpu_count() or 1
    # Whatever stops this, the parts that were scored are still written.
    with ThreadPoolExecutor(workers) as pool:
        cutting: deque[Future[dict[str, Patch]]] = deque()
        writing: deque[Future[None]] = deque()
        for number in missing:
            cut = []
            for both in itertools.islice(opened, len(parts[number])):
                done += 1
                report(done, total)
                cut.append(pool.submit(cut_pair, *both, crop, quality))
                cutting.append(cut[-1])
                # Photographs wait in memory for their thread.
                if len(cutting) > 2 * workers:
                    cutting.popleft().result()
            writing.append(pool.submit(write_part, number, cut))
            while len(writing) > _WAITING:
                writing.popleft().result()
        # The scorer comes to its end, or is found to yield more than it was asked for.
        next(opened, None)
        while writing:
            writing.popleft().result()


def _opened(pairs: Sequence[tuple[Eye, Eye]], scored: Scored) -> Iterator[tuple[Shown, Shown]]:
    """Yields both eyes of every patient with photograph and scores."""
    eyes = [eye for both in pairs for eye in both]
    shown = (Shown(eye, *found) for eye, found in zip(eyes, scored(eyes), strict=True))
    return zip(shown, shown, strict=True)


def _item(patch: Patch, crop: int) -> Item:
    row = patch.row
    values = {
        "image": patch.images[0],
        "image_right": patch.images[1],
        "image_id": row.left,
        "patient_id": f"{patch.source}_{patch.patient}",
        "eye": "left",
        "orig_size": np.array((crop, crop), np.int32),
        "position": patch.position,
        "score": np.float32(row.left_score),
        "score_right": np.float32(row.right_score),
        "abnormal": row.left_label,
        "abnormal_right": row.right_label,
        "source": patch.source,
    }
    return Item(f"{SPLIT}/{row.left}", {}, values)


def _rows_file(work: Path, number: int) -> Path:
    return work / f"rows-{number:06d}.json"


def _all_rows(work: Path, parts: int) -> Iterator[Row]:
    for number in range(parts):
        yield from (Row(*row) for row in json.loads(_rows_file(work, number).read_text()))


def _forget_rows(work: Path, parts: int) -> None:
    for number in range(parts):
        _rows_file(work, number).unlink(missing_ok=True)
