"""The bilevel run: trains the hypernetwork over the architectures of a design space.

One step takes one batch of images and m fresh architectures: predict their parameters, run them on
the views of the pretext, average their losses, and follow the gradient through everything into the
hypernetwork.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax.api import load
from medinit_jax.arch.program import Program
from medinit_jax.core import cluster, loop, optim, state
from medinit_jax.core.checkpoint import open_checkpoints
from medinit_jax.core.compiler import jit
from medinit_jax.core.errors import UsageError
from medinit_jax.core.log import MetricWriter, create_writer
from medinit_jax.core.parallel import Parallel
from medinit_jax.core.progress import Progress
from medinit_jax.core.provenance import code_version
from medinit_jax.core.timing import Stopwatch
from medinit_jax.core.workdir import write_json
from medinit_jax.data.catalog import batch_options
from medinit_jax.data.pipeline import Batches, BatchSource
from medinit_jax.data.sources import Source
from medinit_jax.hyper.alarms import Alarms
from medinit_jax.hyper.bilevel import MetaBatch, gradient_by_tape, loss_whole
from medinit_jax.hyper.hypernetwork import HyperInitializer, check_alike, init_theta
from medinit_jax.hyper.initializer import graph_of
from medinit_jax.hyper.objective import Objective, joined, known_facts, split
from medinit_jax.hyper.pretexts.task import Facts
from medinit_jax.hyper.publish import publish
from medinit_jax.hyper.rotation import held_out_views, pretext_scores, rotation_accuracy
from medinit_jax.hyper.selection import open_selection
from medinit_jax.hyper.setup import Bilevel, make_bilevel, open_sources, warm_up
from medinit_jax.hyper.stream import ArchitectureStream

# Of the loss at chance: 1.30 of the ln 4 nats of rotation.
TAKEOFF = 1.30 / math.log(4)
# Names the draw of learned heads among the keys of steps.
_HEADS = 1 << 31


def make_step(
    bilevel: Bilevel,
    optimizer,
    stream: ArchitectureStream,
    key: jax.Array,
    facts: Callable[[Mapping[str, np.ndarray]], Facts] | None = None,
    sharded: bool = False,
):
    """Returns the training step: (state, step, batch of images) -> (state, metrics).

    Args:
        bilevel: What it runs on.
        optimizer: From `core.optim.create`.
        stream: Architectures by step.
        key: Random key of the run.
        facts: Batch of images -> what pretexts have to know of them, see `known_facts`.
        sharded: Whether the optimizer's state is divided among the devices.
    """
    world = bilevel.world
    divide = state.divider(world, sharded)
    update = jax.jit(
        lambda s, gradient, loss: state.apply_gradients(s, gradient, optimizer, loss, divide),
        donate_argnums=0,
        out_shardings=(state.places(world, sharded), world.everywhere),
    )
    mean = jax.jit(lambda values: jax.tree.map(lambda *leaves: jnp.stack(leaves).mean(), *values))
    gradient_of = _gradients(bilevel)

    facts_of = facts or (lambda batch: {})
    apart = bilevel.share[1] > 1

    def step_fn(current: state.TrainState, step: int, batch: Mapping[str, np.ndarray]):
        drawn = jax.random.fold_in(key, step)
        begun = bilevel.objective.begun(step, len(batch["image"]))
        known = {**facts_of(batch), **begun}
        views, targets = bilevel.views(batch["image"], drawn, known)
        params = world.local(current.params) if apart else current.params
        losses, accuracies, gradient = gradient_of(params, stream[step], views, targets)
        found = mean(losses), mean(accuracies), gradient
        if apart:
            # Up to here processes run what their own networks ask for, and wait for no other.
            found = world.mean_over_processes(found)
        loss, figures, gradient = found
        current, metrics = update(current, gradient, loss)
        return current, {
            "train/loss": loss,
            **_figures(bilevel.objective, figures),
            "train/grad_norm": metrics["grad_norm"],
            "skipped": metrics["skipped"],
        }

    return step_fn


def _figures(objective: Objective, found: Any) -> dict[str, Any]:
    """Names what is logged of the pretexts; "train/accuracy" is the score of the first."""
    if objective.plain:
        return {"train/accuracy": found}
    named = {
        f"train/{figure}/{name}": value
        for name, figures in found.items()
        for figure, value in figures.items()
    }
    return {"train/accuracy": found[objective.parts[0].name]["score"], **named}


def _gradients(bilevel: Bilevel):
    """Returns the function that computes (losses, accuracies, gradient) as `execution` says."""
    execution, objective = bilevel.config.train.execution, bilevel.objective
    if execution == "tape":
        by_tape = functools.partial(
            gradient_by_tape, bilevel.writer, bilevel.tape, bilevel.parallel
        )
        if objective.plain:
            return by_tape

        def of_both(params, batch: MetaBatch, views, targets):
            theta, heads = split(params)
            losses, found, (gradient, of_heads) = by_tape(theta, batch, views, targets, heads)
            return losses, found, joined(gradient, of_heads)

        return of_both
    if execution != "whole":
        raise UsageError(f"config.train.execution={execution!r}; set it to tape or whole.")
    if bilevel.world.process[1] > 1:
        raise UsageError(
            "config.train.execution='whole' runs in one process; set it to tape for several."
        )
    if bilevel.config.train.penalty:
        raise UsageError(
            "config.train.execution='whole' knows no penalty; set config.train.penalty=0."
        )

    def whole(params, batch: MetaBatch, views, targets):
        if bilevel.parallel.size > 1:
            views, targets = objective.gathered(views, targets)
        graphs = [graph_of(bilevel.module, program) for program in batch.programs]

        @jit
        def run(params, views, targets):
            def loss(params):
                theta, heads = split(params)
                return loss_whole(
                    bilevel.module,
                    theta,
                    batch.programs,
                    graphs,
                    views,
                    targets,
                    objective.loss,
                    bilevel.config.train.bn_group,
                    None if objective.plain else objective.read,
                    heads,
                )

            return jax.value_and_grad(loss, has_aux=True)(params)

        (_, (losses, accuracies)), gradient = run(params, views, targets)
        return losses, accuracies, gradient

    return whole


def train(
    config: ml_collections.ConfigDict,
    workdir: Path,
    console: Console,
    parallel: Parallel | None = None,
    stop_after: int | None = None,
    bilevel: Bilevel | None = None,
) -> state.TrainState:
    """Trains, or goes on from the last checkpoint, and writes the initializer.

    Args:
        config: The experiment, see `configs/hyper.py`.
        workdir: Where checkpoints, `metrics.jsonl`, `train.json` and `initializer/` go.
        console: Where progress is shown.
        parallel: Devices; those of all processes by default.
        stop_after: Stops after so many steps of this call, saved and resumable.
        bilevel: What it runs on, to share compiled blocks; made from the config by default.

    Returns:
        The last state.

    Raises:
        UsageError: Bad images or config, a damaged checkpoint, too many non-finite steps.
    """
    course = loop.make_config(config.train.steps, config.train)
    bilevel = bilevel or make_bilevel(config, parallel or Parallel())
    sources = open_sources(config, console)
    options = batch_options(
        config.data, config.seed, bilevel.objective.images(config.train.batch_size)
    )
    rows = BatchSource(sources["train"], options, bilevel.parallel.process)
    batches = Batches(rows, config.data.workers)
    optimizer, _ = optim.create(
        ml_collections.ConfigDict({**config.optim, "total_steps": config.train.steps})
    )
    key = jax.random.key(config.seed)
    facts = known_facts(bilevel.objective, sources["train"])
    heads = bilevel.objective.heads(jax.random.fold_in(key, _HEADS))
    first = joined(_first_theta(config, bilevel.module, key), heads)
    current = state.create(first, optimizer)
    checkpoints = open_checkpoints(workdir, config.train)
    world, sharded = bilevel.world, config.optim.sharded
    current = state.place(current, world, sharded)
    current = state.place(loop.resume(checkpoints, current, batches), world, sharded)
    started_at = int(current.step)
    programs = _validation_networks(bilevel)
    selection = open_selection(bilevel, sources, programs, workdir, started_at)
    stream = ArchitectureStream(
        bilevel.space,
        bilevel.module,
        config.train.meta_batch,
        config.seed,
        config.train.first_architectures,
        config.train.double_every,
        share=bilevel.share,
    )
    writer = create_writer(workdir, console, started_at)
    try:
        if started_at < config.train.steps and config.train.execution == "tape":
            writer.write_scalars(started_at, {"train/compile_s": warm_up(bilevel, console)})
        started = time.monotonic()
        step_fn = _with_validation(
            make_step(bilevel, optimizer, stream, key, facts, sharded),
            _validation(bilevel, sources["val"], programs),
            selection,
            Alarms(bilevel.objective, config.train.log_every),
            config.train.validate_every,
            writer,
            config.train.steps,
        )
        per_step = {"images": options.batch, "architectures": config.train.meta_batch}
        watch = Stopwatch(per_step, config.profile, workdir / "profile", _architectures(stream))
        with watch, Progress("train", config.train.steps, console, start=started_at) as bar:
            current = loop.run(
                step_fn,
                current,
                course,
                writer=writer,
                progress=bar,
                batches=batches,
                checkpoints=checkpoints,
                extra={
                    "config": json.loads(config.to_json_best_effort()),
                    "code_version": code_version(),
                },
                describe=stream.describe,
                stop_after=stop_after,
                watch=watch,
            )
        seconds = time.monotonic() - started
    finally:
        writer.close()
        batches.close()
        stream.close()
        checkpoints.close()
    if int(current.step) == config.train.steps and started_at < config.train.steps:
        images = sources["train"].describe()
        best = selection[1] if selection else None
        cluster.once(
            lambda: _finish(
                config, workdir, current, bilevel, seconds, stream, console, images, best
            )
        )
    return current


def _architectures(stream: ArchitectureStream):
    """Returns a function step -> how many different architectures were seen until then."""
    seen: set[int] = set()
    done = 0

    def count(step: int) -> dict[str, float]:
        nonlocal done
        for earlier in range(done, step):
            seen.update(stream.indices(earlier))
        done = step
        return {"architectures_seen": float(len(seen))}

    return count


def _first_theta(config: ml_collections.ConfigDict, module: HyperInitializer, key: jax.Array):
    """Draws the hypernetwork's parameters, or takes those of `config.init_from`."""
    drawn = init_theta(module, key)["params"]
    if not config.init_from:
        return drawn
    initializer = load(config.init_from)
    check_alike(initializer.module, module, f"config.init_from={config.init_from}")
    found = initializer.theta
    shapes, wanted = (jax.tree.map(jnp.shape, tree) for tree in (found, drawn))
    if shapes != wanted:
        raise UsageError(
            f"The initializer config.init_from={config.init_from} has parameters of other shapes "
            "than config.hyper asks for; use the config.hyper it was trained with."
        )
    return jax.tree.map(jnp.asarray, found)


