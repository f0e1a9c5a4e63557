"""Runs any architecture forward and backward through compiled blocks.

Each architecture is a different program, so compiling whole networks would cost seconds per
training step. The tape compiles one forward and one backward function per signature (block, input
shapes) and strings them together: the set of signatures saturates after some hundred networks.
The forward function returns the block's output and its vector-Jacobian product as a pytree, which
crosses the border of `jit` without tracing again; residuals are freed as the backward pass goes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from medinit_jax.arch.program import Block, Call, Program, Shape, block_layout
from medinit_jax.core.parallel import Parallel
from medinit_jax.models.ops import apply_block, at_least_float32, batch_norm_over_groups, pooled

Leaves = dict[str, jax.Array]
Prepare = Callable[[Leaves, Mapping[str, Shape], bool], Leaves]
Raw = dict[str, Leaves]
# Of the memory mappings that Linux allows a process: beyond, compiled blocks are dropped.
_MAPPINGS = 0.8


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a compiled block depends on.

    Attributes:
        block: The block.
        shapes: Per-image input shapes.
        reads_image: Whether its only input is the image, which needs no gradient.
        head: Local name of the classifier, empty elsewhere.
    """

    block: Block
    shapes: tuple[Shape, ...]
    reads_image: bool = False
    head: str = ""


def signatures(program: Program) -> list[Signature]:
    """Returns the signature of every call of a program."""
    last = len(program.calls) - 1
    head = program.head
    return [
        Signature(
            call.block,
            tuple(program.shapes[i] for i in call.inputs),
            call.inputs == (0,),
            _local(call, head) if index == last else "",
        )
        for index, call in enumerate(program.calls)
    ]


def grayscale(images: jax.Array) -> jax.Array:
    """Returns the mean of the channels: (..., channels) -> (..., 1)."""
    return images.mean(-1, keepdims=True)


def _local(call: Call, module: str) -> str:
    return module[len(call.prefix) + 1 :] if call.prefix else module


def crowded() -> bool:
    """Says whether this process is near the number of memory mappings that Linux allows it.

    A compiled block takes 60 to 90 of 65,530 (`vm.max_map_count`) on CPUs; where the kernel gives
    no more, XLA ends the process.
    """
    try:
        allowed = int(Path("/proc/sys/vm/max_map_count").read_text())
        with Path("/proc/self/maps").open("rb") as lines:
            return sum(1 for _ in lines) > _MAPPINGS * allowed
    except OSError:
        return False


