"""Initializes one ResNet twice in this process and prints the times; started by `initialize.py`.

python benchmarks/initialize_once.py linen_resnet50 FOLDER
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import medinit_jax  # noqa: E402
from medinit_jax.api import Initializer  # noqa: E402

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
SIZE = 224


class Bottleneck(nn.Module):
    """The bottleneck block, written as in any Flax project."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (batch, height, width, channels) -> features."""

        def normalized(y):
            return nn.BatchNorm(use_running_average=True)(y)

        wide = 4 * self.features
        y = nn.relu(normalized(nn.Conv(self.features, (1, 1), use_bias=False)(x)))
        y = nn.Conv(self.features, (3, 3), self.stride, 1, use_bias=False)(y)
        y = nn.Conv(wide, (1, 1), use_bias=False)(nn.relu(normalized(y)))
        if x.shape[-1] != wide or self.stride > 1:
            x = normalized(nn.Conv(wide, (1, 1), self.stride, use_bias=False)(x))
        return nn.relu(x + normalized(y))


class ResNet(nn.Module):
    """A ResNet of bottleneck blocks with the stem for large images."""

    depths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (batch, height, width, channels) -> logits of two classes."""
        x = nn.Conv(64, (7, 7), 2, 3, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                x = Bottleneck(64 * 2**stage, 2 if stage and not block else 1)(x)
        return nn.Dense(2)(x.mean((1, 2)))


def initializing(library: str, name: str) -> Callable[[Initializer], Any]:
    """Returns a call that initializes a model of a library, which is built beforehand."""
    if library == "torch":
        import torch
        import torchvision

        from medinit_jax.interop.torch import initialize

        network = torchvision.models.get_model(name, weights=None, num_classes=2)
        example = torch.zeros(2, 3, SIZE, SIZE)
        return lambda initializer: initialize(network, example, initializer, quiet=True)
    image = jax.ShapeDtypeStruct((2, SIZE, SIZE, 3), jnp.float32)
    if library == "zoo":
        from medinit_jax.models import zoo

        model = zoo.build(name, 2, (SIZE, SIZE, 3))
    else:
        model = ResNet(DEPTHS[name])
    return lambda initializer: jax.block_until_ready(
        medinit_jax.initialize(model, image, initializer, quiet=True)
    )


def main(model: str, folder: str) -> None:
    """Measures one model, such as "linen_resnet50", with the initializer of a folder."""
    library, name = model.split("_")
    call = initializing(library, name)
    initializer = medinit_jax.load(folder)
    times = {"import_s": time.perf_counter() - STARTED}
    for part in ("first_s", "again_s"):
        started = time.perf_counter()
        call(initializer)
        times[part] = time.perf_counter() - started
    print(json.dumps(times))


if __name__ == "__main__":
    main(*sys.argv[1:])
