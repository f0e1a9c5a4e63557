"""Compiled programs, kept on disk between runs."""

import os
from pathlib import Path
from typing import Any

import jax

from medinit_jax.core.errors import UsageError


def root(path: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder of all that the package keeps between runs.

    Args:
        path: the folder, as `config.cache_dir`; None or "" = the environment's
            MEDINIT_CACHE_DIR, or ~/.cache/medinit_jax.
    """
    chosen = path or os.environ.get("MEDINIT_CACHE_DIR") or "~/.cache/medinit_jax"
    return Path(chosen).expanduser().absolute()


def directory(path: str | os.PathLike[str] | None = None) -> Path:
    """Returns where compiled programs are kept: the folder `xla` in `root(path)`."""
    return root(path) / "xla"


def in_use() -> Path | None:
    """Returns the folder that JAX keeps compiled programs in, None if it keeps none."""
    config: Any = jax.config
    chosen = config.jax_compilation_cache_dir if config.jax_enable_compilation_cache else None
    return Path(chosen) if chosen else None


def entries(place: Path) -> int:
    """Returns how many compiled programs a folder holds."""
    return sum(1 for _ in place.glob("*-cache"))


def enable(path: str | os.PathLike[str] | None = None) -> Path:
    """Turns JAX's persistent compilation cache on, for programs of every size and compile time.

    A tape runs hundreds of small programs of half a second each; JAX's defaults would keep few of
    them. A folder that JAX was already told to use (JAX_COMPILATION_CACHE_DIR) stays in use
    unless `path` names another.

    Args:
        path: see `directory`.

    Returns:
        The folder in use.

    Raises:
        UsageError: the folder cannot be made or written.
    """
    chosen = in_use()
    place = directory(path) if path or not chosen else chosen
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The compilation cache {place} cannot be made ({error.strerror}); "
            "set the environment's MEDINIT_CACHE_DIR to a folder that can be written."
        ) from error
    if not os.access(place, os.W_OK):
        raise UsageError(
            f"The compilation cache {place} cannot be written; "
            "set the environment's MEDINIT_CACHE_DIR to a folder that can be."
        )
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return place
