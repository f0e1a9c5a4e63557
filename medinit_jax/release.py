"""Releases of trained initializers: one .zip with parameters, metadata and a card.

    python -m medinit_jax.release build runs/hyper --name=medinit-fundus --out=dist
    python -m medinit_jax.release install medinit-fundus-0.1.0.zip

`build` packs what a run of route hyper left. `install` puts a release into the cache, where
`medinit_jax.load("medinit-fundus")` finds it; nothing is downloaded. Exit codes: 0 done, 2
something to put right (a sentence on stderr).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from medinit_jax.core import command
from medinit_jax.core.errors import UsageError


def build(workdir: Path, name: str, out: Path) -> Path:
    """Packs the initializer of a run, with its card.

    Args:
        workdir: Of the run; its stages train and evaluate are done.
        name: Under which it is installed.
        out: Folder of the .zip.

    Returns:
        The .zip.

    Raises:
        UsageError: Something of the run is missing, or the .zip is there already.
    """
    # Imported when used, so that `--help` answers at once.
    from medinit_jax import __version__
    from medinit_jax.api import load
    from medinit_jax.core.parameters import INITIALIZER_FOLDER
    from medinit_jax.hyper.asset import CARD_FILE, READABLE_CARD, pack
    from medinit_jax.report.initializer_card import card, markdown

    if not workdir.is_dir():
        raise UsageError(f"{workdir} is no folder; name the workdir of a run of route hyper.")
    initializer = load(workdir / INITIALIZER_FOLDER)
    found = card(workdir, initializer.metadata, initializer.fingerprint, name)
    cards = {
        CARD_FILE: json.dumps(found, indent=2, sort_keys=True) + "\n",
        READABLE_CARD: markdown(found),
    }
    return pack(workdir / INITIALIZER_FOLDER, cards, name, __version__, out)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments; None = those of the process.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(argv)
    return command.exit_code(lambda: _run(options), "Stopped; say the same command again.")


def _run(options: argparse.Namespace) -> None:
    if options.command == "build":
        archive = build(Path(options.workdir), options.name, Path(options.out))
        print(f"{archive} ({archive.stat().st_size / 1e6:.1f} MB)")
        return
    from medinit_jax.hyper.asset import READABLE_CARD, install

    folder = install(Path(options.file), options.sha256)
    print(f'Installed in {folder}: medinit_jax.load("{folder.name}"); read {READABLE_CARD} there.')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m medinit_jax.release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    packing = commands.add_parser("build", help="pack the initializer of a run")
    packing.add_argument("workdir", help="of a run of route hyper, trained and evaluated")
    packing.add_argument("--name", required=True, help="under which it is installed")
    packing.add_argument("--out", required=True, help="folder of the .zip")
    installing = commands.add_parser("install", help="make a release known by its name")
    installing.add_argument("file", help="the .zip")
    installing.add_argument("--sha256", default="", help="what its digest has to be (default: any)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
