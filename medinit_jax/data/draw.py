"""Draws a phantom set where it is wanted and not there yet."""

from __future__ import annotations

from rich.console import Console

from medinit_jax.core import cluster
from medinit_jax.core.progress import Progress
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.drawn import Drawn
from medinit_jax.data.manifest import read_manifest
from medinit_jax.data.prepare import prepare


def draw_missing(builder: Builder, name: str, console: Console) -> None:
    """Draws a phantom that is not there yet, with a bar; leaves all other sets alone.

    Of several processes the first one draws, the others only what they still lack.

    Args:
        builder: The set.
        name: What the bar calls it.
        console: Where it is shown.
    """
    if isinstance(builder, Drawn):
        cluster.first_then_others(lambda: _draw(builder, name, console))
        if not builder.info.splits:
            # Another process drew it after this builder had looked.
            builder.info.read_from_directory(builder.data_path)


def _draw(builder: Drawn, name: str, console: Console) -> None:
    if read_manifest(builder.data_path) is not None:
        return
    bar: Progress | None = None
    try:

        def report(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = Progress(f"draw {name}", total, console, start=done, unit="images")
                bar.__enter__()
            bar.update(done)

        prepare(builder, report=report)
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)
