"""Times decoding, augmenting and preparing of images, against albumentations and Pillow.

    python benchmarks/data.py
    python benchmarks/data.py --json
    python benchmarks/data.py --rounds 5 --photographs 48

Needs the packages of benchmarks/data.txt; images are drawn, nothing is downloaded. What each figure
means is told in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from data_peers import SIDES, Side
from etils import epath
from phantoms import rate as phantom_rate

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.image_files import jpeg, png
from medinit_jax.data.layout import Tree
from medinit_jax.data.phantoms import PHANTOMS
from medinit_jax.data.prepare import prepare

Figures = dict[str, Any]
PEERS = ("albumentations", "pillow")
STORED, LARGE = 512, 2000
# Different images of each kind; every one is used many times.
DRAWN, DRAWN_LARGE = 16, 6


class Photographs(Builder, skip_registration=True):  # pyright: ignore
    """Two folders of JPEGs, as datasets for classification are laid out."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Drawn by this benchmark."
    MARKERS = (("train", "test"),)
    BUILDER_CONFIGS = [Config(name="default", shorter=STORED)]

    def features(self) -> Figures:
        """Returns none beside the common ones."""
        return {}

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Lists the files."""
        return {split: self._part(tree, split) for split in ("train", "test")}

    def _part(self, tree: Tree, split: str) -> list[Item]:
        return [
            Item(
                f"{split}/{stem}",
                {"image": path},
                {"image_id": stem, "patient_id": stem, "eye": "unknown"},
            )
            for stem, path in tree.folder(split).files(".jpg").items()
        ]


def drawn(count: int) -> list[tuple[bytes, bytes]]:
    """Returns fundus phantoms of `STORED` pixels as JPEG, and disc and cup as PNG."""
    render = PHANTOMS["fundus"].render
    examples = [render(number, 1, STORED) for number in range(count)]
    return [(jpeg(one["image"]), png(one["masks"]["disc_cup"])) for one in examples]


_side: dict[str, Side] = {}
_examples: list[tuple[bytes, bytes]] = []


def _begin(examples: list[tuple[bytes, bytes]]) -> None:
    cv2.setNumThreads(0)
    _side.update({name: make() for name, make in SIDES.items()})
    _examples.extend(examples)


def _work(name: str, recipe: str, first: int, count: int) -> float:
    """Augments `count` images in this process; returns seconds of its core."""
    side = _side[name]
    started = time.process_time()
    for number in range(first, first + count):
        image, mask = _examples[number % len(_examples)]
        if recipe == "two_views":
            side.views(image, number)
        else:
            side.pair(image, mask, number)
    return time.process_time() - started


def augmenting(
    workers: int, rounds: int, images: int, recipe: str, names: Sequence[str]
) -> Figures:
    """Times every side in turn, in the same processes.

    Args:
        workers: Number of processes, which work at the same time.
        rounds: Times that every side has its turn.
        images: Images of a turn, for each process.
        recipe: "two_views" or "image_and_mask".
        names: Keys of `SIDES`.

    Returns:
        By side the medians of images per second and of images per second of one core, and the
        median over the rounds of ours over the faster peer.
    """
    context = multiprocessing.get_context("spawn")
    wall: dict[str, list[float]] = {name: [] for name in names}
    core: dict[str, list[float]] = {name: [] for name in names}
    with ProcessPoolExecutor(workers, context, _begin, (drawn(DRAWN),)) as pool:

        def turn(name: str, first: int) -> tuple[float, float]:
            started = time.perf_counter()
            parts = [
                pool.submit(_work, name, recipe, first + images * worker, images)
                for worker in range(workers)
            ]
            seconds = [part.result() for part in parts]
            return time.perf_counter() - started, sum(seconds)

        for name in names:
            turn(name, 0)
        for number in range(rounds):
            # Another one begins every time: what follows it finds other caches and clock rates.
            start = number % len(names)
            for name in (*names[start:], *names[:start]):
                on_clock, on_core = turn(name, number * images * workers)
                wall[name].append(images * workers / on_clock)
                core[name].append(images * workers / on_core)
    figures: Figures = {f"{name}_per_s": float(np.median(wall[name])) for name in names}
    figures |= {f"{name}_per_core_s": float(np.median(core[name])) for name in names}
    for prefix, rates in (("ratio", wall), ("ratio_core", core)):
        for name in names:
            if name not in PEERS:
                faster = np.max([rates[peer] for peer in PEERS], axis=0)
                ratio = float(np.median(np.array(rates[name]) / faster))
                figures[prefix + name.removeprefix("ours")] = ratio
    return figures


def write_photographs(folder: Path, count: int) -> int:
    """Writes JPEGs of `LARGE` pixels, half of them for training; returns bytes of the median."""
    render = PHANTOMS["fundus"].render
    contents = [jpeg(render(n, 1, LARGE)["image"], 90) for n in range(DRAWN_LARGE)]
    for number in range(count):
        place = folder / ("train", "test")[number % 2] / f"p{number:04d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(contents[number // 2 % len(contents)])
    return int(np.median([len(content) for content in contents]))


def preparing(count: int, repeats: int) -> Figures:
    """Prepares a folder of large JPEGs with one process and with two.

    Returns:
        Medians of images per second: `prepare_per_s` of one process, which writes what comes to
        disk as well, `prepare_per_core_s` of its core time; `prepare_2_workers_per_s` of two
        processes, with the start of both.
    """
    cv2.setNumThreads(1)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        photographs = Path(place, "photographs")
        size = write_photographs(photographs, count)
        for workers in [0, 2] * repeats:
            with tempfile.TemporaryDirectory() as data:
                builder = Photographs(data_dir=data)
                wall, core = time.perf_counter(), time.process_time()
                prepare(builder, epath.Path(photographs), workers=workers)
                core, wall = time.process_time() - core, time.perf_counter() - wall
            name = "prepare_2_workers_per_s" if workers else "prepare_per_s"
            rates.setdefault(name, []).append(count / wall)
            if not workers:
                rates.setdefault("prepare_per_core_s", []).append(count / core)
    figures: Figures = {name: float(np.median(values)) for name, values in rates.items()}
    figures["prepare"] = f"{count} JPEGs, {LARGE} px, {size // 1000} kB, to {STORED} px"
    return figures


def machine() -> Figures:
    """Returns what the figures were taken on."""
    packages = ("albumentations", "pillow", "opencv-python-headless", "numpy")
    return {
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def benchmark(options: argparse.Namespace) -> Figures:
    """Runs everything; `options` are those of the command line."""
    loads = {"before": os.getloadavg()[0]}
    parts: Figures = {}
    for recipe in ("two_views", "image_and_mask"):
        names = list(SIDES) if recipe == "image_and_mask" else ["ours", *PEERS]
        for workers in (1, 2):
            parts[f"{recipe}_{workers}"] = augmenting(
                workers, options.rounds, options.images, recipe, names
            )
    loads["augmented"] = os.getloadavg()[0]
    figures: Figures = {
        f"ratio_{recipe}": min(parts[f"{recipe}_{workers}"]["ratio"] for workers in (1, 2))
        for recipe in ("two_views", "image_and_mask")
    }
    drawing = [phantom_rate("fundus", 256, options.phantoms) for _ in range(3)]
    figures["fundus_phantoms_per_s"] = float(np.median([d["images_per_core_s"] for d in drawing]))
    figures |= preparing(options.photographs, options.repeats)
    loads["after"] = os.getloadavg()[0]
    return {**figures, **parts, "machine": machine(), "load_average": loads}


def table(figures: Figures, prefix: str = "") -> list[str]:
    """Returns one line for each figure."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            lines += table(value, f"{prefix}{name}.")
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.append(f"{prefix + name:44s} {text}")
    return lines


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=80, help="turns of every side")
    parser.add_argument("--images", type=int, default=8, help="images of a turn and process")
    parser.add_argument("--phantoms", type=int, default=100, help="phantoms drawn, three times")
    parser.add_argument("--photographs", type=int, default=192, help="large JPEGs to prepare")
    parser.add_argument("--repeats", type=int, default=3, help="times they are prepared")
    options = parser.parse_args()
    figures = benchmark(options)
    print(json.dumps(figures, indent=2) if options.json else "\n".join(table(figures)))


if __name__ == "__main__":
    main()
