"""The bilevel loss and its gradient: images -> network with predicted parameters -> loss -> theta.

`Writer` turns graphs into what the tape's blocks take (raw tiles, which the blocks themselves
slice, tile and normalize) and carries their cotangents back into theta. `gradient_by_tape` puts the
two together; `loss_whole` is the same loss as one plain function of theta, slow and obvious.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from medinit_jax.arch.batching import node_bucket, to_jraph
from medinit_jax.arch.graph import ArchGraph
from medinit_jax.arch.program import OWN_INIT, Program, block_layout
from medinit_jax.arch.tape import Raw, Signature, Tape, grayscale
from medinit_jax.core.parallel import Parallel
from medinit_jax.hyper.decoder import (
    Decoder,
    Windows,
    cut,
    kernel_windows,
    resized,
    write_kernels,
)
from medinit_jax.hyper.hypernetwork import HyperInitializer
from medinit_jax.hyper.initializer import predict
from medinit_jax.hyper.tiles import finish, tile_shape
from medinit_jax.models.network import apply_with_batch_statistics, logits_and_features

# Those that write kernels are named by `kernel_windows`.
DECODER_LAYERS = {
    "vector": ("vector_0", "vector_1"),
    "head_kernel": ("class_kernel",),
    "head_bias": ("vector_0", "vector_1", "class_bias"),
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Tensors that one call of the decoder writes.

    Attributes:
        key: ("kernel", height, width, out, in) or (kind,).
        places: (network, module, leaf) of every tensor.
        rows: int32 (n,), node row of each, padded by repeating the first; n is one of `chunks`.
    """

    key: tuple
    places: tuple[tuple[int, str, str], ...]
    rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class MetaBatch:
    """Architectures of one step, as prepared on the host.

    Attributes:
        programs: The networks.
        graph: Their graphs, batched.
        groups: Which tensors are decoded together.
        indices: What each is called in logs.
    """

    programs: tuple[Program, ...]
    graph: jraph.GraphsTuple
    groups: tuple[Group, ...]
    indices: tuple[int, ...]


