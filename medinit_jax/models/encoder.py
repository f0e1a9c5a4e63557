"""A classifier without its head, and as the encoder of a segmentation network."""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import Block, Call, Program, ProgramBuilder, Shape
from medinit_jax.core.errors import UsageError

# Modules of the part that sees the image first, whose parameters may come from elsewhere.
ENCODER = "encoder"
_POOLS = ("max_pool", "avg_pool")
# What begins a head: steps that read the last map or sequence.
_READERS = ("global_pool", "adaptive_pool", "flatten", "first_token")
OUTPUT_STRIDES = (8, 16, 32)


def append_encoder(
    build: ProgramBuilder, classifier: Program, output_stride: int = 32
) -> list[int]:
    """Appends a classifier without its head; its modules are named "encoder.…".

    Args:
        build: The network that is built, for the same images.
        classifier: A network that keeps maps up to its head.
        output_stride: How much smaller than the image the last map is: 8, 16 or 32; what does not
            stride any more is dilated.

    Returns:
        The last value of each size, the largest first; the image itself is not among them.

    Raises:
        UsageError: The classifier keeps no maps, or cannot be dilated.
    """
    maps = _with_parts(body(classifier))
    if output_stride != OUTPUT_STRIDES[-1]:
        maps = dilated(maps, output_stride)
    number = {0: 0}
    by_size: dict[Shape, int] = {}
    for index, call in enumerate(maps.calls, start=1):
        prefix = f"{ENCODER}.{call.prefix}" if call.prefix else ENCODER
        number[index] = build(call.block, [number[i] for i in call.inputs], prefix)
        shape = maps.shapes[index]
        if shape[:2] != tuple(classifier.input_shape[:2]):
            by_size[shape[:2]] = number[index]
    return [by_size[size] for size in sorted(by_size, reverse=True)]


def body(program: Program) -> Program:
    """Returns a classifier up to what its head reads: its last map, or sequence of tokens.

    Args:
        program: The classifier.

    Returns:
        A network without logits; its modules have the classifier's names and order.

    Raises:
        UsageError: The network is no classifier.
    """
    last = program.calls[-1]
    steps = last.block.steps
    kept = next((i for i, step in enumerate(steps) if step.kind in _READERS), None)
    if kept is None:
        raise UsageError(
            "this network has no head that pools or flattens its last map; choose a classifier, "
            "such as resnet18"
        )
    calls = program.calls[:-1]
    if kept:
        calls += (dataclasses.replace(last, block=Block(last.block.arity, steps[:kept])),)
    return Program(calls, program.input_shape)


def _with_parts(program: Program) -> Program:
    """Sets pooling at the end of a block apart."""
    calls: list[Call] = []
    number = {0: 0}
    for index, call in enumerate(program.calls):
        if any(step.kind in ("tokens", "position") for step in call.block.steps):
            raise UsageError(
                "a network of tokens keeps no maps that a decoder could read; choose a "
                "convolutional encoder, such as resnet18"
            )
        inputs = tuple(number[i] for i in call.inputs)
        for block, reads in _parts(call.block):
            calls.append(Call(block, inputs if reads is None else (len(calls),), call.prefix))
        number[index + 1] = len(calls)
    return Program(tuple(calls), program.input_shape)


def _parts(block: Block) -> list[tuple[Block, int | None]]:
    """Cuts a block before a pooling that ends it, so that the larger map has a number of its own.

    Returns:
        Blocks; the second reads the first, which is marked by a 0 in the place of None.
    """
    steps = block.steps
    place = len(steps) - 1
    # Zero padding belongs to the pooling after it.
    while place > 0 and steps[place - 1].kind == "pad":
        place -= 1
    if (
        steps[-1].kind not in _POOLS
        or place == 0
        or steps[place].args != (block.arity + place - 1,)
    ):
        return [(block, None)]
    moved = [
        dataclasses.replace(step, args=(0,) if i == 0 else (i,))
        for i, step in enumerate(steps[place:])
    ]
    return [(Block(block.arity, steps[:place]), None), (Block(1, tuple(moved)), 0)]


def dilated(program: Program, output_stride: int) -> Program:
    """Replaces the strides beyond an output stride by dilation of all that comes after.

    A convolution that should have strided still reads neighbors at the old distance, as
    torchvision's `replace_stride_with_dilation` and SWCL's networks have it.

    Args:
        program: A network without its head.
        output_stride: How much smaller than the image the last map may be.

    Raises:
        UsageError: There is no such output stride, or a pooling would have to be dilated.

    Source: Chen et al., Rethinking Atrous Convolution, 2017.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise UsageError(f"output_stride is 8, 16 or 32, got {output_stride}")
    # Of every value: how much smaller than the image it is, and how much finer than it would be.
    values = [(1, 1)]
    calls = []
    for call in program.calls:
        inner = [values[i] for i in call.inputs]
        steps = []
        for step in call.block.steps:
            reduction, lag = max((inner[i] for i in step.args), key=lambda pair: pair[1])
            stride = step.stride[0] if step.kind in ("conv", *_POOLS, "subsample") else 1
            if stride > 1 and reduction * stride > output_stride:
                if step.kind in _POOLS:
                    raise UsageError(
                        f"this network pools beyond output stride {output_stride}, which cannot be "
                        "dilated; choose another encoder or output_stride=32"
                    )
                step = _dilated_step(dataclasses.replace(step, stride=(1, 1)), lag)
                inner.append((reduction, lag * stride))
            else:
                step = _dilated_step(step, lag)
                inner.append((reduction * stride, lag))
            steps.append(step)
        values.append(inner[-1])
        calls.append(Call(Block(call.block.arity, tuple(steps)), call.inputs, call.prefix))
    return Program(tuple(calls), program.input_shape)


def _dilated_step(step, lag: int):
    if step.kind != "conv" or lag == 1 or step.kernel == (1, 1):
        return step
    padding = (step.padding[0] * lag, step.padding[1] * lag)
    return dataclasses.replace(step, dilation=step.dilation * lag, padding=padding)
