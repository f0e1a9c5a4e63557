import errno
import os
import pickle
import shutil
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image

from medinit_jax.core.errors import UsageError
from medinit_jax.data.decode import DecodeError, decode, fit_square, to_rgb
from medinit_jax.data.folder import FolderSource
from medinit_jax.data.fov import circle_crop, fov_mask


def gradient(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, x * 0], axis=-1).astype(np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for name in ("1_left.png", "1_right.png", "b/2_OS.bmp", "b/3.tif", "c.ppm", "d.jpg", "e.gif"):
        save(root / name, gradient(20, 30))
    return root


def test_reads_all_formats_with_eye_and_patient(folder):
    source = FolderSource(folder, size=16)
    assert len(source) == 7
    examples = {file: source[i] for i, file in enumerate(source.files)}
    assert all(e["image"].shape == (16, 16, 3) for e in examples.values())
    assert all(e["image"].dtype == np.uint8 for e in examples.values())
    assert [examples[f]["eye"] for f in ("1_left.png", "1_right.png", "b/2_OS.bmp", "c.ppm")] == [
        -1,
        1,
        -1,
        0,
    ]
    assert examples["1_left.png"]["patient"] == examples["1_right.png"]["patient"] == "1"
    assert examples["b/2_OS.bmp"]["patient"] == "b/2"
    exact = examples["1_left.png"]["image"].astype(int)
    for file in ("b/3.tif", "c.ppm", "b/2_OS.bmp"):
        np.testing.assert_array_equal(examples[file]["image"], exact)
    assert np.abs(examples["d.jpg"]["image"] - exact).mean() < 8


def test_clutter_is_ignored_and_counted(folder):
    (folder / "labels.csv").write_text("a,b")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "1.png").write_bytes(b"x")
    source = FolderSource(folder, size=8)
    assert len(source) == 7 and not source.unreadable
    assert sorted(source.ignored) == [".DS_Store", "__MACOSX/1.png", "labels.csv"]
    assert source.describe()["ignored"] == 3


def test_links_out_of_the_folder_are_not_followed_but_listed(folder, tmp_path, caplog):
    secret = tmp_path / "secret"
    save(secret / "a.png", gradient(20, 30))
    (folder / "inside.png").symlink_to(folder / "1_left.png")
    (folder / "outside.png").symlink_to(secret / "a.png")
    (folder / "b/all").symlink_to(secret)
    (folder / "dangling.png").symlink_to(folder / "none.png")
    source = FolderSource(folder, size=8)
    assert "inside.png" in source.files and len(source) == 8 and not source.unreadable
    assert source.outside == ["b/all", "dangling.png", "outside.png"]
    assert source.describe()["links_not_followed"] == source.outside
    assert caplog.text.count("is not followed") == 3
    (secret / "links").mkdir()
    (secret / "links/a.png").symlink_to(folder / "1_left.png")
    with pytest.raises(UsageError, match="1 links out of it that are not followed"):
        FolderSource(secret / "links", size=8)


def test_a_folder_that_cannot_be_read_is_an_error(folder, monkeypatch):
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=f"The folder {folder}/b cannot be read: Permission"):
        FolderSource(folder, size=8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>login", "web page"),
        (b"no image at all", "cannot identify"),
    ],
)
def test_more_than_a_thousandth_of_bad_files_is_an_error_that_names_them(folder, content, reason):
    (folder / "broken.png").write_bytes(content)
    with pytest.raises(UsageError, match=rf"1 of 8 files .*broken\.png .*{reason}"):
        FolderSource(folder, size=8)


@pytest.mark.parametrize("name", ["d.jpg", "1_left.png", "b/3.tif"])
def test_a_file_cut_short_is_found(folder, name):
    save(folder / name, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=name):
        FolderSource(folder, size=8)


