"""S4L: its objective against a plain computation, its batches and what they refuse."""

from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.heads import UNKNOWN, Head, total_weights
from medinit_jax.finetune import recipes
from medinit_jax.finetune.step import Part, Recipe, compiled
from medinit_jax.models.features import features
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.network import Network
from medinit_jax.models.resnet import Variant, resnet
from medinit_jax.models.statistics import initial_statistics
from medinit_jax.swcl import s4l
from medinit_jax.swcl.s4l import S4L, S4LBatches

HEADS = (Head("abnormal", ("normal", "abnormal")),)
SIDE, VIEWS = 16, 2
SGD = {"name": "sgd", "weight_decay": 0.0, "momentum": 0.0, "nesterov": False, "clip": 0.0}


def network_of(norm):
    program = resnet(Variant((1,), False), (SIDE, SIDE, 3), 2, stem="small", width=8, norm=norm)
    return Network(program, jnp.float64)


def recipe_of(norm, accumulate=1, **options):
    objective = S4L(**{"parts": accumulate, **options})
    return Recipe(network_of(norm), HEADS, tuple(SGD.items()), accumulate, objective=objective)


def start_of(recipe):
    params = initial_parameters(recipe.network.program, jax.random.key(3))
    trees = params, initial_statistics(recipe.network.program)
    return jax.tree.map(lambda x: x.astype(jnp.float64), trees)


