import gzip

import nibabel
import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.data import nifti
from medinit_jax.data.decode import DecodeError, decode
from medinit_jax.data.folder import FolderSource

# A box of 4 x 5 x 6 voxels whose value names the voxel; axes lead to the right, front and head.
VOXELS = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
RAS = np.diag([1.0, 1, 1, 1])


def save(path, voxels, affine=RAS):
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def stretched(values):
    low, high = np.percentile(VOXELS, (0.5, 99.5))
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_axial_slices_have_the_front_up_and_the_patients_right_on_the_left(tmp_path, name):
    path = save(tmp_path / name, VOXELS)
    assert nifti.slices(path) == 6
    image = nifti.read_slice(path, 0)
    assert image.dtype == np.uint8 and image.shape == (5, 4, 3)
    expected = VOXELS[::-1, ::-1, 0].T
    np.testing.assert_allclose(image[..., 1], stretched(expected), atol=1)
    np.testing.assert_array_equal(decode(path), nifti.read_slice(path, 3))


def test_other_axes_and_other_orientations_show_the_same(tmp_path):
    path = save(tmp_path / "ras.nii", VOXELS)
    assert [nifti.slices(path, axis) for axis in range(3)] == [4, 5, 6]
    assert [nifti.read_slice(path, 0, axis).shape[:2] for axis in range(3)] == [
        (6, 5),
        (6, 4),
        (5, 4),
    ]
    # The head is up: a later voxel along the third axis lies higher.
    coronal = nifti.read_slice(path, 0, 1)[..., 0].astype(int)
    assert (np.diff(coronal, axis=0) <= 0).all() and coronal[0, 0] > coronal[-1, 0]
    turned = np.zeros((4, 4))
    turned[0, 2], turned[1, 0], turned[2, 1], turned[3, 3] = -1, 1, -1, 1
    # File axes: front, feet, left.
    voxels = VOXELS.transpose(1, 2, 0)[:, ::-1, ::-1]
    other = save(tmp_path / "turned.nii", np.ascontiguousarray(voxels), turned)
    for axis in range(3):
        assert nifti.slices(other, axis) == nifti.slices(path, axis)
        for number in range(nifti.slices(path, axis)):
            np.testing.assert_array_equal(
                nifti.read_slice(other, number, axis), nifti.read_slice(path, number, axis)
            )


def test_plane_images_and_series(tmp_path):
    flat = save(tmp_path / "flat.nii", VOXELS[..., 0])
    assert nifti.slices(flat) == 1 and decode(flat).shape == (5, 4, 3)
    series = save(tmp_path / "series.nii", np.stack([VOXELS, VOXELS[::-1]], axis=-1))
    one = save(tmp_path / "one.nii", VOXELS)
    np.testing.assert_array_equal(nifti.read_slice(series, 2), nifti.read_slice(one, 2))


def test_refusals(tmp_path):
    path = save(tmp_path / "a.nii", VOXELS)
    with pytest.raises(DecodeError, match="no slice 6, only 6"):
        nifti.read_slice(path, 6)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DecodeError, match="cut short: 400 bytes for 120 voxels"):
        nifti.slices(path)
    broken = tmp_path / "b.nii"
    broken.write_bytes(b"nothing")
    with pytest.raises(DecodeError, match="."):
        nifti.slices(broken)
    color = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(DecodeError, match="only of numbers"):
        nifti.slices(save(tmp_path / "color.nii", color))
    whole = gzip.compress(save(tmp_path / "c.nii", VOXELS).read_bytes())
    (tmp_path / "c.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DecodeError, match="."):
        nifti.read_slice(tmp_path / "c.nii.gz")


def test_damage_of_any_kind_is_a_decode_error(tmp_path):
    whole, rng = save(tmp_path / "a.nii", VOXELS).read_bytes(), np.random.default_rng(0)
    read = 0
    for number in range(100):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, 352, 2)] = rng.integers(0, 256, 2)
        place = tmp_path / f"{number}.nii"
        place.write_bytes(damaged.tobytes())
        try:
            assert nifti.read_slice(place).dtype == np.uint8
            read += 1
        except DecodeError as error:
            assert str(error)
    assert 10 < read < 100
    with pytest.raises(DecodeError, match="No such file"):
        nifti.read_slice(tmp_path / "nothing.nii")


def test_a_folder_serves_every_slice(tmp_path):
    save(tmp_path / "7_left.nii.gz", VOXELS)
    save(tmp_path / "8.nii", VOXELS[..., :2])
    source = FolderSource(tmp_path, size=8)
    assert len(source) == 8 and source.parts == [*range(6), 0, 1]
    assert source.patients == ["7_left.nii"] * 6 + ["8"] * 2
    assert source[7]["patient"] == "8" and source[0]["image"].shape == (8, 8, 3)
    assert source[5]["image"].mean() > source[0]["image"].mean()
    assert source.describe()["count"] == 8
    (tmp_path / "9.nii").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"1 of 3 .*9\.nii"):
        FolderSource(tmp_path, size=8)


def test_without_nibabel_the_command_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii", VOXELS)
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(DecodeError, match=r"pip install medinit_jax\[dicom\]"):
        nifti.slices(path)
