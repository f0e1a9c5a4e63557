import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.data.image_table import Columns
from medinit_jax.data.pipeline import Batches
from medinit_jax.data.prepare import prepare
from medinit_jax.data.tasks import make_builder
from medinit_jax.downstream.heads import Head
from medinit_jax.finetune import recipes
from medinit_jax.finetune.data import TaskImages, TrainBatches, open_task
from medinit_jax.finetune.recipes import make_plan

IDRID, DRIVE = "phantom_idrid_32px_x0.06", "phantom_drive_seg_48px_x0.25"
REFUGE, MESSIDOR = "phantom_refuge_seg_48px_x0.02", "phantom_messidor_16px_x0.1"
CHEST = "phantom_rsna_cxr_32px_x0.02"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def _config(folder, task, recipe, size=32, **changes):
    config = ConfigDict(
        {
            "task": task,
            "labels": "",
            "metric": "",
            "seed": 1,
            "data": {
                "data_dir": folder,
                "recipe": recipe,
                "size": size,
                "fov": False,
                "target": "label",
                "normalization": "auto",
                "cache_mb": 8.0,
                "workers": 0,
            },
            "protocol": {
                "validation": 0.2,
                "split_seed": 0,
                "fold": -1,
                "folds": "authors",
                "fraction": 1.0,
            },
            "train": {"batch": 4},
        }
    )
    config.update_from_flattened_dict(changes)
    return config


def _open(config, text=None):
    builder = make_builder(config.task, config.data.data_dir)
    # One process is quicker for so few.
    prepare(builder, workers=0)
    return open_task(config, Console(file=text or io.StringIO()))


@pytest.fixture(scope="module")
def drive(folder):
    return _open(_config(folder, DRIVE, "swcl384"))


@pytest.fixture(scope="module")
def idrid(folder):
    return _open(_config(folder, IDRID, "hyper512"))


def test_a_twin_is_drawn_when_it_is_opened(folder):
    config = _config(folder, MESSIDOR, "hyper512", 16, **{"protocol.fold": 1})
    text = io.StringIO()
    images = open_task(config, Console(file=text))
    assert "draw phantom_messidor" in text.getvalue()
    assert [head.classes for head in images.heads] == [
        ("nonreferable", "referable"),
        ("risk0", "risk1", "risk2"),
    ]
    assert images.metric == "joint accuracy, 5 folds"
    counts = {name: len(part) for name, part in images.parts().items()}
    assert counts["test"] == 12 and sum(counts.values()) == 60


def test_a_classification_knows_its_labels_and_images(idrid):
    assert (idrid.kind, idrid.modality, idrid.metric) == (
        "classification",
        "fundus",
        "joint accuracy",
    )
    assert [head.name for head in idrid.heads] == ["dr", "dme"]
    assert idrid.heads[1] == Head("dme", ("none", "low", "high"))
    train = idrid.train
    assert train.targets["dr"].dtype == np.int32 and train.targets["dr"].shape == (len(train),)
    picture = train.image(0)
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    assert train.image(0) is picture  # Kept in memory.
    assert train.native_size(0) == (32, 32)
    shown = idrid.evaluation_image(idrid.test, 0)
    assert shown.shape == (32, 32, 3) and shown.dtype == np.float32
    np.testing.assert_allclose(
        shown * idrid.plan.std + idrid.plan.mean, idrid.test.image(0) / 255, atol=1e-5
    )
    assert len({*train.ids, *idrid.validation.ids, *idrid.test.ids}) == sum(
        len(part) for part in idrid.parts().values()
    )


def test_a_subset_keeps_what_is_known(idrid):
    some = idrid.train.subset([3, 1])
    assert len(some) == 2 and some.ids == [idrid.train.ids[3], idrid.train.ids[1]]
    np.testing.assert_array_equal(some.targets["dme"], idrid.train.targets["dme"][[3, 1]])
    np.testing.assert_array_equal(some.image(1), idrid.train.image(1))
    described = some.describe()
    assert described["count"] == 2
    assert described["ids_sha256"] != idrid.train.describe()["ids_sha256"]
    assert described["source"] == f"prepared:medinit_phantom/{IDRID}/train"


