"""Times the drawing of phantom images in one process.

python benchmarks/phantoms.py
python benchmarks/phantoms.py --phantom xray --size 512 --json
"""

import argparse
import json
import os
import time

import cv2

from medinit_jax.data.phantoms import PHANTOMS


def rate(name: str, size: int, count: int) -> dict[str, float]:
    """Draws images one after another, on one core.

    Args:
        name: Key of `PHANTOMS`.
        size: Side in pixels.
        count: Number of images.

    Returns:
        Images per second of one core's time, which a busy machine changes little, and per second
        on the clock.
    """
    phantom = PHANTOMS[name]
    cv2.setNumThreads(1)
    phantom.render(0, phantom.eyes[0], size)
    wall, core = time.perf_counter(), time.process_time()
    for number in range(count):
        patient, eye = divmod(number, len(phantom.eyes))
        phantom.render(1 + patient, phantom.eyes[eye], size)
    core, wall = time.process_time() - core, time.perf_counter() - wall
    return {"images_per_core_s": count / core, "images_per_s": count / wall}


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description="Times the drawing of phantom images.")
    parser.add_argument("--phantom", choices=sorted(PHANTOMS), default="fundus")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = {
        "phantom": options.phantom,
        "size": options.size,
        "images": options.images,
        **rate(options.phantom, options.size, options.images),
        "load_average": os.getloadavg()[0],
    }
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:20s} {value:.4g}" if isinstance(value, float) else f"{name:20s} {value}")


if __name__ == "__main__":
    main()
