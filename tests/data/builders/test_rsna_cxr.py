import collections
import io

import numpy as np
import pydicom
import pytest
from fake_trees.rsna_cxr import CLASSES, PATIENTS, make_rsna_cxr, radiograph
from PIL import Image

from medinit_jax.data.builders.config import Config
from medinit_jax.data.builders.rsna import stratified
from medinit_jax.data.builders.rsna_cxr import MedinitRsnaCxr, _age, _shares
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.prepare import prepare

TWO_BOXES = "000fe35a-2649"


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_rsna_cxr(tmp_path_factory.mktemp("cxr"))


@pytest.fixture(scope="module")
def examples(fake, tmp_path_factory):
    """All examples at the native size, by split and patient."""
    config = Config(name="native", rule="patient")
    builder = MedinitRsnaCxr(
        data_dir=tmp_path_factory.mktemp("data"), config=config, strict_counts=False
    )
    prepare(builder, fake, workers=0)
    found = {}
    for split in ("train", "test", "unlabelled"):
        source = builder.as_data_source(split)
        found[split] = {source[i]["image_id"].decode(): source[i] for i in range(len(source))}
    return found


def test_labels_classes_and_heads(examples):
    labelled = {**examples["train"], **examples["test"]}
    assert sorted(labelled) == sorted(PATIENTS)
    for number, (name, (class3, boxes, _)) in enumerate(PATIENTS.items()):
        example = labelled[name]
        assert example["class3"] == class3 and example["label"] == (class3 == 2)
        assert len(example["boxes"]) == len(boxes)
        assert example["patient_id"].decode() == name
        assert example["age"] == 20 + number and example["orig_size"].tolist() == [64, 64]
        assert example["sex"] == number % 2 and example["view"] == (1, 0)[number % 2]
    assert collections.Counter(e["class3"] for e in labelled.values()) == {0: 3, 1: 1, 2: 2}
    for example in examples["unlabelled"].values():
        assert example["label"] == example["class3"] == -1 and len(example["boxes"]) == 0


