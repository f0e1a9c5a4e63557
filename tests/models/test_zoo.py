"""Networks by name."""

import dataclasses
import functools
import hashlib
import math
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import medinit_jax
from medinit_jax.api import Initializer
from medinit_jax.arch.graph import build_graph
from medinit_jax.arch.program import Block
from medinit_jax.arch.space import get_space
from medinit_jax.arch.tape import Tape
from medinit_jax.arch.vocabulary import NODE_TYPES
from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parallel import Parallel
from medinit_jax.hyper.hypernetwork import from_config
from medinit_jax.hyper.starts import untrained_theta
from medinit_jax.models import resnet, unet, vit, zoo
from medinit_jax.models.network import Network
from medinit_jax.models.ops import apply_block, batch_norm_over_groups


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_network_has_a_name(name):
    program = zoo.build(name, 3, (64, 64, 1)).program
    assert program.num_classes == 3 and program.input_shape == (64, 64, 1)
    segments = name.startswith(("unet", "deeplab"))
    assert program.shapes[-1] == ((64, 64, 3) if segments else (3,))
    small = zoo.by_name(name, 2, get_space("small")).program
    assert small.input_shape == (32, 32, 3) and small.num_classes == 2


@pytest.mark.parametrize("name", zoo.MODELS)
def test_bfloat16_stays_bfloat16_in_every_block(name):
    program = zoo.build(name, 3, (64, 64, 1)).program
    values = [jax.ShapeDtypeStruct((2, *program.input_shape), jnp.bfloat16)]
    for index, call in enumerate(program.calls):
        leaves = jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
            {name: dict(shapes) for name, shapes in program.layout(index).parameters.items()},
            is_leaf=lambda node: isinstance(node, tuple),
        )
        value = jax.eval_shape(
            lambda leaves, *inputs, block=call.block: apply_block(
                block, leaves, inputs, lambda _, x, p: batch_norm_over_groups(x, p, 2)
            ),
            leaves,
            *(values[i] for i in call.inputs),
        )
        assert value.dtype == jnp.bfloat16, call
        assert value.shape == (2, *program.shapes[index + 1])
        values.append(value)


