"""Pretexts with weights: views in one batch, and the gradient against the plain one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from medinit_jax.arch.graph import build_graph
from medinit_jax.arch.program import BlockBuilder, ProgramBuilder
from medinit_jax.arch.tape import Tape
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parallel import Parallel
from medinit_jax.data.sources import ArraySource
from medinit_jax.hyper.bilevel import (
    Writer,
    gradient_by_tape,
    loss_whole,
    meta_batch,
    prepare_leaves,
)
from medinit_jax.hyper.initializer import HyperInitializer, init_theta
from medinit_jax.hyper.objective import (
    Objective,
    Part,
    joined,
    known_facts,
    make_objective,
    split,
    standardized,
)
from medinit_jax.hyper.pretext import PRETEXTS
from medinit_jax.hyper.pretexts.perceptron import REFERENCE

BLOCKS = {}
# Compiling takes longer than running once.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SIZE, BATCH, GROUP, WIDTH = 16, 32, 8, 6
MODULE = HyperInitializer(hidden=8, max_shape=(8, 8, 5, 5), num_classes=4)
FACTS = {
    "label": jnp.arange(32, dtype=jnp.int32) % 2,
    "patient": jnp.arange(32, dtype=jnp.int32),
}
CONFIG = {
    "pretext": {
        "name": "rotation", "weights": {}, "width": WIDTH, "mode": "four", "circle": True,
        "label_smoothing": 0.0,
    },
    "train": {"bn_group": GROUP, "batch_size": BATCH, "steps": 20},
}  # fmt: skip


def config(name, **options):
    made = ConfigDict({**CONFIG, "pretext": {**CONFIG["pretext"], "name": name, **options}})
    made.train.update(options.pop("train", {}))
    return made


def objective(*names):
    # Enough channels that no vector is all zeros, which would make nearest ones a matter of chance.
    small = {"hidden": 24, "features": 6}
    parts = []
    for weight, name in enumerate(names, start=1):
        task = PRETEXTS[name]()
        fields = {field.name for field in dataclasses.fields(task)}
        if name == "patches":
            task = dataclasses.replace(task, scheme="position-patient")
        task = dataclasses.replace(task, **{k: v for k, v in small.items() if k in fields})
        parts.append(Part(name, task, float(weight)))
    group = 16 if "patches" in names else GROUP
    return Objective(tuple(parts), group, WIDTH)


@functools.cache
def writer():
    return Writer(MODULE)


@functools.cache
def net(channels):
    build = ProgramBuilder((SIZE, SIZE, 3))
    b = BlockBuilder(1)
    b("relu", b("batch_norm", b.conv(0, "conv", channels, 3, stride=4), name="bn"))
    value = build(b.build(), (0,), "stem")
    b = BlockBuilder(1)
    b("dense", b("global_pool", 0), name="fc", features=4, bias=True)
    build(b.build(), (value,), "head")
    return build.build()


@pytest.fixture
def wide():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def step(made, devices, monkeypatch):
    """Losses, figures and gradient of two networks by the tape, and by the plain form on one."""
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))
    parallel = Parallel(jax.devices()[:devices])
    double = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float64))
    theta = double(jax.device_get(init_theta(MODULE, jax.random.key(0))["params"]))
    heads = double(made.heads(jax.random.key(1)))
    images = np.random.default_rng(0).normal(size=(made.images(BATCH), SIZE, SIZE, 3))
    facts = {name: values[: len(images)] for name, values in FACTS.items()}
    views, targets = parallel.split(functools.partial(made.views, batch=BATCH, devices=devices))(
        jnp.asarray(images), jax.random.key(2), facts
    )
    programs = [net(4), net(9)]
    graphs = [build_graph(p) for p in programs]
    tape = Tape(parallel, made.group, made.loss, prepare_leaves, jnp.float64, made.read)
    # The same blocks whatever is asked of their outputs.
    tape.compiled = BLOCKS.setdefault((made.group, devices), tape.compiled)
    found = gradient_by_tape(
        writer(), tape, parallel, theta, meta_batch(programs, graphs, MODULE), views, targets,
        heads,
    )  # fmt: skip
    if devices > 1:
        return jax.device_get(found), None

    @functools.partial(jax.value_and_grad, has_aux=True)
    def whole(both):
        return loss_whole(
            MODULE, both[0], programs, graphs, views, targets, made.loss, made.group, made.read,
            both[1],
        )  # fmt: skip

    run = jax.jit(whole)
    (_, (losses, figures)), gradient = run((theta, heads))
    return jax.device_get(found), jax.device_get((losses, figures, gradient))


def assert_close(own, expected, tolerance):
    for (path, a), (_, b) in zip(
        *(jax.tree_util.tree_leaves_with_path(t) for t in (own, expected)), strict=True
    ):
        error = np.linalg.norm(a - b)
        assert error <= tolerance * max(np.linalg.norm(b), 1e-12), jax.tree_util.keystr(path)


ALONE = [name for name in PRETEXTS if name != "rotation"]


@pytest.mark.parametrize(
    "names", [*[(name,) for name in ALONE], ("rotation", "contrast", "jigsaw")], ids="+".join
)
def test_the_tape_has_the_gradient_of_the_plain_loss(wide, monkeypatch, names):
    made = objective(*names)
    (losses, figures, gradient), (plain, other, whole) = step(made, 1, monkeypatch)
    np.testing.assert_allclose(losses, plain, rtol=1e-11)
    assert [set(f) for f in figures] == [set(names)] * 2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), list(figures), list(other)
    )
    total = sum(p.weight * figures[0][p.name]["loss"] for p in made.parts)
    np.testing.assert_allclose(total, losses[0], rtol=1e-12)
    assert_close(gradient, whole, 1e-8)
    moved = [np.abs(leaf).max() for leaf in jax.tree.leaves(gradient[1])]
    assert all(moved) and (moved or names == ("hard_rotation",))


def test_four_devices_find_what_one_does(wide, monkeypatch):
    made = objective("rotation", "contrast", "masked")
    one, _ = step(made, 1, monkeypatch)
    four, _ = step(made, 4, monkeypatch)
    assert_close(four[2], one[2], 1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), one[:2], four[:2])


def test_a_pretext_that_begins_later_counts_nothing_before(wide, monkeypatch):
    """Step 3 of a run in which contrast begins at step 4: the gradient is rotation's alone."""
    both, alone = objective("rotation", "contrast"), objective("rotation")
    later = dataclasses.replace(
        both, parts=(both.parts[0], dataclasses.replace(both.parts[1], begin=4))
    )
    assert both.begun(0, 32) == {} and later.begun(3, 32).keys() == {"begun/contrast"}
    assert later.chance(3) == alone.chance(3) < later.chance(4) == both.chance(4)
    found = {}
    for at in (3, 4):
        monkeypatch.setitem(FACTS, "begun/contrast", later.begun(at, 32)["begun/contrast"])
        found[at], plain = step(later, 1, monkeypatch)
        assert_close(found[at][2], plain[2], 1e-8)
    monkeypatch.delitem(FACTS, "begun/contrast")
    from_start, _ = step(both, 1, monkeypatch)
    assert_close(found[4][2], from_start[2], 1e-9)
    assert not any(np.abs(leaf).max() for leaf in jax.tree.leaves(found[3][2][1]))
    losses, figures, _ = found[3]
    np.testing.assert_allclose(losses[0], figures[0]["rotation"]["loss"], rtol=1e-12)
    assert figures[0]["contrast"]["loss"] > 0


