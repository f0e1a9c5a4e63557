"""Programs: their head, the builders' defaults."""

import pytest

from medinit_jax.arch.program import Block, BlockBuilder, ProgramBuilder, check_norm
from medinit_jax.core.errors import UsageError


def program_of(*blocks):
    build = ProgramBuilder((8, 8, 3))
    value = 0
    for number, block in enumerate(blocks):
        value = build(block, (value,), f"block{number}")
    return build.build()


def block_of(*steps):
    """Returns a chain of (kind, attributes)."""
    b = BlockBuilder(1)
    value = 0
    for kind, attributes in steps:
        value = b(kind, value, **attributes)
    return b.build()


def test_the_head_is_the_last_module():
    conv = ("conv", {"name": "conv", "features": 5})
    dense = ("dense", {"name": "dense", "features": 7})
    norm = ("batch_norm", {"name": "norm"})
    up = ("bilinear", {"size": (16, 16)})
    segmenting = program_of(block_of(dense, norm), block_of(norm, conv, up))
    assert segmenting.head == "block1.conv" and segmenting.num_classes == 5
    assert segmenting.shapes[-1] == (16, 16, 5)
    pooled = program_of(block_of(conv, ("global_pool", {}), dense))
    assert pooled.head == "block0.dense" and pooled.num_classes == 7
    for blocks in ((block_of(conv, norm),), (block_of(conv), block_of(up))):
        with pytest.raises(ValueError, match="dense or a convolution"):
            _ = program_of(*blocks).head


def test_odd_kernels_keep_the_size_by_default():
    b = BlockBuilder(1)
    b.conv(0, "plain", 4, (3, 5))
    b.conv(0, "dilated", 4, 3, dilation=4)
    b.conv(0, "given", 4, 3, dilation=4, padding=(0, 0))
    assert [step.padding for step in b.steps] == [(1, 2), (4, 4), (0, 0)]


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (64, 32), (32, 16), (24, 4), (10, 1), (5, 1)]
)
def test_groups_of_group_norm_have_at_least_two_channels(channels, groups):
    b = BlockBuilder(1)
    b.norm(0, "gn", "norm", channels)
    b.norm(0, "in", "norm", channels)
    assert [step.groups for step in b.steps] == [groups, channels]


def test_a_convolution_has_a_bias_or_a_norm():
    b = BlockBuilder(1)
    b.conv_norm(0, ("conv", "norm"), 4, 3, "ln", 0.5)
    b.conv_norm(0, ("conv", "norm"), 4, 3, "none")
    assert [(step.kind, step.bias) for step in b.steps] == [
        ("conv", False),
        ("layer_norm", False),
        ("conv", True),
    ]
    assert b.steps[1].epsilon == 0.5
    with pytest.raises(UsageError, match="no norm 'batch': choose from bn"):
        check_norm("batch")


def test_shapes_are_known_while_building():
    build = ProgramBuilder((8, 8, 3))
    value = build(block_of(("max_pool", {"kernel": (2, 2), "stride": (2, 2)})), (0,))
    assert build.shape(0) == (8, 8, 3) and build.shape(value) == (4, 4, 3)
    assert isinstance(build.calls[0].block, Block)
