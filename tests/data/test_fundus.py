import cv2
import numpy as np
import pytest

from medinit_jax.data.phantoms import fundus
from medinit_jax.data.phantoms.fundus_lesions import Lesions
from medinit_jax.data.phantoms.fundus_patient import LEFT, RIGHT, draw_labels, draw_patient

SEEDS = range(100, 132)


@pytest.fixture(scope="module")
def drawn():
    return [fundus.render(seed, eye, 128) for seed in SEEDS for eye in (RIGHT, LEFT)]


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    first, again, other = (fundus.render(seed, RIGHT, 64)["image"] for seed in (7, 7, 8))
    assert first.dtype == np.uint8 and first.shape == (64, 64, 3)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5


def test_patient_keeps_pigment_and_camera_but_eyes_differ():
    right, left = fundus.render(3, RIGHT, 64), fundus.render(3, LEFT, 64)
    np.testing.assert_array_equal(right["masks"]["fov"], left["masks"]["fov"])
    assert right["patient"] == left["patient"]
    assert (right["masks"]["vessels"] != left["masks"]["vessels"][:, ::-1]).mean() > 0.02


def test_disc_lies_nasal_in_every_image(drawn):
    for example in drawn:
        columns = np.nonzero(example["masks"]["disc_cup"])[1]
        assert np.sign(columns.mean() - 63.5) == example["eye"]


def test_fovea_lies_below_the_disc_which_tells_what_is_up(drawn):
    for example in drawn:
        rows = np.nonzero(example["masks"]["disc_cup"])[0]
        assert example["fovea"][1] > rows.mean()


def test_vessels_cover_a_plausible_share_of_the_field(drawn):
    for example in drawn:
        share = example["masks"]["vessels"].sum() / example["masks"]["fov"].sum()
        assert 0.04 < share < 0.20


def test_every_eye_has_disc_and_cup_and_the_mask_agrees_with_the_label(drawn):
    errors = []
    for example in drawn:
        mask = example["masks"]["disc_cup"]
        assert set(np.unique(mask)) == {0, 1, 2}
        height = [np.ptp(np.nonzero(mask >= k)[0]) + 1 for k in (1, 2)]
        errors.append(height[1] / height[0] - example["labels"]["vcdr"])
    assert abs(np.mean(errors)) < 0.03
    assert np.std(errors) < 0.06


def test_lesion_masks_hold_what_the_labels_count(drawn):
    names = ("microaneurysms", "hemorrhages", "exudates_drawn", "cotton_wool")
    for example in drawn:
        labels, masks = example["labels"], example["masks"]["lesions"]
        for plane, name in enumerate(names):
            bled = labels["preretinal"] if name == "hemorrhages" else 0
            # Dots of one pixel may be blurred under the mask's threshold.
            if not labels[name] and not bled:
                assert not masks[..., plane].any()
            elif name != "exudates_drawn":
                assert masks[..., plane].any()
        if labels["grade"] == 0:
            assert not masks.any()


def test_messidor_grade_follows_from_the_counts(drawn):
    for labels in (example["labels"] for example in drawn):
        dots = labels["microaneurysms"]
        bleeds = labels["hemorrhages"] + labels["preretinal"]
        if labels["neovessels"] or dots >= 15 or bleeds >= 5:
            assert labels["messidor"] == 3
        elif 6 <= dots or bleeds:
            assert labels["messidor"] == 2
        else:
            assert labels["messidor"] == (1 if dots else 0)
        assert (labels["dme"] > 0) == (labels["exudates_drawn"] > 0)


def test_labels_move_no_nuisance():
    patient = draw_patient(5)
    labels = draw_labels(patient, 5, RIGHT)
    healthy = labels.__class__(0, labels.glaucoma, labels.vcdr, Lesions())
    ill = labels.__class__(2, labels.glaucoma, labels.vcdr, Lesions(5, 0, 0, 0))
    first, second = (fundus.render(5, RIGHT, 128, labels=x) for x in (healthy, ill))
    changed = np.abs(first["image"].astype(int) - second["image"]).max(axis=-1) > 2
    near = second["masks"]["lesions"].any(axis=-1)
    grown = sum(np.roll(near, (i, j), (0, 1)) for i in range(-4, 5) for j in range(-4, 5)) > 0
    assert changed.any() and not (changed & ~grown).any()


def test_grades_and_ratios_have_the_stated_distribution():
    patients = [draw_patient(seed) for seed in range(4000)]
    share = np.bincount([p.grade for p in patients], minlength=5) / len(patients)
    # Three standard errors of a share of .46 among 4000 are .024.
    np.testing.assert_allclose(share, (0.46, 0.14, 0.22, 0.10, 0.08), atol=0.024)
    labels = [draw_labels(p, s, RIGHT) for s, p in enumerate(patients)]
    ratio = np.array([x.vcdr for x in labels])
    ill = np.array([x.glaucoma for x in labels])
    above = (ratio[ill][:, None] > ratio[~ill][None]).mean()
    assert above == pytest.approx(0.983, abs=0.006)
    differs = np.mean([x.grade != p.grade for x, p in zip(labels, patients, strict=True)])
    assert 0.08 < differs < 0.20


def test_dark_patients_have_dark_pictures():
    patients = {seed: draw_patient(seed).pigment for seed in range(200)}
    order = sorted(patients, key=patients.__getitem__)
    means = [
        np.mean([fundus.render(seed, RIGHT, 32)["image"][8:24, 8:24].mean() for seed in part])
        for part in (order[:50], order[-50:])
    ]
    assert means[0] > means[1] + 15


def test_hard_upright_weakens_the_cue_and_keeps_the_default_untouched():
    drops = {}
    for upright in ("normal", "hard"):
        examples = [fundus.render(seed, RIGHT, 64, upright=upright) for seed in range(40)]
        drops[upright] = [
            (e["fovea"][1] - np.nonzero(e["masks"]["disc_cup"])[0].mean()) / 32 for e in examples
        ]
    assert np.mean(drops["hard"]) < 0.75 * np.mean(drops["normal"])
    assert min(drops["normal"]) > 0 > min(drops["hard"])


def test_no_float64_sneaks_into_the_picture():
    """A float64 scalar would promote every plane and halve the speed."""
    frame = fundus.Frame(32, 16.0)
    assert all(axis.dtype == np.float32 for axis in frame.grid())
    rng = np.random.default_rng(0)
    geometry = fundus._draw_eye(rng, draw_patient(0), RIGHT, hard=False)
    light, planes = fundus._background(rng, draw_patient(0), geometry, frame)
    assert light.dtype == planes.dtype == np.float32


def test_pictures_are_rich():
    for seed in range(4):
        image = fundus.render(seed, RIGHT, 256)["image"]
        assert len(cv2.imencode(".png", image)[1]) > 20_000
