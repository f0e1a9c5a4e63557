"""Learned starting points for networks on medical images, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medinit_jax.api import Initializer, initialize, inspect, load

__version__ = "0.1.0"
__all__ = ["Initializer", "__version__", "initialize", "inspect", "load"]

_API = frozenset(("Initializer", "initialize", "inspect", "load"))


def __getattr__(name: str) -> Any:
    # JAX is imported with the first use, so that the command line answers `--help` at once.
    if name in _API:
        return getattr(importlib.import_module("medinit_jax.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
