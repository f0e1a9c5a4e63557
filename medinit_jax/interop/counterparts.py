"""The classes of other libraries that compute the same function as a network of the zoo."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from medinit_jax.arch.program import Program
from medinit_jax.interop.origin import Origin

# Ours: timm's, where the names differ.
_TIMM = {
    # regnetx_004 is another network, whose last stage is narrower.
    "regnet_x_400mf": "regnetx_004_tv",
    "regnet_x_1_6gf": "regnetx_016",
    "regnet_y_400mf": "regnety_004",
    "regnet_y_1_6gf": "regnety_016",
    "mobilenet_v2": "mobilenetv2_100",
}
# Ours: that of an encoder of segmentation-models-pytorch, where the names differ.
_SMP = {
    "efficientnet_b0": "timm-efficientnet-b0",
    **{name: f"tu-{_TIMM[name]}" for name in _TIMM if name.startswith("regnet")},
}
# Options that say what the classes have anyway.
_SAME = {"stem": "imagenet", "last_stride": 2, "norm": "bn", "width": 64, "output_stride": 32}


class Counterpart(NamedTuple):
    """A function that builds a network of PyTorch.

    Attributes:
        package: Its library, as it is imported.
        module: Where it lies.
        function: Its name.
        arguments: By name.
    """

    package: str
    module: str
    function: str
    arguments: dict[str, Any]

    @property
    def call(self) -> str:
        """How one writes it in Python."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.module}.{self.function}({given})"

    def make(self) -> Any:
        """Returns the network; raises ImportError if the library is not installed."""
        return getattr(importlib.import_module(self.module), self.function)(**self.arguments)


def timm_name(name: str) -> str:
    """Returns what timm calls a classifier of the zoo."""
    return _TIMM.get(name, name)


def counterpart(origin: Origin, layout: str) -> Counterpart | None:
    """Returns what builds a network in the library of a layout.

    Args:
        origin: The network.
        layout: A key of `layouts.LAYOUTS` that holds it.

    Returns:
        The function; None where no library has the network: authors' checkpoints and decoders, and
        variants such as a narrow ResNet.
    """
    changed = {key: value for key, value in origin.options.items() if _SAME.get(key) != value}
    if origin.kind == "segmentation" or changed:
        return None
    classes = {"num_classes": origin.program.num_classes} if origin.has_head else {}
    size, vit = origin.program.input_shape[0], origin.name.startswith("vit_")
    if layout == "smp":
        name = _SMP.get(origin.name, origin.name)
        module = "segmentation_models_pytorch.encoders"
        arguments = {"name": name, "weights": None}
        return Counterpart("segmentation_models_pytorch", module, "get_encoder", arguments)
    if layout in ("timm", "bit"):
        arguments = {"model_name": timm_name(origin.name), **classes}
        arguments |= {"img_size": size} if vit else {}
        return Counterpart("timm", "timm", "create_model", arguments)
    if layout == "torchvision":
        module = "torchvision.models"
        if vit:
            arguments = _vit_arguments(origin.program) | classes
            return Counterpart("torchvision", module, "VisionTransformer", arguments)
        return Counterpart("torchvision", module, origin.name, classes)
    return None


def _vit_arguments(program: Program) -> dict[str, int]:
    """Returns the sizes of a VisionTransformer; torchvision has no function for small ones."""
    steps = [step for call in program.calls for step in call.block.steps]
    patches = next(step for step in steps if step.kind == "conv")
    hidden = next(step for step in steps if step.kind == "dense" and step.name.endswith("fc1"))
    heads = [step.heads for step in steps if step.kind == "attention"]
    return {
        "image_size": program.input_shape[0],
        "patch_size": patches.kernel[0],
        "num_layers": len(heads),
        "num_heads": heads[0],
        "hidden_dim": patches.features,
        "mlp_dim": hidden.features,
    }
