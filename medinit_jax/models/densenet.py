"""DenseNets as programs, with torchvision's module names.

Source: Huang et al., Densely Connected Convolutional Networks, CVPR 2017.
"""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import Block, BlockBuilder, Program, ProgramBuilder, check_norm
from medinit_jax.core.errors import UsageError
from medinit_jax.models.variants import find_variant, is_imagenet


@dataclasses.dataclass(frozen=True)
class Variant:
    """A member of the family.

    Attributes:
        depths: Layers of each dense block.
        growth: Channels that a layer adds.
        stem: Channels of the first convolution.
        bottleneck: Channels of a layer's 1x1 convolution, per channel that it adds.
    """

    depths: tuple[int, ...]
    growth: int = 32
    stem: int = 64
    bottleneck: int = 4


VARIANTS = {"densenet121": Variant((6, 12, 24, 16))}


def densenet(
    variant: str | Variant,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
    stem: str = "imagenet",
    norm: str = "bn",
) -> Program:
    """Returns the program of a DenseNet; every layer of a dense block is one call.

    Args:
        variant: A key of `VARIANTS`, or a member of the family.
        input_shape: (height, width, channels) of one image.
        num_classes: Size of the logits.
        stem: "imagenet" (7x7 of stride 2, max pooling) or "small" (3x3 of stride 1, no pooling).
        norm: One of `program.NORMS`, but not "none", for a norm precedes each convolution.

    Raises:
        UsageError: If there is no such network, stem or norm.
    """
    member = find_variant(VARIANTS, variant, "DenseNet")
    imagenet = is_imagenet(stem)
    check_norm(norm)
    if norm == "none":
        raise UsageError("a DenseNet needs a norm")
    build = ProgramBuilder(input_shape)
    value = build(_stem(member.stem, imagenet, norm), (0,), "features")
    channels = member.stem
    for stage, depth in enumerate(member.depths, start=1):
        if stage > 1:
            channels //= 2
            block = _transition(2 * channels, channels, norm)
            value = build(block, (value,), f"features.transition{stage - 1}")
        for index in range(1, depth + 1):
            block = _layer(channels, member.growth, member.bottleneck, norm)
            value = build(block, (value,), f"features.denseblock{stage}.denselayer{index}")
            channels += member.growth
    b = BlockBuilder(1)
    b("relu", b.norm(0, norm, "norm5", channels))
    value = build(b.build(), (value,), "features")
    b = BlockBuilder(1)
    b("dense", b("global_pool", 0), name="classifier", features=num_classes, bias=True)
    build(b.build(), (value,))
    return build.build()


def _stem(features: int, imagenet: bool, norm: str) -> Block:
    b = BlockBuilder(1)
    size, stride = (7, 2) if imagenet else (3, 1)
    y = b("relu", b.conv_norm(0, ("conv0", "norm0"), features, size, norm, stride=stride))
    if imagenet:
        b("max_pool", y, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    return b.build()


def _layer(channels: int, growth: int, bottleneck: int, norm: str) -> Block:
    b = BlockBuilder(1)
    y = b("relu", b.norm(0, norm, "norm1", channels))
    y = b.conv(y, "conv1", bottleneck * growth)
    y = b("relu", b.norm(y, norm, "norm2", bottleneck * growth))
    b("concat", 0, b.conv(y, "conv2", growth, 3))
    return b.build()


def _transition(channels: int, features: int, norm: str) -> Block:
    b = BlockBuilder(1)
    y = b.conv(b("relu", b.norm(0, norm, "norm", channels)), "conv", features)
    b("avg_pool", y, kernel=(2, 2), stride=(2, 2))
    return b.build()
