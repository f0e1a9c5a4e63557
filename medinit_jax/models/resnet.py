"""ResNet-18, -34, -50 and -101 as programs, with torchvision's module names.

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016; in bottlenecks the 3x3
convolution strides, as in torchvision.
"""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import Block, BlockBuilder, Program, ProgramBuilder
from medinit_jax.core.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Variant:
    """Depth of each of the four stages, and whether its blocks are bottlenecks."""

    depths: tuple[int, int, int, int]
    bottleneck: bool


VARIANTS = {
    "resnet18": Variant((2, 2, 2, 2), False),
    "resnet34": Variant((3, 4, 6, 3), False),
    "resnet50": Variant((3, 4, 6, 3), True),
    "resnet101": Variant((3, 4, 23, 3), True),
}
STEMS = ("imagenet", "small")
EXPANSION = 4


def resnet(
    name: str,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
    stem: str = "imagenet",
    width: int = 64,
) -> Program:
    """Returns the program of a ResNet; every residual block is one call.

    Args:
        name: A key of `VARIANTS`.
        input_shape: (height, width, channels) of one image.
        num_classes: Size of the logits.
        stem: "imagenet" (7x7 of stride 2, max pooling) or "small" (3x3 of stride 1, no pooling).
        width: Channels of the first stage, 64 in the paper.

    Raises:
        UsageError: If there is no such network or stem.
    """
    if name not in VARIANTS:
        raise UsageError(f"no ResNet {name!r}: choose from {', '.join(VARIANTS)}")
    if stem not in STEMS:
        raise UsageError(f"no stem {stem!r} for {name}: choose from {', '.join(STEMS)}")
    variant = VARIANTS[name]
    make = _bottleneck if variant.bottleneck else _basic
    expansion = EXPANSION if variant.bottleneck else 1
    build = ProgramBuilder(input_shape)
    value = build(_stem(width, stem), (0,))
    channels = width
    for stage, depth in enumerate(variant.depths):
        features = width * 2**stage
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            project = stride > 1 or channels != features * expansion
            block = make(features, stride, project)
            value = build(block, (value,), f"layer{stage + 1}.{index}")
            channels = features * expansion
    build(_head(num_classes), (value,))
    return build.build()


def _stem(width: int, stem: str) -> Block:
    b = BlockBuilder(1)
    imagenet = stem == "imagenet"
    y = b.conv(0, "conv1", width, 7 if imagenet else 3, stride=2 if imagenet else 1)
    y = b("relu", b("batch_norm", y, name="bn1"))
    if imagenet:
        b("max_pool", y, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    return b.build()


def _basic(features: int, stride: int, project: bool) -> Block:
    return _residual(((features, 3, stride), (features, 3, 1)), stride, project)


def _bottleneck(features: int, stride: int, project: bool) -> Block:
    wide = features * EXPANSION
    return _residual(((features, 1, 1), (features, 3, stride), (wide, 1, 1)), stride, project)


def _residual(convs: tuple[tuple[int, int, int], ...], stride: int, project: bool) -> Block:
    """Convolutions given as (features, kernel size, stride), each followed by its norm."""
    b = BlockBuilder(1)
    y = 0
    for number, (features, size, conv_stride) in enumerate(convs, start=1):
        y = b("relu", y) if number > 1 else y
        y = b.conv(y, f"conv{number}", features, size, stride=conv_stride)
        y = b("batch_norm", y, name=f"bn{number}")
    skip = 0
    if project:
        skip = b.conv(0, "downsample.0", convs[-1][0], 1, stride=stride)
        skip = b("batch_norm", skip, name="downsample.1")
    b("relu", b("add", y, skip))
    return b.build()


def _head(num_classes: int) -> Block:
    b = BlockBuilder(1)
    y = b("global_pool", 0)
    b("dense", y, name="fc", features=num_classes, bias=True)
    return b.build()
