"""Sets up JAX for every test, before anything imports it."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_DEVICES = (
    "--xla_force_host_platform_device_count=4"
    # Four devices on two busy cores may wait for each other longer than the usual 40 seconds.
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()
# As medinit_jax.core.parallel.provide_threads, which cannot be imported before JAX is set up.
os.environ.setdefault("PJRT_NPROC", "16")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".medinit_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Figures are drawn into files only.
os.environ.setdefault("MPLBACKEND", "Agg")