def test_few_bad_files_are_left_out_and_listed(tmp_path):
    save(tmp_path / "0000.png", gradient(4, 4))
    for i in range(1, 1001):
        shutil.copy(tmp_path / "0000.png", tmp_path / f"{i:04d}.png")
    (tmp_path / "0500.png").write_bytes(b"broken")
    source = FolderSource(tmp_path, size=4)
    assert len(source) == 1000
    assert [file for file, _ in source.unreadable] == ["0500.png"]
    assert "0500.png" in source.describe()["unreadable"][0]
    (tmp_path / "0501.png").write_bytes(b"broken")
    with pytest.raises(UsageError, match=r"2 of 1001 .*0500.png.*0501.png"):
        FolderSource(tmp_path, size=4)


def test_header_check_replaces_a_bad_image_by_the_next(tmp_path, caplog):
    for i in range(1001):
        if i < 3:
            save(tmp_path / f"{i:04d}.png", np.full((32, 32, 3), 40 * i, np.uint8))
        else:
            shutil.copy(tmp_path / "0001.png", tmp_path / f"{i:04d}.png")
    whole = (tmp_path / "0001.png").read_bytes()
    (tmp_path / "0001.png").write_bytes(whole[:60])
    source = FolderSource(tmp_path, size=8, check="header")
    assert len(source) == 1001
    assert (source[1]["image"] == 80).all()
    assert "0001.png" in caplog.text and source.unreadable[0][0] == "0001.png"


def test_missing_file_and_empty_folder(tmp_path):
    with pytest.raises(UsageError, match="does not exist; set data.path"):
        FolderSource(tmp_path / "nothing", size=8)
    file = tmp_path / "file.txt"
    file.write_text("x")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        FolderSource(file, size=8)
    with pytest.raises(UsageError, match=r"holds no image \(1 other"):
        FolderSource(tmp_path, size=8)


def test_subfolders_can_be_classes(tmp_path):
    for name in ("ill/a.png", "ill/b.png", "well/c.png"):
        save(tmp_path / name, gradient(8, 8))
    source = FolderSource(tmp_path, size=8, labels="folder")
    assert source.classes == ("ill", "well")
    assert [source[i]["label"] for i in range(3)] == [0, 0, 1]
    save(tmp_path / "loose.png", gradient(8, 8))
    with pytest.raises(UsageError, match=r"loose\.png lies beside"):
        FolderSource(tmp_path, size=8, labels="folder")


def test_checksum_follows_content_and_names(folder):
    first = FolderSource(folder, size=8).checksum()
    assert FolderSource(folder, size=16).checksum() == first
    (folder / "c.ppm").rename(folder / "c2.ppm")
    second = FolderSource(folder, size=8).checksum()
    save(folder / "c2.ppm", gradient(20, 30)[::-1])
    assert len({first, second, FolderSource(folder, size=8).checksum()}) == 3


def test_source_survives_pickling(folder):
    source = FolderSource(folder, size=8)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])


def test_sixteen_bits_gray_transparency_and_orientation(tmp_path):
    deep = (np.arange(100 * 100).reshape(100, 100) // 4).astype(np.uint16)
    save(tmp_path / "deep.png", deep)
    read = decode(tmp_path / "deep.png")
    assert read.shape == (100, 100, 3) and read.min() == 0 and read.max() == 255
    np.testing.assert_allclose(read[50, 50, 0], 128, atol=3)
    save(tmp_path / "gray.png", gradient(8, 9)[..., 0])
    assert decode(tmp_path / "gray.png").shape == (8, 9, 3)
    clear = np.concatenate([gradient(8, 8), np.zeros((8, 8, 1), np.uint8)], axis=-1)
    save(tmp_path / "clear.png", clear)
    assert not decode(tmp_path / "clear.png").any()
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "turned.jpg", gradient(20, 40), exif=exif)
    assert decode(tmp_path / "turned.jpg").shape == (40, 20, 3)


def test_large_jpegs_are_read_at_a_fraction_of_their_size(tmp_path):
    save(tmp_path / "large.jpg", gradient(800, 800))
    assert decode(tmp_path / "large.jpg", at_least=32).shape[0] in range(64, 201)


def test_decode_reads_bytes_and_says_why_not():
    with pytest.raises(DecodeError, match="cannot identify"):
        decode(b"not an image")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "gif", "ppm"])
