"""EfficientNets against torchvision's."""

import dataclasses

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.models.efficientnet import VARIANTS, efficientnet

B0 = VARIANTS["efficientnet_b0"]


def test_parameter_counts_are_torchvisions():
    assert efficientnet("efficientnet_b0").num_parameters == 5_288_548
    # B2 is B0 wider and deeper.
    b2 = dataclasses.replace(B0, width=1.1, depth=1.2)
    assert efficientnet(b2).num_parameters == 9_109_994


@pytest.mark.torch
def test_logits_are_torchvisions(torch_error):
    models = pytest.importorskip("torchvision.models")
    program = efficientnet("efficientnet_b0", (64, 64, 3))
    assert torch_error(program, models.efficientnet_b0()) < 1e-4


def test_graph(sound_graph):
    counts = sound_graph(efficientnet("efficientnet_b0"))
    assert counts["sep_conv"] == counts["cse"] == 16
    assert counts["sum"] == 9
    assert counts["bn"] == 1 + 3 * 16 - 1 + 1
    assert counts["bias"] == 2 * 16 + 1


@pytest.mark.parametrize("norm", ["bn", "gn", "in"])
def test_spread(norm, assert_spread_is_sound):
    member = dataclasses.replace(B0, stages=B0.stages[:3], norm=norm, last=64)
    assert_spread_is_sound(efficientnet(member, (32, 32, 1), 5, "small"))


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="no EfficientNet 'efficientnet_b9'"):
        efficientnet("efficientnet_b9")