def _validation_networks(bilevel: Bilevel) -> dict[str, Program]:
    return {
        f"val:{i}": bilevel.space.program("val", i, bilevel.module.num_classes)
        for i in range(bilevel.config.train.validation_networks)
    }


def _validation(bilevel: Bilevel, source: Source, programs: Mapping[str, Program]):
    """Returns a function params -> figures on one batch, means over networks.

    Processes that have networks of their own in training all judge the same ones.
    """
    scores: Callable[[Any], dict[str, Any]]
    if bilevel.objective.plain:
        views = held_out_views(bilevel, source, 1)
        judge = functools.partial(rotation_accuracy, programs=programs, views=views)
        scores = lambda params: {"val/accuracy": judge(bilevel, params)["mean"]}  # noqa: E731
    else:
        scores = pretext_scores(bilevel, source, programs)
    if bilevel.share[1] == 1:
        return scores
    return lambda params: scores(bilevel.world.local(params))


def _with_validation(
    step_fn, figures, selection, alarms: Alarms, every: int, writer: MetricWriter, last: int
):
    """Adds alarms at every step, and a validation every `every` steps and after the last one."""

    def step(current, number, batch):
        current, metrics = step_fn(current, number, batch)
        alarms(number + 1, metrics)
        if every and ((number + 1) % every == 0 or number + 1 == last):
            found = figures(current.params)
            if selection:
                found["val/probe"] = selection[0](number + 1, current.params)
            writer.write_scalars(number + 1, found)
        return current, metrics

    return step


