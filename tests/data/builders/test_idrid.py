import numpy as np
import pytest
from fake_trees.idrid import PART, TEST, TRAIN, make_idrid
from PIL import Image

from medinit_jax.data.builders.config import Config
from medinit_jax.data.builders.idrid import MedinitIdrid
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.prepare import prepare


@pytest.fixture
def fake(tmp_path):
    return make_idrid(tmp_path / "fake")


def items_of(root, tmp_path, config="grading", **options):
    builder = MedinitIdrid(
        data_dir=tmp_path / "data", config=config, **{"strict_counts": False, **options}
    )
    return builder.checked_items(builder.locate(root))


def refusal(root, tmp_path, **options):
    with pytest.raises(DatasetLayoutError) as raised:
        items_of(root, tmp_path, **options)
    return raised.value


def test_grades_and_pixels_although_numbers_restart(fake, tmp_path):
    builder = MedinitIdrid(data_dir=tmp_path, config=Config(name="native"), strict_counts=False)
    prepare(builder, fake, workers=0)
    folders = {
        "train": "a. Training Set",
        "validation": "a. Training Set",
        "test": "b. Testing Set",
    }
    seen = {"a. Training Set": [], "b. Testing Set": []}
    for split, folder in folders.items():
        for example in builder.as_data_source(split):
            name = example["image_id"].decode()
            seen[folder].append((int(name[-3:]), (example["dr"], example["dme"])))
            with Image.open(fake / PART / "1. Original Images" / folder / f"{name}.jpg") as image:
                np.testing.assert_array_equal(example["image"], np.array(image))
    assert sorted(seen["a. Training Set"]) == list(enumerate(TRAIN, start=1))
    assert sorted(seen["b. Testing Set"]) == list(enumerate(TEST, start=1))


def test_a_fifth_of_the_training_set_is_for_validation(fake, tmp_path):
    counts = MedinitIdrid.COUNTS["grading"]
    assert counts["train"] + counts["validation"] == 413 and counts["train"] == int(0.8 * 413)
    assert counts["test"] == 103
    chosen = set()
    for seed in range(6):
        splits = items_of(fake, tmp_path, Config(name=f"grading_seed{seed}", split_seed=seed))
        (held_out,) = (item.values["image_id"] for item in splits["validation"])
        assert held_out not in {item.values["image_id"] for item in splits["train"]}
        for split, items in splits.items():
            assert [item.key for item in items] == [
                f"{split}/{item.values['image_id']}" for item in items
            ]
        chosen.add(held_out)
    assert len(chosen) > 1
    assert [i.key for i in items_of(fake, tmp_path)["validation"]] == [
        i.key for i in items_of(fake, tmp_path)["validation"]
    ]


@pytest.mark.parametrize(
    "outer", ["B.%20Disease%20Grading", "b. disease_grading", f"{PART}/{PART}", f"IDRiD/{PART}"]
)
def test_names_of_the_outer_folder(fake, tmp_path, outer):
    (fake / PART).rename(tmp_path / "moved")
    (fake / outer).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "moved").rename(fake / outer)
    assert [len(items) for items in items_of(fake, tmp_path).values()] == [4, 1, 3]


def test_the_part_itself_and_all_parts_side_by_side(fake, tmp_path):
    assert len(items_of(fake / PART, tmp_path)["test"]) == 3
    for other in ("A. Segmentation", "C. Localization"):
        (fake / other / "1. Original Images").mkdir(parents=True)
    assert len(items_of(fake, tmp_path)["test"]) == 3


def test_other_parts_are_recognized(fake, tmp_path):
    top = tmp_path / "in"
    (top / "2. All Segmentation Groundtruths").mkdir(parents=True)
    (top / "1. Original Images").mkdir()
    error = refusal(top, tmp_path)
    assert error.code == "E_MISPLACED" and "part A (segmentation)" in str(error)
    (fake / PART / "2. Groundtruths/1. Optic Disc Center Location").mkdir()
    error = refusal(fake / PART, tmp_path)
    assert error.code == "E_MISPLACED" and "part C (localization)" in str(error)


@pytest.mark.parametrize("value", ["IDRiD_001 ,5,2", "IDRiD_001 ,,2", "IDRiD_001 ,mild,2"])
def test_grades_out_of_range(fake, tmp_path, value):
    table = fake / PART / "2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv"
    table.write_text(table.read_text().replace("IDRiD_001 ,3,2", value))
    error = refusal(fake, tmp_path)
    assert error.code == "E_LABEL_RANGE" and "row 2" in str(error)


def test_the_part_that_stays_is_rounded_down(fake, tmp_path):
    table = fake / PART / "2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv"
    table.write_text(table.read_text().rstrip("\n") + "\nIDRiD_006,0,0\n")
    images = fake / PART / "1. Original Images/a. Training Set"
    (images / "IDRiD_006.jpg").write_bytes((images / "IDRiD_001.jpg").read_bytes())
    assert [len(items) for items in items_of(fake, tmp_path).values()] == [4, 2, 3]
