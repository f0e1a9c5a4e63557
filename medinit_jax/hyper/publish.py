"""Writes a trained hypernetwork as one folder that `medinit_jax.load` reads."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from medinit_jax.core.parameters import INITIALIZER_FOLDER, save_params
from medinit_jax.core.provenance import code_version
from medinit_jax.data.catalog import batch_options
from medinit_jax.hyper.hypernetwork import HyperInitializer


def publish(
    config: ml_collections.ConfigDict,
    workdir: Path,
    module: HyperInitializer,
    theta: Any,
    images: Mapping[str, Any],
) -> Path:
    """Writes `workdir/initializer`: parameters and all that is needed to use them.

    Args:
        config: The experiment.
        workdir: Its workdir.
        module: The hypernetwork.
        theta: Its parameters, on the host.
        images: What is known of the images that it was trained on: source, count, digest.

    Returns:
        The folder.
    """
    options = {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(HyperInitializer)
        if field.name not in ("parent", "name")
    }
    options["tables"] = [list(sizes) for sizes in module.known_sizes]
    data = batch_options(config.data, config.seed)
    metadata = {
        "hyper": options,
        "space": config.space,
        "pretext": config.pretext.to_dict(),
        "preprocessing": {
            "size": config.data.size,
            "mean": list(data.mean),
            "std": list(data.std),
            "channels": "RGB",
            "range": "0..1 before mean and std",
        },
        "modality": config.data.name if config.data.source == "phantom" else config.data.source,
        "images": dict(images),
        "code_version": code_version(),
        "steps": config.train.steps,
        "seed": config.seed,
    }
    folder = workdir / INITIALIZER_FOLDER
    if folder.exists():
        shutil.rmtree(folder)
    save_params(folder, theta, metadata)
    return folder
