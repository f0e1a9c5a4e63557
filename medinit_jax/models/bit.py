"""Big Transfer (BiT) ResNets as programs, with timm's module names.

Residual blocks with norm and ReLU before each convolution, group norm, and kernels standardized to
mean 0 and variance 1 per output channel.

Source: Kolesnikov et al., Big Transfer (BiT), ECCV 2020; Qiao et al., Weight Standardization, 2019.
"""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import Block, BlockBuilder, Program, ProgramBuilder, check_norm
from medinit_jax.core.errors import UsageError
from medinit_jax.models.variants import check_last_stride, find_variant, is_imagenet


@dataclasses.dataclass(frozen=True)
class Variant:
    """A member of the family.

    Attributes:
        depths: Blocks of each stage.
        width: Channels of the stem; stage i ends in 4 * width * 2**i.
        norm: One of `program.NORMS`, but not "none".
        standardized: Whether kernels are standardized.
    """

    depths: tuple[int, ...]
    width: int = 64
    norm: str = "gn"
    standardized: bool = True


VARIANTS = {"resnetv2_50x1_bit": Variant((3, 4, 6, 3))}
EXPANSION = 4
KERNEL_EPSILON = 1e-8


def bit(
    variant: str | Variant,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
    stem: str = "imagenet",
    last_stride: int = 2,
) -> Program:
    """Returns the program of a BiT ResNet; every residual block is one call.

    Args:
        variant: A key of `VARIANTS`, or a member of the family.
        input_shape: (height, width, channels) of one image.
        num_classes: Size of the logits.
        stem: "imagenet" (7x7 of stride 2, max pooling) or "small" (3x3 of stride 1, no pooling).
        last_stride: Stride of the last stage; 1 doubles the last map, as SWCL's labeler has it.

    Raises:
        UsageError: If there is no such network, stem, norm or stride.
    """
    member = find_variant(VARIANTS, variant, "BiT ResNet")
    check_last_stride(last_stride)
    imagenet = is_imagenet(stem)
    check_norm(member.norm)
    if member.norm == "none":
        raise UsageError("a BiT ResNet needs a norm")
    build = ProgramBuilder(input_shape)
    value = build(_stem(member, imagenet), (0,), "stem")
    channels = member.width
    last = len(member.depths) - 1
    for stage, depth in enumerate(member.depths):
        features = member.width * 2**stage * EXPANSION
        for index in range(depth):
            stride = 1 if index or not stage else last_stride if stage == last else 2
            block = _residual(member, channels, features, stride, index == 0)
            value = build(block, (value,), f"stages.{stage}.blocks.{index}")
            channels = features
    b = BlockBuilder(1)
    b("relu", b.norm(0, member.norm, "norm", channels))
    value = build(b.build(), (value,))
    b = BlockBuilder(1)
    b("dense", b("global_pool", 0), name="head.fc", features=num_classes, bias=True)
    build(b.build(), (value,))
    return build.build()


def _conv(b: BlockBuilder, x: int, name: str, features: int, size: int, member: Variant, stride=1):
    options = {"standardized": True, "epsilon": KERNEL_EPSILON} if member.standardized else {}
    return b.conv(x, name, features, size, stride=stride, **options)


def _stem(member: Variant, imagenet: bool) -> Block:
    b = BlockBuilder(1)
    size, stride = (7, 2) if imagenet else (3, 1)
    y = _conv(b, 0, "conv", member.width, size, member, stride)
    if imagenet:
        # The border competes as zero, although the map has negative values.
        b("max_pool", b("pad", y, padding=(1, 1)), kernel=(3, 3), stride=(2, 2))
    return b.build()


def _residual(member: Variant, channels: int, features: int, stride: int, project: bool) -> Block:
    b = BlockBuilder(1)
    active = b("relu", b.norm(0, member.norm, "norm1", channels))
    skip = _conv(b, active, "downsample.conv", features, 1, member, stride) if project else 0
    narrow = features // EXPANSION
    y = _conv(b, active, "conv1", narrow, 1, member)
    y = b("relu", b.norm(y, member.norm, "norm2", narrow))
    y = _conv(b, y, "conv2", narrow, 3, member, stride)
    y = b("relu", b.norm(y, member.norm, "norm3", narrow))
    y = _conv(b, y, "conv3", features, 1, member)
    b("add", y, skip)
    return b.build()
