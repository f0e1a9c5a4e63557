"""Vision transformers against timm's."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.models.network import Network, feature_taps
from medinit_jax.models.vit import VARIANTS, Variant, vit

SMALL = Variant(width=16, depth=2, heads=2, patch=8)


@pytest.mark.parametrize(
    ("name", "count"),
    [("vit_tiny_patch16_224", 5_717_416), ("vit_small_patch16_224", 22_050_664)],
)
def test_parameter_counts_are_timms(name, count):
    assert vit(name).num_parameters == count


@pytest.mark.torch
@pytest.mark.parametrize(("name", "size"), [(name, size) for name in VARIANTS for size in (64,)])
def test_logits_are_timms(name, size, torch_error):
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, img_size=size)
    assert torch_error(vit(name, (size, size, 3)), net) < 1e-4


@pytest.mark.torch
def test_logits_without_class_token_are_timms(torch_error):
    timm = pytest.importorskip("timm")
    member = dataclasses.replace(VARIANTS["vit_tiny_patch16_224"], class_token=False)
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, class_token=False, global_pool="avg", fc_norm=False
    )
    assert torch_error(vit(member, (32, 32, 3)), net) < 1e-4


def test_graph(sound_graph):
    assert sound_graph(vit("vit_small_patch16_224")) == {
        "input": 1, "conv": 1 + 4 * 12 + 1, "bias": 1 + 4 * 12 + 1, "embed": 1, "concat": 1,
        "pos_enc": 1, "sum": 1 + 2 * 12, "ln": 2 * 12 + 1, "msa": 12,
    }  # fmt: skip


def test_sequences_are_tapped():
    program = vit(SMALL, (32, 32, 1), 5)
    assert feature_taps(program, (0.1, 1.0)) == (1, 4)
    network = Network(program)
    variables = network.init(jax.random.key(0), jnp.ones((2, 32, 32, 1)))
    taps = network.apply(variables, jnp.ones((2, 32, 32, 1)), taps=(1, 5))
    assert [tap.shape for tap in taps] == [(2, 16), (2, 5)]


@pytest.mark.parametrize("class_token", [True, False])
def test_spread(class_token, assert_spread_is_sound):
    member = dataclasses.replace(SMALL, class_token=class_token)
    assert_spread_is_sound(vit(member, (32, 32, 1), 5))


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="patches of 16 pixels do not tile"):
        vit("vit_small_patch16_224", (60, 64, 3))
    with pytest.raises(UsageError, match="no vision transformer 'vit'"):
        vit("vit")
