"""Networks of torchvision, timm and segmentation-models-pytorch: loading, logits, round trips."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [torch] extra")
pytestmark = pytest.mark.torch

from medinit_jax.interop.layouts import from_state, to_state  # noqa: E402
from medinit_jax.models import zoo  # noqa: E402
from medinit_jax.models.features import features  # noqa: E402
from medinit_jax.models.initial import torch_default_parameters  # noqa: E402
from medinit_jax.models.statistics import initial_statistics  # noqa: E402

CLASSES = 5
VITS = {"vit_tiny_patch16_224": (3, 192), "vit_small_patch16_224": (6, 384)}
# Ours: timm's.
TIMM = {
    **{name: name for name in zoo.CLASSIFIERS if name.startswith(("resnet", "vgg", "vit"))},
    "regnet_x_400mf": "regnetx_004",
    "regnet_x_1_6gf": "regnetx_016",
    "regnet_y_400mf": "regnety_004",
    "regnet_y_1_6gf": "regnety_016",
    "mobilenet_v2": "mobilenetv2_100",
    "efficientnet_b0": "efficientnet_b0",
    "convnext_tiny": "convnext_tiny",
    "densenet121": "densenet121",
}
SMP = {
    **{name: name for name in zoo.CLASSIFIERS if name.startswith(("resnet", "vgg"))},
    "densenet121": "densenet121",
    "mobilenet_v2": "mobilenet_v2",
    "efficientnet_b0": "timm-efficientnet-b0",
    "regnet_x_400mf": "timm-regnetx_004",
    "regnet_x_1_6gf": "timm-regnetx_016",
    "regnet_y_400mf": "timm-regnety_004",
    "regnet_y_1_6gf": "timm-regnety_016",
}
SMP.pop("resnetv2_50x1_bit")
# One of each family daily.
DAILY = (
    "resnet18", "regnet_y_400mf", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0",
    "convnext_tiny", "densenet121", "vit_tiny_patch16_224", "vgg11_bn", "resnetv2_50x1_bit",
)  # fmt: skip
NAMES = [
    name if name in DAILY else pytest.param(name, marks=pytest.mark.slow)
    for name in zoo.CLASSIFIERS
]


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
    encoders = pytest.importorskip("segmentation_models_pytorch").encoders
    return encoders.get_encoder(SMP[name], weights=None) if name in SMP else None


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
    return found[-1].numpy().transpose(0, 2, 3, 1) if layout == "smp" else found.numpy()


def nested(flat):
    tree = {}
    for name, value in flat.items():
        module, leaf = name.rsplit("/", 1)
        tree.setdefault(module, {})[leaf] = value
    return tree


def in_torch(state):
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def assert_same(a, b):
    assert {k: (v.shape, v.dtype) for k, v in a.items()} == {
        k: (v.shape, v.dtype) for k, v in b.items()
    }
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_counterparts_say_the_same(name):
    size = 64
    network = zoo.build(name, CLASSES, (size, size, 3))
    program = network.program
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)

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

    held = []
    for layout, make in LIBRARIES.items():
        net = make(name, size)
        if net is None:
            continue
        held.append(layout)
        # In: theirs are read, say the same, and are written back as they were.
        state = {k: v.numpy().copy() for k, v in randomized(net).state_dict().items()}
        found = from_state(name, program, state)
        assert found.unused == () and not found.misshapen
        assert layout == "smp" or not found.missing
        params, statistics = drawn(program)
        params = params | nested(found.params)
        statistics = statistics | nested(found.statistics)
        assert error(net, layout, params, statistics) < 1e-4
        assert_same(to_state(name, program, params, statistics, layout), state)
        # Out: ours are loaded strictly, say the same, and are read back as they were.
        params, statistics = drawn(program)
        state = to_state(name, program, params, statistics, layout)
        net.load_state_dict(in_torch(state), strict=True)
        assert error(net, layout, params, statistics) < 1e-4
        found = from_state(name, program, state, layout)
        kept = params if layout != "smp" else {m: params[m] for m in nested(found.params)}
        jax.tree.map(np.testing.assert_array_equal, nested(found.params), kept)
        jax.tree.map(np.testing.assert_array_equal, nested(found.statistics), statistics)
    assert held
