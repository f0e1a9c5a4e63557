"""ConvNeXt as a program, with torchvision's module names.

Source: Liu et al., A ConvNet for the 2020s, CVPR 2022.
"""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import Block, BlockBuilder, Program, ProgramBuilder
from medinit_jax.models.variants import find_variant


@dataclasses.dataclass(frozen=True)
class Variant:
    """A member of the family.

    Attributes:
        depths: Blocks of each stage.
        widths: Channels of each stage.
        patch: Size and stride of the first convolution.
        kernel: Size of the depthwise kernels.
        layer_scale: Whether a learned factor per channel, at first 1e-6, precedes each sum.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    patch: int = 4
    kernel: int = 7
    layer_scale: bool = True


VARIANTS = {"convnext_tiny": Variant((3, 3, 9, 3), (96, 192, 384, 768))}
EXPANSION = 4
EPSILON = 1e-6


def convnext(
    variant: str | Variant,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
) -> Program:
    """Returns the program of a ConvNeXt; every residual block is one call.

    Args:
        variant: A key of `VARIANTS`, or a member of the family.
        input_shape: (height, width, channels) of one image.
        num_classes: Size of the logits.

    Raises:
        UsageError: If there is no such network.
    """
    member = find_variant(VARIANTS, variant, "ConvNeXt")
    build = ProgramBuilder(input_shape)
    b = BlockBuilder(1)
    y = _patches(b, 0, "0", member.widths[0], member.patch)
    b("layer_norm", y, name="1", epsilon=EPSILON)
    value, number = build(b.build(), (0,), "features.0"), 0
    for depth, width in zip(member.depths, member.widths, strict=True):
        if number:
            b = BlockBuilder(1)
            _patches(b, b("layer_norm", 0, name="0", epsilon=EPSILON), "1", width, 2)
            value = build(b.build(), (value,), f"features.{number}")
        number += 1
        block = _residual(width, member.kernel, member.layer_scale)
        for index in range(depth):
            value = build(block, (value,), f"features.{number}.{index}")
        number += 1
    b = BlockBuilder(1)
    y = b("layer_norm", b("global_pool", 0), name="0", epsilon=EPSILON)
    b("dense", y, name="2", features=num_classes, bias=True)
    build(b.build(), (value,), "classifier")
    return build.build()


def _patches(b: BlockBuilder, x: int, name: str, features: int, size: int) -> int:
    return b.conv(x, name, features, size, stride=size, padding=(0, 0), bias=True)


def _residual(width: int, kernel: int, layer_scale: bool) -> Block:
    b = BlockBuilder(1)
    y = b.conv(0, "block.0", width, kernel, groups=width, bias=True)
    y = b("layer_norm", y, name="block.2", epsilon=EPSILON)
    y = b("dense", y, name="block.3", features=EXPANSION * width, bias=True)
    y = b("dense", b("gelu", y), name="block.5", features=width, bias=True)
    if layer_scale:
        y = b("layer_scale", y, name="layer_scale")
    b("add", y, 0)
    return b.build()
