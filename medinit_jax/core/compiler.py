"""`jax.jit` with the compiler options that are fast on the platform it runs on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax

# XLA gives convolutions on CPUs to YNNPACK by default, where they take two to five times as long as
# in Eigen, the gradient of the kernel above all; products and reductions are well placed there.
_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
_ALL_BUT_CONVOLUTIONS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"


@functools.cache
def options() -> dict[str, str]:
    """Returns XLA's options for the default platform; what XLA_FLAGS sets is left as it is."""
    if jax.default_backend() != "cpu" or _LIBRARY in os.environ.get("XLA_FLAGS", ""):
        return {}
    chosen = {_LIBRARY: _ALL_BUT_CONVOLUTIONS}
    try:
        jax.jit(lambda: 0, compiler_options=chosen).lower().compile()
    except jax.errors.JaxRuntimeError:
        # A release of XLA that does not know the option.
        return {}
    return chosen


def jit(function: Callable[..., Any], **arguments: Any) -> Any:
    """Compiles a function of whole networks; not for use inside another compiled function.

    Args:
        function: The function.
        **arguments: As `jax.jit` has them.

    Returns:
        The compiled function.
    """
    return jax.jit(function, compiler_options=options(), **arguments)
