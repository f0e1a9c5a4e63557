"""Names of tensors in the archives that the authors of Big Transfer (BiT) publish.

Source: Kolesnikov et al., Big Transfer (BiT), ECCV 2020; its files BiT-M-R50x1.npz and the like.
"""

from __future__ import annotations

import re

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.interop.places import Names

FINAL_NORM = "norm"
_LEAVES = {"kernel": "kernel", "scale": "gamma", "bias": "beta"}
# Of a residual block: norm and convolution number 1 lie in its part a, and so on.
_PARTS = {"1": "a", "2": "b", "3": "c"}
_HEAD = "head.fc"


def bit_names(name: str, family: str, program: Program, heads: object) -> Names:
    """Returns the archive's names for a BiT network, or for the encoder that is one.

    Args:
        name: A network of the zoo.
        family: Name of its builder in `models`.
        program: The network.
        heads: An archive has one.

    Raises:
        UsageError: The network is no BiT network.
    """
    del heads
    if family != "bit":
        raise UsageError(f"{name} is no BiT network")
    return Names(
        str,
        _spelled,
        convs=frozenset((_HEAD,)),
        native=True,
        counters=False,
        encoder_only=len(program.shapes[-1]) == 3,
    )


def _spelled(module: str, leaf: str) -> str:
    found = re.fullmatch(
        r"stages\.(\d+)\.blocks\.(\d+)\.(?:(norm|conv)([123])|downsample\.conv)", module
    )
    if module == _HEAD:
        return f"resnet/head/conv2d/{leaf}"
    if module == "stem.conv":
        place = "root_block/standardized_conv2d"
    elif module == FINAL_NORM:
        place = "group_norm"
    elif found:
        stage, block, kind, number = found.groups()
        layer = "group_norm" if kind == "norm" else "standardized_conv2d"
        part = _PARTS[number] if number else "a/proj"
        place = f"block{int(stage) + 1}/unit{int(block) + 1:02d}/{part}/{layer}"
    else:
        raise UsageError(f"The archives of BiT's authors have no place for {module!r}.")
    return f"resnet/{place}/{_LEAVES[leaf]}"
