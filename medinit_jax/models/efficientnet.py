"""EfficientNets as programs, with torchvision's module names.

Source: Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML
2019.
"""

from __future__ import annotations

import dataclasses
import math

from medinit_jax.arch.program import BlockBuilder, Program, ProgramBuilder, check_norm
from medinit_jax.models.mobilenet import Row, Style, conv_block, inverted_residual
from medinit_jax.models.variants import divisible, find_variant, is_imagenet


@dataclasses.dataclass(frozen=True)
class Stage:
    """Equal inverted residuals, of which the first strides.

    Attributes:
        expansion: Depthwise channels per input channel.
        kernel: Size of the depthwise kernel.
        stride: Stride of the first block.
        features: Output channels.
        depth: Blocks.
    """

    expansion: int
    kernel: int
    stride: int
    features: int
    depth: int


@dataclasses.dataclass(frozen=True)
class Variant:
    """A member of the family.

    Attributes:
        stem: Channels of the first convolution.
        stages: The stages.
        last: Channels of the last convolution.
        width: Factor of all channels.
        depth: Factor of the number of blocks.
        squeeze: Hidden channels of a gate, as a share of the block's input; 0 = no gates.
        norm: One of `program.NORMS`.
    """

    stem: int
    stages: tuple[Stage, ...]
    last: int
    width: float = 1.0
    depth: float = 1.0
    squeeze: float = 0.25
    norm: str = "bn"


_B0_STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
VARIANTS = {"efficientnet_b0": Variant(32, _B0_STAGES, 1280)}
ACTIVATION = "silu"


def efficientnet(
    variant: str | Variant,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
    stem: str = "imagenet",
) -> Program:
    """Returns the program of an EfficientNet; every inverted residual is one call.

    Args:
        variant: A key of `VARIANTS`, or a member of the family.
        input_shape: (height, width, channels) of one image.
        num_classes: Size of the logits.
        stem: "imagenet" (stride 2) or "small" (stride 1).

    Raises:
        UsageError: If there is no such network, stem or norm.
    """
    member = find_variant(VARIANTS, variant, "EfficientNet")
    stride = 2 if is_imagenet(stem) else 1
    check_norm(member.norm)
    style = Style(gate=(ACTIVATION, "sigmoid"), norm=member.norm)
    build = ProgramBuilder(input_shape)
    channels = divisible(member.stem * member.width, 8)
    value = build(conv_block(channels, 3, stride, ACTIVATION, style), (0,), "features.0")
    for number, stage in enumerate(member.stages, start=1):
        features = divisible(stage.features * member.width, 8)
        for index in range(math.ceil(stage.depth * member.depth)):
            row = Row(
                kernel=stage.kernel,
                expanded=divisible(stage.expansion * channels, 8),
                features=features,
                stride=1 if index else stage.stride,
                activation=ACTIVATION,
                squeezed=int(channels * member.squeeze),
            )
            block = inverted_residual(channels, row, style)
            value = build(block, (value,), f"features.{number}.{index}")
            channels = features
    last = conv_block(divisible(member.last * member.width, 8), 1, 1, ACTIVATION, style)
    value = build(last, (value,), f"features.{len(member.stages) + 1}")
    b = BlockBuilder(1)
    b("dense", b("global_pool", 0), name="1", features=num_classes, bias=True)
    build(b.build(), (value,), "classifier")
    return build.build()
