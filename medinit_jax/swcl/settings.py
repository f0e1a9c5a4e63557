"""From `configs/swcl.py` to a method and its views; what a method would not read is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from medinit_jax.core.errors import UsageError
from medinit_jax.data.augment import NORMALIZATION
from medinit_jax.data.views import RECIPES, ViewRecipe
from medinit_jax.losses.labels import SCHEMES
from medinit_jax.swcl.batches import Look
from medinit_jax.swcl.methods import METHODS, Dino
from medinit_jax.swcl.patch_pairs import THRESHOLD
from medinit_jax.swcl.step import Recipe

EXPORTS = ("student", "teacher")
# Side of the whole images in SWCL's code, in pixels.
IMAGE_SIZE = 448
# What settings are where nobody has changed them, so that a change that does nothing is seen.
_PLAIN = {
    **{f"loss.{field.name}": field.default for make in METHODS.values()
       for field in dataclasses.fields(make)},
    "loss.scheme": "all",
    "loss.threshold": THRESHOLD,
    "export": "student",
    "data.patches": "",
    "data.sets": "",
    "data.image_size": IMAGE_SIZE,
    "train.ema": Recipe._field_defaults["ema"],
    "train.frozen_epochs": Recipe._field_defaults["frozen_epochs"],
}  # fmt: skip
_RANGES = {
    "loss.temperature": (lambda x: x > 0, "more than 0"),
    "loss.base_temperature": (lambda x: x >= 0, "more than 0, or to 0 for the loss's temperature"),
    "loss.position_weight": (lambda x: x >= 0, "0 or more"),
    "loss.prototypes": (lambda x: x >= 2, "2 or more"),
    "train.ema": (lambda x: 0 <= x <= 1, "a share between 0 and 1"),
    "train.frozen_epochs": (lambda x: x >= 0, "0 or more"),
}


def make_method(config: ml_collections.ConfigDict) -> Any:
    """Returns the method that `config.method` names, with the settings of `config.loss`.

    Raises:
        UsageError: There is no such method, it does not read a setting that was changed, or a
            number is out of its range.
    """
    if config.method not in METHODS:
        raise UsageError(
            f"config.method={config.method!r}; set it to one of: {', '.join(METHODS)}."
        )
    _check_numbers(config)
    make = METHODS[config.method]
    known = {field.name for field in dataclasses.fields(make)}
    settings = {name: value for name, value in config.loss.items() if name in known}
    if "labelled" in known:
        settings["labelled"] = config.method != "simclr"
    method = make(**settings)
    read = _read(config, method) | {f"loss.{name}" for name in known}
    flat = {f"loss.{name}": value for name, value in config.loss.items()} | {
        "export": config.export,
        **{f"data.{name}": config.data[name] for name in ("patches", "sets", "image_size")},
        "train.ema": config.train.ema,
        "train.frozen_epochs": config.train.frozen_epochs,
    }
    for name, value in flat.items():
        if name not in read and value != _PLAIN[name]:
            raise UsageError(
                f"config.{name}={value!r} does nothing for config.method={config.method} with its "
                f"other settings; leave it at {_PLAIN[name]!r}."
            )
    if config.export not in EXPORTS:
        raise UsageError(f"config.export={config.export!r}; set it to one of: student, teacher.")
    return method


def _check_numbers(config: ml_collections.ConfigDict) -> None:
    """Raises UsageError for numbers by which a loss has no value, or nothing is learned."""
    for name, (fits, wanted) in _RANGES.items():
        part, key = name.split(".")
        if not fits(config[part][key]):
            raise UsageError(f"config.{name}={config[part][key]}; set it to {wanted}.")


def _read(config: ml_collections.ConfigDict, method: Any) -> set[str]:
    """Returns the settings, besides the method's own, that it reads."""
    read = set()
    if method.averaged:
        read |= {"export", "train.ema"}
    if isinstance(method, Dino):
        read |= {"train.frozen_epochs"}
    read |= {"data.patches"} if method.images == "pairs" else {"data.sets", "data.image_size"}
    if config.method in ("swcl", "swcl_image"):
        read |= {"loss.scheme"}
    if reads_threshold(config):
        read |= {"loss.threshold"}
    return read


def reads_threshold(config: ml_collections.ConfigDict) -> bool:
    """Returns whether the scores of patches decide about anything."""
    if config.method == "swcl":
        return "abnormality" in SCHEMES.get(config.loss.scheme, ())
    return config.method == "multitask"


def make_look(config: ml_collections.ConfigDict, method: Any) -> Look:
    """Returns how images are shown to a method.

    Raises:
        UsageError: There is no such recipe, size or normalization, or the method takes other views.
    """
    data = config.data
    if data.normalization not in NORMALIZATION:
        raise UsageError(
            f"config.data.normalization={data.normalization!r}; set it to one of: "
            f"{', '.join(NORMALIZATION)}."
        )
    if min(data.size, data.image_size) < 1:
        raise UsageError(
            f"config.data.size={data.size} and image_size={data.image_size} are sides in pixels; "
            "set them to at least 1."
        )
    if data.views not in RECIPES:
        raise UsageError(
            f"config.data.views={data.views!r}; set it to one of: {', '.join(RECIPES)}."
        )
    recipe = RECIPES[data.views]
    if not _fits(recipe, method):
        fitting = [name for name, other in RECIPES.items() if _fits(other, method)]
        raise UsageError(
            f"config.data.views={data.views} has {len(recipe.views)} views and "
            f"{len(recipe.local)} local ones, which the method does not take; set it to one of: "
            f"{', '.join(fitting)}."
        )
    return Look(recipe, data.size, *NORMALIZATION[data.normalization])


def check_bn_group(config: ml_collections.ConfigDict, recipe: ViewRecipe, normed: bool) -> None:
    """Raises UsageError unless groups of views fill a batch, and there are batch statistics.

    Args:
        config: The experiment.
        recipe: The views.
        normed: Whether encoder or heads have batch normalization.
    """
    group, batch = config.train.bn_group, config.train.batch
    if group and not normed:
        raise UsageError(
            f"config.train.bn_group={group}, but nothing in this network has batch normalization; "
            "set it to 0."
        )
    counts = [batch * len(views) for views in (recipe.views, recipe.local) if views]
    if group < 0 or (group and any(count % group for count in counts)):
        raise UsageError(
            f"config.train.bn_group={group} does not divide a batch, which has "
            f"{' and '.join(map(str, counts))} views; set it to a divisor, or to 0 for the batch."
        )


def _fits(recipe: ViewRecipe, method: Any) -> bool:
    return len(recipe.views) == method.views and (method.local or not recipe.local)
