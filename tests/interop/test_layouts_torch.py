"""Networks of torchvision, timm and segmentation-models-pytorch: loading, logits, round trips."""

import functools
import importlib.util

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [torch] extra")
pytestmark = pytest.mark.torch

from state_trees import assert_same, tree  # noqa: E402

from medinit_jax.core.errors import UsageError  # noqa: E402
from medinit_jax.interop.layouts import from_state, to_state  # noqa: E402
from medinit_jax.interop.weights import read_state  # noqa: E402
from medinit_jax.models import bit, convnext, densenet, vgg, vit, zoo  # noqa: E402
from medinit_jax.models.features import features  # noqa: E402
from medinit_jax.models.initial import torch_default_parameters  # noqa: E402
from medinit_jax.models.network import Network  # noqa: E402
from medinit_jax.models.statistics import initial_statistics  # noqa: E402

CLASSES = 5
VITS = {"vit_tiny_patch16_224": (3, 192), "vit_small_patch16_224": (6, 384)}
# Ours: timm's.
TIMM = {
    **{name: name for name in zoo.CLASSIFIERS if name.startswith(("resnet", "vgg", "vit"))},
    # Another network than regnetx_004, whose last stage is narrower.
    "regnet_x_400mf": "regnetx_004_tv",
    "regnet_x_1_6gf": "regnetx_016",
    "regnet_y_400mf": "regnety_004",
    "regnet_y_1_6gf": "regnety_016",
    "mobilenet_v2": "mobilenetv2_100",
    "efficientnet_b0": "efficientnet_b0",
    "convnext_tiny": "convnext_tiny",
    "densenet121": "densenet121",
}
# Ours: segmentation-models-pytorch's.
SMP = {
    **{name: name for name in zoo.CLASSIFIERS if name.startswith(("resnet", "vgg"))},
    "densenet121": "densenet121",
    "mobilenet_v2": "mobilenet_v2",
    "efficientnet_b0": "timm-efficientnet-b0",
    "regnet_x_400mf": "tu-regnetx_004_tv",
    "regnet_x_1_6gf": "tu-regnetx_016",
    "regnet_y_400mf": "tu-regnety_004",
    "regnet_y_1_6gf": "tu-regnety_016",
}
SMP.pop("resnetv2_50x1_bit")


def torchvision_net(name, size):
    models = pytest.importorskip("torchvision").models
    if name in VITS:
        heads, width = VITS[name]
        return models.VisionTransformer(size, 16, 12, heads, width, 4 * width, num_classes=CLASSES)
    if name == "resnetv2_50x1_bit":
        return None
    return getattr(models, name)(num_classes=CLASSES)


def timm_net(name, size):
    timm = pytest.importorskip("timm")
    if name not in TIMM:
        return None
    options = {"img_size": size} if name in VITS else {}
    return timm.create_model(TIMM[name], num_classes=CLASSES, **options)


def smp_net(name, size):
    # Not among what the [torch] extra brings.
    if name not in SMP or not importlib.util.find_spec("segmentation_models_pytorch"):
        return None
    encoders = importlib.import_module("segmentation_models_pytorch.encoders")
    return encoders.get_encoder(SMP[name], weights=None)


LIBRARIES = {"torchvision": torchvision_net, "timm": timm_net, "smp": smp_net}


