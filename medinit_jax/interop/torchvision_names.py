"""torchvision's names of tensors; ours are the same but for a few families."""

from __future__ import annotations

import re
from collections.abc import Callable

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.interop.places import Names
from medinit_jax.models.encoder import ENCODER

_VIT = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj": "conv_proj",
    "norm": "encoder.ln",
    "head": "heads.head",
}
# Of a transformer block; queries, keys and values are one matrix in both.
_VIT_BLOCK = {
    "norm1.": "ln_1.",
    "attn.qkv.": "self_attention.in_proj_",
    "attn.proj.": "self_attention.out_proj.",
    "norm2.": "ln_2.",
    "mlp.fc1.": "mlp.0.",
    "mlp.fc2.": "mlp.3.",
}


def torchvision_names(name: str, family: str, program: Program, heads: object) -> Names:
    """Returns torchvision's names for a network.

    Decoders, which torchvision lacks, keep our names, after an encoder below "encoder.".

    Args:
        name: A network of the zoo.
        family: Name of its builder in `models`.
        program: The network.
        heads: torchvision's networks have one.

    Raises:
        UsageError: The network is a BiT network.
    """
    del program, heads
    if family == "bit":
        raise UsageError(f"torchvision has no {name}")
    rename = {"vgg": vgg_name, "vit": _vit}.get(family, str)
    return Names(inside_encoder(rename), scale=(1, 1))


def inside_encoder(rename: Callable[[str], str]) -> Callable[[str], str]:
    """Returns the function that renames below "encoder." as the given one does elsewhere."""
    own = f"{ENCODER}."

    def outside(module: str) -> str:
        if module.startswith(own):
            return own + rename(module.removeprefix(own))
        return rename(module)

    return outside


def vgg_name(own: str) -> str:
    """Returns torchvision's name of a tensor of a VGG's maps.

    A convolution and its norm are two members of one list there, and parts of a block here.
    """
    found = re.fullmatch(r"features\.(\d+)\.(conv|norm)\.(\w+)", own)
    return f"features.{int(found[1]) + (found[2] == 'norm')}.{found[3]}" if found else own


def _vit(own: str) -> str:
    found = re.fullmatch(r"blocks\.(\d+)\.(.+\.)(\w+)", own)
    if found:
        return f"encoder.layers.encoder_layer_{found[1]}.{_VIT_BLOCK[found[2]]}{found[3]}"
    module, dot, end = own.rpartition(".")
    return f"{_VIT[module]}{dot}{end}" if module else _VIT[own]
