"""A workdir with made-up numbers, as the stages leave it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

STARTS = ("hyper", "random", "matched", "untrained")
# Made up: height and speed of each start's curve.
SHAPES = {
    "hyper": (0.835, 2.2),
    "random": (0.79, 5.0),
    "matched": (0.815, 3.2),
    "untrained": (0.765, 5.5),
}
SPLITS = {
    "val": 0.72,
    "test": 0.70,
    "wide": 0.61,
    "deep": 0.52,
    "dense": 0.66,
    "bnfree": 0.31,
    "resnets": 0.74,
}


def summary(
    networks=("resnet18",), fractions=(0.1,), seeds=3, epochs=10, evaluated=12, takeoff=640
) -> dict[str, Any]:
    """A summary in the schema of the evaluate stage, with numbers from a fixed generator."""
    rng = np.random.default_rng(7)
    rotation: dict[str, Any] = {"ridge": 0.413, "chance": 0.25}
    for name, centre in SPLITS.items():
        figures = np.clip(
            rng.normal(centre, 0.11, 4 if name == "resnets" else evaluated), 0.2, 0.98
        )
        rotation[name] = {
            "mean": float(figures.mean()),
            "min": float(figures.min()),
            "share_below_035": float((figures < 0.35).mean()),
            "n": len(figures),
            "untrained_mean": float(rng.normal(0.252, 0.006)),
            "per_network": figures.tolist(),
        }
    finetune, probe = [], []
    for network in networks:
        for fraction in fractions:
            lift = 0.05 * math.log10(fraction / 0.1)
            common = rng.normal(0, 0.008, seeds)
            for start in STARTS:
                height, pace = SHAPES[start]
                t = np.arange(1, epochs + 1)
                base = 0.52 + (height + lift - 0.52) * (1 - np.exp(-t / pace))
                curves = base + common[:, None] + rng.normal(0, 0.006, (seeds, epochs))
                sd = curves.std(axis=0, ddof=1).tolist() if seeds > 1 else [None] * epochs
                finetune.append(
                    {
                        "network": network,
                        "fraction": fraction,
                        "start": start,
                        "learning_rate": 0.01 if start in ("hyper", "matched") else 0.05,
                        "seeds": [{"auc_per_epoch": c.tolist()} for c in curves],
                        "mean": curves.mean(axis=0).tolist(),
                        "sd": sd,
                        "final_mean": float(curves[:, -1].mean()),
                        "final_sd": sd[-1],
                        "best_mean": float(curves.max(axis=1).mean()),
                        "best_sd": float(curves.max(axis=1).std(ddof=1)) if seeds > 1 else None,
                    }
                )
        for fraction in (0.02, 0.1, 1.0):
            for start in STARTS:
                height = SHAPES[start][0] - 0.1 + 0.06 * math.log10(fraction / 0.1)
                values = rng.normal(height, 0.011, seeds)
                probe.append(
                    {
                        "network": network,
                        "fraction": fraction,
                        "start": start,
                        "depth": 1.0,
                        "seeds": values.tolist(),
                        "mean": float(values.mean()),
                        "sd": float(values.std(ddof=1)) if seeds > 1 else None,
                    }
                )
    return {
        "rotation_accuracy": rotation,
        "finetune": finetune,
        "probe": probe,
        "train": {
            "steps": 4200,
            "seconds": 437.62,
            "architectures": 8400,
            "skipped_steps": 3,
            "takeoff_step": takeoff,
            "final_loss": 0.7342,
            "curve_file": "metrics.jsonl",
        },
        "provenance": {
            "command": "python -m medinit_jax.main --config=configs/hyper.py",
            "config_name": "hyper",
            "code_version": "0.1.0 (4b1d2c9)",
            "python": "3.11.9",
            "jax": "0.10.2",
            "device": "cpu",
            "cores": 2,
            "date": "2031-05-04 10:22 UTC",
            "theta_sha256": "9f2c4d6e8a0b1c3d5e7f9a1b2c3d4e5f60718293a4b5c6d7e8f9012345678abc",
            "images": {
                "source": "fundus phantoms, 32 px",
                "count": 6000,
                "sha256": "0a1b2c3d4e5f60718293a4b5c6d7e8f90123456789abcdef0123456789abcdef",
            },
        },
    }


def metrics(steps=4200, takeoff=640) -> list[dict[str, float]]:
    """Rows as the log writes them: every tenth step, validation every 200th."""
    rng = np.random.default_rng(8)
    rows = []
    for step in range(10, steps + 1, 10):
        progress = 1 - math.exp(-max(step - takeoff, 0) / 1100)
        loss = math.log(4) - progress * 0.75 + rng.normal(0, 0.07)
        accuracy = 0.25 + 0.52 * progress + rng.normal(0, 0.05)
        row = {"step": step, "train/loss": loss, "train/accuracy": accuracy}
        if step % 200 == 0:
            row["val/accuracy"] = 0.25 + 0.47 * progress + rng.normal(0, 0.012)
        rows.append(row)
    return rows


def fundus(index: int, size=32) -> np.ndarray:
    """A disc with a bright spot and dark strokes, enough to see a rotation."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    shade = 0.75 - 0.3 * np.hypot(x, y)
    image = np.stack([0.85 * shade, 0.42 * shade, 0.2 * shade], axis=-1)
    side = 0.5 * rng.choice([-1, 1])
    image += 0.5 * np.exp(-((x - side) ** 2 + (y - 0.05) ** 2) / 0.02)[..., None]
    for bend in rng.uniform(-0.9, 0.9, 4):
        image -= 0.12 * np.exp(-((y - bend * (x - side) ** 2) ** 2) / 0.001)[..., None]
    image[np.hypot(x, y) > 0.97] = 0
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def parameters(networks=("resnet18", "val/3", "val/7")) -> dict[str, list[dict[str, Any]]]:
    """Statistics per tensor: predicted, default and untrained."""
    rng = np.random.default_rng(9)
    record = {}
    for network in networks:
        tensors = []
        width = 16
        for layer in range(20):
            width = min(512, width * (2 if layer % 5 == 4 else 1))
            fan_in = 9 * width
            he = math.sqrt(2 / fan_in)
            tensors.append(
                {
                    "name": f"layer{layer // 5}.{layer % 5}.conv.kernel",
                    "shape": [3, 3, width, width],
                    "hyper": {"mean": 0.0, "std": he * float(rng.uniform(0.5, 1.3))},
                    "random": {"mean": 0.0, "std": he * float(rng.uniform(0.98, 1.02))},
                    "untrained": {"mean": 0.0, "std": he * float(rng.uniform(0.2, 0.35))},
                    "matched": {"mean": 0.0, "std": he},
                }
            )
            tensors.append(
                {
                    "name": f"layer{layer // 5}.{layer % 5}.norm.scale",
                    "shape": [width],
                    "hyper": {"mean": 1.0, "std": 0.1},
                    "random": {"mean": 1.0, "std": 0.0},
                }
            )
        record[network] = tensors
    return record


