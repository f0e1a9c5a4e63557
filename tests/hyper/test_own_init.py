"""Leaves that no hypernetwork predicts: every reader of a program leaves them their own values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.arch.program import OWN_INIT
from medinit_jax.arch.tape import Tape, signatures
from medinit_jax.arch.vocabulary import NODE_TYPES
from medinit_jax.core.parallel import Parallel
from medinit_jax.hyper import starts
from medinit_jax.hyper.bilevel import (
    Writer,
    gradient_by_tape,
    loss_whole,
    meta_batch,
    prepare_leaves,
    zero_example,
)
from medinit_jax.hyper.hypernetwork import HyperInitializer, init_theta
from medinit_jax.hyper.initializer import graph_of, parameter_slots, predict
from medinit_jax.hyper.pretexts.rotation import Rotation
from medinit_jax.models import convnext, vit, zoo
from medinit_jax.models.initial import initial_parameters

CLASSES = 4
IMAGE = (8, 8, 3)
MODULE = HyperInitializer(
    hidden=8, max_shape=(8, 8, 3, 3), num_classes=CLASSES, node_types=len(NODE_TYPES)
)
PROGRAMS = (
    vit.vit(vit.Variant(8, 1, 2, patch=4, mlp=1), IMAGE, CLASSES),
    convnext.convnext(convnext.Variant((1,), (4,), patch=2, kernel=3), IMAGE, CLASSES),
)
OWN = ({("cls_token", "token")}, {("features.1.0.layer_scale", "gamma")})
CASES = list(zip(PROGRAMS, OWN, strict=True))
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture
def wide():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def theta():
    drawn = jax.device_get(init_theta(MODULE, jax.random.key(0))["params"])
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.zeros(()).dtype), drawn)


def leaves_of(tree):
    return {(name, leaf) for name, leaves in tree.items() for leaf in leaves}


@pytest.mark.parametrize(("program", "own"), CASES)
def test_they_are_left_out_of_predictions(program, own):
    shapes = program.parameter_shapes()
    graph = graph_of(MODULE, program)
    slots = parameter_slots(MODULE, graph, shapes)
    assert {(slot.module, slot.leaf) for slot in slots} == leaves_of(shapes) - own
    assert leaves_of(predict(MODULE, theta(), graph, shapes)) == leaves_of(shapes) - own


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_other_parameter_of_the_zoo_has_a_tile(name):
    program = zoo.build(name, CLASSES, (64, 64, 1)).program
    shapes = program.parameter_shapes()
    slots = parameter_slots(MODULE, graph_of(MODULE, program), shapes)
    wanted = {(name, leaf) for name, leaf in leaves_of(shapes) if leaf not in OWN_INIT}
    assert {(slot.module, slot.leaf) for slot in slots} == wanted
    head = {(slot.leaf, slot.kind) for slot in slots if slot.module == program.head}
    assert head == {("kernel", "head_kernel"), ("bias", "head_bias")}


@pytest.mark.parametrize(("program", "own"), CASES)
def test_a_start_takes_them_from_the_network(program, own):
    key = jax.random.key(1)
    start = starts.hyper_start(MODULE, theta(), program, key)
    initial = initial_parameters(program, key)
    assert jax.tree.structure(start) == jax.tree.structure(initial)
    for name, leaf in own:
        np.testing.assert_array_equal(start[name][leaf], initial[name][leaf])
        assert np.all(np.asarray(start[name][leaf], np.float32) == np.float32(OWN_INIT[leaf]))


def test_the_tape_has_the_gradient_of_the_plain_loss(wide, monkeypatch):
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))
    parallel = Parallel(jax.devices()[:1])
    tape = Tape(parallel, 2, Rotation().loss, prepare_leaves, jnp.dtype("float64"))
    images = np.random.default_rng(1).normal(size=(4, *IMAGE))
    targets = np.arange(4, dtype=np.int32)
    graphs = [graph_of(MODULE, program) for program in PROGRAMS]
    tape.warm_up(
        {signature for program in PROGRAMS for signature in signatures(program)},
        len(images),
        lambda signature: zero_example(MODULE, signature),
    )
    compiled = len(tape.compiled)
    parameters = theta()
    losses, _, gradient = gradient_by_tape(
        Writer(MODULE),
        tape,
        parallel,
        parameters,
        meta_batch(PROGRAMS, graphs, MODULE),
        *parallel.shard((images, targets)),
    )
    assert len(tape.compiled) == compiled

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def whole(theta):
        loss = Rotation().loss
        return loss_whole(MODULE, theta, PROGRAMS, graphs, images, targets, loss, 2)

    (_, (expected, _)), expected_gradient = whole(parameters)
    np.testing.assert_allclose(losses, expected, rtol=1e-11)
    for own, other in zip(*map(jax.tree.leaves, (gradient, expected_gradient)), strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-9 * np.abs(other).max())
