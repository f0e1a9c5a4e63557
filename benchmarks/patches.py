"""How busy the devices are while a labeler scores photographs and patches are written.

    python benchmarks/patches.py [--json] [--labelers small,resnet34] [--share 0.03]

Runs the whole route `patches` with an untrained labeler over drawn photographs: `small` is a
ResNet-18 of width 16 on 64 pixels, `resnet34` one on 224, `paper` one on 448. The share is the
route's own `device_busy_share`: drawing and compiling are outside of it; cutting, encoding and
writing of patches are inside.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax

from medinit_jax.core import compilation_cache
from medinit_jax.core.config import read_command_line
from medinit_jax.core.parameters import save_params
from medinit_jax.finetune.network import make_network
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.statistics import initial_statistics
from medinit_jax.swcl import score

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "patches.py"
# Network, its width (0: the usual), and the side of the photographs.
LABELERS: dict[str, tuple[str, int, int]] = {
    "small": ("resnet18", 16, 64),
    "resnet34": ("resnet34", 0, 224),
    "paper": ("resnet34", 0, 448),
}


def write_labeler(folder: Path, name: str, width: int, side: int) -> None:
    """Writes an untrained labeler as a fine-tuning would leave it."""
    model = {"name": name, "width": width}
    network = make_network(model, side, 2, "classification")
    tree = {
        "params": initial_parameters(network.program, jax.random.key(0)),
        "batch_stats": initial_statistics(network.program),
    }
    head = {"name": "abnormal", "classes": ["normal", "abnormal"], "kind": "softmax"}
    metadata = {
        "task": "benchmark",
        "kind": "classification",
        "modality": "fundus",
        "size": side,
        "heads": [head],
        "start": {"start": "random"},
        "model": model,
        "data": {"recipe": "hyper512", "normalization": "fundus", "target": "label"},
    }
    save_params(folder / "model", tree, metadata, kind="model")


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns photographs scored, their rate, and the share of the time with busy devices."""
    network, width, side = LABELERS[name]
    labeler = folder / name
    write_labeler(labeler, network, width, side)
    command = [
        "benchmark",
        f"--config={CONFIG}",
        f"--config.labeler={labeler}",
        f"--config.labelled=phantom_odir_{side}px_x{options.share:g}",
        f"--config.unlabelled=phantom_eyepacs_dr_{side}px_x{options.share:g}",
        f"--config.data_dir={options.data_dir or folder / 'data'}",
        f"--config.image_size={side}",
        f"--config.crop={side // 2}",
        f"--config.name={name}-{os.getpid()}",
        f"--config.batch={options.batch}",
    ]
    found = score.run(read_command_line(command).config, folder / f"run-{name}")
    return {key: found[key] for key in ("scored", "photographs_per_s", "device_busy_share")}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Share of scoring with busy devices")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--labelers", default="small,resnet34", help=f"of {', '.join(LABELERS)}")
    parser.add_argument("--share", type=float, default=0.03, help="of the phantoms' usual number")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--data-dir", default="", help="where phantoms stay; default: nowhere")
    options = parser.parse_args()
    compilation_cache.enable("")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.labelers.split(","):
            found[name] = measure(name, Path(folder), options)
    found["load_average"] = os.getloadavg()[0]
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'labeler':<10}{'photographs':>12}{'per second':>12}{'devices busy':>14}")
    for name in options.labelers.split(","):
        row = found[name]
        print(
            f"{name:<10}{row['scored']:>12}{row['photographs_per_s']:>12.1f}"
            f"{row['device_busy_share']:>14.1%}"
        )


if __name__ == "__main__":
    main()
