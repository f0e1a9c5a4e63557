"""Members of well-known families of networks, drawn at random and never one that is held out.

DeepNets-1M approximates these families by cells at best. Here they are drawn as themselves: other
depths, widths, norms and kernels than those of the published networks, which stay unseen. Widths
are powers of two and norms of the mobile families few, so that the operations to compile saturate.

Source: the published networks (see `models`); holding them out by a hash of the graph is ours.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from medinit_jax.arch.graph import ArchGraph, build_graph
from medinit_jax.arch.program import Program
from medinit_jax.models import convnext, efficientnet, mobilenet, regnet, resnet, vgg, vit

MAX_PARAMETERS = 10**7
LARGE_IMAGE = 128
NORMS = {"bn": 0.75, "gn": 0.1, "ln": 0.05, "in": 0.05, "none": 0.05}


@dataclasses.dataclass(frozen=True)
class Member:
    """A drawn network.

    Attributes:
        family: A key of `FAMILIES`.
        builder: The family's builder.
        variant: What it builds.
        options: Further arguments of the builder.
        channels: Input channels: 3, or 1 for a network of grayscale images.
        split: Split of the design space.
        index: Number in the split.
    """

    family: str
    builder: Callable[..., Program]
    variant: Any
    options: tuple[tuple[str, Any], ...] = ()
    channels: int = 3
    split: str = ""
    index: int = 0

    def program(self, image_size: int, num_classes: int) -> Program:
        """Returns the network for images of a size."""
        shape = (image_size, image_size, self.channels)
        return self.builder(self.variant, shape, num_classes, **dict(self.options))


class _Dice:
    """Draws that read well."""

    def __init__(self, rng: np.random.Generator, image_size: int):
        self.rng, self.large = rng, image_size >= LARGE_IMAGE
        self.stem = "imagenet" if self.large else "small"

    def between(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def of(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def norm(self, *without: str) -> str:
        names = [name for name in NORMS if name not in without]
        shares = np.array([NORMS[name] for name in names])
        return str(self.rng.choice(names, p=shares / shares.sum()))

    def widths(self, first: int, stages: int, most: int) -> tuple[int, ...]:
        """Widths that double from stage to stage, up to a limit."""
        return tuple(min(first * 2**stage, most) for stage in range(stages))


def _vgg(dice: _Dice) -> Member:
    stages = dice.between(3, 5)
    depths = tuple(dice.between(1, 4) for _ in range(stages))
    norm = "bn" if dice.chance(0.7) else dice.norm("bn")
    widths = dice.widths(dice.of(32, 64), stages, 512)
    return Member("vgg", vgg.vgg, vgg.Variant(depths, norm, widths, hidden=0))


def _resnet(dice: _Dice) -> Member:
    depths = tuple(dice.between(1, 4) for _ in range(dice.between(3, 4)))
    variant = resnet.Variant(depths, bottleneck=dice.chance(0.5))
    options = (("stem", dice.stem), ("width", dice.of(16, 32, 64)), ("norm", dice.norm()))
    return Member("resnet", resnet.resnet, variant, options)


def _regnet(dice: _Dice) -> Member:
    variant = regnet.Variant(
        depth=dice.between(6, 20),
        start=dice.of(16, 32, 64),
        slope=float(dice.between(8, 40)),
        ratio=2.0,
        group_width=dice.of(8, 16),
        squeeze=0.25 if dice.chance(0.5) else 0.0,
    )
    options = (("stem", dice.stem), ("norm", dice.norm("ln", "none")))
    return Member("regnet", regnet.regnet, variant, options)


def _mobilenet(dice: _Dice) -> Member:
    stem = channels = dice.of(16, 32)
    rows, norm = [], dice.norm("ln", "in", "none")
    squeezed = dice.chance(0.5)
    activation = "hard_swish" if squeezed else "relu6"
    for features in dice.widths(stem, dice.between(3, 4), 128):
        expansion, kernel = dice.of(1, 3, 6), dice.of(3, 5)
        for index in range(dice.between(1, 3)):
            expanded = expansion * channels
            hidden = max(16, expanded // 64 * 16) if squeezed else 0
            stride = 1 if index or not rows else 2
            rows.append(mobilenet.Row(kernel, expanded, features, stride, activation, hidden))
            channels = features
    style = mobilenet.Style(norm=norm)
    variant = mobilenet.Variant(stem, tuple(rows), 4 * channels, activation, style)
    return Member("mobilenet", mobilenet.mobilenet, variant, (("stem", dice.stem),))


def _efficientnet(dice: _Dice) -> Member:
    stages = []
    stem = dice.of(16, 32)
    for number, features in enumerate(dice.widths(stem, dice.between(3, 4), 128)):
        stages.append(
            efficientnet.Stage(
                dice.of(1, 6), dice.of(3, 5), 2 if number else 1, features, dice.between(1, 3)
            )
        )
    variant = efficientnet.Variant(
        stem=stem,
        stages=tuple(stages),
        last=4 * stages[-1].features,
        squeeze=dice.of(0.0, 0.25),
        norm=dice.norm("ln", "in", "none"),
    )
    return Member("efficientnet", efficientnet.efficientnet, variant, (("stem", dice.stem),))


def _convnext(dice: _Dice) -> Member:
    stages = dice.between(2, 4)
    depths = tuple(dice.between(1, 4) for _ in range(stages))
    patch = 4 if dice.large else 2
    widths = dice.widths(dice.of(32, 64), stages, 256)
    # Layer scales start at 1e-6 and let almost no gradient through: few of them teach their type.
    scale = dice.chance(0.2)
    variant = convnext.Variant(depths, widths, patch, dice.of(3, 5, 7), scale)
    return Member("convnext", convnext.convnext, variant)


def _vit(dice: _Dice) -> Member:
    heads = dice.of(2, 4, 6)
    variant = vit.Variant(
        width=heads * dice.of(16, 32),
        depth=dice.between(2, 8),
        heads=heads,
        patch=16 if dice.large else 4,
        mlp=dice.of(1, 2, 4),
        class_token=dice.chance(0.5),
    )
    return Member("vit", vit.vit, variant)


def _unet_encoder(dice: _Dice) -> Member:
    """Two convolutions and a pooling per level, as in the contracting path of a U-Net."""
    levels = dice.between(3, 5)
    widths = dice.widths(dice.of(16, 32, 64), levels, 512)
    variant = vgg.Variant((2,) * levels, dice.norm(), widths, hidden=0)
    return Member("unet_encoder", vgg.vgg, variant)


FAMILIES: dict[str, Callable[[_Dice], Member]] = {
    "vgg": _vgg,
    "resnet": _resnet,
    "regnet": _regnet,
    "mobilenet": _mobilenet,
    "efficientnet": _efficientnet,
    "convnext": _convnext,
    "vit": _vit,
    "unet_encoder": _unet_encoder,
}


def draw_member(rng: np.random.Generator, image_size: int) -> Member:
    """Draws a member of a family that is neither too large nor held out.

    Args:
        rng: Source of the draw.
        image_size: Height and width of the images, which decide on stems and patches.
    """
    names = list(FAMILIES)
    while True:
        member = FAMILIES[names[int(rng.integers(len(names)))]](_Dice(rng, image_size))
        program = member.program(image_size, 4)
        if program.num_parameters <= MAX_PARAMETERS and not is_held_out(program, image_size):
            return member


def held_out(image_size: int) -> dict[str, Program]:
    """Returns the networks that are never drawn, as they are built for images of a size."""
    shape, large = (image_size, image_size, 3), image_size >= LARGE_IMAGE
    stemmed: dict[str, Any] = {"stem": "imagenet" if large else "small"}
    programs: dict[str, Program] = {}
    builders: tuple[tuple[Any, Callable[..., Program], dict[str, Any]], ...] = (
        (resnet, resnet.resnet, stemmed),
        (regnet, regnet.regnet, stemmed),
        (mobilenet, mobilenet.mobilenet, stemmed),
        (efficientnet, efficientnet.efficientnet, stemmed),
        (convnext, convnext.convnext, {}),
    )
    for module, builder, options in builders:
        for name in module.VARIANTS:
            programs[name] = builder(name, shape, 4, **options)
    for name, variant in vgg.VARIANTS.items():
        # Drawn VGG networks have no hidden layers, nor has this one then.
        programs[name] = vgg.vgg(dataclasses.replace(variant, hidden=0), shape, 4)
    for name, transformer in vit.VARIANTS.items():
        patch = transformer.patch if large else 4
        programs[name] = vit.vit(dataclasses.replace(transformer, patch=patch), shape, 4)
    levels = [64 * 2**level for level in range(5)]
    encoder = vgg.Variant((2,) * len(levels), "bn", tuple(levels), hidden=0)
    programs["unet"] = vgg.vgg(encoder, shape, 4)
    return programs


def is_held_out(program: Program, image_size: int) -> bool:
    """Returns whether a network has the graph of one of `held_out`."""
    graph = build_graph(program)
    hashes = _held_out_hashes(image_size)
    # Sorting out by what a graph consists of spares nearly all the work.
    return _content(graph) in hashes and canonical_hash(graph) in hashes[_content(graph)]


@functools.cache
def _held_out_hashes(image_size: int) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for program in held_out(image_size).values():
        graph = build_graph(program)
        found.setdefault(_content(graph), set()).add(canonical_hash(graph))
    return found


def _content(graph: ArchGraph) -> int:
    return hash(tuple(sorted(Counter(_labels(graph)).items())))


def _labels(graph: ArchGraph) -> list[tuple[int, ...]]:
    """Returns type and parameter shape of every node, without the number of classes."""
    shapes = np.where(graph.head[:, None], 0, graph.shape)
    rows = np.concatenate([graph.node_type[:, None], shapes], axis=1)
    return [tuple(row) for row in rows.tolist()]


def canonical_hash(graph: ArchGraph) -> str:
    """Returns a hash that equal graphs share whatever the order and the names of their nodes.

    Nodes carry their type and the shape of their parameters; the number of classes does not count.

    Args:
        graph: The graph.

    Source: Weisfeiler and Lehman (1968); as many rounds as it takes until no class is divided.
    """

    def digest(*parts: str) -> str:
        return hashlib.blake2b("|".join(parts).encode(), digest_size=16).hexdigest()

    count = len(graph.node_type)
    before: list[list[int]] = [[] for _ in range(count)]
    after: list[list[int]] = [[] for _ in range(count)]
    direct = graph.distance == 1
    pairs = zip(graph.senders[direct].tolist(), graph.receivers[direct].tolist(), strict=True)
    for sender, receiver in pairs:
        after[sender].append(receiver)
        before[receiver].append(sender)
    labels = [digest(str(label)) for label in _labels(graph)]
    classes = len(set(labels))
    while True:
        labels = [
            digest(
                labels[node],
                *sorted(labels[n] for n in before[node]),
                "after",
                *sorted(labels[n] for n in after[node]),
            )
            for node in range(count)
        ]
        if len(set(labels)) == classes:
            return digest(*sorted(labels))
        classes = len(set(labels))
