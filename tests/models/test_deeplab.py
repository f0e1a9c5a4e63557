"""DeepLabv3+ against torchvision's dilated ResNet and pyramid, and a decoder of PyTorch layers."""

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.models import resnet, zoo
from medinit_jax.models.deeplab import deeplab


def small(shape, classes, bottleneck=True, norm="bn", **options):
    variant = resnet.Variant((1, 1, 1, 1), bottleneck)
    encoder = resnet.resnet(variant, shape, 1, norm=norm)
    return deeplab(encoder, shape, classes, norm=norm, features=16, low_features=8, **options)


def on(name, shape=(224, 224, 3), classes=2, **options):
    return zoo.build(f"deeplabv3plus_{name}", classes, shape, **options).program


def torch_deeplab(output_stride, classes):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    from torch import nn
    from torch.nn import functional
    from torchvision.models.segmentation.deeplabv3 import ASPP

    def conv(channels, features, size):
        return nn.Sequential(
            nn.Conv2d(channels, features, size, padding=size // 2, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(),
        )

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.low = conv(256, 48, 1)
            self.convs = nn.Sequential(conv(304, 256, 3), conv(256, 256, 3))

    class DeepLab(nn.Module):
        def __init__(self):
            super().__init__()
            dilated = [False, output_stride < 16, True]
            self.encoder = models.resnet50(replace_stride_with_dilation=dilated)
            del self.encoder.fc
            self.aspp = ASPP(2048, [rate * 16 // output_stride for rate in (6, 12, 18)])
            self.decoder = Decoder()
            self.head = nn.Conv2d(256, classes, 1)

        def forward(self, image):
            e = self.encoder
            low = e.layer1(e.maxpool(e.bn1(e.conv1(image)).relu()))
            high = self.aspp(e.layer4(e.layer3(e.layer2(low))))
            high = self.resize(high, low)
            x = self.decoder.convs(torch.cat([high, self.decoder.low(low)], 1))
            return self.resize(self.head(x), image)

        def resize(self, x, like):
            return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    return DeepLab()


@pytest.mark.torch
@pytest.mark.parametrize("output_stride", [8, 16])
def test_logits(output_stride, torch_error):
    program = on("resnet50", (72, 64, 3), 3, output_stride=output_stride)
    assert torch_error(program, torch_deeplab(output_stride, 3), batch=1) < 1e-4


def test_parameter_count():
    """A ResNet-50 without head, the pyramid, the decoder, the head."""
    encoder = 25_557_032 - 2048 * 1000 - 1000
    pyramid = 2 * 2048 * 256 + 3 * 9 * 2048 * 256 + 5 * 256 * 256 + 6 * 2 * 256
    decoder = 256 * 48 + 2 * 48 + 9 * (304 + 256) * 256 + 2 * 2 * 256
    head = 256 * 2 + 2
    program = on("resnet50")
    assert program.num_parameters == encoder + pyramid + decoder + head


@pytest.mark.parametrize(("output_stride", "size"), [(8, 8), (16, 4), (32, 2)])
def test_output_stride(output_stride, size):
    program = small((64, 64, 1), 2, output_stride=output_stride)
    calls = [call.prefix for call in program.calls]
    assert program.shapes[1 + calls.index("encoder.layer4.0")] == (size, size, 2048)
    assert program.shapes[-1] == (64, 64, 2)


def test_graph(sound_graph):
    counts = sound_graph(on("resnet50"))
    assert counts["conv"] == 53 + 6 + 3 + 1
    assert counts["bn"] == 53 + 6 + 3
    assert counts["concat"] == 2 and counts["upsample"] == 3
    assert counts["glob_avg"] == counts["bias"] == 1


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "none"])
def test_spread(norm, assert_spread_is_sound):
    assert_spread_is_sound(small((32, 32, 1), 5, False, norm))


def test_dilation_is_that_of_the_authors():
    """The first block that should have strided still reads the old distance."""
    program = on("resnet18", (64, 64, 3), output_stride=8)
    found = {
        call.module(step.name): step.dilation
        for call in program.calls
        for step in call.block.steps
        if step.kind == "conv" and "encoder.layer" in call.prefix and step.kernel == (3, 3)
    }
    assert [found[f"encoder.layer3.{i}.conv{j}"] for i in (0, 1) for j in (1, 2)] == [1, 2, 2, 2]
    assert [found[f"encoder.layer4.{i}.conv{j}"] for i in (0, 1) for j in (1, 2)] == [2, 4, 4, 4]
    assert set(found[name] for name in found if "layer1" in name or "layer2" in name) == {1}


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="no network 'deeplabv3plus_net'"):
        zoo.build("deeplabv3plus_net", 2)
    with pytest.raises(UsageError, match="output_stride is 8, 16 or 32, got 4"):
        on("resnet18", output_stride=4)
    with pytest.raises(UsageError, match="no decoder 'plain'"):
        on("resnet18", decoder="plain")
    with pytest.raises(UsageError, match="this network pools beyond output stride 16"):
        on("densenet121", output_stride=16)
