"""One update of pretraining: the same on any devices, and as it is written down in the papers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.core.parallel import Parallel
from medinit_jax.core.state import place
from medinit_jax.models.features import encoder_params, features
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.network import Network
from medinit_jax.models.resnet import Variant, resnet
from medinit_jax.models.statistics import initial_statistics
from medinit_jax.swcl.methods import Byol, Contrastive, Dino, Multitask
from medinit_jax.swcl.projection import DinoHead
from medinit_jax.swcl.step import Recipe, compiled, decay_mask, first_state

BATCH, SIDE, CHANNELS, PROTOTYPES = 8, 16, 8, 16
PROGRAM = resnet(Variant((1,), False), (SIDE, SIDE, 3), 2, stem="small", width=CHANNELS)
NETWORK = Network(PROGRAM, jnp.float64)
METHODS = {
    "swcl": Contrastive(True, width=6),
    "simclr": Contrastive(False, width=6),
    "byol": Byol(hidden=32, width=6),
    "byol_bn": Byol(hidden=16, width=6, head_norm="bn"),
    "dino": Dino(PROTOTYPES),
    "multitask": Multitask(),
}
SGD = {
    "name": "sgd", "learning_rate": 0.5, "weight_decay": 0.0, "momentum": 0.0, "nesterov": False,
    "schedule": "constant", "warmup_steps": 0, "total_steps": 10, "clip": 0.0,
    "milestones": (), "decay": 0.1,
}  # fmt: skip
ADAMW = {**SGD, "name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1, "momentum": 0.9}


def recipe_of(method, optimizer=SGD, **options):
    settings = tuple(sorted(optimizer.items()))
    return Recipe(NETWORK, METHODS[method], CHANNELS, settings, 2, ema=0.9, **options)


@functools.cache
def start_of():
    params = initial_parameters(PROGRAM, jax.random.key(1))
    return encoder_params(PROGRAM, params), initial_statistics(PROGRAM)


def doubled(tree):
    floats = lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    return jax.tree.map(floats, tree)


def state_of(recipe, parallel=None):
    """The first state in float64, with norms and statistics in which a mistake would show."""
    encoder, statistics = start_of()
    inner = {k: v for k, v in statistics.items() if k.removesuffix(".stats") in encoder}
    state = doubled(first_state(recipe, encoder, inner, jax.random.key(0)))
    sharded = dict(recipe.optimizer).get("sharded", False)
    return place(state, parallel, sharded) if parallel else state


def batch_of(recipe, seed=0, local=0):
    rng = np.random.default_rng(seed)
    shapes = [(BATCH, recipe.method.views, SIDE, SIDE, 3)]
    shapes += [(BATCH, local, SIDE // 2, SIDE // 2, 3)] * bool(local)
    images = tuple(rng.normal(size=shape) for shape in shapes)
    labels = {
        "columns": np.repeat(np.array([[0, 1], [0, 1], [1, 1], [2, 0]], np.int32), 2, 0),
        "abnormality": rng.integers(0, 2, BATCH).astype(np.int32),
        "position": rng.integers(0, 5, BATCH).astype(np.int32),
    }
    return images, labels if recipe.method.images == "pairs" else {}


def after(recipe, devices, steps=1, local=0):
    """Returns state and metrics after some steps on so many devices."""
    parallel = Parallel(jax.devices()[:devices])
    step, state, metrics = compiled(recipe, parallel), state_of(recipe, parallel), None
    for number in range(steps):
        state, metrics = step(state, *parallel.spread(batch_of(recipe, number, local)))
    return jax.device_get((state, metrics))


def agree(found, wanted, rtol=1e-8):
    """All leaves, relative to the largest entry of each; what batch norm undoes has no gradient."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, 0, rtol * max(float(np.abs(b).max()), 1e-4))


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@functools.cache
def on_one_device(method, bn_group=0, local=0):
    return after(recipe_of(method, bn_group=bn_group), 1, local=local)


