import numpy as np
import pytest

from medinit_jax.data.phantoms import ct

SEEDS = range(300, 364)
PIXELS = 20 * (128 / 256) ** 2


@pytest.fixture(scope="module")
def drawn():
    return [ct.render(seed, 0, 128) for seed in SEEDS]


def test_same_seed_gives_the_same_bytes_and_another_does_not():
    first, again, other = (ct.render(seed, 0, 64) for seed in (5, 5, 6))
    assert first["hu"].dtype == np.int16 and first["hu"].shape == (64, 64)
    np.testing.assert_array_equal(first["hu"], again["hu"])
    assert first["labels"] == again["labels"]
    assert (first["hu"] != other["hu"]).mean() > 0.3


def test_labels_follow_from_the_masks(drawn):
    for example in drawn:
        labels, masks = example["labels"], example["masks"]
        assert tuple(masks) == ct.TYPES
        for name, mask in masks.items():
            assert labels[name] == int(mask.sum() >= PIXELS)
        assert labels["any"] == max(labels[name] for name in ct.TYPES)
    assert 0.2 < np.mean([example["labels"]["any"] for example in drawn]) < 0.6


def test_shares_of_bleeding_and_its_kinds():
    labels = [ct.render(seed, 0, 24)["labels"] for seed in range(250)]
    assert np.mean([one["any"] for one in labels]) == pytest.approx(0.38, abs=0.095)
    assert all(any(one[name] for one in labels) for name in ct.TYPES)
    kinds = [ct._draw_types(np.random.default_rng(seed)) for seed in range(3000)]
    bleeding = [len(one) for one in kinds if one]
    # Three standard errors.
    assert len(bleeding) / 3000 == pytest.approx(0.40, abs=0.027)
    assert np.mean([n == 2 for n in bleeding]) == pytest.approx(0.30, abs=0.04)
    first = np.bincount([one[0] for one in kinds if one], minlength=5) / len(bleeding)
    np.testing.assert_allclose(first, ct._TYPE_SHARES, atol=0.04)


def test_the_level_does_not_tell_whether_there_is_bleeding():
    """Bleeding into ventricles needs them; as many healthy slices are drawn at their level."""
    kinds = [ct._draw_types(np.random.default_rng(seed)) for seed in range(6000)]
    forced = np.mean([ct._VENTRICULAR in one for one in kinds if one])
    assert forced == pytest.approx(ct._FORCED_LEVEL_SHARE, abs=0.027)


def test_tissues_have_their_density():
    """Air, bone, brain and blood, on slices without and with one large bleeding."""
    for seed in range(4):
        example = ct.render(seed, 0, 256, types=())
        hu, image = example["hu"], example["image"]
        assert example["labels"]["any"] == 0
        assert hu[:3, :3].mean() == pytest.approx(ct.AIR, abs=5)
        assert 1000 < hu.max() < 2500
        brain = hu[(hu > 15) & (hu < 55)]
        assert 28 < np.median(brain) < 42
        assert image[:3, :3].max() == 0 and image.max() == 255
    for name in ct.TYPES:
        ill = [ct.render(seed, 0, 256, types=(name,)) for seed in range(5)]
        blood = [np.median(e["hu"][e["masks"][name] > 0]) for e in ill if e["labels"][name]]
        assert len(blood) > 2 and 45 < np.mean(blood) < 80


def test_bleeding_changes_nothing_elsewhere():
    compared = 0
    for seed in range(30):
        healthy, ill = (ct.render(seed, 0, 96, types=t) for t in ((), ("epidural", "subdural")))
        if healthy["level"] != ill["level"]:
            continue
        compared += 1
        bled = sum(ill["masks"][name] for name in ct.TYPES) > 0
        near = sum(np.roll(bled, (i, j), (0, 1)) for i in range(-4, 5) for j in range(-4, 5)) > 0
        change = np.abs(ill["hu"] - healthy["hu"])
        # A crescent's thin ends are fainter than its mask.
        assert (change[~near] > 1).mean() < 0.02 and bled.any()
        assert change[healthy["hu"] < -200].mean() < 0.1
    assert compared > 15


def test_slices_of_a_patient_share_the_skull_and_not_the_brain():
    first, second = (ct.render(8, 0, 128, slice_number=number, types=()) for number in (1, 2))
    assert first["patient"] == second["patient"] and first["level"] != second["level"]
    assert (first["hu"] != second["hu"]).mean() > 0.3
    shared = [np.random.default_rng([8, ct._STREAM, ct._PATIENT_STREAM]) for _ in range(2)]
    assert ct._draw_patient(shared[0]) == ct._draw_patient(shared[1])


def test_the_star_cistern_is_in_every_low_slice():
    low = [
        e for e in (ct.render(seed, 0, 128, types=()) for seed in range(60)) if e["level"] < -0.2
    ]
    assert len(low) > 4
    for example in low:
        middle = example["hu"][50:64, 58:70]
        assert middle.min() < 15 and example["hu"][70:76, 30:50].max() > 500


def test_windows_are_the_stated_ones():
    hu = np.array([[-1024, 0, 40, 80, 180, 600, 2000, 3071]], np.int16)
    expected = []
    for center, width in ct.WINDOWS.values():
        expected.append(np.clip((hu - (center - width / 2)) / width, 0, 1) * 255)
    np.testing.assert_allclose(ct.windowed(hu), np.stack(expected, -1), atol=0.51)


def test_no_float64_sneaks_into_the_slice():
    rng = np.random.default_rng(0)
    patient = ct._draw_patient(rng)
    head = ct._draw_head(rng, patient, 0.1, 32)
    hu, fluid = ct._draw_slice(rng, patient, head)
    covers = [ct._bleed(rng, head, fluid, hu, kind) for kind in range(5)]
    assert {array.dtype for array in (head.radius, head.angle, hu, *fluid, *covers)} == {
        np.dtype(np.float32)
    }
