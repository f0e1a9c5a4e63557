"""ResNets as programs, with torchvision's module names.

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016; in bottlenecks the 3x3
convolution strides, as in torchvision.
"""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import Block, BlockBuilder, Program, ProgramBuilder, check_norm
from medinit_jax.core.errors import UsageError
from medinit_jax.models.variants import find_variant, is_imagenet


@dataclasses.dataclass(frozen=True)
class Variant:
    """Depth of each stage, and whether its blocks are bottlenecks."""

    depths: tuple[int, ...]
    bottleneck: bool

    @property
    def expansion(self) -> int:
        """Channels that a block yields per channel of its 3x3 convolution."""
        return EXPANSION if self.bottleneck else 1


VARIANTS = {
    "resnet18": Variant((2, 2, 2, 2), False),
    "resnet34": Variant((3, 4, 6, 3), False),
    "resnet50": Variant((3, 4, 6, 3), True),
    "resnet101": Variant((3, 4, 23, 3), True),
    "resnet152": Variant((3, 8, 36, 3), True),
}
EXPANSION = 4


def resnet(
    variant: str | Variant,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
    stem: str = "imagenet",
    width: int = 64,
    norm: str = "bn",
) -> Program:
    """Returns the program of a ResNet; every residual block is one call.

    Args:
        variant: A key of `VARIANTS`, or a member of the family.
        input_shape: (height, width, channels) of one image.
        num_classes: Size of the logits.
        stem: "imagenet" (7x7 of stride 2, max pooling) or "small" (3x3 of stride 1, no pooling).
        width: Channels of the first stage, 64 in the paper.
        norm: One of `program.NORMS`.

    Raises:
        UsageError: If there is no such network, stem or norm.
    """
    member = find_variant(VARIANTS, variant, "ResNet")
    imagenet = is_imagenet(stem)
    check_norm(norm)
    build = ProgramBuilder(input_shape)
    value = build(_stem(width, imagenet, norm, pool=imagenet), (0,))
    value = _stages(build, value, member, width, norm)[-1]
    build(_head(num_classes), (value,))
    return build.build()


def resnet_encoder(
    build: ProgramBuilder, variant: Variant, prefix: str, norm: str = "bn", output_stride: int = 32
) -> list[int]:
    """Appends a ResNet without its head and returns the values that a decoder reads.

    Args:
        build: The program.
        variant: A member of the family.
        prefix: Prefix of all module names.
        norm: One of `program.NORMS`.
        output_stride: 32, 16 or 8: how much smaller than the image the last map is. The stages that
            do not stride dilate their 3x3 convolutions instead.

    Returns:
        Value numbers: the stem before pooling (half the image's size), then each stage.

    Raises:
        UsageError: If there is no such output stride.

    Source (dilation): Chen et al., Rethinking Atrous Convolution, 2017.
    """
    if output_stride not in (8, 16, 32):
        raise UsageError(f"output_stride is 8, 16 or 32, got {output_stride}")
    stem = build(_stem(64, True, norm, pool=False), (0,), prefix)
    pool = BlockBuilder(1)
    pool("max_pool", 0, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    value = build(pool.build(), (stem,))
    return [stem, *_stages(build, value, variant, 64, norm, prefix, output_stride)]


def _stages(
    build: ProgramBuilder,
    value: int,
    variant: Variant,
    width: int,
    norm: str,
    prefix: str = "",
    output_stride: int = 32,
) -> list[int]:
    """Appends all stages, the first of which reads a map at 1/4 of the size, and returns them."""
    outputs = []
    channels, reduction, dilation = width, 4, 1
    for stage, depth in enumerate(variant.depths):
        features = width * 2**stage
        for index in range(depth):
            first = stage > 0 and index == 0
            stride = 2 if first and reduction < output_stride else 1
            reduction *= stride
            project = stride > 1 or channels != features * variant.expansion
            block = _residual(features, variant.bottleneck, stride, project, dilation, norm)
            # The first block that should have strided still reads neighbors of the old distance.
            dilation *= 2 if first and stride == 1 else 1
            name = f"layer{stage + 1}.{index}"
            value = build(block, (value,), f"{prefix}.{name}" if prefix else name)
            channels = features * variant.expansion
        outputs.append(value)
    return outputs


def _stem(width: int, imagenet: bool, norm: str, pool: bool) -> Block:
    b = BlockBuilder(1)
    size, stride = (7, 2) if imagenet else (3, 1)
    y = b("relu", b.conv_norm(0, ("conv1", "bn1"), width, size, norm, stride=stride))
    if pool:
        b("max_pool", y, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    return b.build()


def _residual(
    features: int, bottleneck: bool, stride: int, project: bool, dilation: int, norm: str
) -> Block:
    wide = features * EXPANSION if bottleneck else features
    # (features, size, stride) of each convolution.
    convs = ((features, 3, stride), (features, 3, 1))
    if bottleneck:
        convs = ((features, 1, 1), (features, 3, stride), (wide, 1, 1))
    b = BlockBuilder(1)
    y = 0
    for number, (width, size, own_stride) in enumerate(convs, start=1):
        y = b("relu", y) if number > 1 else y
        names = (f"conv{number}", f"bn{number}")
        own_dilation = dilation if size > 1 else 1
        y = b.conv_norm(y, names, width, size, norm, stride=own_stride, dilation=own_dilation)
    skip = 0
    if project:
        skip = b.conv_norm(0, ("downsample.0", "downsample.1"), wide, 1, norm, stride=stride)
    b("relu", b("add", y, skip))
    return b.build()


def _head(num_classes: int) -> Block:
    b = BlockBuilder(1)
    b("dense", b("global_pool", 0), name="fc", features=num_classes, bias=True)
    return b.build()