SLOW = pytest.mark.slow
# Each is compiled anew, which is what takes the time.
DAILY = (("swcl", 4), ("byol_bn", 4))


@pytest.mark.parametrize(
    ("method", "bn_group", "local", "devices"),
    [
        pytest.param(*setting, devices, marks=[] if (setting[0], devices) in DAILY else SLOW)
        for setting in (
            ("swcl", 0, 0),
            ("simclr", 0, 0),
            ("byol", 0, 0),
            ("byol_bn", 4, 0),
            ("dino", 0, 2),
            ("multitask", 0, 0),
        )
        for devices in (2, 4)
    ],
)
def test_a_step_is_the_same_on_any_devices(method, bn_group, local, devices):
    """Plain gradient descent, so that the new parameters tell the gradient."""
    wanted = on_one_device(method, bn_group, local)
    recipe = recipe_of(method, bn_group=bn_group)
    assert float(wanted[1]["train/grad_norm"]) > 1e-3
    before = jax.device_get(state_of(recipe).train.params)
    moved = [
        np.abs(a - b).max() > 0
        for a, b in zip(*map(jax.tree.leaves, (before, wanted[0].train.params)), strict=True)
    ]
    assert np.mean(moved) > 0.9
    agree(after(recipe, devices, local=local), wanted)


def test_twenty_steps_with_divided_moments_are_those_of_one_device():
    recipes = [recipe_of("swcl", {**ADAMW, "sharded": sharded}) for sharded in (False, True)]
    wanted, found = after(recipes[0], 1, 20), after(recipes[1], 4, 20)
    np.testing.assert_allclose(found[1]["train/loss"], wanted[1]["train/loss"], 1e-8)
    agree(found[0].train.params, wanted[0].train.params, 1e-6)


def pooled_of(params, statistics, images):
    """Features (n, C) of images in training mode, and new statistics."""
    held = {"params": params["encoder"], "batch_stats": statistics["encoder"]}
    found = features(NETWORK, held, images, train=True)
    return found.pooled, found.batch_stats


def descended(recipe, loss, state):
    """Value, and parameters after a step of gradient descent with weight decay."""
    settings = dict(recipe.optimizer)
    value, gradient = jax.value_and_grad(loss)(state.train.params)

    def move(path, p, g):
        decay = settings["weight_decay"] if path[-1].key == "kernel" else 0
        return p - settings["learning_rate"] * (g + decay * p)

    return value, jax.tree_util.tree_map_with_path(move, state.train.params, gradient)


def linear(leaves, x):
    return x @ leaves["kernel"] + leaves["bias"]


def unit(x):
    return x / jnp.sqrt((x**2).sum(-1, keepdims=True))


def test_swcl_is_the_formula_of_the_paper():
    """Mean over positives of -log(exp(s) / sum of exp of all others), by whole matrices."""
    recipe = recipe_of("swcl", {**SGD, "weight_decay": 0.3})
    state = state_of(recipe)
    (images,), labels = batch_of(recipe)

    def loss(params):
        rows = jnp.concatenate([images[:, 0], images[:, 1]])
        pooled, _ = pooled_of(params, state.statistics, rows)
        own = params["heads"]["projection"]
        hidden = jnp.maximum(linear(own["projection_network.out.0"], pooled), 0)
        z = unit(linear(own["projection_network.out.2"], hidden))
        names = np.array(["-".join(map(str, row)) for row in labels["columns"].tolist()] * 2)
        others = ~np.eye(2 * BATCH, dtype=bool)
        positives = (names[:, None] == names[None]) & others
        logits = z @ z.T / 0.1
        below = jnp.log(jnp.where(others, jnp.exp(logits), 0).sum(1, keepdims=True))
        each = jnp.where(positives, logits - below, 0).sum(1) / positives.sum(1).astype(float)
        return -each.mean()

    value, params = descended(recipe, jax.jit(loss), state)
    found, metrics = after(recipe, 1)
    np.testing.assert_allclose(metrics["train/loss"], value, 1e-10)
    agree(found.train.params, jax.device_get(params))
    # One label of four images, two of two: 7 or 3 other views.
    assert metrics["train/positives"] == pytest.approx((4 * 7 + 4 * 3) / 8)