def batch_of(labelled=4, unlabelled=4, parts=1, seed=0):
    """In every part labelled images before unlabelled ones."""
    rng = np.random.default_rng(seed)
    count = labelled + unlabelled
    # Views of an image resemble each other, so that triplets of all kinds occur.
    images = rng.normal(size=(count, 1, SIDE, SIDE, 3))
    images = images + 0.8 * rng.normal(size=(count, VIEWS, SIDE, SIDE, 3))
    targets = rng.integers(0, 2, (parts, count // parts)).astype(np.int32)
    targets[:, labelled // parts :] = UNKNOWN
    return images, {"abnormal": targets.reshape(-1)}


def semi_hard(z, identities, margin):
    """Pair by pair; distances of what is chosen keep their gradient."""
    losses, found = [], np.asarray(jax.lax.stop_gradient(z))
    squared = lambda a, b: ((z[a] - z[b]) ** 2).sum()  # noqa: E731
    far = ((found[:, None] - found[None]) ** 2).sum(-1)
    for a in range(len(found)):
        others = [n for n in range(len(found)) if identities[n] != identities[a]]
        for p in range(len(found)):
            if p == a or identities[p] != identities[a]:
                continue
            beyond = [n for n in others if far[a, n] > far[a, p]]
            n = min(beyond, key=lambda n: far[a, n]) if beyond else max(
                others, key=lambda n: far[a, n]
            )  # fmt: skip
            losses.append(jnp.maximum(margin + squared(a, p) - squared(a, n), 0))
    return sum(losses) / len(losses)


def plain(recipe, params, statistics, images, targets, parts=1, margin=0.5, weight=1.0):
    """Cross-entropy over all labelled views, and the mean of the parts' triplet losses."""
    total, terms = 0.0, []
    labelled = int((targets["abnormal"] != UNKNOWN).sum()) * VIEWS
    divided = np.array_split(images, parts), np.array_split(targets["abnormal"], parts)
    for shown, known in zip(*divided, strict=True):
        flat = jnp.asarray(shown.reshape(-1, SIDE, SIDE, 3))
        held = {"params": params, "batch_stats": statistics}
        pooled = features(recipe.network, held, flat, train=True).pooled
        logits = pooled @ params["fc"]["kernel"] + params["fc"]["bias"]
        logs = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
        names = np.repeat(np.arange(len(shown)), VIEWS)
        for row, target in enumerate(np.repeat(known, VIEWS)):
            if target != UNKNOWN:
                total -= logs[row, target] / labelled
        z = pooled / jnp.sqrt((pooled**2).sum(1, keepdims=True))
        terms.append(semi_hard(z, names, margin))
    return total + weight * sum(terms) / parts


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


def part_of(recipe, images, targets, weights=None):
    totals = total_weights(HEADS, targets, weights or {}, jnp.float32)
    return Part(jnp.asarray(images), targets, weights or {}, totals, jax.random.key(0))


def test_the_objective_is_cross_entropy_plus_triplets(wide):
    recipe = recipe_of("bn", margin=0.3, weight=0.7)
    params, statistics = start_of(recipe)
    images, targets = batch_of()
    part = part_of(recipe, images, targets)
    with jax.numpy_dtype_promotion("standard"):
        value, moved = recipe.objective(recipe, params, statistics, part)
        wanted = plain(recipe, params, statistics, images, targets, margin=0.3, weight=0.7)
    np.testing.assert_allclose(value, wanted, 1e-7)
    # Labelled and unlabelled views share their statistics.
    flat = jnp.asarray(images.reshape(-1, SIDE, SIDE, 3))
    held = {"params": params, "batch_stats": statistics}
    own = features(recipe.network, held, flat, train=True).batch_stats
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(own), strict=True):
        np.testing.assert_allclose(a, b, 1e-12)


def test_unlabelled_images_teach_by_triplets_alone(wide):
    """Without triplets their views change nothing where norms look at one image only."""
    images, targets = batch_of()
    other = np.where(targets["abnormal"][:, None, None, None, None] == UNKNOWN, -images, images)
    values = {}
    for weight in (0.0, 1.0):
        recipe = recipe_of("gn", weight=weight)
        params, statistics = start_of(recipe)
        with jax.numpy_dtype_promotion("standard"):
            values[weight] = [
                float(recipe.objective(recipe, params, statistics, part_of(recipe, x, targets))[0])
                for x in (images, other)
            ]
    assert values[0.0][0] == pytest.approx(values[0.0][1], rel=1e-12)
    assert abs(values[1.0][0] - values[1.0][1]) > 1e-5


def test_parts_add_up_to_a_batch_whose_triplets_stay_inside_of_them(wide):
    """Two parts: value and descended parameters are those of the plain sum over parts."""
    images, targets = batch_of(parts=2)
    recipe = recipe_of("gn", accumulate=2)
    params, statistics = start_of(recipe)
    with jax.numpy_dtype_promotion("standard"):
        value, gradient = jax.value_and_grad(
            lambda p: plain(recipe, p, statistics, images, targets, parts=2)
        )(params)
        across = plain(recipe, params, statistics, images, targets)
        begin, step = compiled(recipe)
        rate = jnp.asarray(0.5)
        state, metrics = step(
            begin(params, statistics), jnp.asarray(images), targets, {}, rate, jax.random.key(0)
        )
    np.testing.assert_allclose(metrics["train/loss"], value, 1e-6)
    assert abs(float(across) - float(value)) > 1e-4
    wanted = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
    for a, b in zip(*map(jax.tree.leaves, (state.train.params, wanted)), strict=True):
        np.testing.assert_allclose(a, b, 0, 1e-6 * max(1e-3, float(jnp.abs(b).max())))


class Marked:
    """Images whose pixels are their number."""

    def __init__(self, first, count, targets=None):
        self.first, self.count, self.targets = first, count, targets or {}

    def __len__(self):
        return self.count

    def image(self, number):
        assert 0 <= number < self.count
        return np.full((4, 4, 3), self.first + number, np.uint8)


LABELS = np.array([0, 1, 1, 0, 1, 0, 0], np.int32)


@pytest.fixture
def made(monkeypatch):
    """Returns a function to batches of seven labelled and two sets of unlabelled images."""
    monkeypatch.setattr(recipes, "drawn_image", lambda image, plan, rng: image + rng.random())
    monkeypatch.setattr(s4l.recipes, "normalized", lambda images, plan: np.float32(images))

    def make(batch=4, unlabelled=6, parts=2, views=3, sets=(5, 3), seed=1):
        config = ml_collections.ConfigDict(
            {
                "seed": seed,
                "train": {"batch": batch, "accumulate": parts},
                "s4l": {"unlabelled_batch": unlabelled, "views": views},
            }
        )
        train = Marked(0, len(LABELS), {"abnormal": LABELS})
        images = SimpleNamespace(train=train, plan=SimpleNamespace(size=4))
        others = [Marked(100 * (n + 1), count) for n, count in enumerate(sets)]
        return S4LBatches(config, images, others)

    return make


def numbers(batch):
    """The images of a batch, by the whole part of a pixel."""
    return np.floor(batch["image"][:, 0, 0, 0, 0]).astype(int).tolist()


def test_every_part_has_its_labelled_and_unlabelled_images(made):
    batch = made()[0]
    assert batch["image"].shape == (10, 3, 4, 4, 3) and batch["image"].dtype == np.float32
    found, targets = numbers(batch), batch["targets"]["abnormal"]
    assert targets.dtype == np.int32
    for part in (slice(0, 5), slice(5, 10)):
        assert all(n < 100 for n in found[part][:2]) and all(n >= 100 for n in found[part][2:])
        np.testing.assert_array_equal(targets[part][:2], LABELS[found[part][:2]])
        assert (targets[part][2:] == UNKNOWN).all()
    assert len(set(found)) == 10
    # One draw for each view of each image.
    assert len(np.unique(batch["image"][..., 0, 0, 0])) == 30


def test_a_step_has_one_batch_whatever_came_before(made):
    first, second = made(), made()
    in_order = [first[step] for step in range(4)]
    for step in (3, 1, 1, 0, 2):
        np.testing.assert_array_equal(second[step]["image"], in_order[step]["image"])
        for name, target in second[step]["targets"].items():
            np.testing.assert_array_equal(target, in_order[step]["targets"][name])
    assert numbers(made(seed=2)[0]) != numbers(in_order[0])


def test_epochs_of_both_kinds_show_every_image_once(made):
    batches = made(batch=2, unlabelled=4, parts=1)
    assert batches.steps_per_epoch == 4
    shown = [n for step in range(14) for n in numbers(batches[step])]
    labelled = [n for n in shown if n < 100]
    others = [n for n in shown if n >= 100]
    everyone = [100, 101, 102, 103, 104, 200, 201, 202]
    for start in range(0, 28, 7):
        assert sorted(labelled[start : start + 7]) == list(range(7))
    for start in range(0, 56, 8):
        assert sorted(others[start : start + 8]) == everyone
    assert Counter(others) == dict.fromkeys(everyone, 7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": 3}, "config.train.batch=3 of 7 images does not divide"),
        ({"batch": 8}, "config.train.batch=8 of 7 images"),
        ({"batch": 0}, "config.train.batch=0 of 7 images"),
        ({"parts": 0}, "accumulate=0 parts"),
        ({"unlabelled": 5}, "config.s4l.unlabelled_batch=5 of 8 images"),
        ({"unlabelled": 10}, "config.s4l.unlabelled_batch=10 of 8 images"),
        ({"views": 1}, "config.s4l.views=1 make no triplet"),
    ],
)
def test_what_makes_no_batches_is_refused(made, change, words):
    with pytest.raises(UsageError, match=words):
        made(**change)


def test_processes_make_the_rows_that_are_theirs(made):
    batches = made(batch=4, unlabelled=6, parts=2)
    whole = batches[3]
    parts = [batches.shared((number, 5))[3] for number in range(5)]
    images = np.concatenate([part["image"] for part in parts])
    np.testing.assert_array_equal(images, whole["image"])
    labels = np.concatenate([part["targets"]["abnormal"] for part in parts])
    np.testing.assert_array_equal(labels, whole["targets"]["abnormal"])
    with pytest.raises(UsageError, match="10 images, which 3 processes cannot share"):
        batches.shared((0, 3))
