"""U-Nets for segmentation as programs: the classic one, and with ResNet encoders.

Source: Ronneberger et al., U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI
2015; convolutions keep the size here, as is usual since, so that logits are as large as images.
"""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import Block, BlockBuilder, Program, ProgramBuilder, check_norm
from medinit_jax.core.errors import UsageError
from medinit_jax.models import resnet
from medinit_jax.models.resnet import resnet_encoder
from medinit_jax.models.variants import find_variant

# Modules of the part that sees the image first, whose parameters may come from elsewhere.
ENCODER = "encoder"
UPS = ("conv_t", "bilinear", "nearest")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A member of the family.

    Attributes:
        widths: Channels of the decoder's steps, the coarsest first. The classic encoder has the
            same ones and, at its bottom, twice the first.
        encoder: The ResNet that encodes, None for the classic encoder.
        up: How a step doubles the size: one of `UPS`.
    """

    widths: tuple[int, ...]
    encoder: resnet.Variant | None = None
    up: str = "conv_t"


_RESNET_WIDTHS = (256, 128, 64, 32, 16)
VARIANTS = {
    "unet": Variant((512, 256, 128, 64)),
    **{
        f"unet_{name}": Variant(_RESNET_WIDTHS, resnet.VARIANTS[name], "bilinear")
        for name in ("resnet18", "resnet34", "resnet50")
    },
}


def unet(
    variant: str | Variant,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 2,
    norm: str = "bn",
    width: int | None = None,
) -> Program:
    """Returns the program of a U-Net; its logits are (batch, height, width, classes).

    Modules of the encoder are named "encoder.…", with torchvision's names for a ResNet.

    Args:
        variant: A key of `VARIANTS`, or a member of the family.
        input_shape: (height, width, channels) of one image.
        num_classes: Classes of a pixel.
        norm: One of `program.NORMS`.
        width: Channels of the classic U-Net at full size, to which all others are in proportion;
            None: the variant's.

    Raises:
        UsageError: If there is no such network, norm, width or way up, or the image cannot be
            halved as often as needed.
    """
    member = find_variant(VARIANTS, variant, "U-Net")
    if width is not None:
        if member.encoder or width < 1:
            raise UsageError(f"width={width}: only the classic U-Net is made wider or narrower")
        widths = tuple(features * width // member.widths[-1] for features in member.widths)
        member = dataclasses.replace(member, widths=widths)
    check_norm(norm)
    if member.up not in UPS:
        raise UsageError(f"no up {member.up!r}: choose from {', '.join(UPS)}")
    steps = len(member.widths)
    if member.up == "conv_t" and (input_shape[0] % 2**steps or input_shape[1] % 2**steps):
        raise UsageError(
            f"this U-Net halves images {steps} times, so their height and width are multiples of "
            f"{2**steps}, not {input_shape[:2]}; a Variant with up='bilinear' takes any size"
        )
    build = ProgramBuilder(input_shape)
    if member.encoder:
        maps = resnet_encoder(build, member.encoder, ENCODER, norm)
    else:
        maps = _classic_encoder(build, (*member.widths, 2 * member.widths[0]), norm)
    value = maps.pop()
    for index, features in enumerate(member.widths):
        # Above a ResNet's stem, at full size, there is nothing to concatenate.
        inputs = (value, maps.pop()) if maps else (value,)
        size = build.shape(inputs[1])[:2] if len(inputs) == 2 else input_shape[:2]
        block = _decoder_step(features, member.up, size, norm, arity=len(inputs))
        value = build(block, inputs, f"decoder.{index}")
    b = BlockBuilder(1)
    b("dense", 0, name="head", features=num_classes, bias=True)
    build(b.build(), (value,))
    return build.build()


def _classic_encoder(build: ProgramBuilder, widths: tuple[int, ...], norm: str) -> list[int]:
    """Appends two convolutions per width, sorted, with max pooling in between."""
    maps = [0]
    for level, features in enumerate(sorted(widths)):
        b = BlockBuilder(1)
        y = b("max_pool", 0, kernel=(2, 2), stride=(2, 2)) if level else 0
        _two_convs(b, y, features, norm)
        maps.append(build(b.build(), (maps[-1],), f"{ENCODER}.{level}"))
    return maps[1:]


def _decoder_step(features: int, up: str, size: tuple[int, ...], norm: str, arity: int) -> Block:
    b = BlockBuilder(arity)
    if up == "conv_t":
        y = b("conv_t", 0, name="up", features=features, kernel=(2, 2), stride=(2, 2), bias=True)
    else:
        y = b(up, 0, size=size)
    if arity == 2:
        y = b("concat", 1, y)
    _two_convs(b, y, features, norm)
    return b.build()


def _two_convs(b: BlockBuilder, x: int, features: int, norm: str) -> None:
    for number in (1, 2):
        names = (f"conv{number}", f"norm{number}")
        x = b("relu", b.conv_norm(x, names, features, 3, norm))
