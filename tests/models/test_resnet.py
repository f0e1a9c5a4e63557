"""ResNets: parameters and names of torchvision, stems, widths."""

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.models.resnet import VARIANTS, Variant, resnet


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_parameter_counts_are_torchvisions(name, count):
    """The counts that torchvision's documentation lists."""
    assert resnet(name).num_parameters == count


@pytest.mark.torch
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_torchvisions(name, torch_error):
    models = pytest.importorskip("torchvision.models")
    assert torch_error(resnet(name, (64, 64, 3)), getattr(models, name)()) < 1e-4


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "in", "none"])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_spread(norm, bottleneck, assert_spread_is_sound):
    member = Variant((1, 1, 1), bottleneck)
    assert_spread_is_sound(resnet(member, (32, 32, 1), 5, "small", 8, norm))


def test_graph(sound_graph):
    counts = sound_graph(resnet("resnet152"))
    assert counts["sum"] == 50 and counts["conv"] == 152 + 4 and counts["bn"] == 151 + 4
    # Without norms every convolution has a bias, as the head.
    assert sound_graph(resnet("resnet18", norm="gn"))["bias"] == 1
    assert sound_graph(resnet("resnet18", norm="none"))["bias"] == 20 + 1


def test_names_are_torchvisions():
    shapes = resnet("resnet50").parameter_shapes()
    assert list(shapes)[:4] == ["conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1"]
    assert shapes["layer1.0.downsample.0"] == {"kernel": (1, 1, 64, 256)}
    assert shapes["layer1.0.downsample.1"] == {"scale": (256,), "bias": (256,)}
    assert shapes["layer4.2.conv2"] == {"kernel": (3, 3, 512, 512)}
    assert shapes["fc"] == {"kernel": (2048, 1000), "bias": (1000,)}
    assert "layer1.1.downsample.0" not in shapes
    assert "layer1.0.downsample.0" not in resnet("resnet18").parameter_shapes()


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes(name):
    features = 2048 if VARIANTS[name].bottleneck else 512
    assert resnet(name).shapes[-2] == (7, 7, features)
    assert resnet(name).shapes[1] == (56, 56, 64)
    small = resnet(name, (28, 28, 1), 2, stem="small", width=16)
    assert small.shapes[1] == (28, 28, 16)
    assert small.shapes[-2] == (4, 4, features // 4)
    assert small.shapes[-1] == (2,)
    assert small.parameter_shapes()["conv1"] == {"kernel": (3, 3, 1, 16)}


def test_equal_residual_blocks_are_one_block():
    program = resnet("resnet34")
    assert len(program.calls) == 18
    assert len({call.block for call in program.calls}) == 9


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="no ResNet 'resnet20'"):
        resnet("resnet20")
    with pytest.raises(UsageError, match="no stem 'cifar'"):
        resnet("resnet18", stem="cifar")
