"""BiT ResNets against timm's."""

import dataclasses

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.models.bit import VARIANTS, Variant, bit

NAME = "resnetv2_50x1_bit"


def test_parameter_count_is_timms():
    assert bit(NAME).num_parameters == 25_549_352


@pytest.mark.torch
def test_logits_are_timms(torch_error):
    timm = pytest.importorskip("timm")
    net = timm.create_model(NAME, num_classes=1000)
    assert torch_error(bit(NAME, (64, 64, 3)), net) < 1e-4


def test_graph(sound_graph):
    counts = sound_graph(bit(NAME))
    assert counts["conv"] == 54
    assert counts["gn"] == 3 * 16 + 1
    assert counts["sum"] == 16
    instance = dataclasses.replace(VARIANTS[NAME], norm="in")
    assert sound_graph(bit(instance))["in"] == counts["gn"]


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "in"])
def test_spread(norm, assert_spread_is_sound):
    member = Variant((1, 1, 2), width=8, norm=norm)
    assert_spread_is_sound(bit(member, (32, 32, 1), 5, "small"))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="no BiT ResNet 'bit'"):
        bit("bit")
    with pytest.raises(UsageError, match="needs a norm"):
        bit(Variant((1, 1), norm="none"))