def test_views_of_pretexts_lie_behind_each_other_on_every_device():
    made = objective("rotation", "contrast")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(16, SIZE, SIZE, 3)), jnp.float32)
    assert (made.images(BATCH), made.rows(BATCH)) == (16, 64)
    one, targets = made.views(images, jax.random.key(0), {}, BATCH, 1)
    four, same = made.views(images, jax.random.key(0), {}, BATCH, 4)
    jax.tree.map(np.testing.assert_array_equal, targets, same)
    rotated, cut = one[:BATCH], one[BATCH:]
    for device, part in enumerate(np.asarray(four).reshape(4, 16, SIZE, SIZE, 3)):
        rows = slice(8 * device, 8 * device + 8)
        np.testing.assert_array_equal(part, np.concatenate([rotated[rows], cut[rows]]))
    alone = made.parts[0].pretext.views(images[:8], jax.random.key(9))[0]
    np.testing.assert_array_equal(rotated, alone)
    split_targets = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), targets)
    back, flat = made.gathered(four.reshape(4, 16, SIZE, SIZE, 3), split_targets)
    np.testing.assert_array_equal(back, one)
    jax.tree.map(np.testing.assert_array_equal, flat, targets)


def test_features_of_any_width_have_one_form():
    random = np.random.default_rng(0)
    pooled = random.normal(3, 2, (8, 4)).astype(np.float32)
    found = np.asarray(standardized(jnp.asarray(pooled), 4, 6))
    assert not found[:, 4:].any()
    for group in range(2):
        rows = slice(4 * group, 4 * group + 4)
        expected = (pooled[rows] - pooled[rows].mean(0)) / pooled[rows].std(0)
        np.testing.assert_allclose(found[rows, :4], expected * (REFERENCE / 4) ** 0.5, rtol=1e-4)
    # Any scale and shift of a network's features is the same to a head.
    np.testing.assert_allclose(standardized(jnp.asarray(5 * pooled - 1), 4, 6), found, rtol=1e-3)
    assert not np.asarray(standardized(jnp.full((8, 4), 7.0), 4, 6)).any()
    wide = np.asarray(standardized(jnp.asarray(np.tile(pooled, 2)), 4, 4))
    np.testing.assert_allclose(wide, 2 * found[:, :4] / 2**0.5, rtol=1e-4)


