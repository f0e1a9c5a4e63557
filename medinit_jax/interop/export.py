"""Networks into other programs' hands: weights under their names, a proof, and a card."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.interop.card_page import PAGE
from medinit_jax.interop.description import describe, without_head
from medinit_jax.interop.export_folder import WEIGHTS, refuse_foreign, write_folder
from medinit_jax.interop.exported_state import (
    ExportedState,
    exported_state,
    heads_of,
    refuse_not_finite,
)
from medinit_jax.interop.layouts import LAYOUTS, find_layout, from_state, names_of
from medinit_jax.interop.origin import PRETRAINED, Origin, encoder_of, predicted, trained
from medinit_jax.interop.proof import NOT_RUN, prove
from medinit_jax.interop.run_state import NOTHING, Beside, heads_of_pretraining
from medinit_jax.interop.task_proof import on_test_images

# As in configs/export.py.
PROOF = {"images": 2, "seed": 0, "tolerance": 1e-4, "test": False, "batch": 8, "data_dir": ""}
_FLAX_PROOF = {
    "status": "passed",
    "class": "medinit_jax.models.network.Network",
    "inputs": "every tensor was read back bit for bit",
}


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Exports a network, see `configs/export.py`.

    Args:
        config: The export.
        workdir: The folder that is written.

    Raises:
        UsageError: Something the user can mend.
    """
    if bool(config.checkpoint) == bool(config.initializer):
        raise UsageError(
            "Name either the workdir of a run with --config.checkpoint, or an initializer with "
            "--config.initializer and a network with --config.model.name."
        )
    if config.checkpoint and config.model.name:
        raise UsageError(
            f"config.model.name={config.model.name} belongs to an initializer; the network of a "
            "checkpoint is known, so leave it empty."
        )
    export(
        config.checkpoint or config.initializer,
        workdir,
        to=config.to,
        model=config.model.to_dict() if config.initializer else None,
        num_classes=config.num_classes,
        size=config.size,
        seed=config.seed,
        pytorch_bin=config.pytorch_bin,
        force=config.force,
        proof=config.proof.to_dict(),
        note=config.note,
    )


