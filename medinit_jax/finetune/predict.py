"""A fine-tuned network on new images: probabilities, masks and maps, image by image."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from PIL import Image
from rich.console import Console

from medinit_jax.core import cluster
from medinit_jax.core.errors import UsageError
from medinit_jax.core.progress import Progress
from medinit_jax.core.provenance import fingerprint, provenance
from medinit_jax.core.workdir import claimed, is_finished, write_json
from medinit_jax.data.decode import DecodeError, decode_with_size
from medinit_jax.data.folder import list_files
from medinit_jax.downstream import cam, windows
from medinit_jax.downstream.heads import Head, probabilities
from medinit_jax.finetune import evaluate, recipes
from medinit_jax.finetune.recipes import Plan
from medinit_jax.finetune.tuned import Model, load_model

FREE = ("cache_dir", "batch", "note")
# What a file may raise while it is read and brought to what the network sees; anything else is a
# mistake of this program and stops it.
_UNREADABLE = (DecodeError, OSError, UsageError, ValueError)


class View(NamedTuple):
    """An image file as the network sees it.

    Attributes:
        shown: uint8 (H, W, 3).
        inputs: The same normalized, float32 (H, W, 3).
        native: Height and width that the file has.
    """

    shown: np.ndarray
    inputs: np.ndarray
    native: tuple[int, int]


def read_view(path: Path, plan: Plan) -> View:
    """Reads an image file as fine-tuning reads the images that it evaluates.

    Args:
        path: The file.
        plan: How images become what the network sees.

    Raises:
        DecodeError: The file is no image, is damaged or is too large.
        UsageError: The recipe does not take such an image.
    """
    image, native = decode_with_size(path, recipes.least_side(plan))
    if plan.recipe.kind == "segmentation":
        shown = recipes.kept_pair(image, np.zeros(native, np.uint8), plan)[0]
    else:
        shown = recipes.shown_image(recipes.kept_image(image, plan), plan)
    return View(shown, recipes.normalized(shown, plan), native)


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Predicts on all images of a folder, see `configs/predict.py`; several processes divide them.

    Args:
        config: `model`, `images`, `cam`, `batch`.
        workdir: Where `predictions.csv`, `errors.csv`, `masks/` and `cams/` go.

    Raises:
        UsageError: There is no model or image, none can be read, or maps are asked of masks.
    """
    if config.batch < 1:
        raise UsageError(f"config.batch={config.batch}; set it to at least 1.")
    if not config.model or not config.images:
        raise UsageError(
            "Name a fine-tuned workdir with --config.model and a folder of images with "
            "--config.images."
        )
    model = load_model(config.model)
    if config.cam and model.kind == "segmentation":
        raise UsageError("config.cam=True, but the model segments: its masks show where it sees.")
    found = _files(Path(config.images))
    console = cluster.console()
    with claimed(workdir, config, "predict", FREE):
        if not is_finished(workdir, console):
            _predict(config, workdir, model, found, console)


