import numpy as np
import pytest

from medinit_jax.arch.vocabulary import DEEPNETS_TYPES, NEAREST, NODE_TYPES, TYPE_INDEX, known_types
from medinit_jax.core.errors import UsageError


def types(*names):
    return np.array([TYPE_INDEX[name] for name in names], np.int32)


def test_the_first_types_are_those_of_the_reference():
    assert NODE_TYPES[:DEEPNETS_TYPES] == (
        "max_pool", "avg_pool", "sep_conv", "dil_conv", "conv", "msa", "cse", "sum", "concat",
        "input", "bias", "bn", "ln", "pos_enc", "glob_avg",
    )  # fmt: skip
    assert len(set(NODE_TYPES)) == len(NODE_TYPES)


def test_nearest_types_belong_to_the_reference():
    assert {TYPE_INDEX[name] < DEEPNETS_TYPES for name in NEAREST.values()} == {True}
    assert {TYPE_INDEX[name] >= DEEPNETS_TYPES for name in NEAREST} == {True}


def test_known_types_stay():
    given = types("conv", "bn", "gn")
    np.testing.assert_array_equal(known_types(given, len(NODE_TYPES)), given)


def test_grouped_convolutions_are_what_the_reference_calls_them():
    np.testing.assert_array_equal(
        known_types(types("conv", "group_conv"), DEEPNETS_TYPES), types("conv", "sep_conv")
    )


def test_other_types_are_refused_or_taken_for_the_nearest():
    given = types("conv", "gn", "layer_scale")
    with pytest.raises(UsageError, match="type gn, layer_scale, .* first 15 types.*nearest"):
        known_types(given, DEEPNETS_TYPES)
    np.testing.assert_array_equal(
        known_types(given, DEEPNETS_TYPES, "nearest"), types("conv", "ln", "bias")
    )


def test_activations_have_no_nearest_type():
    with pytest.raises(UsageError, match="type relu.*use one that knows them"):
        known_types(types("relu"), DEEPNETS_TYPES, "nearest")
    with pytest.raises(UsageError, match="unknown_types='skip' is none of error, nearest"):
        known_types(types("conv"), DEEPNETS_TYPES, "skip")
