"""Training steps of both routes as compiled programs, read instead of run.

Of each are counted: operations and bytes of one device, and bytes between devices.
"""

from __future__ import annotations

import functools
import math
import re
import runpy
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from machines import Work
from ml_collections import ConfigDict

from medinit_jax.arch.program import Program
from medinit_jax.arch.tape import signatures
from medinit_jax.core.parallel import AXIS, Parallel
from medinit_jax.data.builders.image_files import png
from medinit_jax.data.decode import decode
from medinit_jax.data.phantoms import PHANTOMS
from medinit_jax.data.views import RECIPES, make_views
from medinit_jax.finetune.network import make_network
from medinit_jax.hyper.bilevel import MetaBatch, zero_example
from medinit_jax.hyper.hypernetwork import init_theta
from medinit_jax.hyper.setup import Bilevel, make_bilevel
from medinit_jax.hyper.stream import ArchitectureStream
from medinit_jax.models.features import encoder_params
from medinit_jax.models.initial import initial_parameters
from medinit_jax.swcl.settings import make_method
from medinit_jax.swcl.step import Recipe, compiled, first_state

ROOT = Path(__file__).resolve().parents[1]
Figures = dict[str, Any]
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
# Images that the figures of the contrastive loss are computed of, all of them on every device.
FIGURED = 512


def experiment(file: str, variant: str) -> ConfigDict:
    """Returns a configuration of `configs/`."""
    return runpy.run_path(str(ROOT / "configs" / file))["get_config"](variant)


def work(program: Any) -> Work:
    """Returns what a compiled program does on each device."""
    counted = program.cost_analysis()
    return Work(counted.get("flops", 0.0), counted.get("bytes accessed", 0.0))


def crossing(program: Any, devices: int) -> int:
    """Returns the bytes that a compiled program sends between devices.

    Of a gathering and of a scattering sum the size of the whole counts, which is what a device
    sends and receives but for its own part; of a plain sum its size.
    """
    if devices == 1:
        return 0
    found = 0
    pattern = rf"= (.+?) ({KINDS})(?:-start)?\("
    for kinds, name in re.findall(pattern, program.as_text() or ""):
        size = sum(
            math.prod(int(n) for n in shape.split(",") if n) * int(bits) // 8
            for bits, shape in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", kinds)
        )
        found += size * (devices if name == "reduce-scatter" else 1)
    return found


def size_of(tree: Any) -> int:
    """Returns the bytes of a tree of arrays."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def placed(tree: Any, parallel: Parallel, *axes: str) -> Any:
    """Returns the shapes of a tree whose arrays lie everywhere, or are split over the devices."""
    place = NamedSharding(parallel.mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def placed_in_parts(tree: Any, parallel: Parallel) -> Any:
    """Returns the shapes of a tree of which each device has a part, see `Parallel.divide`."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.part(x)), tree
    )


def part_bytes(x: jax.ShapeDtypeStruct) -> int:
    """Returns the bytes that one device holds of an array."""
    place: Any = x.sharding
    return math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize


def pretraining(config: ConfigDict, parallel: Parallel, images: int) -> Figures:
    """Counts a step of route 2, with so many images on every device.

    The encoder has no batch statistics, which would be gathered too.
    """
    method, size = make_method(config), config.data.size
    network = make_network(config.model, size, 2, "classification", config.train.dtype)
    key = jax.random.key(0)
    params = jax.eval_shape(functools.partial(initial_parameters, network.program), key)
    encoder = encoder_params(network.program, params)
    channels = network.program.parameter_shapes()[network.program.head]["kernel"][-2]
    optimizer = {**config.optim, "total_steps": 2, "warmup_steps": 1}
    del optimizer["warmup_epochs"]
    recipe = Recipe(network, method, channels, tuple(sorted(optimizer.items())), 2)
    state = jax.eval_shape(functools.partial(first_state, recipe), encoder, {}, key)
    batch = images * parallel.size
    shown = jax.ShapeDtypeStruct((batch, method.views, size, size, 3), jnp.float32)
    labels = {"columns": jax.ShapeDtypeStruct((batch, 3), jnp.int32)}
    given = placed(((shown,), labels), parallel, AXIS)
    held = placed(state, parallel)
    gathered = 0
    if config.optim.sharded and parallel.size > 1:
        moments = placed_in_parts(state.train.opt_state, parallel)
        held = held.replace(train=held.train.replace(opt_state=moments))
        # What a device has updated of the parameters the others need whole.
        gathered = sum(
            size_of(x) for x in jax.tree.leaves(state.train.params) if any(parallel.part(x).spec)
        )
    program = compiled(recipe, parallel).lower(held, *given).compile()
    gradient, vector = size_of(state.train.params), method.views * method.width * 4
    # Vectors out and their gradient back, labels, numerator and number of anchors; then, for the
    # figures, vectors and labels of every view, and two vectors.
    loss = batch * (2 * vector + 12) + 8
    figured = min(batch, FIGURED) * (vector + method.views * 12) + 2 * method.width * 4
    return {
        "views": images * method.views,
        **work(program)._asdict(),
        "crossing": crossing(program, parallel.size),
        "predicted": gradient + gathered + loss + figured if parallel.size > 1 else 0,
        "gradient": gradient,
        "moments": sum(part_bytes(x) for x in jax.tree.leaves(held.train.opt_state)),
        "memory": program.memory_analysis().temp_size_in_bytes,
    }