def write(folder: Path, content: dict[str, Any], whole: bool = True) -> Path:
    """Write a workdir: the summary alone, or every file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(content))
    if not whole:
        return folder
    config = {
        "route": "hyper",
        "seed": 0,
        "data": {"name": "fundus_phantoms", "size": 32, "path": ""},
        "pretext": {"name": "rotation", "hard": True, "translate": 0.2},
        "hyper": {"hidden": 32, "max_shape": [64, 64, 11, 11], "mode": "sequential"},
        "optim": {"learning_rate": 1e-3, "clip": 5.0, "warmup_steps": 50},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in metrics()))
    (folder / "parameters.json").write_text(json.dumps(parameters()))
    images = np.stack([fundus(i) for i in range(6)])
    views = np.stack([np.stack([np.rot90(im, k) for k in range(4)]) for im in images])
    np.savez(
        folder / "samples.npz",
        images=images,
        views=views,
        targets=np.tile(np.arange(4), (6, 1)),
        labels=np.arange(6) % 2,
    )
    return folder


class Fixtures:
    """The builders, for tests that change one thing."""

    summary = staticmethod(summary)
    metrics = staticmethod(metrics)
    write = staticmethod(write)


@pytest.fixture
def made_up() -> type[Fixtures]:
    """Builders of made-up workdirs."""
    return Fixtures


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A complete made-up workdir."""
    return write(tmp_path / "hyper", summary())
