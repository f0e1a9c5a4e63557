"""Times what importing the package adds to importing JAX and Flax.

    python benchmarks/imports.py
    python benchmarks/imports.py --json

Every import has a process of its own; both kinds run in turn. What each figure means is told in
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

BARE = "import jax, flax.linen; from flax import nnx"
# Importing the package alone imports nothing else: JAX comes with the first public name.
OURS = f"{BARE}; import medinit_jax; medinit_jax.load"
TIMED = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"


def seconds(statement: str) -> float:
    """Returns how long a new process takes to execute a statement."""
    command = [sys.executable, "-c", TIMED.format(statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Times the import of the package.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=7, help="processes of each kind")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    # The first of each fills the caches of the disk.
    for statement in (BARE, OURS):
        seconds(statement)
    pairs = [(seconds(BARE), seconds(OURS)) for _ in range(options.repeats)]
    figures = {
        "load_average": load,
        "jax_and_flax_s": statistics.median(bare for bare, _ in pairs),
        "import_s": statistics.median(ours - bare for bare, ours in pairs),
    }
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:<16} {value:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
