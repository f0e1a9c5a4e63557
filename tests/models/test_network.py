"""The Flax module of a program: its tree, its running statistics, its features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.arch.cell_blocks import OPS, add_block, head_block, patch_stem, simple_stem
from medinit_jax.arch.program import BlockBuilder, ProgramBuilder
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.network import Network, apply_with_batch_statistics, feature_taps
from medinit_jax.models.resnet import Variant, resnet
from medinit_jax.models.statistics import initial_statistics

IMAGE = (8, 8, 3)


def small(norm=True):
    build = ProgramBuilder(IMAGE)
    stem = build(simple_stem(16, 3, False, True, norm), (0,), "stem")
    value = build(OPS["conv_3x3"](16, 1, norm), (stem,), "cells.0._ops.0")
    value = build(add_block(), (value, stem))
    build(head_block(True, 8, 4), (value,), "classifier")
    return build.build()


def attending():
    build = ProgramBuilder(IMAGE)
    value = build(patch_stem(16, False), (0,))
    value = build(OPS["msa"](16, 1, False), (value,), "cells.0._ops.1")
    value = build(OPS["cse"](16, 1, False), (value,), "cells.1._ops.0")
    build(head_block(False, 0, 4), (value,), "classifier")
    return build.build()


PROGRAMS = {
    "small": small,
    "bn-free": functools.partial(small, norm=False),
    "attending": attending,
    "resnet18": functools.partial(resnet, "resnet18", IMAGE, 4, "small", 8),
}


def images(batch=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1, 2, (batch, *IMAGE)), jnp.float32)


@pytest.mark.parametrize("name", PROGRAMS)
def test_init_has_the_tree_of_the_program(name):
    program = PROGRAMS[name]()
    shape = jax.eval_shape(Network(program).init, jax.random.key(0), images())
    found = {
        m: {leaf: v.shape for leaf, v in leaves.items()} for m, leaves in shape["params"].items()
    }
    assert found == program.parameter_shapes()
    assert {v.dtype for v in jax.tree.leaves(shape)} == {jnp.dtype("float32")}
    norms = {
        call.module(s.name) for call in program.calls for s in call.block.steps
        if s.kind == "batch_norm"
    }  # fmt: skip
    assert set(shape.get("batch_stats", {})) == {f"{name}.stats" for name in norms}
    assert bool(norms) == (name in ("small", "resnet18"))


def test_default_initial_values():
    variables = Network(resnet("resnet18", IMAGE, 4, "small", 64)).init(
        jax.random.key(0), images(1)
    )
    params = variables["params"]
    kernel = params["layer4.0.conv2"]["kernel"]
    # He, fan-out: 3 * 3 * 512 outputs share each input.
    assert float(kernel.std()) == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert float(jnp.abs(params["fc"]["kernel"]).max()) <= 512**-0.5
    assert float(params["bn1"]["scale"].min()) == 1 and float(params["bn1"]["bias"].max()) == 0
    assert float(variables["batch_stats"]["bn1.stats"]["mean"].max()) == 0
    assert float(variables["batch_stats"]["bn1.stats"]["var"].min()) == 1


def test_training_moves_running_statistics_as_torch_does():
    """Running values move by a tenth; the variance they follow is the unbiased one."""
    network = Network(small())
    variables = network.init(jax.random.key(0), images())
    before = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])
    _, state = network.apply(
        {"params": variables["params"], "batch_stats": before}, images(), True,
        mutable=["batch_stats"],
    )  # fmt: skip
    kernel = np.asarray(variables["params"]["stem.0"]["kernel"], np.float64)
    padded = np.pad(np.asarray(images(), np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = sum(
        padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3)
    ).reshape(-1, 16)  # fmt: skip
    stats = state["batch_stats"]["stem.1.stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * 0.5 + 0.1 * y.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 * 1.5 + 0.1 * y.var(0, ddof=1), rtol=1e-4)


def test_init_leaves_running_statistics_alone():
    variables = Network(small()).init(jax.random.key(0), images(), True)
    for stats in variables["batch_stats"].values():
        assert float(stats["mean"].max()) == 0 and float(stats["var"].min()) == 1


def test_evaluation_uses_running_statistics():
    network = Network(small())
    variables = network.init(jax.random.key(0), images())
    logits = network.apply(variables, images())
    # One image alone gives the same: nothing of the batch enters.
    alone = network.apply(variables, images()[:1])
    np.testing.assert_allclose(alone, logits[:1], rtol=1e-4, atol=1e-5)
    # A norm of mean m, variance v is one of mean 0, variance 1 on (x - m) / sqrt(v).
    stats = {
        "stem.1.stats": {"mean": jnp.full(16, 0.3), "var": jnp.full(16, 4.0)},
        "cells.0._ops.0.op.2.stats": variables["batch_stats"]["cells.0._ops.0.op.2.stats"],
    }
    moved = network.apply({**variables, "batch_stats": stats}, images())
    params = dict(variables["params"])
    params["stem.1"] = {
        "scale": jnp.full(16, ((1 + 1e-5) / (4 + 1e-5)) ** 0.5),
        "bias": jnp.full(16, -0.3 / (4 + 1e-5) ** 0.5),
    }
    expected = network.apply({**variables, "params": params}, images())
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(moved - logits).max()) > 1e-2


def test_every_norm_has_its_own_epsilon():
    build = ProgramBuilder(IMAGE)
    b = BlockBuilder(1)
    b("batch_norm", 0, name="bn", epsilon=3.0)
    value = build(b.build(), (0,))
    build(head_block(True, 0, 4), (value,))
    network = Network(build.build())
    params = initial_parameters(network.program, jax.random.key(0))
    variables = {"params": params, "batch_stats": initial_statistics(network.program)}
    (features,) = network.apply(variables, images(), taps=(1,))
    np.testing.assert_allclose(features, images().mean((1, 2)) / 2, rtol=1e-5)
    logits, _ = network.apply(variables, images(), True, mutable=["batch_stats"])
    own = apply_with_batch_statistics(network.program, params, images(), 4)
    np.testing.assert_allclose(own, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["small", "bn-free", "attending"])
def test_batch_statistics_of_one_group_are_those_of_training(name):
    program = PROGRAMS[name]()
    network = Network(program)
    variables = network.init(jax.random.key(0), images())
    logits, _ = network.apply(variables, images(), train=True, mutable=["batch_stats"])
    own = apply_with_batch_statistics(program, variables["params"], images(), 4)
    np.testing.assert_allclose(own, logits, rtol=1e-4, atol=1e-5)
    halves = apply_with_batch_statistics(program, variables["params"], images(), 2)
    apart = [
        apply_with_batch_statistics(program, variables["params"], part, 2)
        for part in (images()[:2], images()[2:])
    ]
    np.testing.assert_allclose(halves, np.concatenate(apart), rtol=1e-4, atol=1e-5)
    assert (float(jnp.abs(halves - own).max()) > 1e-3) == (name == "small")


def test_bfloat16_activations_and_float32_parameters():
    network = Network(small(), jnp.bfloat16)
    variables = network.init(jax.random.key(0), images())
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, state = network.apply(variables, images(), train=True, mutable=["batch_stats"])
    exact, _ = Network(small()).apply(variables, images(), train=True, mutable=["batch_stats"])
    assert logits.dtype == jnp.float32
    assert {v.dtype for v in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(logits, exact, atol=0.1 * float(jnp.abs(exact).max()))


def test_taps_are_pooled_maps_and_the_last_one_feeds_the_head():
    program = small()
    assert feature_taps(program) == (3,) and feature_taps(program, (0.1, 0.5, 1.0)) == (1, 2, 3)
    network = Network(program)
    variables = network.init(jax.random.key(0), images())
    taps = network.apply(variables, images(), taps=feature_taps(program, (0.1, 1.0)))
    assert [tap.shape for tap in taps] == [(4, 16), (4, 16)]
    head = variables["params"]
    hidden = jnp.maximum(taps[1] @ head["classifier.0"]["kernel"] + head["classifier.0"]["bias"], 0)
    logits = hidden @ head["classifier.3"]["kernel"] + head["classifier.3"]["bias"]
    np.testing.assert_allclose(logits, network.apply(variables, images()), rtol=1e-5, atol=1e-6)


def test_dropout_leaves_out_its_share_in_training_alone():
    build = ProgramBuilder((64, 64, 1))
    b = BlockBuilder(1)
    b("dropout", 0, rate=0.25)
    value = build(b.build(), (0,))
    b = BlockBuilder(1)
    b("dense", 0, name="head", features=1, bias=True)
    build(b.build(), (value,))
    network = Network(build.build())
    images = jnp.ones((1, 64, 64, 1))
    variables = {"params": {"head": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}}}
    for options in ({}, {"train": True}, {"rngs": {"dropout": jax.random.key(0)}}):
        np.testing.assert_array_equal(network.apply(variables, images, **options), images)
    found = network.apply(variables, images, train=True, rngs={"dropout": jax.random.key(0)})
    values, counts = np.unique(found, return_counts=True)
    np.testing.assert_allclose(values, [0, 1 / 0.75], rtol=1e-6)
    assert counts[0] / counts.sum() == pytest.approx(0.25, abs=0.03)


def test_frozen_statistics_stay():
    program = resnet(Variant((1,), False), (16, 16, 3), 2, "small", 4)
    network = Network(program, frozen=("layer1",))
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    variables = network.init(jax.random.key(1), images)
    _, updates = network.apply(variables, images, train=True, mutable=["batch_stats"])
    for name, before in variables["batch_stats"].items():
        after = updates["batch_stats"][name]["mean"]
        assert np.array_equal(after, before["mean"]) == name.startswith("layer1")
