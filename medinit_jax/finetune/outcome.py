"""What a fine-tuning comes to: its course so far, and the files that it leaves at the end."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from medinit_jax.core.ledger import finite
from medinit_jax.core.parameters import save_params
from medinit_jax.core.provenance import code_version, provenance
from medinit_jax.core.workdir import write_arrays
from medinit_jax.finetune.data import TaskImages
from medinit_jax.finetune.evaluate import Answers
from medinit_jax.finetune.starts import MODEL_FOLDER, Start
from medinit_jax.models.network import Network

ANSWERS_FILE = "predictions.npz"


class Best(NamedTuple):
    """The parameters that validated best, on the host, and their statistics."""

    params: Any
    statistics: Any


class Course(NamedTuple):
    """How far a fine-tuning is.

    Attributes:
        epochs: Validated ones: {"epoch", "step", "loss", "validation"}.
        losses: Of the steps since the last validation.
        seconds: Spent so far.
    """

    epochs: list[dict[str, Any]]
    losses: list[float]
    seconds: float

    @property
    def best(self) -> dict[str, Any] | None:
        """The epoch with the best validation figure, the first of equals."""
        known = [row for row in self.epochs if row["validation"] is not None]
        return max(known, key=lambda row: row["validation"]) if known else None

    @property
    def diverged(self) -> bool:
        """Whether the outputs of the last epoch were not finite."""
        return bool(self.epochs) and self.epochs[-1]["validation"] is None


def write_answers(workdir: Path, images: TaskImages, found: Answers) -> None:
    """Writes `predictions.npz`: who was judged, the truth, and the answers.

    Args:
        workdir: The run's folder.
        images: The task.
        found: Answers for its test images.
    """
    test = images.test
    arrays = {"id": np.array(test.ids), "patient": np.array(test.patients)}
    for name, probability in found.probabilities.items():
        arrays[f"{name}/label"] = test.targets[name]
        arrays[f"{name}/probability"] = probability.astype(np.float32)
    arrays |= {f"{name}/counts": counts for name, counts in found.counts.items()}
    write_arrays(workdir / ANSWERS_FILE, arrays)


def write_model(
    workdir: Path,
    config: ml_collections.ConfigDict,
    images: TaskImages,
    network: Network,
    start: Start,
    best: Best,
) -> None:
    """Writes the folder that `tuned.load_model` and `init.start=encoder` read.

    Args:
        workdir: The run's folder; a model in it is replaced.
        config: The experiment.
        images: The task.
        network: The network.
        start: What it began from.
        best: What it learned.
    """
    folder = workdir / MODEL_FOLDER
    if folder.exists():
        shutil.rmtree(folder)
    tree = {"params": best.params, "batch_stats": best.statistics}
    tree = {name: part for name, part in tree.items() if part}
    described = description_of(config, images, network, start)
    save_params(folder, tree, described, kind="model")


def description_of(
    config: ml_collections.ConfigDict, images: TaskImages, network: Network, start: Start
) -> dict[str, Any]:
    """Returns all that the use of the network needs beside its arrays, as JSON.

    Args:
        config: The experiment.
        images: The task.
        network: The network.
        start: What it began from.
    """
    held = {
        "task": config.task,
        "kind": images.kind,
        "modality": images.modality,
        "metric": images.metric,
        "heads": [head._asdict() for head in images.heads],
        "model": config.model.to_dict(),
        "data": config.data.to_dict(),
        "size": network.program.input_shape[0],
        "start": start.record,
        "code_version": code_version(),
    }
    return json.loads(json.dumps(held))


def summary_of(
    config: ml_collections.ConfigDict,
    images: TaskImages,
    network: Network,
    start: Start,
    course: Course,
    figures: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what `summary.json` holds.

    Args:
        config: The experiment.
        images: The task.
        network: The network.
        start: What it began from.
        course: The whole course.
        figures: "best" and "last", each with epoch, validation figure and those of the test images;
            "cam", "skipped_steps", and what is known of the images as "data".
    """
    return finite(
        {
            "task": config.task,
            "kind": images.kind,
            "metric": images.metric,
            "model": config.model.name,
            "parameters": network.program.num_parameters,
            "start": start.record,
            "seed": config.seed,
            "fraction": config.protocol.fraction,
            "fold": None if config.protocol.fold < 0 else config.protocol.fold,
            "learning_rate": config.optim.learning_rate,
            "weight_decay": config.optim.weight_decay,
            "images": {name: len(part) for name, part in images.parts().items()},
            "epochs": course.epochs,
            **figures,
            "diverged": course.diverged,
            "seconds": round(course.seconds, 1),
            "provenance": provenance(shlex.join(sys.argv), config.route),
            "notes": [config.note] if config.note else [],
        }
    )
