"""VGG networks against torchvision's."""

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.models.vgg import Variant, vgg


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vgg11", 132_863_336),
        ("vgg11_bn", 132_868_840),
        ("vgg16", 138_357_544),
        ("vgg16_bn", 138_365_992),
    ],
)
def test_parameter_counts_are_torchvisions(name, count):
    """The map before the head is brought to 7x7, so that the count is that of any image size."""
    assert vgg(name).num_parameters == vgg(name, (64, 64, 3)).num_parameters == count


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "size"), [("vgg11", 224), ("vgg11_bn", 64), ("vgg16", 64), ("vgg16_bn", 288)]
)
def test_logits_are_torchvisions(name, size, torch_error):
    models = pytest.importorskip("torchvision.models")
    net = getattr(models, name)(init_weights=False)
    program = vgg(name, (size, size, 3))

    def rename(module):
        first, number, *layer = module.split(".")
        return f"{first}.{int(number) + (layer == ['norm'])}"

    assert torch_error(program, net, {"classifier.0": (512, 7, 7)}, 1, rename) < 1e-4


def test_graph(sound_graph):
    plain, normed = sound_graph(vgg("vgg16")), sound_graph(vgg("vgg16_bn"))
    assert plain == {"input": 1, "conv": 16, "bias": 16, "max_pool": 5}
    assert normed == {**plain, "bn": 13}
    # A map that is not 7x7 is pooled to it.
    assert sound_graph(vgg("vgg16", (512, 512, 3))) == {**plain, "avg_pool": 1}
    pooled = sound_graph(vgg(Variant((1, 1), "gn", (8, 16), hidden=0), (16, 16, 3)))
    assert pooled["glob_avg"] == 1 and pooled["gn"] == 2


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "in", "none"])
def test_spread(norm, assert_spread_is_sound):
    member = Variant((1, 1, 2, 2), norm, (8, 16, 32, 64), hidden=64)
    assert_spread_is_sound(vgg(member, (32, 32, 1), 5))


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="no VGG 'vgg12'"):
        vgg("vgg12")
