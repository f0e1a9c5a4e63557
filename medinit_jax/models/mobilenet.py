"""MobileNetV2 and MobileNetV3 as programs, with torchvision's module names.

Source: Sandler et al., MobileNetV2, CVPR 2018; Howard et al., Searching for MobileNetV3, ICCV 2019.
"""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import (
    EPSILON,
    Block,
    BlockBuilder,
    Program,
    ProgramBuilder,
    check_norm,
)
from medinit_jax.models.gates import Activations, squeeze_excite
from medinit_jax.models.variants import divisible, find_variant, is_imagenet


@dataclasses.dataclass(frozen=True)
class Row:
    """An inverted residual: 1x1 expansion, depthwise convolution, gate, 1x1 projection.

    Attributes:
        kernel: Size of the depthwise kernel.
        expanded: Its channels; no expansion where the input has as many.
        features: Output channels.
        stride: Stride of the depthwise convolution; 1 with unchanged channels adds the input.
        activation: Step kind of the activations.
        squeezed: Hidden channels of the gate, 0 = no gate.
    """

    kernel: int
    expanded: int
    features: int
    stride: int
    activation: str
    squeezed: int = 0


@dataclasses.dataclass(frozen=True)
class Style:
    """What all inverted residuals of a network share.

    Attributes:
        body: Module that holds their layers.
        nested: Whether the projection and its norm are a module of their own.
        gate: Activations of the gate.
        norm: One of `program.NORMS`.
        epsilon: Of the norms.
    """

    body: str = "block"
    nested: bool = True
    gate: Activations = ("relu", "sigmoid")
    norm: str = "bn"
    epsilon: float = EPSILON


@dataclasses.dataclass(frozen=True)
class Variant:
    """A member of the family.

    Attributes:
        stem: Channels of the first convolution.
        rows: Inverted residuals.
        last: Channels of the last convolution.
        activation: Step kind of the activations of stem, last convolution and head.
        style: What the inverted residuals share.
        hidden: Width of the head's hidden layer, 0 = none.
    """

    stem: int
    rows: tuple[Row, ...]
    last: int
    activation: str
    style: Style
    hidden: int = 0


def expanded_rows(channels: int, stages: tuple[tuple[int, int, int, int], ...]) -> tuple[Row, ...]:
    """Returns the rows of stages given as (expansion, features, blocks, stride), as in MobileNetV2.

    Args:
        channels: Channels of the stem.
        stages: The paper's table 2.
    """
    rows = []
    for expansion, features, depth, stride in stages:
        for index in range(depth):
            own_stride = stride if index == 0 else 1
            rows.append(Row(3, expansion * channels, features, own_stride, "relu6"))
            channels = features
    return tuple(rows)


def _gated(kernel: int, expanded: int, features: int, stride: int, activation: str) -> Row:
    return Row(kernel, expanded, features, stride, activation, divisible(expanded / 4, 8))


_V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_V3_LARGE_ROWS = (
    Row(3, 16, 16, 1, "relu"),
    Row(3, 64, 24, 2, "relu"),
    Row(3, 72, 24, 1, "relu"),
    _gated(5, 72, 40, 2, "relu"),
    _gated(5, 120, 40, 1, "relu"),
    _gated(5, 120, 40, 1, "relu"),
    Row(3, 240, 80, 2, "hard_swish"),
    Row(3, 200, 80, 1, "hard_swish"),
    Row(3, 184, 80, 1, "hard_swish"),
    Row(3, 184, 80, 1, "hard_swish"),
    _gated(3, 480, 112, 1, "hard_swish"),
    _gated(3, 672, 112, 1, "hard_swish"),
    _gated(5, 672, 160, 2, "hard_swish"),
    _gated(5, 960, 160, 1, "hard_swish"),
    _gated(5, 960, 160, 1, "hard_swish"),
)
V2_STYLE = Style(body="conv", nested=False)
V3_STYLE = Style(gate=("relu", "hard_sigmoid"), epsilon=1e-3)
VARIANTS = {
    "mobilenet_v2": Variant(32, expanded_rows(32, _V2_STAGES), 1280, "relu6", V2_STYLE),
    "mobilenet_v3_large": Variant(16, _V3_LARGE_ROWS, 960, "hard_swish", V3_STYLE, 1280),
}


def mobilenet(
    variant: str | Variant,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
    stem: str = "imagenet",
) -> Program:
    """Returns the program of a MobileNet; every inverted residual is one call.

    Args:
        variant: A key of `VARIANTS`, or a member of the family.
        input_shape: (height, width, channels) of one image.
        num_classes: Size of the logits.
        stem: "imagenet" (stride 2) or "small" (stride 1).

    Raises:
        UsageError: If there is no such network, stem or norm.
    """
    member = find_variant(VARIANTS, variant, "MobileNet")
    stride = 2 if is_imagenet(stem) else 1
    style = member.style
    check_norm(style.norm)
    build = ProgramBuilder(input_shape)
    value = build(conv_block(member.stem, 3, stride, member.activation, style), (0,), "features.0")
    channels = member.stem
    for number, row in enumerate(member.rows, start=1):
        value = build(inverted_residual(channels, row, style), (value,), f"features.{number}")
        channels = row.features
    last = conv_block(member.last, 1, 1, member.activation, style)
    value = build(last, (value,), f"features.{len(member.rows) + 1}")
    b = BlockBuilder(1)
    y = b("global_pool", 0)
    if member.hidden:
        y = b("dense", y, name="0", features=member.hidden, bias=True)
        y = b(member.activation, y)
    b("dense", y, name="3" if member.hidden else "1", features=num_classes, bias=True)
    build(b.build(), (value,), "classifier")
    return build.build()


def conv_block(features: int, size: int, stride: int, activation: str, style: Style) -> Block:
    """Returns a convolution with norm and activation."""
    b = BlockBuilder(1)
    y = b.conv_norm(0, ("0", "1"), features, size, style.norm, style.epsilon, stride=stride)
    b(activation, y)
    return b.build()


def inverted_residual(channels: int, row: Row, style: Style) -> Block:
    """Returns the block of a row.

    Args:
        channels: Input channels.
        row: The row.
        style: What all rows of the network share.
    """
    b = BlockBuilder(1)
    y, number = 0, 0
    layers = [(row.kernel, row.stride, row.expanded)]
    if row.expanded != channels:
        layers.insert(0, (1, 1, 1))
    for size, stride, groups in layers:
        names = (f"{style.body}.{number}.0", f"{style.body}.{number}.1")
        y = b.conv_norm(
            y, names, row.expanded, size, style.norm, style.epsilon, stride=stride, groups=groups
        )
        y = b(row.activation, y)
        number += 1
    if row.squeezed:
        name = f"{style.body}.{number}"
        y = squeeze_excite(b, y, name, row.expanded, row.squeezed, style.gate)
        number += 1
    last = f"{style.body}.{number}"
    names = (f"{last}.0", f"{last}.1") if style.nested else (last, f"{style.body}.{number + 1}")
    y = b.conv_norm(y, names, row.features, 1, style.norm, style.epsilon)
    if row.stride == 1 and row.features == channels:
        b("add", y, 0)
    return b.build()