def export(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    to: str = "torchvision",
    model: str | Mapping[str, Any] | None = None,
    num_classes: int = 2,
    size: int = 224,
    seed: int = 42,
    pytorch_bin: bool = False,
    force: bool = False,
    proof: Mapping[str, Any] | None = None,
    note: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Writes a network's weights under a library's names, with a proof and a card.

    Args:
        source: The workdir of a fine-tuning, labeler or pretraining, its `model/` or
            `checkpoints/`; or, with `model`, a trained initializer.
        folder: Is made; an earlier export of the same network and layout in it is replaced.
        to: The layout: "torchvision", "timm", "authors" (SWCL's), "smp", "bit" or "flax".
        model: The network that an initializer predicts: a name, or a name with options as
            `config.model` of a fine-tuning has them.
        num_classes: Size of its logits.
        size: Side of its images in pixels.
        seed: Of what is not predicted.
        pytorch_bin: Whether `pytorch_model.bin` is written beside `model.safetensors`.
        force: Whether to export in spite of numbers that are not finite and of a failed proof.
        proof: `images`, `seed`, `tolerance`, `test` and `data_dir`, see `configs/export.py`; those
            that are not given are as there.
        note: For the card.
        quiet: Whether to print nothing.

    Returns:
        The card, as `card.json` holds it.

    Raises:
        UsageError: There is no such network or layout, the layout cannot hold it, the folder holds
            something else, numbers are not finite, or PyTorch's network says something else.
    """
    console, source, folder = Console(stderr=True, quiet=quiet), Path(source), Path(folder)
    settings = {**PROOF, **(proof or {})}
    if unknown := settings.keys() - PROOF:
        raise UsageError(f"There is no {sorted(unknown)[0]} of a proof; give {', '.join(PROOF)}.")
    if settings["images"] < 1 or not settings["tolerance"] >= 0:
        raise UsageError(
            f"config.proof.images={settings['images']} and tolerance={settings['tolerance']}; set "
            "images to at least 1, tolerance to at least 0."
        )
    find_layout(to)
    if model is None:
        origin = trained(source)
    else:
        described = {"name": model} if isinstance(model, str) else model
        origin = predicted(source, described, num_classes, size, seed, console)
    names = names_of(origin.name, origin.program, to, heads_of(origin))
    if names.encoder_only and origin.has_head:
        origin = encoder_of(origin)
    refuse_foreign(folder, origin, to)
    beside = NOTHING
    if LAYOUTS[to].beside and origin.what == PRETRAINED:
        beside = heads_of_pretraining(Path(origin.folder), origin.record, origin.params)
    held = exported_state(origin, to, beside)
    remarks = [line for line in (note, beside.remark) if line]
    if broken := refuse_not_finite(held.state, force):
        remarks.append(f"{len(broken)} tensors hold numbers that are not finite: {broken[0]}.")
    _check_round_trip(origin, to, held, beside)
    program = origin.program if origin.has_head else without_head(origin.program)
    description = describe(program, held.owners, held.state, origin.has_head, held.beside)
    if to == "flax":
        found, loaded = _FLAX_PROOF, None
    else:
        found, loaded = prove(origin, to, held.network, description, held.heads, settings)
    if settings["test"]:
        found = {**found, "test": on_test_images(origin, loaded, settings, console)}
    _judge(found, settings, force, console)
    if found["status"] == "failed":
        remarks.append("PyTorch's network says something else, see the proof.")
    card = write_folder(folder, origin, to, held, description, found, pytorch_bin, remarks)
    console.print(
        f"{origin.what.capitalize()} {origin.name} as {to}: {folder / WEIGHTS}, {folder / PAGE}",
        highlight=False,
        soft_wrap=True,
    )
    return card


def _check_round_trip(origin: Origin, layout: str, held: ExportedState, beside: Beside) -> None:
    """Raises ValueError unless every tensor is read back as it was."""
    others = {
        module: {leaf: np.shape(value) for leaf, value in leaves.items()}
        for module, leaves in (*beside.params.items(), *beside.statistics.items())
    }
    found = from_state(origin.name, origin.program, held.state, layout, heads_of(origin), others)
    flat = {**found.params, **found.statistics}
    for tree in (origin.params, origin.statistics, beside.params, beside.statistics):
        for module, leaves in tree.items():
            for leaf, value in leaves.items():
                name = f"{module}/{leaf}"
                own = np.asarray(value, np.float32)
                if not np.array_equal(flat.get(name, np.nan), own, equal_nan=True):
                    raise ValueError(f"{name} is not read back from the layout {layout}")


def _judge(
    found: dict[str, Any], settings: Mapping[str, Any], force: bool, console: Console
) -> None:
    """Prints what the proof found, and raises UsageError if it failed."""

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    if found["status"] == NOT_RUN:
        say(f"WARNING: not proven: {found['reason']}.")
    limit, errors = settings["tolerance"], {}
    for name in ("logits", "features"):
        if name in found:
            errors[name] = found[name]["relative"]
            say(
                f"{name}: largest difference {found[name]['absolute']:.3g}, "
                f"{found[name]['relative']:.3g} of their range"
            )
    if "test" in found:
        test = found["test"]
        errors[test["metric"]] = test["difference"]
        say(
            f"{test['metric']} on {test['images']} test images: {test['here']:.6f} here, "
            f"{test['pytorch']:.6f} in PyTorch"
        )
    wrong = [f"{name} by {error:.3g}" for name, error in errors.items() if not error <= limit]
    if not wrong:
        return
    found["status"] = "failed"
    if not force:
        raise UsageError(
            f"{found['class']} with the exported weights differs in {' and '.join(wrong)}, more "
            f"than config.proof.tolerance={limit:g}; nothing was written: raise the tolerance, or "
            "set config.force=True to export all the same."
        )
    say(f"WARNING: differs in {' and '.join(wrong)}, more than {limit:g}.")
