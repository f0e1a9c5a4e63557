"""Networks by name, ready to `init` and `apply`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from medinit_jax.arch.deepnets import LARGE_IMAGE
from medinit_jax.arch.program import Program
from medinit_jax.arch.space import Space
from medinit_jax.core.errors import UsageError
from medinit_jax.models import (
    bit,
    convnext,
    densenet,
    efficientnet,
    mobilenet,
    regnet,
    resnet,
    vgg,
    vit,
)
from medinit_jax.models.deeplab import deeplab
from medinit_jax.models.network import Network
from medinit_jax.models.unet import unet

InputShape = tuple[int, int, int]
IMAGENET_SHAPE: InputShape = (224, 224, 3)

Builder = Callable[..., Program]
# Families whose builder takes `stem`: "imagenet", or "small" for small images.
_STEMMED: dict[str, Builder] = {
    **dict.fromkeys(resnet.VARIANTS, resnet.resnet),
    **dict.fromkeys(regnet.VARIANTS, regnet.regnet),
    **dict.fromkeys(mobilenet.VARIANTS, mobilenet.mobilenet),
    **dict.fromkeys(efficientnet.VARIANTS, efficientnet.efficientnet),
    **dict.fromkeys(densenet.VARIANTS, densenet.densenet),
    **dict.fromkeys(bit.VARIANTS, bit.bit),
}
CLASSIFIERS: dict[str, Builder] = {
    **_STEMMED,
    **dict.fromkeys(vgg.VARIANTS, vgg.vgg),
    **dict.fromkeys(convnext.VARIANTS, convnext.convnext),
    **dict.fromkeys(vit.VARIANTS, vit.vit),
}


def _on_encoder(decode: Callable[..., Program], prefix: str, *of_encoder: str) -> Builder:
    """Returns the builder of "prefix" and a classifier's name; `of_encoder` are its options."""

    def builder(name: str, input_shape: InputShape, num_classes: int, stem: str = "", **options):
        own = {"stem": stem} if stem else {}
        if "norm" in options:
            own["norm"] = options["norm"]
        own |= {key: options.pop(key) for key in of_encoder if key in options}
        classifier = name.removeprefix(prefix)
        encoder = CLASSIFIERS[classifier](classifier, input_shape, 1, **own)
        return decode(encoder, input_shape, num_classes, **options)

    return builder


# Segmentation networks on an encoder: "unet_resnet18", "deeplabv3plus_densenet121", ...
_DECODERS = {
    "unet_": _on_encoder(unet, "unet_"),
    "deeplabv3plus_": _on_encoder(deeplab, "deeplabv3plus_", "width"),
}
MODELS: dict[str, Builder] = {
    **CLASSIFIERS,
    "unet": lambda name, *arguments, **options: unet(None, *arguments, **options),
    **{
        f"{prefix}{name}": builder
        for prefix, builder in _DECODERS.items()
        for name in ("resnet18", "resnet34", "resnet50", "resnet101")
    },
}


def build(
    name: str, num_classes: int, input_shape: InputShape = IMAGENET_SHAPE, **options: Any
) -> Network:
    """Returns a network.

    Args:
        name: A key of `MODELS`; "unet_" and "deeplabv3plus_" go with every key of `CLASSIFIERS`
            that keeps maps.
        num_classes: Size of the logits.
        input_shape: (height, width, channels) of one image.
        **options: What else the builder of the family takes, such as `stem`.

    Raises:
        UsageError: If there is no such network, or the builder refuses an option.
    """
    builder = _builder(name)
    if builder is None:
        raise UsageError(f"there is no network {name!r}: choose from {', '.join(MODELS)}")
    return Network(builder(name, input_shape, num_classes, **options))


def encoder_of(name: str) -> str:
    """Returns the name of a network's encoder: "resnet18" of "unet_resnet18" and of "resnet18"."""
    for prefix in _DECODERS:
        name = name.removeprefix(prefix)
    return name


def _builder(name: str) -> Builder | None:
    """Returns the builder of a name: a key of `MODELS`, or a decoder on any classifier."""
    for prefix, builder in _DECODERS.items():
        if name.startswith(prefix) and name.removeprefix(prefix) in CLASSIFIERS:
            return builder
    return MODELS.get(name)


resnet18 = functools.partial(build, "resnet18")
resnet34 = functools.partial(build, "resnet34")
resnet50 = functools.partial(build, "resnet50")
resnet101 = functools.partial(build, "resnet101")
resnet152 = functools.partial(build, "resnet152")


def space_network(space: Space, split: str, index: int, num_classes: int) -> Network:
    """Returns a network of a design space.

    Args:
        space: The design space; its image size is the network's.
        split: Its split.
        index: Its number in the split.
        num_classes: Size of the logits.
    """
    return Network(space.program(split, index, num_classes))


def by_name(name: str, num_classes: int, space: Space) -> Network:
    """Returns the network that a name means.

    Args:
        name: "SPLIT:INDEX" for a network of the design space, or a key of `MODELS`. Families whose
            builder takes a stem may be named "NAME:STEM"; by default the stem is "small" below 128
            pixels and "imagenet" from there on. "NAME:width=16" is a ResNet of that width (64 is
            the published one).
        num_classes: Size of the logits.
        space: The design space; its image size is that of every network.

    Raises:
        UsageError: If the name means nothing, or a network of grayscale images.
    """
    first, _, second = name.partition(":")
    size = space.image_size
    if first in _STEMMED:
        options: dict[str, Any] = {"stem": "imagenet" if size >= LARGE_IMAGE else "small"}
        key, _, width = second.partition("=")
        if first in resnet.VARIANTS and key == "width" and width.isdigit() and int(width):
            options["width"] = int(width)
        elif second:
            options["stem"] = second
        return build(first, num_classes, (size, size, 3), **options)
    if _builder(name):
        return build(name, num_classes, (size, size, 3))
    if first in space.splits and second.isdigit():
        network = space_network(space, first, int(second), num_classes)
        if network.program.input_shape[-1] == 3:
            return network
        raise UsageError(f"network {name!r} takes grayscale images: name another one")
    raise UsageError(
        f"there is no network {name!r}: name it SPLIT:INDEX with a split of space {space.name!r} "
        f"({', '.join(space.splits)}), or one of {', '.join(MODELS)}"
    )
