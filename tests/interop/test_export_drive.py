"""A U-Net whose encoder was predicted, fine-tuned on DRIVE: the same Dice here and in PyTorch."""

from pathlib import Path

import pytest
from made_exports import write_initializer
from oracles import SHARED

pytest.importorskip("torch", reason="needs the [torch] extra")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

DRIVE = SHARED / "data" / "fundus" / "DRIVE"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.skipif(not DRIVE.exists(), reason="the real DRIVE is not here")
def test_dice_on_the_test_images_of_drive_is_the_same(tmp_path):
    import medinit_jax
    from medinit_jax import finetune
    from medinit_jax.core.config import read_command_line
    from medinit_jax.data.prepare import prepare
    from medinit_jax.data.tasks import make_builder

    prepare(make_builder("drive_seg", tmp_path / "data"), DRIVE, workers=0)
    initializer = write_initializer(tmp_path / "initializer")
    command = [
        "main",
        f"--config={CONFIGS}/finetune.py:drive_seg",
        f"--config.data.data_dir={tmp_path / 'data'}",
        "--config.data.recipe=crops",
        "--config.data.size=64",
        "--config.model.width=8",
        "--config.train.steps=8",
        "--config.train.batch=4",
        "--config.train.validate_every=2",
        "--config.train.class_weights=balanced",
        "--config.init.start=hyper",
        f"--config.init.path={initializer}",
        "--config.init.unknown_types=nearest",
        "--config.evaluate.resamples=20",
    ]
    finetune.run(read_command_line(command).config, tmp_path / "run")
    card = medinit_jax.export(tmp_path / "run", tmp_path / "out", proof={"test": True}, quiet=True)
    found = card["proof"]["test"]
    assert found["images"] == 20 and found["here"] == pytest.approx(card["metrics"]["value"])
    assert 0 < found["here"] and found["difference"] <= 1e-4
    assert card["license"]["images"]["test"].startswith("Registration on the site")
