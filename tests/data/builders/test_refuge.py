import shutil

import numpy as np
import pytest
from fake_trees.images import save
from fake_trees.refuge import (
    GRAY,
    TEST,
    TRAIN,
    VALIDATION,
    fovea,
    make_refuge,
    make_refuge2,
    save_xlsx,
)
from PIL import Image

from medinit_jax.data.builders.refuge import MedinitRefuge, cup_to_disc, moved
from medinit_jax.data.builders.refuge2 import MedinitRefuge2
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.prepare import prepare

LABELS = {**{stem: int(stem[0] == "g") for stem in TRAIN}, **VALIDATION, **TEST}


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_refuge(tmp_path_factory.mktemp("refuge"))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return make_refuge2(tmp_path_factory.mktemp("refuge2"))


def checked(root, tmp_path, config="default", builder=MedinitRefuge):
    built = builder(data_dir=tmp_path, config=config, strict_counts=False)
    return built, built.checked_items(built.locate(root))


def known(splits):
    """What was read of every example, but for where its files lie."""
    return {
        item.key: {**item.values, "files": sorted(item.files)}
        for items in splits.values()
        for item in items
    }


def find(root, name):
    (path,) = root.rglob(name)
    return path


def flatten(fake, root):
    """Writes the tree of SWCL's preparation."""
    for split, labels in (
        ("train", {stem: LABELS[stem] for stem in TRAIN}),
        ("val", VALIDATION),
        ("test", TEST),
    ):
        for stem in labels:
            for folder, suffix in (("images", ".jpg"), ("segmentations", ".bmp")):
                place = root / split / folder
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(find(fake, stem + suffix), place)
        lines = [f"{stem},{label}\n" for stem, label in labels.items()]
        (root / split / "labels.csv").write_text("image_id,glaucoma_label\n" + "".join(lines))
    return root


def test_labels_masks_and_pixels_are_those_of_the_files(fake, tmp_path):
    builder = MedinitRefuge(data_dir=tmp_path, strict_counts=False)
    prepare(builder, fake, workers=0)
    seen = {}
    for split in ("train", "validation", "test"):
        for example in builder.as_data_source(split):
            stem = example["image_id"].decode()
            seen[stem] = int(example["label"])
            with Image.open(find(fake, f"{stem}.jpg")) as image:
                np.testing.assert_array_equal(example["image"], np.array(image))
                width = image.size[0]
            with Image.open(find(fake, f"{stem}.bmp")) as mask:
                np.testing.assert_array_equal(GRAY[example["mask"][..., 0]], np.array(mask))
            np.testing.assert_allclose(example["fovea"], np.array(fovea(stem, width)) - 1)
            assert set(np.unique(example["mask"])) == {0, 1, 2}
            assert example["vcdr"] == pytest.approx(cup_to_disc(example["mask"][..., 0]))
            assert 0.1 < example["vcdr"] < 1
            part = {"g": "train", "n": "train", "V": "val", "T": "test"}[stem[0]]
            assert example["source"].decode() == f"refuge1_{part}"
    assert seen == LABELS


def test_height_of_the_cup_by_that_of_the_disc():
    mask = np.zeros((12, 12), np.uint8)
    assert cup_to_disc(mask) == -1
    mask[1:11, 3:5] = 1
    assert cup_to_disc(mask) == 0
    mask[4:8, 3] = 2
    assert cup_to_disc(mask) == pytest.approx(0.4)
    # A cup that reaches the edge of the disc.
    mask[1:11, 3] = 2
    assert cup_to_disc(mask) == 1


def test_points_move_with_the_pixels():
    # The center of the left half of two columns is the center of the first.
    np.testing.assert_allclose(moved((0.5, 0.5), (4, 4), (2, 2)), [0, 0])
    np.testing.assert_allclose(moved((99, 49), (50, 100), (100, 400)), [397.5, 98.5])
    np.testing.assert_array_equal(moved((-1, -1), (50, 100), (100, 400)), [-1, -1])