def test_rotation_alone_is_what_it_was():
    made = make_objective(config("rotation"))
    assert made.plain and made.heads(jax.random.key(0)) == {} and made.num_targets == 4
    assert made.loss == made.parts[0].pretext.loss and made.images(BATCH) == 8
    theta = {"decoder": {"kernel": np.zeros(1)}}
    assert joined(theta, {}) == theta and split(theta) == (theta, {})
    assert split(joined(theta, {"contrast": 1})) == (theta, {"contrast": 1})
    assert not make_objective(config("hard_rotation")).plain
    both = make_objective(config("rotation + contrast", weights={"contrast": 0.5}))
    np.testing.assert_allclose(both.chance(0), np.log(4) + 0.5 * np.log(7), rtol=1e-12)


def test_the_earliest_pretexts_begin_at_once():
    begin = {"rotation": 0.0, "contrast": 0.25, "jigsaw": 0.5}
    made = make_objective(config("rotation+contrast+jigsaw", begin=begin))
    assert [part.begin for part in made.parts] == [0, 5, 10]
    made = make_objective(config("contrast+jigsaw", begin=begin))
    assert [part.begin for part in made.parts] == [0, 10]
    assert not make_objective(config("jigsaw", begin=begin)).begun(0, 8)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("rotation+rotation", {}, ["names a pretext twice"]),
        ("rotation+tetris", {}, ["config.pretext.name='tetris'", "jigsaw"]),
        ("contrast", {"weights": {"contrast": 0.0}}, ["config.pretext.weights.contrast=0.0"]),
        ("contrast", {"begin": {"contrast": 1.0}}, ["config.pretext.begin.contrast=1.0", "share"]),
        ("rotation+weak_labels", {"weak_labels": {"answer": "predicted"}},
         ["rotation (4 classes)", "weak_labels (2)", "answer=learned"]),
        ("patches", {"train": {"bn_group": 4}}, ["patches", "config.train.bn_group=4", "16"]),
        ("patches", {"patches": {"scheme": "eye"}}, ["patches.scheme='eye'", "position"]),
        ("relative_position", {"relative_position": {"side": 0.6}}, ["beyond the image"]),
        ("jigsaw", {"jigsaw": {"tiles": 5}}, ["jigsaw.tiles=5"]),
        ("jigsaw", {"jigsaw": {"permutations": 25}}, ["permutations=25", "2 and 24"]),
        ("masked", {"masked": {"cells": 2}}, ["masked.cells=2"]),
        ("weak_labels", {"weak_labels": {"num_classes": 3}}, ["num_classes=3", "any has 2"]),
        ("contrast", {"width": 0}, ["config.pretext.width=0"]),
        ("rotation+contrast", {"train": {"bn_group": 2, "batch_size": 32}}, ["bn_group=2"]),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_cannot_be_asked_ends_in_one_sentence(name, options, words):
    with pytest.raises(UsageError) as caught:
        make_objective(config(name, **options))
    message = str(caught.value)
    assert all(word in message for word in words) and message.endswith(".") and "\n" not in message


def test_images_that_lack_what_a_pretext_needs_are_refused():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    plain = ArraySource(images, patients=["a"] * 4)
    weak, patches = objective("rotation", "weak_labels"), objective("patches")
    with pytest.raises(UsageError, match="weak_labels of config.pretext.name needs images with l"):
        known_facts(weak, plain)
    with pytest.raises(UsageError, match="patches of config.pretext.name needs images whose pat"):
        known_facts(patches, plain)
    known = ArraySource(images, patients=["b", "a", "b", "c"], labels=np.array([1, 0, -1, 2]))
    batch = {"index": np.array([2, 1]), "label": np.array([-1, 0], np.int32)}
    assert known_facts(weak, known)(batch)["label"].tolist() == [-1, 0]
    assert known_facts(patches, known)(batch)["patient"].tolist() == [1, 0]
    assert known_facts(objective("rotation"), plain)(batch) == {}
