"""Networks by name, ready to `init` and `apply`."""

from __future__ import annotations

from collections.abc import Callable

from medinit_jax.arch.deepnets import LARGE_IMAGE
from medinit_jax.arch.deepnets import program as space_program
from medinit_jax.arch.space import Space
from medinit_jax.core.errors import UsageError
from medinit_jax.models.network import Network
from medinit_jax.models.resnet import VARIANTS, resnet

InputShape = tuple[int, int, int]
IMAGENET_SHAPE: InputShape = (224, 224, 3)


def resnet18(
    num_classes: int, input_shape: InputShape = IMAGENET_SHAPE, stem: str = "imagenet"
) -> Network:
    """Returns a ResNet-18; see `models.resnet.resnet` for the arguments."""
    return Network(resnet("resnet18", input_shape, num_classes, stem))


def resnet34(
    num_classes: int, input_shape: InputShape = IMAGENET_SHAPE, stem: str = "imagenet"
) -> Network:
    """Returns a ResNet-34; see `models.resnet.resnet` for the arguments."""
    return Network(resnet("resnet34", input_shape, num_classes, stem))


def resnet50(
    num_classes: int, input_shape: InputShape = IMAGENET_SHAPE, stem: str = "imagenet"
) -> Network:
    """Returns a ResNet-50; see `models.resnet.resnet` for the arguments."""
    return Network(resnet("resnet50", input_shape, num_classes, stem))


def resnet101(
    num_classes: int, input_shape: InputShape = IMAGENET_SHAPE, stem: str = "imagenet"
) -> Network:
    """Returns a ResNet-101; see `models.resnet.resnet` for the arguments."""
    return Network(resnet("resnet101", input_shape, num_classes, stem))


MODELS: dict[str, Callable[..., Network]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
}


def space_network(space: Space, split: str, index: int, num_classes: int) -> Network:
    """Returns a network of a design space.

    Args:
        space: The design space; its image size is the network's.
        split: Its split.
        index: Its number in the split.
        num_classes: Size of the logits.
    """
    return Network(space_program(space.sample(split, index), space.image_size, num_classes))


def by_name(name: str, num_classes: int, space: Space) -> Network:
    """Returns the network that a name means.

    Args:
        name: "SPLIT:INDEX" for a network of the design space, "RESNET" or "RESNET:STEM" for a
            ResNet, whose stem is "small" below 128 pixels and "imagenet" from there on by default.
        num_classes: Size of the logits.
        space: The design space; its image size is that of every network.

    Raises:
        UsageError: If the name means nothing.
    """
    first, _, second = name.partition(":")
    if first in VARIANTS:
        size = space.image_size
        stem = second or ("imagenet" if size >= LARGE_IMAGE else "small")
        return MODELS[first](num_classes, (size, size, 3), stem)
    if first in space.splits and second.isdigit():
        return space_network(space, first, int(second), num_classes)
    raise UsageError(
        f"there is no network {name!r}: name it SPLIT:INDEX with a split of space {space.name!r} "
        f"({', '.join(space.splits)}), or one of {', '.join(MODELS)}"
    )
