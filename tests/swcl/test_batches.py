"""Batches of views: the same ones for a step, pairs side by side, labels that belong to them."""

from collections import Counter

import numpy as np
import pytest
from tiny_pretrain import tiny, write_patches

from medinit_jax.core.errors import UsageError
from medinit_jax.data.augment import NORMALIZATION
from medinit_jax.data.pipeline import Batches
from medinit_jax.data.sources import ArraySource
from medinit_jax.data.views import RECIPES, ViewRecipe, Views
from medinit_jax.swcl import sources
from medinit_jax.swcl.batches import Joined, Look, ViewBatches
from medinit_jax.swcl.patch_pairs import open_pairs

MEAN, STD = NORMALIZATION["fundus"]
# Views that change nothing, so that an image can be known again.
STILL = Views(area=(1, 1), aspect=(1, 1), mirror=0, jitter=0, gray=0, blur=0)
SAME = ViewRecipe((STILL, STILL), 24)
SIDE = 24


def look(recipe=SAME, size=SIDE):
    return Look(recipe, size, MEAN, STD)


def whole(count=7, seed=0):
    rng = np.random.default_rng(seed)
    return ArraySource(rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("made") / "patches")


@pytest.fixture(scope="module")
def pairs(folder):
    return open_pairs(str(folder))


def pixels(batch):
    """Undoes the normalization: uint8 (batch, views, S, S, 3)."""
    return np.rint((batch * STD + MEAN) * 255).astype(np.uint8)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("kind", ["whole", "pairs"])
def test_a_step_has_one_batch_whatever_came_before(pairs, kind):
    items = pairs if kind == "pairs" else whole()
    made = [ViewBatches(items, look(RECIPES["contrastive"], 16), 6, 3) for _ in range(2)]
    in_order = [made[0][step] for step in range(4)]
    for step in (3, 0, 2, 2, 1):
        same(made[1][step], in_order[step])
    stream = Batches(ViewBatches(items, look(RECIPES["contrastive"], 16), 6, 3))
    stream.set_state({"step": 2})
    same(next(stream), in_order[2])
    stream.close()
    other = ViewBatches(items, look(RECIPES["contrastive"], 16), 6, 4)[0]
    assert not np.array_equal(other["image"], in_order[0]["image"])


def test_pairs_lie_side_by_side_with_their_number_and_eye(pairs):
    batch = ViewBatches(pairs, look(), 6, 0)[0]
    assert batch["image"].shape == (6, 2, SIDE, SIDE, 3) and batch["image"].dtype == np.float32
    np.testing.assert_array_equal(batch["eye"], [0, 1] * 3)
    np.testing.assert_array_equal(batch["index"][::2], batch["index"][1::2])
    shown = pixels(batch["image"])
    for row, (number, eye) in enumerate(zip(batch["index"], batch["eye"], strict=True)):
        wanted = pairs[int(number)][("left", "right")[eye]]
        for view in range(2):
            np.testing.assert_array_equal(shown[row, view], wanted)


def test_labels_follow_pair_and_eye(pairs, tmp_path):
    """Read off the names and scores of the table, one patch after the other."""
    config = tiny("swcl", tmp_path, "--config.loss.threshold=0.5")
    held = sources.label_table(config, pairs)
    batch = ViewBatches(pairs, look(), 16, 1)[0]
    found = {name: labels[batch["index"], batch["eye"]] for name, labels in held.items()}
    for row, (number, eye) in enumerate(zip(batch["index"], batch["eye"], strict=True)):
        name = pairs.table.names[number][eye]
        score = pairs.table.scores[number][eye]
        assert found["position"][row] == ("tl", "tr", "c", "bl", "br").index(name.split("_")[3])
        assert found["abnormality"][row] == (score >= 0.5)
        # Numbers of OIA-ODIR begin after those of EyePACS.
        assert found["patient"][row] == 44352 + int(name.split("_")[1])
        wanted = [found[n][row] for n in ("position", "abnormality", "patient")]
        np.testing.assert_array_equal(found["columns"][row], wanted)
    config = tiny("swcl", tmp_path, "--config.loss.scheme=position-patient")
    assert sources.label_table(config, pairs)["columns"].shape == (8, 2, 2)


def test_swcl_image_takes_the_labels_of_the_photographs(pairs, tmp_path):
    config = tiny("swcl_image", tmp_path)
    held = sources.label_table(config, pairs)
    np.testing.assert_array_equal(held["abnormality"], pairs.table.labels)
    np.testing.assert_array_equal(held["columns"][..., 1], pairs.table.labels)
    assert pairs.table.labels.min() == 0 and pairs.table.labels.max() == 1
    labels = pairs.table.labels.copy()
    labels[:3, 1] = -1
    made = type("Pairs", (), {"table": pairs.table._replace(labels=labels)})
    with pytest.raises(UsageError, match="^3 pairs of config.data.patches come from photographs"):
        sources.label_table(config, made)


