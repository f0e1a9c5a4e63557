import numpy as np
import pytest
from oracles import swcl

from medinit_jax.core.errors import UsageError
from medinit_jax.data.augment import NORMALIZATION
from medinit_jax.finetune import recipes, sizes
from medinit_jax.finetune.recipes import RECIPES, make_plan


def _pair(height, width, seed=0):
    """A gray image, and a mask that follows from its pixels: 1 dark, 2 bright."""
    levels = np.random.default_rng(seed).integers(1, 256, (height, width), dtype=np.uint8)
    return np.repeat(levels[..., None], 3, -1), (1 + (levels > 127)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_of_the_image_is_that_of_its_mask(seed):
    plan = make_plan("swcl384", "segmentation", "fundus", size=16)
    image, mask = recipes.drawn_pair(*_pair(40, 23), plan, np.random.default_rng(seed))
    assert image.shape == (16, 16, 3) and mask.shape == (16, 16)
    np.testing.assert_array_equal(mask, 1 + (image[..., 0] > 127))
    other, _ = recipes.drawn_pair(*_pair(40, 23), plan, np.random.default_rng(seed + 100))
    assert (other != image).any()


def test_crops_reach_every_pixel_and_both_directions():
    plan = make_plan("swcl384", "segmentation", "fundus", size=16)
    image = np.zeros((20, 18, 3), np.uint8)
    image[..., 0] = image[..., 1] = image[..., 2] = np.arange(18, dtype=np.uint8) + 1
    mask = np.ones((20, 18), np.uint8)
    drawn = [
        recipes.drawn_pair(image, mask, plan, np.random.default_rng(i))[0][0, :, 0]
        for i in range(60)
    ]
    steps = {int(row[1]) - int(row[0]) for row in drawn}
    assert steps == {1, -1}
    assert {int(row.min()) for row in drawn} == {1, 2, 3}


def test_what_a_crop_has_beyond_the_image_is_unknown():
    plan = make_plan("swcl384", "segmentation", "fundus", size=32)
    image, mask = recipes.drawn_pair(*_pair(20, 50), plan, np.random.default_rng(1))
    assert (mask == 0).sum() == (32 - 20) * 32
    np.testing.assert_array_equal(mask == 0, image[..., 0] == 0)
    np.testing.assert_array_equal((mask > 0).any(1), (np.arange(32) >= 6) & (np.arange(32) < 26))


def test_a_turned_crop_moves_image_and_mask_alike():
    plan = make_plan("crops", "segmentation", "fundus", size=64)
    image = np.zeros((200, 200, 3), np.uint8)
    image[:, 90:] = 200
    mask = np.where(image[..., 0] > 0, 2, 1).astype(np.uint8)
    shares = []
    for seed in range(8):
        moved, classes = recipes.drawn_pair(image, mask, plan, np.random.default_rng(seed))
        assert moved.shape == (64, 64, 3)
        known = classes > 0
        # A crop at the border may be turned beyond it, by its corners.
        assert known.mean() > 0.6
        values = moved[..., 0][known]
        bright = values > (int(values.min()) + int(values.max())) / 2
        if len(np.unique(classes[known])) == 2:
            shares.append(((classes[known] == 2) == bright).mean())
    assert len(shares) > 3 and min(shares) > 0.97


def test_the_same_draw_is_the_same_picture():
    for name, recipe in RECIPES.items():
        plan = make_plan(name, recipe.kind, "fundus", size=24)
        image, mask = _pair(60, 50)
        pictures = []
        for _ in range(2):
            rng = np.random.default_rng(3)
            if recipe.kind == "segmentation":
                pictures.append(
                    recipes.drawn_pair(*recipes.kept_pair(image, mask, plan), plan, rng)
                )
            else:
                pictures.append(recipes.drawn_image(recipes.kept_image(image, plan), plan, rng))
        np.testing.assert_array_equal(pictures[0][0], pictures[1][0])


def test_sides_change_in_proportion():
    plan = make_plan("swcl224", "classification", "fundus", size=112)
    assert (plan.size, plan.recipe.kept, plan.recipe.shown) == (112, 175, 128)
    plan = make_plan("swcl384", "segmentation", "fundus", stretch=True)
    assert (plan.size, plan.square) == (384, 514)
    assert make_plan("hyper512", "classification", "CT").size == 512


def test_the_second_paper_shows_the_middle():
    plan = make_plan("swcl224", "classification", "fundus")
    columns = np.linspace(0, 250, 700).astype(np.uint8)
    image = np.broadcast_to(columns[None, :, None], (350, 700, 3)).copy()
    kept = recipes.kept_image(image, plan)
    assert kept.shape == (350, 700, 3)
    shown = recipes.shown_image(kept, plan)
    # 256 x 512, of which the columns 144 to 367 are shown.
    assert shown.shape == (224, 224, 3)
    assert abs(int(shown[0, 0, 0]) - 250 * 144.5 / 512) < 2
    assert abs(int(shown[0, -1, 0]) - 250 * 367.5 / 512) < 2


def test_only_fundus_photographs_are_turned_upside_down():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:8] = 255

    def lower(modality, **options):
        plan = make_plan("hyper512", "classification", modality, size=32, **options)
        drawn = [
            recipes.drawn_image(image, plan, np.random.default_rng(seed)) for seed in range(30)
        ]
        return sum(int(one[16:].sum()) > int(one[:16].sum()) for one in drawn)

    assert 5 < lower("fundus") < 25
    assert lower("CT") == lower("X-ray") == lower("fundus", upright=True) == 0


