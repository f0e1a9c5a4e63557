import logging
import shutil

import numpy as np
import pytest
from fake_trees.eyepacs import LEVELS, NOT_GRADABLE, TEST_LEVELS, make_eyepacs
from fake_trees.images import LFS_POINTER, photograph, save
from PIL import Image

from medinit_jax.data.builders.config import Config
from medinit_jax.data.builders.eyepacs import MedinitEyepacs
from medinit_jax.data.graham import subtract_local_mean
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.prepare import prepare


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_eyepacs(tmp_path_factory.mktemp("eyepacs"))


@pytest.fixture
def fake(whole, tmp_path):
    """A tree that a test may damage."""
    return shutil.copytree(whole, tmp_path / "fake")


def items_of(root, tmp_path, config="default", **options):
    builder = MedinitEyepacs(
        data_dir=tmp_path / "data", config=config, **{"strict_counts": False, **options}
    )
    return builder, builder.checked_items(builder.locate(root))


def refusal(root, tmp_path, config="default", **options):
    with pytest.raises(DatasetLayoutError) as raised:
        items_of(root, tmp_path, config, **options)
    return raised.value


def test_pixels_are_those_of_the_files(whole, tmp_path):
    builder = MedinitEyepacs(data_dir=tmp_path, config=Config(name="native"), strict_counts=False)
    prepare(builder, whole, workers=0)
    for example in builder.as_data_source("test"):
        name = example["image_id"].decode()
        with Image.open(whole / f"test/{name}.jpeg") as image:
            np.testing.assert_array_equal(example["image"], np.array(image))
        assert example["orig_size"].tolist() == [64, 96]


def test_labels_eyes_and_patients(whole, tmp_path):
    builder = MedinitEyepacs(data_dir=tmp_path, strict_counts=False)
    prepare(builder, whole, workers=0)
    train = {e["image_id"].decode(): e for e in builder.as_data_source("train")}
    assert np.bincount([e["label"] for e in train.values()]).tolist() == [7, 2, 2, 1, 1]
    rows = [line.split(",") for line in (whole / "trainLabels.csv").read_text().split()[1:]]
    for name, level in rows:
        example = train[name]
        assert example["label"] == int(level)
        assert example["abnormal"] == (int(level) > 0)
        assert example["referable"] == (int(level) >= 2)
        patient, eye = name.split("_")
        assert example["patient_id"].decode() == patient
        assert builder.info.features["eye"].int2str(example["eye"]) == eye
    public = {e["image_id"] for e in builder.as_data_source("validation")}
    assert public == {b"101_left", b"101_right"}
    assert sorted(e["label"] for e in builder.as_data_source("test")) == sorted(TEST_LEVELS[2:])
    (sample,) = builder.as_data_source("sample")
    assert (sample["label"], sample["abnormal"], sample["referable"]) == (-1, -1, -1)
    assert sample["image_id"] == b"10_left"


def test_published_numbers(whole, tmp_path):
    counts = MedinitEyepacs.COUNTS
    assert sum(counts["default"].values()) == counts["all"]["train"] == 88702
    assert counts["paper"]["train"] == counts["default"]["train"] - 1
    for config in MedinitEyepacs.BUILDER_CONFIGS:
        error = refusal(whole, tmp_path, config.name, strict_counts=True)
        assert error.code == "E_COUNT"
        # Gradable ones are not counted anywhere, so the whole download is.
        for split, count in counts.get(config.name, counts["default"]).items():
            assert f"{split} {count}" in error.expected


@pytest.mark.parametrize("part", ["trainLabels.csv", "train", "test"])
def test_a_folder_around_its_namesake(fake, tmp_path, part):
    (fake / part).rename(fake / "moved")
    (fake / part).mkdir()
    (fake / "moved").rename(fake / part / part)
    _, splits = items_of(fake, tmp_path)
    assert [len(items) for items in splits.values()] == [13, 2, 6, 1]


def test_without_labels_only_all_can_be_prepared(fake, tmp_path):
    (fake / "trainLabels.csv").unlink()
    (fake / "retinopathy_solution.csv").unlink()
    assert refusal(fake, tmp_path).code == "E_MISSING_FILE"
    _, splits = items_of(fake, tmp_path, "all")
    assert {item.values["label"] for item in splits["train"]} == {-1}
    assert len(splits["train"]) == 21


