"""The design spaces: draws, rules, splits, and the statistics of the reference."""

import dataclasses

import numpy as np
import pytest

from medinit_jax.arch import deepnets
from medinit_jax.arch.genotype import LARGE_CONVS, OPERATIONS, POOLING, part
from medinit_jax.arch.graph import build_graph
from medinit_jax.arch.space import EVALUATION_PARAMETERS, SPACES, get_space
from medinit_jax.arch.vocabulary import TYPE_INDEX
from medinit_jax.core.errors import UsageError

DEEPNETS = get_space("deepnets")
SMALL = get_space("small")


def reference_form(arch):
    """The width at which limits and statistics are stated."""
    return dataclasses.replace(arch, C=32, fc_dim=256)


@pytest.fixture(scope="module")
def train():
    return [DEEPNETS.sample("train", index) for index in range(400)]


@pytest.fixture(scope="module")
def dense():
    return [DEEPNETS.sample("dense", index) for index in range(100)]


def test_samples_are_functions_of_space_split_and_index():
    first = [DEEPNETS.sample("train", index) for index in (999_999, 5, 17)]
    again = [get_space("deepnets").sample("train", index) for index in (17, 5, 999_999)]
    assert first == again[::-1]
    assert first[1] != DEEPNETS.sample("val", 5)
    assert (
        len({dataclasses.replace(DEEPNETS.sample("train", i), index=0) for i in range(200)}) > 198
    )


def test_samples_do_not_change():
    """Results of a study refer to indices: a change of these draws is a new space."""
    assert DEEPNETS.sample("val", 0) == deepnets.Architecture(
        normal=(("none", 0), ("avg_pool_3x3", 1), ("avg_pool_3x3", 2), ("sep_conv_3x3", 0)),
        reduce=(("skip_connect", 1), ("skip_connect", 0), ("max_pool_3x3", 2), ("skip_connect", 0)),
        concat=(2, 3),
        n_cells=18,
        ks=7,
        C=144,
        C_mult=1,
        stem_type=1,
        fc_layers=2,
        split="val",
    )
    assert SMALL.sample("train", 0) == deepnets.Architecture(
        normal=(("conv_3x3", 0), ("dil_conv_5x5", 1), ("dil_conv_3x3", 2), ("conv_1x1", 1)),
        reduce=(("skip_connect", 1), ("skip_connect", 0), ("max_pool_3x3", 1), ("none", 0)),
        concat=(2, 3),
        n_cells=5,
        ks=3,
        C=16,
        C_mult=2,
        stem_pool=True,
        fc_layers=1,
        split="train",
    )


def test_epochs_redraw_widths_only():
    widths = set()
    cells = set()
    for epoch in range(20):
        arch = DEEPNETS.sample("train", 4, epoch)
        widths.add((arch.C, arch.fc_dim))
        cells.add(reference_form(arch))
    assert len(cells) == 1
    assert len(widths) > 2
    assert DEEPNETS.sample("val", 4, 0) == DEEPNETS.sample("val", 4, 9)


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="no design space 'big': set config.space to deepnets or"):
        get_space("big")
    with pytest.raises(UsageError, match="no split 'predefined'"):
        DEEPNETS.sample("predefined", 0)
    with pytest.raises(UsageError, match="give an index from 0 to 499"):
        DEEPNETS.sample("val", 500)
    with pytest.raises(UsageError, match="no architecture -1"):
        DEEPNETS.sample("val", -1)


def test_split_sizes():
    sizes = {name: split.size for name, split in DEEPNETS.splits.items()}
    del sizes["search"]
    assert sizes == {
        "train": 10**6,
        "val": 500,
        "test": 500,
        "wide": 100,
        "deep": 100,
        "dense": 100,
        "bnfree": 100,
    }
    assert set(SMALL.splits) == set(sizes)


def part_of(arch):
    return part(arch.normal, arch.reduce, arch.concat)


@pytest.mark.parametrize("space", [DEEPNETS, SMALL], ids=lambda space: space.name)
def test_evaluation_cells_are_never_trained_on(space):
    parts = {
        split: {part_of(space.sample(split, index)) for index in range(40)}
        for split in space.splits
    }
    assert [parts[split] for split in ("train", "val", "test", "wide")] == [{2, 3}, {0}, {1}, {1}]
    assert {tuple(parts[split]) for split in ("deep", "dense", "bnfree")} == {(0, 1)}


