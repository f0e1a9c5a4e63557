"""Fine-tuning from the first epoch to the figures on the test images."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax.core import cluster, loop, optim
from medinit_jax.core.checkpoint import Checkpoints, open_checkpoints
from medinit_jax.core.errors import UsageError
from medinit_jax.core.interrupt import stop_on_signal
from medinit_jax.core.ledger import finite
from medinit_jax.core.log import create_writer
from medinit_jax.core.parallel import Parallel
from medinit_jax.core.progress import Progress
from medinit_jax.core.provenance import code_version
from medinit_jax.core.state import place
from medinit_jax.core.timing import Stopwatch
from medinit_jax.core.workdir import SUMMARY_FILE, write_json
from medinit_jax.data.pipeline import Batches
from medinit_jax.downstream.heads import width
from medinit_jax.downstream.protocol import fold_seed
from medinit_jax.finetune import evaluate, outcome
from medinit_jax.finetune.data import Examples, TaskImages, TrainBatches, open_task
from medinit_jax.finetune.layers import frozen_modules
from medinit_jax.finetune.maps import MapAlbum
from medinit_jax.finetune.network import make_network
from medinit_jax.finetune.outcome import Best, Course
from medinit_jax.finetune.starts import Start, make_start
from medinit_jax.finetune.step import Objective, Recipe, Supervised, TuneState, compiled
from medinit_jax.finetune.weights import class_weights
from medinit_jax.models.network import Network
from medinit_jax.models.statistics import initial_statistics, recalibrate_bn

_SCHEDULE = ("learning_rate", "schedule", "warmup_steps", "milestones", "decay")
# A fine-tuning of which more steps than this share were not finite has diverged.
MAX_SKIPPED = 0.02


class Tuning:
    """One fine-tuning.

    Args:
        config: The experiment, see `configs/finetune.py`.
        workdir: Its folder.
        console: Where progress is shown.
        parallel: Devices.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        console: Console,
        parallel: Parallel | None = None,
    ):
        self.config, self.workdir, self.console = config, workdir, console
        self.parallel = parallel or _devices(config)
        self.images: TaskImages = open_task(config, console)
        batches, objective = self.prepare()
        self.steps_per_epoch = batches.steps_per_epoch
        train = config.train
        self.total = train.steps or train.epochs * self.steps_per_epoch
        cluster.check_alike(
            "images", {name: part.describe() for name, part in self.images.parts().items()}
        )
        self._whole = batches
        self.batches = Batches(batches.shared(self.parallel.process), config.data.workers)
        self.watch = Stopwatch({"images": train.batch}, config.profile, workdir / "profile")
        plain = make_network(
            config.model,
            batches.size,
            width(self.images.heads),
            self.images.kind,
            train.dtype,
        )
        self.frozen = frozen_modules(plain.program, train.freeze)
        self.network = Network(plain.program, plain.dtype, self.frozen)
        self._moving = plain
        self.start: Start = make_start(config, self.network, console)
        _check(train, self.parallel)
        if config.evaluate.batch < 1:
            raise UsageError(
                f"config.evaluate.batch={config.evaluate.batch}; set it to at least 1."
            )
        settings = {k: v for k, v in config.optim.items() if k not in _SCHEDULE}
        self.begin, self.step = compiled(
            Recipe(
                self.network,
                self.images.heads,
                tuple(sorted(settings.items())),
                train.accumulate,
                train.ema,
                self.frozen,
                train.layer_decay,
                objective,
            ),
            self.parallel,
        )
        self.schedule = optim.create_schedule(
            ml_collections.ConfigDict({**self.rates(), "total_steps": self.total})
        )
        self.weights = self.parallel.replicate(class_weights(self.images, train.class_weights))

    def prepare(self) -> tuple[Any, Objective]:
        """Returns the training batches by step number, and what one costs.

        Batches have `size`, the side of the images in pixels, `steps_per_epoch`, and `shared`,
        which returns them with the rows of one process only.
        """
        return TrainBatches(self.config, self.images), Supervised()

    def rates(self) -> dict[str, Any]:
        """Returns the settings of the learning rate, counted in steps."""
        return self.config.optim.to_dict()

    def recalibrated(self, params: Any) -> Any:
        """Estimates batch statistics on the first training batches, each process on all rows."""
        limit = min(self.config.train.recalibrate_batches, self.steps_per_epoch)
        source = self._whole
        # The network without frozen parts, whose statistics would not move.
        return recalibrate_bn(
            self._moving,
            params,
            (_single(source[step]["image"]) for step in range(limit)),
            limit,
        )

    def first_state(self) -> TuneState:
        """Returns the state before the first step."""
        statistics = self.start.statistics
        if statistics is None:
            statistics = initial_statistics(self.network.program)
            if self.frozen:
                # What is frozen is normalized by its statistics from the first step on.
                statistics = self.recalibrated(self.start.params)
        return self.begin(self.start.params, statistics)

    def statistics_of(self, state: TuneState) -> Any:
        """Returns the batch statistics to judge a state with, see `_own`."""
        train = self.config.train
        # Running statistics are those of the parameters, not of their average.
        early = int(state.step) <= train.recalibrate_steps or train.ema > 0
        if early and not self.frozen and state.statistics:
            return self.recalibrated(_own(state.judged))
        return _own(state.statistics)

    def answers(self, params: Any, statistics: Any, examples: Examples) -> evaluate.Answers:
        """Runs the network over a part of the images."""
        batch = self.config.evaluate.batch
        return evaluate.answers(
            self.network, params, statistics, self.images, examples, batch, self.parallel
        )

    def run(self) -> dict[str, Any]:
        """Trains, or goes on, and returns what `summary.json` holds."""
        checkpoints = open_checkpoints(self.workdir, self.config.train)
        state, best, course = self._resumed(checkpoints)
        album = MapAlbum(self.config, self.workdir, self.images, self.network)
        writer = create_writer(self.workdir, self.console, int(state.step))
        started = saved = time.monotonic()
        before = course.seconds

        def save(state: TuneState) -> None:
            nonlocal course
            course = course._replace(seconds=before + time.monotonic() - started)
            held = {"tune": state, "best": best._asdict()}
            extra = {"course": finite(course._asdict()), "code_version": code_version()}
            extra["model"] = outcome.description_of(
                self.config, self.images, self.network, self.start
            )
            # Batches go by step number, so that the state alone says which comes next.
            checkpoints.save(int(state.step), held, None, extra)

        try:
            with (
                stop_on_signal() as stopped,
                self.watch,
                Progress("fine-tune", self.total, self.console, start=int(state.step)) as bar,
            ):
                while not self._finished(state, course):
                    state, course, whole = self._epoch(state, course, writer, bar)
                    if cluster.any_of(stopped.is_set()) or not whole:
                        save(state)
                        raise stopped.error()
                    state, best, course = self._judge(state, best, course, album, bar)
                    if not course.diverged:
                        figure = {"val/metric": course.epochs[-1]["validation"]}
                        writer.write_scalars(int(state.step), figure)
                    if cluster.any_of(stopped.is_set()) and not self._finished(state, course):
                        save(state)
                        raise stopped.error()
                    late = time.monotonic() - saved > self.config.train.checkpoint_seconds
                    if cluster.any_of(late):
                        save(state)
                        saved = time.monotonic()
        finally:
            writer.close()
            self.batches.close()
            checkpoints.close()
        course = course._replace(seconds=before + time.monotonic() - started)
        return self._finish(state, best, course, album)

    def _resumed(self, checkpoints: Checkpoints) -> tuple[TuneState, Best, Course]:
        sharded = self.config.optim.sharded
        state = place(self.first_state(), self.parallel, sharded)
        best = Best(jax.device_get(state.judged), jax.device_get(state.statistics))
        course = Course([], [], 0.0)
        if checkpoints.steps():
            held = {"tune": state, "best": best._asdict()}
            restored = checkpoints.restore(held)
            state, best = restored.state["tune"], Best(**restored.state["best"])
            course = Course(**restored.extra["course"])
            self.batches.set_state({"step": restored.step})
            self.console.print(f"Going on from step {restored.step}.")
        return place(state, self.parallel, sharded), jax.device_get(best), course

    def _finished(self, state: TuneState, course: Course) -> bool:
        judged = course.epochs[-1]["step"] if course.epochs else 0
        if course.diverged or judged == int(state.step) >= self.total:
            return True
        patience, best = self.config.train.patience, course.best
        return bool(patience and best and course.epochs[-1]["epoch"] - best["epoch"] >= patience)

    def _epoch(self, state, course: Course, writer, bar) -> tuple[TuneState, Course, bool]:
        """Trains to the next validation; returns whether it got there."""
        done = course.epochs[-1]["epoch"] if course.epochs else 0
        wanted = done + self.config.train.validate_every
        end = min(wanted * self.steps_per_epoch, self.total)
        latest, losses = state, []

        def step_fn(current: TuneState, number: int, batch: Any):
            nonlocal latest
            key = jax.random.key(fold_seed(self.config.seed, "dropout", number))
            rate = np.float32(self.schedule(number))
            placed = self.parallel.spread({k: batch[k] for k in ("image", "targets")})
            latest, metrics = self.step(
                current, placed["image"], placed["targets"], self.weights, rate, key
            )
            losses.append(metrics["train/loss"])
            return latest, metrics

        settings = loop.LoopConfig(end, end, end + 1, max_skipped=1.0)
        whole = True
        try:
            loop.run(
                step_fn,
                state,
                settings,
                writer=writer,
                progress=bar,
                batches=self.batches,
                watch=self.watch,
            )
        except KeyboardInterrupt:
            whole = False
        held = course.losses + [float(x) for x in jax.device_get(losses)]
        return latest, course._replace(losses=held), whole

    def _judge(self, state, best: Best, course: Course, album: MapAlbum, bar):
        """Validates after an epoch, and keeps what is best."""
        params, statistics = _own(state.judged), self.statistics_of(state)
        found = self.answers(params, statistics, self.images.validation)
        figure = evaluate.value(self.images, self.images.validation, found)
        skipped = int(state.skipped) > MAX_SKIPPED * max(int(state.step), loop.GRACE_STEPS)
        row = {
            "epoch": -(-int(state.step) // self.steps_per_epoch),
            "step": int(state.step),
            "loss": float(np.mean(course.losses)),
            "validation": None if skipped or not math.isfinite(figure) else figure,
        }
        earlier = course.best
        course = course._replace(epochs=[*course.epochs, row], losses=[])
        if row["validation"] is not None and (
            earlier is None or row["validation"] > earlier["validation"]
        ):
            best = Best(jax.device_get(params), jax.device_get(statistics))
        if cluster.first():
            album.add(row["epoch"], params, statistics)
        shown = "diverged" if row["validation"] is None else f"{row['validation']:.4f}"
        bar.update(int(state.step), validation=shown)
        return state, best, course

    def _finish(
        self, state: TuneState, best: Best, course: Course, album: MapAlbum
    ) -> dict[str, Any]:
        row, last = course.best, course.epochs[-1]
        judged = {"last": (last, _own(state.judged), self.statistics_of(state))}
        judged["best"] = (row or last, best.params, best.statistics)
        figures: dict[str, Any] = {}
        for name, (epoch, params, statistics) in judged.items():
            if name == "best" and epoch is last and "last" in figures:
                figures["best"] = figures["last"]
                continue
            found = self.answers(params, statistics, self.images.test)
            scores = evaluate.all_scores(
                self.images,
                self.images.test,
                found,
                self.config.evaluate.resamples,
                self.config.seed,
            )
            figures[name] = {
                "epoch": epoch["epoch"],
                "validation": epoch["validation"],
                "test": scores,
            }
            predictions = found
        return cluster.once(lambda: self._written(state, best, course, album, figures, predictions))

    def _written(
        self,
        state: TuneState,
        best: Best,
        course: Course,
        album: MapAlbum,
        figures: dict[str, Any],
        predictions: evaluate.Answers,
    ) -> dict[str, Any]:
        """Writes what is left of a fine-tuning, and returns its summary."""
        outcome.write_answers(self.workdir, self.images, predictions)
        described = (self.config, self.images, self.network, self.start)
        if course.best:
            # Nothing that never gave a finite figure is handed on.
            outcome.write_model(self.workdir, *described, best)
        figures |= {
            "cam": album.figures(),
            "skipped_steps": int(state.skipped),
            "data": self.data(),
        }
        summary = outcome.summary_of(*described, course, figures)
        write_json(self.workdir / SUMMARY_FILE, summary)
        return summary

    def data(self) -> dict[str, Any]:
        """Returns what is known of the images: {part: source, count, digests and license}."""
        return {name: part.describe() for name, part in self.images.parts().items()}


def _own(tree: Any) -> Any:
    """Returns what lies on the devices of all processes on one of this process, to judge it there.

    Each process judges images of its own, which one program over all devices could not.
    """
    return tree if cluster.alone() else jax.device_put(jax.device_get(tree))


def _single(images: np.ndarray) -> np.ndarray:
    """Returns images (n, H, W, C) of (batch, H, W, C) or (batch, views, H, W, C)."""
    return images.reshape(-1, *images.shape[-3:])


def _devices(config: ml_collections.ConfigDict) -> Parallel:
    wanted, there = config.train.devices, jax.local_devices()
    if not cluster.alone():
        if wanted:
            raise UsageError(
                f"config.train.devices={wanted}, but several processes use all devices; set it to "
                "0."
            )
        return Parallel()
    if not 0 <= wanted <= len(there):
        raise UsageError(
            f"config.train.devices={wanted}, but {len(there)} are here; set it to 0 for all."
        )
    return Parallel(there[: wanted or None])


def _check(train: ml_collections.ConfigDict, parallel: Parallel) -> None:
    if not 0 <= train.ema < 1 or min(train.patience, train.recalibrate_batches) < 0:
        raise UsageError(
            f"config.train.ema={train.ema}, patience={train.patience} and recalibrate_batches="
            f"{train.recalibrate_batches}; set ema to 0 up to, but not including 1, the others to "
            "at least 0."
        )
    if train.validate_every < 1 or min(train.epochs, train.steps) < 0 or train.epochs == 0:
        raise UsageError(
            f"config.train.epochs={train.epochs}, steps={train.steps} and validate_every="
            f"{train.validate_every}; set epochs and validate_every to at least 1, steps to at "
            "least 0."
        )
    share = train.accumulate * parallel.size
    if train.accumulate < 1 or train.batch % share:
        raise UsageError(
            f"config.train.batch={train.batch} does not divide into config.train.accumulate="
            f"{train.accumulate} parts on {parallel.size} device(s); make it a multiple of "
            f"{max(share, 1)}, or set config.train.devices=1."
        )