def _finish(config, workdir, current, bilevel, seconds, stream, console, images, best) -> None:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    chance = bilevel.objective.chance
    # A figure is the mean of some steps; pretexts that began among them do not count yet.
    every = config.train.log_every
    below = [s for s, x in losses if x is not None and x < TAKEOFF * chance(max(0, s - every))]
    takeoff = below[0] if below else None
    steps = config.train.steps
    seen = {i for step in range(steps) for i in stream.indices(step)}
    summary = {
        "steps": steps,
        "seed": config.seed,
        "seconds": round(seconds, 1),
        "architectures": len(seen),
        "skipped_steps": int(current.skipped),
        "takeoff_step": takeoff,
        "final_loss": losses[-1][1] if losses else None,
        "compiled_signatures": bilevel.tape.built,
        "curve_file": "metrics.jsonl",
    }
    theta, _ = split(current.params)
    if best:
        theta = best.theta()
        summary |= {"published_step": best.step, "probe": best.score}
        console.print(f"Step {best.step} transfers best (probe {best.score:.3f}); it is published.")
    write_json(workdir / "train.json", summary)
    publish(config, workdir, bilevel.module, jax.device_get(theta), images)
    if takeoff is None:
        what = "ln 4" if bilevel.objective.plain else f"{chance(steps):.3f}"
        console.print(
            f"WARNING: the loss never left chance ({what}); the initializer is no better than an "
            "untrained one. Train longer, lower the difficulty, or start from another checkpoint."
        )