class Tape:
    """Compiled blocks and the passes over them.

    Blocks that were not used for longest are dropped when the process has no room for more; the
    persistent cache brings them back in a fraction of the time that compiling takes.

    Attributes:
        compiled: The blocks that are loaded, the one used last at the end.
        built: How many blocks were compiled or loaded so far.

    Args:
        parallel: Devices.
        bn_group: Images that share batch statistics.
        loss: (logits (batch, classes), targets (batch,)) -> (loss, accuracy), both scalars; with
            `read`: (logits, features, targets, heads) -> (loss, pytree of scalars).
        prepare: Turns what a module is given into its parameters, inside the compiled block:
            (given, {leaf: shape}, is_head) -> {leaf: array}. None: parameters are given.
        dtype: Compute type of activations.
        read: Pooled features (batch, channels) before the head -> features that `loss` takes; None:
            it takes logits alone.
    """

    def __init__(
        self,
        parallel: Parallel,
        bn_group: int,
        loss: Callable[..., tuple[jax.Array, Any]],
        prepare: Prepare | None = None,
        dtype: Any = jnp.float32,
        read: Callable[[jax.Array], jax.Array] | None = None,
    ):
        self.parallel = parallel
        self.bn_group = bn_group
        self.prepare = prepare
        self.dtype = dtype
        self.compiled: dict[Signature, tuple[Callable, Callable]] = {}
        self.built = 0
        self._lock = threading.Lock()
        self._add = parallel.map(jnp.add)
        self._grayscale = parallel.map(grayscale)
        weight = 1 / parallel.size
        self._reads = read is not None

        wide = at_least_float32(dtype)

        def loss_and_gradient(logits, targets):
            def scalar(logits):
                value, accuracy = loss(logits.astype(wide), targets)
                return value * weight, accuracy * weight

            (value, accuracy), gradient = jax.value_and_grad(scalar, has_aux=True)(logits)
            return value, accuracy, (gradient, None, None)

        def loss_of_features(logits, features, targets, heads):
            def scalar(logits, features, heads):
                value, figures = loss(logits.astype(wide), features, targets, heads)
                return value * weight, jax.tree.map(lambda figure: figure * weight, figures)

            (value, figures), gradient = jax.value_and_grad(scalar, (0, 1, 2), has_aux=True)(
                logits, features, heads
            )
            return value, figures, gradient

        def reader(read, token):
            def run(value):
                return jax.vjp(lambda x: read(pooled(x.astype(wide), token)), value)

            return parallel.map(run)

        self._loss = parallel.map(loss_and_gradient if read is None else loss_of_features)
        self._read = {token: reader(read, token) for token in (False, True)} if read else {}
        self._pull_read = parallel.map(lambda pullback, g: pullback(g)[0])

    def functions(self, signature: Signature) -> tuple[Callable, Callable]:
        """Returns the (forward, backward) pair of a signature; compiled on their first call."""
        with self._lock:
            pair = self.compiled.pop(signature, None)
            if pair is None:
                if crowded():
                    for old in list(self.compiled)[: 1 + len(self.compiled) // 4]:
                        del self.compiled[old]
                pair = self._build(signature)
                self.built += 1
            self.compiled[signature] = pair
        return pair

    def _build(self, signature):
        parameters = block_layout(signature.block, signature.shapes).parameters

        def run(raw, inputs):
            if self.prepare is None:
                leaves = raw
            else:
                leaves = {
                    name: self.prepare(raw[name], shapes, name == signature.head)
                    for name, shapes in parameters.items()
                }
            return apply_block(signature.block, leaves, inputs, self._normalize)

        def forward(raw, inputs):
            if signature.reads_image:
                return jax.vjp(lambda raw: run(raw, inputs), raw)
            return jax.vjp(run, raw, inputs)

        return self.parallel.map(forward), self.parallel.map(lambda pullback, g: pullback(g))

    def _normalize(self, step, x, leaves):
        return batch_norm_over_groups(x, leaves, self.bn_group, step.epsilon)

    def loss(
        self,
        program: Program,
        raw: Raw,
        images: jax.Array,
        targets: Any,
        heads: Any = None,
    ):
        """Runs forward only.

        Args:
            program: The network.
            raw: {module: what `prepare` takes}, copied to the devices.
            images: Sharded images; a network of one channel sees the mean of their channels.
            targets: Sharded integer targets, or a pytree of such.
            heads: Parameters of learned heads, copied to the devices, if the loss takes any.

        Returns:
            (loss, accuracy), means over the batch, as device arrays.
        """
        logits, held, _ = self._forward(program, raw, images.astype(self.dtype), keep=False)
        value, accuracy, *_ = self._judge(program, logits, held, targets, heads)
        return self.parallel.total((value, accuracy))

    def logits(self, program: Program, raw: Raw, images: jax.Array) -> jax.Array:
        """Runs forward only and returns the logits, with the device axis if there is one."""
        return self._forward(program, raw, images.astype(self.dtype), keep=False)[0]

    def features(self, program: Program, raw: Raw, images: jax.Array) -> jax.Array:
        """Returns what the head reads, (batch, ..., channels), with the device axis likewise."""
        return self._forward(program, raw, images.astype(self.dtype), keep=False, hold=True)[1]

    def loss_and_gradient(self, program: Program, raw: Raw, images: jax.Array, targets: jax.Array):
        """Runs forward and backward with a loss that has no heads.

        Args: as `loss`.

        Returns:
            (loss, accuracy, gradient): the gradient of the mean loss in `raw`, same structure,
            with the device axis if there is one (add it up with `Parallel.total`).
        """
        value, accuracy, (gradient, _) = self.loss_and_gradients(program, raw, images, targets)
        return value, accuracy, gradient

    def loss_and_gradients(
        self,
        program: Program,
        raw: Raw,
        images: jax.Array,
        targets: Any,
        heads: Any = None,
    ):
        """Runs forward and backward.

        Args: as `loss`.

        Returns:
            (loss, accuracy, (gradient in `raw`, gradient in `heads`)), the gradients as those of
            `loss_and_gradient`.
        """
        logits, held, pullbacks = self._forward(program, raw, images.astype(self.dtype), keep=True)
        value, accuracy, cotangent, head_gradient, read = self._judge(
            program, logits, held, targets, heads
        )
        cotangents: dict[int, jax.Array] = {len(program.calls): cotangent}
        if read is not None and program.head_input:
            cotangents[program.head_input] = read
        gradient: Raw = {}
        for index in range(len(program.calls) - 1, -1, -1):
            call, (signature, pullback) = program.calls[index], pullbacks.pop()
            cotangent = cotangents.pop(index + 1)
            if pullback is None:
                found = (cotangent,) * len(call.inputs)
            else:
                given, *rest = self.functions(signature)[1](pullback, cotangent)
                found = rest[0] if rest else ()
                gradient.update((call.module(name), leaves) for name, leaves in given.items())
            for source, part in zip(call.inputs, found, strict=False):
                if source:
                    known = cotangents.get(source)
                    cotangents[source] = part if known is None else self._add(known, part)
        return *self.parallel.total((value, accuracy)), (gradient, head_gradient)

    def _judge(self, program, logits, held, targets, heads):
        """Returns loss, figures, and the cotangents of logits, heads and what the head reads."""
        if not self._reads:
            value, accuracy, (cotangent, *_) = self._loss(logits, targets)
            return value, accuracy, cotangent, None, None
        features, pullback = self._read[program.reads_token](held)
        value, figures, (cotangent, of_features, of_heads) = self._loss(
            logits, features, targets, heads
        )
        return value, figures, cotangent, of_heads, self._pull_read(pullback, of_features)

    def _forward(self, program, raw, images, keep, hold=False):
        gray = program.input_shape[-1] == 1 != images.shape[-1]
        values: list[Any] = [self._grayscale(images) if gray else images]
        pullbacks = []
        uses = Counter(i for call in program.calls for i in call.inputs)
        if self._reads or hold:
            uses[program.head_input] += 1
        for call, signature in zip(program.calls, signatures(program), strict=True):
            given = {
                # A module without entry has only leaves that `prepare` knows by itself.
                name: raw.get(call.module(name), {})
                for name in block_layout(signature.block, signature.shapes).parameters
            }
            inputs = tuple(values[i] for i in call.inputs)
            output, pullback = self.functions(signature)[0](given, inputs)
            values.append(output)
            if keep:
                only_adds = all(step.kind == "add" for step in call.block.steps)
                pullbacks.append((signature, None if only_adds else pullback))
            for i in call.inputs:
                uses[i] -= 1
                if not uses[i]:
                    values[i] = None
        return values[-1], values[program.head_input], pullbacks

    def warm_up(
        self,
        wanted: Iterable[Signature],
        batch: int,
        example: Callable[[Signature], Raw],
        threads: int = 2,
        report: Callable[[], None] = lambda: None,
    ) -> None:
        """Compiles signatures ahead of use by running them on zeros, several at a time.

        Args:
            wanted: Signatures, the most useful first.
            batch: Global batch size.
            example: Signature -> what its modules are given, as zeros, not yet copied to devices.
            threads: Compilations at the same time.
            report: Called after each.

        Where the process has no room for all of them, the less useful ones are left for later.
        """
        left: list[Signature] = []

        def run(signature):
            if left or crowded():
                left.append(signature)
                return report()
            inputs = tuple(
                self.parallel.shard(jnp.zeros((batch, *shape), self.dtype))
                for shape in signature.shapes
            )
            forward, backward = self.functions(signature)
            output, pullback = forward(self.parallel.copy(example(signature)), inputs)
            jax.block_until_ready(backward(pullback, output))
            report()

        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(run, s) for s in wanted if s not in self.compiled]:
                done.result()
        if left:
            logging.warning(
                "%d blocks are compiled when they are needed: a process may have no more memory "
                "mappings (vm.max_map_count).",
                len(left),
            )
