"""VGG networks as programs.

Where torchvision numbers layers, "features.3" and its norm "features.4", modules are named
"features.3.conv" and "features.3.norm" here: equal layers then share what is compiled.

Source: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition,
ICLR 2015; batch normalization as in torchvision.
"""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import BlockBuilder, Program, ProgramBuilder, check_norm
from medinit_jax.models.variants import find_variant


@dataclasses.dataclass(frozen=True)
class Variant:
    """A member of the family.

    Attributes:
        depths: 3x3 convolutions of each stage; a stage ends in 2x2 max pooling.
        norm: Norm after each of them, one of `program.NORMS`.
        widths: Channels of each stage.
        hidden: Width of the two hidden layers of the head; 0 = pooling and one layer.
    """

    depths: tuple[int, ...]
    norm: str = "none"
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: int = 4096


_VGG11, _VGG16 = (1, 1, 2, 2, 2), (2, 2, 3, 3, 3)
VARIANTS = {
    "vgg11": Variant(_VGG11),
    "vgg11_bn": Variant(_VGG11, "bn"),
    "vgg16": Variant(_VGG16),
    "vgg16_bn": Variant(_VGG16, "bn"),
}
# Height and width of the map that hidden layers read.
LAST_MAP = (7, 7)


def vgg(
    variant: str | Variant,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
) -> Program:
    """Returns the program of a VGG network; every convolution is one call.

    Args:
        variant: A key of `VARIANTS`, or a member of the family.
        input_shape: (height, width, channels) of one image.
        num_classes: Size of the logits.

    Raises:
        UsageError: If there is no such network or norm.
    """
    member = find_variant(VARIANTS, variant, "VGG")
    check_norm(member.norm)
    build = ProgramBuilder(input_shape)
    value, number = 0, 0
    modules = 2 if member.norm == "none" else 3
    for depth, width in zip(member.depths, member.widths, strict=True):
        for _ in range(depth):
            b = BlockBuilder(1)
            y = b.conv(0, "conv", width, 3, bias=True)
            b("relu", b.norm(y, member.norm, "norm", width))
            value = build(b.build(), (value,), f"features.{number}")
            number += modules
        b = BlockBuilder(1)
        b("max_pool", 0, kernel=(2, 2), stride=(2, 2))
        number += 1
        value = build(b.build(), (value,))
    b = BlockBuilder(1)
    if member.hidden:
        y = b("flatten", b("adaptive_pool", 0, size=LAST_MAP))
        for name in ("0", "3"):
            y = b("relu", b("dense", y, name=name, features=member.hidden, bias=True))
    else:
        y = b("global_pool", 0)
    b("dense", y, name="6", features=num_classes, bias=True)
    build(b.build(), (value,), "classifier")
    return build.build()
