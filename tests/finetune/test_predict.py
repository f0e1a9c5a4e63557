"""Prediction on files: the figures of the fine-tuning again, masks of native size, bad files."""

import contextlib
import csv
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from medinit_jax.core import cluster
from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.data.decode import decode, decode_with_size
from medinit_jax.data.tasks import make_builder
from medinit_jax.downstream.heads import Head
from medinit_jax.finetune import predict
from medinit_jax.finetune.data import TaskImages
from medinit_jax.finetune.examples import Cache, Examples, Layer
from medinit_jax.finetune.recipes import make_plan
from medinit_jax.finetune.tuned import load_model

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "predict.py"


def config_of(model, images, *more):
    command = ["test", f"--config={CONFIG}", f"--config.model={model}", f"--config.images={images}"]
    return read_command_line([*command, "--config.batch=4", *more]).config


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def files(tuned, data_dir, tmp_path_factory):
    """{kind: folder with the test images of its fine-tuning, as PNG under their ids}."""
    found = {}
    for kind, workdir in tuned.items():
        task = json.loads((workdir / "summary.json").read_text())["task"]
        folder = tmp_path_factory.mktemp(kind)
        for record in make_builder(task, str(data_dir)).as_data_source("test"):
            name = record["image_id"]
            name = name.decode() if isinstance(name, bytes) else name
            Image.fromarray(record["image"]).save(folder / f"{Path(name).name}.png")
        found[kind] = folder
    return found


def test_probabilities_are_those_of_the_fine_tuning(tuned, files, tmp_path):
    workdir = tuned["classification"]
    predict.run(config_of(workdir, files["classification"], "--config.cam=True"), tmp_path)
    rows = {Path(row["file"]).stem: row for row in rows_of(tmp_path / "predictions.csv")}
    with np.load(workdir / "predictions.npz", allow_pickle=False) as held:
        ids = [Path(name).name for name in held["id"].tolist()]
        chances = held["dr/probability"]
    assert set(rows) == set(ids)
    for name, chance in zip(ids, chances, strict=True):
        columns = [key for key in rows[name] if key.startswith("dr_")]
        found = [float(rows[name][key]) for key in columns]
        # JPEGs of the set are decoded once more on the way here.
        np.testing.assert_allclose(found, chance, atol=2e-3)
        assert rows[name]["dr"] == columns[int(np.argmax(found))].removeprefix("dr_")
        assert decode(tmp_path / "cams" / f"{name}.png.png").shape == (32, 32, 3)


