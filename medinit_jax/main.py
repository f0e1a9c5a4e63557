"""Runs one experiment: training, evaluation and the report.

    python -m medinit_jax.main --config=configs/hyper.py
    python -m medinit_jax.main --config=configs/hyper.py:smoke --config.seed=1 --workdir=runs/try
    python -m medinit_jax.main --config=configs/hyper.py --config.stages=evaluate,report
    python -m medinit_jax.main --config=configs/swcl.py:simclr --cluster=auto

The same command again resumes the run in its workdir. Exit codes: 0 done, 2 something to put right
(one sentence on stderr), 75 stopped by SIGTERM and 130 by ctrl-C, both saved.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections

from medinit_jax.core import cluster, command, compilation_cache, interrupt
from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.core.membership import joined
from medinit_jax.core.parallel import provide_threads


def _route(module: str) -> Callable[[ml_collections.ConfigDict, Path], None]:
    # Imported when chosen: a route may need much that others do not.
    return lambda config, workdir: importlib.import_module(module).run(config, workdir)


ROUTES: dict[str, Callable[[ml_collections.ConfigDict, Path], None]] = {
    "hyper": _route("medinit_jax.hyper"),
    "finetune": _route("medinit_jax.finetune"),
    "predict": _route("medinit_jax.finetune.predict"),
    "study": _route("medinit_jax.study"),
    "labeler": _route("medinit_jax.swcl.labeler"),
    "swcl": _route("medinit_jax.swcl"),
    "patches": _route("medinit_jax.swcl.score"),
    "export": _route("medinit_jax.interop.export"),
}


# Routes that several processes can share.
SHARED = ("hyper", "finetune", "labeler", "swcl", "patches", "predict")
# Routes whose processes divide what is to be done through files, and do not meet.
APART = ("study",)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and hands over to the route that the config names.

    Args:
        argv: the program's name and its arguments; None = those of the process.

    Returns:
        The exit code.
    """
    words = sys.argv if argv is None else argv
    return command.exit_code(lambda: _run(words), interrupt.SENTENCE)


def _run(words: Sequence[str]) -> None:
    read = read_command_line(words, __doc__ or "")
    config = read.config
    if config.route not in ROUTES:
        raise UsageError(
            f"The config has route={config.route!r}; set it to one of {', '.join(ROUTES)}."
        )
    provide_threads()
    compilation_cache.enable(config.get("cache_dir"))
    with joined(read.cluster, config.route in APART):
        cluster.check_command(config, SHARED)
        ROUTES[config.route](config, read.workdir)


if __name__ == "__main__":
    interrupt.raise_on_sigterm()
    sys.exit(main())