def test_vessels_are_cut_with_their_image(folder, drive):
    config = _config(folder, DRIVE, "swcl384")
    assert drive.heads == (Head("vessel", ("background", "vessel")),)
    assert {name: len(part) for name, part in drive.parts().items()} == {
        "train": 4,
        "validation": 1,
        "test": 5,
    }
    batch = TrainBatches(config, drive)[0]
    assert batch["image"].shape == (4, 32, 32, 3) and batch["image"].dtype == np.float32
    target = batch["targets"]["vessel"]
    assert target.shape == (4, 32, 32) and target.dtype == np.int32
    assert set(np.unique(target)) == {0, 1}
    # Every crop is found in one of the images, with its part of the mask.
    pictures = np.rint((batch["image"] * drive.plan.std + drive.plan.mean) * 255)
    found = 0
    for picture, mask in zip(pictures, target, strict=True):
        if np.ptp(picture, -1).max() == 0:
            continue  # Without color.
        for index in range(len(drive.train)):
            image, whole = drive.train.image(index), drive.train.mask(index)["vessel"]
            for one, truth in ((image, whole), (image[:, ::-1], whole[:, ::-1])):
                for top, left in np.argwhere((one[:17, :17] == picture[0, 0]).all(-1)):
                    place = np.s_[top : top + 32, left : left + 32]
                    if (one[place] == picture).all():
                        np.testing.assert_array_equal(truth[place], mask)
                        found += 1
    assert found >= 2


def test_a_batch_of_crops_may_be_larger_than_an_epoch(drive, folder):
    """Two images in a batch of six: three epochs in it, and no crop twice."""
    two = drive._replace(train=drive.train.subset([0, 1]))
    batches = TrainBatches(_config(folder, DRIVE, "swcl384", **{"train.batch": 6}), two)
    batch = batches[0]
    assert batches.steps_per_epoch == 1 and batch["image"].shape[0] == 6
    assert len({image.tobytes() for image in batch["image"]}) == 6
    np.testing.assert_array_equal(batch["image"], batches[0]["image"])
    assert (batch["image"] != batches[1]["image"]).any()


def test_what_lies_outside_the_field_of_view_does_not_count(folder, drive):
    config = _config(folder, DRIVE, "swcl384", **{"data.fov": True})
    images = _open(config)
    field = images.test.fov(0)
    assert field.shape == images.test.native_size(0) and 0.4 < field.mean() < 0.9
    assert drive.test.fov(0).all()
    known = images.train.pair(0)[1]
    np.testing.assert_array_equal(known > 0, images.train.fov(0))
    np.testing.assert_array_equal(
        known[known > 0] - 1, images.train.mask(0)["vessel"][images.train.fov(0)]
    )
    target = TrainBatches(config, images)[0]["targets"]["vessel"]
    assert set(np.unique(target)) == {-1, 0, 1}


def test_processes_make_the_rows_that_are_theirs(folder):
    images = _open(_config(folder, REFUGE, "swcl384", 24))
    whole = TrainBatches(_config(folder, REFUGE, "swcl384", 24), images)
    parts = [whole.shared((number, 2))[5] for number in range(2)]
    for name, rows in {"image": whole[5]["image"], **whole[5]["targets"]}.items():
        own = [part[name] if name == "image" else part["targets"][name] for part in parts]
        np.testing.assert_array_equal(np.concatenate(own), rows)
    with pytest.raises(UsageError, match="config.train.batch=4 cannot be shared by 3 processes"):
        whole.shared((0, 3))


def test_discs_hold_cups(folder):
    images = _open(_config(folder, REFUGE, "swcl384", 24))
    assert [head.name for head in images.heads] == ["disc", "cup"]
    masks = images.test.mask(0)
    assert masks["disc"].sum() > masks["cup"].sum() > 0
    assert (masks["disc"] >= masks["cup"]).all()
    shown = images.evaluation_image(images.test, 0)
    assert shown.shape == (32, 32, 3)
    logits = np.zeros((32, 32, 4), np.float32)
    assert images.native_logits(images.test, 0, logits).shape == (48, 48, 4)
    batch = TrainBatches(_config(folder, REFUGE, "swcl384", 24), images)[0]
    assert {name: t.shape for name, t in batch["targets"].items()} == {
        "disc": (4, 24, 24),
        "cup": (4, 24, 24),
    }


