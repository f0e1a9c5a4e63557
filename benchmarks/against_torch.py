"""Times the bilevel step against the same step in eager PyTorch; see `bilevel.py --against-torch`.

Both run in one process, in turn on the same work, again and again; a figure is the ratio of the
medians, PyTorch's time over ours. Of PyTorch's two memory layouts the faster one counts. Before
anything is timed, losses and gradients of both are compared: an opponent that computes something
else would be no opponent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import torch
import torch_step
from architectures import FRESH, Figures
from torch.nn import functional

from medinit_jax.arch.program import Program
from medinit_jax.arch.tape import Tape
from medinit_jax.core import optim, state
from medinit_jax.hyper.bilevel import MetaBatch, gradient_by_tape, meta_batch
from medinit_jax.hyper.hypernetwork import init_theta
from medinit_jax.hyper.initializer import graph_of
from medinit_jax.hyper.setup import Bilevel
from medinit_jax.models.initial import initial_parameters

# Without these PyTorch gives memory back after every step and waits for it in the next one.
MEMORY = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "20000000000",
}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
Run = Callable[[], Any]


def compare(bilevel: Bilevel, large: Bilevel, steps: int, repeats: int) -> Figures:
    """Times all that is compared.

    Args:
        bilevel: Ours, at 32 px.
        large: Ours, at 64 px.
        steps: Meta-batches of one network, and networks alone; a quarter as many meta-batches of
            eight networks.
        repeats: Times each of them is timed.

    Returns:
        The ratios, and milliseconds of both sides.
    """
    figures: Figures = {}
    for name, size, count in (("mb1", 1, steps), ("mb8", 8, max(1, steps // 4))):
        batches = [_batch(bilevel, FRESH + i * size, size) for i in range(count)]
        works = [_step(bilevel, batch) for batch in batches]
        figures |= _figures(f"step_{name}", works, repeats)
    for name, side in (("32px", bilevel), ("64px", large)):
        programs = [_program(side, FRESH + i) for i in range(steps)]
        figures |= _figures(f"nets_{name}", [_network(side, p) for p in programs], repeats)
    return {**figures, "torch": torch.__version__, "torch_threads": torch.get_num_threads()}


def _figures(name: str, works: Sequence[dict[str, Run]], repeats: int) -> Figures:
    """Runs works in turn; each is {side: function}, the sides being ours and PyTorch's layouts."""
    totals = dict.fromkeys(works[0], 0.0)
    for work in works:
        times: dict[str, list[float]] = {side: [] for side in work}
        for repeat in range(1 + repeats):
            for side, run in work.items():
                started = time.perf_counter()
                run()
                if repeat:
                    times[side].append(time.perf_counter() - started)
        for side, values in times.items():
            totals[side] += float(np.median(values))
    milliseconds = {side: 1e3 * total / len(works) for side, total in totals.items()}
    theirs = min(milliseconds[layout] for layout in LAYOUTS)
    return {f"ratio_{name}": theirs / milliseconds["ours"], f"{name}_ms": milliseconds}


def _program(bilevel: Bilevel, index: int) -> Program:
    return bilevel.space.program("train", index, bilevel.module.num_classes)


def _batch(bilevel: Bilevel, first: int, size: int) -> MetaBatch:
    programs = [_program(bilevel, first + i) for i in range(size)]
    graphs = [graph_of(bilevel.module, program) for program in programs]
    return meta_batch(programs, graphs, bilevel.module)


def _views(bilevel: Bilevel) -> tuple[np.ndarray, np.ndarray]:
    config = bilevel.config
    shape = (config.train.batch_size, *[config.data.size] * 2, 3)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    return images, np.arange(shape[0], dtype=np.int32) % bilevel.module.num_classes


