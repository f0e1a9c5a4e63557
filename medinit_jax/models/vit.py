"""Vision transformers as programs, with timm's module names.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; Touvron et al., Training
Data-Efficient Image Transformers, ICML 2021 (the small and tiny sizes).
"""

from __future__ import annotations

import dataclasses

from medinit_jax.arch.program import Block, BlockBuilder, Program, ProgramBuilder
from medinit_jax.core.errors import UsageError
from medinit_jax.models.variants import find_variant


@dataclasses.dataclass(frozen=True)
class Variant:
    """A member of the family.

    Attributes:
        width: Channels of a token, a multiple of `heads`.
        depth: Transformer blocks.
        heads: Attention heads.
        patch: Height and width of a patch in pixels.
        mlp: Hidden channels of a block's perceptron, per channel.
        class_token: Whether the head reads a token of its own instead of the mean of all tokens.
    """

    width: int
    depth: int
    heads: int
    patch: int = 16
    mlp: int = 4
    class_token: bool = True


VARIANTS = {
    "vit_tiny_patch16_224": Variant(192, 12, 3),
    "vit_small_patch16_224": Variant(384, 12, 6),
}
EPSILON = 1e-6


def vit(
    variant: str | Variant,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
) -> Program:
    """Returns the program of a vision transformer; every transformer block is one call.

    Args:
        variant: A key of `VARIANTS`, or a member of the family.
        input_shape: (height, width, channels) of one image.
        num_classes: Size of the logits.

    Raises:
        UsageError: If there is no such network, or patches do not tile the image.
    """
    member = find_variant(VARIANTS, variant, "vision transformer")
    if input_shape[0] % member.patch or input_shape[1] % member.patch:
        raise UsageError(
            f"patches of {member.patch} pixels do not tile an image of {input_shape[:2]}: "
            "choose another image size or patch"
        )
    build = ProgramBuilder(input_shape)
    value = build(_stem(member), (0,))
    block = _transformer(member)
    for index in range(member.depth):
        value = build(block, (value,), f"blocks.{index}")
    b = BlockBuilder(1)
    b("layer_norm", 0, name="norm", epsilon=EPSILON)
    value = build(b.build(), (value,))
    b = BlockBuilder(1)
    y = b("first_token" if member.class_token else "global_pool", 0)
    b("dense", y, name="head", features=num_classes, bias=True)
    build(b.build(), (value,))
    return build.build()


def _stem(member: Variant) -> Block:
    b = BlockBuilder(1)
    size = member.patch
    y = b.conv(0, "patch_embed.proj", member.width, size, stride=size, padding=(0, 0), bias=True)
    y = b("tokens", y)
    if member.class_token:
        y = b("class_token", y, name="cls_token")
    b("position", y, name="pos_embed")
    return b.build()


def _transformer(member: Variant) -> Block:
    width = member.width
    b = BlockBuilder(1)
    y = b("layer_norm", 0, name="norm1", epsilon=EPSILON)
    y = b("dense", y, name="attn.qkv", features=3 * width, bias=True)
    y = b("attention", y, heads=member.heads)
    y = b("dense", y, name="attn.proj", features=width, bias=True)
    attended = b("add", y, 0)
    y = b("layer_norm", attended, name="norm2", epsilon=EPSILON)
    y = b("dense", y, name="mlp.fc1", features=member.mlp * width, bias=True)
    y = b("dense", b("gelu", y), name="mlp.fc2", features=width, bias=True)
    b("add", y, attended)
    return b.build()
