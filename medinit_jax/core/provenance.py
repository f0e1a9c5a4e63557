"""Where figures come from: code, machine, command."""

import datetime
import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from medinit_jax.core.secrets import redacted

PACKAGE = "medinit_jax"


def code_version() -> str:
    """Returns the package's version, and the commit if the code lies in its own git checkout."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        version = "unreleased"
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return version
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version} ({found.stdout.strip()})"


def source_digest() -> str:
    """Returns a SHA-256 of the package's source files: what was compiled from others may differ."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def provenance(command: str, config_name: str) -> dict[str, Any]:
    """Returns code version, machine and date of this run, as `summary.json` holds them.

    Args:
        command: The command line; passwords in addresses are left out.
        config_name: Name of the configuration.
    """
    device = jax.devices()[0]
    return {
        "command": redacted(command),
        "config_name": config_name,
        "code_version": code_version(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {device.device_kind}"
        + (f", {jax.process_count()} processes" if jax.process_count() > 1 else ""),
        "cores": os.cpu_count(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def fingerprint(params: Any) -> str:
    """Returns the SHA-256 of a tree of arrays: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, leaf in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        array = np.asarray(leaf, order="C")
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
