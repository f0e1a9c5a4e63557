"""Fine-tuning over two processes of two devices each: it does what one device does."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from processes import needs_gloo, run_main
from tiny_finetune import CONFIG, TINY
from tiny_pretrain import NAME, quiet, tiny_zoo

from medinit_jax.core import cluster
from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parallel import Parallel
from medinit_jax.core.parameters import load_params
from medinit_jax.core.workdir import claim_workdir
from medinit_jax.finetune.train import Tuning, _devices

EPOCHS = 3


def command_of(data_dir):
    task = TINY["classification"][0]
    return [
        f"--config={CONFIG}:{task}",
        f"--config.data.data_dir={data_dir}",
        "--config.data.size=32",
        "--config.data.recipe=hyper512",
        f"--config.model.name={NAME}",
        "--config.model.width=4",
        f"--config.train.epochs={EPOCHS}",
        "--config.train.batch=4",
        "--config.train.patience=0",
        "--config.optim.learning_rate=0.001",
        "--config.evaluate.resamples=20",
    ]


@needs_gloo
def test_two_processes_fine_tune_as_one_device_does(data_dir, tmp_path):
    command = command_of(data_dir)
    with tiny_zoo():
        config = read_command_line(["test", *command]).config
        one = tmp_path / "one"
        claim_workdir(one, config, "finetune")
        wanted = Tuning(config, one, quiet(), Parallel(jax.devices()[:1])).run()
    two = tmp_path / "two"
    outputs = run_main([*command, f"--workdir={two}"])
    assert [code for code, *_ in outputs] == [0, 0], outputs
    found = json.loads((two / "summary.json").read_text())
    assert found["epochs"][-1]["step"] == wanted["epochs"][-1]["step"] >= 20
    for mine, its in zip(found["epochs"], wanted["epochs"], strict=True):
        np.testing.assert_allclose(mine["loss"], its["loss"], rtol=1e-5)
        assert mine["validation"] == its["validation"]
    assert found["best"]["epoch"] == wanted["best"]["epoch"]
    assert found["last"]["test"]["metric"] == wanted["last"]["test"]["metric"]
    held = [dict(np.load(w / "predictions.npz", allow_pickle=False)) for w in (one, two)]
    for name, values in held[0].items():
        if name.endswith("probability"):
            np.testing.assert_allclose(held[1][name], values, atol=1e-4)
        else:
            np.testing.assert_array_equal(held[1][name], values)
    trees = [load_params(w / "model", "model")[0] for w in (one, two)]
    for mine, its in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-3)


def test_a_part_of_the_devices_is_refused(data_dir, monkeypatch):
    monkeypatch.setattr(cluster, "alone", lambda: False)
    config = read_command_line(["test", *command_of(data_dir), "--config.train.devices=1"]).config
    with pytest.raises(UsageError, match="config.train.devices=1, but several processes"):
        _devices(config)


@pytest.mark.slow
@needs_gloo
def test_two_processes_predict_as_one_does(tuned, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(9):
        picture = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(picture).save(images / f"{number}.png")
    (images / "5.png").write_bytes(b"no image")
    command = [f"--config={CONFIG.with_name('predict.py')}", f"--config.images={images}"]
    command += [f"--config.model={tuned['segmentation']}", "--config.batch=2"]
    for count in (1, 2):
        outputs = run_main([*command, f"--workdir={tmp_path / str(count)}"], count)
        assert [code for code, *_ in outputs] == [0] * count, outputs
    one, two = (
        {
            str(file.relative_to(tmp_path / name)): file.read_bytes()
            for file in (tmp_path / name).rglob("*.*")
            if file.name not in ("summary.json", "config.json")
        }
        for name in ("1", "2")
    )
    assert one == two and len(one) == 2 + 8
    found = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("1", "2")]
    for summary in found:
        del summary["provenance"]
    assert found[0] == found[1] and found[0]["images"] == 8
