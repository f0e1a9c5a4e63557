"""Learned starting points for networks on medical images, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medinit_jax.api import Initializer, initialize, inspect, load
    from medinit_jax.interop.export import export
    from medinit_jax.interop.export_folder import load_export

__version__ = "0.1.0"
__all__ = [
    "Initializer",
    "__version__",
    "export",
    "initialize",
    "inspect",
    "load",
    "load_export",
]

# Where each name lies.
_API = {
    **dict.fromkeys(("Initializer", "initialize", "inspect", "load"), "medinit_jax.api"),
    "export": "medinit_jax.interop.export",
    "load_export": "medinit_jax.interop.export_folder",
}


def __getattr__(name: str) -> Any:
    # JAX is imported with the first use, so that the command line answers `--help` at once.
    if name in _API:
        return getattr(importlib.import_module(_API[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
