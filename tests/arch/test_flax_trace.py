"""Graphs read off Flax models: golden counts, one small model for every rule, bad models."""

from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from flax import nnx

from medinit_jax.arch import flax_layers, flax_model, flax_trace
from medinit_jax.arch.graph import build_graph
from medinit_jax.arch.vocabulary import NODE_TYPES, TYPE_INDEX
from medinit_jax.core.errors import UsageError
from medinit_jax.models.resnet import resnet

IMAGE = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)


def traced(model, *inputs, options=None, **settings):
    inputs = inputs or (IMAGE,)
    # Flax itself mixes dtypes here and there.
    with jax.numpy_dtype_promotion("standard"):
        if isinstance(model, nnx.Module):
            pure = flax_model.nnx_model(model, options or {})
        else:
            start = flax_model.linen_start(model, inputs, options or {}, jax.random.key(0))
            pure = flax_model.linen_model(model, start, options or {})
        return flax_trace.trace(pure, inputs, **settings)


def counts(found):
    return dict(Counter(NODE_TYPES[kind] for kind in found.graph.node_type))


def edges(graph):
    return int((graph.distance == 1).sum())


def before(found, kind):
    """Types of the nodes that lead straight to the first node of a type."""
    graph = found.graph
    node = int(np.flatnonzero(graph.node_type == TYPE_INDEX[kind])[0])
    sources = graph.senders[(graph.receivers == node) & (graph.distance == 1)]
    return sorted(NODE_TYPES[graph.node_type[source]] for source in sources)


def networkx_graph(graph):
    result = nx.DiGraph()
    for node, (kind, shape) in enumerate(zip(graph.node_type, graph.shape, strict=True)):
        result.add_node(node, label=(int(kind), tuple(shape.tolist())))
    direct = graph.distance == 1
    pairs = zip(graph.senders[direct].tolist(), graph.receivers[direct].tolist(), strict=True)
    result.add_edges_from(pairs)
    return result


class Bottleneck(nn.Module):
    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        def norm():
            return nn.BatchNorm(use_running_average=True)

        y = nn.relu(norm()(nn.Conv(self.features, (1, 1), use_bias=False)(x)))
        y = nn.Conv(self.features, (3, 3), self.stride, 1, use_bias=False)(y)
        y = nn.relu(norm()(y))
        y = norm()(nn.Conv(4 * self.features, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = nn.Conv(4 * self.features, (1, 1), self.stride, use_bias=False)(x)
            x = norm()(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    depths: tuple

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (7, 7), 2, 3, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                stride = 2 if stage and not block else 1
                x = Bottleneck(64 * 2**stage, stride)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


@pytest.mark.parametrize(
    "name, depths, nodes, arcs",
    [("resnet50", (3, 4, 6, 3), 127, 142), ("resnet101", (3, 4, 23, 3), 246, 278)],
)
def test_resnets_have_the_graph_that_the_rules_give_their_programs(name, depths, nodes, arcs):
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    found = traced(ResNet(depths), image)
    assert (len(found.graph.node_type), edges(found.graph)) == (nodes, arcs)
    assert not found.reasons and not found.notes
    program = build_graph(resnet(name, (64, 64, 3)))
    assert len(found.graph.distance) == len(program.distance)
    own, wanted = networkx_graph(found.graph), networkx_graph(program)
    assert nx.is_isomorphic(own, wanted, node_match=lambda a, b: a["label"] == b["label"])


def function(body, **attributes):
    """Makes a compact module of a function (module, x)."""

    def call(self, x):
        return body(self, x)

    return type("Model", (nn.Module,), {"__call__": nn.compact(call), **attributes})()


def squeeze_excite(self, x):
    y = nn.Conv(8, (3, 3))(x)
    s = nn.Dense(4)(y.mean((1, 2), keepdims=True))
    return nn.Dense(2)((y * nn.sigmoid(nn.Dense(8)(nn.relu(s)))).mean((1, 2)))


def two_gates(self, x):
    y = nn.Conv(8, (3, 3))(x)
    return y * nn.sigmoid(nn.Conv(8, (3, 3))(y)) * nn.sigmoid(nn.Conv(1, (1, 1))(y))


def attention(self, x):
    t = nn.Conv(8, (4, 4), (4, 4))(x).reshape(x.shape[0], 16, 8)
    return nn.MultiHeadDotProductAttention(2)(t).mean(1)


def fused_attention(self, x):
    t = nn.Conv(8, (4, 4), (4, 4))(x).reshape(x.shape[0], 16, 8)
    for _ in range(2):
        q, k, v = jnp.split(nn.Dense(24)(t), 3, -1)
        weights = jnp.einsum("bqc,bkc->bqk", q, k) / 8**0.5
        weights = weights + self.param(f"bias{_}", nn.initializers.zeros, (16, 16))
        t = t + nn.Dense(8)(nn.softmax(weights) @ v)
    return t


def tokens(self, x):
    t = nn.Conv(8, (4, 4), (4, 4))(x).reshape(x.shape[0], 16, 8)
    token = self.param("cls", nn.initializers.zeros, (1, 1, 8))
    t = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 8)), t], 1)
    t = t + self.param("position", nn.initializers.normal(), (1, 17, 8))
    return nn.Dense(2)(t[:, 0])


