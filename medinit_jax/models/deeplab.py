"""DeepLabv3+ for segmentation as a program, with a ResNet encoder.

Source: Chen et al., Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation, ECCV 2018, with plain instead of separable convolutions (its table 4); the pyramid's
modules are named as in torchvision's DeepLabv3.
"""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import Block, BlockBuilder, Program, ProgramBuilder, check_norm
from medinit_jax.models import resnet
from medinit_jax.models.resnet import resnet_encoder
from medinit_jax.models.unet import ENCODER
from medinit_jax.models.variants import find_variant


@dataclasses.dataclass(frozen=True)
class Variant:
    """A member of the family.

    Attributes:
        encoder: The ResNet that encodes.
        features: Channels of pyramid and decoder.
        low_features: Channels that the decoder keeps of the encoder's first stage.
    """

    encoder: resnet.Variant
    features: int = 256
    low_features: int = 48


VARIANTS = {
    f"deeplabv3plus_{name}": Variant(resnet.VARIANTS[name])
    for name in ("resnet18", "resnet34", "resnet50", "resnet101")
}
# Dilations of the pyramid at output stride 16; twice these at 8.
RATES = (6, 12, 18)


def deeplab(
    variant: str | Variant,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 2,
    output_stride: int = 16,
    norm: str = "bn",
) -> Program:
    """Returns the program of a DeepLabv3+; its logits are (batch, height, width, classes).

    Modules of the encoder are named "encoder.…", with torchvision's names.

    Args:
        variant: A key of `VARIANTS`, or a member of the family.
        input_shape: (height, width, channels) of one image.
        num_classes: Classes of a pixel.
        output_stride: How much smaller than the image the encoder's last map is: 8, 16 or 32.
        norm: One of `program.NORMS`.

    Raises:
        UsageError: If there is no such network, output stride or norm.
    """
    member = find_variant(VARIANTS, variant, "DeepLab")
    check_norm(norm)
    build = ProgramBuilder(input_shape)
    _, low, *_, high = resnet_encoder(build, member.encoder, ENCODER, norm, output_stride)
    rates = tuple(rate * 16 // output_stride for rate in RATES)
    pyramid = _pyramid(member.features, rates, build.shape(high)[:2], norm)
    high = build(pyramid, (high,), "aspp")
    high = build(_decoder(member, build.shape(low)[:2], norm), (high, low), "decoder")
    b = BlockBuilder(1)
    y = b("dense", 0, name="head", features=num_classes, bias=True)
    b("bilinear", y, size=input_shape[:2])
    build(b.build(), (high,))
    return build.build()


def _pyramid(features: int, rates: tuple[int, ...], size: tuple[int, ...], norm: str) -> Block:
    b = BlockBuilder(1)
    parts = [b("relu", b.conv_norm(0, ("convs.0.0", "convs.0.1"), features, 1, norm))]
    for number, rate in enumerate(rates, start=1):
        names = (f"convs.{number}.0", f"convs.{number}.1")
        parts.append(b("relu", b.conv_norm(0, names, features, 3, norm, dilation=rate)))
    last = len(rates) + 1
    y = b("adaptive_pool", 0, size=(1, 1))
    y = b("relu", b.conv_norm(y, (f"convs.{last}.1", f"convs.{last}.2"), features, 1, norm))
    parts.append(b("bilinear", y, size=size))
    b("relu", b.conv_norm(b("concat", *parts), ("project.0", "project.1"), features, 1, norm))
    return b.build()


def _decoder(member: Variant, size: tuple[int, ...], norm: str) -> Block:
    b = BlockBuilder(2)
    y = b("bilinear", 0, size=size)
    low = b("relu", b.conv_norm(1, ("low.0", "low.1"), member.low_features, 1, norm))
    y = b("concat", y, low)
    for number in range(2):
        names = (f"convs.{number}.0", f"convs.{number}.1")
        y = b("relu", b.conv_norm(y, names, member.features, 3, norm))
    return b.build()
