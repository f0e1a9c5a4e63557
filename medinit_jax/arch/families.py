"""Members of well-known families of networks, drawn at random and never one that is held out.

DeepNets-1M approximates these families by cells at best. Here they are drawn as themselves: other
depths, norms and kernels than those of the published networks, which stay unseen at any width.
Widths are powers of two, and RegNets, MobileNets and EfficientNets keep to batch norm as published
ones do, so that the operations to compile saturate. Wirings are dealt to the splits, as pairs of
cells are: what a network of an evaluation split computes is never trained on, whatever its widths.

Source: the published networks (see `models`); holding them out by a hash of the graph is ours.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np

from medinit_jax.arch.genotype import PARTS
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
    """Draws that read well; compact networks are narrow and shallow and have batch norm alone."""

    def __init__(self, rng: np.random.Generator, image_size: int, compact: bool = False):
        self.rng, self.large, self.compact = rng, image_size >= LARGE_IMAGE, compact
        self.stem = "imagenet" if self.large else "small"

    def between(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def of(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def depth(self, most: int) -> int:
        """Blocks of a stage, from 1 up."""
        return self.between(1, most // 2 if self.compact else most)

    def width(self, *options: int) -> int:
        """Channels at the input side."""
        return min(options) if self.compact else self.of(*options)

    def gated(self) -> bool:
        """Whether blocks have squeeze-and-excitation gates."""
        return not self.compact and self.chance(0.5)

    def norm(self, *without: str) -> str:
        if self.compact:
            return "bn"
        names = [name for name in NORMS if name not in without]
        shares = np.array([NORMS[name] for name in names])
        return str(self.rng.choice(names, p=shares / shares.sum()))

    def widths(self, first: int, stages: int, most: int) -> tuple[int, ...]:
        """Widths that double from stage to stage, up to a limit."""
        most = min(most, MOST_COMPACT) if self.compact else most
        return tuple(min(first * 2**stage, most) for stage in range(stages))


def _vgg(dice: _Dice) -> Member:
    stages = dice.between(3, 5)
    depths = tuple(dice.depth(4) for _ in range(stages))
    norm = "bn" if dice.compact or dice.chance(0.7) else dice.norm("bn")
    first = 16 if dice.compact else dice.of(32, 64)
    widths = dice.widths(first, stages, 512)
    return Member("vgg", vgg.vgg, vgg.Variant(depths, norm, widths, hidden=0))


def _resnet(dice: _Dice) -> Member:
    depths = tuple(dice.depth(4) for _ in range(dice.between(3, 4)))
    variant = resnet.Variant(depths, bottleneck=dice.chance(0.5))
    width = dice.width(16, 32, 64)
    if dice.compact and variant.bottleneck:
        width //= 2
    options = (("stem", dice.stem), ("width", width), ("norm", dice.norm()))
    return Member("resnet", resnet.resnet, variant, options)


def _regnet(dice: _Dice) -> Member:
    variant = regnet.Variant(
        depth=dice.between(4, 10) if dice.compact else dice.between(6, 20),
        start=dice.width(16, 32, 64),
        slope=float(dice.between(4, 12) if dice.compact else dice.between(8, 40)),
        ratio=2.0,
        group_width=dice.width(8, 16),
        squeeze=0.25 if dice.gated() else 0.0,
    )
    return Member("regnet", regnet.regnet, variant, (("stem", dice.stem),))


def _mobilenet(dice: _Dice) -> Member:
    stem = channels = dice.width(16, 32)
    rows, squeezed = [], dice.gated()
    activation = "hard_swish" if squeezed else "relu6"
    for features in dice.widths(stem, 3 if dice.compact else dice.between(3, 4), 128):
        expansion = dice.of(1, 2, 4) if dice.compact else dice.of(1, 3, 6)
        kernel = dice.of(3, 5)
        for index in range(dice.between(1, 3)):
            expanded = expansion * channels
            hidden = max(16, expanded // 64 * 16) if squeezed else 0
            stride = 1 if index or not rows else 2
            rows.append(mobilenet.Row(kernel, expanded, features, stride, activation, hidden))
            channels = features
    variant = mobilenet.Variant(stem, tuple(rows), 4 * channels, activation, mobilenet.Style())
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


# What two CPU cores train on in minutes.
COMPACT_FAMILIES = ("vgg", "resnet", "regnet", "mobilenet")
MOST_COMPACT = 128


def draw_member(
    rng: np.random.Generator,
    image_size: int,
    parts: Container[int] = range(PARTS),
    compact: bool = False,
    names: Sequence[str] = (),
) -> Member:
    """Draws a member of a family that is neither too large nor held out.

    Args:
        rng: Source of the draw.
        image_size: Height and width of the images, which decide on stems and patches.
        parts: Which of the 4 parts of all wirings it comes from.
        compact: Whether it is narrow and shallow, which members of `COMPACT_FAMILIES` can be.
        names: The families; () = all.
    """
    names = names or tuple(FAMILIES)
    while True:
        name = names[int(rng.integers(len(names)))]
        member = FAMILIES[name](_Dice(rng, image_size, compact))
        program = member.program(image_size, 4)
        if program.num_parameters > MAX_PARAMETERS:
            continue
        graph = build_graph(program)
        if _wiring_part(graph) in parts and not _is_held_out(graph, image_size):
            return member


def _wiring_part(graph: ArchGraph) -> int:
    """Returns the part of a graph of one builder, which puts equal nodes in one order."""
    direct = graph.distance == 1
    edges = np.stack([graph.senders[direct], graph.receivers[direct]])
    text = repr((_labels(graph, widths=False), edges.tolist()))
    return zlib.crc32(text.encode()) % PARTS


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
    """Returns whether a network has the graph of one of `held_out`, whatever its widths."""
    return _is_held_out(build_graph(program), image_size)


def _is_held_out(graph: ArchGraph, image_size: int) -> bool:
    hashes = _held_out_hashes(image_size)
    # Sorting out by what a graph consists of spares nearly all the work.
    return _content(graph) in hashes and _wiring_hash(graph) in hashes[_content(graph)]


@functools.cache
def _held_out_hashes(image_size: int) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for program in held_out(image_size).values():
        graph = build_graph(program)
        found.setdefault(_content(graph), set()).add(_wiring_hash(graph))
    return found


def _content(graph: ArchGraph) -> int:
    return hash(tuple(sorted(Counter(_labels(graph, widths=False)).items())))


def _wiring_hash(graph: ArchGraph) -> str:
    return canonical_hash(graph, widths=False)


def _labels(graph: ArchGraph, widths: bool) -> list[tuple[int, ...]]:
    """Returns type and parameter shape of every node, without the number of classes."""
    shapes = np.where(graph.head[:, None], 0, graph.shape)
    if not widths:
        shapes[:, :2] = 0
    rows = np.concatenate([graph.node_type[:, None], shapes], axis=1)
    return [tuple(row) for row in rows.tolist()]


def canonical_hash(graph: ArchGraph, widths: bool = True) -> str:
    """Returns a hash that equal graphs share whatever the order and the names of their nodes.

    Nodes carry their type and the shape of their parameters; the number of classes does not count.

    Args:
        graph: The graph.
        widths: Whether numbers of channels count.

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
    labels = [digest(str(label)) for label in _labels(graph, widths)]
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
