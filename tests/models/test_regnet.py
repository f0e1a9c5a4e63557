"""RegNets against torchvision's."""

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.models.regnet import VARIANTS, Variant, regnet

IMAGE = (64, 64, 3)
SMALL = Variant(depth=4, start=16, slope=20.0, ratio=2.5, group_width=8, squeeze=0.25)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("regnet_x_400mf", 5_495_976),
        ("regnet_x_1_6gf", 9_190_136),
        ("regnet_y_400mf", 4_344_144),
        ("regnet_y_1_6gf", 11_202_430),
    ],
)
def test_parameter_counts_are_torchvisions(name, count):
    assert regnet(name).num_parameters == count


def test_stages_are_those_of_the_paper():
    """Table of appendix D: RegNetY-1.6GF has widths 48, 120, 336, 888 and depths 2, 6, 17, 2."""
    stages = VARIANTS["regnet_y_1_6gf"].stages()
    assert stages == [(2, 48, 24), (6, 120, 24), (17, 336, 24), (2, 888, 24)]


@pytest.mark.torch
@pytest.mark.parametrize("name", ["regnet_y_400mf", "regnet_y_1_6gf", "regnet_x_400mf"])
def test_logits_are_torchvisions(name, torch_error):
    models = pytest.importorskip("torchvision.models")
    assert torch_error(regnet(name, IMAGE), getattr(models, name)()) < 1e-4


def test_graph(sound_graph):
    counts = sound_graph(regnet("regnet_y_1_6gf"))
    blocks, projections = 27, 4
    assert counts["group_conv"] == counts["cse"] == counts["sum"] == blocks
    # Two 1x1 convolutions and two layers of a gate per block; stem and head.
    assert counts["conv"] == 4 * blocks + projections + 2
    assert counts["bn"] == 3 * blocks + projections + 1
    assert counts["bias"] == 2 * blocks + 1
    assert counts["glob_avg"] == 1


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "in", "none"])
def test_spread(norm, assert_spread_is_sound):
    assert_spread_is_sound(regnet(SMALL, (32, 32, 1), 5, "small", norm))


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="no RegNet 'regnet_z'"):
        regnet("regnet_z")
    with pytest.raises(UsageError, match="no norm 'wn'"):
        regnet("regnet_y_400mf", norm="wn")
