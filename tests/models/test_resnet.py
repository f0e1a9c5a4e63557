"""ResNets: parameters and names of torchvision, stems, widths."""

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.models.resnet import VARIANTS, resnet


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
    ],
)
def test_parameter_counts_are_torchvisions(name, count):
    """The counts that torchvision's documentation lists."""
    assert resnet(name).num_parameters == count


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