def _predict(
    config: ml_collections.ConfigDict,
    workdir: Path,
    model: Model,
    found: _Found,
    console: Console,
) -> None:
    """Predicts on all images, and writes what came of it."""
    for what, files in (
        ("Ignored, as they are no images", found.ignored),
        ("Not followed, as they lead out of the folder", found.outside),
    ):
        if files:
            line = f"{what}: {_listed(files)}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    cluster.check_alike(
        "model and images",
        {
            "parameters": fingerprint(model.params),
            "names of the images": hashlib.sha256("\n".join(found.images).encode()).hexdigest(),
        },
    )
    portions = _portions(found.images, config.batch)
    own = _part(workdir, cluster.share()[0])
    predictor = _Predictor(model, found.root, workdir, config)
    with Progress("predict", sum(map(len, portions)), console, unit="images") as bar:
        _write_rows(own["predictions"], predictor.rows(portions, bar))
    _write_rows(own["errors"], iter(predictor.errors))
    counts = cluster.everyone("predicted", json.dumps([predictor.done, len(predictor.errors)]))
    done, failed = (sum(column) for column in zip(*map(json.loads, counts), strict=True))

    def join() -> None:
        _join(workdir, "predictions", predictor.columns(), len(counts))
        _join(workdir, "errors", ("file", "reason"), len(counts))
        if not done:
            with open(workdir / "errors.csv", encoding="utf-8", newline="") as file:
                first = list(csv.reader(file))[1]
            raise UsageError(
                f"None of the {len(found.images)} files in {config.images} could be read "
                f"({first[0]}: {first[1]}); {workdir / 'errors.csv'} lists them."
            )
        write_json(
            workdir / "summary.json",
            {
                "images": done,
                "failed": failed,
                "ignored": {"count": len(found.ignored), "files": found.ignored},
                "links_not_followed": found.outside,
                "task": model.record["task"],
                "model": model.record["model"]["name"],
                "start": model.record["start"],
                "heads": [head._asdict() for head in model.heads],
                "provenance": provenance(shlex.join(sys.argv), "predict"),
            },
        )

    cluster.once(join)
    console.print(
        f"{done} images predicted, {failed} files could not be read: {workdir / 'predictions.csv'}",
        soft_wrap=True,
    )