def test_damage_of_any_kind_is_a_decode_error(tmp_path, suffix):
    save(tmp_path / f"a.{suffix}", gradient(16, 16))
    whole, rng = (tmp_path / f"a.{suffix}").read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, min(len(whole), 200), 4)
        damaged[places] = rng.integers(0, 256, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert decode(damaged.tobytes()).shape[-1] == 3
            except DecodeError as error:
                assert str(error)


def test_sixteen_bit_color_tiff(tmp_path):
    deep = gradient(16, 16).astype(np.uint16) * 256
    (tmp_path / "deep.tif").write_bytes(cv2.imencode(".tif", deep[..., ::-1])[1].tobytes())
    read = decode(tmp_path / "deep.tif")
    np.testing.assert_array_equal(read, gradient(16, 16))


def test_to_rgb_stretches_other_dtypes():
    wide = np.linspace(-1000, 3000, 256).reshape(16, 16)
    out = to_rgb(wide)
    assert out.dtype == np.uint8 and out.min() == 0 and out.max() == 255
    np.testing.assert_array_equal(to_rgb(np.full((4, 4), 7)), 0)


@pytest.mark.parametrize("shape", [(20, 40), (40, 20), (30, 30), (5, 7), (33, 32)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_fit_square_keeps_aspect(shape, fit):
    image = np.zeros((*shape, 3), np.uint8)
    center = (shape[0] // 2, shape[1] // 2)
    image[center[0] - 2 : center[0] + 2, center[1] - 2 : center[1] + 2] = 255
    out = fit_square(image, 16, fit)
    assert out.shape == (16, 16, 3)
    rows, columns = (np.ptp(v) + 1 for v in np.nonzero(out[..., 0] > 127))
    assert abs(rows - columns) <= 1
    scale = 16 / (min(shape) if fit == "crop" else max(shape))
    assert abs(rows - 4 * scale) <= 1.5


def test_crop_by_hand():
    image = gradient(4, 8)
    np.testing.assert_array_equal(fit_square(image, 4), image[:, 2:6])
    padded = fit_square(np.full((2, 4, 3), 9, np.uint8), 4, "pad")
    np.testing.assert_array_equal(padded[:, :, 0], [[0] * 4, [9] * 4, [9] * 4, [0] * 4])


def photograph(cut):
    y, x = np.mgrid[:120, :200]
    field = ((y - 60) ** 2 + (x - 90) ** 2 < 50**2) & (np.abs(y - 60) < cut)
    return (field[..., None] * np.array([180, 90, 40])).astype(np.uint8), field


@pytest.mark.parametrize("cut", [60, 40])
def test_field_of_view_is_found_and_never_cut(cut):
    image, field = photograph(cut)
    mask, found = fov_mask(image)
    assert found and np.mean(mask != field) < 0.02
    square = circle_crop(image)
    assert square.shape[0] == square.shape[1] == pytest.approx(100, abs=4)
    assert (square.sum() > 0) and abs(int((square[..., 0] > 0).sum()) - int(field.sum())) < 400
    margin = square.shape[0] // 2 - min(cut, 50)
    assert not square[: max(0, margin - 3)].any()


def test_field_of_view_falls_back_to_the_whole_image():
    mask, found = fov_mask(np.full((40, 40, 3), 200, np.uint8))
    assert mask.all() and not found
    assert circle_crop(np.zeros((10, 20, 3), np.uint8)).shape == (20, 20, 3)


def test_names_that_are_no_text(tmp_path):
    # Some file systems refuse such names.
    try:
        save(tmp_path / "\udcff.png", gradient(8, 8))
    except OSError as error:
        pytest.skip(str(error))
    assert len(FolderSource(tmp_path, size=8).checksum()) == 64


def test_gray_around_the_field_is_told_apart_by_a_larger_share():
    image, field = photograph(60)
    # As in STARE, whose border is a seventh as bright as its field.
    image = np.maximum(image, 25)
    assert not fov_mask(image)[1]
    mask, found = fov_mask(image, 0.25)
    assert found and np.mean(mask != field) < 0.02
