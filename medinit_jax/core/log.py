"""Writers of metrics with the interface of `clu.metric_writers`, without TensorFlow.

`clu.metric_writers` imports TensorFlow and tensorboard as soon as it is imported, so its abstract
class cannot be the base here; the methods and their arguments are the same, and a writer of either
kind can stand in for the other.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from medinit_jax.core import cluster
from medinit_jax.core.timing import PREFIX

Scalars = Mapping[str, Any]
Arrays = Mapping[str, Any]

METRICS_FILE = "metrics.jsonl"
# What `core.timing` measures; the same steps take another time in a run that was resumed.
TIMING_FILE = "timing.jsonl"


class MetricWriter:
    """Takes what a run measures; what a writer cannot show it ignores, as clu's writers do.

    Source:
        clu.metric_writers.MetricWriter, whose docstrings give the shapes.
    """

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Writes () values by name."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts by name."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes flat hyperparameters by name, once."""

    def write_summaries(
        self, step: int, values: Arrays, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Writes tensors by name."""

    def write_images(self, step: int, images: Arrays) -> None:
        """Writes images (N, H, W, C) or (H, W, C) by name."""

    def write_videos(self, step: int, videos: Arrays) -> None:
        """Writes videos (N, T, H, W, C) or (T, H, W, C) by name."""

    def write_audios(self, step: int, audios: Arrays, *, sample_rate: int) -> None:
        """Writes sounds (N, T, C) in [-1, 1] by name."""

    def write_histograms(
        self, step: int, arrays: Arrays, num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Writes the distribution of arrays by name."""

    def flush(self) -> None:
        """Hands on what is buffered."""

    def close(self) -> None:
        """Flushes and closes; the writer is not used after."""


class JsonlWriter(MetricWriter):
    """One JSON object per call in `metrics.jsonl`, with the key `step` and the names given.

    A value that is not finite is written as null, which every JSON reader takes.
    """

    def __init__(self, path: Path, resume_step: int | None = None, timing: bool = False):
        """Opens the file for appending.

        Args:
            path: the file.
            resume_step: the step that a run goes on from; lines of later steps and a line cut
                short are dropped, since they are written again. None keeps every line.
            timing: takes what `core.timing` measures and nothing else, instead of all else.
        """
        self._timing = timing
        if path.exists() and resume_step is not None:
            _drop_after(path, resume_step)
        self._file = open(path, "a", encoding="utf-8", buffering=1)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Appends one line with every scalar that it takes."""
        kept = _kept(scalars, self._timing)
        if kept or not scalars:
            self._write(step, {name: _number(value) for name, value in kept.items()})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Appends one line with every text."""
        if not self._timing:
            self._write(step, dict(texts))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Does nothing: the workdir's config.json holds them."""

    def flush(self) -> None:
        """Hands buffered lines to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, step: int, values: dict[str, Any]) -> None:
        self._file.write(json.dumps({"step": int(step)} | values) + "\n")


class ConsoleWriter(MetricWriter):
    """One plain line per call on a console, above a progress bar that is drawn there."""

    def __init__(self, console: Console):
        """Keeps the console that the run's progress is shown on."""
        self._console = console

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Prints `step 100  loss 1.23  ...`."""
        kept = _kept(scalars, timing=False)
        if kept or not scalars:
            self._print(step, "  ".join(f"{k} {float(v):.4g}" for k, v in kept.items()))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Prints each text on a line."""
        for name, text in texts.items():
            self._print(step, f"{name}: {text}")

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Does nothing: a whole configuration is no console line."""

    def _print(self, step: int, text: str) -> None:
        self._console.print(f"step {step}  {text}", markup=False, highlight=False, soft_wrap=True)


class TensorBoardWriter(MetricWriter):
    """Event files that TensorBoard reads, written by tensorboardX."""

    def __init__(self, folder: Path, resume_step: int | None = None):
        """Opens a new event file in a folder; see `JsonlWriter` for `resume_step`."""
        from tensorboardX import SummaryWriter

        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Adds scalars."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), step)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Adds texts."""
        for name, text in texts.items():
            self._writer.add_text(name, text, step)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Adds one text, a line for each."""
        lines = [f"    {name}: {value}" for name, value in sorted(hparams.items())]
        self._writer.add_text("hparams", "\n".join(lines), 0)

    def write_images(self, step: int, images: Arrays) -> None:
        """Adds images."""
        for name, image in images.items():
            pixels = np.asarray(image)
            layout = "NHWC" if pixels.ndim == 4 else "HWC"
            self._writer.add_image(name, pixels, step, dataformats=layout)

    def write_histograms(
        self, step: int, arrays: Arrays, num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Adds histograms."""
        for name, array in arrays.items():
            bins = (num_buckets or {}).get(name)
            self._writer.add_histogram(name, np.asarray(array), step, bins=bins or "tensorflow")

    def flush(self) -> None:
        """Writes events that are queued."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class MultiWriter(MetricWriter):
    """Hands every call to several writers."""

    def __init__(self, writers: Sequence[MetricWriter]):
        """Keeps the writers in the order given."""
        self._writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Hands on."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Hands on."""
        for writer in self._writers:
            writer.write_texts(step, texts)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Hands on."""
        for writer in self._writers:
            writer.write_hparams(hparams)

    def write_summaries(
        self, step: int, values: Arrays, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Hands on."""
        for writer in self._writers:
            writer.write_summaries(step, values, metadata)

    def write_images(self, step: int, images: Arrays) -> None:
        """Hands on."""
        for writer in self._writers:
            writer.write_images(step, images)

    def write_videos(self, step: int, videos: Arrays) -> None:
        """Hands on."""
        for writer in self._writers:
            writer.write_videos(step, videos)

    def write_audios(self, step: int, audios: Arrays, *, sample_rate: int) -> None:
        """Hands on."""
        for writer in self._writers:
            writer.write_audios(step, audios, sample_rate=sample_rate)

    def write_histograms(
        self, step: int, arrays: Arrays, num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Hands on."""
        for writer in self._writers:
            writer.write_histograms(step, arrays, num_buckets)

    def flush(self) -> None:
        """Hands on."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Hands on."""
        for writer in self._writers:
            writer.close()


def create_writer(
    workdir: str | os.PathLike[str], console: Console, resume_step: int | None = None
) -> MetricWriter:
    """Returns the writer of a run: metrics.jsonl, timing.jsonl, the console and TensorBoard.

    Of several processes the first one writes.

    Args:
        workdir: the run's folder, which exists.
        console: where lines are printed; share it with `core.progress.Progress`.
        resume_step: the restored step, whose later lines are dropped; None for a new run.

    Returns:
        One writer over the four.
    """
    if not cluster.first():
        return MetricWriter()
    folder = Path(workdir)
    return MultiWriter(
        [
            JsonlWriter(folder / METRICS_FILE, resume_step),
            JsonlWriter(folder / TIMING_FILE, resume_step, timing=True),
            ConsoleWriter(console),
            TensorBoardWriter(folder / "tensorboard", resume_step),
        ]
    )


def _kept(scalars: Scalars, timing: bool) -> Scalars:
    return {name: value for name, value in scalars.items() if name.startswith(PREFIX) == timing}


def _number(value: Any) -> float | int | None:
    number = np.asarray(value).item()
    return number if math.isfinite(number) else None


def _drop_after(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