def test_masks_have_the_size_of_their_image_and_the_pixels_of_the_fine_tuning(
    tuned, files, tmp_path
):
    workdir = tuned["segmentation"]
    images = files["segmentation"]
    (images / "sub").mkdir()
    Image.fromarray(np.zeros((20, 70, 3), np.uint8)).save(images / "sub" / "wide.png")
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    predict.run(config_of(workdir, images), tmp_path)
    rows = {row["file"]: row for row in rows_of(tmp_path / "predictions.csv")}
    with np.load(workdir / "predictions.npz", allow_pickle=False) as held:
        predicted = dict(zip(held["id"].tolist(), held["vessel/counts"][:, 1], strict=True))
    for name, pixels in predicted.items():
        row = rows[f"{Path(name).name}.png"]
        mask = np.asarray(Image.open(tmp_path / row["vessel_mask"]))
        assert mask.shape == (48, 48) and set(np.unique(mask)) <= {0, 255}
        assert int(row["vessel_pixels"]) == (mask == 255).sum() == pixels
    wide = np.asarray(Image.open(tmp_path / rows["sub/wide.png"]["vessel_mask"]))
    assert wide.shape == (20, 70)
    (error,) = rows_of(tmp_path / "errors.csv")
    assert error["file"] == "broken.png" and error["reason"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["images"] == len(predicted) + 1 and summary["failed"] == 1


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_three_processes_write_the_bytes_of_one(tuned, files, tmp_path, monkeypatch, kind):
    """One after another here, so that each finds its part; the first one joins them last."""
    images = tmp_path / "images"
    shutil.copytree(files[kind], images)
    (images / "broken.png").write_bytes(b"no image")
    (images / "zz.png").write_bytes(b"no image")
    more = ["--config.batch=2", *(["--config.cam=True"] if kind == "classification" else [])]
    config = config_of(tuned[kind], images, *more)
    predict.run(config, tmp_path / "one")
    told = {}

    def everyone(name, text):
        process = cluster.share()[0]
        told[process] = text
        return [told.get(i, text) for i in range(3)]

    monkeypatch.setattr(cluster, "everyone", everyone)

    def as_process(process):
        monkeypatch.setattr(cluster, "share", lambda: (process, 3))
        monkeypatch.setattr(cluster, "once", lambda function: not process and function())

    monkeypatch.setattr(predict, "claimed", lambda *given: contextlib.nullcontext())
    (tmp_path / "three").mkdir()
    for process in (2, 1, 0):
        as_process(process)
        predict.run(config, tmp_path / "three")
    assert {json.loads(text)[0] > 0 for text in told.values()} == {True}
    assert left_in(tmp_path / "three") == left_in(tmp_path / "one")
    rows = rows_of(tmp_path / "three" / "errors.csv")
    assert [row["file"] for row in rows] == ["broken.png", "zz.png"]


def left_in(workdir):
    """{path: bytes} of what is the same for any number of processes."""
    own = {"config.json", "lock"}
    found = {
        str(file.relative_to(workdir)): file.read_bytes()
        for file in sorted(workdir.rglob("*"))
        if file.is_file() and file.name not in own
    }
    summary = json.loads(found.pop("summary.json"))
    for key in ("command", "date"):
        del summary["provenance"][key]
    return found, summary


def test_one_file_is_a_folder_of_one(tuned, files, tmp_path):
    file = next(files["classification"].glob("*.png"))
    predict.run(config_of(tuned["classification"] / "model", file), tmp_path)
    assert [row["file"] for row in rows_of(tmp_path / "predictions.csv")] == [file.name]


@pytest.mark.parametrize(
    ("recipe", "kind", "modality", "stretch", "reduced"),
    [
        ("hyper512", "classification", "CT", False, True),
        # A field of view is looked for in the whole image.
        ("hyper512", "classification", "fundus", False, False),
        ("swcl224", "classification", "fundus", False, True),
        ("hyper512seg", "segmentation", "fundus", False, True),
        ("swcl384", "segmentation", "fundus", True, True),
        ("crops", "segmentation", "fundus", False, False),
    ],
)
def test_a_large_jpeg_is_seen_as_in_fine_tuning(recipe, kind, modality, stretch, reduced, tmp_path):
    """Bit by bit, though it is decoded at a part of its size: as many pixels as the view needs."""
    coarse = np.random.default_rng(0).integers(0, 256, (50, 67, 3), dtype=np.uint8)
    held = io.BytesIO()
    Image.fromarray(coarse).resize((801, 597), Image.Resampling.BICUBIC).save(held, "JPEG")
    (tmp_path / "large.jpg").write_bytes(held.getvalue())
    plan = make_plan(recipe, kind, modality, 64, stretch=stretch)
    content = {"image": held.getvalue(), "mask": np.zeros((597, 801, 1), np.uint8)}
    records = SimpleNamespace(
        split="test", name="set", read=lambda index, feature, encoded=False: content[feature]
    )
    layers = (Layer("disc", 1, 1),) if kind == "segmentation" else ()
    part = Examples(records, np.array([0]), {}, ["a"], ["a"], plan, Cache(100), layers)
    heads = (Head("disc", ("background", "disc")),)
    images = TaskImages("task", kind, modality, "", heads, part, part, part, plan)
    view = predict.read_view(tmp_path / "large.jpg", plan)
    np.testing.assert_array_equal(view.shown, images.evaluation_picture(part, 0))
    np.testing.assert_array_equal(view.inputs, images.evaluation_image(part, 0))
    assert view.native == (597, 801) == part.native_size(0)
    # Decoded whole, other pixels come of it.
    whole = io.BytesIO()
    Image.fromarray(decode(held.getvalue())).save(whole, "PNG")
    (tmp_path / "whole.png").write_bytes(whole.getvalue())
    other = predict.read_view(tmp_path / "whole.png", plan)
    assert (other.shown != view.shown).any() == reduced


def test_what_goes_wrong_with_one_file_is_listed_and_the_rest_goes_on(tuned, tmp_path, monkeypatch):
    raised = {
        "b.png": OSError("the disk is gone"),
        "c.png": ValueError("odd mode"),
        "d.png": UsageError("a library is missing; install it."),
        "e.png": ValueError(),
    }
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", *raised, "f.png"):
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(images / name)

    def reading(path, least):
        if path.name in raised:
            raise raised[path.name]
        return decode_with_size(path, least)

    monkeypatch.setattr(predict, "decode_with_size", reading)
    predict.run(config_of(tuned["classification"], images), tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert [row["file"] for row in rows] == ["a.png", "f.png"]
    errors = {row["file"]: row["reason"] for row in rows_of(tmp_path / "out" / "errors.csv")}
    assert errors == {name: str(error) or "ValueError" for name, error in raised.items()}
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["failed"] == 4
    raised["c.png"] = KeyError("a mistake of the program")
    with pytest.raises(KeyError, match="mistake"):
        predict.run(config_of(tuned["classification"], images), tmp_path / "other")


def test_a_strip_is_refused_and_an_image_of_one_pixel_is_not(tmp_path):
    plan = make_plan("swcl224", "classification", "fundus")
    Image.fromarray(np.full((2, 900, 3), 90, np.uint8)).save(tmp_path / "strip.png")
    with pytest.raises(UsageError, match="2 x 900 pixels would become 157,500 pixels long"):
        predict.read_view(tmp_path / "strip.png", plan)
    Image.fromarray(np.full((1, 1, 3), 90, np.uint8)).save(tmp_path / "dot.png")
    view = predict.read_view(tmp_path / "dot.png", plan)
    assert view.shown.shape == (224, 224, 3) and (view.shown == 90).all()


def test_files_that_are_no_images_are_listed(tuned, tmp_path, capsys):
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(images / "a.png")
    others = ["labels.csv", "sub/notes.txt", ".hidden.png"]
    for name in others:
        (images / name).write_text("x")
    os.symlink(tmp_path, images / "out")
    predict.run(config_of(tuned["classification"], images), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images"] == 1 and summary["failed"] == 0
    assert summary["ignored"] == {"count": 3, "files": sorted(others)}
    assert summary["links_not_followed"] == ["out"]
    said = capsys.readouterr().err
    assert "Ignored, as they are no images: 3 (.hidden.png, labels.csv, sub/notes.txt)" in said
    assert "Not followed, as they lead out of the folder: 1 (out)" in said


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("task", None, "model.json has no key task; fetch the model again"),
        ("data.recipe", None, "model.json has no key data.recipe;"),
        ("model.name", None, "model.json has no key model.name;"),
        ("heads.1.classes", None, r"model.json has no key heads\[1\].classes;"),
        ("size", "32", "model.json holds '32' under size, where a whole number belongs"),
        ("size", True, "model.json holds 'True' under size, where a whole number belongs"),
        ("data", [1], "under data, where an object belongs"),
        ("model.width", "wide", "'wide' under model.width, where a whole number belongs"),
        ("heads", {}, "under heads, where a list belongs"),
        ("heads", [], "an empty list under heads"),
        ("heads.0", "dr", r"'dr' under heads\[0\], where an object belongs"),
        ("heads.0.classes", [0, 1], r"'0' under heads\[0\].classes\[0\], where a text belongs"),
        ("heads.0.kind", "linear", r"heads\[0\].kind, which is none of softmax, sigmoid"),
        ("kind", "detection", "'detection' under kind, which is none of classification"),
        ("data.recipe", "mine", "model.json describes no network .* config.data.recipe is 'mine'"),
    ],
)
def test_a_damaged_description_is_a_sentence(tuned, tmp_path, path, value, words):
    shutil.copytree(tuned["classification"] / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    held = json.loads(file.read_text())
    place = held["metadata"]
    *above, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in above:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    file.write_text(json.dumps(held))
    with pytest.raises(UsageError, match=words):
        load_model(tmp_path)


def test_bad_input_is_a_sentence(tuned, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    model = tuned["classification"]
    with pytest.raises(UsageError, match="holds no image"):
        predict.run(config_of(model, empty), tmp_path / "a")
    with pytest.raises(UsageError, match="does not exist; name a folder or a file"):
        predict.run(config_of(model, tmp_path / "absent"), tmp_path / "a")
    with pytest.raises(UsageError, match="is no model: model.json is missing"):
        predict.run(config_of(empty, empty), tmp_path / "a")
    with pytest.raises(UsageError, match="the model segments"):
        predict.run(config_of(tuned["segmentation"], empty, "--config.cam=True"), tmp_path / "a")
    (empty / "broken.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match="None of the 1 files .* could be read .*errors.csv"):
        predict.run(config_of(model, empty), tmp_path / "a")
