"""Prediction on files: the figures of the fine-tuning again, masks of native size, bad files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.data.decode import decode
from medinit_jax.data.tasks import make_builder
from medinit_jax.finetune import predict

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


def test_one_file_is_a_folder_of_one(tuned, files, tmp_path):
    file = next(files["classification"].glob("*.png"))
    predict.run(config_of(tuned["classification"] / "model", file), tmp_path)
    assert [row["file"] for row in rows_of(tmp_path / "predictions.csv")] == [file.name]


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
