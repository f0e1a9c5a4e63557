import numpy as np
import pytest
import tensorflow_datasets as tfds
from fake_trees.drive import make_drive
from PIL import Image

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.drive import MedinitDrive
from medinit_jax.data.contact_sheet import contact_sheet, save_contact_sheet
from medinit_jax.data.prepare import prepare

CYAN, YELLOW, RED = (0, 255, 255), (255, 220, 0), (255, 60, 60)


def features(**more):
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": tfds.features.Text(),
            "eye": tfds.features.ClassLabel(names=["left", "right", "unknown"]),
            **more,
        }
    )


def example(**more):
    image = np.full((300, 200, 3), 90, np.uint8)
    return {"image": image, "image_id": b"one", "eye": 2, **more}


def places(sheet, color, below=300):
    """Rows and columns of pixels of a color, within the first image."""
    near = np.abs(np.array(sheet)[8:below, 8:308].astype(int) - color).sum(-1) < 100
    return np.nonzero(near)


def test_outlines_lie_on_the_border_of_masks():
    mask, field = np.zeros((300, 200, 1), np.uint8), np.zeros((300, 200, 1), np.uint8)
    mask[100:150, 40:120], field[20:280, 10:190] = 1, 255
    sheet = contact_sheet(
        features(
            mask=tfds.features.LabeledImage(labels=["background", "vessel"], shape=(None, None, 1)),
            fov=tfds.features.Image(shape=(None, None, 1)),
        ),
        [example(mask=mask, fov=field)],
    )
    for color, (top, bottom, left, right) in (
        (CYAN, (100, 149, 40, 119)),
        (YELLOW, (20, 279, 10, 189)),
    ):
        rows, columns = places(sheet, color)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (top, bottom, left, right)
        # Only the border is drawn.
        inside = (rows > top) & (rows < bottom) & (columns > left) & (columns < right)
        assert not inside.any()


def test_masks_of_any_levels_have_outlines():
    kind = features(mask=tfds.features.Image(shape=(None, None, 1)))
    mask = np.zeros((300, 200, 1), np.uint8)
    mask[100:150, 40:120], mask[200:250, 40:120] = 255, 128
    sheet = contact_sheet(kind, [example(mask=mask)])
    # Colors are given in the order of the levels.
    for color, (top, bottom) in ((CYAN, (200, 249)), ((255, 0, 255), (100, 149))):
        rows, columns = places(sheet, color)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (top, bottom, 40, 119)
    mask[100:150, 40:120, 0] = np.arange(1, 51)[:, None]
    sheet = contact_sheet(kind, [example(mask=mask)])
    rows, _ = places(sheet, CYAN)
    assert (rows.min(), rows.max()) == (100, 249)
    assert not len(places(sheet, (255, 0, 255))[0])


def test_masks_of_another_size_than_the_sheet_keep_their_place():
    mask = np.zeros((30, 20, 1), np.uint8)
    mask[10:15, 4:12] = 1
    small = {**example(mask=mask), "image": np.full((30, 20, 3), 90, np.uint8)}
    kind = tfds.features.LabeledImage(labels=["background", "vessel"], shape=(None, None, 1))
    sheet = contact_sheet(features(mask=kind), [small])
    rows, columns = places(sheet, CYAN, 240)
    # The sheet is eight times as large; the line runs through the centers of border pixels.
    for found, expected in (
        (rows.min(), 8 * 10.5),
        (rows.max(), 8 * 14.5),
        (columns.min(), 8 * 4.5),
        (columns.max(), 8 * 11.5),
    ):
        assert abs(found - expected) <= 1


def test_boxes_and_labels():
    box = np.array([[0.1, 0.2, 0.5, 0.6]], np.float32)
    kinds = features(
        boxes=tfds.features.Sequence(tfds.features.BBoxFeature()),
        label=tfds.features.ClassLabel(names=["no", "yes"]),
    )
    sheet = contact_sheet(kinds, [example(boxes=box, label=1)])
    rows, columns = places(sheet, RED)
    assert abs(rows.min() - 30) <= 1 and abs(rows.max() - 149) <= 1
    assert abs(columns.min() - 40) <= 1 and abs(columns.max() - 119) <= 1
    texts = [
        np.array(contact_sheet(kinds, [example(boxes=box, label=label)]))[308:].tobytes()
        for label in (0, 1, -1)
    ]
    assert len(set(texts)) == 3


def test_numbers_that_are_no_colors_are_stretched():
    kinds = tfds.features.FeaturesDict(
        {
            **features(),
            "image": tfds.features.Tensor(shape=(None, None, 1), dtype=np.int16, encoding="zlib"),
        }
    )
    gradient = np.arange(-1000, 1000, 5, dtype=np.int16).reshape(20, 20, 1)
    sheet = np.array(contact_sheet(kinds, [{**example(), "image": gradient}]))
    assert sheet[8:30, 8:30].max() < 40 and sheet[220:248, 220:248].min() > 215


def test_a_file_of_a_prepared_set(tmp_path):
    tree = make_drive(tmp_path / "tree")
    builder = MedinitDrive(data_dir=tmp_path, strict_counts=False)
    with pytest.raises(UsageError, match="is not prepared"):
        save_contact_sheet(builder, None, 3, tmp_path / "sheet.png")
    prepare(builder, tree, workers=0)
    assert save_contact_sheet(builder, "test", 9, tmp_path / "new/sheet.png") == 3
    with Image.open(tmp_path / "new/sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width == 3 * 248 + 8
    for split, count, name in (("val", 3, "a.png"), (None, 0, "a.png"), (None, 3, "a.jpg")):
        with pytest.raises(UsageError, match="--"):
            save_contact_sheet(builder, split, count, tmp_path / name)
