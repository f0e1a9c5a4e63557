"""Node types: what the hypernetwork can be told an operation is."""

from __future__ import annotations

import numpy as np

from medinit_jax.core.errors import UsageError

# The position is the embedding index, and stored parameters depend on it: types are only appended.
NODE_TYPES = (
    # DeepNets-1M, the vocabulary of GHN-2.
    "max_pool",
    "avg_pool",
    "sep_conv",
    "dil_conv",
    "conv",
    "msa",
    "cse",
    "sum",
    "concat",
    "input",
    "bias",
    "bn",
    "ln",
    "pos_enc",
    "glob_avg",
    # What other families of networks need.
    "group_conv",
    "conv_t",
    "upsample",
    "gn",
    "in",
    "layer_scale",
    "embed",
    "mul",
    # Activations, nodes only where a hypernetwork asks for them.
    "relu",
    "gelu",
    "silu",
    "hard_swish",
    "sigmoid",
    "softmax",
)
TYPE_INDEX = {name: index for index, name in enumerate(NODE_TYPES)}
DEEPNETS_TYPES = 15

# The type of GHN-2 that is nearest to a later one. GHN-2 itself counts grouped convolutions as
# `sep_conv`; the others it does not know.
NEAREST = {
    "group_conv": "sep_conv",
    "conv_t": "conv",
    "upsample": "avg_pool",
    "gn": "ln",
    "in": "bn",
    "layer_scale": "bias",
    "embed": "pos_enc",
    "mul": "cse",
}
SAME_IN_DEEPNETS = frozenset(("group_conv",))
UNKNOWN = ("error", "nearest")


def known_types(node_type: np.ndarray, known: int, unknown: str = "error") -> np.ndarray:
    """Returns node types as a hypernetwork with the first `known` types understands them.

    Args:
        node_type: int32 (N,), index into `NODE_TYPES`.
        known: How many types the hypernetwork knows.
        unknown: What becomes of others: "error", or "nearest" for the type of `NEAREST`.

    Returns:
        int32 (N,).

    Raises:
        UsageError: A type is unknown and stays so.
    """
    if unknown not in UNKNOWN:
        raise UsageError(f"unknown_types={unknown!r} is none of {', '.join(UNKNOWN)}.")
    names = {NODE_TYPES[index] for index in np.unique(node_type) if index >= known}
    lost = sorted(
        name
        for name in names
        if name not in NEAREST or (unknown == "error" and name not in SAME_IN_DEEPNETS)
    )
    if lost:
        can = all(name in NEAREST for name in lost)
        raise UsageError(
            f"The network has nodes of type {', '.join(lost)}, which this hyper-initializer "
            f"(vocabulary: the first {known} types) does not know; "
            + ("pass unknown_types='nearest' to treat them as the " if can else "use one that ")
            + ("nearest types it knows, or use one trained with them." if can else "knows them.")
        )
    table = np.arange(len(NODE_TYPES), dtype=np.int32)
    for name in names:
        table[TYPE_INDEX[name]] = TYPE_INDEX[NEAREST[name]]
    return table[node_type]