def meta_batch(
    programs: Sequence[Program],
    graphs: Sequence[ArchGraph],
    module: HyperInitializer,
    indices: Sequence[int] = (),
) -> MetaBatch:
    """Batches architectures and plans the decoder's calls.

    Args:
        programs: m networks.
        graphs: Their graphs.
        module: The hypernetwork; heads of another number of classes are not predicted.
        indices: Names of the architectures in logs.

    Returns:
        The meta-batch.
    """
    nodes = max(node_bucket(len(graph.node_type)) for graph in graphs)
    batched = to_jraph(graphs, nodes, len(graphs) * nodes * (nodes - 1) // 2)
    places: dict[tuple, list[tuple[tuple[int, str, str], int]]] = {}
    for network, (program, graph) in enumerate(zip(programs, graphs, strict=True)):
        shapes = program.parameter_shapes()
        for row, node in enumerate(graph.parameters):
            if node is None:
                continue
            name, kind = node
            head = bool(graph.head[row])
            if head and program.num_classes != module.num_classes:
                continue
            if kind in ("norm", "bias"):
                key: tuple = ("head_bias",) if head else ("vector",)
            elif head:
                key = ("head_kernel",)
            else:
                key = ("kernel", *_tile_key(shapes[name][kind], kind, module.max_shape))
            places.setdefault(key, []).append(((network, name, kind), network * nodes + row))
    groups = []
    for key, members in sorted(places.items()):
        few, many = chunks(key)
        while members:
            size = many if 2 * len(members) > many else few
            part, members = members[:size], members[size:]
            rows = np.full(size, part[0][1], np.int32)
            rows[: len(part)] = [row for _, row in part]
            groups.append(Group(key, tuple(place for place, _ in part), rows))
    return MetaBatch(tuple(programs), batched, tuple(groups), tuple(indices))


def chunks(key: tuple) -> tuple[int, int]:
    """Returns how many tensors a call of the decoder writes: few or many of the same key.

    Two fixed numbers keep what is compiled little, what is computed for nothing, and the times that
    the gradient of the whole tile is added up.
    """
    if key[0] != "kernel":
        return (32, 32) if key[0] == "vector" else (1, 1)
    positions = key[1] * key[2]
    few = 8 if positions == 1 else 4 if positions <= 9 else 2
    return few, 4 * few


def _tile_key(shape, kind, max_shape) -> tuple[int, int, int, int]:
    height, width, inputs, outputs = tile_shape(shape, kind, max_shape)
    return (height, width, outputs, inputs)


class Writer:
    """Writes raw parameters of a meta-batch and carries gradients back, in compiled pieces.

    Args:
        module: The hypernetwork.
    """

    def __init__(self, module: HyperInitializer):
        self.module = module
        self.decoder = Decoder(
            module.hidden,
            module.max_shape,
            module.num_classes,
            module.crop,
            rank=module.decoder_rank,
        )

        def features(theta, graph):
            reader = {name: leaves for name, leaves in theta.items() if name != "decoder"}

            def read(reader):
                return module.apply({"params": {**theta, **reader}}, graph, method="features")

            return jax.vjp(read, reader)

        self._features = jax.jit(features)
        self._pull_features = jax.jit(lambda pullback, dx: pullback(dx)[0])
        self._nothing = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree))
        # On their own, so that what follows compiles once for graphs of any size.
        self._take = jax.jit(lambda x, rows: x[rows])
        self._put = jax.jit(lambda x, rows, part: x.at[rows].add(part), donate_argnums=0)
        self._decode = functools.cache(self._build_decode)
        self._pull = jax.jit(self._pull_group, static_argnums=0, donate_argnums=3)

    def _windows(self, key: tuple) -> Windows:
        """Returns which part of the decoder a call reads, and adds its gradient to."""
        kind, *size = key
        if kind == "kernel":
            return self._kernel_windows(*size)
        layers = DECODER_LAYERS[kind]
        if kind == "head_kernel":
            layers = (*self._kernel_windows(1, 1, *self.module.max_shape[:2]), *layers)
        return {name: {"kernel": (), "bias": ()} for name in layers}

    def _kernel_windows(self, height: int, width: int, out: int, in_: int) -> Windows:
        module = self.module
        return kernel_windows(
            module.max_shape, (height, width), out, in_, module.crop, module.decoder_rank
        )

    def _build_decode(self, key: tuple, count: int):
        kind, windows = key[0], self._windows(key)

        def decode(decoder, parts, x):
            if kind == "kernel":
                tiles = resized(write_kernels(parts, x), key[1:3])
            else:
                method = "decode_1d" if kind == "vector" else f"decode_{kind}"
                tiles = self.decoder.apply({"params": {**decoder, **parts}}, x, method=method)
            return tuple(tiles[i] for i in range(count))

        def forward(decoder, x):
            return jax.vjp(functools.partial(decode, decoder), cut(decoder, windows), x)

        return jax.jit(forward)

    def _pull_group(self, key, pullback, cotangents, decoder, scale):
        parts, dx = jax.tree.map(lambda leaf: leaf * scale, pullback(cotangents))
        decoder = {**decoder}
        for name, leaves in self._windows(key).items():
            total = decoder[name]
            # Read and set, not `.add`: the latter is a scatter, which XLA does not do in place.
            decoder[name] = {
                leaf: total[leaf].at[window].set(total[leaf][window] + parts[name][leaf])
                for leaf, window in leaves.items()
            }
        return decoder, dx

    def write(self, theta, batch: MetaBatch):
        """Predicts.

        Args:
            theta: Parameters of the hypernetwork.
            batch: The architectures.

        Returns:
            (raw, pull): raw parameters of each network, {module: {kind: array}}, and a function
            from each network's cotangents to the gradient of the mean in theta. A "norm" array
            (2, 64) holds scale and bias; a "bias" array (2, 64) uses row 1.
        """
        x, pull_features = self._features(theta, batch.graph)
        raw: list[Raw] = [{} for _ in batch.programs]
        pulls = []
        for group in batch.groups:
            decode = self._decode(group.key, len(group.rows))
            tiles, pullback = decode(theta["decoder"], self._take(x, group.rows))
            pulls.append((group, pullback))
            for (network, module, kind), tile in zip(group.places, tiles, strict=False):
                raw[network].setdefault(module, {})[kind] = tile

        def pull(gradients: Sequence[Raw]):
            decoder, dx = self._nothing((theta["decoder"], x))
            scale = 1 / len(batch.programs)
            for group, pullback in pulls:
                cotangents = [gradients[n][module][kind] for n, module, kind in group.places]
                # Zeros that lie where the cotangents do: others would compile anew for each count.
                missing = len(group.rows) - len(cotangents)
                cotangents += [jnp.zeros_like(cotangents[0])] * missing if missing else []
                decoder, part = self._pull(group.key, pullback, tuple(cotangents), decoder, scale)
                dx = self._put(dx, group.rows, part)
            return {**self._pull_features(pull_features, dx), "decoder": decoder}

        return raw, pull


def prepare_leaves(
    given: dict,
    shapes,
    is_head: bool,
    penalty: float = 0.0,
    normalize: bool = True,
    tiling: str = "repeat",
) -> dict:
    """Slices, tiles and normalizes the raw arrays of one module; runs inside a compiled block.

    Args:
        given: {kind: raw array} as `Writer.write` returns them.
        shapes: {leaf: shape} of the module.
        is_head: Whether it is the predicted classifier.
        penalty: Strength of the penalty on the norm of every predicted tensor.
        normalize: Whether to normalize.
        tiling: See `tiles.finish`.

    Returns:
        {leaf: array}; those of `OWN_INIT`, which are not given, are its constants.
    """
    leaves = {}
    for leaf, shape in shapes.items():
        if leaf in OWN_INIT:
            leaves[leaf] = jnp.full(shape, OWN_INIT[leaf])
            continue
        if "norm" in given:
            raw, kind = given["norm"][0 if leaf == "scale" else 1], leaf
        elif is_head:
            raw, kind = given[leaf], f"head_{leaf}"
        else:
            raw, kind = given[leaf][1] if leaf == "bias" else given[leaf], leaf
        leaves[leaf] = finish(raw, shape, kind, normalize, tiling)
        if penalty:
            leaves[leaf] = _penalized(leaves[leaf], penalty)
    return leaves


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _penalized(x, strength):
    """Returns x; its gradient gains that of `strength * norm(x)` (GHN-3's penalty)."""
    return x