def launches(batch: MetaBatch) -> int:
    """Returns how many compiled functions the host starts in a step of route 1."""
    count = 6 + 4 * len(batch.groups)
    for program in batch.programs:
        uses = Counter(i for call in program.calls for i in call.inputs if i)
        backward = sum(any(s.kind != "add" for s in call.block.steps) for call in program.calls)
        # Loss, copy to the devices, and the sum over them.
        count += len(program.calls) + backward + sum(n - 1 for n in uses.values()) + 4
    return count


def blocks(bilevel: Bilevel, programs: tuple[Program, ...], most: int = 0) -> Figures:
    """Counts the networks' share of a step of route 1: (how often, operations, bytes) of functions.

    Args:
        bilevel: What training runs on.
        programs: The networks.
        most: Only so many of the most frequent blocks; 0 = all.
    """
    parallel = bilevel.parallel
    images = bilevel.config.train.batch_size // parallel.size
    lead, axes = ((parallel.size,), (AXIS,)) if parallel.size > 1 else ((), ())

    def given(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(lead + shape, bilevel.tape.dtype)

    calls = Counter(s for program in programs for s in signatures(program))
    functions, between = [], 0
    for signature, count in calls.most_common(most or None):
        raw = zero_example(bilevel.module, signature)
        raw = jax.tree.map(lambda x: jax.ShapeDtypeStruct(lead + x.shape, x.dtype), raw)
        inputs = tuple(given((images, *shape)) for shape in signature.shapes)
        forward, backward = bilevel.tape.functions(signature)
        lowered = forward.lower(*placed((raw, inputs), parallel, *axes))
        output, pullback = placed(lowered.out_info, parallel, *axes)
        parts = [lowered]
        # Their gradient is handed on as it is.
        if any(step.kind != "add" for step in signature.block.steps):
            parts.append(backward.lower(pullback, output))
        for program in [part.compile() for part in parts]:
            functions.append((count, *work(program)))
            between += crossing(program, parallel.size)
    return {"functions": functions, "crossing": between}


def hypernetwork(bilevel: Bilevel, batch: MetaBatch) -> Figures:
    """Counts the hypernetwork's share of a step of route 1, which every device does by itself.

    On one device, as one program; on several, what their sum of the networks' gradients sends, and
    what a mean of the hypernetwork's gradient does.
    """
    parallel = bilevel.parallel
    key = jax.random.key(0)
    theta = jax.eval_shape(lambda key: init_theta(bilevel.module, key)["params"], key)
    raw = jax.eval_shape(lambda theta: bilevel.writer.write(theta, batch)[0], theta)

    def whole(theta, gradients):
        raw, pull = bilevel.writer.write(theta, batch)
        return raw, pull(gradients)

    if parallel.size == 1:
        program = jax.jit(whole).lower(*placed((theta, raw), parallel)).compile()
        sizes = {"raw_bytes": size_of(raw), "theta_bytes": size_of(theta)}
        return {**work(program)._asdict(), **sizes}

    def between(reduction, tree):
        lead = (parallel.size,)
        parts = jax.tree.map(lambda x: jax.ShapeDtypeStruct(lead + x.shape, x.dtype), tree)
        program = jax.jit(reduction).lower(placed(parts, parallel, AXIS)).compile()
        return crossing(program, parallel.size)

    return {
        "crossing": sum(between(parallel.total, gradients) for gradients in raw),
        "predicted": size_of(raw),
        # What processes with architectures of their own send once, in the place of most of that.
        "spread_crossing": between(parallel.mean, theta),
        "spread_predicted": size_of(theta),
    }


def bilevel_steps(config: ConfigDict, parallel: Parallel, steps: int, sample: int) -> Figures:
    """Counts steps of route 1, with one group of batch statistics on every device.

    Args:
        config: The experiment; its batch is set.
        parallel: Devices; on more than one, only a sample is compiled.
        steps: How many.
        sample: How many of the most frequent blocks of the first step.
    """
    with config.unlocked():
        config.train.batch_size = config.train.bn_group * parallel.size
    bilevel = make_bilevel(config, parallel)
    stream = ArchitectureStream(bilevel.space, bilevel.module, config.train.meta_batch, config.seed)
    batches = [stream.prepare(number) for number in range(steps)]
    stream.close()
    networks = tuple(program for batch in batches for program in batch.programs)
    figures: Figures = {
        "sample": blocks(bilevel, batches[0].programs, sample),
        "hypernetwork": hypernetwork(bilevel, batches[0]),
    }
    if parallel.size == 1:
        figures |= {
            "views": config.train.bn_group,
            "steps": steps,
            "functions": blocks(bilevel, networks)["functions"],
            "calls": sum(len(network.calls) for network in networks) / steps,
            "launches": sum(launches(batch) for batch in batches) / steps,
        }
    return figures


def feeding(images: int = 40) -> Figures:
    """Measures, on one core, what a patch of 224 pixels costs: decoded, and two views of it."""
    phantom, rng = PHANTOMS["fundus"], np.random.default_rng(0)
    shown = phantom.render(0, phantom.eyes[0], 448)
    stored = [png(np.asarray(shown["image"])[y : y + 224, 112:336], fast=True) for y in (0, 112)]
    started = time.process_time()
    for number in range(images):
        make_views(decode(stored[number % 2]), RECIPES["contrastive"], rng, 224)
    return {
        "patch_bytes": sum(map(len, stored)) / len(stored),
        "patches_per_core_s": images / (time.process_time() - started),
    }
