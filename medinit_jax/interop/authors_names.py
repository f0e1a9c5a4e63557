"""Names of tensors in the checkpoints of SWCL's authors (`pytorch_model.bin`).

Source: SWCL (arXiv 2108.02122) with its authors' code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.interop.places import Names
from medinit_jax.models import zoo
from medinit_jax.models.encoder import ENCODER
from medinit_jax.models.network import is_below

# Names of the one task where none are given.
CLASSIFICATION, SEGMENTATION = "classification", "segmentation"
# Beside an encoder: heads on pooled features, whose names here are the authors'.
_HEADS = ("projection_network", "predictor_network", "out")
# A pair of convolutions with norms.
_DOUBLE = {"conv1": "0", "norm1": "1", "conv2": "3", "norm2": "4"}
_DEEPLAB = {
    "decoder.low.": "decoder.project.",
    "decoder.convs.0.": "decoder.conv.",
    "aspp.convs.4.1.": "decoder.aspp.convs.4.pool.1.",
    "aspp.convs.4.2.": "decoder.aspp.convs.4.batch_norm.",
    "aspp.": "decoder.aspp.",
}


def authors_names(name: str, family: str, program: Program, heads: Mapping[str, int]) -> Names:
    """Returns the authors' names for a network.

    Args:
        name: A network of the zoo.
        family: Name of its builder in `models`.
        program: The network.
        heads: {task: classes} of its heads; empty: one, named `CLASSIFICATION` or `SEGMENTATION`.

    Raises:
        UsageError: The authors have no such network.
    """
    tasks = dict(heads)
    segments = zoo.encoder_of(name) != name or family == "unet"
    if not tasks:
        tasks = {SEGMENTATION if segments else CLASSIFICATION: program.num_classes}
    if sum(tasks.values()) != program.num_classes:
        raise UsageError(
            f"the heads {', '.join(tasks)} have {sum(tasks.values())} classes in sum, and {name} "
            f"has {program.num_classes}"
        )
    if family not in ("resnet", "bit", "unet"):
        raise UsageError(f"SWCL's authors have no {name}")
    if segments and not _is_theirs(name, family, program):
        raise UsageError(
            f"this {name} is not theirs (config.model.decoder=swcl is, U-Nets on ResNets only)"
        )
    ends = {f"out.{task}.{'conv' if segments else '0'}": n for task, n in tasks.items()}
    encoder = _bit if family == "bit" else str

    def rename(own: str) -> str:
        if is_below(own, _HEADS):
            return own.replace("last_layer.weight", "last_layer.weight_v")
        if name.startswith("unet"):
            return _unet(own, family == "unet")
        for start, theirs in _DEEPLAB.items():
            if own.startswith(start):
                return theirs + own.removeprefix(start)
        return f"{ENCODER}.{encoder(own.removeprefix(f'{ENCODER}.'))}"

    return Names(rename, heads=ends)


def _is_theirs(name: str, family: str, program: Program) -> bool:
    """Tells whether a segmentation network has the authors' decoder."""
    calls = {call.prefix: call.block for call in program.calls}
    if name.startswith("unet"):
        up = next((step for step in calls["decoder.0"].steps if step.name == "up"), None)
        return family != "bit" and up is not None and up.kind == "conv"
    steps = calls["decoder"].steps
    # The encoder's large map, a later value than the enlarged small one, comes first.
    large, small = next(step.args for step in steps if step.kind == "concat")
    return large > small and sum(step.kind == "conv" for step in steps) == 2


def _bit(own: str) -> str:
    found = re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.([a-z]+)(\d?)(?:\.conv)?\.(\w+)", own)
    if not found:
        return own.replace("stem.conv.", "root.conv.").replace("norm.", "head.gn.")
    stage, block, kind, number, end = found.groups()
    kind = "gn" if kind == "norm" else kind
    return f"body.block{int(stage) + 1}.unit{int(block) + 1:02d}.{kind}{number}.{end}"


def _unet(own: str, classic: bool) -> str:
    module, _, end = own.rpartition(".")
    part, level, *rest = module.split(".")
    if part == "decoder":
        leaf = "up.1" if rest == ["up"] else f"conv.double_conv.{_DOUBLE[rest[0]]}"
        return f"decoder.up{int(level) + 1}.{leaf}.{end}"
    if classic:
        inner = "" if level == "0" else "maxpool_conv.1."
        return f"{ENCODER}.down{level}.{inner}double_conv.{_DOUBLE[rest[0]]}.{end}"
    if level in ("conv1", "bn1"):
        return f"{ENCODER}.down1.{0 if level == 'conv1' else 1}.{end}"
    stage = int(level.removeprefix("layer"))
    # Below the first stage lies its pooling, too.
    inner = ".".join(["1"] * (stage == 1) + rest)
    return f"{ENCODER}.down{stage + 1}.{inner}.{end}"