_penalized.defvjp(
    lambda x, strength: (x, x),
    lambda strength, x, g: (g + strength * x / jnp.maximum(jnp.sqrt((x * x).sum()), 1e-12),),
)


def zero_example(module: HyperInitializer, signature: Signature) -> Raw:
    """Returns zeros of the structure that `Writer.write` gives the modules of a signature.

    Args:
        module: The hypernetwork.
        signature: The block and its input shapes.

    Returns:
        {local module name: {kind: zeros}}.
    """
    out, in_ = module.max_shape[:2]
    example: Raw = {}
    layout = block_layout(signature.block, signature.shapes)
    for name, shapes in layout.parameters.items():
        if name == signature.head:
            raw = {"kernel": (in_, module.num_classes), "bias": (module.num_classes,)}
        elif "scale" in shapes:
            raw = {"norm": (2, out)}
        else:
            raw = {
                leaf: (2, out) if leaf == "bias" else tile_shape(shape, leaf, module.max_shape)
                for leaf, shape in shapes.items()
                if leaf not in OWN_INIT
            }
        example[name] = {kind: jnp.zeros(shape) for kind, shape in raw.items()}
    return example


def gradient_by_tape(
    writer: Writer,
    tape: Tape,
    parallel: Parallel,
    theta,
    batch: MetaBatch,
    images,
    targets,
    heads=None,
) -> tuple[list[jax.Array], list[Any], Any]:
    """Computes the bilevel loss and its gradient in theta through the tape.

    Args:
        writer: The hypernetwork's compiled pieces.
        tape: Compiled blocks whose `prepare` is `prepare_leaves`.
        parallel: Devices.
        theta: Parameters of the hypernetwork.
        batch: m architectures.
        images: Sharded views.
        targets: Sharded targets.
        heads: Parameters of learned heads, if the tape's loss takes them.

    Returns:
        (losses (m,), accuracies (m,), gradient of the mean loss in theta; with heads the pair of
        those in theta and in heads).
    """
    raw, pull = writer.write(theta, batch)
    losses, accuracies, gradients, of_heads = [], [], [], []
    copied = None if heads is None else parallel.copy(heads)
    for program, given in zip(batch.programs, raw, strict=True):
        loss, accuracy, (gradient, of_head) = tape.loss_and_gradients(
            program, parallel.copy(given), images, targets, copied
        )
        losses.append(loss)
        accuracies.append(accuracy)
        gradients.append(parallel.total(gradient))
        if heads is not None:
            of_heads.append(parallel.total(of_head))
    if heads is None:
        return losses, accuracies, pull(gradients)
    return losses, accuracies, (pull(gradients), _mean(of_heads))


@jax.jit
def _mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(trees), *trees)


def loss_whole(
    module, theta, programs, graphs, images, targets, loss, bn_group, read=None, heads=None
):
    """Computes the bilevel loss as one plain function of theta, the tape's oracle.

    Args:
        module: The hypernetwork.
        theta: Its parameters.
        programs: m networks.
        graphs: Their graphs.
        images: (batch, height, width, channels), on one device.
        targets: (batch,), or a pytree of such.
        loss: (logits, targets) -> (loss, accuracy), or as `Tape` has it with `read`.
        bn_group: Images that share batch statistics.
        read: As `Tape` has it.
        heads: Parameters of learned heads.

    Returns:
        Mean loss over the networks, (); and per network (losses, accuracies).
    """
    values = []
    for program, graph in zip(programs, graphs, strict=True):
        shapes = program.parameter_shapes()
        parameters = predict(module, theta, graph, shapes)
        for name, leaves in shapes.items():
            for leaf in leaves.keys() & OWN_INIT.keys():
                own = {leaf: jnp.full(leaves[leaf], OWN_INIT[leaf])}
                parameters[name] = parameters.get(name, {}) | own
        seen = grayscale(images) if program.input_shape[-1] == 1 else images
        if read is None:
            logits = apply_with_batch_statistics(program, parameters, seen, bn_group)
            values.append(loss(logits, targets))
        else:
            logits, features = logits_and_features(program, parameters, seen, bn_group)
            values.append(loss(logits, read(features), targets, heads))
    losses, accuracies = zip(*values, strict=True)
    return jnp.stack(losses).mean(), (losses, accuracies)
