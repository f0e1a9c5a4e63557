"""What has to be done to an image before a network sees it, as a card tells it."""

from __future__ import annotations

from typing import Any

from medinit_jax.finetune.recipes import Plan

UNKNOWN = "not recorded"
_FITS = {
    "fov": "The box around the bright field of the photograph, padded with black to a square",
    "pad": "The whole image, padded with black to a square",
    "crop": "The middle square of the image",
}


def of_plan(plan: Plan, name: str) -> dict[str, Any]:
    """Returns how a fine-tuning shows images in evaluation."""
    recipe, size = plan.recipe, plan.size
    if recipe.keep == "square":
        steps = f"{_FITS[plan.fit]}, is resized to {size} x {size} pixels."
    elif recipe.keep == "short":
        steps = (
            f"The shorter side becomes {recipe.shown} pixels, and the middle {recipe.seen or size} "
            f"x {recipe.seen or size} are kept."
        )
    else:
        first = f"is stretched to {plan.square} x {plan.square} pixels" if plan.square else "stays"
        steps = (
            f"The image {first}; the network sees windows of {size} x {size} pixels, and logits "
            "are added up where they overlap."
        )
    return {
        "size": recipe.seen or size,
        "steps": steps,
        "recipe": name,
        **values(plan.mean, plan.std),
    }


def values(mean: Any, std: Any) -> dict[str, Any]:
    """Returns how pixels become numbers; what is not known is said in a word."""
    return {
        "mean": list(mean) if not isinstance(mean, str) else mean,
        "std": list(std) if not isinstance(std, str) else std,
        "channels": "RGB",
        "range": "0..1 (pixels / 255) before mean and std",
        "axes": "batch, channels, height, width in PyTorch; channels last in Flax",
    }
