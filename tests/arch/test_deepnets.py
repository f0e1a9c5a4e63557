"""Programs of DeepNets architectures: names and sizes of the reference, and its special cases."""

import dataclasses

import numpy as np
import pytest

from medinit_jax.arch import cell_blocks, deepnets
from medinit_jax.arch.deepnets import Architecture
from medinit_jax.arch.program import block_layout
from medinit_jax.arch.space import OPERATIONS, get_space
from medinit_jax.core.errors import UsageError

PLAIN = Architecture(
    normal=(("conv_3x3", 0), ("skip_connect", 1)),
    reduce=(("max_pool_3x3", 0), ("conv_1x1", 1)),
    concat=(2,),
    n_cells=4,
)


def torch_layout(module, leaf, shape):
    if leaf == "kernel":
        order = (3, 2, 0, 1) if len(shape) == 4 else (1, 0)
        shape = tuple(shape[i] for i in order)
    elif leaf == "embedding":
        shape = tuple(shape[i] for i in (0, 3, 1, 2))
    return f"{module}.{'bias' if leaf == 'bias' else 'weight'}", shape


def test_parameters_equal_the_reference_by_name_and_size(oracle_network):
    arch, meta, arrays = oracle_network
    program = deepnets.program(arch, 32, 10)
    found = dict(
        torch_layout(module, leaf, shape)
        for module, leaves in program.parameter_shapes().items()
        for leaf, shape in leaves.items()
    )
    expected = {
        key.removeprefix("pred/"): value.shape
        for key, value in arrays.items()
        if key.startswith("pred/")
    }
    assert found == expected
    assert program.num_parameters == meta["n_params"]
    assert deepnets.count_parameters(arch, 32, 10) == meta["n_params_before"]


def test_head_is_the_last_call():
    program = deepnets.program(dataclasses.replace(PLAIN, fc_layers=2), 32, 4)
    assert program.head == "classifier.3"
    assert program.num_classes == 4
    assert program.shapes[-1] == (4,)


def test_equal_operations_share_one_block():
    program = deepnets.program(PLAIN)
    blocks = [call.block for call in program.calls if call.prefix.endswith("._ops.0")]
    assert blocks[0] is not blocks[1]
    other = deepnets.program(dataclasses.replace(PLAIN, ks=7, fc_layers=2))
    assert blocks[0] in [call.block for call in other.calls]
    assert blocks[0] is next(c.block for c in other.calls if c.prefix == "cells.0._ops.0")


def test_count_includes_dead_branches():
    gene = (("conv_3x3", 0), ("conv_3x3", 1), ("conv_1x1", 0), ("conv_1x1", 1))
    arch = dataclasses.replace(PLAIN, normal=gene, reduce=gene, concat=(3,))
    program = deepnets.program(arch)
    assert deepnets.count_parameters(arch) == deepnets.program(arch, pruned=False).num_parameters
    dead = sum(9 * width**2 + 2 * width for width in (32, 32, 64, 64, 128, 128, 128, 128))
    assert deepnets.count_parameters(arch) - program.num_parameters == dead


@pytest.mark.parametrize("image_size", [32, 224])
def test_count_equals_the_module_where_every_operation_is_called(image_size):
    space = get_space("deepnets")
    archs = (space.sample("train", index) for index in range(60))
    archs = [arch for arch in archs if "none" not in arch.ops]
    assert len(archs) > 20
    for arch in archs:
        program = deepnets.program(arch, image_size, 10, pruned=False)
        assert deepnets.count_parameters(arch, image_size, 10) == program.num_parameters


def test_missing_states_are_filled_with_zeros():
    gene = (("none", 0), ("none", 1), ("conv_3x3", 0), ("conv_1x1", 1))
    arch = dataclasses.replace(PLAIN, normal=gene, reduce=gene, concat=(2, 3))
    program = deepnets.program(arch)
    steps = [step for call in program.calls for step in call.block.steps]
    assert [step.kind for step in steps].count("zeros") == arch.n_cells
    assert program.shapes[-2][-1] == 2 * 128
    block = cell_blocks.concat_block((False, True, True))
    assert block.arity == 2
    assert [(step.kind, step.args) for step in block.steps] == [
        ("zeros", (0,)),
        ("concat", (2, 0, 1)),
    ]


