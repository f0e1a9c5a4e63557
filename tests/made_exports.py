"""Small networks as runs leave them, for the tests of exporting."""

import json

import jax
import numpy as np

from medinit_jax.core.checkpoint import Checkpoints
from medinit_jax.core.parameters import load_params, save_params
from medinit_jax.core.workdir import write_json
from medinit_jax.finetune.network import make_network
from medinit_jax.hyper.hypernetwork import HyperInitializer, init_theta
from medinit_jax.models.encoder import body
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.statistics import initial_statistics
from medinit_jax.swcl.projection import PREDICTOR, PROJECTION, ByolHead

HEADS = (
    {"name": "dr", "classes": ["none", "some"], "kind": "softmax"},
    {"name": "dme", "classes": ["none", "low", "high"], "kind": "softmax"},
)
VESSELS = ({"name": "mask", "classes": ["background", "vessel"], "kind": "softmax"},)
NARROW = {"name": "resnet18", "width": 4, "stem": "small"}
UNET = {"name": "unet", "width": 4}
PLAIN = {"name": "resnet18"}
SUMMARY = {
    "metric": "joint accuracy",
    "images": {"train": 40, "validation": 8, "test": 11},
    "epochs": [{"epoch": 1, "step": 5}, {"epoch": 2, "step": 10}],
    "best": {
        "epoch": 2,
        "validation": 0.75,
        "test": {"metric": 0.5, "low": 0.25, "high": 0.625, "resamples": 100},
    },
    "data": {
        name: {"source": f"prepared:set/{name}", "count": n, "sha256": name * 8, "license": "CC"}
        for name, n in (("train", 40), ("test", 11))
    },
    "provenance": {"command": "main --config=x", "date": "2026-01-01 00:00 UTC"},
}


def drawn(program, seed=0):
    """Parameters and statistics in which a mistake would show."""
    rng = np.random.default_rng(seed)
    params = initial_parameters(program, jax.random.key(seed))
    params = {
        module: {
            leaf: np.asarray(value) + np.float32(0.1 * rng.normal(size=value.shape))
            for leaf, value in leaves.items()
        }
        for module, leaves in params.items()
    }
    statistics = {
        module: {
            "mean": rng.normal(0, 0.3, leaves["mean"].shape).astype(np.float32),
            "var": rng.uniform(0.5, 2, leaves["var"].shape).astype(np.float32),
        }
        for module, leaves in initial_statistics(program).items()
    }
    return params, statistics


def write_run(workdir, model=NARROW, heads=HEADS, kind="classification", size=32, change=None):
    """Writes what a finished fine-tuning leaves; returns the workdir.

    `change` may change its parameters.
    """
    width = sum(len(head["classes"]) for head in heads)
    program = make_network(model, size, width, kind).program
    params, statistics = drawn(program)
    if change:
        change(params)
    recipe = "hyper512" if kind == "classification" else "crops"
    metadata = {
        "task": "idrid",
        "kind": kind,
        "modality": "fundus",
        "size": size,
        "heads": list(heads),
        "start": {"name": "random", "path": ""},
        "model": model,
        "data": {"recipe": recipe, "normalization": "fundus", "target": "label"},
        "code_version": "0.0 (abc)",
    }
    save_params(workdir / "model", {"params": params, "batch_stats": statistics}, metadata, "model")
    write_json(workdir / "summary.json", SUMMARY)
    config = {"route": "finetune", "seed": 7, "optim": {"learning_rate": 0.5}}
    write_json(workdir / "config.json", {"name": "finetune", "config": config})
    return workdir


def write_encoder(workdir, model=NARROW, size=32, seed=0, export="student"):
    """Writes what a finished pretraining leaves but for checkpoints; returns the workdir."""
    program = make_network(model, size, 2, "classification").program
    params, statistics = drawn(program, seed)
    params = {module: params[module] for module in body(program).parameter_shapes()}
    metadata = {
        "task": "",
        "kind": "encoder",
        "modality": "fundus",
        "method": "byol",
        "export": export,
        "size": size,
        "start": {"name": "random", "path": ""},
        "model": model,
        "data": {"views": "contrastive", "normalization": "fundus"},
    }
    save_params(workdir / "model", {"params": params, "batch_stats": statistics}, metadata, "model")
    return workdir


def write_pretraining(workdir, teacher=False):
    """Writes what a finished BYOL leaves; returns the workdir."""
    write_encoder(workdir, export="teacher" if teacher else "student")
    tree, record = load_params(workdir / "model", "model")
    heads = {"projection": ByolHead(PROJECTION, 4, 8, "bn")}
    heads["predictor"] = ByolHead(PREDICTOR, 4, 8, "bn")
    rows, params, statistics = np.ones((2, 32), np.float32), {}, {}
    for number, (name, head) in enumerate(heads.items()):
        rows, made = head.init_with_output(jax.random.key(number), rows)
        params[name], statistics[name] = made["params"], made["batch_stats"]
    own = {"encoder": tree["params"], "heads": params}
    other = jax.tree.map(lambda value: value + 1, own)
    moved = {"encoder": tree["batch_stats"], "heads": statistics}
    state = {
        "train": {"params": other if teacher else own},
        "statistics": moved,
        "target": {"params": own if teacher else other, "statistics": moved},
    }
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(3, state, None, {"model": record})
    checkpoints.close()
    return workdir


def write_initializer(folder):
    """Writes an untrained initializer; returns its folder."""
    module = HyperInitializer(hidden=8, max_shape=(8, 8, 3, 3), num_classes=4)
    theta = jax.device_get(init_theta(module, jax.random.key(2))["params"])
    options = {"hidden": 8, "max_shape": [8, 8, 3, 3], "num_classes": 4}
    options["tables"] = [list(sizes) for sizes in module.known_sizes]
    seen = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    metadata = {
        "hyper": options,
        "space": "small",
        "modality": "fundus",
        "seed": 1,
        "preprocessing": seen,
        "images": {"source": "phantom:fundus", "count": 9, "sha256": "0" * 64},
    }
    save_params(folder, theta, json.loads(json.dumps(metadata)))
    return folder