def _torch_views(bilevel: Bilevel, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    images, targets = _views(bilevel)
    turned = torch.from_numpy(images).permute(0, 3, 1, 2)
    return turned.contiguous(memory_format=LAYOUTS[layout]), torch.from_numpy(targets).long()


def _step(bilevel: Bilevel, batch: MetaBatch) -> dict[str, Run]:
    """Returns one training step of both sides: predict, forward, backward, update."""
    theta = init_theta(bilevel.module, jax.random.key(0))["params"]
    options = ml_collections.ConfigDict({**bilevel.config.optim, "total_steps": 1000})
    optimizer, _ = optim.create(options)
    update = jax.jit(lambda s, g, loss: state.apply_gradients(s, g, optimizer, loss)[0])
    images, targets = map(jnp.asarray, _views(bilevel))
    start = state.create(theta, optimizer)

    def gradient():
        return gradient_by_tape(
            bilevel.writer, bilevel.tape, bilevel.parallel, theta, batch, images, targets
        )

    def ours():
        losses, _, found = gradient()
        return jax.block_until_ready(update(start, found, jnp.stack(losses).mean()))

    work = torch_step.plan(batch, bilevel.module)

    def opponent(layout: str) -> tuple[torch_step.Hypernetwork, Callable[[], torch.Tensor], Run]:
        network = torch_step.Hypernetwork(bilevel.module, theta)
        adam = torch.optim.AdamW(
            network.leaves, options.learning_rate, weight_decay=options.weight_decay
        )
        views, wanted = _torch_views(bilevel, layout)

        def pull() -> torch.Tensor:
            adam.zero_grad(set_to_none=True)
            losses = [
                functional.cross_entropy(torch_step.run(program, given, views), wanted)
                for program, given in zip(
                    batch.programs, network.predict(batch.programs, work), strict=True
                )
            ]
            torch.stack(losses).mean().backward()
            return torch.stack(losses).detach()

        def run() -> None:
            pull()
            torch.nn.utils.clip_grad_norm_(network.leaves, options.clip)
            adam.step()

        return network, pull, run

    network, pull, _ = opponent("nchw")
    losses, _, found = gradient()
    _check(np.stack(losses), pull().numpy(), found, network.gradient())
    return {"ours": ours, **{layout: opponent(layout)[2] for layout in LAYOUTS}}


def _network(bilevel: Bilevel, program: Program) -> dict[str, Run]:
    """Returns forward and backward of one network with given parameters, of both sides."""
    parameters = initial_parameters(program, jax.random.key(0))
    images, targets = map(jnp.asarray, _views(bilevel))
    # The one of training slices and tiles what it is given; this one takes parameters.
    tape = _tapes.setdefault(
        bilevel.config.data.size,
        Tape(bilevel.parallel, bilevel.config.train.bn_group, bilevel.objective.loss),
    )

    def gradient():
        return tape.loss_and_gradient(program, parameters, images, targets)

    def opponent(layout: str) -> tuple[dict, Callable[[], torch.Tensor]]:
        given = {
            name: {leaf: _torch_leaf(value, layout) for leaf, value in leaves.items()}
            for name, leaves in parameters.items()
        }
        views, wanted = _torch_views(bilevel, layout)

        def pull() -> torch.Tensor:
            for leaf in jax.tree.leaves(given):
                leaf.grad = None
            loss = functional.cross_entropy(torch_step.run(program, given, views), wanted)
            loss.backward()
            return loss.detach()

        return given, pull

    given, pull = opponent("nchw")
    loss, _, found = gradient()
    theirs = pull().numpy()
    _check(np.asarray(loss), theirs, found, jax.tree.map(lambda leaf: _flax_leaf(leaf.grad), given))
    return {
        "ours": lambda: jax.block_until_ready(gradient()),
        **{layout: opponent(layout)[1] for layout in LAYOUTS},
    }


_tapes: dict[int, Tape] = {}


def _torch_leaf(value: Any, layout: str) -> torch.Tensor:
    leaf = torch.from_numpy(np.array(value))
    if leaf.ndim == 4:
        axes = (0, 3, 1, 2) if leaf.shape[0] == 1 and leaf.shape[1] > 7 else (3, 2, 0, 1)
        leaf = leaf.permute(*axes).contiguous(memory_format=LAYOUTS[layout])
    return (leaf.T.contiguous() if leaf.ndim == 2 else leaf).requires_grad_()


def _flax_leaf(leaf: torch.Tensor) -> np.ndarray:
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(leaf.ndim, tuple(range(leaf.ndim)))
    return leaf.permute(*axes).numpy()


def _check(ours: np.ndarray, theirs: np.ndarray, gradient: Any, other: Any) -> None:
    """Ends the benchmark unless both sides computed the same, as far as float32 can tell."""
    if np.abs(ours - theirs).max() > 2e-3 * max(1.0, np.abs(ours).max()):
        raise SystemExit(f"The losses differ: {ours} here, {theirs} in PyTorch.")
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True)
    flat = [(np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)) for a, b in pairs]
    ours, theirs = (np.concatenate(parts) for parts in zip(*flat, strict=True))
    cosine = ours @ theirs / max(np.linalg.norm(ours) * np.linalg.norm(theirs), 1e-30)
    if cosine < 0.99:
        raise SystemExit(f"The gradients differ: their cosine is {cosine:.4f}.")


def fair_environment() -> dict[str, str]:
    """Returns the environment to start a process in where PyTorch is timed fairly."""
    return {**os.environ, **MEMORY}