ENDS = {"input": 1, "glob_avg": 1}
# {name: (counts by type, edges, digest of types and edges)}. Edges are one less than nodes, plus
# one for every further input of a sum, concatenation or gate, minus one for every further source.
GRAPHS = {
    # 16 blocks of three convolutions, four projections, stem and head.
    "resnet50": (
        {**ENDS, "conv": 3 * 16 + 4 + 2, "bn": 3 * 16 + 4 + 1, "max_pool": 1, "sum": 16, "bias": 1},
        126 + 16,
        "7e6a8cfd284d278a",
    ),
    "resnet101": (
        {**ENDS, "conv": 3 * 33 + 4 + 2, "bn": 3 * 33 + 4 + 1, "max_pool": 1, "sum": 33, "bias": 1},
        245 + 33,
        "8a57219996981f41",
    ),
    # 27 blocks with two 1x1 convolutions, a grouped one and a gate of two layers.
    "regnet_y_1_6gf": (
        {**ENDS, "conv": 4 * 27 + 4 + 2, "bn": 3 * 27 + 4 + 1, "group_conv": 27, "cse": 27}
        | {"sum": 27, "bias": 2 * 27 + 1},
        337 + 27 + 27,
        "05f2ed0c788784f4",
    ),
    # 17 blocks, the first without expansion, 10 of them residual.
    "mobilenet_v2": (
        {**ENDS, "conv": 17 + 16 + 3, "sep_conv": 17, "bn": 2 * 17 + 16 + 2, "sum": 10, "bias": 1},
        117 + 10,
        "54f0aea51802d8ed",
    ),
    # 15 blocks, the first without expansion, 8 with a gate; a head of two layers.
    "mobilenet_v3_large": (
        {**ENDS, "conv": 15 + 14 + 2 * 8 + 4, "sep_conv": 15, "bn": 2 * 15 + 14 + 2, "sum": 10}
        | {"cse": 8, "bias": 2 * 8 + 2},
        147 + 10 + 8,
        "ac41eff601e8556e",
    ),
    # 16 blocks with a gate, the first without expansion.
    "efficientnet_b0": (
        {**ENDS, "conv": 16 + 15 + 2 * 16 + 3, "sep_conv": 16, "bn": 2 * 16 + 15 + 2, "sum": 9}
        | {"cse": 16, "bias": 2 * 16 + 1},
        190 + 9 + 16,
        "41a5fd53c59a4e94",
    ),
    # 58 layers of two convolutions, three transitions, stem and head.
    "densenet121": (
        {**ENDS, "conv": 2 * 58 + 3 + 2, "bn": 2 * 58 + 3 + 2, "concat": 58, "avg_pool": 3}
        | {"max_pool": 1, "bias": 1},
        306 + 58,
        "26f5d4aa8112fc53",
    ),
    "resnetv2_50x1_bit": (
        {**ENDS, "conv": 3 * 16 + 4 + 2, "gn": 3 * 16 + 1, "max_pool": 1, "sum": 16, "bias": 1},
        122 + 16,
        "3d749b5babc55e13",
    ),
    # A chain.
    "vgg16_bn": (
        {"input": 1, "conv": 13 + 3, "bias": 13 + 3, "bn": 13, "max_pool": 5},
        50,
        "37b5438a8473884e",
    ),
    # 18 blocks of a depthwise and two dense layers, a stem, three transitions, a head.
    "convnext_tiny": (
        {**ENDS, "sep_conv": 18, "conv": 2 * 18 + 5, "bias": 3 * 18 + 5, "ln": 18 + 5}
        | {"layer_scale": 18, "sum": 18},
        178 + 18,
        "52eb5c988be22f6f",
    ),
    # 12 blocks of four dense layers, patches, head; the class token and positions are sources.
    "vit_small_patch16_224": (
        {"input": 1, "embed": 1, "pos_enc": 1, "conv": 4 * 12 + 2, "bias": 4 * 12 + 2, "concat": 1}
        | {"sum": 2 * 12 + 1, "ln": 2 * 12 + 1, "msa": 12},
        165 + 25 + 1 - 2,
        "8a1db179e9468000",
    ),
    # Nine times two convolutions and a head; four ways down and up.
    "unet": (
        {"input": 1, "conv": 18 + 1, "bn": 18, "max_pool": 4, "conv_t": 4, "concat": 4}
        | {"bias": 4 + 1},
        54 + 4,
        "421da25c612afa21",
    ),
    # A ResNet-18 without its end, five times two convolutions, a head.
    "unet_resnet18": (
        {"input": 1, "conv": 20 + 10 + 1, "bn": 20 + 10, "max_pool": 1, "sum": 8, "upsample": 5}
        | {"concat": 4, "bias": 1},
        80 + 8 + 4,
        "1b16248248573daa",
    ),
    # A ResNet-50 without its end, six convolutions of the pyramid, three of the decoder, a head.
    "deeplabv3plus_resnet50": (
        {**ENDS, "conv": 53 + 6 + 3 + 1, "bn": 53 + 6 + 3, "max_pool": 1, "sum": 16, "upsample": 3}
        | {"concat": 2, "bias": 1},
        # Five branches meet in the first concatenation, two in the second.
        149 + 16 + 4 + 1,
        "8af223a36fdf1ea8",
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_golden_graph(name):
    """Counts follow from the architecture; the digest holds the order of nodes and the edges."""
    graph = build_graph(zoo.build(name, 1000).program)
    types = [NODE_TYPES[kind] for kind in graph.node_type]
    direct = graph.distance == 1
    edges = np.stack([graph.senders[direct], graph.receivers[direct]], 1).tolist()
    counts, number, digest = GRAPHS[name]
    assert (Counter(types), len(edges)) == (counts, number)
    text = " ".join(types) + "|" + " ".join(f"{a}>{b}" for a, b in edges)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


CLASSES, BATCH, STEPS = 3, 6, 50
IMAGE = (16, 16, 3)
SMALL = {
    "resnet": resnet.resnet(resnet.Variant((1,), False), IMAGE, CLASSES, "small", 8),
    "unet": unet.unet(None, IMAGE, CLASSES, width=8, levels=1),
    "vit": vit.vit(vit.Variant(16, 2, 2, 8), IMAGE, CLASSES),
}
# Each layer of an untrained hypernetwork writes 0.07 of He's scale, and no norm makes up for it.
FADING = ("vgg11", "vgg16")


@pytest.fixture(scope="module")
def initializer():
    """The hypernetwork of `configs/hyper.py:mixed`, which knows all node types, untrained."""
    config = Path(__file__).resolve().parents[2] / "configs" / "hyper.py"
    command = read_command_line(["test", f"--config={config}:mixed"])
    module = from_config({**command.config.hyper, "num_classes": 4})
    theta = jax.device_get(untrained_theta(module, command.config.seed))
    return Initializer(module, theta, {}, "")


@functools.partial(jax.jit, static_argnums=0)
def run_and_measure(block, parameters, inputs):
    """Runs a block with the batch's own statistics; returns its output and {place: spread}.

    The spread of a step is the standard deviation over images and positions, as root mean square
    over the channels: a layer that yields the same for all images and places has none. Two kinds of
    steps are looked at otherwise:

    - `layer_scale` is left out, as ConvNeXt starts it at 1e-6 on purpose.
    - Between `squeeze` and `gate` stand factors of the channels, about 1/2 for all images: they
      multiply a signal and carry none, so that their spread is taken over channels too.
    """
    values, factors, found = list(inputs), set(), {}
    for place, step in enumerate(block.steps, start=block.arity):
        args = tuple(values[i] for i in step.args)
        alone = dataclasses.replace(step, args=tuple(range(len(args))))
        leaves = {step.name: parameters[step.name]} if step.name else {}
        y = apply_block(
            Block(len(args), (alone,)),
            leaves,
            args,
            lambda step, x, p: batch_norm_over_groups(x, p, len(x), step.epsilon),
        )
        values.append(y)
        if step.kind == "squeeze" or factors.issuperset(step.args):
            factors.add(place)
        if step.kind != "layer_scale":
            axes = None if place in factors else tuple(range(y.ndim - 1))
            found[f"{place} {step.kind} {step.name}"] = jnp.sqrt(y.var(axes).mean())
    return values[-1], found


def spreads(program, parameters, images):
    """Returns {place: spread} of every step of a forward pass."""
    values, found = [images], {}
    for call in program.calls:
        leaves = {s.name: parameters[call.module(s.name)] for s in call.block.steps if s.name}
        value, places = run_and_measure(call.block, leaves, tuple(values[i] for i in call.inputs))
        values.append(value)
        found |= {(len(values), call.prefix, place): float(s) for place, s in places.items()}
    return found


def draw_images(shape):
    """Returns float32 images that differ from each other in the large and in the small.

    Noise of single pixels alone would average to the same for all images in every pooling layer.
    """
    random = np.random.default_rng(0)
    height, width, channels = shape
    large = random.normal(size=(BATCH, 4, 4, channels)).repeat(height // 4, 1).repeat(width // 4, 2)
    return np.float32(large + random.normal(size=(BATCH, *shape)))


def cross_entropy(logits, targets):
    """Mean over images and, in segmentation, positions; no accuracy."""
    targets = jnp.broadcast_to(targets.reshape(-1, *[1] * (logits.ndim - 2)), logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(), jnp.zeros(())


@jax.jit
def descend(params, gradient, rate):
    """One step of SGD; gradients longer than 1 are clipped."""
    rate = rate / jnp.maximum(1.0, optax.tree.norm(gradient))
    return jax.tree.map(lambda p, g: p - rate * g, params, gradient)


def losses_of_training(tape, program, params, images, rate):
    """Returns the loss before every step and after the last, on one batch with its statistics."""
    params, images, targets = (
        tape.parallel.copy(params),
        *tape.parallel.shard((images, np.arange(BATCH, dtype=np.int32) % CLASSES)),
    )
    losses = []
    for _ in range(STEPS):
        loss, _, gradient = tape.loss_and_gradient(program, params, images, targets)
        params = descend(params, gradient, rate)
        losses.append(float(loss))
    return [*losses, float(tape.loss(program, params, images, targets)[0])]


def check_starts(program, rate, initializer):
    """Checks spread and training from both starts; returns what a row of docs/results.md says.

    Labels are balanced: a network that cannot tell the images apart does not fall below ln 3.
    """
    network, batch = Network(program), draw_images(program.input_shape)
    tape = Tape(Parallel(jax.devices()[:1]), BATCH, cross_entropy)
    cells, found, losses = [], {}, {}
    for start, share in (("own", 0.0), ("predicted", 1.0)):
        params = medinit_jax.initialize(
            network, batch, initializer, depth_fraction=share, quiet=True
        )["params"]
        spread = spreads(program, params, batch)
        loss = losses_of_training(tape, program, params, batch, rate)
        low, high = min(spread.values()), max(spread.values())
        cells += [f"{low:.2g} to {high:.2g}", f"{loss[0]:.3f} to {loss[-1]:.3f}"]
        found |= {(start, *place): value for place, value in spread.items()}
        losses[start] = loss
    wrong = [(*place, value) for place, value in found.items() if not 1e-3 < value < 1e3]
    for start, loss in losses.items():
        if not np.isfinite(loss).all() or loss[-1] >= min(loss[0], math.log(CLASSES)):
            wrong.append((start, loss))
    return cells, wrong


@pytest.mark.parametrize("family", SMALL)
def test_spread_and_training(family, initializer):
    assert check_starts(SMALL[family], 0.1, initializer)[1] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.MODELS)
def test_spread_and_training_of_every_network(name, initializer):
    # The classic U-Net has many channels at the size of the image.
    size = 32 if name == "unet" else 64
    # At 0.003 the loss of the deepest network still jumps up and down.
    rate = 0.001 if name == "resnet152" else 0.01
    program = zoo.build(name, CLASSES, (size, size, 3)).program
    cells, wrong = check_starts(program, rate, initializer)
    print("\n|", " | ".join([name, str(size), *cells]), "|", flush=True)
    # What was compiled for 29 networks would fill the memory.
    jax.clear_caches()
    if name in FADING and wrong:
        assert {start for start, *_ in wrong} == {"predicted"}
        pytest.xfail("predicted by an untrained hypernetwork, without norm: the signal fades")
    assert wrong == [] and name not in FADING


def test_small_images_have_small_stems():
    small, large = (
        zoo.build("regnet_y_400mf", 2, (32, 32, 3), stem=stem) for stem in ("small", "imagenet")
    )
    assert zoo.by_name("regnet_y_400mf", 2, get_space("small")) == small
    assert zoo.by_name("regnet_y_400mf:imagenet", 2, get_space("small")) == large
    narrow = zoo.build("resnet18", 2, (32, 32, 3), stem="small", width=16)
    assert zoo.by_name("resnet18:width=16", 2, get_space("small")) == narrow
    assert small.program.shapes[1][0] == 2 * large.program.shapes[1][0]


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="no network 'resnet20': choose from resnet18"):
        zoo.build("resnet20", 2)
    with pytest.raises(UsageError, match="no network 'vgg11:small'"):
        zoo.by_name("vgg11:small", 2, get_space("small"))
    with pytest.raises(UsageError, match="no stem 'width=0'"):
        zoo.by_name("resnet18:width=0", 2, get_space("small"))
    with pytest.raises(UsageError, match="no stem 'cifar'"):
        zoo.build("densenet121", 2, stem="cifar")
