"""What training and evaluation share: hypernetwork, tape, pretext and images of an experiment."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from rich.console import Console

from medinit_jax.arch.space import Space, get_space
from medinit_jax.arch.tape import Tape
from medinit_jax.arch.vocabulary import NODE_TYPES
from medinit_jax.core import cluster, compilation_cache, compiler
from medinit_jax.core.errors import UsageError
from medinit_jax.core.ledger import Ledger
from medinit_jax.core.parallel import Parallel
from medinit_jax.core.progress import Progress
from medinit_jax.core.provenance import source_digest
from medinit_jax.data.catalog import open_splits
from medinit_jax.data.sources import Source
from medinit_jax.hyper.bilevel import Writer, prepare_leaves, zero_example
from medinit_jax.hyper.hypernetwork import HyperInitializer, from_config
from medinit_jax.hyper.objective import Objective, make_objective
from medinit_jax.hyper.stream import frequent_signatures

# What the processes of a run share among themselves: the images of a step, or its architectures.
SPREADS = ("images", "architectures")
# In the compilation cache: which warm-ups it holds whole.
WARMED_UP = "warmed_up.json"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


class Bilevel(NamedTuple):
    """What a bilevel step is made of.

    Attributes:
        config: The experiment.
        world: Devices of all processes, which hold what is trained.
        parallel: Devices that run the networks: all, or those of this process where processes have
            networks of their own.
        module: The hypernetwork.
        space: The design space.
        objective: The self-supervised tasks.
        writer: Compiled pieces of the hypernetwork.
        tape: Compiled blocks of the networks.
        views: (images (B, S, S, C), key, facts) -> (views, targets), both split over `parallel`;
            each process that owns some of its devices gives its own rows of images and facts.
    """

    config: ml_collections.ConfigDict
    world: Parallel
    parallel: Parallel
    module: HyperInitializer
    space: Space
    objective: Objective
    writer: Writer
    tape: Tape
    views: Any

    @property
    def share(self) -> tuple[int, int]:
        """Which share of a step's architectures is this process's, and the number of shares."""
        return (0, 1) if self.parallel is self.world else self.world.process


def make_bilevel(config: ml_collections.ConfigDict, parallel: Parallel) -> Bilevel:
    """Puts together what training and evaluation run on.

    Args:
        config: The experiment, see `configs/hyper.py`.
        parallel: Devices; where they belong to several processes, `config.train.spread` says what
            these share.

    Raises:
        UsageError: A key has a value that means nothing, or the batch cannot be divided.
    """
    world, parallel = parallel, _devices_of_networks(config, parallel)
    parallel.check_batch(config.train.batch_size, config.train.bn_group)
    objective = make_objective(config)
    _check_processes(config, parallel, objective)
    if config.train.dtype not in DTYPES:
        raise UsageError(f"config.train.dtype={config.train.dtype!r} is none of {list(DTYPES)}.")
    module = from_config({**config.hyper, "num_classes": objective.num_targets})
    tape = Tape(
        parallel,
        config.train.bn_group,
        objective.loss,
        functools.partial(
            prepare_leaves,
            penalty=config.train.penalty / parallel.size,
            normalize=module.normalize,
            tiling=module.tiling,
        ),
        DTYPES[config.train.dtype],
        None if objective.plain else objective.read,
    )
    space = get_space(config.space, config.data.size)
    if space.families and module.node_types < len(NODE_TYPES):
        raise UsageError(
            f"config.space={config.space!r} holds networks with more node types than "
            f"config.hyper.node_types={module.node_types}; set it to {len(NODE_TYPES)}."
        )
    views = _views(config, parallel, objective)
    writer = Writer(module)
    return Bilevel(config, world, parallel, module, space, objective, writer, tape, views)


def _devices_of_networks(config: ml_collections.ConfigDict, world: Parallel) -> Parallel:
    """Returns the devices that run a network of this process."""
    spread, count = config.train.spread, config.train.meta_batch
    if spread not in SPREADS:
        raise UsageError(
            f"config.train.spread={spread!r} is none of {', '.join(SPREADS)}; images is what one "
            "process does in any case."
        )
    if spread == "images":
        return world
    if count % world.process[1]:
        raise UsageError(
            f"config.train.meta_batch={count} architectures do not divide among "
            f"{world.process[1]} processes; make it a multiple of {world.process[1]}, or set "
            "config.train.spread=images."
        )
    return world.own


def _views(config: Any, parallel: Parallel, objective: Objective):
    """Returns the function that makes the views of a step, see `Bilevel.views`."""

    # Images and facts are one argument: of both each process has its own rows.
    def made(given, key):
        images, facts = given
        return objective.views(images, key, facts, config.train.batch_size, parallel.size)

    split = parallel.split(made)
    return lambda images, key, facts: split((images, facts), key)


def _check_processes(config: Any, parallel: Parallel, objective: Objective) -> None:
    """Raises UsageError if several processes cannot share the images of a step."""
    if parallel.process[1] == 1:
        return
    batch = config.train.batch_size
    images = objective.images(batch)
    if images % parallel.size:
        raise UsageError(
            f"config.train.batch_size={batch} views are made of {images} images, which "
            f"{parallel.size} devices of several processes cannot share; make it a multiple of "
            f"{batch // images * parallel.size}."
        )


def open_sources(config: ml_collections.ConfigDict, console: Console) -> dict[str, Source]:
    """Opens the images of all splits; phantoms that are not there yet are drawn, with a bar.

    Of several processes the first one opens them before the others.

    Raises:
        UsageError: The images of a split are missing, or processes see other ones.
    """
    sources = cluster.first_then_others(lambda: _open(config, console))
    cluster.check_alike(
        "images",
        {
            f"{split} {key}": value
            for split, source in sources.items()
            for key, value in source.describe().items()
            if key != "source"
        },
    )
    return sources


def _open(config: ml_collections.ConfigDict, console: Console) -> dict[str, Source]:
    bars: dict[str, Progress] = {}
    with contextlib.ExitStack() as stack:

        def report(split: str, done: int, total: int) -> None:
            if split not in bars:
                # A terminal shows one bar at a time.
                stack.close()
                bar = Progress(f"draw {split}", total, console, start=done, unit="images")
                bars[split] = stack.enter_context(bar)
            bars[split].update(done)

        return open_splits(config.data, progress=report)


def warm_up(bilevel: Bilevel, console: Console) -> float:
    """Compiles the blocks of the most frequent signatures ahead of training.

    Where the compilation cache already holds them all, nothing is done: each is then loaded when it
    is first met.

    Args:
        bilevel: What training runs on.
        console: Where progress is shown.

    Returns:
        Seconds it took.
    """
    train = bilevel.config.train
    if not train.warm_up_signatures:
        return 0.0
    started = time.monotonic()
    # Of programs that each process has for itself, JAX keeps those of the first one alone.
    kept = cluster.first() or bilevel.share[1] == 1
    cache = compilation_cache.in_use() if kept else None
    done = Ledger(cache / WARMED_UP, source_digest()) if cache else None
    subject = _what_is_compiled(bilevel)
    # Entries may have been removed since.
    if cache and done and subject in done and compilation_cache.entries(cache) >= done[subject]:
        console.print("Compiled operations are in the cache and load when they are met.")
        return time.monotonic() - started
    wanted = frequent_signatures(bilevel.space, bilevel.module.num_classes, train.warm_up_networks)[
        : train.warm_up_signatures
    ]
    with Progress("compile", len(wanted), console, unit="blocks") as bar:
        count = itertools.count(1)
        bilevel.tape.warm_up(
            wanted,
            bilevel.objective.rows(train.batch_size),
            lambda signature: zero_example(bilevel.module, signature),
            threads=_threads(bilevel.parallel),
            report=lambda: bar.update(next(count)),
        )
    if cache and done:
        done.add(subject, compilation_cache.entries(cache))
    return time.monotonic() - started


def _threads(parallel: Parallel) -> int:
    # What several processes run together, all of them run in the same order.
    if parallel.process[1] > 1:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2


def _what_is_compiled(bilevel: Bilevel) -> str:
    """Returns a digest of all that the compiled blocks of a warm-up depend on."""
    train, space = bilevel.config.train, bilevel.space
    parts = (
        (jax.__version__, importlib.metadata.version("jaxlib"), jax.config.read("jax_enable_x64")),
        (os.environ.get("XLA_FLAGS", ""), compiler.options()),
        [device.device_kind for device in bilevel.parallel.devices],
        repr(bilevel.objective),
        (space.name, space.image_size, space.families, space.widen.__qualname__),
        (bilevel.module.max_shape, bilevel.module.num_classes),
        (bilevel.module.normalize, bilevel.module.tiling),
        (train.batch_size, train.bn_group, train.dtype, train.penalty),
        (train.warm_up_networks, train.warm_up_signatures),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()