def test_part_ignores_what_changes_nothing():
    normal = (("conv_3x3", 0), ("sep_conv_3x3", 1), ("conv_1x1", 2), ("none", 0))
    reduce = (("max_pool_3x3", 0), ("conv_1x1", 1), ("skip_connect", 0), ("cse", 2))
    own = part(normal, reduce, (3,))
    assert part((*normal[1::-1], *normal[2:]), reduce, (3,)) == own
    assert part((*normal[:3], ("none", 1)), reduce, (3,)) == own
    changed = {
        part((*normal[:3], (op, state)), reduce, concat)
        for op in OPERATIONS
        for state in (0, 1)
        for concat in ((3,), (2, 3))
    }
    assert changed == {0, 1, 2, 3}


def test_wide_holds_the_networks_of_test():
    for index in range(10):
        test, wide = (DEEPNETS.sample(split, index) for split in ("test", "wide"))
        assert wide.C == 4 * test.C
        assert dataclasses.replace(wide, C=test.C, split="test") == test
    large = get_space("deepnets", image_size=224)
    assert large.sample("wide", 0).C == 2 * large.sample("test", 0).C


def test_evaluation_networks_have_the_published_sizes():
    """Means of the networks in the reference's table of results, in millions."""
    published = {"val": 3.28, "deep": 3.99, "dense": 3.76, "bnfree": 3.19, "wide": 51.6}
    for split, mean in published.items():
        archs = [DEEPNETS.sample(split, index) for index in range(100)]
        sizes = np.array([deepnets.count_parameters(arch) for arch in archs])
        assert sizes.min() >= EVALUATION_PARAMETERS
        error = sizes.std() / 10
        assert abs(sizes.mean() - mean * 1e6) < 3 * np.hypot(error, error)
        for arch in archs[:20] if split != "wide" else ():
            narrower = dataclasses.replace(arch, C=arch.C - 16)
            too_small = deepnets.count_parameters(narrower) < EVALUATION_PARAMETERS
            assert arch.C == 32 or too_small


def test_rules_on_cells(train, dense):
    for arch in (*train, *dense, *(DEEPNETS.sample("deep", index) for index in range(50))):
        ranges = DEEPNETS.splits[arch.split]
        assert ranges.n_cells[0] <= arch.n_cells <= ranges.n_cells[1]
        least, medium, most = ranges.steps
        assert least <= arch.steps <= (most if arch.n_cells <= max(ranges.deep) else medium)
        assert arch.steps > 1 or "none" not in arch.ops
        assert arch.concat[-1] == arch.steps + 1
        for gene in (arch.normal, arch.reduce):
            names = [op for op, _ in gene]
            assert names.count("cse") <= 1
            assert sum(names.count(op) for op in LARGE_CONVS) <= 1
            for step in range(arch.steps):
                states = [state for _, state in gene[2 * step : 2 * step + 2]]
                assert len(set(states)) == 2
                assert max(states) < 2 + step
        assert any("conv" in op or op in ("msa", "cse") for op in arch.ops)
        assert "cse" not in arch.ops or any("conv" in op for op in arch.ops)
        assert arch.preproc or (arch.steps == 1 and arch.C_mult == 1)
        assert arch.preproc or arch.is_vit
        assert arch.glob_avg or not (arch.is_vit or arch.n_cells > max(ranges.deep))
        shallow = arch.n_cells <= ranges.n_cells[0] + 1 and arch.steps <= medium
        assert arch.norm or shallow
        assert not (arch.stem_pool and arch.stem_type == 1)
        fixed = reference_form(arch)
        for size in (32, 224):
            assert deepnets.count_parameters(fixed, size) <= ranges.max_parameters
        assert deepnets.is_connected(arch)


def test_half_of_the_reduction_cells_only_pool(train):
    only = [all(op in POOLING for op, _ in arch.reduce) for arch in train]
    # Rejection of cells that do not learn lowers the share, chance pools of one step raise it.
    assert 0.45 < np.mean(only) < 0.65
    assert {op for arch in train for op in arch.ops} == set(OPERATIONS)