def test_pixels(fake, examples):
    labelled = {**examples["train"], **examples["test"]}
    for number, (name, (_, _, kind)) in enumerate(PATIENTS.items()):
        image, drawn = labelled[name]["image"], radiograph(number)
        np.testing.assert_array_equal(image, np.repeat(image[..., :1], 3, axis=-1))
        if kind == "raw":
            np.testing.assert_array_equal(image[..., 0], drawn)
        elif kind == "jpeg":
            dataset = pydicom.dcmread(fake / "stage_2_train_images" / f"{name}.dcm")
            (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
            with Image.open(io.BytesIO(frame)) as jpeg:
                np.testing.assert_array_equal(image[..., 0], np.array(jpeg))
        else:
            # MONOCHROME1 of 16 bits: inverted and stretched, so only the order is kept.
            low, high = np.percentile(drawn, (0.5, 99.5))
            expected = np.clip((drawn - low) / (high - low), 0, 1) * 255
            np.testing.assert_allclose(image[..., 0], expected, atol=1.01)


def test_boxes_are_shares_of_the_image(examples):
    boxes = {**examples["train"], **examples["test"]}[TWO_BOXES]["boxes"]
    # ymin, xmin, ymax, xmax; the second leaves the image on the right.
    np.testing.assert_allclose(boxes[0], [20 / 64, 10.5 / 64, 36 / 64, 22.5 / 64], atol=1e-6)
    np.testing.assert_allclose(boxes[1], [30 / 64, 40 / 64, 38 / 64, 1], atol=1e-6)
    outside = _shares((-5.0, -5.0, 3.0, 300.0), 64, 64)
    assert (outside.ymin, outside.xmin, outside.ymax, outside.xmax) == (0, 0, 1, 0)


def test_ages():
    found = [_age(text) for text in ("51", "051Y", "018M", "400D", "", "old", "-3")]
    assert found == [51, 51, 1, 1, -1, -1, -1]


def test_published_numbers():
    counts = {"Normal": 8851, "Not Normal": 11821, "Opacity": 6012}
    names = {f"{label}{i}": label for label, count in counts.items() for i in range(count)}
    train, test = stratified(names, 0.8, 0)
    published = MedinitRsnaCxr.COUNTS["patient"]
    assert (len(train), len(test)) == (published["train"], published["test"]) == (21347, 5337)
    assert not set(train) & set(test)
    of_class = collections.Counter(names[name] for name in train)
    assert all(abs(of_class[label] - 0.8 * count) < 1 for label, count in counts.items())
    rows = MedinitRsnaCxr.COUNTS["paper_rows"]
    assert (rows["train"], rows["test"]) == (int(0.8 * 30227), 30227 - int(0.8 * 30227))


def test_rows_leak_and_say_so(fake, tmp_path, caplog):
    # A seed that puts the two boxes of one image on different sides.
    seed = next(filter(_separated, range(99)))
    config = Config(name=f"paper_rows_seed{seed}", rule="paper_rows", split_seed=seed)
    builder = MedinitRsnaCxr(data_dir=tmp_path, config=config, strict_counts=False)
    splits = builder.items(builder.locate(fake))
    assert {split: len(items) for split, items in splits.items()} == {"train": 5, "test": 2}
    (note,) = builder.notes
    assert note.startswith("1 patients are in train and in test") and "too good" in note
    assert f"medinit_rsna_cxr/paper_rows_seed{seed}: {note}." in caplog.text
    items = {item.key: item for part in splits.values() for item in part}
    assert len(items) == 7
    values = {key.partition("/")[2]: item.values for key, item in items.items()}
    assert values[f"{TWO_BOXES}#0"]["boxes"] == ((10.5, 20.0, 12.0, 16.0),)
    assert values[f"{TWO_BOXES}#1"]["boxes"] == ((40.0, 30.0, 30.0, 8.0),)
    assert [values[name]["label"] for name in sorted(values)] == [0, 0, 1, 1, 0, 1, 0]


def test_without_shared_patients_nothing_is_too_good(fake, tmp_path, caplog):
    seed = next(seed for seed in range(99) if not _separated(seed))
    config = Config(name=f"paper_rows_seed{seed}", rule="paper_rows", split_seed=seed)
    builder = MedinitRsnaCxr(data_dir=tmp_path, config=config, strict_counts=False)
    (note,) = prepare(builder, fake, workers=0)["notes"]
    assert note.startswith("0 patients are in train and in test") and "too good" not in note
    assert "patients" not in caplog.text


def _separated(seed):
    rows = sorted(
        f"{name}#{k}" for name, (_, boxes, _) in PATIENTS.items() for k in range(len(boxes) or 1)
    )
    order = np.random.Generator(np.random.PCG64(seed)).permutation(7)[:5]
    return sum(rows[i].startswith(TWO_BOXES) for i in order) == 1


@pytest.mark.parametrize(
    ("table", "old", "new", "found"),
    [
        ("train_labels", ",,,,,0", ",,,,,3", "'3'"),
        ("train_labels", "10.5,20.0", "ten,20.0", "ten, 20.0"),
        ("train_labels", "12.0,16.0", "-12.0,16.0", "a positive width"),
        ("train_labels", "12.0,16.0", "nan,16.0", "a positive width"),
        ("detailed_class_info", CLASSES[1], "Ill", "'Ill'"),
    ],
)
def test_rows_out_of_range(tmp_path, table, old, new, found):
    tree = make_rsna_cxr(tmp_path / "tree")
    place = tree / f"stage_2_{table}.csv"
    place.write_text(place.read_text().replace(old, new))
    builder = MedinitRsnaCxr(data_dir=tmp_path, strict_counts=False)
    with pytest.raises(DatasetLayoutError, match=found) as raised:
        builder.items(builder.locate(tree))
    assert raised.value.code == "E_LABEL_RANGE"


def test_stage_1_alone_is_refused(tmp_path):
    tree = make_rsna_cxr(tmp_path / "tree")
    for place in tree.iterdir():
        place.rename(tree / place.name.replace("stage_2", "stage_1"))
    builder = MedinitRsnaCxr(data_dir=tmp_path, strict_counts=False)
    with pytest.raises(DatasetLayoutError, match="looks like stage 1 of RSNA-CXR") as raised:
        builder.locate(tree)
    assert raised.value.code == "E_MISPLACED"


def test_orphans_are_left_out_only_when_told(tmp_path):
    tree = make_rsna_cxr(tmp_path / "tree")
    classes = tree / "stage_2_detailed_class_info.csv"
    lines = classes.read_text().splitlines()
    classes.write_text("\n".join(lines[:-1]) + "\n")
    strict = MedinitRsnaCxr(data_dir=tmp_path)
    with pytest.raises(DatasetLayoutError, match="1 of 6 have no class") as raised:
        strict.items(strict.locate(tree))
    assert raised.value.code == "E_ORPHAN"
    lenient = MedinitRsnaCxr(data_dir=tmp_path, strict_counts=False)
    assert len(sum(lenient.items(lenient.locate(tree)).values(), [])) == 5 + 2
    assert any("no class" in line for line in lenient.ignored)
