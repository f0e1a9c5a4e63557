"""Tables of all datasets, and of one: what it holds, or how to get it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath
from rich.console import Console
from rich.table import Column, Table

from medinit_jax.data.builders import BUILDERS
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.drawn import Drawn
from medinit_jax.data.builders.retinal_swap import RetinalSwap
from medinit_jax.data.builders.table import HOW_TO, MedinitTable
from medinit_jax.data.image_table import Columns
from medinit_jax.data.manifest import MANIFEST, read_manifest
from medinit_jax.data.tasks import TASKS, Task, make_builder

_MOST_LISTED = 20


def list_sets(data_dir: epath.PathLike) -> None:
    """Prints a table of all sets, one of all tasks, and which are prepared."""
    console = _console()
    # An address that is cut leads nowhere: it is broken instead.
    terms = Column("license, and where to get it", overflow="fold")
    sets = Table("set", "modality", "configs", "download", terms, show_lines=True)
    for name, builder in BUILDERS.items():
        ready = prepared_configs(name, data_dir)
        own = [config.name for config in builder.BUILDER_CONFIGS]
        configs = [f"{one} (prepared)" if one in ready else one for one in own]
        configs += [f"{one} (prepared)" for one in ready if one not in own]
        texts = (builder.MODALITY, ", ".join(configs), builder.SIZE)
        sets.add_row(name, *texts, f"{builder.LICENSE}\n{builder.HOMEPAGE}".strip())
    tasks = Table("task", "set", "modality", "kind", "metric", "train / val / test")
    for name, task in TASKS.items():
        tasks.add_row(
            name, task.dataset, task.modality, task.kind, task.metric, _counts_text(task.counts)
        )
    console.print(sets)
    console.print(tasks)
    console.print(
        f"Prepared sets lie in {data_dir}. How to get one: python -m medinit_jax.data info NAME",
        soft_wrap=True,
    )


def prepared_configs(name: str, data_dir: epath.PathLike) -> list[str]:
    """Returns the configs of a set that are prepared, with those of other split seeds."""
    places = Path(data_dir).glob(f"{name}/*/*/{MANIFEST}")
    return sorted({place.parts[-3] for place in places})


def show_info(name: str, data_dir: epath.PathLike) -> None:
    """Prints what a prepared set holds, or how to get it.

    Args:
        name: See `make_builder`.
        data_dir: Where sets are prepared.

    Raises:
        UsageError: There is no such set.
    """
    builder = make_builder(name, data_dir)
    manifest = read_manifest(builder.data_path)
    console = _console()
    lines = [f"{builder.name}/{builder.builder_config.name}: {builder.info.description}"]
    lines += _task_lines(TASKS[name]) if name in TASKS else []
    lines += [f"Modality: {builder.modality}", f"License: {builder.license_text()}"]
    lines += _absent_lines(builder) if manifest is None else _present_lines(builder, manifest)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if manifest is not None:
        console.print(_histogram(manifest))


def lines_of(manifest: dict[str, Any]) -> list[str]:
    """Returns counts, and what was skipped, ignored or not followed, as lines of text."""
    lines = [f"Examples: {_splits_text(manifest['splits'])}"]
    skipped = [f"{one['key']} ({one['reason']})" for one in manifest["skipped"]]
    for what, names in (
        ("Left out, cannot be read", skipped),
        ("Not as published, accepted with --any-count", manifest.get("accepted", [])),
        ("Left out", manifest["ignored"]),
        ("Notes", manifest["notes"]),
        ("Links, and what is no file, that were not followed", manifest["links_not_followed"]),
    ):
        lines.append(f"{what}: {len(names) or 'none'}")
        lines += [f"  {one}" for one in names[:_MOST_LISTED]]
        if len(names) > _MOST_LISTED:
            lines.append(f"  and {len(names) - _MOST_LISTED} more, all in {MANIFEST}")
    return lines


def _present_lines(builder: Builder, manifest: dict[str, Any]) -> list[str]:
    size = sum(shard["bytes"] for shard in manifest["shards"])
    config = manifest["config"]
    return [
        f"Prepared: {builder.data_path}, {size / 1e6:.1f} MB in {len(manifest['shards'])} shards",
        f"Seed of our own divisions: {config.get('split_seed', 0)}",
        *lines_of(manifest),
    ]


def _absent_lines(builder: Builder) -> list[str]:
    config = builder.builder_config.name
    begun = Path(f"{builder.data_path}.incomplete").exists()
    place = f"{'Begun, not finished' if begun else 'Not prepared'}: {builder.data_path}"
    command = f"python -m medinit_jax.data prepare {builder.name}/{config}"
    counts = _splits_text(builder.published())
    if isinstance(builder, MedinitTable):
        lines = _table_lines(builder, place)
    elif isinstance(builder, RetinalSwap):
        lines = [place, f"Write it: {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"]
    elif isinstance(builder, Drawn):
        lines = [place, f"Numbers: {counts or 'not known before'}", f"Draw it: {command}"]
    else:
        lines = [
            place,
            f"Download: {builder.SIZE}{f' from {builder.HOMEPAGE}' if builder.HOMEPAGE else ''}",
            f"Expected tree: {builder.EXPECTED}",
            f"Published numbers: {counts or 'none'}",
            f"Then: {command} --from DIR",
        ]
    return [
        *lines,
        "Configs:",
        *(f"  {one.name}: {one.description}" for one in builder.BUILDER_CONFIGS),
    ]


def _table_lines(builder: MedinitTable, place: str) -> list[str]:
    keys = ", ".join(field.name for field in dataclasses.fields(Columns))
    return [
        place,
        f"Expected: {builder.EXPECTED}",
        f"Prepare it: {HOW_TO.format(name='NAME')}",
        "NAME is your own word for it, and the names after '=' are headers of the table.",
        f"Keys of --columns: {keys}; several labels or classes as labels=grade|edema",
        "A table with the headers image and label needs none: "
        "python -m medinit_jax.data prepare medinit_table --from DIR_OR_TABLE",
    ]


def _task_lines(task: Task) -> Iterator[str]:
    yield f"Task: {task.kind} of {' and '.join(task.labels)}, scored by {task.metric}"
    yield f"The paper's train / val / test: {_counts_text(task.counts)}. {task.note}".rstrip()
    for network, starts in task.reported.items():
        values = ", ".join(f"{start} {value:.4f}" for start, value in starts.items())
        yield f"Reported with {network}: {values}"


def _histogram(manifest: dict[str, Any]) -> Table:
    splits = list(manifest["labels"])
    table = Table("feature", "class", *splits)
    rows = {
        (name, label): None
        for counts in manifest["labels"].values()
        for name, classes in counts.items()
        for label in classes
    }
    for name, label in rows:
        found = [manifest["labels"][split].get(name, {}).get(label, 0) for split in splits]
        table.add_row(name, label, *(str(count) for count in found))
    return table


def _splits_text(counts: Any) -> str:
    return ", ".join(f"{split} {count}" for split, count in counts.items())


def _counts_text(counts: tuple[int, ...]) -> str:
    return " / ".join(str(count) if count else "-" for count in counts)


def _console() -> Console:
    # Without a terminal, as into a file, nobody scrolls: wide enough for whole sentences.
    return Console(width=None if sys.stdout.isatty() else 160)