def test_the_papers_leave_one_photograph_out(fake, tmp_path):
    builder, splits = items_of(fake, tmp_path, "paper")
    assert "train/492_right" not in {item.key for item in splits["train"]}
    assert builder.ignored == ["492_right: left out as in the papers"]
    (fake / "train/492_right.jpeg").unlink()
    _, splits = items_of(fake, tmp_path, "paper", strict_counts=False)
    assert len(splits["train"]) == len(LEVELS) - 1


def test_gradable_photographs(fake, tmp_path):
    builder, splits = items_of(fake, tmp_path, "gradable")
    names = {item.values["image_id"] for items in splits.values() for item in items}
    assert len(names) == 18 and not names & set(NOT_GRADABLE)
    assert "2 photographs of train: not gradable" in builder.ignored
    path = fake / "eyepacs_gradability_grades.csv"
    lines = path.read_text()
    path.write_text(lines.replace("\n1_left 1\n", "\n1_left 2\n"))
    assert refusal(fake, tmp_path, "gradable").code == "E_LABEL_RANGE"
    path.write_text(lines.replace(" ", ","))
    assert refusal(fake, tmp_path, "gradable").code == "E_COLUMNS"
    path.unlink()
    error = refusal(fake, tmp_path, "gradable")
    assert error.code == "E_MISSING_FILE" and "eyepacs_gradability_grades.csv" in error.fix


def test_a_photograph_without_gradability_is_an_orphan(fake, tmp_path, monkeypatch):
    whole_fake = {"train": 13, "validation": 2, "test": 6}
    monkeypatch.setattr("medinit_jax.data.builders.eyepacs._ALL_SPLITS", whole_fake)
    path = fake / "eyepacs_gradability_grades.csv"
    path.write_text(path.read_text().replace("\n3_left 1\n", "\n"))
    error = refusal(fake, tmp_path, "gradable", strict_counts=True)
    assert error.code == "E_ORPHAN" and "gradability grade" in str(error)
    builder, splits = items_of(fake, tmp_path, "gradable")
    assert "3_left: no gradability grade" in builder.ignored
    assert sum(map(len, splits.values())) == 17


def test_packed_files_are_named_with_the_command(fake, tmp_path):
    shutil.rmtree(fake / "test")
    for part in range(1, 8):
        (fake / f"test.zip.00{part}").write_bytes(b"PK")
    error = refusal(fake, tmp_path)
    assert error.code == "E_ARCHIVE" and "cat test.zip.0* > test.zip" in error.fix
    other = make_eyepacs(tmp_path / "other")
    (other / "trainLabels.csv").rename(other / "trainLabels.csv.zip")
    error = refusal(other, tmp_path)
    assert error.code == "E_ARCHIVE" and "trainLabels.csv.zip" in error.fix


def test_rows_that_occur_twice(fake, tmp_path, caplog):
    labels = fake / "trainLabels.csv"
    text = labels.read_text()
    labels.write_text(text + "1_left,0\n")
    with caplog.at_level(logging.WARNING):
        _, splits = items_of(fake, tmp_path)
    assert len(splits["train"]) == 13 and "repeated rows are counted once: 1" in caplog.text
    labels.write_text(text + "1_left,3\n")
    error = refusal(fake, tmp_path)
    assert error.code == "E_LABEL_RANGE" and "rows 2 and 15" in str(error)
    labels.write_text(text + ",3\n")
    assert refusal(fake, tmp_path).code == "E_LABEL_RANGE"


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("Public", "Secret", "E_LABEL_RANGE"),
        ("101_left,0", "101_left,2.5", "E_LABEL_RANGE"),
        ("101_left,0", "101_left,none", "E_LABEL_RANGE"),
        ("Usage", "Part", "E_COLUMNS"),
        ("image,level,Usage\n", "<!DOCTYPE html>\n", "E_LFS"),
        ("image,level,Usage\n", LFS_POINTER.decode(), "E_LFS"),
        ("101_left,0", "1000_left,0", None),
    ],
)
def test_a_damaged_solution(fake, tmp_path, old, new, code):
    path = fake / "retinopathy_solution.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    if code is not None:
        assert refusal(fake, tmp_path).code == code
        return
    assert refusal(fake, tmp_path, strict_counts=True).code == "E_ORPHAN"
    builder, splits = items_of(fake, tmp_path)
    assert len(splits["validation"]) == 1
    assert builder.ignored == ["1000_left: no image", "101_left.jpeg: no label"]


