"""A network as a program: a list of calls of small static blocks.

One description serves everybody. The Flax module runs it whole (`models.network`), the tape runs it
block by block through compiled functions (`arch.tape`), and the graph of the hypernetwork is read
off it by rule (`arch.graph`). A block is static and hashable, so equal blocks of different
architectures share one compiled function.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

from medinit_jax.core.errors import UsageError

Shape = tuple[int, ...]
ParameterShapes = dict[str, dict[str, Shape]]

EPSILON = 1e-5
# Leaves that no hypernetwork predicts: every network starts them from this constant.
OWN_INIT = {"gamma": 1e-6, "token": 0.0}


@dataclasses.dataclass(frozen=True)
class Step:
    """One primitive operation inside a block.

    Attributes:
        kind: What it does; see `output_shape` for the list.
        args: Local value numbers: 0..arity-1 are the block's inputs, arity+i is step i's output.
        name: Module name of its parameters inside the block, empty without parameters.
        features: Output channels of `conv`, `conv_t` and `dense`.
        kernel: Height and width of convolution and pooling windows.
        stride: Vertical and horizontal stride.
        padding: Zero padding on both sides, vertical and horizontal.
        dilation: Kernel dilation of `conv`.
        groups: Feature groups of `conv`, channel groups of `group_norm`.
        bias: Whether `conv`, `conv_t` or `dense` adds a bias.
        offset: First row and column that `subsample` keeps.
        heads: Attention heads.
        epsilon: Added to the variance by norms and by `standardized`.
        standardized: Whether a kernel of `conv` is brought to mean 0 and variance 1 per output.
        size: Output height and width of `adaptive_pool`, `bilinear` and `nearest`.
        aligned: Whether `bilinear` keeps the centers of the corner pixels in place.
        rate: Share of its input that `dropout` leaves out in training.
    """

    kind: str
    args: tuple[int, ...]
    name: str = ""
    features: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    offset: int = 0
    heads: int = 0
    epsilon: float = EPSILON
    standardized: bool = False
    size: tuple[int, int] = (0, 0)
    aligned: bool = False
    rate: float = 0.0


@dataclasses.dataclass(frozen=True)
class Block:
    """A static piece of a network: `arity` inputs, steps in order, the last step is the output."""

    arity: int
    steps: tuple[Step, ...]

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.arity, self.steps))


@dataclasses.dataclass(frozen=True)
class Call:
    """One use of a block: which values it reads and the prefix of its module names.

    Attributes:
        block: The block.
        inputs: Global value numbers: 0 is the image, i+1 is the output of call i.
        prefix: Prefix of every module name of the block, joined by a dot.
    """

    block: Block
    inputs: tuple[int, ...]
    prefix: str = ""

    def module(self, name: str) -> str:
        """Returns the full module name of a step of this call."""
        return ".".join(part for part in (self.prefix, name) if part)


@dataclasses.dataclass(frozen=True)
class Program:
    """A whole network; its last call is the head and yields the logits.

    Attributes:
        calls: Calls in topological order.
        input_shape: (height, width, channels) of one image.
    """

    calls: tuple[Call, ...]
    input_shape: tuple[int, int, int]

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Per-image shape of every value: the image, then each call's output."""
        shapes: list[Shape] = [tuple(self.input_shape)]
        for call in self.calls:
            layout = block_layout(call.block, tuple(shapes[i] for i in call.inputs))
            shapes.append(layout.outputs[-1])
        return tuple(shapes)

    def layout(self, index: int) -> BlockLayout:
        """Returns shapes inside call `index`."""
        call = self.calls[index]
        return block_layout(call.block, tuple(self.shapes[i] for i in call.inputs))

    def parameter_shapes(self) -> ParameterShapes:
        """Returns {module: {leaf: shape}} of all parameters, in program order."""
        return {
            call.module(name): dict(leaves)
            for index, call in enumerate(self.calls)
            for name, leaves in self.layout(index).parameters.items()
        }

    @property
    def num_parameters(self) -> int:
        """Number of scalar parameters."""
        return sum(
            _size(shape) for leaves in self.parameter_shapes().values() for shape in leaves.values()
        )

    @property
    def head(self) -> str:
        """Module name of the classifier: the last module of the last call, dense or a convolution.

        Raises:
            ValueError: If the last call ends in another kind of module, or has none.
        """
        call = self.calls[-1]
        last = next((step for step in reversed(call.block.steps) if step.name), None)
        if last is None or last.kind not in ("dense", "conv"):
            raise ValueError("a program ends in a call whose last module is dense or a convolution")
        return call.module(last.name)

    @property
    def head_input(self) -> int:
        """Number of the value that the last call reads: the features that it pools."""
        return self.calls[-1].inputs[0]

    @property
    def reads_token(self) -> bool:
        """Whether the last call reads the first token of a sequence instead of the mean."""
        return any(step.kind == "first_token" for step in self.calls[-1].block.steps)

    @property
    def num_classes(self) -> int:
        """Number of classes, the last axis of the logits."""
        return self.shapes[-1][-1]

    def pruned(self) -> Program:
        """Returns the program without calls whose output never reaches the logits."""
        live = {len(self.calls)}
        for index in range(len(self.calls), 0, -1):
            if index in live:
                live.update(self.calls[index - 1].inputs)
        number = {0: 0}
        calls = []
        for index, call in enumerate(self.calls, start=1):
            if index in live:
                inputs = tuple(number[i] for i in call.inputs)
                calls.append(Call(call.block, inputs, call.prefix))
                number[index] = len(calls)
        return Program(tuple(calls), self.input_shape)