@pytest.mark.parametrize(("config", "size"), [("seg514", (514, 514)), ("cls350", (350, 360))])
def test_smaller_images_take_mask_and_fovea_with_them(fake, tmp_path, config, size):
    root = shutil.copytree(fake, tmp_path / "tree")
    height, width = 1030, 1060
    image = np.zeros((height, width, 3), np.uint8)
    mask = np.full((height, width), 255, np.uint8)
    image[500:540, 700:760] = 255
    mask[500:540, 700:760] = 128
    mask[510:530, 720:740] = 0
    save(find(root, "g0001.jpg"), image, quality=95)
    save(find(root, "g0001.bmp"), mask)
    rows = [[f"{stem}.jpg", 730, 520] for stem in TRAIN]
    save_xlsx(find(root, "Fovea_location.xlsx"), [["ImgName", "Fovea_X", "Fovea_Y"], *rows])
    builder, splits = checked(root, tmp_path, config)
    example = builder.example(splits["train"][0])
    decoded = {n: builder.info.features[n].decode_example_np(example[n]) for n in ("image", "mask")}
    assert decoded["mask"].shape == (*size, 1) and decoded["image"].shape == (*size, 3)
    assert tuple(example["orig_size"]) == (height, width)
    # Nearest only: no level between the classes, and the bright patch lies where its mask does.
    assert set(np.unique(decoded["mask"])) == {0, 1, 2}
    bright = decoded["image"][..., 1] > 127
    assert (bright == (decoded["mask"][..., 0] > 0)).mean() > 0.999
    rows, columns = np.nonzero(decoded["mask"][..., 0] == 2)
    # The pixel 730, 520 of the table is the one above and left of the cup's center.
    np.testing.assert_allclose(example["fovea"], [columns.mean(), rows.mean()], atol=1)
    # Measured before the mask was resized.
    assert example["vcdr"] == 0.5


def test_masks_are_read_by_thresholds_up_to_a_thousandth(fake, tmp_path):
    root = shutil.copytree(fake, tmp_path / "tree")
    path = find(root, "V0001.bmp")
    with Image.open(path) as image:
        gray = np.array(image)
    wanted = np.array([2, 1, 0])[np.searchsorted([64, 192], gray)]
    gray[0, :3] = (250, 130, 60)
    wanted[0, :3] = (0, 1, 2)
    save(path, gray)
    builder, splits = checked(root, tmp_path)
    item = next(i for i in splits["validation"] if i.key == "validation/V0001")
    mask = builder.info.features["mask"].decode_example_np(builder.example(item)["mask"])
    np.testing.assert_array_equal(mask[..., 0], wanted)
    gray[0, :8] = 100
    save(path, gray)
    with pytest.raises(DatasetLayoutError) as raised:
        builder.example(item)
    assert raised.value.code == "E_MASK_VALUES"


def test_mask_of_another_size_is_refused(fake, tmp_path):
    root = shutil.copytree(fake, tmp_path / "tree")
    save(find(root, "V0001.bmp"), np.full((82, 80), 255, np.uint8))
    builder, splits = checked(root, tmp_path)
    with pytest.raises(DatasetLayoutError, match="size") as raised:
        builder.example(splits["validation"][0])
    assert raised.value.code == "E_MASK_VALUES"


@pytest.mark.parametrize("layout", ["zips", "inner", "package", "flat masks", "names"])
def test_other_layouts_are_the_same_dataset(fake, package, tmp_path, layout):
    _, wanted = checked(fake, tmp_path)
    root = shutil.copytree(fake, tmp_path / "tree")
    if layout == "zips":
        # Every archive unpacked into a folder of its own name.
        for name in [path.name for path in root.iterdir()]:
            outer = {"Training400": "REFUGE-Training400", "Test400": "REFUGE-Test400"}
            (root / name).rename(tmp_path / "moving")
            (root / outer.get(name, name)).mkdir()
            (tmp_path / "moving").rename(root / outer.get(name, name) / name)
    elif layout == "inner":
        for part, names in (
            ("train", ("Training400", "Annotation-Training400")),
            ("val", ("REFUGE-Validation400", "REFUGE-Validation400-GT")),
            ("test", ("Test400", "REFUGE-Test-GT")),
        ):
            for name in names:
                (root / f"Train/REFUGE1-{part}").mkdir(parents=True, exist_ok=True)
                (root / name).rename(root / f"Train/REFUGE1-{part}" / name)
    elif layout == "package":
        root = package
    elif layout == "flat masks":
        masks = root / "REFUGE-Test-GT/Disc_Cup_Masks"
        for path in list(masks.glob("*/*")):
            path.rename(masks / path.name)
        for name in "GN":
            (masks / name).rmdir()
    elif layout == "names":
        path = root / "REFUGE-Validation400-GT/Fovea_locations.xlsx"
        rows = [
            [f"{stem}.JPG ", f" {label}", *fovea(stem, 82), None]
            for stem, label in VALIDATION.items()
        ]
        save_xlsx(path, [["imgname ", "glaucoma label", "Fovea X", "FOVEA_Y", None], *rows])
    _, found = checked(root, tmp_path)
    assert known(found) == known(wanted)


