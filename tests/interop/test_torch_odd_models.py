"""PyTorch modules that hide, share or reparametrize their weights, and those that are refused."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [torch] extra")
pytestmark = pytest.mark.torch

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402

from medinit_jax.core.errors import UsageError  # noqa: E402
from medinit_jax.hyper.hypernetwork import HyperInitializer, init_theta  # noqa: E402
from medinit_jax.interop.torch import initialize, inspect  # noqa: E402

IMAGE = torch.zeros(2, 3, 16, 16)


class Pooled(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def network(change=lambda layer: layer):
    return nn.Sequential(
        change(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), nn.ReLU(), Pooled(), nn.Linear(8, 2)
    )


def statuses(found):
    return {row.path: row.status for row in found.rows}


def reasons(model, *inputs):
    rows = inspect(model, inputs or (IMAGE,)).rows
    return {row.path: row.reason for row in rows if row.status == "fallback"}


def old_weight_norm(layer, dim=0):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer, dim=dim)


CHANGES = {
    "weight_norm": parametrizations.weight_norm,
    "one length": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "old": old_weight_norm,
    "from the end": lambda layer: old_weight_norm(layer, -2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_normalized_kernel_is_the_predicted_one(name, initializer):
    plain, changed = network(), network(CHANGES[name])
    initialize(plain, IMAGE, initializer)
    found = initialize(changed, IMAGE, initializer)
    assert list(statuses(found).values()).count("predicted") == 5
    changed(IMAGE)
    torch.testing.assert_close(changed[0].weight, plain[0].weight)


def test_lengths_follow_their_kernels(initializer):
    norm = parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), norm(nn.Conv2d(8, 8, 3)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = statuses(initialize(model, IMAGE, initializer, depth_fraction=0.0))
    assert set(found.values()) == {"excluded"} and len(found) == 6
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_reparametrizations(initializer):
    model = network(parametrizations.spectral_norm)
    found = initialize(model, IMAGE, initializer)
    assert statuses(found)["0.parametrizations.weight.original"] == "predicted"
    assert found.notes[0].startswith("Spectral norms follow their weights in training mode")
    assert reasons(network(parametrizations.orthogonal)) == {
        "0.parametrizations.weight.original": "is changed by the operation matmul"
    }
    pruned = network(lambda layer: prune.random_unstructured(layer, "weight", 0.5))
    assert statuses(initialize(pruned, IMAGE, initializer))["0.weight_orig"] == "predicted"
    pruned(IMAGE)
    assert torch.equal(pruned[0].weight, pruned[0].weight_orig * pruned[0].weight_mask)


class Queried(nn.Module):
    """A learned query, normalized, reads the image; a class token is repeated."""

    def __init__(self, **options):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.query = nn.Parameter(torch.randn(1, 2, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.place = nn.Parameter(torch.randn(1, 17, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.repeat(len(x), 1, 1), x], 1) + self.place.repeat(len(x), 1, 1)
        return self.fc(self.attention(self.norm(self.query).expand(len(x), -1, -1), x, x)[0])


def test_learned_queries_and_repeated_tokens():
    tokens = dict.fromkeys(("query", "token"), "is a learned token")
    parts = "is used in parts"
    packed = {"attention.in_proj_weight": parts, "attention.in_proj_bias": parts}
    assert reasons(Queried()) == tokens | packed
    assert reasons(Queried(kdim=8, vdim=8)) == tokens | packed
    keys = dict.fromkeys(("attention.bias_k", "attention.bias_v"), "is a learned token")
    assert reasons(Queried(add_bias_kv=True)) == tokens | packed | keys


class Crossed(nn.Module):
    def __init__(self):
        super().__init__()
        self.keys, self.stem = nn.Conv2d(3, 12, 4, 4), nn.Conv2d(3, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, kdim=12, vdim=12)

    def forward(self, x):
        keys, x = (layer(x).flatten(2).transpose(1, 2) for layer in (self.keys, self.stem))
        return torch.relu(self.attention(x, keys, keys)[0])


def test_keys_of_another_width():
    found = inspect(Crossed(), IMAGE)
    assert {f"attention.{name}_proj_weight" for name in "qkv"} <= {
        row.path for row in found.rows if row.status == "predicted"
    }
    assert reasons(Crossed()) == {"attention.in_proj_bias": "is used in parts"}


def test_standardized_convolutions():
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(
        layers.StdConv2d(3, 8, 3), nn.ReLU(), layers.ScaledStdConv2d(8, 8, 3), nn.Conv2d(8, 2, 1)
    )
    assert reasons(model) == {"2.gain": "only changes 2.weight"}


def test_recurrent_layers_say_so_and_still_run(initializer):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.fc = nn.LSTM(48, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.fc(self.cell(x.transpose(1, 2).flatten(2))[0][:, -1])

    model = Recurrent()
    assert set(reasons(model).values()) == {"is used by the operation lstm, which has no rule"}
    initialize(model, IMAGE, initializer)
    assert model(IMAGE).shape == (2, 2)


def test_parameters_that_are_no_real_numbers(initializer):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.steps = nn.Parameter(torch.arange(4).reshape(4, 1, 1), requires_grad=False)
            self.wave = nn.Linear(4, 2, dtype=torch.cfloat)

        def forward(self, x):
            return self.wave((self.conv(x) + self.steps).mean((2, 3)).to(torch.cfloat)).real

    model = Counted()
    assert reasons(model) == {
        "steps": "holds numbers of type int64",
        "wave.weight": "holds numbers of type complex64",
        "wave.bias": "holds numbers of type complex64",
    }
    initialize(model, IMAGE, initializer)
    assert torch.equal(model.steps.flatten(), torch.arange(4))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models(wrap, initializer):
    model = network()
    before = model[0].weight.clone()
    found = initialize(wrap(model), IMAGE, initializer, only="0")
    assert statuses(found)["0.weight"] == "predicted" and not torch.equal(before, model[0].weight)


class Decided(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Numpy(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.detach().numpy())


def test_forward_that_cannot_be_exported_is_one_sentence(capfd):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Decided())
    place = r"\(in 1, a Decided, line \d+ of test_torch_odd_models.py\)"
    with pytest.raises(UsageError, match=f"decides by values of its input {place}"):
        inspect(model, IMAGE)
    with pytest.raises(UsageError, match="in 1, a Numpy.*must not leave PyTorch"):
        inspect(nn.Sequential(nn.Conv2d(3, 8, 1), Numpy()), IMAGE)
    with pytest.raises(UsageError, match=r"to have 3 channels.*\(in 0, a Conv2d\)"):
        inspect(model, torch.zeros(2, 4, 16, 16))
    with pytest.raises(UsageError, match="Input type.*double.*in 0, a Conv2d"):
        inspect(model, IMAGE.double())
    assert capfd.readouterr() == ("", "")


def test_a_size_that_depends_on_values():
    class Selected(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            x = torch.relu(self.conv(x))
            return x[x > 0].mean()

    assert not reasons(Selected())


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning", "ignore:Lazy modules")
def test_models_that_hold_nothing_to_write(initializer):
    scripted = torch.jit.trace(nn.Conv2d(3, 8, 3), IMAGE)
    with pytest.raises(UsageError, match="^0 is a ScriptModule"):
        inspect(nn.Sequential(scripted, nn.Conv2d(8, 2, 1)), IMAGE)
    lazy = nn.Sequential(nn.Conv2d(3, 8, 1), nn.LazyBatchNorm2d(affine=False))
    with pytest.raises(UsageError, match="1.running_mean has no shape yet; call the model once"):
        inspect(lazy, IMAGE)
    with pytest.raises(UsageError, match="0.weight has no shape yet"):
        inspect(nn.Sequential(nn.LazyConv2d(8, 1)), IMAGE)
    empty = network().to("meta")
    assert statuses(inspect(empty, IMAGE.to("meta")))["0.weight"] == "predicted"
    with pytest.raises(UsageError, match="0.weight is on the meta device.*to_empty"):
        initialize(empty, IMAGE.to("meta"), initializer)


def test_a_failure_half_way_leaves_everything_as_it_was(initializer):
    model = network()
    model[1].bias = nn.Parameter(torch.zeros(1).expand(8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match="1.bias cannot be written.*Nothing was changed"):
        initialize(model, IMAGE, initializer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_types_that_an_initializer_does_not_know(initializer):
    small = HyperInitializer(hidden=8, max_shape=(8, 8, 3, 3))
    theta = jax.device_get(init_theta(small, jax.random.key(2))["params"])
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1))
    with pytest.raises(UsageError, match="nodes of type gn"):
        initialize(model, IMAGE, initializer._replace(module=small, theta=theta))
    initialize(
        model, IMAGE, initializer._replace(module=small, theta=theta), unknown_types="nearest"
    )
    assert not np.array_equal(model[1].weight.detach().numpy(), np.ones(8))
