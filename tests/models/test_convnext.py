"""ConvNeXt against torchvision's."""

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.models.convnext import Variant, convnext


def test_parameter_count_is_torchvisions():
    assert convnext("convnext_tiny").num_parameters == 28_589_128


@pytest.mark.torch
def test_logits_are_torchvisions(torch_error):
    models = pytest.importorskip("torchvision.models")
    program = convnext("convnext_tiny", (64, 64, 3))
    assert torch_error(program, models.convnext_tiny()) < 1e-4


def test_graph(sound_graph):
    counts = sound_graph(convnext("convnext_tiny"))
    assert counts["sep_conv"] == counts["layer_scale"] == counts["sum"] == 18
    # Two layers per block, a stem, three transitions, a head.
    assert counts["conv"] == 2 * 18 + 1 + 3 + 1
    assert counts["ln"] == 18 + 1 + 3 + 1


@pytest.mark.parametrize("layer_scale", [True, False])
def test_spread(layer_scale, assert_spread_is_sound):
    member = Variant((1, 1, 2), (16, 32, 64), patch=2, layer_scale=layer_scale)
    program = convnext(member, (32, 32, 1), 5)
    assert program.shapes[1] == (16, 16, 16)
    assert_spread_is_sound(program)


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="no ConvNeXt 'convnext'"):
        convnext("convnext")