def test_what_swcl_prepares_is_the_same_dataset_without_foveas(fake, tmp_path):
    root = flatten(fake, tmp_path / "tree")
    _, wanted = checked(fake, tmp_path)
    _, found = checked(root, tmp_path)
    expected = {key: {**one, "fovea": (-1.0, -1.0)} for key, one in known(wanted).items()}
    assert known(found) == expected


def test_half_of_what_swcl_prepares_is_enough_for_the_configs_that_need_no_more(fake, tmp_path):
    root = flatten(fake, tmp_path / "tree")
    for path in root.glob("*/labels.csv"):
        path.unlink()
    builder, splits = checked(root, tmp_path, "seg514")
    example = builder.example(splits["test"][0])
    assert example["label"] == -1 and example["vcdr"] > 0
    with pytest.raises(DatasetLayoutError, match="labels.csv") as raised:
        checked(root, tmp_path)
    assert raised.value.code == "E_MISSING_FILE" and "seg514" in raised.value.fix

    root = flatten(fake, tmp_path / "tree")
    for path in root.glob("*/segmentations"):
        shutil.rmtree(path)
    builder, splits = checked(root, tmp_path, "cls350")
    prepare(builder, root, workers=0)
    for example in builder.as_data_source("test"):
        assert set(np.unique(example["mask"])) == {255} and example["vcdr"] == -1
        np.testing.assert_array_equal(example["fovea"], [-1, -1])
        assert example["label"] == TEST[example["image_id"].decode()]
    with pytest.raises(DatasetLayoutError, match="segmentations") as raised:
        checked(root, tmp_path, "seg514")
    assert raised.value.code == "E_MISSING_FILE" and "cls350" in raised.value.fix


@pytest.mark.parametrize("cells", [["V0001.jpg", 0, 1, 1], ["", 0, 1, 1], ["V0003.jpg", 0, "x", 1]])
def test_rows_that_say_nothing_clear_are_refused(fake, tmp_path, cells):
    root = shutil.copytree(fake, tmp_path / "tree")
    rows = [["ImgName", "Glaucoma Label", "Fovea_X", "Fovea_Y"]]
    rows += [[f"{stem}.jpg", label, 40, 40] for stem, label in VALIDATION.items()][:2]
    save_xlsx(root / "REFUGE-Validation400-GT/Fovea_locations.xlsx", [*rows, cells])
    with pytest.raises(DatasetLayoutError, match="row 4") as raised:
        checked(root, tmp_path)
    assert raised.value.code == "E_LABEL_RANGE"


def test_fovea_that_nobody_marked_is_unknown(fake, tmp_path):
    root = shutil.copytree(fake, tmp_path / "tree")
    rows = [[f"{stem}.jpg", None, None] for stem in TRAIN]
    save_xlsx(find(root, "Fovea_location.xlsx"), [["ImgName", "Fovea_X", "Fovea_Y"], *rows])
    _, splits = checked(root, tmp_path)
    assert {item.values["fovea"] for item in splits["train"]} == {(-1.0, -1.0)}


@pytest.mark.parametrize("name", ["REFUGE-Test-GT", "Training400", "Annotation-Training400"])
def test_one_part_still_packed(fake, tmp_path, name):
    root = shutil.copytree(fake, tmp_path / "tree")
    shutil.rmtree(root / name)
    (root / f"{name}.zip").write_bytes(b"PK")
    with pytest.raises(DatasetLayoutError) as raised:
        checked(root, tmp_path)
    assert raised.value.code == "E_ARCHIVE" and "unpack" in raised.value.fix


def test_later_photographs_have_no_labels_and_templates_are_not_read(package, tmp_path):
    builder = MedinitRefuge2(data_dir=tmp_path, strict_counts=False)
    manifest = prepare(builder, package, workers=0)
    assert manifest["ignored"] == [
        "Validation/glaucoma.csv: a template for submissions, not the truth"
    ]
    train = builder.as_data_source("train")
    assert {e["image_id"].decode(): int(e["label"]) for e in train} == LABELS
    for split, source in (("validation", "refuge2_val"), ("test", "refuge2_test")):
        for example in builder.as_data_source(split):
            assert example["label"] == -1 and example["vcdr"] == -1
            assert set(np.unique(example["mask"])) == {255}
            assert example["source"].decode() == source


