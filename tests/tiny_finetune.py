"""Configurations of fine-tunings that take seconds."""

from pathlib import Path

from medinit_jax.core.config import read_command_line

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "finetune.py"
TINY = {
    "classification": (
        "phantom_idrid_32px_x0.1",
        "--config.model.name=resnet18",
        "--config.model.width=8",
        "--config.data.recipe=hyper512",
        "--config.optim.learning_rate=0.05",
    ),
    "segmentation": (
        "phantom_drive_seg_48px_x0.3",
        "--config.model.name=unet",
        "--config.model.width=4",
        "--config.data.recipe=crops",
        "--config.train.class_weights=balanced",
    ),
}


def tiny(kind, data_dir, *overrides):
    """Returns the configuration of a fine-tuning that takes seconds."""
    task, *own = TINY[kind]
    command = [
        "test",
        f"--config={CONFIG}:{task}",
        f"--config.data.data_dir={data_dir}",
        "--config.data.size=32",
        "--config.train.epochs=2",
        "--config.train.batch=4",
        "--config.train.devices=1",
        "--config.train.patience=0",
        "--config.evaluate.resamples=20",
        *own,
        *overrides,
    ]
    return read_command_line(command).config
