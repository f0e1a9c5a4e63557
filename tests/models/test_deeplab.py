"""DeepLabv3+ against torchvision's dilated ResNet and pyramid, and a decoder of PyTorch layers."""

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.models import resnet
from medinit_jax.models.deeplab import Variant, deeplab

SMALL = Variant(resnet.Variant((1, 1, 1, 1), True), 16, 8)


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
    program = deeplab("deeplabv3plus_resnet50", (72, 64, 3), 3, output_stride)
    assert torch_error(program, torch_deeplab(output_stride, 3), batch=1) < 1e-4


def test_parameter_count():
    """A ResNet-50 without head, the pyramid, the decoder, the head."""
    encoder = 25_557_032 - 2048 * 1000 - 1000
    pyramid = 2 * 2048 * 256 + 3 * 9 * 2048 * 256 + 5 * 256 * 256 + 6 * 2 * 256
    decoder = 256 * 48 + 2 * 48 + 9 * (304 + 256) * 256 + 2 * 2 * 256
    head = 256 * 2 + 2
    program = deeplab("deeplabv3plus_resnet50", num_classes=2)
    assert program.num_parameters == encoder + pyramid + decoder + head


@pytest.mark.parametrize(("output_stride", "size"), [(8, 8), (16, 4), (32, 2)])
def test_output_stride(output_stride, size):
    program = deeplab(SMALL, (64, 64, 1), 2, output_stride)
    calls = [call.prefix for call in program.calls]
    assert program.shapes[1 + calls.index("encoder.layer4.0")] == (size, size, 2048)
    assert program.shapes[-1] == (64, 64, 2)


def test_graph(sound_graph):
    counts = sound_graph(deeplab("deeplabv3plus_resnet50"))
    assert counts["conv"] == 53 + 6 + 3 + 1
    assert counts["bn"] == 53 + 6 + 3
    assert counts["concat"] == 2 and counts["upsample"] == 3
    assert counts["glob_avg"] == counts["bias"] == 1


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "none"])
def test_spread(norm, assert_spread_is_sound):
    member = Variant(resnet.Variant((1, 1, 1, 1), False), 16, 8)
    assert_spread_is_sound(deeplab(member, (32, 32, 1), 5, norm=norm))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="no DeepLab 'deeplab'"):
        deeplab("deeplab")
    with pytest.raises(UsageError, match="output_stride is 8, 16 or 32, got 4"):
        deeplab("deeplabv3plus_resnet18", output_stride=4)