def test_other_splits_shift_one_thing():
    assert not any(DEEPNETS.sample("bnfree", index).norm for index in range(20))
    assert all(DEEPNETS.sample("search", index).norm for index in range(20))
    assert max(DEEPNETS.sample("deep", index).n_cells for index in range(100)) > 30
    assert max(DEEPNETS.sample("dense", index).steps for index in range(100)) == 10
    assert {SMALL.sample("wide", index).C for index in range(20)} == {32}
    assert not any(SMALL.sample("bnfree", index).norm for index in range(20))
    assert min(SMALL.sample("deep", index).n_cells for index in range(50)) == 6
    assert {SMALL.sample("dense", index).steps for index in range(50)} == {3, 4}


def test_training_widths_follow_the_size(train):
    by_choice = {}
    for arch in train:
        count = deepnets.count_parameters(reference_form(arch))
        large_convs = not arch.ops.isdisjoint(LARGE_CONVS)
        if count > 800_000 or not arch.glob_avg or large_convs or arch.n_cells > 12:
            widest = 32
        elif count > 400_000 or arch.n_cells > 10:
            widest = 48
        elif count > 200_000 or arch.n_cells > 8:
            widest = 64
        else:
            widest = 128
        by_choice.setdefault(widest, set()).add(arch.C)
        assert arch.fc_dim % 64 == 0
        assert arch.fc_dim <= (512 if widest == 128 and arch.C <= 64 else 256)
    assert by_choice == {
        32: {32},
        48: {32, 48},
        64: {32, 48, 64},
        128: set(range(32, 129, 16)),
    }


def test_small_space_needs_few_compiled_operations():
    seen = set()
    for index in range(500):
        program = deepnets.program(SMALL.sample("train", index), 32, 4)
        for call in program.calls:
            seen.add((call.block, tuple(program.shapes[i] for i in call.inputs)))
    assert len(seen) <= 95


def node_count(arch):
    """Nodes without attention and gates, which the reference's figures lost."""
    kinds = build_graph(deepnets.program(arch)).node_type
    return np.sum((kinds != TYPE_INDEX["msa"]) & (kinds != TYPE_INDEX["cse"]))


def within_three_errors(values, mean, deviation, count):
    """Whether a sample's mean agrees with another sample's of `count` items."""
    values = np.asarray(values, float)
    error = np.hypot(values.std() / np.sqrt(len(values)), deviation / np.sqrt(count))
    return abs(values.mean() - mean) <= 3 * error


def test_statistics_of_train_match_the_reference(train):
    assert within_three_errors([node_count(arch) for arch in train], 177, 84, 400)
    sizes = [deepnets.count_parameters(reference_form(arch)) / 1e6 for arch in train]
    assert within_three_errors(sizes, 0.89, 1.25, 400)
    cells = [arch.n_cells for arch in train]
    assert within_three_errors(cells, 11.1, np.std(cells), 400)
    shares = {
        "BN-free": ([not arch.norm for arch in train], 0.035),
        "msa": ([arch.is_vit for arch in train], 0.28),
        "cse": (["cse" in arch.ops for arch in train], 0.28),
        "none": (["none" in arch.ops for arch in train], 0.31),
        "global pooling": ([arch.glob_avg for arch in train], 0.978),
        "preproc": ([arch.preproc for arch in train], 0.95),
        "two dense layers": ([arch.fc_layers == 2 for arch in train], 0.50),
        "C_mult = 2": ([arch.C_mult == 2 for arch in train], 0.43),
        "ImageNet stem": ([arch.stem_type == 1 for arch in train], 0.50),
    }
    for name, (values, share) in shares.items():
        deviation = np.sqrt(share * (1 - share))
        assert within_three_errors(values, share, deviation, 400), name


def test_statistics_of_dense_match_the_reference(dense):
    assert within_three_errors([node_count(arch) for arch in dense], 313, 161, 100)
    sizes = [deepnets.count_parameters(reference_form(arch)) / 1e6 for arch in dense]
    assert within_three_errors(sizes, 2.2, 2.3, 100)


@pytest.mark.parametrize("name", list(SPACES))
def test_every_split_builds(name):
    space = get_space(name)
    for split in space.splits:
        for index in range(3):
            arch = space.sample(split, index)
            assert space.program(split, index, 4).num_classes == 4
            assert (arch.split, arch.index) == (split, index)