@pytest.mark.parametrize("group", [0, pytest.param(8, marks=pytest.mark.slow)])
def test_byol_is_the_formula_of_the_paper(group):
    """The second step, whose target has moved; batch statistics of heads by hand."""
    recipe = recipe_of("byol_bn", bn_group=group)
    parallel = Parallel(jax.devices()[:1])
    state, _ = compiled(recipe, parallel)(state_of(recipe), *batch_of(recipe, 0))
    state = jax.tree.map(jnp.array, jax.device_get(state))
    (images,), _ = batch_of(recipe, 1)
    keep = 1 - (1 - 0.9) * (math.cos(math.pi / 10) + 1) / 2
    mix = lambda t, s: keep * t + (1 - keep) * s  # noqa: E731
    theirs = jax.tree.map(mix, state.target["params"], state.train.params)
    size = group or 2 * BATCH
    rows = images.reshape(-1, size, SIDE, SIDE, 3)

    def head(leaves, module, x):
        x = linear(leaves[f"{module}.out.0"], x).reshape(-1, size, 16)
        x = (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + 1e-5)
        norm = leaves[f"{module}.out.1"]
        x = jnp.maximum(x * norm["scale"] + norm["bias"], 0).reshape(2 * BATCH, 16)
        return linear(leaves[f"{module}.out.3"], x)

    def projected(params, statistics):
        pooled = jnp.concatenate([pooled_of(params, statistics, part)[0] for part in rows])
        return head(params["heads"]["projection"], "projection_network", pooled)

    aims = unit(projected(theirs, state.target["statistics"])).reshape(BATCH, 2, -1)

    def loss(params):
        said = projected(params, state.statistics)
        said = unit(head(params["heads"]["predictor"], "predictor_network", said))
        said = said.reshape(BATCH, 2, -1)
        return ((said - aims[:, ::-1]) ** 2).sum() / BATCH

    value, params = descended(recipe, jax.jit(loss), state)
    moved = [pooled_of(state.train.params, state.statistics, part)[1] for part in rows]
    seen = [pooled_of(theirs, state.target["statistics"], part)[1] for part in rows]
    kept = jax.tree.map(jnp.copy, state)
    found, metrics = compiled(recipe, parallel)(kept, *batch_of(recipe, 1))
    # The average's momentum is a number of single precision.
    np.testing.assert_allclose(metrics["train/loss"], value, 1e-6)
    agree(jax.device_get(found.train.params), jax.device_get(params), 1e-6)
    agree(jax.device_get(found.target["params"]), jax.device_get(theirs), 1e-6)
    for statistics, parts in ((found.statistics, moved), (found.target["statistics"], seen)):
        mean = jax.tree.map(lambda *parts: sum(parts) / len(parts), *parts)
        agree(jax.device_get(statistics["encoder"]), jax.device_get(mean), 1e-6)
    # Running statistics of the heads are moved once a step, each by the features of its network.
    for own, (params, old, new) in (
        ("own", (state.train.params, state.statistics, found.statistics)),
        ("average", (theirs, state.target["statistics"], found.target["statistics"])),
    ):
        first = params["heads"]["projection"]["projection_network.out.0"]
        groups = np.array([linear(first, pooled_of(params, old, part)[0]) for part in rows])
        old, new = (x["heads"]["projection"]["projection_network.out.1.stats"] for x in (old, new))
        wanted = 0.9 * old["mean"] + 0.1 * groups.mean((0, 1))
        np.testing.assert_allclose(new["mean"], wanted, 0, 1e-6, err_msg=own)
        wanted = 0.9 * old["var"] + 0.1 * groups.var(1, ddof=1).mean(0)
        np.testing.assert_allclose(new["var"], wanted, 0, 1e-6, err_msg=own)


