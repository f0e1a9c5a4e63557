"""What the commands of `python -m medinit_jax.data` do; each returns an exit code."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from medinit_jax.core.progress import Progress
from medinit_jax.data.archive import unpack
from medinit_jax.data.beam import prepare_with_beam
from medinit_jax.data.builders.drawn import Drawn
from medinit_jax.data.contact_sheet import save_contact_sheet
from medinit_jax.data.image_table import parse_columns
from medinit_jax.data.listing import lines_of, list_sets, show_info
from medinit_jax.data.manifest import earlier_manifest
from medinit_jax.data.prepare import prepare
from medinit_jax.data.shards import Report
from medinit_jax.data.tasks import make_builder
from medinit_jax.data.verification import unchecked_files, verify


@contextlib.contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Report]:
    """Gives a function that is told (done, total) and shows it; the bar begins with the first."""
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        bars: list[Progress] = []

        def report(done: int, total: int) -> None:
            if not bars:
                bar = Progress(title, total, console, start=done, unit=unit)
                bars.append(stack.enter_context(bar))
            bars[0].update(done)

        yield report


def _list(data_dir: str) -> int:
    list_sets(data_dir)
    return 0


def _info(name: str, data_dir: str) -> int:
    show_info(name, data_dir)
    return 0


def _prepare(
    name: str,
    data_dir: str,
    folder: str | None,
    workers: int | None,
    any_count: bool,
    on_corrupt: str,
    split_seed: int,
    host: int,
    hosts: int,
    beam: str | None,
    columns: str | None,
) -> int:
    options = {"strict_counts": not any_count, "on_corrupt": on_corrupt}
    of_table = None if columns is None else parse_columns(columns)
    builder = make_builder(name, data_dir, split_seed, of_table, beam=beam is not None, **options)
    folder = folder or str(Path(data_dir) / "downloads" / "manual" / builder.name)
    target = Path(builder.data_path)
    if earlier_manifest(builder) is not None:
        print(f"{target} is prepared already; delete it to prepare it anew.")
        return 0
    what = "Drawing" if isinstance(builder, Drawn) else f"Reading labels and folders in {folder}"
    print(f"{what} ...", flush=True)
    if beam is not None:
        manifest: Any = prepare_with_beam(builder, folder, shlex.split(beam))
    else:
        with progress_bar(f"prepare {builder.name}/{builder.builder_config.name}", "images") as bar:
            manifest = prepare(builder, folder, workers=workers, host=host, hosts=hosts, report=bar)
    if manifest is None:
        print(f"Host {host} of {hosts} is done; the last one finishes {target}.")
        return 0
    print("\n".join([f"Prepared {target}", *lines_of(manifest)]))
    return 0


def _verify(name: str, data_dir: str, workers: int | None) -> int:
    builder = make_builder(name, data_dir)
    with progress_bar(f"verify {builder.name}/{builder.builder_config.name}", "records") as bar:
        problems = verify(builder, workers, bar)
    if problems:
        print("\n".join(problems))
        print(f"{len(problems)} problems in {builder.data_path}; delete it and prepare it again.")
        return 1
    unchecked = unchecked_files(builder)
    if unchecked:
        print(
            f"Not checked, for an older version recorded no sha256 of them: {', '.join(unchecked)}"
        )
    what = "shard, record and count" if unchecked else "file, record and count"
    print(f"{builder.data_path} is whole: every {what} is as recorded.")
    return 0


def _show(name: str, data_dir: str, split: str | None, count: int, out: str) -> int:
    shown = save_contact_sheet(make_builder(name, data_dir), split, count, Path(out))
    print(f"{shown} images in {out}")
    return 0


def _unpack(archive: str, max_gb: float, max_ratio: float) -> int:
    with progress_bar(f"unpack {Path(archive).name}", "bytes") as bar:
        result = unpack(Path(archive), int(max_gb * 1e9), max_ratio, bar)
    print(f"Unpacked {result.files} files, {result.size / 1e6:.1f} MB, to {result.place}")
    for inner in result.packed[:20]:
        print(f"Still packed: python -m medinit_jax.data unpack {shlex.quote(str(inner))}")
    if len(result.packed) > 20:
        print(f"... and {len(result.packed) - 20} more archives.")
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "list": _list,
    "info": _info,
    "prepare": _prepare,
    "verify": _verify,
    "show": _show,
    "unpack": _unpack,
}
