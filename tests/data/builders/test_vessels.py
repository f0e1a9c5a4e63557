import numpy as np
import pytest
from etils import epath
from fake_trees.catalog import FAKE_TREES
from PIL import Image

from medinit_jax.data.builders import BUILDERS
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.divisions import carve
from medinit_jax.data.builders.vessels import VesselBuilder
from medinit_jax.data.layout import DatasetLayoutError

VESSEL_SETS = [name for name, builder in BUILDERS.items() if issubclass(builder, VesselBuilder)]


def items_of(name, config, root, tmp_path):
    builder = BUILDERS[name](data_dir=tmp_path, config=config, strict_counts=False)
    return builder, builder.checked_items(builder.locate(root))


def test_there_are_three_sets_with_the_same_features(tmp_path):
    assert VESSEL_SETS == ["medinit_chase_db1", "medinit_drive", "medinit_stare"]
    features = [set(BUILDERS[name](data_dir=tmp_path).info.features) for name in VESSEL_SETS]
    assert features[0] == features[1] == features[2]


@pytest.mark.parametrize("name", VESSEL_SETS)
def test_validation_is_a_fifth_of_the_training_photographs_and_leaves_the_test(name, tmp_path):
    root = FAKE_TREES[name].make(tmp_path / "tree")
    default = BUILDERS[name].BUILDER_CONFIGS[0].name
    _, whole = items_of(name, default, root, tmp_path)
    _, divided = items_of(name, "validation", root, tmp_path)
    assert divided["test"] == whole["test"]
    names = [item.values["image_id"] for part in ("train", "validation") for item in divided[part]]
    assert sorted(names) == [item.values["image_id"] for item in whole["train"]]
    assert all(item.key.startswith("validation/") for item in divided["validation"])
    counts = BUILDERS[name].COUNTS
    share = counts["validation"]["validation"] / counts[default]["train"]
    assert share == 0.2


def test_seed_changes_the_division_and_patients_stay_together():
    items = [Item(f"train/{n}{eye}", {}, {"patient_id": n}) for n in "abcdefghij" for eye in "LR"]
    divisions = set()
    for seed in range(5):
        kept, held = carve(items, "validation", seed)
        assert (len(kept), len(held)) == (16, 4)
        assert not {i.values["patient_id"] for i in kept} & {i.values["patient_id"] for i in held}
        divisions.add(tuple(item.key for item in held))
    assert len(divisions) > 1
    # The permutation of ten that PCG64(0) gives is 4 6 2 7 3 5 9 0 8 1.
    _, held = carve(items, "validation", 0)
    assert [item.key for item in held] == [f"validation/{n}{eye}" for n in "bi" for eye in "LR"]


@pytest.mark.parametrize("name", VESSEL_SETS)
def test_field_of_view_in_the_place_of_vessels_is_misplaced(name, tmp_path):
    root = FAKE_TREES[name].make(tmp_path / "tree")
    builder, splits = items_of(name, None, root, tmp_path)
    item = splits["train"][0]
    field = FAKE_TREES["medinit_drive"].make(tmp_path / "drive") / "training/mask"
    with Image.open(sorted(field.iterdir())[0]) as mask, Image.open(item.files["image"]) as image:
        mask.convert("L").resize(image.size, 0).save(tmp_path / "field.png")
    files = {**item.files, "mask": epath.Path(tmp_path / "field.png")}
    with pytest.raises(DatasetLayoutError, match="covers") as raised:
        builder.example(item._replace(files=files))
    assert raised.value.code == "E_MISPLACED" and "vessels" in raised.value.expected


def test_masks_follow_resized_images_at_pixel_centers(tmp_path):
    config = Config(name="small", shorter=4)
    builder = BUILDERS["medinit_drive"](data_dir=tmp_path, config=config)
    mask = np.zeros((16, 16), np.uint8)
    mask[2::4, 2::4] = 1  # The pixels whose corner is the center of a block of 4 x 4.
    assert builder.resized(mask, nearest=True).tolist() == [[1] * 4] * 4
    ramp = np.repeat(np.arange(16, dtype=np.uint8)[None, :, None] * 10, 16, axis=0)
    rows = builder.resized(np.repeat(ramp, 3, axis=2))
    # The mean of a block's columns.
    np.testing.assert_allclose(rows[1, 1:3, 0], [55, 95], atol=1)


@pytest.mark.parametrize("name", VESSEL_SETS)
def test_what_is_incomplete_is_left_out_and_listed_where_any_number_will_do(name, tmp_path):
    root = FAKE_TREES[name].make(tmp_path / "tree", 0, ("E_ORPHAN",))
    builder, splits = items_of(name, None, root, tmp_path)
    counts = next(iter(FAKE_TREES[name].counts.values()))
    assert sum(map(len, splits.values())) == sum(counts.values()) - 1
    (left_out,) = builder.ignored
    assert left_out.endswith("no vessel mask")


def test_masks_without_a_photograph_are_listed(tmp_path):
    root = FAKE_TREES["medinit_drive"].make(tmp_path / "tree")
    (root / "test/images/01_test.tif").unlink()
    (root / "test/1st_manual/01_manual1.gif").unlink()
    builder, splits = items_of("medinit_drive", None, root, tmp_path)
    assert len(splits["test"]) == 2
    assert sorted(builder.ignored) == ["01_manual2.gif: no image", "01_test_mask.gif: no image"]
