"""Pretrainings of a network of four blocks, which compiles in seconds."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from medinit_jax.core.config import read_command_line
from medinit_jax.models import zoo
from medinit_jax.models.resnet import Variant, resnet
from medinit_jax.swcl.patch_geometry import POSITIONS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ODIR = "phantom_odir_64px_x0.02"
NAME = "tinynet"


def tiny_network(name, shape, classes, **options):
    """Builds a ResNet of one block a stage."""
    options = {"stem": "small", "width": 4, **options}
    return resnet(Variant((1, 1, 1, 1), False), shape, classes, **options)


@contextlib.contextmanager
def tiny_zoo():
    """Lets the zoo know the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.CLASSIFIERS, NAME, tiny_network)
        patch.setitem(zoo.MODELS, NAME, tiny_network)
        yield


def quiet():
    """Returns a console that says nothing."""
    return Console(file=io.StringIO())


def write_patches(folder, pairs=8, side=24, seed=0):
    """Writes a folder in the layout of SWCL's authors, with labels of the photographs."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["id,left-patch,left-score,right-patch,right-score,left-label,right-label"]
    for pair in range(pairs):
        patient, place = divmod(pair, len(POSITIONS))
        names = []
        for eye in ("left", "right"):
            names.append(f"oia-odir_{patient + 1}_{eye}_{POSITIONS[place]}")
            image = rng.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(image).save(folder / f"{names[-1]}.png")
        left, right = rng.uniform(0, 1, 2).tolist()
        lines.append(f"{2 * pair},{names[0]},{left},{names[1]},{right},{pair % 2},{1 - pair % 2}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def tiny(variant, data_dir, *overrides):
    """Returns the configuration of a pretraining that takes seconds."""
    paired = variant in ("swcl", "swcl_image", "multitask")
    place = [f"--config.data.patches={data_dir}/patches"]
    if not paired:
        place = [f"--config.data.sets={ODIR}", "--config.data.image_size=24"]
    command = [
        "test",
        f"--config={CONFIGS}/swcl.py:{variant}",
        f"--config.data.data_dir={data_dir}",
        "--config.data.size=16",
        f"--config.model.name={NAME}",
        "--config.train.steps=3",
        "--config.train.batch=8",
        "--config.train.log_every=1",
        "--config.optim.warmup_epochs=0",
        *place,
        *overrides,
    ]
    return read_command_line(command).config
