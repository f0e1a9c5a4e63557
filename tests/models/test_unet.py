"""U-Nets against ones written with PyTorch's layers."""

import jax
import jax.numpy as jnp
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.models import resnet, zoo
from medinit_jax.models.network import Network
from medinit_jax.models.unet import Style, unet

SMALL = {"width": 8, "levels": 2}


def on(name, shape, classes=2, **options):
    return zoo.build(f"unet_{name}", classes, shape, **options).program


def torch_unet(in_channels, widths, bottom, classes, encoder=None, encoder_widths=()):
    torch = pytest.importorskip("torch")
    from torch import nn
    from torch.nn import functional

    class TwoConvs(nn.Module):
        def __init__(self, channels, features, up=0):
            super().__init__()
            if up:
                self.up = nn.ConvTranspose2d(up, features, 2, 2)
            self.conv1 = nn.Conv2d(channels, features, 3, padding=1, bias=False)
            self.norm1 = nn.BatchNorm2d(features)
            self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
            self.norm2 = nn.BatchNorm2d(features)

        def forward(self, x, skip=None, size=None):
            if size is not None:
                x = functional.interpolate(x, size, mode="bilinear", align_corners=False)
            elif hasattr(self, "up"):
                x = self.up(x)
            if skip is not None:
                x = torch.cat([skip, x], 1)
            return self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())).relu()

    class Classic(nn.Module):
        def __init__(self):
            super().__init__()
            levels = [in_channels, *widths[::-1], bottom]
            self.encoder = nn.ModuleList(map(TwoConvs, levels[:-1], levels[1:]))
            self.decoder = nn.ModuleList(TwoConvs(2 * n, n, 2 * n) for n in widths)
            self.head = nn.Conv2d(widths[-1], classes, 1)

        def forward(self, x):
            skips = []
            for level, block in enumerate(self.encoder):
                x = block(functional.max_pool2d(x, 2) if level else x)
                skips.append(x)
            skips.pop()
            for block in self.decoder:
                x = block(x, skips.pop())
            return self.head(x)

    class OnResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder
            del encoder.fc
            inputs = [encoder_widths[-1], *widths]
            skips = [*encoder_widths[-2::-1], 0]
            self.decoder = nn.ModuleList(
                TwoConvs(inputs[i] + skips[i], n) for i, n in enumerate(widths)
            )
            self.head = nn.Conv2d(widths[-1], classes, 1)

        def forward(self, image):
            e = self.encoder
            maps = [e.bn1(e.conv1(image)).relu()]
            x = e.maxpool(maps[0])
            for stage in (e.layer1, e.layer2, e.layer3, e.layer4):
                x = stage(x)
                maps.append(x)
            x = maps.pop()
            for block in self.decoder:
                skip = maps.pop() if maps else None
                x = block(x, skip, (image if skip is None else skip).shape[2:])
            return self.head(x)

    return OnResNet() if encoder else Classic()


def test_parameter_count_is_the_usual_one():
    """31,037,633 with one class is what the common PyTorch versions of the classic network have."""
    assert unet(num_classes=1).num_parameters == 31_037_633
    # A bias for each of 18 convolutions replaces scale and bias of its norm.
    channels = 2 * sum((64, 128, 256, 512, 1024, 512, 256, 128, 64))
    assert unet(num_classes=1, norm="none").num_parameters == 31_037_633 - channels


@pytest.mark.torch
def test_logits_of_the_classic_network(torch_error):
    net = torch_unet(3, (512, 256, 128, 64), 1024, 3)
    assert torch_error(unet(None, (32, 48, 3), 3), net) < 1e-4


@pytest.mark.torch
@pytest.mark.parametrize(("name", "last"), [("resnet18", 512), ("resnet50", 2048)])
def test_logits_with_a_resnet(name, last, torch_error):
    """Also for an image size that cannot be halved five times."""
    models = pytest.importorskip("torchvision.models")
    widths = (64, last // 8, last // 4, last // 2, last)
    net = torch_unet(3, (256, 128, 64, 32, 16), 0, 4, getattr(models, name)(num_classes=1), widths)
    assert torch_error(on(name, (70, 64, 3), 4), net) < 1e-4


def test_encoder_modules_are_a_resnets():
    own = on("resnet34", (64, 64, 1)).parameter_shapes()
    encoder = resnet.resnet("resnet34", (64, 64, 1)).parameter_shapes()
    encoder.pop("fc")
    found = {name: leaves for name, leaves in own.items() if name.startswith("encoder.")}
    assert found == {f"encoder.{name}": leaves for name, leaves in encoder.items()}


def test_graph(sound_graph):
    assert sound_graph(unet()) == {
        "input": 1, "conv": 19, "bn": 18, "max_pool": 4, "conv_t": 4, "bias": 5, "concat": 4,
    }  # fmt: skip
    counts = sound_graph(on("resnet18", (224, 224, 3)))
    assert counts["upsample"] == 5 and counts["concat"] == 4 and counts["sum"] == 8
    assert sound_graph(unet(None, (16, 16, 1), 2, "in", **SMALL))["in"] == 10


@pytest.mark.parametrize("up", ["conv_t", "bilinear", "nearest"])
def test_logits_are_as_large_as_the_image(up):
    program = unet(None, (16, 24, 1), 5, decoder=Style(up), **SMALL)
    network = Network(program)
    images = jnp.ones((2, 16, 24, 1))
    logits = network.apply(network.init(jax.random.key(0), images), images)
    assert logits.shape == (2, 16, 24, 5) and program.num_classes == 5
    assert program.head == "head"


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "in", "none"])
def test_spread(norm, assert_spread_is_sound):
    assert_spread_is_sound(unet(None, (16, 16, 1), 2, norm, **SMALL))


@pytest.mark.parametrize(
    "name",
    ["resnetv2_50x1_bit", "regnet_y_400mf", "vgg11_bn", "mobilenet_v2", "efficientnet_b0",
     "convnext_tiny", "densenet121"],
)  # fmt: skip
def test_any_convolutional_network_encodes(name, sound_graph):
    """Its modules but the head are there, and five maps halve the size or fewer quarter it."""
    program = on(name, (64, 64, 3), 3)
    assert program.shapes[-1] == (64, 64, 3)
    own = zoo.build(name, 1, (64, 64, 3)).program
    classifier = own.parameter_shapes()
    body = {f"encoder.{n}" for n in classifier if not n.startswith(own.head.partition(".")[0])}
    found = {n for n in program.parameter_shapes() if n.startswith("encoder.")}
    assert body <= found and len(found) - len(body) <= 1
    assert sound_graph(program)["concat"] >= 3


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="multiples of 16"):
        unet(None, (28, 32, 1))
    with pytest.raises(UsageError, match="no network 'unet_vgg'"):
        zoo.build("unet_vgg", 2)
    with pytest.raises(UsageError, match="no up 'shuffle'"):
        unet(decoder=Style("shuffle"))
    with pytest.raises(UsageError, match="no decoder 'plain'"):
        unet(decoder="plain")
    with pytest.raises(UsageError, match="width=16: at least 1, and only for the U-Net without"):
        on("resnet18", (64, 64, 3), width=16)
    with pytest.raises(UsageError, match="keeps no maps that a decoder could read"):
        on("vit_small_patch16_224", (64, 64, 3))
