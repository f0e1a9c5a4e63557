"""ResNets as programs, with torchvision's module names.

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016; in bottlenecks the 3x3
convolution strides, as in torchvision.
"""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import Block, BlockBuilder, Program, ProgramBuilder, check_norm
from medinit_jax.models.variants import check_last_stride, find_variant, is_imagenet


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
    last_stride: int = 2,
) -> Program:
    """Returns the program of a ResNet; every residual block is one call.

    Args:
        variant: A key of `VARIANTS`, or a member of the family.
        input_shape: (height, width, channels) of one image.
        num_classes: Size of the logits.
        stem: "imagenet" (7x7 of stride 2, max pooling) or "small" (3x3 of stride 1, no pooling).
        width: Channels of the first stage, 64 in the paper.
        norm: One of `program.NORMS`.
        last_stride: Stride of the last stage; 1 doubles the last map, as SWCL's labeler has it.

    Raises:
        UsageError: If there is no such network, stem, norm or stride.
    """
    member = find_variant(VARIANTS, variant, "ResNet")
    check_last_stride(last_stride)
    imagenet = is_imagenet(stem)
    check_norm(norm)
    build = ProgramBuilder(input_shape)
    value = build(_stem(width, imagenet, norm, pool=imagenet), (0,))
    value = _stages(build, value, member, width, norm, last_stride)
    build(_head(num_classes), (value,))
    return build.build()


def _stages(
    build: ProgramBuilder, value: int, variant: Variant, width: int, norm: str, last_stride: int
) -> int:
    """Appends all stages, the first of which reads a map at 1/4 of the size."""
    channels = width
    for stage, depth in enumerate(variant.depths):
        features = width * 2**stage
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            if stride == 2 and stage == len(variant.depths) - 1:
                stride = last_stride
            project = stride > 1 or channels != features * variant.expansion
            block = _residual(features, variant.bottleneck, stride, project, norm)
            value = build(block, (value,), f"layer{stage + 1}.{index}")
            channels = features * variant.expansion
    return value


def _stem(width: int, imagenet: bool, norm: str, pool: bool) -> Block:
    b = BlockBuilder(1)
    size, stride = (7, 2) if imagenet else (3, 1)
    y = b("relu", b.conv_norm(0, ("conv1", "bn1"), width, size, norm, stride=stride))
    if pool:
        b("max_pool", y, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    return b.build()


def _residual(features: int, bottleneck: bool, stride: int, project: bool, norm: str) -> Block:
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
        y = b.conv_norm(y, names, width, size, norm, stride=own_stride)
    skip = 0
    if project:
        skip = b.conv_norm(0, ("downsample.0", "downsample.1"), wide, 1, norm, stride=stride)
    b("relu", b("add", y, skip))
    return b.build()


def _head(num_classes: int) -> Block:
    b = BlockBuilder(1)
    b("dense", b("global_pool", 0), name="fc", features=num_classes, bias=True)
    return b.build()