def test_disconnected_network_is_refused_in_one_sentence():
    gene = (("none", 0), ("none", 1), ("conv_3x3", 2), ("conv_1x1", 2))
    arch = dataclasses.replace(PLAIN, reduce=gene, normal=gene, concat=(3,), split="val", index=7)
    assert not deepnets.is_connected(arch)
    with pytest.raises(UsageError, match="val/7 is disconnected"):
        deepnets.program(arch)


def test_connectivity_agrees_with_building():
    rng = np.random.default_rng(0)
    operations = ("none", "conv_3x3", "skip_connect")
    outcomes = []
    for _ in range(200):
        genes = [
            tuple(
                (operations[i], int(state))
                for step in range(3)
                for i, state in zip(
                    rng.choice(3, 2, p=(0.6, 0.2, 0.2)),
                    rng.choice(2 + step, 2, replace=False),
                    strict=True,
                )
            )
            for _ in range(2)
        ]
        concat = (2, 4) if rng.random() < 0.5 else (4,)
        arch = dataclasses.replace(PLAIN, normal=genes[0], reduce=genes[1], concat=concat)
        try:
            deepnets.program(arch)
            built = True
        except UsageError:
            built = False
        outcomes.append(built)
        assert deepnets.is_connected(arch) == built
    assert 20 < sum(outcomes) < 180


def test_width_must_divide():
    with pytest.raises(UsageError, match="C=40"):
        deepnets.program(dataclasses.replace(PLAIN, C=40))


@pytest.mark.parametrize(
    ("change", "small", "large"),
    [
        ({"stem_type": 0}, (8, 8, 128), (14, 14, 128)),
        ({"stem_type": 0, "stem_pool": True}, (4, 4, 128), (7, 7, 128)),
        ({"stem_type": 1}, (4, 4, 128), (7, 7, 128)),
        ({"normal": (("msa", 0), ("msa", 1))}, (11, 11, 128), (14, 14, 128)),
    ],
)
def test_resolution_at_the_head(change, small, large):
    """Sizes that the reference's flattening head has fixed for 32 and 224 pixels."""
    arch = dataclasses.replace(PLAIN, **change)
    assert deepnets.program(arch, 32).shapes[-2] == small
    assert deepnets.program(arch, 224).shapes[-2] == large


def test_stem_width_is_tripled_only_before_maps_of_small_images():
    def width(arch, size):
        return deepnets.program(arch, size).shapes[1][-1]

    assert width(PLAIN, 32) == 96
    assert width(PLAIN, 224) == 32
    assert width(dataclasses.replace(PLAIN, C_mult=1, preproc=False), 32) == 32


def test_cells_without_maps_stride_their_first_input():
    arch = dataclasses.replace(PLAIN, C_mult=1, preproc=False, stem_type=1, n_cells=6)
    program = deepnets.program(arch)
    strided = [
        call.prefix
        for call in program.calls
        if [step.kind for step in call.block.steps] == ["subsample"]
    ]
    assert strided == ["cells.0.preprocess0", "cells.3.preprocess0", "cells.5.preprocess0"]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("op", [op for op in OPERATIONS if op != "none"])
def test_every_operation_keeps_width_and_strides(op, stride):
    if op == "skip_connect" and stride == 1:
        return
    block = cell_blocks.op_block(op, 32, stride, True)
    for size in (8, 7):
        layout = block_layout(block, ((size, size, 32),))
        assert layout.outputs[-1] == (-(-size // stride),) * 2 + (32,)


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_any_number_of_image_channels(channels):
    program = deepnets.program(PLAIN, 32, 10, channels=channels)
    assert program.parameter_shapes()["stem.0"]["kernel"] == (3, 3, channels, 96)