def randomized(net):
    """Gives norms, tokens and scales values that a mistake would show in."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif name.endswith("running_mean") or ("token" in name) or ("pos_embed" in name):
                value.normal_(0, 0.3)
            elif value.ndim == 1 and name.endswith(("weight", "gamma")):
                value.uniform_(0.5, 1.5)
            elif name.endswith("layer_scale"):
                value.uniform_(0.2, 0.5)
            elif value.ndim == 1 and value.is_floating_point():
                value.normal_(0, 0.1)
    return net.eval()


def drawn(program):
    """Parameters and statistics of ours, at random."""
    rng = np.random.default_rng(1)
    params = torch_default_parameters(program, jax.random.key(1))
    params = {
        m: {k: np.float32(v + 0.1 * rng.normal(size=v.shape)) if v.ndim < 3 else np.asarray(v)
            for k, v in leaves.items()}
        for m, leaves in params.items()
    }  # fmt: skip
    statistics = {
        m: {
            "mean": rng.normal(0, 0.3, leaves["mean"].shape).astype(np.float32),
            "var": rng.uniform(0.5, 2, leaves["var"].shape).astype(np.float32),
        }
        for m, leaves in initial_statistics(program).items()
    }
    return params, statistics


def answers(net, layout, images):
    """What a network of a library says: logits, or of an encoder the last map."""
    with torch.no_grad():
        found = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        if layout == "smp" and hasattr(net, "conv_head"):
            # Its features end before the last convolution, which it holds all the same.
            found = [net.bn2(net.conv_head(found[-1]))]
        if layout == "smp" and "DenseNet" in type(net).__name__:
            # And before the last ReLU.
            found = [found[-1].relu()]
    return found[-1].numpy().transpose(0, 2, 3, 1) if layout == "smp" else found.numpy()


def in_torch(state):
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def check(name, program, nets):
    """Holds libraries' networks {layout: network} against ours, both ways."""
    network = Network(program)
    images = np.random.default_rng(0).normal(size=(2, *program.input_shape)).astype(np.float32)

    @jax.jit
    def run(params, statistics):
        variables = {"params": params, "batch_stats": statistics}
        return network.apply(variables, images), features(network, variables, images).map

    def error(net, layout, params, statistics):
        own = run(params, statistics)[layout == "smp"]
        theirs = answers(net, layout, images)
        assert own.shape == theirs.shape
        assert theirs.std() > 1e-3
        return float(np.abs(own - theirs).max() / (theirs.max() - theirs.min()))

    for layout, net in nets.items():
        # In: theirs are read, say the same, and are written back as they were.
        state = {k: v.numpy().copy() for k, v in randomized(net).state_dict().items()}
        found = from_state(name, program, state)
        assert found.unused == () and not found.misshapen
        assert layout == "smp" or not found.missing
        params, statistics = drawn(program)
        params |= tree(found.params)
        statistics |= tree(found.statistics)
        assert error(net, layout, params, statistics) < 1e-4
        assert_same(to_state(name, program, params, statistics, layout), state)
        # Out: ours are loaded strictly, say the same, and are read back as they were.
        params, statistics = drawn(program)
        state = to_state(name, program, params, statistics, layout)
        # Strict by default; one encoder does not take the word.
        net.load_state_dict(in_torch(state))
        assert error(net, layout, params, statistics) < 1e-4
        found = from_state(name, program, state, layout)
        own = {module: params[module] for module in tree(found.params)}
        assert set(params) - set(own) == set() or layout == "smp"
        jax.tree.map(np.testing.assert_array_equal, tree(found.params), own)
        jax.tree.map(np.testing.assert_array_equal, tree(found.statistics), statistics)


# Small members of families whose published ones are large.
SIDE = 64
SHAPE = (SIDE, SIDE, 3)
VGG = vgg.Variant((1, 1, 1, 1, 1), "bn", (8, 8, 16, 16, 16), hidden=12)
CONVNEXT = convnext.Variant((1, 1, 2, 1), (8, 16, 24, 32))
DENSENET = densenet.Variant((2, 3), growth=8, stem=16)
VIT = vit.Variant(24, 2, 3)
BIT = bit.Variant((1, 2))


def small_vgg(models):
    layers = models.vgg.make_layers([8, "M", 8, "M", 16, "M", 16, "M", 16, "M"], batch_norm=True)
    net = models.VGG(layers, num_classes=CLASSES)
    hidden = [torch.nn.Linear(16 * 49, 12), torch.nn.Linear(12, 12), torch.nn.Linear(12, CLASSES)]
    net.classifier[0], net.classifier[3], net.classifier[6] = hidden
    return net


def small_convnext(models):
    config = models.convnext.CNBlockConfig
    widths, depths = [*CONVNEXT.widths, None], CONVNEXT.depths
    stages = [config(widths[i], widths[i + 1], depth) for i, depth in enumerate(depths)]
    return models.ConvNeXt(stages, num_classes=CLASSES)


