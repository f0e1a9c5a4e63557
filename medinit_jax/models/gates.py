"""Squeeze-and-excitation: every channel is weighted by a function of the means of all.

Source: Hu et al., Squeeze-and-Excitation Networks, CVPR 2018.
"""

from __future__ import annotations

from medinit_jax.arch.program import BlockBuilder

# Activations between the two layers and after them.
Activations = tuple[str, str]


def squeeze_excite(
    b: BlockBuilder,
    x: int,
    name: str,
    channels: int,
    squeezed: int,
    activations: Activations = ("relu", "sigmoid"),
) -> int:
    """Appends a gate to a block and returns the weighted value.

    Args:
        b: The block.
        x: Value number of a map of `channels` channels.
        name: Prefix of its layers "fc1" and "fc2".
        channels: Channels of `x`.
        squeezed: Channels between the layers.
        activations: After the first layer and after the second.
    """
    y = b("dense", b("squeeze", x), name=f"{name}.fc1", features=squeezed, bias=True)
    y = b("dense", b(activations[0], y), name=f"{name}.fc2", features=channels, bias=True)
    return b("gate", x, b(activations[1], y))
