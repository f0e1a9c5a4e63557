"""timm's names of tensors, where its network computes the same function."""

from __future__ import annotations

import re
from collections.abc import Callable

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.interop.places import Names
from medinit_jax.interop.torchvision_names import inside_encoder, vgg_name
from medinit_jax.models.mobilenet import VARIANTS
from medinit_jax.models.vgg import LAST_MAP

# Of a RegNet's block.
_REGNET = {
    "proj.0": "downsample.conv", "proj.1": "downsample.bn", "f.a.0": "conv1.conv",
    "f.a.1": "conv1.bn", "f.b.0": "conv2.conv", "f.b.1": "conv2.bn", "f.se.fc1": "se.fc1",
    "f.se.fc2": "se.fc2", "f.c.0": "conv3.conv", "f.c.1": "conv3.bn",
}  # fmt: skip
# Of a VGG's head.
_VGG = {"0": "pre_logits.fc1", "3": "pre_logits.fc2", "6": "head.fc"}
# Of a ConvNeXt's block and head.
_CONVNEXT = {
    "block.0.": "conv_dw.", "block.2.": "norm.", "block.3.": "mlp.fc1.", "block.5.": "mlp.fc2.",
    "layer_scale": "gamma",
}  # fmt: skip
_CONVNEXT_HEAD = {"0": "norm", "2": "fc"}
_GATE = {"fc1": "conv_reduce", "fc2": "conv_expand"}


def timm_names(name: str, family: str, program: Program, heads: object) -> Names:
    """Returns timm's names for a network.

    Decoders, which timm lacks, keep our names, after an encoder below "encoder.".

    Args:
        name: A network of the zoo.
        family: Name of its builder in `models`.
        program: The network.
        heads: timm's networks have one.

    Raises:
        UsageError: timm's network of this name is another function.
    """
    del heads
    if name.endswith("mobilenet_v3_large"):
        raise UsageError(
            f"timm's mobilenetv3_large_100 adds 1e-5 to variances where {name} adds 1e-3, and is "
            "another function"
        )
    classifies = len(program.shapes[-1]) == 1
    if family == "vgg" and classifies and max(_last_map(program)) > LAST_MAP[0]:
        raise UsageError(
            f"timm's {name} pools after the layers of its head, and is another function on images "
            f"of {program.input_shape[:2]}"
        )
    convs = {"vgg": ("classifier.0", "classifier.3"), "bit": ("head.fc",)}.get(family, ())
    return Names(inside_encoder(_FAMILIES.get(family, str)), convs=frozenset(convs))


def _last_map(program: Program) -> tuple[int, ...]:
    """Returns height and width of the last map."""
    return next(shape for shape in reversed(program.shapes) if len(shape) == 3)[:2]


def _regnet(own: str) -> str:
    found = re.fullmatch(r"trunk_output\.block(\d)\.block\d-(\d+)\.(.+)\.(\w+)", own)
    if found:
        stage, block, layer, end = found.groups()
        return f"s{stage}.b{int(block) + 1}.{_REGNET[layer]}.{end}"
    own = own.replace("stem.0.", "stem.conv.").replace("stem.1.", "stem.bn.")
    return f"head.{own}" if own.startswith("fc.") else own


def _vgg(own: str) -> str:
    found = re.fullmatch(r"classifier\.(\d)\.(\w+)", own)
    return f"{_VGG[found[1]]}.{found[2]}" if found else vgg_name(own)


def _convnext(own: str) -> str:
    found = re.fullmatch(r"features\.(\d)\.(\d+)\.(block\.\d\.|layer_scale)(\w*)", own)
    if found:
        number, block, layer, end = found.groups()
        return f"stages.{int(number) // 2}.blocks.{block}.{_CONVNEXT[layer]}{end}"
    found = re.fullmatch(r"(features|classifier)\.(\d)\.(.+)", own)
    if not found:
        return own
    part, number, rest = found.groups()
    if part == "classifier":
        return f"head.{_CONVNEXT_HEAD[number]}.{rest}"
    return f"stem.{rest}" if number == "0" else f"stages.{int(number) // 2}.downsample.{rest}"


def _mobilenet(own: str) -> str:
    """Blocks are counted through here, and by stages there: a stage begins with another width."""
    stages: list[list[int]] = []
    widths = [row.features for row in VARIANTS["mobilenet_v2"].rows]
    for number, width in enumerate(widths, start=1):
        if number == 1 or width != widths[number - 2]:
            stages.append([])
        stages[-1].append(number)
    found = re.fullmatch(r"features\.(\d+)\.conv\.(.+)\.(\w+)", own)
    if not found:
        return _ends(own, len(widths) + 1)
    number, layer, end = int(found[1]), found[2], found[3]
    stage = next(i for i, numbers in enumerate(stages) if number in numbers)
    block = stages[stage].index(number)
    first = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
    other = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl",
             "3": "bn3"}  # fmt: skip
    return f"blocks.{stage}.{block}.{(first if number == 1 else other)[layer]}.{end}"


def _efficientnet(own: str) -> str:
    found = re.fullmatch(r"features\.(\d)\.(\d+)\.block\.(\d)\.(\w+)\.(\w+)", own)
    if not found:
        return _ends(own, 8)
    stage, block, number, layer, end = found.groups()
    # The first block does not expand, and lacks the first convolution.
    convs = ("conv_dw", "", "conv_pw") if stage == "1" else ("conv_pw", "conv_dw", "", "conv_pwl")
    place = int(number)
    if layer in _GATE:
        inner = f"se.{_GATE[layer]}"
    elif layer == "0":
        inner = convs[place]
    else:
        inner = f"bn{1 + sum(map(bool, convs[:place]))}"
    return f"blocks.{int(stage) - 1}.{block}.{inner}.{end}"


def _ends(own: str, last: int) -> str:
    """Names stem, last convolution and classifier of mobile networks."""
    names = {
        "features.0.0": "conv_stem", "features.0.1": "bn1", f"features.{last}.0": "conv_head",
        f"features.{last}.1": "bn2", "classifier.1": "classifier",
    }  # fmt: skip
    module, _, end = own.rpartition(".")
    return f"{names.get(module, module)}.{end}"


_FAMILIES: dict[str, Callable[[str], str]] = {
    "regnet": _regnet,
    "vgg": _vgg,
    "mobilenet": _mobilenet,
    "efficientnet": _efficientnet,
    "convnext": _convnext,
}