def test_the_threshold_is_warned_about_only_where_it_counts(pairs, tmp_path):
    def warning(method, *more):
        config = tiny(method, tmp_path, *more)
        config.loss.threshold = 1.0
        return sources.threshold_warning(config, pairs)

    for method in ("swcl", "multitask"):
        assert "All 16 patches lie below the threshold 1.0" in warning(method)
    assert warning("swcl_image") == ""
    assert warning("swcl", "--config.loss.scheme=position") == ""


@pytest.mark.parametrize("recipe", ["contrastive", "byol_asym", "dino_official"])
def test_views_differ_from_each_other_and_between_epochs(recipe):
    items = whole(4)
    made = ViewBatches(items, look(RECIPES[recipe], 16), 4, 0)
    first, second = made[0], made[1]
    assert not np.array_equal(first["image"][:, 0], first["image"][:, 1])
    seen = {view.tobytes() for batch in (first, second) for view in batch["image"].reshape(-1, 768)}
    assert len(seen) == 16


def test_both_eyes_of_a_pair_are_drawn_apart(pairs):
    """The crops of left and right differ although the number of the pair is one."""
    recipe = ViewRecipe((Views(area=(0.2, 0.5), jitter=0, gray=0, blur=0),), SIDE)
    one = {"left": np.arange(576 * 3).reshape(24, 24, 3).astype(np.uint8)}
    items = type("Pairs", (), {"table": pairs.table, "__len__": lambda self: 1})()
    type(items).__getitem__ = lambda self, index: {**one, "right": one["left"]}
    batch = ViewBatches(items, look(recipe), 2, 0)[0]
    assert not np.array_equal(batch["image"][0], batch["image"][1])


@pytest.mark.parametrize("count", [7, 8])
def test_every_epoch_shows_every_image_once(count):
    items = whole(count)
    made = ViewBatches(items, look(), 4, 5)
    assert made.steps_per_epoch == 2
    names = {image.tobytes(): number for number, image in enumerate(items.images)}
    shown = [
        names[image.tobytes()]
        for step in range(count)
        for image in pixels(made[step]["image"])[:, 0]
    ]
    epochs = [shown[i : i + count] for i in range(0, 4 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_every_epoch_shows_every_pair_with_both_eyes(pairs):
    made = ViewBatches(pairs, look(), 4, 5)
    assert made.steps_per_epoch == 4
    batches = [made[step] for step in range(4)]
    seen = Counter(
        (int(n), int(e)) for b in batches for n, e in zip(b["index"], b["eye"], strict=True)
    )
    assert seen == Counter({(n, e): 1 for n in range(8) for e in range(2)})


def test_local_views_show_less_and_are_smaller():
    batch = ViewBatches(whole(4), look(RECIPES["dino_official"], 28), 4, 0)[0]
    assert batch["image"].shape == (4, 2, 28, 28, 3)
    assert batch["local"].shape == (4, 8, 12, 12, 3) and batch["local"].dtype == np.float32
    locals_ = {view.tobytes() for view in batch["local"].reshape(32, -1)}
    assert len(locals_) == 32
    assert "local" not in ViewBatches(whole(4), look(), 4, 0)[0]


def test_joined_sources_follow_each_other():
    parts = [whole(3, 1), whole(1, 2), whole(2, 3)]
    joined = Joined(parts)
    assert len(joined) == 6 and joined.describe()["count"] == 6
    found = [joined[i]["image"] for i in range(6)]
    wanted = [image for part in parts for image in part.images]
    np.testing.assert_array_equal(np.stack(found), np.stack(wanted))


def test_what_makes_no_batches_is_refused(pairs):
    with pytest.raises(UsageError, match="no images to pretrain on"):
        ViewBatches(Joined([]), look(), 4, 0)
    with pytest.raises(UsageError, match="batch=5 patches are no pairs"):
        ViewBatches(pairs, look(), 5, 0)
    for items, batch in ((whole(4), 1), (whole(4), 0), (pairs, 0), (pairs, -2)):
        with pytest.raises(UsageError, match=f"batch={batch} leaves an image nothing"):
            ViewBatches(items, look(), batch, 0)
    with pytest.raises(UsageError, match="batch=8, but there are 7 images"):
        ViewBatches(whole(7), look(), 8, 0)
    with pytest.raises(UsageError, match="batch=18, but there are 16 images"):
        ViewBatches(pairs, look(), 18, 0)