def norms(self, x):
    x = nn.GroupNorm(2)(nn.Conv(8, (3, 3))(x))
    x = nn.GroupNorm(8)(nn.Conv(8, (3, 3))(x))
    x = nn.InstanceNorm()(nn.Conv(8, (3, 3))(x))
    x = nn.LayerNorm()(nn.Conv(8, (3, 3))(x))
    return nn.RMSNorm()(x)


def written_norms(self, x):
    """RMS, layer and batch normalization by hand."""
    x = nn.Conv(8, (3, 3))(x)
    x = (
        x
        * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        * self.param("rms", nn.initializers.ones, (8,))
    )
    x = nn.Conv(8, (3, 3))(x)
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * self.param("scale", nn.initializers.ones, (8,))
    return x + self.param("shift", nn.initializers.zeros, (8,))


def convolutions(self, x):
    x = nn.Conv(8, (3, 3))(x)
    x = nn.Conv(8, (3, 3), feature_group_count=8)(x)
    x = nn.Conv(8, (3, 3), feature_group_count=8, kernel_dilation=2)(x)
    x = nn.Conv(8, (3, 3), feature_group_count=2)(x)
    x = nn.Conv(8, (3, 3), kernel_dilation=2)(x)
    x = nn.ConvTranspose(4, (2, 2), (2, 2), transpose_kernel=True)(x)
    return jax.image.resize(x, (x.shape[0], 64, 64, 4), "bilinear")


def raw(self, x):
    draw = nn.initializers.normal()
    x = jax.lax.conv(
        x.transpose(0, 3, 1, 2), self.param("oihw", draw, (8, 3, 3, 3)), (1, 1), "SAME"
    )
    x = x.transpose(0, 2, 3, 1) + self.param("b", draw, (8,))
    x = x.mean((1, 2)) @ self.param("w", draw, (4, 8)).T
    return x * self.param("temperature", draw, ())


def shared(self, x):
    conv = nn.Conv(3, (3, 3))
    return conv(nn.relu(conv(x)))


def unused(self, x):
    nn.Dense(7)(nn.Conv(4, (3, 3))(x))
    self.param("never", nn.initializers.ones, (3,))
    return nn.Conv(2, (1, 1))(x)


def pools(self, x):
    x = nn.avg_pool(nn.max_pool(x, (2, 2), (2, 2)), (2, 2), (2, 2))
    return nn.Dense(2)(nn.avg_pool(x, (4, 4)).reshape(x.shape[0], -1))


def line(self, x):
    return nn.Conv(4, (3,))(x.reshape(x.shape[0], 256, 3))


def volume(self, x):
    return nn.Conv(4, (3, 3, 3))(x.reshape(x.shape[0], 4, 4, 16, 3)).mean((1, 2, 3))


def scales(self, x):
    x = nn.Conv(8, (3, 3))(x)
    return x + self.param("gamma", nn.initializers.ones, (8,)) * nn.Conv(8, (3, 3))(x)


