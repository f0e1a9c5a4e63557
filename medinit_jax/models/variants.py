"""What the builders of all families ask of their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from medinit_jax.core.errors import UsageError

STEMS = ("imagenet", "small")
T = TypeVar("T")


def find_variant(variants: Mapping[str, T], variant: str | T, family: str) -> T:
    """Returns the variant that is meant: itself, or the one of that name.

    Args:
        variants: Named members of the family.
        variant: A name or a member.
        family: What the family is called in errors.

    Raises:
        UsageError: If there is no member of that name.
    """
    if not isinstance(variant, str):
        return variant
    if variant not in variants:
        raise UsageError(f"no {family} {variant!r}: choose from {', '.join(variants)}")
    return variants[variant]


def is_imagenet(stem: str) -> bool:
    """Tells whether a stem is the one for large images, which halves them once more.

    Raises:
        UsageError: If there is no such stem.
    """
    if stem not in STEMS:
        raise UsageError(f"no stem {stem!r}: choose from {', '.join(STEMS)}")
    return stem == "imagenet"


def check_last_stride(stride: int) -> None:
    """Raises `UsageError` unless the stride of the last stage is 1 or 2."""
    if stride not in (1, 2):
        raise UsageError(f"last_stride is 1 or 2, got {stride}")


def divisible(value: float, divisor: int) -> int:
    """Rounds a channel count to a multiple of `divisor` that is at least 90 % of it."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