def _portions(images: list[str], batch: int) -> list[list[str]]:
    """Returns this process's part of the images, a batch after another.

    What fills a batch together does not depend on the number of processes, nor do the last bits of
    its figures then.
    """
    process, processes = cluster.share()
    portions = [images[first : first + batch] for first in range(0, len(images), batch)]
    ends = [len(portions) * number // processes for number in (process, process + 1)]
    return portions[slice(*ends)]


def _part(workdir: Path, process: int) -> dict[str, Path]:
    """Returns where a process keeps its rows of the tables."""
    return {name: workdir / f".{name}.{process}" for name in ("predictions", "errors")}


def _join(workdir: Path, name: str, columns: tuple[str, ...], processes: int) -> None:
    """Puts the rows of all processes into one table, in their order: that of the images."""
    partial = workdir / f"{name}.csv.partial"
    with open(partial, "w", encoding="utf-8", newline="") as whole:
        csv.writer(whole, lineterminator="\n").writerow(columns)
        for process in range(processes):
            part = _part(workdir, process)[name]
            with open(part, encoding="utf-8", newline="") as file:
                shutil.copyfileobj(file, whole)
    os.replace(partial, workdir / f"{name}.csv")
    # Those of an earlier call, too, which may have had more processes.
    for part in workdir.glob(f".{name}.*"):
        part.unlink()


class _Found(NamedTuple):
    """What is in a folder: files that may be images, others, and links out of it, by name."""

    root: Path
    images: list[str]
    ignored: list[str]
    outside: list[str]


def _files(place: Path) -> _Found:
    """Looks through a folder; a file stands for itself."""
    if place.is_file():
        return _Found(place.parent, [place.name], [], [])
    if not place.is_dir():
        raise UsageError(f"config.images={place} does not exist; name a folder or a file.")
    files, others, outside = list_files(place)
    if not files:
        raise UsageError(
            f"{place} holds no image ({len(others)} other files); name a folder of png, jpg, tif, "
            "bmp, ppm, gif, dcm or nii files."
        )
    return _Found(place, sorted(files), sorted(others), sorted(outside))


def _listed(files: list[str], most: int = 5) -> str:
    """Returns how many files there are and the names of the first."""
    more = ", ..." if len(files) > most else ""
    return f"{len(files)} ({', '.join(files[:most])}{more})"


class _Predictor:
    """Reads images in a stream and writes what the network says, in order."""

    def __init__(self, model: Model, root: Path, workdir: Path, config: ml_collections.ConfigDict):
        self.model, self.root, self.workdir = model, root, workdir
        self.batch, self.cam = config.batch, config.cam
        self.done, self.errors = 0, list[tuple[str, str]]()
        # (file, image as it is judged, native size) of what the network has not answered yet.
        self.waiting: deque[tuple[str, np.ndarray, tuple[int, int]]] = deque()

    def rows(self, portions: list[list[str]], bar: Progress) -> Iterator[tuple[Any, ...]]:
        """Yields a row for each image that could be read."""
        rows = self._masks if self.model.kind == "segmentation" else self._classes
        for portion in portions:
            for row in rows(portion):
                self.done += 1
                bar.update(self.done + len(self.errors))
                yield row

    def columns(self) -> tuple[str, ...]:
        """Returns the names of what a row holds."""
        columns = ["file"]
        for head in self.model.heads:
            if self.model.kind == "segmentation":
                columns += [f"{head.name}_pixels", f"{head.name}_share", f"{head.name}_mask"]
            else:
                columns += [f"{head.name}_{name}" for name in head.classes]
                columns += [head.name]
        return tuple(columns)

    def _inputs(self, files: list[str]) -> Iterator[np.ndarray]:
        """Yields what the network sees; a file that cannot be read is listed and left out."""
        for file in files:
            try:
                view = read_view(self.root / file, self.model.plan)
            except _UNREADABLE as error:
                self.errors.append((file, str(error) or type(error).__name__))
                continue
            self.waiting.append((file, view.shown, view.native))
            yield view.inputs

    def _run(self) -> Callable[[np.ndarray], Any]:
        compiled = evaluate.compiled(self.model.network)  # pyright: ignore[reportArgumentType]
        return functools.partial(compiled, self.model.params, self.model.statistics)

    def _classes(self, files: list[str]) -> Iterator[tuple[Any, ...]]:
        """Yields a row of probabilities per image."""
        run = self._run()
        for images, count in evaluate.batches(self._inputs(files), self.batch):
            logits = np.asarray(run(images))[:count]
            chances = probabilities(self.model.heads, logits)
            if self.cam:
                first = chances[self.model.heads[0].name].argmax(1)
                filled = np.resize(first, len(images))
                maps = cam.activation_map(
                    self.model.network, self.model.params, self.model.statistics, images, filled
                )
            for index in range(count):
                file, shown, _ = self.waiting.popleft()
                row: list[Any] = [file]
                for head in self.model.heads:
                    chance = chances[head.name][index]
                    row += [f"{value:.6f}" for value in chance]
                    row.append(_named(head, chance))
                if self.cam:
                    _save_png(self.workdir / "cams", file, cam.overlay(shown, maps[index]))
                yield tuple(row)

    def _masks(self, files: list[str]) -> Iterator[tuple[Any, ...]]:
        """Yields a row per image, and writes its masks at its own size."""
        window = self.model.network.program.input_shape[0]
        answers = windows.predict_images(self._run(), self._inputs(files), window, self.batch)
        for logits in answers:
            file, _, size = self.waiting.popleft()
            logits = recipes.to_native(logits, size, self.model.plan)
            row: list[Any] = [file]
            for name, classes in evaluate.segment(self.model.heads, logits).items():
                mask = classes == 1
                path = _save_png(
                    self.workdir / "masks", file, mask.astype(np.uint8) * np.uint8(255), f"_{name}"
                )
                row += [int(mask.sum()), f"{mask.mean():.6f}", str(path.relative_to(self.workdir))]
            yield tuple(row)


def _named(head: Head, chance: np.ndarray) -> str:
    """Returns the likeliest class, or of findings those that are likelier than not."""
    if head.kind == "softmax":
        return head.classes[int(chance.argmax())]
    return " ".join(name for name, p in zip(head.classes, chance, strict=True) if p >= 0.5)


def _save_png(folder: Path, file: str, picture: np.ndarray, suffix: str = "") -> Path:
    """Writes a PNG under the file's own name, ending included, so that no two collide."""
    path = folder / f"{file}{suffix}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def _write_rows(path: Path, rows: Iterator[tuple[Any, ...]]) -> None:
    """Writes rows as they come; the file has its name when all are there."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    os.replace(partial, path)
