import shutil

import numpy as np
import pytest
from fake_trees.aptos2019 import GRADES, SAME, make_aptos2019, names
from fake_trees.images import cut_short, save
from PIL import Image

from medinit_jax.data.builders.aptos2019 import MedinitAptos2019
from medinit_jax.data.builders.config import Config
from medinit_jax.data.fov import circle_crop
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.prepare import prepare

GRADED = names("train", 10)
PAIR = {GRADED[number] for number in SAME}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_aptos2019(tmp_path_factory.mktemp("aptos"))


def items_of(root, tmp_path, config="default", **options):
    builder = MedinitAptos2019(
        data_dir=tmp_path / "data", config=config, **{"strict_counts": False, **options}
    )
    splits = builder.checked_items(builder.locate(root))
    return builder, {
        split: {item.values["image_id"]: item for item in items} for split, items in splits.items()
    }


def test_pixels_are_those_of_the_field(whole, tmp_path):
    builder = MedinitAptos2019(data_dir=tmp_path, config=Config(name="native"), strict_counts=False)
    prepare(builder, whole, workers=0)
    for split in ("train", "test"):
        for example in builder.as_data_source(split):
            name = example["image_id"].decode()
            with Image.open(whole / f"{split}_images/{name}.png") as file:
                image = np.array(file)
            np.testing.assert_array_equal(example["image"], circle_crop(image))
            assert example["image"].shape[0] == example["image"].shape[1]
            assert tuple(example["orig_size"]) == image.shape[:2]
            assert example["fov_found"]


def test_grades(whole, tmp_path):
    builder = MedinitAptos2019(data_dir=tmp_path, strict_counts=False)
    prepare(builder, whole, workers=0)
    found = {e["image_id"].decode(): e["label"] for e in builder.as_data_source("train")}
    assert found == dict(zip(GRADED, GRADES, strict=True))
    assert {e["label"] for e in builder.as_data_source("test")} == {-1}


def test_published_numbers():
    counts = MedinitAptos2019.COUNTS
    assert counts["default"] == {"train": 3662, "test": 1928}
    assert counts["paper"] == {"train": 3662 * 4 // 5, "test": 733} == counts["paper_dedupe"]
    assert sum(counts["paper"].values()) == 3662


def test_the_papers_division_needs_no_test_set(tmp_path):
    root = make_aptos2019(tmp_path / "fake")
    shutil.rmtree(root / "test_images")
    (root / "test.csv").unlink()
    _, splits = items_of(root, tmp_path, "paper")
    assert set(splits["train"]) | set(splits["test"]) == set(GRADED)
    assert not set(splits["train"]) & set(splits["test"])
    assert all(item.key == f"test/{name}" for name, item in splits["test"].items())
    with pytest.raises(DatasetLayoutError) as raised:
        items_of(root, tmp_path)
    assert raised.value.code == "E_MISSING_FILE" and "test.csv" in str(raised.value)


def test_lookalikes_stay_in_one_part(whole, tmp_path, caplog):
    apart = {"paper": 0, "paper_dedupe": 0}
    for rule in apart:
        for seed in range(8):
            config = Config(name=f"{rule}_seed{seed}", rule=rule, split_seed=seed)
            builder, splits = items_of(whole, tmp_path, config)
            assert len(splits["train"]) == 8 and len(splits["test"]) == 2
            apart[rule] += len(PAIR & set(splits["test"])) == 1
            if rule == "paper":
                copied = int(len(PAIR & set(splits["test"])) == 1)
                (note,) = builder.notes
                assert note.startswith(f"{copied} photographs of test are in train")
                assert ("too good" in note) == (note in caplog.text) == bool(copied)
                assert f"in {copied} of {copied} groups the grades differ" in note
    assert apart["paper_dedupe"] == 0 < apart["paper"]


def test_contradictory_grades_are_counted_and_listed(whole, tmp_path):
    builder = MedinitAptos2019(data_dir=tmp_path, config="paper_dedupe", strict_counts=False)
    first, second = (GRADED[number] for number in SAME)
    assert prepare(builder, whole, workers=0)["notes"] == [
        "groups of photographs that look alike: 1, with different grades: 1",
        f"look alike: {first} has grade 1, {second} has grade 2",
    ]


def test_what_cannot_be_read_is_in_no_group(tmp_path):
    root = make_aptos2019(tmp_path / "fake")
    cut_short(root / f"train_images/{GRADED[0]}.png")
    with pytest.raises(DatasetLayoutError) as raised:
        items_of(root, tmp_path, "paper_dedupe")
    assert raised.value.code == "E_DECODE"
    _, splits = items_of(root, tmp_path, "paper_dedupe", on_corrupt="skip")
    assert GRADED[0] in splits["train"] or GRADED[0] in splits["test"]


def test_a_field_that_is_not_found_is_told(tmp_path):
    root = make_aptos2019(tmp_path / "fake")
    save(root / f"train_images/{GRADED[0]}.png", np.full((50, 60, 3), 90, np.uint8))
    builder, splits = items_of(root, tmp_path)
    example = builder.example(splits["train"][GRADED[0]])
    assert not example["fov_found"] and example["orig_size"].tolist() == [50, 60]


def test_eyepacs_is_recognized(tmp_path):
    (tmp_path / "in/train").mkdir(parents=True)
    (tmp_path / "in/train/10_left.jpeg").touch()
    with pytest.raises(DatasetLayoutError) as raised:
        items_of(tmp_path / "in", tmp_path)
    assert raised.value.code == "E_MISPLACED" and "medinit_eyepacs" in raised.value.fix
