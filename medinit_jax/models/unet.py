"""U-Nets for segmentation as programs: the classic one, and on any convolutional encoder.

Source: Ronneberger et al., U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI
2015; convolutions keep the size here, as is usual since, so that logits are as large as images.
"""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import Block, BlockBuilder, Program, ProgramBuilder, check_norm
from medinit_jax.core.errors import UsageError
from medinit_jax.models.encoder import ENCODER, append_encoder

UPS = ("conv_t", "bilinear", "nearest")
# Channels of the decoder's steps on an encoder, the coarsest first.
WIDTHS = (256, 128, 64, 32, 16)


@dataclasses.dataclass(frozen=True)
class Style:
    """What differs between published forms.

    Attributes:
        up: How a step doubles the size: one of `UPS`.
        aligned: Whether bilinear steps keep the corners in place, and halve the channels after.
        bias: Whether convolutions before a norm have a bias.
        image: Whether the last step on an encoder reads the image beside the map.
    """

    up: str
    aligned: bool = False
    bias: bool = False
    image: bool = False


CLASSIC, ON_ENCODER = Style("conv_t"), Style("bilinear")
# "swcl": as SWCL's authors have it, on an encoder or without.
SWCL = Style("bilinear", aligned=True, bias=True, image=True)
STYLES = {"": None, "swcl": SWCL}


def unet(
    encoder: Program | None = None,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 2,
    norm: str = "bn",
    width: int = 64,
    decoder: str | Style = "",
    levels: int = 4,
) -> Program:
    """Returns the program of a U-Net; its logits are (batch, height, width, classes).

    Modules of the encoder are named "encoder.…", with torchvision's names for a ResNet.

    Args:
        encoder: A classifier for images of the same shape, whose head is left out; None: the
            classic encoder.
        input_shape: (height, width, channels) of one image.
        num_classes: Classes of a pixel.
        norm: Of decoder and classic encoder, one of `program.NORMS`.
        width: Channels of the classic U-Net at full size; every level below has twice as many.
        decoder: A key of `STYLES`, or a style.
        levels: How often the classic U-Net halves the image.

    Raises:
        UsageError: If there is no such norm, width, decoder or way up, or the image cannot be
            halved as often as needed.
    """
    check_norm(norm)
    style = _style(decoder, encoder is not None)
    if width < 1 or (encoder and width != 64):
        raise UsageError(f"width={width}: at least 1, and only for the U-Net without an encoder")
    widths = WIDTHS if encoder else tuple(width * 2**level for level in reversed(range(levels)))
    if style.up == "conv_t" and any(side % 2 ** len(widths) for side in input_shape[:2]):
        raise UsageError(
            f"this U-Net halves images {len(widths)} times, so their height and width are "
            f"multiples of {2 ** len(widths)}, not {input_shape[:2]}; a Style with up='bilinear' "
            "takes any size"
        )
    build = ProgramBuilder(input_shape)
    if encoder:
        maps = append_encoder(build, encoder)
        maps = [0, *maps] if style.image else maps
        if style.aligned:
            deepest = build.shape(maps[-1])[-1]
            widths = tuple(deepest // 2 ** (i + 1) for i in range(len(maps) - 1))
    else:
        maps = _classic_encoder(build, (*widths, 2 * widths[0]), norm, style.bias)
    value = maps.pop()
    for index, features in enumerate(widths):
        # Above an encoder's first map, at full size, there is nothing to concatenate.
        inputs = (value, maps.pop()) if maps else (value,)
        size = build.shape(inputs[1])[:2] if len(inputs) == 2 else input_shape[:2]
        block = _decoder_step(features, style, build.shape(value)[-1], size, norm, len(inputs))
        value = build(block, inputs, f"decoder.{index}")
        if size == tuple(input_shape[:2]):
            break
    b = BlockBuilder(1)
    b("dense", 0, name="head", features=num_classes, bias=True)
    build(b.build(), (value,))
    return build.build()


def _style(decoder: str | Style, on_encoder: bool) -> Style:
    if isinstance(decoder, str):
        if decoder not in STYLES:
            raise UsageError(f"no decoder {decoder!r}: choose from {', '.join(map(repr, STYLES))}")
        return STYLES[decoder] or (ON_ENCODER if on_encoder else CLASSIC)
    if decoder.up not in UPS:
        raise UsageError(f"no up {decoder.up!r}: choose from {', '.join(UPS)}")
    return decoder


def _classic_encoder(
    build: ProgramBuilder, widths: tuple[int, ...], norm: str, bias: bool
) -> list[int]:
    """Appends two convolutions per width, sorted, with max pooling in between."""
    maps = [0]
    for level, features in enumerate(sorted(widths)):
        b = BlockBuilder(1)
        y = b("max_pool", 0, kernel=(2, 2), stride=(2, 2)) if level else 0
        _two_convs(b, y, features, norm, bias)
        maps.append(build(b.build(), (maps[-1],), f"{ENCODER}.{level}"))
    return maps[1:]


def _decoder_step(
    features: int, style: Style, channels: int, size: tuple[int, ...], norm: str, arity: int
) -> Block:
    b = BlockBuilder(arity)
    if style.up == "conv_t":
        y = b("conv_t", 0, name="up", features=features, kernel=(2, 2), stride=(2, 2), bias=True)
    else:
        y = b(style.up, 0, size=size, aligned=style.aligned)
        if style.aligned:
            y = b.conv(y, "up", channels // 2, bias=True)
    if arity == 2:
        y = b("concat", 1, y)
    _two_convs(b, y, features, norm, style.bias)
    return b.build()


def _two_convs(b: BlockBuilder, x: int, features: int, norm: str, bias: bool) -> None:
    for number in (1, 2):
        x = b.conv(x, f"conv{number}", features, 3, bias=bias or norm == "none")
        x = b("relu", b.norm(x, norm, f"norm{number}", features))