def test_the_average_follows_by_hand_for_three_steps():
    """It is a copy in the first step, and moves at the start of each later one."""
    recipe = recipe_of("byol_bn")
    step = compiled(recipe, Parallel(jax.devices()[:1]))
    state = state_of(recipe)
    own = [jax.device_get(state.train.params)]
    wanted = own[0]
    for number in range(3):
        state, _ = step(state, *batch_of(recipe, number))
        if number:
            keep = 1 - 0.1 * (math.cos(math.pi * number / 10) + 1) / 2
            mix = lambda t, s, k=keep: k * t + (1 - k) * s  # noqa: E731
            wanted = jax.tree.map(mix, wanted, own[number])
        agree(jax.device_get(state.target["params"]), wanted, 1e-6)
        own.append(jax.device_get(state.train.params))
    gap = np.abs(jax.tree.leaves(wanted)[0] - jax.tree.leaves(own[-1])[0]).max()
    assert gap > 1e-4


def test_dinos_center_moves_after_the_loss():
    """Cross-entropy of either view with the other and with local ones, by NumPy."""
    recipe = recipe_of("dino")
    state = state_of(recipe)
    (images, local), _ = batch_of(recipe, local=2)
    center = np.array(state.memory)
    params, statistics = jax.device_get((state.train.params, state.statistics))
    assert 0 <= center.min() and center.max() < 1 and len(set(center.tolist())) == PROTOTYPES

    def said(shown, statistics):
        flat = shown.reshape(-1, *shown.shape[2:])
        pooled, moved = pooled_of(params, statistics, flat)
        rows = DinoHead(PROTOTYPES).apply({"params": params["heads"]["projection"]}, pooled)
        return np.asarray(rows).reshape(*shown.shape[:2], -1), {**statistics, "encoder": moved}

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    whole, moved = said(images, statistics)
    student = np.concatenate([whole, said(local, moved)[0]], 1)
    teacher = softmax((whole - center) / 0.04)
    logs = np.log(softmax(student / 0.1))
    terms = [-(teacher[:, i] * logs[:, j]).sum(-1) for i in range(2) for j in range(4) if i != j]
    found, metrics = after(recipe, 1, local=2)
    np.testing.assert_allclose(metrics["train/loss"], np.mean(terms), 1e-6)
    np.testing.assert_allclose(found.memory, 0.9 * center + 0.1 * whole.mean((0, 1)), 1e-6)
    entropy = -(teacher * np.log(teacher + 1e-300)).sum(-1).mean()
    np.testing.assert_allclose(metrics["train/teacher_entropy"], entropy, 1e-5)
    mean = teacher.mean((0, 1))
    information = -(mean * np.log(mean)).sum() - entropy
    np.testing.assert_allclose(metrics["train/teacher_information"], information, 1e-4, 1e-7)


def test_multitask_in_groups_is_the_sum_of_both_cross_entropies():
    recipe = recipe_of("multitask", bn_group=4)
    state = state_of(recipe)
    (images,), labels = batch_of(recipe)
    found, metrics = after(recipe, 1)
    params = state.train.params
    parts = [pooled_of(params, state.statistics, images[i : i + 4, 0]) for i in (0, 4)]
    pooled = jnp.concatenate([part[0] for part in parts])
    total = 0.0
    for task, key, weight in (
        ("normal-abnormal", "abnormality", 1.0),
        ("position", "position", 0.1),
    ):
        logits = linear(params["heads"]["out"][f"out.{task}.0"], pooled)
        logs = np.asarray(logits - jax.nn.logsumexp(logits, axis=1, keepdims=True))
        total -= weight * logs[np.arange(BATCH), labels[key]].mean()
        right = (logs.argmax(1) == labels[key]).mean()
        assert metrics[f"train/accuracy_{key}"] == pytest.approx(right)
    np.testing.assert_allclose(metrics["train/loss"], total, 1e-10)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, parts[0][1], parts[1][1])
    agree(found.statistics["encoder"], jax.device_get(mean))