def test_links_out_of_the_tree_are_not_followed(fake, tmp_path):
    inside, outside = fake / "train/1_left.jpeg", tmp_path / "outside.jpeg"
    inside.rename(outside)
    inside.symlink_to(outside)
    assert refusal(fake, tmp_path, strict_counts=True).code == "E_ORPHAN"
    builder = MedinitEyepacs(data_dir=tmp_path / "data", strict_counts=False)
    manifest = prepare(builder, fake, workers=0)
    assert manifest["links_not_followed"] == [str(inside)]
    assert manifest["ignored"] == ["1_left: no image"]
    # Links within the tree are.
    inside.unlink()
    outside.rename(fake / "moved.jpeg")
    inside.symlink_to(fake / "moved.jpeg")
    _, splits = items_of(fake, tmp_path)
    assert len(splits["train"]) == 13
    (fake / "train").rename(tmp_path / "train")
    (fake / "train").symlink_to(tmp_path / "train")
    error = refusal(fake, tmp_path)
    assert error.code == "E_MISSING_FILE" and f"{fake}/train; put the files" in error.fix


def test_one_photograph_in_both_folders(fake, tmp_path):
    shutil.copy(fake / "train/1_left.jpeg", fake / "test")
    error = refusal(fake, tmp_path, "all")
    assert error.code == "E_MISPLACED" and error.found == ["1_left"]


@pytest.mark.parametrize(
    ("place", "name"),
    [("messidor_data.csv", "Messidor-2"), ("resized_train/x.jpg", "a resized copy of EyePACS")],
)
def test_sets_without_a_builder_are_named(tmp_path, place, name):
    (tmp_path / "in" / place).parent.mkdir(parents=True)
    (tmp_path / "in" / place).touch()
    error = refusal(tmp_path / "in", tmp_path)
    assert error.code == "E_MISPLACED" and name in str(error) and "Prepare it as" not in error.fix


def test_known_bad_files_are_left_out_where_they_cannot_be_read(fake, tmp_path):
    (fake / "train/492_right.jpeg").write_bytes(b"\xff\xd8\xff")
    builder = MedinitEyepacs(data_dir=tmp_path / "data", strict_counts=False)
    manifest = prepare(builder, fake, workers=0)
    assert [one["key"] for one in manifest["skipped"]] == ["train/492_right"]
    assert manifest["splits"]["train"] == 12


def test_large_photographs_are_reduced(fake, tmp_path):
    large = np.kron(photograph("large", 96, 64)["image"], np.ones((20, 20, 1), np.uint8))
    save(fake / "test/103_left.jpeg", large, quality=95)
    for config, shorter in (("default", 512), ("pretrain448", 448), ("cls350", 350)):
        builder, splits = items_of(fake, tmp_path, config)
        item = next(item for item in splits["test"] if item.key == "test/103_left")
        example = builder.example(item)
        stored = builder.info.features["image"].decode_example_np(example["image"])
        assert stored.shape == (shorter, shorter * 3 // 2, 3)
        assert example["orig_size"].tolist() == [1280, 1920]
        with Image.open(item.files["image"]) as image:
            exact = np.array(image.resize(stored.shape[1::-1], Image.Resampling.BOX))
        assert np.abs(stored.astype(int) - exact).mean() < 3


def test_btgraham300(whole, tmp_path):
    builder, splits = items_of(whole, tmp_path, "btgraham300")
    item = splits["test"][0]
    example = builder.example(item)
    stored = builder.info.features["image"].decode_example_np(example["image"])
    expected = subtract_local_mean(builder.read_image(item.files["image"]), 300)
    assert stored.shape == expected.shape and max(stored.shape) == 540
    assert np.abs(stored.astype(int) - expected).mean() < 4
    assert example["orig_size"].tolist() == [64, 96]
