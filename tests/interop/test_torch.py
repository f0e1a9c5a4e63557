"""PyTorch modules: graphs, values written in place, what is left alone."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [torch] extra")
pytestmark = pytest.mark.torch

import flax.linen as linen  # noqa: E402
from torch import nn  # noqa: E402

import medinit_jax  # noqa: E402
from medinit_jax.arch import layout  # noqa: E402
from medinit_jax.arch.torch_trace import trace  # noqa: E402
from medinit_jax.arch.vocabulary import NODE_TYPES  # noqa: E402
from medinit_jax.core.errors import UsageError  # noqa: E402
from medinit_jax.hyper.hypernetwork import HyperInitializer  # noqa: E402
from medinit_jax.interop.torch import initialize, inspect  # noqa: E402

IMAGE = torch.zeros(2, 3, 16, 16)


def counts(traced):
    return dict(Counter(NODE_TYPES[kind] for kind in traced.graph.node_type))


class Function(nn.Module):
    """Layers by name, and what happens between them."""

    def __init__(self, body, **layers):
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            else:
                self.add_module(name, layer)
        self.body = body

    def forward(self, *inputs):
        return self.body(self, *inputs)


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape))


def test_a_resnet_has_its_known_graph():
    models = pytest.importorskip("torchvision").models
    traced = trace(models.resnet50(weights=None), [torch.zeros(1, 3, 64, 64)], {})
    assert len(traced.graph.node_type) == 127
    assert (traced.graph.distance == 1).sum() == 142
    assert not traced.reasons and not traced.notes


def by_hand(m, x):
    x = m.c(x)
    x = m.g * (x * torch.rsqrt(x.pow(2).mean(1, True) + 1e-6))
    return m.w @ x.mean((2, 3))[..., None] * m.s


CASES = {
    "squeeze-excite": (
        lambda m, x: m.fc(
            (m.a(x) * torch.sigmoid(m.c(m.b(m.a(x).mean((2, 3)))))[:, :, None, None]).mean((2, 3))
        ),
        {"a": nn.Conv2d(3, 8, 3), "b": nn.Linear(8, 4), "c": nn.Linear(4, 8),
         "fc": nn.Linear(8, 2)},
        {"input": 1, "conv": 5, "bias": 5, "cse": 1, "glob_avg": 1},
        {},
    ),
    "convolutions": (
        lambda m, x: m.e(m.d(m.c(m.b(m.a(x))))),
        {"a": nn.Conv2d(3, 8, 3, bias=False), "b": nn.Conv2d(8, 8, 3, groups=8, bias=False),
         "c": nn.Conv2d(8, 8, 3, groups=2, bias=False),
         "d": nn.ConvTranspose2d(8, 4, 2, 2, bias=False), "e": nn.Conv2d(4, 2, 1)},
        {"input": 1, "conv": 2, "sep_conv": 1, "group_conv": 1, "conv_t": 1, "bias": 1},
        {},
    ),
    "norms": (
        lambda m, x: m.ln(m.i(m.g(m.b(m.conv(x)))).flatten(2).transpose(1, 2)),
        {"conv": nn.Conv2d(3, 8, 3), "b": nn.BatchNorm2d(8), "g": nn.GroupNorm(2, 8),
         "i": nn.InstanceNorm2d(8, affine=True), "ln": nn.LayerNorm(8)},
        {"input": 1, "conv": 1, "bias": 1, "bn": 1, "gn": 1, "in": 1, "ln": 1},
        {},
    ),
    "attention": (
        lambda m, x: m.fc(m.t(torch.cat([m.cls.expand(2, -1, -1),
                                         m.p(x).flatten(2).transpose(1, 2)], 1) + m.pos)[:, 0]),
        {"p": nn.Conv2d(3, 8, 4, 4), "cls": parameter(1, 1, 8), "pos": parameter(1, 17, 8),
         "t": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), "fc": nn.Linear(8, 2)},
        {"input": 1, "conv": 6, "bias": 6, "ln": 2, "msa": 1, "embed": 1, "concat": 1,
         "pos_enc": 1, "sum": 3},
        {"cls": "learned token"},
    ),
    "by hand": (
        by_hand,
        {"c": nn.Conv2d(3, 8, 3), "g": parameter(8, 1, 1), "w": parameter(4, 8), "s": parameter(1)},
        {"input": 1, "conv": 2, "bias": 1, "ln": 1, "glob_avg": 1},
        {"s": "without a rule"},
    ),
    "pools": (
        lambda m, x: torch.cat([m.up(m.avg(m.top(m.c(x)))), m.c(x)], 1),
        {"c": nn.Conv2d(3, 8, 1), "top": nn.MaxPool2d(2), "avg": nn.AvgPool2d(2),
         "up": nn.Upsample(scale_factor=4)},
        {"input": 1, "conv": 2, "bias": 2, "max_pool": 1, "avg_pool": 1, "upsample": 1,
         "concat": 1},
        {},
    ),
    "scales": (
        lambda m, x: m.a(x) + m.gamma * m.b(m.act(m.a(x))),
        {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 8, 1), "gamma": parameter(8, 1, 1),
         "act": nn.PReLU()},
        {"input": 1, "conv": 3, "bias": 3, "layer_scale": 1, "sum": 1},
        {"gamma": "layer scale", "act.weight": "prelu"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_rule(name):
    body, layers, wanted, reasons = CASES[name]
    traced = trace(Function(body, **layers), [IMAGE], {})
    assert counts(traced) == wanted
    assert traced.reasons.keys() == reasons.keys()
    for path, part in reasons.items():
        assert part in traced.reasons[path]


PLAIN = {
    "instance": (nn.InstanceNorm2d(8), True),
    "batch": (nn.BatchNorm2d(8, affine=False), True),
    "group": (nn.GroupNorm(2, 8, affine=False), True),
    "layer": (nn.LayerNorm(14, elementwise_affine=False), True),
    "none": (nn.ReLU(), False),
    "pool": (nn.AvgPool2d(2), False),
}


@pytest.mark.parametrize("name", PLAIN)
def test_normalization_counts_without_parameters_too(name):
    layer, wanted = PLAIN[name]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert trace(model, [IMAGE], {}).normalized is wanted
    told = " ".join(inspect(model, IMAGE).notes)
    assert ("no normalization layer" in told) is not wanted


class Twin(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.fc = nn.Linear(12, 2)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc((x + self.depthwise(x)).mean((2, 3)))


class FlaxTwin(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(12, (3, 3), 2, 1, use_bias=False, name="conv")(x)
        x = linen.relu(linen.BatchNorm(use_running_average=True, name="bn")(x))
        x = x + linen.Conv(12, (3, 3), feature_group_count=12, name="depthwise")(x)
        return linen.Dense(2, name="fc")(x.mean((1, 2)))


def test_both_libraries_get_the_same_values(initializer):
    model = Twin()
    initialize(model, IMAGE, initializer)
    params = medinit_jax.initialize(FlaxTwin(), jnp.zeros((2, 16, 16, 3)), initializer)["params"]
    for name, leaves in params.items():
        if name == "fc":
            continue
        for leaf, value in leaves.items():
            attribute = "bias" if leaf == "bias" else "weight"
            own = getattr(getattr(model, name), attribute).detach().numpy()
            own = own.transpose(2, 3, 1, 0) if own.ndim == 4 else own
            np.testing.assert_allclose(own, value, rtol=1e-5, atol=1e-6)


def test_what_is_not_predicted_stays(initializer):
    model = Twin().to(torch.bfloat16)
    model.conv.weight.requires_grad_(False)
    model.bn.running_mean.fill_(3.0)
    model.train()
    model.depthwise.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = initialize(model, IMAGE.to(torch.bfloat16), initializer)
    after = model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        row.path for row in found.rows if row.status == "predicted"
    } == {"conv.weight", "bn.weight", "bn.bias", "depthwise.weight", "depthwise.bias"}  # fmt: skip
    assert all(value.dtype == before[name].dtype for name, value in after.items())
    assert not model.conv.weight.requires_grad and model.bn.weight.requires_grad
    assert model.training and not model.depthwise.training
    assert {row.path: row.status for row in found.rows}["fc.weight"] == "excluded"


class Merging(nn.Linear):
    """Rewrites its weight when it is put into evaluation mode, as adapters do."""

    def train(self, mode=True):
        if not mode:
            self.weight.data += 1
        return super().train(mode)


def test_looking_at_a_model_does_not_call_its_train():
    model = nn.Sequential(nn.Flatten(), Merging(768, 4), nn.Linear(4, 2))
    before = model[1].weight.clone()
    inspect(model, IMAGE)
    assert torch.equal(before, model[1].weight) and model.training


@pytest.mark.parametrize("groups, outputs", [(1, 1), (1, 6), (2, 6), (4, 4)])
def test_kernels_of_transposed_convolutions(groups, outputs):
    layers = {"a": nn.Conv2d(3, 4, 1), "b": nn.ConvTranspose2d(4, outputs, 2, 2, groups=groups)}
    traced = trace(Function(lambda m, x: torch.relu(m.b(m.a(x))), **layers), [IMAGE], {})
    (tensor,) = (t for t in traced.tensors.values() if t.path == "b.weight")
    assert tensor.shape == (2, 2, 4 // groups, outputs)
    stored = np.arange(np.prod(tensor.stored)).reshape(tensor.stored)
    found = layout.apply(stored, tensor.layout)
    for out in range(outputs):
        group, rest = divmod(out, outputs // groups)
        for into in range(4 // groups):
            wanted = stored[group * (4 // groups) + into, rest]
            np.testing.assert_array_equal(found[:, :, into, out], wanted)


def test_a_tied_parameter_is_written_once(initializer):
    model = Function(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1))
    model.b.weight = model.a.weight
    found = initialize(model, IMAGE, initializer)
    assert model.b.weight is model.a.weight
    assert [row.path for row in found.rows] == ["a.weight", "a.bias", "b.bias"]


def test_only_a_part_and_the_head(initializer):
    model = Twin()
    found = inspect(model, IMAGE, only="bn")
    assert {row.path for row in found.rows if row.status == "predicted"} == {"bn.weight", "bn.bias"}
    model.fc = nn.Linear(12, 4)
    before = model.fc.weight.clone()
    initialize(model, IMAGE, initializer, head=True)
    assert not torch.equal(before, model.fc.weight)


def test_bad_input_is_a_sentence_and_nothing_is_written(initializer):
    model = Twin()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match="Twin cannot be exported.*Check the example's shape"):
        initialize(model, torch.zeros(2, 5, 16, 16), initializer)
    with pytest.raises(UsageError, match="2 classes"):
        initialize(model, IMAGE, initializer, head=True)
    with pytest.raises(UsageError, match="give a tensor"):
        initialize(model, np.zeros((2, 3, 16, 16)), initializer)
    with pytest.raises(UsageError, match="give a torch.nn.Module"):
        initialize(object(), IMAGE, initializer)
    prelu = Function(lambda m, x: m.act(m.a(x)), a=nn.Conv2d(3, 8, 1), act=nn.PReLU())
    with pytest.raises(UsageError, match=r"act.weight \(is used by the operation prelu"):
        initialize(prelu, IMAGE, initializer, on_unknown="error")
    small = initializer._replace(module=HyperInitializer(hidden=8, max_shape=(8, 8, 3, 3)))
    norm = Function(lambda m, x: m.g(m.a(x)), a=nn.Conv2d(3, 8, 1), g=nn.GroupNorm(2, 8))
    with pytest.raises(UsageError, match="nodes of type gn.*unknown_types='nearest'"):
        initialize(norm, IMAGE, small)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