@dataclasses.dataclass(frozen=True)
class BlockLayout:
    """Shapes inside a block: one output per step, and {name: {leaf: shape}} of its parameters."""

    outputs: tuple[Shape, ...]
    parameters: Mapping[str, Mapping[str, Shape]]


@functools.lru_cache(maxsize=65536)
def block_layout(block: Block, inputs: tuple[Shape, ...]) -> BlockLayout:
    """Infers every shape inside `block` for inputs of the given per-image shapes."""
    values = list(inputs)
    parameters = {}
    for step in block.steps:
        args = [values[i] for i in step.args]
        if step.name:
            parameters[step.name] = step_parameters(step, args[0])
        values.append(output_shape(step, args))
    return BlockLayout(tuple(values[block.arity :]), parameters)


def step_parameters(step: Step, shape: Shape) -> dict[str, Shape]:
    """Returns {leaf: shape} of a step's parameters in Flax layout (HWIO kernels).

    Args:
        step: The step.
        shape: Per-image shape of its first argument.
    """
    channels = shape[-1]
    if step.kind == "conv":
        leaves: dict[str, Shape] = {
            "kernel": (*step.kernel, channels // step.groups, step.features)
        }
    elif step.kind == "conv_t":
        leaves = {"kernel": (*step.kernel, channels, step.features)}
    elif step.kind == "dense":
        leaves = {"kernel": (channels, step.features)}
    elif step.kind in ("batch_norm", "layer_norm", "group_norm"):
        return {"scale": (channels,), "bias": (channels,)}
    elif step.kind == "position":
        return {"embedding": (1, *shape)}
    elif step.kind == "layer_scale":
        return {"gamma": (channels,)}
    elif step.kind == "class_token":
        return {"token": (1, channels)}
    else:
        raise ValueError(f"step {step.kind!r} has a name but no parameters")
    if step.bias:
        leaves["bias"] = (step.features,)
    return leaves


def output_shape(step: Step, args: list[Shape]) -> Shape:
    """Returns the per-image output shape of a step.

    Args:
        step: The step.
        args: Shapes of its arguments: (height, width, channels) of a map, (tokens, channels) of a
            sequence or (channels,) of a vector.

    Raises:
        ValueError: If there is no such step, or it does not take such shapes.
    """
    shape = args[0]
    kind = step.kind
    if kind in ("conv", "max_pool", "avg_pool"):
        height, width = (
            (size + 2 * pad - step.dilation * (window - 1) - 1) // stride + 1
            for size, pad, window, stride in zip(
                shape[:2], step.padding, step.kernel, step.stride, strict=True
            )
        )
        return (height, width, step.features if kind == "conv" else shape[2])
    if kind == "conv_t":
        if step.kernel != step.stride:
            raise ValueError("the windows of conv_t do not overlap: its kernel is its stride")
        return (shape[0] * step.stride[0], shape[1] * step.stride[1], step.features)
    if kind in ("adaptive_pool", "bilinear", "nearest"):
        return (*step.size, shape[2])
    if kind == "pad":
        return (shape[0] + 2 * step.padding[0], shape[1] + 2 * step.padding[1], shape[2])
    if kind == "tokens":
        return (_size(shape[:-1]), shape[-1])
    if kind == "class_token":
        return (shape[0] + 1, shape[1])
    if kind == "dense":
        return (*shape[:-1], step.features)
    if kind == "subsample":
        return (-(-shape[0] // step.stride[0]), -(-shape[1] // step.stride[1]), shape[2])
    if kind in ("global_pool", "squeeze", "first_token"):
        return shape[-1:]
    if kind == "flatten":
        return (_size(shape),)
    if kind == "concat":
        return (*shape[:-1], sum(a[-1] for a in args))
    if kind == "attention":
        return (*shape[:-1], shape[-1] // 3)
    if kind == "add":
        if any(a != shape for a in args):
            raise ValueError(f"add of different shapes {args}")
        return shape
    if kind in SAME_SHAPE:
        return shape
    raise ValueError(f"unknown step kind {kind!r}")


SAME_SHAPE = frozenset(
    (
        "relu",
        "relu6",
        "gelu",
        "silu",
        "hard_swish",
        "sigmoid",
        "hard_sigmoid",
        "batch_norm",
        "layer_norm",
        "group_norm",
        "layer_scale",
        "position",
        "gate",
        "zeros",
        "dropout",
    )
)


# Batch, group (at most 32 groups), layer (over the channels of one place), instance norm.
NORMS = ("bn", "gn", "ln", "in", "none")
NORM_GROUPS = 32


def check_norm(norm: str) -> None:
    """Raises `UsageError` unless `norm` is one of `NORMS`."""
    if norm not in NORMS:
        raise UsageError(f"no norm {norm!r}: choose from {', '.join(NORMS)}")


class BlockBuilder:
    """Writes a block: `b = BlockBuilder(1); y = b("relu", 0); b("conv", y, name="conv", ...)`."""

    def __init__(self, arity: int):
        self.arity = arity
        self.steps: list[Step] = []

    def __call__(self, kind: str, *args: int, **attributes) -> int:
        """Appends a step and returns its value number."""
        self.steps.append(Step(kind, tuple(args), **attributes))
        return self.arity + len(self.steps) - 1

    def conv(
        self, x: int, name: str, features: int, size: int | tuple[int, int] = 1, **attributes
    ) -> int:
        """Appends a convolution with 'same' padding for odd kernels unless padding is given."""
        kernel = (size, size) if isinstance(size, int) else size
        stride = attributes.pop("stride", (1, 1))
        stride = (stride, stride) if isinstance(stride, int) else stride
        dilation = attributes.get("dilation", 1)
        same = (kernel[0] // 2 * dilation, kernel[1] // 2 * dilation)
        padding = attributes.pop("padding", same)
        return self(
            "conv",
            x,
            name=name,
            features=features,
            kernel=kernel,
            stride=stride,
            padding=padding,
            **attributes,
        )

    def norm(self, x: int, kind: str, name: str, channels: int, epsilon: float = EPSILON) -> int:
        """Appends a normalization of `channels` channels; `kind` is one of `NORMS`."""
        if kind == "none":
            return x
        if kind in ("gn", "in"):
            # At least two channels per group: with one, group norm would be instance norm.
            most = channels // 2 if channels % 2 == 0 else 1
            groups = channels if kind == "in" else math.gcd(most, NORM_GROUPS)
            return self("group_norm", x, name=name, groups=groups, epsilon=epsilon)
        step = {"bn": "batch_norm", "ln": "layer_norm"}[kind]
        return self(step, x, name=name, epsilon=epsilon)

    def conv_norm(
        self,
        x: int,
        names: tuple[str, str],
        features: int,
        size: int = 1,
        norm: str = "bn",
        epsilon: float = EPSILON,
        **attributes,
    ) -> int:
        """Appends a convolution and its norm, named in this order; without norm it has a bias."""
        y = self.conv(x, names[0], features, size, bias=norm == "none", **attributes)
        return self.norm(y, norm, names[1], features, epsilon)

    def build(self) -> Block:
        """Returns the finished block."""
        return Block(self.arity, tuple(self.steps))


class ProgramBuilder:
    """Collects calls; every method returns the global number of the new value."""

    def __init__(self, input_shape: tuple[int, int, int]):
        self.input_shape = input_shape
        self.calls: list[Call] = []

    def __call__(self, block: Block, inputs: Iterable[int], prefix: str = "") -> int:
        """Appends a call of `block` and returns its value number."""
        self.calls.append(Call(block, tuple(inputs), prefix))
        return len(self.calls)

    def shape(self, value: int) -> Shape:
        """Returns the per-image shape of a value."""
        return Program(tuple(self.calls), self.input_shape).shapes[value]

    def build(self) -> Program:
        """Returns the program without dead calls."""
        return Program(tuple(self.calls), self.input_shape).pruned()


def _size(shape: Shape) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