def test_the_paper_needs_refuge_1_only(fake, package, tmp_path):
    for root in (fake, package):
        _, splits = checked(root, tmp_path, "paper", MedinitRefuge2)
        names = {split: [i.values["image_id"] for i in items] for split, items in splits.items()}
        assert names == {"train": [*TRAIN, *VALIDATION], "test": [*TEST]}
    with pytest.raises(DatasetLayoutError) as raised:
        checked(fake, tmp_path, builder=MedinitRefuge2)
    assert raised.value.code == "E_MISSING_FILE"


def test_testing_on_the_later_validation_needs_its_masks(package, tmp_path):
    root = shutil.copytree(package, tmp_path / "tree")
    config = "refuge1_to_refuge2val"
    with pytest.raises(DatasetLayoutError, match="without masks") as raised:
        checked(root, tmp_path, config, MedinitRefuge2)
    assert raised.value.code == "E_NO_TEST_GT" and "paper" in raised.value.fix
    mask = np.full((82, 82), 255, np.uint8)
    mask[30:50, 30:50] = 128
    mask[35:40, 35:45] = 0
    for stem in ("V0001", "V0002"):
        save(root / f"REFUGE2/Validation/Disc_Masks/{stem}.png", mask)
    builder, splits = checked(root, tmp_path, config, MedinitRefuge2)
    assert {split: len(items) for split, items in splits.items()} == {"train": 11, "test": 2}
    example = builder.example(splits["test"][0])
    assert example["vcdr"] == 0.25 and example["label"] == -1
    assert splits["test"][0].values["source"] == "refuge2_val"


def test_archives_in_an_outer_folder_are_named_with_their_folder(tmp_path):
    root = make_refuge(tmp_path / "tree", defects=("E_ARCHIVE",))
    with pytest.raises(DatasetLayoutError) as raised:
        checked(root, tmp_path)
    assert raised.value.code == "E_ARCHIVE" and len(raised.value.found) == 6
    assert str(root / "REFUGE2/Annotation-Training400.zip") in raised.value.fix


def test_training_photographs_lacking_one_class_are_incomplete(fake, tmp_path):
    root = shutil.copytree(fake, tmp_path / "tree")
    shutil.rmtree(root / "Training400/Glaucoma")
    with pytest.raises(DatasetLayoutError, match="Glaucoma") as raised:
        checked(root, tmp_path)
    assert raised.value.code == "E_MISSING_FILE"


def test_published_numbers_and_classes(tmp_path):
    # A tree of the real size whose image files are empty.
    for folder, letter, count in (("Glaucoma", "g", 40), ("Non-Glaucoma", "n", 360)):
        for place in ("Training400", "Annotation-Training400/Disc_Cup_Masks"):
            suffix = ".jpg" if place == "Training400" else ".bmp"
            (tmp_path / place / folder).mkdir(parents=True)
            for number in range(1, count + 1):
                (tmp_path / place / folder / f"{letter}{number:04d}{suffix}").touch()
    rows = [
        [f"{letter}{number:04d}.jpg", 900.5, 1000.5]
        for letter, count in (("g", 40), ("n", 360))
        for number in range(1, count + 1)
    ]
    save_xlsx(
        tmp_path / "Annotation-Training400/Fovea_location.xlsx",
        [["ImgName", "Fovea_X", "Fovea_Y"], *rows],
    )
    for letter, images, truth, table in (
        ("V", "REFUGE-Validation400", "REFUGE-Validation400-GT", "Fovea_locations"),
        ("T", "Test400", "REFUGE-Test-GT", "Glaucoma_label_and_Fovea_location"),
    ):
        (tmp_path / images).mkdir()
        (tmp_path / truth / "Disc_Cup_Masks").mkdir(parents=True)
        rows = [["ImgName", "Glaucoma Label", "Fovea_X", "Fovea_Y"]]
        for number in range(1, 401):
            (tmp_path / images / f"{letter}{number:04d}.jpg").touch()
            (tmp_path / truth / f"Disc_Cup_Masks/{letter}{number:04d}.bmp").touch()
            rows.append([f"{letter}{number:04d}.jpg", int(number <= 40), 800, 900])
        save_xlsx(tmp_path / truth / f"{table}.xlsx", rows)
    for builder, config in ((MedinitRefuge, "default"), (MedinitRefuge2, "paper")):
        built = builder(data_dir=tmp_path / "data", config=config)
        splits = built.checked_items(built.locate(tmp_path))
        for items in splits.values():
            assert sum(item.values["label"] for item in items) * 10 == len(items)
    first = splits["train"][0]
    assert first.key == "train/g0001" and first.values["fovea"] == (899.5, 999.5)
