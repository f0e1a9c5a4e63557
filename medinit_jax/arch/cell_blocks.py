"""The blocks of DeepNets cells, stems and heads, each made once: equal operations compile once.

Names inside a block are those of the reference implementation's submodules ("op.1" is the first
convolution of ReLU-conv-BN).

Source: Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from medinit_jax.arch.program import Block, BlockBuilder

ATTENTION_HEADS = 8


@functools.cache
def op_block(op: str, features: int, stride: int, norm: bool) -> Block:
    """Returns the block of a cell operation with `features` channels in and out."""
    return OPS[op](features, stride, norm)


@functools.cache
def conv_block(
    features: int, size: int = 1, stride: int = 1, norm: bool = True, pair: bool = False
) -> Block:
    """Returns ReLU, convolution (or a 1xk, kx1 pair), norm."""
    b = BlockBuilder(1)
    y = b("relu", 0)
    if pair:
        y = b.conv(y, "op.1", features, (1, size), stride=(1, stride))
        y = b.conv(y, "op.2", features, (size, 1), stride=(stride, 1))
    else:
        y = b.conv(y, "op.1", features, size, stride=stride)
    if norm:
        b("batch_norm", y, name="op.3" if pair else "op.2")
    return b.build()


@functools.cache
def factorized_reduce(features: int, norm: bool = True) -> Block:
    """Returns two 1x1 convolutions of stride 2, one pixel apart, concatenated."""
    b = BlockBuilder(1)
    y = b("relu", 0)
    halves = []
    for offset in (0, 1):
        part = b("subsample", y, stride=(2, 2), offset=offset)
        halves.append(b.conv(part, f"conv_{offset + 1}", features // 2))
    y = b("concat", *halves)
    if norm:
        b("batch_norm", y, name="bn")
    return b.build()


def _sep_conv(features: int, stride: int, norm: bool, size: int) -> Block:
    b = BlockBuilder(1)
    y = 0
    for first, stage_stride in ((1, stride), (5, 1)):
        y = b("relu", y)
        y = b.conv(y, f"op.{first}", features, size, stride=stage_stride, groups=features)
        y = b.conv(y, f"op.{first + 1}", features)
        if norm:
            y = b("batch_norm", y, name=f"op.{first + 2}")
    return b.build()


def _dil_conv(features: int, stride: int, norm: bool, size: int) -> Block:
    b = BlockBuilder(1)
    y = b("relu", 0)
    y = b.conv(
        y,
        "op.1",
        features,
        size,
        stride=stride,
        padding=(size - 1, size - 1),
        dilation=2,
        groups=features,
    )
    y = b.conv(y, "op.2", features)
    if norm:
        b("batch_norm", y, name="op.3")
    return b.build()


def _pool(features: int, stride: int, norm: bool, kind: str) -> Block:
    del features, norm
    b = BlockBuilder(1)
    b(kind, 0, kernel=(3, 3), stride=(stride, stride), padding=(1, 1))
    return b.build()


def _squeeze_excite(features: int, stride: int, norm: bool) -> Block:
    del norm
    b = BlockBuilder(1)
    y = b("squeeze", 0)
    y = b("dense", y, name="fc1", features=features // 2, bias=True)
    y = b("relu", y)
    y = b("dense", y, name="fc2", features=features, bias=True)
    y = b("hard_swish", y)
    y = b("gate", 0, y)
    if stride > 1:
        b("subsample", y, stride=(stride, stride))
    return b.build()


def _transformer(features: int, stride: int, norm: bool) -> Block:
    del norm
    b = BlockBuilder(1)
    y = b("layer_norm", 0, name="ln1")
    y = b("dense", y, name="to_qkv", features=3 * features)
    y = b("attention", y, heads=ATTENTION_HEADS)
    y = b("dense", y, name="to_out.0", features=features, bias=True)
    attended = b("add", y, 0)
    y = b("layer_norm", attended, name="ln2")
    y = b("dense", y, name="ff.net.0", features=features, bias=True)
    y = b("gelu", y)
    y = b("dense", y, name="ff.net.3", features=features, bias=True)
    y = b("add", y, attended)
    if stride > 1:
        b("subsample", y, stride=(stride, stride))
    return b.build()


def _conv(features: int, stride: int, norm: bool, size: int, pair: bool = False) -> Block:
    return conv_block(features, size, stride, norm, pair)


def _strided_skip(features: int, stride: int, norm: bool) -> Block:
    del stride
    return factorized_reduce(features, norm=norm)


OPS: dict[str, Callable[[int, int, bool], Block]] = {
    "max_pool_3x3": functools.partial(_pool, kind="max_pool"),
    "avg_pool_3x3": functools.partial(_pool, kind="avg_pool"),
    "skip_connect": _strided_skip,
    "sep_conv_3x3": functools.partial(_sep_conv, size=3),
    "sep_conv_5x5": functools.partial(_sep_conv, size=5),
    "dil_conv_3x3": functools.partial(_dil_conv, size=3),
    "dil_conv_5x5": functools.partial(_dil_conv, size=5),
    "conv_1x1": functools.partial(_conv, size=1),
    "conv_7x1_1x7": functools.partial(_conv, size=7, pair=True),
    "conv_3x3": functools.partial(_conv, size=3),
    "conv_5x5": functools.partial(_conv, size=5),
    "conv_7x7": functools.partial(_conv, size=7),
    "msa": _transformer,
    "cse": _squeeze_excite,
}


@functools.cache
def subsample_block() -> Block:
    """Returns the block that keeps every second row and column."""
    b = BlockBuilder(1)
    b("subsample", 0, stride=(2, 2))
    return b.build()


@functools.cache
def add_block() -> Block:
    """Returns the sum of two values."""
    b = BlockBuilder(2)
    b("add", 0, 1)
    return b.build()


@functools.cache
def concat_block(live: tuple[bool, ...]) -> Block:
    """Returns the concatenation of states, zeros in the place of those that are not live."""
    b = BlockBuilder(sum(live))
    zeros = 0 if all(live) else b("zeros", 0)
    args = iter(range(sum(live)))
    b("concat", *(next(args) if alive else zeros for alive in live))
    return b.build()


@functools.cache
def patch_stem(features: int, large: bool) -> Block:
    """Returns patch embedding and position encoding: 14x14 tokens of 224 px, 11x11 of 32 px."""
    size, padding = (16, 0) if large else (3, 1)
    b = BlockBuilder(1)
    y = b.conv(0, "stem0", features, size, stride=size, padding=(padding, padding))
    b("position", y, name="pos_enc")
    return b.build()


@functools.cache
def simple_stem(features: int, size: int, large: bool, pool: bool, norm: bool) -> Block:
    """Returns one convolution, norm and, if wanted, max pooling."""
    b = BlockBuilder(1)
    y = b.conv(0, "0", features, size, stride=4 if large else 1)
    if norm:
        y = b("batch_norm", y, name="1")
    if pool:
        b("max_pool", y, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    return b.build()


@functools.cache
def imagenet_stem(features: int, size: int, large: bool, norm: bool) -> tuple[Block, Block]:
    """Returns the two blocks of the three-convolution stem."""
    stride = 2 if large else 1
    b = BlockBuilder(1)
    y = b.conv(0, "0", features // 2, size, stride=stride)
    if norm:
        y = b("batch_norm", y, name="1")
    y = b("relu", y)
    y = b.conv(y, "3", features, 3, stride=stride)
    if norm:
        b("batch_norm", y, name="4")
    last = BlockBuilder(1)
    y = last("relu", 0)
    y = last.conv(y, "1", features, 3, stride=2)
    if norm:
        last("batch_norm", y, name="2")
    return b.build(), last.build()


@functools.cache
def head_block(pool: bool, hidden: int, num_classes: int) -> Block:
    """Returns pooling or flattening and one dense layer, two if `hidden` is not 0."""
    b = BlockBuilder(1)
    y = b("global_pool" if pool else "flatten", 0)
    if hidden:
        y = b("dense", y, name="0", features=hidden, bias=True)
        y = b("relu", y)
        b("dense", y, name="3", features=num_classes, bias=True)
    else:
        b("dense", y, name="0", features=num_classes, bias=True)
    return b.build()
