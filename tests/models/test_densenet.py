"""DenseNet against torchvision's."""

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.models.densenet import Variant, densenet


def test_parameter_count_is_torchvisions():
    assert densenet("densenet121").num_parameters == 7_978_856


@pytest.mark.torch
def test_logits_are_torchvisions(torch_error):
    models = pytest.importorskip("torchvision.models")
    program = densenet("densenet121", (64, 64, 3))
    assert torch_error(program, models.densenet121()) < 1e-4


def test_graph(sound_graph):
    counts = sound_graph(densenet("densenet121"))
    assert counts["concat"] == 58
    assert counts["conv"] == 121
    assert counts["bn"] == 121
    assert counts["avg_pool"] == 3


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "in"])
def test_spread(norm, assert_spread_is_sound):
    member = Variant((2, 2, 3), growth=8, stem=16)
    assert_spread_is_sound(densenet(member, (32, 32, 1), 5, "small", norm))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="no DenseNet 'densenet'"):
        densenet("densenet")
    with pytest.raises(UsageError, match="needs a norm"):
        densenet("densenet121", norm="none")
