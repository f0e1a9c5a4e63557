"""The folder of an export: written in one go, recognized, and read again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from medinit_jax.core.errors import UsageError
from medinit_jax.core.ledger import finite
from medinit_jax.core.workdir import share, write_arrays, write_json
from medinit_jax.finetune.network import make_network
from medinit_jax.interop.card import CARD, FORMAT, flax_lines, make_card, pytorch_lines
from medinit_jax.interop.card_page import PAGE, card_page
from medinit_jax.interop.counterparts import counterpart
from medinit_jax.interop.exported_state import ExportedState
from medinit_jax.interop.layouts import from_state
from medinit_jax.interop.origin import Origin
from medinit_jax.interop.torch_file import write_torch_file
from medinit_jax.models.network import Network

WEIGHTS, TORCH_FILE, ARCHIVE = "model.safetensors", "pytorch_model.bin", "model.npz"
NETWORK, CODE = "network.json", "network.py"
_FILES = (WEIGHTS, TORCH_FILE, ARCHIVE, NETWORK, CODE, PAGE, CARD)


class Exported(NamedTuple):
    """A network that was exported, read again.

    Attributes:
        network: The network.
        variables: "params" and, with batch normalization, "batch_stats", NumPy arrays.
    """

    network: Network
    variables: dict[str, Any]


def refuse_foreign(folder: Path, origin: Origin, layout: str) -> None:
    """Raises UsageError unless a folder is free, or holds an export of the same."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose a folder for the export with --workdir=.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    card = _card(folder)
    if card is None:
        raise UsageError(
            f"{folder} holds files that are no export; choose an empty or new folder with "
            "--workdir=."
        )
    held = card.get("architecture", {})
    own = (origin.folder, origin.name, layout)
    there = (card.get("source"), held.get("name"), held.get("layout"))
    if own != there:
        raise UsageError(
            f"{folder} holds the export of {there[1]} from {there[0]} as {there[2]}; choose "
            "another folder with --workdir=, or remove it."
        )


def write_folder(
    folder: Path,
    origin: Origin,
    layout: str,
    held: ExportedState,
    description: Mapping[str, Any],
    found: Mapping[str, Any],
    pytorch_bin: bool,
    remarks: Sequence[str],
) -> dict[str, Any]:
    """Writes all files beside the folder, and moves them there; the card comes last.

    Args:
        folder: Is made if it is missing.
        origin: The network.
        layout: Whose names the tensors have.
        held: The tensors.
        description: The network as `network.json` has it.
        found: The proof.
        pytorch_bin: Whether `pytorch_model.bin` is written, too.
        remarks: For the card.

    Returns:
        The card.

    Raises:
        UsageError: The folder cannot be written, or another export came first.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        library = counterpart(origin, layout)
        # One entry: the order of several would change from file to file.
        about = {"format": "np" if layout in ("flax", "bit") else "pt"}
        safetensors.numpy.save_file(held.state, temporary / WEIGHTS, metadata=about)
        share(temporary / WEIGHTS)
        if pytorch_bin:
            write_torch_file(temporary / TORCH_FILE, held.state)
        if layout == "bit":
            write_arrays(temporary / ARCHIVE, held.state)
        if library is None and layout not in ("flax", "bit"):
            write_json(temporary / NETWORK, description)
            shutil.copyfile(Path(__file__).with_name("torch_network.py"), temporary / CODE)
        files = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
        loading = {
            "pytorch": pytorch_lines(origin, layout, library, held.heads),
            "flax": flax_lines(origin),
        }
        command = shlex.join(sys.argv)
        card = make_card(origin, layout, files, found, loading, remarks, command)
        card = finite({**card, "source": origin.folder})
        (temporary / PAGE).write_text(card_page(card), encoding="utf-8")
        write_json(temporary / CARD, card)
        with _alone(folder):
            # Another export may have come first.
            refuse_foreign(folder, origin, layout)
            for name in _FILES:
                if (temporary / name).is_file():
                    os.replace(temporary / name, folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
        return card
    except (OSError, safetensors.SafetensorError) as error:
        raise UsageError(
            f"{folder} cannot be written ({error}); choose another folder with --workdir=."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other exports out of a folder meanwhile, and leaves no file of its own there."""
    place = os.open(folder, os.O_RDONLY)
    try:
        # Some file systems of clusters know no locks.
        with suppress(OSError):
            fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def load_export(folder: str | os.PathLike[str]) -> Exported:
    """Reads an exported network again, whatever its layout.

    Args:
        folder: As `export` wrote it.

    Returns:
        The network and its variables; those of an encoder are without the head's, see
        `models.features.features`.

    Raises:
        UsageError: There is no export, or it is damaged.
    """
    folder = Path(folder)
    card = _card(folder)
    if card is None:
        raise UsageError(f"{folder} holds no {CARD} of an export; check the path.")
    try:
        described, file = card["architecture"], folder / WEIGHTS
        if _digest(file) != card["files"][WEIGHTS]:
            raise UsageError(f"{file} is not what was exported; export it again.")
        model = {"name": described["name"], **described["options"]}
        side, kind = described["input_shape"][0], described["kind"]
        head = kind != "encoder"
        network = make_network(
            model, side, described["logits"] or 2, kind if head else "classification"
        )
        told = card["answers"] if isinstance(card["answers"], list) else []
        heads = {one["name"]: len(one["classes"]) for one in told} if len(told) > 1 else {}
        state = safetensors.numpy.load_file(file)
        found = from_state(described["name"], network.program, state, described["layout"], heads)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder} is damaged ({error!r}); export it again.") from error
    variables = {"params": _nested(found.params), "batch_stats": _nested(found.statistics)}
    return Exported(network, {name: tree for name, tree in variables.items() if tree})


def _card(folder: Path) -> dict[str, Any] | None:
    """Returns the card of an export; None where there is none."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(card, dict) and str(card.get("format", "")).startswith(FORMAT.split()[0])
    return card if known else None


def _nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return traverse_util.unflatten_dict({tuple(k.rsplit("/", 1)): v for k, v in flat.items()})


def _digest(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
