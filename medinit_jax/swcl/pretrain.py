"""Pretraining of an encoder from the first step to the folder that fine-tuning starts from."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax.core import cluster, loop
from medinit_jax.core.checkpoint import open_checkpoints
from medinit_jax.core.errors import UsageError
from medinit_jax.core.ledger import finite
from medinit_jax.core.log import create_writer
from medinit_jax.core.parallel import Parallel
from medinit_jax.core.parameters import save_params
from medinit_jax.core.progress import Progress
from medinit_jax.core.provenance import code_version, provenance
from medinit_jax.core.state import place
from medinit_jax.core.timing import Stopwatch
from medinit_jax.core.workdir import write_json
from medinit_jax.data.pipeline import Batches
from medinit_jax.finetune.network import make_network
from medinit_jax.finetune.starts import MODEL_FOLDER, make_start
from medinit_jax.models.features import encoder_params, features
from medinit_jax.models.statistics import initial_statistics
from medinit_jax.swcl import sources
from medinit_jax.swcl.batches import ViewBatches
from medinit_jax.swcl.settings import check_bn_group, make_look, make_method
from medinit_jax.swcl.step import PretrainState, Recipe, compiled, first_state

# Below this spread of unit features, or share of the information that a teacher could give, a
# sentence says so.
COLLAPSED = 0.05
SILENT = 1e-3


class Pretraining:
    """One pretraining.

    Args:
        config: The experiment, see `configs/swcl.py`.
        workdir: Its folder.
        console: Where progress is shown.
        parallel: Devices; those of all processes by default.

    Raises:
        UsageError: There is no such method, image, view or encoder, or numbers do not fit together.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        console: Console,
        parallel: Parallel | None = None,
    ):
        self.config, self.workdir, self.console = config, workdir, console
        self.parallel = parallel or Parallel()
        self.method = make_method(config)
        look = make_look(config, self.method)
        self.items = sources.open_items(config, self.method.images, console)
        # Where they lie may differ.
        known = {k: v for k, v in self.items.describe().items() if k != "source"}
        cluster.check_alike("images", known)
        train, data = config.train, config.data
        if train.batch % self.parallel.size or train.epochs < 1 or train.steps < 0:
            raise UsageError(
                f"config.train.batch={train.batch} does not divide among {self.parallel.size} "
                f"device(s), or config.train.epochs={train.epochs} and steps={train.steps} are no "
                "length; make the batch a multiple of the devices, epochs at least 1, steps 0 for "
                "as many as the epochs have."
            )
        self.batches = ViewBatches(
            self.items, look, train.batch, config.seed, self.parallel.process
        )
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.total = train.steps or train.epochs * self.steps_per_epoch
        self.labels, self.one_sided = {}, ""
        if self.batches.paired:
            self.labels = sources.label_table(config, self.items)
            self.one_sided = sources.threshold_warning(config, self.items)
        if self.one_sided:
            console.print(f"WARNING: {self.one_sided}", soft_wrap=True)
        self.intervals = loop.make_config(self.total, train)
        network = make_network(config.model, data.size, 2, "classification", train.dtype)
        self.start = make_start(config, network, console)
        self.statistics = self.start.statistics or initial_statistics(network.program)
        encoder = encoder_params(network.program, self.start.params)
        inner = {name: held for name, held in self.statistics.items() if _module(name) in encoder}
        self.encoder, self.statistics = encoder, inner
        channels = jax.eval_shape(
            lambda params, images: (
                features(network, {"params": params, "batch_stats": inner}, images).pooled
            ),
            encoder,
            jnp.zeros((1, data.size, data.size, 3)),
        ).shape[-1]
        self.recipe = Recipe(
            network,
            self.method,
            channels,
            self._optimizer(),
            self.steps_per_epoch,
            train.ema,
            train.bn_group,
            train.frozen_epochs,
        )
        self.step = compiled(self.recipe, self.parallel)
        heads = jax.eval_shape(self.first_state).statistics["heads"]
        check_bn_group(config, look.recipe, bool(jax.tree.leaves((inner, heads))))

    def _optimizer(self) -> tuple[tuple[str, Any], ...]:
        """Returns the optimizer's settings, counted in steps."""
        settings = {**self.config.optim, "total_steps": self.total}
        epochs = settings.pop("warmup_epochs")
        settings["warmup_steps"] = round(epochs * self.steps_per_epoch)
        if not 0 <= settings["warmup_steps"] < self.total:
            raise UsageError(
                f"config.optim.warmup_epochs={epochs} are {settings['warmup_steps']} of "
                f"{self.total} steps; set it to at least 0 and below the length of the training."
            )
        settings["milestones"] = tuple(
            round(epoch * self.steps_per_epoch) for epoch in settings["milestones"]
        )
        return tuple(sorted(settings.items()))

    def first_state(self) -> PretrainState:
        """Returns the state before the first step."""
        key = jax.random.key(self.config.seed)
        return first_state(self.recipe, self.encoder, self.statistics, key)

    def run(self) -> dict[str, Any]:
        """Trains, or goes on, writes the encoder, and returns what `summary.json` holds."""
        checkpoints = open_checkpoints(self.workdir, self.config.train)
        batches = Batches(self.batches, self.config.data.workers)
        sharded = self.config.optim.sharded
        current = place(self.first_state(), self.parallel, sharded)
        current = place(loop.resume(checkpoints, current, batches), self.parallel, sharded)
        began = int(current.step)
        if began:
            self.console.print(f"Going on from step {began}.")
        writer = create_writer(self.workdir, self.console, began)
        started = time.monotonic()

        def step_fn(current: PretrainState, number: int, batch: Mapping[str, np.ndarray]):
            del number
            images = tuple(batch[name] for name in ("image", "local") if name in batch)
            placed, labels = self.parallel.spread((images, self._labels_of(batch)))
            return self.step(current, placed, labels)

        folder = self.workdir / "profile"
        watch = Stopwatch({"images": self.config.train.batch}, self.config.profile, folder)
        try:
            with watch, Progress("pretrain", self.total, self.console, start=began) as bar:
                current = loop.run(
                    step_fn,
                    current,
                    self.intervals,
                    writer=writer,
                    progress=bar,
                    batches=batches,
                    checkpoints=checkpoints,
                    extra={"code_version": code_version(), "model": self.description()},
                    watch=watch,
                )
        finally:
            writer.close()
            batches.close()
            checkpoints.close()
        seconds = time.monotonic() - started
        return cluster.once(lambda: self._finish(current, seconds))

    def _labels_of(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not self.labels:
            return {}
        return {name: held[batch["index"], batch["eye"]] for name, held in self.labels.items()}

    def _finish(self, current: PretrainState, seconds: float) -> dict[str, Any]:
        lines = [json.loads(x) for x in (self.workdir / "metrics.jsonl").read_text().splitlines()]
        curve = [line for line in lines if "train/loss" in line]
        notes = [self.config.note, self.one_sided]
        notes.append(_collapse_warning(curve[-1] if curve else {}, self.method))
        if notes[-1]:
            self.console.print(f"WARNING: {notes[-1]}", soft_wrap=True)
        self._write_model(current)
        summary = finite(
            {
                "method": self.config.method,
                "model": self.config.model.name,
                "parameters": sum(x.size for x in jax.tree.leaves(self.encoder)),
                "start": self.start.record,
                "seed": self.config.seed,
                "steps": self.total,
                "epochs": round(self.total / self.steps_per_epoch, 2),
                "last": {
                    name.removeprefix("train/"): value
                    for name, value in (curve[-1] if curve else {}).items()
                    if name.startswith("train/")
                },
                "skipped_steps": int(current.skipped),
                "seconds": round(seconds, 1),
                "images": len(self.items) * (2 if self.batches.paired else 1),
                "data": self.items.describe(),
                "provenance": provenance(shlex.join(sys.argv), "swcl"),
                "notes": [note for note in notes if note],
            }
        )
        write_json(self.workdir / "summary.json", summary)
        return summary

    def _write_model(self, current: PretrainState) -> None:
        """Writes the encoder as fine-tuning reads it; of BYOL and DINO the one that learned."""
        folder = self.workdir / MODEL_FOLDER
        if folder.exists():
            shutil.rmtree(folder)
        held = jax.device_get(current)
        teacher = self.config.export == "teacher"
        params = held.target["params"] if teacher else held.train.params
        statistics = held.target["statistics"] if teacher else held.statistics
        tree = {"params": params["encoder"], "batch_stats": statistics["encoder"]}
        tree = {name: part for name, part in tree.items() if part}
        save_params(folder, tree, self.description(), kind="model")

    def description(self) -> dict[str, Any]:
        """Returns all that the use of the encoder needs beside its arrays, as JSON."""
        held = {
            "task": "",
            "kind": "encoder",
            "modality": "fundus",
            "method": self.config.method,
            "export": self.config.export,
            "model": self.config.model.to_dict(),
            "data": self.config.data.to_dict(),
            "size": self.config.data.size,
            "start": self.start.record,
            "code_version": code_version(),
        }
        return json.loads(json.dumps(held))


def _module(statistics: str) -> str:
    return statistics.removesuffix(".stats")


def _collapse_warning(last: Mapping[str, float], method: Any) -> str:
    """Returns a sentence if features look as if all images had become one point."""
    spread = last.get("train/spread")
    if spread is not None and spread < COLLAPSED:
        return (
            f"The features of different images hardly differ (spread {spread:.3f} of 1), as after "
            "a collapse; lower config.optim.learning_rate or lengthen the warm-up."
        )
    information = last.get("train/teacher_information")
    if information is not None and information < SILENT * math.log(method.prototypes):
        return (
            f"The teacher says the same of all images (entropy {last['train/teacher_entropy']:.3f} "
            f"of {math.log(method.prototypes):.3f}), as after a collapse; lower "
            "config.optim.learning_rate or lengthen the warm-up."
        )
    return ""
