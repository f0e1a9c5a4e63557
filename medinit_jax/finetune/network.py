"""From the `model` part of a configuration to a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.models import zoo
from medinit_jax.models.network import Network

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
OPTIONS = ("stem", "width", "norm", "output_stride", "last_stride", "decoder")


def make_network(
    model: Mapping[str, Any],
    size: int,
    logits: int,
    kind: str,
    dtype: str = "float32",
    frozen: tuple[str, ...] = (),
) -> Network:
    """Returns the network that `config.model` describes.

    Args:
        model: `name`, a network of `models.zoo`, and what is neither 0 nor "" of `OPTIONS`.
        size: Side of its RGB images in pixels.
        logits: Size of the logits, or of a pixel's.
        kind: "classification" or "segmentation".
        dtype: Compute type, a key of `DTYPES`.
        frozen: Prefixes of modules whose batch statistics stay as they are, see `Network`.

    Raises:
        UsageError: If there is no such network or option, or it is not of this kind.
    """
    if dtype not in DTYPES:
        raise UsageError(f"config.train.dtype={dtype!r}; set it to one of {', '.join(DTYPES)}.")
    name = str(model["name"])
    options = {key: model[key] for key in OPTIONS if model.get(key)}
    try:
        network = zoo.build(name, logits, (size, size, 3), **options)
    except TypeError as error:
        raise UsageError(
            f"The network {name} does not take all of config.model's {', '.join(options)} "
            f"({error}); set what it does not know to 0 or ''."
        ) from error
    if (kind == "segmentation") != is_segmentation(network.program):
        wanted = "unet or deeplabv3plus_resnet18" if kind == "segmentation" else "resnet18"
        raise UsageError(
            f"config.model.name={name!r} is no network for {kind}; name another one, such as "
            f"{wanted}."
        )
    return Network(network.program, DTYPES[dtype], frozen)


def is_segmentation(program: Program) -> bool:
    """Tells whether the logits are those of pixels."""
    return len(program.shapes[-1]) == 3