def test_a_padded_image_comes_back_at_its_size():
    plan = make_plan("hyper512seg", "segmentation", "fundus", size=80)
    image, mask = _pair(40, 20)
    kept, known = recipes.kept_pair(image, mask, plan)
    assert kept.shape == (80, 80, 3)
    assert (known[:, :20] == 0).all() and (known[:, 60:] == 0).all() and (known[:, 20:60] > 0).all()
    np.testing.assert_array_equal(known[::2, 20:60:2], mask)
    logits = np.stack([known == 1, known == 2], -1).astype(np.float32)
    back = recipes.to_native(logits, (40, 20), plan)
    assert back.shape == (40, 20, 2) and back.dtype == np.float32
    np.testing.assert_array_equal(back.argmax(-1) + 1, mask)


def test_a_shorter_side_is_the_authors():
    held = swcl()
    np.testing.assert_array_equal(sizes.shorter(held["pil_in"], 48), held["pil_resize_short48"])


def test_discs_are_stretched_to_a_square():
    plan = make_plan("swcl384", "segmentation", "fundus", size=48, stretch=True)
    image, mask = _pair(30, 40)
    kept, known = recipes.kept_pair(image, mask, plan)
    assert kept.shape == (64, 64, 3) and known.shape == (64, 64)
    assert set(np.unique(known)) <= {1, 2}
    assert recipes.to_native(np.zeros((64, 64, 4), np.float32), (30, 40), plan).shape == (30, 40, 4)


def test_normalization_follows_the_modality():
    for modality, name in (("fundus", "fundus"), ("your own", "fundus"), ("CT", "gray")):
        plan = make_plan("hyper512", "classification", modality)
        assert (plan.mean, plan.std) == NORMALIZATION[name]
    assert make_plan("hyper512", "classification", "CT", normalization="fundus").mean[0] == 0.3219
    values = recipes.normalized(np.full((1, 1, 3), 255, np.uint8), make_plan(
        "hyper512", "classification", "CT"))  # fmt: skip
    np.testing.assert_allclose(values, 2.0)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("nothing", "classification", "fundus"), "config.data.recipe"),
        (("hyper512", "segmentation", "fundus"), "hyper512seg"),
        (("hyper512", "classification", "fundus", 8), "config.data.size"),
        (("hyper512", "classification", "fundus", 0, "other"), "config.data.normalization"),
    ],
)
def test_what_means_nothing_is_refused(arguments, key):
    with pytest.raises(UsageError, match=key):
        make_plan(*arguments)


@pytest.mark.torch
def test_logits_are_resized_as_by_pytorch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(9, 7, 2)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(2, 0, 1)[None].copy()), (20, 5), mode="bilinear"
    )
    plan = recipes.make_plan("swcl384", "segmentation", "fundus")
    found = recipes.to_native(x, (20, 5), plan)
    np.testing.assert_allclose(found, expected.numpy()[0].transpose(1, 2, 0), atol=1e-5)
