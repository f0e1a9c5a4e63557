"""The training loop: steps, scalars, checkpoints, and stopping cleanly."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from medinit_jax.core import cluster
from medinit_jax.core.checkpoint import Checkpoints
from medinit_jax.core.errors import Unfit, UsageError
from medinit_jax.core.interrupt import stop_on_signal
from medinit_jax.core.log import MetricWriter
from medinit_jax.core.progress import Progress
from medinit_jax.core.state import TrainState
from medinit_jax.core.timing import Stopwatch
from medinit_jax.core.watchdog import Watchdog

Metrics = Mapping[str, jax.Array]
# The state is a `TrainState`, or another one with its `step` and `skipped`.
StepFn = Callable[[Any, int, Any], tuple[Any, Metrics]]

# Below this many steps a single skipped one would exceed any sensible share.
GRACE_STEPS = 100


class LoopConfig(NamedTuple):
    """How often the loop does what.

    Attributes:
        total_steps: the step at which training is complete.
        log_every: steps over which scalars are averaged; the host waits for the device this often.
        checkpoint_every: steps between checkpoints.
        max_skipped: largest share of steps that may be skipped as not finite.
        stuck_after: seconds that a step may take before all stacks are shown.
    """

    total_steps: int
    log_every: int
    checkpoint_every: int
    max_skipped: float = 0.02
    stuck_after: float = 600.0


def make_config(total_steps: int, train: ml_collections.ConfigDict) -> LoopConfig:
    """Returns how often the loop does what.

    Args:
        total_steps: the step at which training is complete.
        train: `log_every` and `checkpoint_every`.

    Raises:
        UsageError: one of them is below 1.
    """
    for name in ("log_every", "checkpoint_every"):
        if train[name] < 1:
            raise UsageError(
                f"config.train.{name}={train[name]} is no number of steps; set it to at least 1."
            )
    return LoopConfig(total_steps, train.log_every, train.checkpoint_every)


def resume(checkpoints: Checkpoints, state: Any, batches: Any = None) -> Any:
    """Goes back to the newest checkpoint if there is one.

    Args:
        checkpoints: the run's checkpoints.
        state: the state at the start, also the template.
        batches: the data iterator, whose `set_state` puts it where it was; or None.

    Returns:
        The restored state, or `state` where nothing was saved.

    Raises:
        UsageError: a damaged checkpoint, or one that does not fit.
    """
    if not checkpoints.steps():
        return state
    restored = checkpoints.restore(state)
    if batches is not None:
        batches.set_state(restored.iterator)
    return restored.state


def run(
    step_fn: StepFn,
    state: Any,
    config: LoopConfig,
    *,
    writer: MetricWriter,
    progress: Progress,
    batches: Iterator[Any] | None = None,
    checkpoints: Checkpoints | None = None,
    extra: Mapping[str, Any] | None = None,
    describe: Callable[[int], str] = str,
    stop_after: int | None = None,
    watch: Stopwatch | None = None,
) -> Any:
    """Trains from `state.step` to `config.total_steps`.

    Metrics stay on the device until `log_every` steps are done; then their means are written. A
    checkpoint holds the state after a step and the iterator after that step's batch, so that a
    resumed run repeats an uninterrupted one. SIGINT and SIGTERM end the step at hand, save, and
    raise KeyboardInterrupt (`Preempted` after SIGTERM); a second signal ends the process at once.
    Of several processes all stop after the same step, whichever of them got the signal.

    Args:
        step_fn: (state, step, batch) -> (state, metrics of shape ()); `skipped` among the metrics
            is 1 where the step was left out.
        state: where to start.
        config: how often to do what.
        writer: takes the means, and a text for each skipped step.
        progress: shows the count; entered by the caller.
        batches: one batch is taken for each step (and None handed on without it); with
            checkpoints it has `get_state`.
        checkpoints: where to save; None = nowhere.
        extra: a JSON object that each checkpoint carries.
        describe: step -> the architectures (or whatever made it) of that step, for the log.
        stop_after: stop and save after so many steps of this call.
        watch: measures the parts of steps, entered by the caller; written like scalars.

    Returns:
        The last state.

    Raises:
        UsageError: more than `max_skipped` of the steps were not finite.
        KeyboardInterrupt: a signal came; the checkpoint is saved.
    """
    step = first = int(state.step)
    skipped_before = int(state.skipped)
    end = config.total_steps if stop_after is None else min(config.total_steps, step + stop_after)
    window: list[Metrics] = []
    skipped: list[int] = []
    saved = step
    stopping = False
    if watch:
        watch.restart()
    with stop_on_signal() as stopped, Watchdog(config.stuck_after) as watchdog:
        while step < end and not stopping:
            if watch:
                watch.count_step()
            with _part(watch, "data"):
                batch = None if batches is None else next(batches)
            with _part(watch, "host"):
                state, metrics = step_fn(state, step, batch)
            window.append(metrics)
            step += 1
            progress.update(step)
            watchdog.beat(step)
            if step % config.log_every == 0 or step == end:
                skipped += _report(window, step, writer, progress, describe, watch)
                window = []
                _check_skipped(skipped, skipped_before, step, config.max_skipped, describe)
            if checkpoints and step % config.checkpoint_every == 0:
                _save(checkpoints, step, state, batches, extra)
                saved = step
            stopping = cluster.any_after(step, stopped.is_set())
        if window:
            _report(window, step, writer, progress, describe, watch)
        if checkpoints and saved != step and step > first:
            _save(checkpoints, step, state, batches, extra)
        if checkpoints:
            checkpoints.wait()
        writer.flush()
        if stopping and step < end:
            raise stopped.error()
    return state


def _report(
    window: list[Metrics],
    step: int,
    writer: MetricWriter,
    progress: Progress,
    describe: Callable[[int], str],
    watch: Stopwatch | None,
) -> list[int]:
    # All that the host did not wait for before.
    with _part(watch, "device_wait"):
        host = jax.device_get(window)
    finite = [metrics for metrics in host if not metrics.get("skipped", 0)]
    names = [name for name in host[0] if name != "skipped"]
    # Means are over the steps that were taken: one NaN would hide the rest of the window.
    means = {name: float(np.mean([m[name] for m in finite])) for name in names if finite}
    skipped = [step - len(host) + i for i, m in enumerate(host) if m.get("skipped", 0)]
    if "skipped" in host[0]:
        means["skipped"] = float(len(skipped))
    writer.write_scalars(step, means)
    if watch:
        writer.write_scalars(step, watch.figures(step, len(window)))
    for index in skipped:
        writer.write_texts(step, {"skipped_step": f"step {index} not finite: {describe(index)}"})
    shown = {name.rpartition("/")[2]: f"{value:.4g}" for name, value in means.items()}
    progress.update(step, **{n: shown[n] for n in ("loss", "accuracy") if n in shown})
    return skipped


def _part(watch: Stopwatch | None, name: str) -> contextlib.AbstractContextManager[None]:
    return watch.part(name) if watch else contextlib.nullcontext()


def _check_skipped(
    here: list[int], before: int, step: int, limit: float, describe: Callable[[int], str]
) -> None:
    count = before + len(here)
    if count > limit * max(step, GRACE_STEPS):
        latest = "; ".join(describe(index) for index in here[-5:])
        raise Unfit(
            f"Training was aborted at step {step}: {count} steps were not finite, more than "
            f"{limit:.0%} (the last ones: {latest}); lower the learning rate or "
            "the clip norm of the optimizer."
        )


def _save(
    checkpoints: Checkpoints,
    step: int,
    state: TrainState,
    batches: Any,
    extra: Mapping[str, Any] | None,
) -> None:
    position = None if batches is None else batches.get_state()
    checkpoints.save(step, state, position, extra)
