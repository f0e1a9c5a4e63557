"""DeepLabv3+ for segmentation as a program, on any convolutional encoder.

Source: Chen et al., Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation, ECCV 2018, with plain instead of separable convolutions (its table 4); the pyramid's
modules are named as in torchvision's DeepLabv3.

SWCL's authors leave out the norm of the pooled branch whenever a batch holds one image, even in
evaluation; here it is always applied, in evaluation with its running statistics, so that an image's
logits do not depend on its batch.
"""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import Block, BlockBuilder, Program, ProgramBuilder, check_norm
from medinit_jax.core.errors import UsageError
from medinit_jax.models.encoder import append_encoder

# Dilations of the pyramid at output stride 16; twice these at 8.
RATES = (6, 12, 18)


@dataclasses.dataclass(frozen=True)
class Style:
    """What differs between published forms.

    Attributes:
        convs: 3x3 convolutions after the encoder's small map came in.
        dropout: Share of the pyramid's output that training leaves out.
        low_first: Whether the channels of the encoder's large map come first.
    """

    convs: int = 2
    dropout: float = 0.0
    low_first: bool = False


# "swcl": as SWCL's authors have it.
STYLES = {"": Style(), "swcl": Style(1, 0.1, True)}


def deeplab(
    encoder: Program,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 2,
    output_stride: int = 16,
    norm: str = "bn",
    decoder: str = "",
    features: int = 256,
    low_features: int = 48,
) -> Program:
    """Returns the program of a DeepLabv3+; its logits are (batch, height, width, classes).

    Args:
        encoder: A classifier for images of the same shape, whose head is left out.
        input_shape: (height, width, channels) of one image.
        num_classes: Classes of a pixel.
        output_stride: How much smaller than the image the encoder's last map is: 8, 16 or 32.
        norm: Of pyramid and decoder, one of `program.NORMS`.
        decoder: A key of `STYLES`.
        features: Channels of pyramid and decoder.
        low_features: Channels that the decoder keeps of the encoder's map at a quarter of the size.

    Raises:
        UsageError: If there is no such output stride, norm or decoder, or the encoder does not fit.
    """
    check_norm(norm)
    if decoder not in STYLES:
        raise UsageError(f"no decoder {decoder!r}: choose from {', '.join(map(repr, STYLES))}")
    style = STYLES[decoder]
    build = ProgramBuilder(input_shape)
    maps = append_encoder(build, encoder, output_stride)
    quarter = tuple(-(-side // 4) for side in input_shape[:2])
    low = next((value for value in maps if build.shape(value)[:2] == quarter), None)
    if low is None:
        raise UsageError("this encoder has no map at a quarter of the image's size")
    rates = tuple(rate * 16 // output_stride for rate in RATES)
    size = build.shape(maps[-1])[:2]
    high = build(_pyramid(features, rates, size, norm, style.dropout), (maps[-1],), "aspp")
    block = _decoder(features, low_features, build.shape(low)[:2], norm, style)
    high = build(block, (high, low), "decoder")
    b = BlockBuilder(1)
    y = b("dense", 0, name="head", features=num_classes, bias=True)
    b("bilinear", y, size=input_shape[:2])
    build(b.build(), (high,))
    return build.build()


def _pyramid(
    features: int, rates: tuple[int, ...], size: tuple[int, ...], norm: str, dropout: float
) -> Block:
    b = BlockBuilder(1)
    parts = [b("relu", b.conv_norm(0, ("convs.0.0", "convs.0.1"), features, 1, norm))]
    for number, rate in enumerate(rates, start=1):
        names = (f"convs.{number}.0", f"convs.{number}.1")
        parts.append(b("relu", b.conv_norm(0, names, features, 3, norm, dilation=rate)))
    last = len(rates) + 1
    y = b("adaptive_pool", 0, size=(1, 1))
    y = b("relu", b.conv_norm(y, (f"convs.{last}.1", f"convs.{last}.2"), features, 1, norm))
    parts.append(b("bilinear", y, size=size))
    y = b.conv_norm(b("concat", *parts), ("project.0", "project.1"), features, 1, norm)
    y = b("relu", y)
    if dropout:
        b("dropout", y, rate=dropout)
    return b.build()


def _decoder(
    features: int, low_features: int, size: tuple[int, ...], norm: str, style: Style
) -> Block:
    b = BlockBuilder(2)
    y = b("bilinear", 0, size=size)
    low = b("relu", b.conv_norm(1, ("low.0", "low.1"), low_features, 1, norm))
    y = b("concat", low, y) if style.low_first else b("concat", y, low)
    for number in range(style.convs):
        names = (f"convs.{number}.0", f"convs.{number}.1")
        y = b("relu", b.conv_norm(y, names, features, 3, norm))
    return b.build()