def test_a_radiograph_shows_where_its_opacity_is(folder):
    images = _open(_config(folder, CHEST, "hyper512", 64))
    assert images.metric == "AUC" and images.plan.mean == (0.5, 0.5, 0.5)
    test, label = images.test, images.test.targets["label"]
    marked = [images.has_region(test, i) for i in range(len(test))]
    np.testing.assert_array_equal(marked, label == 1)
    place = int(np.argmax(label))
    region = images.evaluation_region(test, place)
    assert region is not None and region.shape == (64, 64) and region.dtype == bool
    box = np.asarray(test.records.read(int(test.indices[place]), "boxes"))[0]
    rows = np.flatnonzero(region.any(1))
    np.testing.assert_allclose([rows[0], rows[-1] + 1], box[[0, 2]] * 64, atol=2)


def test_turns_are_the_targets_of_unlabelled_images(folder, idrid):
    config = _config(folder, IDRID, "hyper512", **{"data.target": "rotation", "train.batch": 8})
    images = _open(config)
    assert images.heads == (Head("rotation", ("0", "90", "180", "270")),)
    assert images.metric == "accuracy" and len(images.train) == 4 * len(idrid.train)
    assert images.train.ids[::4] == idrid.train.ids
    batches = TrainBatches(config, images)
    assert batches.steps_per_epoch == -(-len(idrid.train) // 2)
    batch = batches[0]
    np.testing.assert_array_equal(batch["targets"]["rotation"], [0, 1, 2, 3] * 2)
    for first in (0, 4):
        for turn in range(4):
            np.testing.assert_array_equal(
                batch["image"][first + turn], np.rot90(batch["image"][first], turn)
            )
    four = [images.evaluation_image(images.test, i) for i in range(4)]
    np.testing.assert_array_equal(four[3], np.rot90(four[0], 3))
    # What is held out of the labels is held out here too, in folds as well.
    folds = {"protocol.fold": 1, "protocol.folds": "made"}
    labelled = _open(_config(folder, MESSIDOR, "hyper512", 16, **folds))
    folds["data.target"] = "rotation"
    turned = _open(_config(folder, MESSIDOR, "hyper512", 16, **folds))
    assert turned.train.ids[::4] == labelled.train.ids
    config.train.batch = 6
    with pytest.raises(UsageError, match="config.train.batch is 6"):
        TrainBatches(config, images)


class _Numbered:
    """Gray images of 8 pixels that are as bright as their number, which is their target."""

    turned, layers = False, ()

    def __init__(self, count):
        self.targets = {"number": np.arange(count, dtype=np.int32)}

    def __len__(self):
        return len(self.targets["number"])

    def image(self, index):
        return np.full((8, 8, 3), index, np.uint8)


def _numbered(count):
    plan = make_plan("hyper512", "classification", "CT", size=16)
    head = Head("number", tuple(map(str, range(count))))
    part = _Numbered(count)
    return TaskImages("t", "classification", "CT", "accuracy", (head,), part, part, part, plan)  # pyright: ignore


def test_every_epoch_has_each_image_once():
    config = ConfigDict({"seed": 5, "train": {"batch": 4}})
    batches = TrainBatches(config, _numbered(10))
    assert batches.steps_per_epoch == 3
    seen = np.concatenate([batches[step]["targets"]["number"] for step in range(10)])
    epochs = seen.reshape(4, 10)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = TrainBatches(ConfigDict({"seed": 6, "train": {"batch": 10}}), _numbered(10))
    assert (other[0]["targets"]["number"] != epochs[0]).any()


def test_a_batch_depends_on_its_step_alone():
    config = ConfigDict({"seed": 5, "train": {"batch": 4}})
    batches = TrainBatches(config, _numbered(10))
    again = pickle.loads(pickle.dumps(TrainBatches(config, _numbered(10))))
    for step in (7, 2):
        np.testing.assert_array_equal(batches[step]["image"], again[step]["image"])
    stream = Batches(batches, start=2)
    try:
        for step in (2, 3):
            np.testing.assert_array_equal(next(stream)["image"], batches[step]["image"])
        state = stream.get_state()
        assert state == {"step": 4}
        stream.set_state({"step": 1})
        np.testing.assert_array_equal(
            next(stream)["targets"]["number"], batches[1]["targets"]["number"]
        )
    finally:
        stream.close()


def test_batches_of_a_set_can_be_sent_to_a_worker(folder, drive):
    batches = TrainBatches(_config(folder, DRIVE, "swcl384"), drive)
    first = batches[0]
    content = pickle.dumps(batches)
    # What is kept in memory stays where it is.
    assert drive.train.image(0).nbytes * len(drive.train) > 0 and len(content) < 200_000
    np.testing.assert_array_equal(pickle.loads(content)[0]["image"], first["image"])


def test_a_mask_of_another_size_names_its_image(drive):
    records = SimpleNamespace(
        read=lambda index, feature, encoded=False: np.zeros((4, 5, 1), np.uint8),
        name="set/config",
        split="train",
    )
    part = drive.train.subset([0])
    part.native_size = lambda index: (48, 48)
    part.records = records
    with pytest.raises(UsageError, match=f"mask of {part.ids[0]} in set/config has 4 x 5 pixels"):
        part.mask(0)


@pytest.mark.parametrize(
    ("task", "recipe", "changes", "message"),
    [
        (IDRID, "swcl384", {}, "for segmentation, but the task is classification"),
        (DRIVE, "swcl384", {"labels": "mask"}, "leave config.labels empty"),
        (IDRID, "hyper512", {"labels": "other"}, "no label 'other'; set config.labels to"),
        (IDRID, "hyper512", {"data.fov": True}, "config.data.fov=False"),
        (IDRID, "hyper512", {"data.target": "other"}, "config.data.target"),
        ("aptos_dr", "hyper512", {}, "is not prepared"),
        ("nothing", "hyper512", {}, "no dataset 'nothing'"),
    ],
)
def test_what_cannot_be_opened_is_refused(folder, drive, idrid, task, recipe, changes, message):
    with pytest.raises(UsageError, match=message):
        open_task(_config(folder, task, recipe, **changes), Console(file=io.StringIO()))


def test_labels_can_be_chosen(folder, idrid):
    images = _open(_config(folder, IDRID, "swcl224", labels="dme"))
    assert [head.name for head in images.heads] == ["dme"] and images.metric == "accuracy"
    assert recipes.RECIPES["swcl224"].size == 224 and images.plan.size == 32


def test_a_table_of_ones_own_has_a_head_for_each_column(tmp_path):
    lines = ["file,grade,side,subject"]
    for i in range(40):
        Image.fromarray(np.full((20, 30, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'abc'[i % 3]},{'xy'[i % 2]},s{i // 2}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    columns = Columns(image="file", labels=("grade", "side"), patient="subject")
    target = str(tmp_path / "data")
    builder = make_builder("medinit_table/mine", target, columns=columns)
    prepare(builder, tmp_path / "table.csv", workers=0)
    config = _config(target, "medinit_table/mine", "hyper512", labels="side,grade")
    images = open_task(config, Console(file=io.StringIO()))
    assert images.heads == (Head("side", ("x", "y")), Head("grade", ("a", "b", "c")))
    assert images.metric == "joint accuracy" and images.modality == "your own"
    for part in images.parts().values():
        levels = [int(part.image(i)[16, 16, 0]) for i in range(len(part))]
        np.testing.assert_array_equal(part.targets["grade"], np.array(levels) % 3)
        np.testing.assert_array_equal(part.targets["side"], np.array(levels) % 2)
        assert part.patients == [f"s{level // 2}" for level in levels]
        # 20 x 30 pixels, padded to a square.
        assert (part.image(0)[:4] == 0).all() and part.native_size(0) == (20, 30)


def test_too_few_images_for_a_batch_are_refused(idrid):
    with pytest.raises(UsageError, match="lower config.train.batch"):
        TrainBatches(ConfigDict({"seed": 1, "train": {"batch": 64}}), idrid)
