"""A space of small networks, and discs to turn, for trainings of seconds."""

import dataclasses
from pathlib import Path

import numpy as np

from medinit_jax.arch.space import Space, Split

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "hyper.py"
SIZE = 16
TINY = Space(
    "tiny",
    {
        name: Split(100, n_cells=(3, 3), deep=(3,), steps=(1, 1, 1), norm="bn")
        for name in ("train", "val", "test")
    },
    operations=("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "conv_1x1", "conv_3x3"),
    stem_kernels=(3,),
    stem_types=(0,),
    multipliers=(1,),
    fc_layers=(1,),
    stem_pool=1.0,
    widen=lambda space, arch, parameters, rng: dataclasses.replace(arch, C=16),
)
SETTINGS = {
    "space": "tiny",
    "data.source": "npz",
    "data.size": SIZE,
    "hyper.hidden": 8,
    "hyper.max_shape": (8, 8, 5, 5),
    "pretext.name": "rotation",
    "pretext.mode": "four",
    "train.batch_size": 16,
    "train.bn_group": 4,
    "train.first_architectures": 2,
    "train.double_every": 10**6,
    "train.select": "last",
    "train.trials": 1,
    "optim.learning_rate": 0.001,
}


def write_images(path):
    """Writes discs off the center: their place tells the angle."""
    rows, columns = np.indices((SIZE, SIZE))
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 24), ("val", 16), ("test", 16)):
        place = random.normal((5, 9), 1, (count, 2))[..., None, None]
        inside = (rows - place[:, 0]) ** 2 + (columns - place[:, 1]) ** 2 < 9
        noise = random.integers(0, 60, inside.shape)
        arrays[f"{split}_images"] = (150 * inside + noise).astype(np.uint8)
    np.savez(path, **arrays)
    return path
