"""MobileNets against torchvision's."""

import dataclasses

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.models.mobilenet import VARIANTS, mobilenet

IMAGE = (64, 64, 3)


@pytest.mark.parametrize(
    ("name", "count"), [("mobilenet_v2", 3_504_872), ("mobilenet_v3_large", 5_483_032)]
)
def test_parameter_counts_are_torchvisions(name, count):
    assert mobilenet(name).num_parameters == count


@pytest.mark.torch
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_torchvisions(name, torch_error):
    models = pytest.importorskip("torchvision.models")
    assert torch_error(mobilenet(name, IMAGE), getattr(models, name)()) < 1e-4


def test_graph_of_v2(sound_graph):
    counts = sound_graph(mobilenet("mobilenet_v2"))
    assert counts == {
        "input": 1, "conv": 1 + 17 + 16 + 1 + 1, "sep_conv": 17, "bn": 1 + 17 + 16 + 17 + 1,
        "sum": 10, "glob_avg": 1, "bias": 1,
    }  # fmt: skip


def test_graph_of_v3(sound_graph):
    counts = sound_graph(mobilenet("mobilenet_v3_large"))
    assert counts["sep_conv"] == 15 and counts["cse"] == 8 and counts["sum"] == 10
    # Each gate and the head have two layers with a bias.
    assert counts["bias"] == 2 * 8 + 2


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("norm", ["bn", "gn", "in"])
def test_spread(name, norm, assert_spread_is_sound):
    member = VARIANTS[name]
    style = dataclasses.replace(member.style, norm=norm)
    member = dataclasses.replace(member, rows=member.rows[:5], style=style, last=64)
    assert_spread_is_sound(mobilenet(member, (32, 32, 1), 5, "small"))


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="no MobileNet 'mobilenet'"):
        mobilenet("mobilenet")