@pytest.mark.parametrize(
    "body, wanted, reasons",
    [
        (squeeze_excite, {"input": 1, "conv": 4, "bias": 4, "cse": 1, "glob_avg": 1}, {}),
        (two_gates, {"input": 1, "conv": 3, "bias": 3, "mul": 2}, {}),
        (attention, {"input": 1, "conv": 5, "bias": 5, "msa": 1, "glob_avg": 1}, {}),
        (
            fused_attention,
            {"input": 1, "conv": 5, "bias": 5, "msa": 2, "sum": 2, "embed": 2},
            {"bias0": "bias of attention", "bias1": "bias of attention"},
        ),
        (
            tokens,
            {"input": 1, "conv": 2, "bias": 2, "embed": 1, "concat": 1, "pos_enc": 1, "sum": 1},
            {"cls": "learned token"},
        ),
        (norms, {"input": 1, "conv": 4, "bias": 4, "gn": 1, "in": 2, "ln": 2}, {}),
        (written_norms, {"input": 1, "conv": 2, "bias": 2, "ln": 2}, {}),
        (
            convolutions,
            {"input": 1, "conv": 2, "bias": 6, "sep_conv": 1, "dil_conv": 1, "group_conv": 1,
             "conv_t": 1, "upsample": 1},
            {},
        ),
        (
            raw,
            {"input": 1, "conv": 2, "bias": 1, "glob_avg": 1},
            {"temperature": "multiplies features"},
        ),
        (shared, {"input": 1, "conv": 2, "bias": 2}, {}),
        (
            unused,
            {"input": 1, "conv": 1, "bias": 1},
            {"never": "never used", "Conv_0/kernel": "lead to an output",
             "Conv_0/bias": "lead to an output", "Dense_0/kernel": "lead to an output",
             "Dense_0/bias": "lead to an output"},
        ),
        (
            pools,
            {"input": 1, "max_pool": 1, "avg_pool": 1, "glob_avg": 1, "conv": 1, "bias": 1},
            {},
        ),
        (line, {"input": 1, "conv": 1, "bias": 1}, {}),
        (
            volume,
            {"input": 1, "conv": 1, "bias": 1, "glob_avg": 1},
            {"Conv_0/kernel": "three dimensions"},
        ),
        (
            scales,
            {"input": 1, "conv": 2, "bias": 2, "layer_scale": 1, "sum": 1},
            {"gamma": "layer scale"},
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_every_rule(body, wanted, reasons):
    found = traced(function(body))
    assert counts(found) == wanted
    assert found.reasons.keys() == reasons.keys()
    for path, part in reasons.items():
        assert part in found.reasons[path]
    placed = {tensor.path for tensor in found.tensors.values()}
    assert placed | found.reasons.keys() == found.leaves.keys()
    assert not placed & found.reasons.keys()


def plain_norm(self, x):
    return nn.GroupNorm(2, use_scale=False, use_bias=False)(nn.Conv(8, (3, 3))(x))


def plain_norm_by_hand(self, x):
    x = nn.Conv(8, (3, 3))(x)
    return nn.Conv(2, (1, 1))(jax.nn.standardize(x, (1, 2)))


@pytest.mark.parametrize(
    "body, wanted",
    [
        (norms, True),
        (plain_norm, True),
        (plain_norm_by_hand, True),
        (attention, False),
        (scales, False),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_normalization_counts_without_parameters_too(body, wanted):
    assert traced(function(body)).normalized is wanted


def test_what_leads_where():
    assert before(traced(function(squeeze_excite)), "cse") == ["bias", "bias"]
    assert before(traced(function(attention)), "msa") == ["bias", "bias", "bias"]
    assert before(traced(function(fused_attention)), "msa") == ["bias", "embed"]
    assert before(traced(function(tokens)), "sum") == ["concat", "pos_enc"]


def test_the_predicted_form_of_raw_kernels():
    found = traced(function(raw))
    shapes = {tensor.path: tensor.shape for tensor in found.tensors.values()}
    assert shapes == {"oihw": (3, 3, 3, 8), "b": (8,), "w": (8, 4)}
    assert [found.leaves[path] for path in shapes] == [(8, 3, 3, 3), (8,), (4, 8)]


def test_a_shared_layer_is_written_once():
    found = traced(function(shared))
    assert len(found.tensors) == 2
    assert found.notes == ("Conv_0 runs more than once; its first use decides what is written",)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Conv(8, (3, 3))(nn.LayerNorm()(x)), None


def stack(self, x):
    options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 3}
    x, _ = nn.scan(nn.remat(Block), **options)(name="blocks")(nn.Conv(8, (3, 3))(x), None)
    return nn.Dense(2)(x.mean((1, 2)))


def test_a_scan_over_layers_has_nodes_for_each():
    found = traced(function(stack))
    assert counts(found) == {"input": 1, "conv": 5, "bias": 5, "ln": 3, "sum": 3, "glob_avg": 1}
    parts = [t for t in found.tensors.values() if t.path == "blocks/Conv_0/kernel"]
    assert [(t.index, t.stored) for t in parts] == [(i, (3, 3, 8, 8)) for i in range(3)]
    assert found.leaves["blocks/Conv_0/kernel"] == (3, 3, 3, 8, 8)


class Headless(nn.Module):
    """The last part of the stack is the last weight of the model."""

    @nn.compact
    def __call__(self, x):
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 3}
        return nn.scan(Plain, **options)(name="blocks")(nn.Conv(8, (3, 3))(x), None)[0]


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Conv(8, (3, 3))(x)), None


def test_a_stack_of_layers_is_no_classifier():
    found = traced(Headless())
    assert not found.graph.head.any()
    assert sum(t.path == "blocks/Conv_0/kernel" for t in found.tensors.values()) == 3


@pytest.mark.parametrize("layer, arguments", [(nn.Dense, (5,)), (nn.Conv, (5, (3,)))])
def test_layers_stacked_by_vmap_keep_their_own_values(layer, arguments):
    def body(self, x):
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        many = nn.vmap(layer, in_axes=None, out_axes=1, axis_size=4, **options)(*arguments)
        return many(x.reshape(x.shape[0], -1, 3))

    found = traced(function(body))
    assert not found.tensors and set(found.reasons.values()) == {flax_layers.STACK}


def test_other_streams_of_random_numbers():
    def body(self, x):
        z = nn.Dense(4)(x.mean((1, 2)))
        return nn.Dense(2)(z + jax.random.normal(self.make_rng("latent"), z.shape))

    assert counts(traced(function(body)))["conv"] == 2


def test_what_is_done_to_a_parameter_decides_which_is_written():
    def reparametrized(self, x):
        mu = self.param("mu", nn.initializers.normal(), (3, 8))
        rho = self.param("rho", nn.initializers.constant(-5.0), (3, 8))
        return x.mean((1, 2)) @ (nn.softplus(rho) * 0.1 + mu)

    found = traced(function(reparametrized))
    assert {t.path for t in found.tensors.values()} == {"mu"} and set(found.reasons) == {"rho"}

    def standardized(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (3, 8))
        kernel = (kernel - kernel.mean(0)) / jnp.sqrt(kernel.var(0) + 1e-6)
        return x.mean((1, 2)) @ kernel

    assert {t.path for t in traced(function(standardized)).tensors.values()} == {"kernel"}


def test_parameters_that_are_put_together():
    def body(self, x):
        parts = [self.param(name, nn.initializers.normal(), (3, 4)) for name in "ab"]
        return nn.relu(x.mean((1, 2)) @ jnp.concatenate(parts, 1))

    found = traced(function(body))
    assert counts(found) == {"input": 1, "glob_avg": 1, "conv": 1}
    assert set(found.reasons.values()) == {"is joined with other parameters"}


def test_a_learned_query():
    def body(self, x):
        query = self.param("query", nn.initializers.normal(), (1, 5, 8))
        query = jnp.broadcast_to(query, (x.shape[0], 5, 8))
        return nn.MultiHeadDotProductAttention(2)(query, nn.Conv(8, (3, 3))(x).reshape(2, -1, 8))

    found = traced(function(body))
    assert set(found.reasons) == {"query"} and "learned token" in found.reasons["query"]
    assert counts(found)["msa"] == 1 and counts(found)["embed"] == 1


def test_a_recurrence_says_so():
    def body(self, x):
        return nn.Dense(2)(nn.RNN(nn.GRUCell(4))(x.reshape(2, -1, 3))[:, -1])

    reasons = traced(function(body)).reasons
    assert reasons and set(reasons.values()) == {"reads the state of a recurrence"}


def test_a_product_of_two_vectors_keeps_both_poolings():
    def body(self, x):
        first, second = (nn.Conv(8, (3, 3))(x).mean((1, 2)) for _ in range(2))
        return nn.Dense(4)(first) * nn.Dense(4)(second)

    assert counts(traced(function(body))) == {
        "input": 1, "conv": 4, "bias": 4, "glob_avg": 2, "mul": 1,
    }  # fmt: skip


def test_a_table_of_embeddings_and_outputs_by_name():
    def body(self, x):
        y = nn.relu(nn.Dense(8)(nn.Embed(11, 8)(x)))
        return {"one": nn.Dense(2)(y), "others": (nn.Dense(3)(y.mean(1)), x)}

    words = jax.ShapeDtypeStruct((2, 7), jnp.int32)
    found = traced(function(body), words)
    assert found.reasons == {"Embed_0/embedding": "is a table of embeddings"}
    assert counts(found) == {"input": 1, "embed": 1, "conv": 3, "bias": 3, "glob_avg": 1}
    assert found.graph.head.sum() == 4


def test_parameters_that_are_no_real_numbers():
    def body(self, x):
        steps = self.param("steps", lambda key: jnp.arange(3))
        return nn.Conv(2, (1, 1))(x + steps)

    assert traced(function(body)).reasons == {"steps": "holds numbers of type int32"}


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        first = nn.relu(nn.Conv(4, (3, 3), name="one")(x))
        return first, nn.relu(nn.Conv(8, (3, 3), name="two")(nn.max_pool(first, (2, 2), (2, 2))))


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        skip, deep = Encoder(name="encoder")(x)
        up = nn.ConvTranspose(4, (2, 2), (2, 2), name="up")(deep)
        y = nn.Conv(4, (3, 3), name="join")(jnp.concatenate([skip, up], -1))
        return nn.Conv(1, (1, 1), name="out")(nn.relu(y)), deep


def test_outputs_at_several_places_and_the_head():
    found = traced(UNet())
    assert counts(found)["concat"] == 1 and counts(found)["conv_t"] == 1
    heads = {found.graph.parameters[i][0].split(":")[1] for i in np.flatnonzero(found.graph.head)}
    assert heads == {"out"}


def test_only_the_encoder():
    found = traced(UNet(), only="encoder")
    assert counts(found) == {"input": 1, "conv": 2, "bias": 2, "max_pool": 1}
    assert not found.graph.head.any()
    assert {t.path.split("/")[0] for t in found.tensors.values()} == {"encoder"}
    assert all(reason == "is outside encoder" for reason in found.reasons.values())
    with pytest.raises(UsageError, match="no parameters under 'backbone'.*parts are encoder, join"):
        traced(UNet(), only="backbone")


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, image, other, train=False):
        x = nn.Conv(4, (3, 3))(image).mean((1, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(2)(jnp.concatenate([x, nn.Dense(4)(other)], -1))


def test_several_inputs_and_further_arguments():
    other = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    for train in (False, True):
        found = traced(TwoInputs(), IMAGE, other, options={"train": train})
        assert counts(found)["input"] == 2 and before(found, "concat") == ["bias", "glob_avg"]


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_channels_of_the_input(channels):
    image = jax.ShapeDtypeStruct((1, 16, 16, channels), jnp.float32)
    found = traced(function(lambda self, x: nn.Conv(4, (3, 3))(x)), image)
    assert found.graph.shape[1].tolist() == [4, channels, 3, 3]


class Odd(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (3, 5))
        return jnp.cumsum(jnp.tanh(x), 1) @ jnp.fft.rfft(kernel).real


def test_what_becomes_of_unknown_layers():
    def body(self, x):
        return nn.Dense(2)(Odd()(x))

    found = traced(function(body))
    assert found.reasons.keys() == {"Odd_0/kernel"}
    with pytest.raises(UsageError, match=r"cannot be predicted: Odd_0/kernel \("):
        traced(function(body), on_unknown="error")
    known = traced(function(body), on_unknown={Odd: "dense"})
    assert not known.reasons and counts(known)["conv"] == 2
    with pytest.raises(UsageError, match="gives Odd the rule 'matrix'"):
        traced(function(body), on_unknown={Odd: "matrix"})
    with pytest.raises(UsageError, match="on_unknown='skip' is none of"):
        traced(function(body), on_unknown="skip")


@pytest.mark.parametrize(
    "body, part",
    [
        (lambda self, x: x if x.sum() > 0 else -x, "looks at values of its input"),
        (
            lambda self, x: nn.Dense(2)(x @ jnp.ones((7, 7))),
            "fails on this example|cannot be called",
        ),
        (lambda self, x: jnp.zeros(3), "No output of Model depends on its input"),
    ],
)
def test_models_that_cannot_be_traced(body, part):
    with pytest.raises(UsageError, match=part):
        traced(function(body))


def test_activations_as_nodes():
    def body(self, x):
        x = nn.gelu(nn.Conv(4, (3, 3))(nn.relu(nn.Conv(4, (3, 3))(x))))
        return attention(self, nn.silu(nn.Dense(3)(x)))

    found = counts(traced(function(body), activations=True))
    assert {k: found[k] for k in ("relu", "gelu", "silu", "softmax")} == dict.fromkeys(
        ("relu", "gelu", "silu", "softmax"), 1
    )


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.depthwise = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.fc = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.fc((x + self.depthwise(x)).mean((1, 2)))


def test_nnx_modules():
    net = Net(nnx.Rngs(0))
    call = nnx.Conv.__call__
    found = traced(net)
    assert nnx.Conv.__call__ is call
    assert counts(found) == {
        "input": 1, "conv": 2, "bias": 3, "bn": 1, "sep_conv": 1, "sum": 1, "glob_avg": 1,
    }  # fmt: skip
    assert not found.reasons
    assert set(found.leaves) == {
        "conv/bias", "conv/kernel", "norm/scale", "norm/bias", "depthwise/kernel",
        "depthwise/bias", "fc/bias", "fc/kernel",
    }  # fmt: skip
