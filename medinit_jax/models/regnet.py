"""RegNetX and RegNetY as programs, with torchvision's module names.

Source: Radosavovic et al., Designing Network Design Spaces, CVPR 2020; in this design space a
member is four numbers that give all widths, a group width and the gates of RegNetY.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

from medinit_jax.arch.program import Block, BlockBuilder, Program, ProgramBuilder, check_norm
from medinit_jax.models.gates import squeeze_excite
from medinit_jax.models.variants import divisible, find_variant, is_imagenet


@dataclasses.dataclass(frozen=True)
class Variant:
    """A member of the design space.

    Attributes:
        depth: Residual blocks.
        start: Width of the first one, w_0 in the paper.
        slope: What each further one adds before quantization, w_a.
        ratio: Quotient of the widths of neighboring stages, about w_m.
        group_width: Channels per group of the 3x3 convolutions.
        squeeze: Width of a gate's hidden layer, as a share of the block's input; 0 = no gates.
    """

    depth: int
    start: int
    slope: float
    ratio: float
    group_width: int
    squeeze: float = 0.0

    def stages(self) -> list[tuple[int, int, int]]:
        """Returns (blocks, width, group width) of each stage."""
        widths = []
        for index in range(self.depth):
            level = round(math.log(1 + self.slope * index / self.start) / math.log(self.ratio))
            widths.append(round(self.start * self.ratio**level / 8) * 8)
        stages = []
        for width, same in itertools.groupby(widths):
            group_width = min(self.group_width, width)
            stages.append((len(list(same)), divisible(width, group_width), group_width))
        return stages


VARIANTS = {
    "regnet_x_400mf": Variant(22, 24, 24.48, 2.54, 16),
    "regnet_x_1_6gf": Variant(18, 80, 34.01, 2.25, 24),
    "regnet_y_400mf": Variant(16, 48, 27.89, 2.09, 8, 0.25),
    "regnet_y_1_6gf": Variant(27, 48, 20.71, 2.65, 24, 0.25),
}
STEM_WIDTH = 32


def regnet(
    variant: str | Variant,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
    stem: str = "imagenet",
    norm: str = "bn",
) -> Program:
    """Returns the program of a RegNet; every residual block is one call.

    Args:
        variant: A key of `VARIANTS`, or a member of the family.
        input_shape: (height, width, channels) of one image.
        num_classes: Size of the logits.
        stem: "imagenet" (stride 2) or "small" (stride 1).
        norm: One of `program.NORMS`.

    Raises:
        UsageError: If there is no such network, stem or norm.
    """
    member = find_variant(VARIANTS, variant, "RegNet")
    stride = 2 if is_imagenet(stem) else 1
    check_norm(norm)
    build = ProgramBuilder(input_shape)
    b = BlockBuilder(1)
    b("relu", b.conv_norm(0, ("0", "1"), STEM_WIDTH, 3, norm, stride=stride))
    value, channels = build(b.build(), (0,), "stem"), STEM_WIDTH
    for stage, (depth, width, group_width) in enumerate(member.stages(), start=1):
        for index in range(depth):
            squeezed = round(member.squeeze * channels)
            stride = 1 if index else 2
            block = _residual(channels, width, width // group_width, stride, squeezed, norm)
            value = build(block, (value,), f"trunk_output.block{stage}.block{stage}-{index}")
            channels = width
    b = BlockBuilder(1)
    b("dense", b("global_pool", 0), name="fc", features=num_classes, bias=True)
    build(b.build(), (value,))
    return build.build()


def _residual(
    channels: int, width: int, groups: int, stride: int, squeezed: int, norm: str
) -> Block:
    b = BlockBuilder(1)
    skip = 0
    if stride > 1 or channels != width:
        skip = b.conv_norm(0, ("proj.0", "proj.1"), width, 1, norm, stride=stride)
    y = b("relu", b.conv_norm(0, ("f.a.0", "f.a.1"), width, 1, norm))
    y = b.conv_norm(y, ("f.b.0", "f.b.1"), width, 3, norm, stride=stride, groups=groups)
    y = b("relu", y)
    if squeezed:
        y = squeeze_excite(b, y, "f.se", width, squeezed)
    y = b.conv_norm(y, ("f.c.0", "f.c.1"), width, 1, norm)
    b("relu", b("add", y, skip))
    return b.build()