def small_members():
    """Returns {name: (program, {layout: network})}."""
    models, timm = pytest.importorskip("torchvision").models, pytest.importorskip("timm")

    def made(name, **options):
        return timm.create_model(name, num_classes=CLASSES, **options)

    return {
        "vgg11_bn": (
            vgg.vgg(VGG, SHAPE, CLASSES),
            {"torchvision": lambda: small_vgg(models)},
        ),
        "convnext_tiny": (
            convnext.convnext(CONVNEXT, SHAPE, CLASSES),
            {
                "torchvision": lambda: small_convnext(models),
                "timm": lambda: made("convnext_tiny", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
            },
        ),
        "densenet121": (
            densenet.densenet(DENSENET, SHAPE, CLASSES),
            {"torchvision": lambda: models.DenseNet(8, (2, 3), 16, 4, num_classes=CLASSES)},
        ),
        "vit_tiny_patch16_224": (
            vit.vit(VIT, SHAPE, CLASSES),
            {
                "torchvision": lambda: models.VisionTransformer(
                    SIDE, 16, 2, 3, 24, 96, num_classes=CLASSES
                ),
                "timm": lambda: made(
                    "vit_tiny_patch16_224", img_size=SIDE, depth=2, embed_dim=24, num_heads=3
                ),
            },
        ),
        "resnetv2_50x1_bit": (
            bit.bit(BIT, SHAPE, CLASSES),
            {
                "timm": lambda: timm.models.ResNetV2(
                    layers=BIT.depths,
                    channels=(256, 512),
                    num_classes=CLASSES,
                    stem_type="fixed",
                    conv_layer=functools.partial(timm.layers.StdConv2d, eps=1e-8),
                )
            },
        ),
    }


@pytest.mark.parametrize(
    "name",
    ["vgg11_bn", "convnext_tiny", "densenet121", "vit_tiny_patch16_224", "resnetv2_50x1_bit"],
)
def test_small_members_say_the_same(name):
    program, nets = small_members()[name]
    check(name, program, {layout: make() for layout, make in nets.items()})


DAILY = ("resnet18", "regnet_y_400mf", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")


@pytest.mark.filterwarnings("ignore:`timm-` encoders are deprecated")
@pytest.mark.parametrize(
    "name",
    [name if name in DAILY else pytest.param(name, marks=pytest.mark.slow)
     for name in zoo.CLASSIFIERS],
)  # fmt: skip
def test_counterparts_say_the_same(name):
    nets = {layout: make(name, SIDE) for layout, make in LIBRARIES.items()}
    nets = {layout: net for layout, net in nets.items() if net is not None}
    assert nets
    check(name, zoo.build(name, CLASSES, SHAPE).program, nets)
    # What was compiled for all networks would fill the memory.
    jax.clear_caches()


def test_files_of_torch_are_read_without_running_what_they_hold(tmp_path):
    class Runs:
        def __reduce__(self):
            return print, ("run",)

    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(2), "b": Runs()}, path)
    with pytest.raises(UsageError, match=r"holds more than weights .*it names \S*print\)") as error:
        read_state(path)
    assert "weights_only" not in str(error.value)
    half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    held = {"module.a": half, "module.n": torch.tensor(3), "module.d": torch.ones(1).double()}
    torch.save({"state_dict": held, "epoch": 3}, path)
    found = read_state(path)
    assert {k: (v.dtype.name, v.tolist()) for k, v in found.items()} == {
        "a": ("float32", [1.5, -2.0]), "n": ("int64", 3), "d": ("float64", [1.0]),
    }  # fmt: skip
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"a": half}, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(read_state(tmp_path / "w.safetensors")["a"], [1.5, -2.0])


ODD = {
    "sparse": lambda: {"a": torch.zeros(2, 2).to_sparse()},
    "meta": lambda: {"a": torch.zeros(2, device="meta")},
    "numbered": lambda: {1: torch.zeros(2)},
    "list": lambda: [torch.zeros(2)],
    "complex": lambda: {"a": torch.zeros(2, dtype=torch.complex64)},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_of_other_kinds_are_refused(tmp_path, kind):
    torch.save(ODD[kind](), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="plain tensors|complex64 in a, and weights are real"):
        read_state(tmp_path / "w.pth")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "w.pth").touch()
    with pytest.raises(UsageError, match=r"or is damaged \(EOFError\)"):
        read_state(tmp_path / "w.pth")