@pytest.mark.parametrize("method", ["byol_bn", "dino"])
def test_what_is_not_finite_leaves_everything_as_it_was(method):
    recipe = recipe_of(method)
    step = compiled(recipe, Parallel(jax.devices()[:1]))
    state, _ = step(state_of(recipe), *batch_of(recipe))
    before = jax.device_get(state)
    (images,), labels = batch_of(recipe, 1)
    images[3, 1, 2, 2, 0] = np.nan
    state, metrics = step(state, (images,), labels)
    assert metrics["skipped"] == 1
    found = jax.device_get(state)
    assert (found.step, found.skipped) == (2, 1) and (before.step, before.skipped) == (1, 0)
    kept = found.replace(train=found.train.replace(step=before.step, skipped=before.skipped))
    for a, b in zip(*map(jax.tree.leaves, (kept, before)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_state_is_donated_and_the_start_is_not():
    recipe = recipe_of("byol_bn")
    state = state_of(recipe)
    compiled(recipe, Parallel(jax.devices()[:1]))(state, *batch_of(recipe))
    assert all(x.is_deleted() for x in jax.tree.leaves((state.train.params, state.target)))
    assert not any(x.is_deleted() for x in jax.tree.leaves(start_of()))


def test_the_frozen_last_layer_neither_learns_nor_decays():
    """Its moments go on, so that its first step has the length of any other."""
    recipe = recipe_of("dino", ADAMW, frozen_epochs=1)
    step = compiled(recipe, Parallel(jax.devices()[:1]))
    state = state_of(recipe)

    def layers(state):
        own = jax.device_get(state.train.params["heads"]["projection"])
        names = ("projection_network.last_layer", "projection_network.out.0")
        return [own[name]["kernel"] for name in names]

    seen = [layers(state)]
    for number in range(3):
        state, _ = step(state, *batch_of(recipe, number, 2))
        seen.append(layers(state))
        moments = [x for x in jax.tree.leaves(state.train.opt_state) if x.shape == seen[0][0].shape]
        assert len(moments) == 2 and all(float(jnp.abs(x).max()) > 0 for x in moments)
    np.testing.assert_array_equal(seen[1][0], seen[0][0])
    np.testing.assert_array_equal(seen[2][0], seen[0][0])
    assert np.abs(seen[3][0] - seen[2][0]).max() > 1e-4
    assert all(np.abs(seen[n + 1][1] - seen[n][1]).max() > 1e-4 for n in range(3))


@pytest.mark.parametrize("method", ["byol", "byol_bn", "dino", "multitask"])
def test_weight_decay_shrinks_kernels_alone(method):
    params = state_of(recipe_of(method)).train.params
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(params))
    assert len(mask) == len(jax.tree.leaves(params))
    for (path, decays), leaf in zip(mask, jax.tree.leaves(params), strict=True):
        # Scales and biases have one dimension, all else at least two.
        assert decays == (leaf.ndim > 1), path


def test_the_averages_statistics_are_of_its_own_features():
    """After a hundred steps an average that hardly moved knows what it normalizes."""
    recipe = recipe_of("byol_bn")._replace(ema=0.9999)
    step = compiled(recipe, Parallel(jax.devices()[:1]))
    state, (images, labels) = state_of(recipe), batch_of(recipe)
    for _ in range(100):
        state, _ = step(state, images, labels)
    held = {"params": state.target["params"]["encoder"]}
    statistics = {"batch_stats": state.target["statistics"]["encoder"]}
    rows = images[0].reshape(-1, SIDE, SIDE, 3)
    trained = features(NETWORK, held | statistics, rows, train=True).pooled
    judged = features(NETWORK, held | statistics, rows).pooled
    np.testing.assert_allclose(trained.mean(0), judged.mean(0), 0.05)
