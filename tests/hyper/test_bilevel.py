"""The tape's gradient in theta against that of the loss written as one plain function."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.arch.deepnets import program
from medinit_jax.arch.graph import build_graph
from medinit_jax.arch.program import BlockBuilder, ProgramBuilder
from medinit_jax.arch.space import OPERATIONS, Space, Split, get_space
from medinit_jax.arch.tape import Tape, signatures
from medinit_jax.core.parallel import Parallel
from medinit_jax.hyper.bilevel import (
    Writer,
    chunks,
    gradient_by_tape,
    loss_whole,
    meta_batch,
    prepare_leaves,
    zero_example,
)
from medinit_jax.hyper.initializer import HyperInitializer, init_theta, predict
from medinit_jax.hyper.pretexts.rotation import Rotation

SIZE, BATCH, GROUP, CLASSES = 16, 4, 2, 4
MODULE = HyperInitializer(hidden=8, max_shape=(8, 8, 5, 5), num_classes=CLASSES)
# Three cells are the fewest that hold both kinds of cell; a narrow space compiles fast.
SPACE = Space(
    "tiny",
    {"train": Split(size=10**4, n_cells=(3, 3), deep=(3,), steps=(1, 1, 2))},
    image_size=SIZE,
    widen=lambda space, arch, parameters, rng: dataclasses.replace(arch, C=16, fc_dim=16),
)
# Twenty indices, chosen so that they cover the design space with few different blocks.
PAIRS = (
    (544, 41), (251, 402), (426, 329), (478, 457), (74, 10),
    (55, 230), (56, 424), (499, 532), (583, 40), (227, 285),
)  # fmt: skip
LOSS = Rotation().loss
# Compiling takes longer than running once, here and in the blocks of the tape.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def network(index):
    return program(SPACE.sample("train", index), SIZE, CLASSES)


@functools.cache
def example(batch=BATCH, size=SIZE):
    random = np.random.default_rng(1)
    return random.normal(size=(batch, size, size, 3)), np.arange(batch, dtype=np.int32) % CLASSES


@pytest.fixture
def wide():
    # Not `jax.enable_x64`, which the threads that compile blocks would not see.
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def double(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


@pytest.fixture(scope="module")
def theta():
    return jax.device_get(init_theta(MODULE, jax.random.key(0))["params"])


@functools.cache
def compiled(dtype="float64", penalty=0.0):
    """Writer and tape of one kind; their compiled pieces are shared by the tests."""
    parallel = Parallel(jax.devices()[:1])
    prepare = functools.partial(prepare_leaves, penalty=penalty)
    return writer(), Tape(parallel, GROUP, LOSS, prepare, jnp.dtype(dtype)), parallel


@functools.cache
def writer():
    return Writer(MODULE)


def by_tape(theta, programs, images, targets, dtype="float64", penalty=0.0):
    batch = meta_batch(programs, [build_graph(p) for p in programs], MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))
        own_writer, tape, parallel = compiled(dtype, penalty)
        wanted = {signature for p in programs for signature in signatures(p)}
        tape.warm_up(wanted, len(images), lambda signature: zero_example(MODULE, signature))
        views, targets = parallel.shard((images, targets))
        return gradient_by_tape(own_writer, tape, parallel, theta, batch, views, targets)


def by_whole(theta, programs, images, targets, penalty=0.0):
    graphs = [build_graph(p) for p in programs]

    def loss(theta):
        value, others = loss_whole(MODULE, theta, programs, graphs, images, targets, LOSS, GROUP)
        for p, graph in zip(programs, graphs, strict=True):
            if penalty:
                tensors = jax.tree.leaves(predict(MODULE, theta, graph, p.parameter_shapes()))
                norms = sum(jnp.sqrt(jnp.square(t).sum()) for t in tensors)
                value += penalty * norms / len(programs)
        return value, others

    run = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(theta).compile(QUICK)
    (value, (losses, accuracies)), gradient = run(theta)
    return value, losses, accuracies, gradient


def assert_equal_per_tensor(own, expected, tolerance):
    own, expected = (
        jax.tree_util.tree_leaves_with_path(jax.device_get(t)) for t in (own, expected)
    )
    assert [path for path, _ in own] == [path for path, _ in expected]
    for (path, a), (_, b) in zip(own, expected, strict=True):
        name = jax.tree_util.keystr(path)
        assert a.dtype == b.dtype and a.shape == b.shape, name
        assert np.linalg.norm(b) > 0, f"{name} has no gradient, so it is not tested"
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < tolerance, (name, error)


def test_the_twenty_networks_cover_the_design_space():
    archs = [SPACE.sample("train", i) for pair in PAIRS for i in pair]
    programs = [program(a, SIZE, CLASSES) for a in archs]
    assert len({a.index for a in archs}) == 20
    assert set().union(*(a.ops for a in archs)) == set(OPERATIONS)

    # The same step kinds and windows as in 600 unchosen networks.
    def pieces(programs):
        steps = [s for p in programs for c in p.calls for s in c.block.steps]
        return {(s.kind, s.kernel, s.stride, s.dilation, s.groups > 1) for s in steps}

    assert pieces(programs) == pieces(network(i) for i in range(600))
    kinds = {kind for kind, *_ in pieces(programs)}
    assert {"attention", "position", "gate", "zeros", "subsample", "concat", "gelu"} <= kinds
    # Both plain stems, and that of patches; one and two dense layers; pooled and flat; bn-free.
    assert {(a.is_vit, a.stem_type) for a in archs if not a.is_vit} == {(False, 0), (False, 1)}
    assert any(a.is_vit for a in archs)
    for name, values in (
        ("fc_layers", {1, 2}), ("glob_avg", {True, False}), ("norm", {True, False}),
        ("preproc", {True, False}), ("C_mult", {1, 2}), ("ks", {3, 5, 7}), ("steps", {1, 2}),
    ):  # fmt: skip
        assert {getattr(a, name) for a in archs} == values, name
    # A strided identity is a factorized reduction: two convolutions, one pixel apart.
    assert any("conv_2" in name for p in programs for name in p.parameter_shapes())
    assert len({s for p in programs for s in signatures(p)}) < 100


@pytest.mark.parametrize(
    "pair",
    [*PAIRS[:2], *(pytest.param(pair, marks=pytest.mark.slow) for pair in PAIRS[2:])],
    ids=lambda pair: f"{pair[0]}-{pair[1]}",
)
def test_the_tape_has_the_gradient_of_the_plain_loss(wide, theta, pair):
    theta, programs = double(theta), [network(i) for i in pair]
    losses, accuracies, gradient = by_tape(theta, programs, *example())
    value, expected, whole_accuracies, whole_gradient = by_whole(theta, programs, *example())
    np.testing.assert_allclose(losses, expected, rtol=1e-11)
    np.testing.assert_allclose(np.mean(losses), value, rtol=1e-11)
    np.testing.assert_array_equal(accuracies, whole_accuracies)
    assert_equal_per_tensor(gradient, whole_gradient, 1e-8)


def test_losses_agree_in_float32(theta):
    programs = [network(i) for i in (227, 41)]
    images, targets = example()
    images = images.astype(np.float32)
    losses, _, gradient = by_tape(theta, programs, images, targets, "float32")
    _, expected, _, _ = by_whole(theta, programs, images, targets)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_the_penalty_has_the_gradient_of_the_sum_of_norms(wide, theta):
    theta, programs = double(theta), [network(i) for i in PAIRS[9]]
    losses, _, gradient = by_tape(theta, programs, *example(), penalty=0.01)
    *_, expected = by_whole(theta, programs, *example(), penalty=0.01)
    assert_equal_per_tensor(gradient, expected, 1e-8)
    plain_losses, _, without = by_tape(theta, programs, *example())
    np.testing.assert_array_equal(losses, plain_losses)
    assert max(
        np.linalg.norm(a - b) / np.linalg.norm(b)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(without), strict=True)
    ) > 0.1  # fmt: skip


def test_a_network_alone_has_the_gradient_it_has_in_a_meta_batch(wide, theta):
    """Padding to a common size and shared decoder calls leave no trace."""
    theta, programs = double(theta), [network(i) for i in PAIRS[9]]
    _, _, together = by_tape(theta, programs, *example())
    parts = [by_tape(theta, [p], *example())[2] for p in programs]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    assert_equal_per_tensor(together, mean, 1e-10)


def test_written_parameters_are_those_of_predict(wide, theta):
    """What the blocks make of raw tiles is what `predict` returns."""
    theta, programs = double(theta), [network(i) for i in PAIRS[0]]
    graphs = [build_graph(p) for p in programs]
    raw, _ = writer().write(theta, meta_batch(programs, graphs, MODULE))
    for p, graph, given in zip(programs, graphs, raw, strict=True):
        shapes = p.parameter_shapes()
        expected = predict(MODULE, theta, graph, shapes)
        assert given.keys() == expected.keys()
        for name, leaves in expected.items():
            own = prepare_leaves(given[name], shapes[name], name == p.head)
            assert own.keys() == leaves.keys()
            for leaf in leaves:
                np.testing.assert_allclose(own[leaf], leaves[leaf], rtol=1e-12, atol=1e-14)


def test_the_writer_has_the_gradient_of_predict_at_low_rank(wide, monkeypatch):
    """Tiles of several sizes, of all and of some channels, from the center of the whole."""
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))
    module = MODULE.clone(decoder_rank=2, crop="center")
    theta = double(jax.device_get(init_theta(module, jax.random.key(0))["params"]))
    build = ProgramBuilder((8, 8, 3))
    b = BlockBuilder(1)
    y = b("batch_norm", b.conv(0, "conv", 12, 3, stride=4), name="bn")
    y = b.conv(b.conv(y, "depthwise", 12, 3, groups=12), "pointwise", 16, 1)
    b("dense", b("global_pool", y), name="fc", features=CLASSES, bias=True)
    build(b.build(), (0,), "all")
    net = build.build()
    graph, shapes = build_graph(net), net.parameter_shapes()
    random = np.random.default_rng(0)
    wanted = {n: {k: random.normal(size=s) for k, s in own.items()} for n, own in shapes.items()}

    def product(parameters):
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, wanted, parameters)))

    own = Writer(module)
    (raw,), pull = own.write(theta, meta_batch([net], [graph], module))
    gradient = jax.jit(
        jax.grad(
            lambda raw: product(
                {n: prepare_leaves(raw[n], own, n == net.head) for n, own in shapes.items()}
            )
        )
    )(raw)
    expected = jax.jit(jax.grad(lambda theta: product(predict(module, theta, graph, shapes))))
    assert_equal_per_tensor(pull([gradient]), expected(theta), 1e-10)


def test_the_penalty_counts_once_on_several_devices(wide, theta):
    build = ProgramBuilder((8, 8, 3))
    b = BlockBuilder(1)
    b("batch_norm", b.conv(0, "conv", 4, 3, stride=4), name="bn")
    value = build(b.build(), (0,), "stem")
    b = BlockBuilder(1)
    b("dense", b("global_pool", 0), name="fc", features=CLASSES, bias=True)
    build(b.build(), (value,), "head")
    net = build.build()
    batch = meta_batch([net], [build_graph(net)], MODULE)

    def gradient(devices, penalty):
        parallel = Parallel(jax.devices()[:devices])
        prepare = functools.partial(prepare_leaves, penalty=penalty / parallel.size)
        tape = Tape(parallel, GROUP, LOSS, prepare, jnp.dtype("float64"))
        views, targets = parallel.shard(example(batch=8, size=8))
        found = gradient_by_tape(writer(), tape, parallel, double(theta), batch, views, targets)
        return jax.device_get(found[2])

    one, four, none = gradient(1, 0.1), gradient(4, 0.1), gradient(1, 0.0)
    for a, b, c in zip(*map(jax.tree.leaves, (one, four, none)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * np.abs(a).max())
        assert np.abs(a - c).max() > 0.01 * np.abs(c).max()


def test_plans_and_examples_fit_each_other():
    """Every tensor is planned once, in calls of fixed size; `zero_example` has its structure."""
    programs = [network(i) for i in PAIRS[0]]
    batch = meta_batch(programs, [build_graph(p) for p in programs], MODULE, PAIRS[0])
    assert batch.indices == PAIRS[0]
    places = [place for group in batch.groups for place in group.places]
    assert len(places) == len(set(places))
    tensors = {
        (n, name, "norm" if leaf in ("scale",) else leaf)
        for n, p in enumerate(programs)
        for name, leaves in p.parameter_shapes().items()
        for leaf in leaves
        if not (leaf == "bias" and "scale" in leaves)
    }
    assert set(places) == tensors
    for group in batch.groups:
        assert len(group.rows) in chunks(group.key) and len(group.rows) >= len(group.places)
        assert set(group.rows[len(group.places) :]) <= {group.rows[0]}
    theta = init_theta(MODULE, jax.random.key(0))["params"]
    raw, _ = writer().write(theta, batch)
    for p, given in zip(programs, raw, strict=True):
        for call, signature in zip(p.calls, signatures(p), strict=True):
            for name, kinds in zero_example(MODULE, signature).items():
                real = given[call.module(name)]
                assert jax.tree.map(jnp.shape, real) == jax.tree.map(jnp.shape, kinds), name


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 20, 2))
def test_the_tape_has_the_gradient_of_the_plain_loss_at_full_size(wide, theta, first):
    """Networks of DeepNets as they are, at 32 pixels and their own widths."""
    space = get_space("deepnets")
    archs = [space.sample("train", i) for i in (first, first + 1)]
    theta, programs = double(theta), [program(a, 32, CLASSES) for a in archs]
    losses, _, gradient = by_tape(theta, programs, *example(size=32))
    _, expected, _, whole_gradient = by_whole(theta, programs, *example(size=32))
    np.testing.assert_allclose(losses, expected, rtol=1e-11)
    assert_equal_per_tensor(gradient, whole_gradient, 1e-8)
