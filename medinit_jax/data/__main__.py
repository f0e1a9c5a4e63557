"""Datasets: what there is, where to get it, and how to make it ready for training.

    python -m medinit_jax.data list
    python -m medinit_jax.data info medinit_drive
    python -m medinit_jax.data unpack ~/Downloads/DRIVE.zip
    python -m medinit_jax.data prepare medinit_drive --from ~/Downloads/DRIVE
    python -m medinit_jax.data verify medinit_drive
    python -m medinit_jax.data show medinit_drive --split test --count 8 --out drive.png

NAME is a set, a set with a config (medinit_drive/train_only) or a task (drive_seg). A config that
reduces images stores them at another size with a suffix (medinit_rsna_ihd/full_512px). Exit codes:
0 done, 1 `verify` found something, 2 something to put right (a sentence on stderr), 75 stopped by
SIGTERM and 130 by ctrl-C; then the same command goes on.
"""

import argparse
import errno
import sys
from collections.abc import Sequence

from medinit_jax.core import interrupt
from medinit_jax.core.errors import UsageError

_FIXES = {
    errno.ENOENT: "name a place that exists",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EROFS: "name another place, as with --data-dir",
    errno.ENOTDIR: "name a folder where one is needed: a part of this path is a file",
    errno.EEXIST: "name a folder where one is needed: this is a file",
    errno.EISDIR: "name a file: this is a folder",
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room on that disk",
}


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0 on")
    return int(text)


def _amount(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m medinit_jax.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, takes_name: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        if takes_name:
            sub.add_argument("name", metavar="NAME")
        if name != "unpack":
            sub.add_argument("--data-dir", default="data", help="where sets are prepared (data)")
        return sub

    command("list", "Shows all sets and tasks.", takes_name=False)
    command("info", "Shows what a prepared set holds, or how to get it.")
    sub = command("prepare", "Prepares a set; after an interruption, goes on where it stopped.")
    add = sub.add_argument
    add("--from", dest="folder", metavar="DIR", help="the download, unpacked")
    add("--workers", type=_whole, help="processes (as many as cores)")
    add("--any-count", action="store_true", help="accept other numbers than the published ones")
    add("--on-corrupt", choices=("error", "skip"), default="error", help="unreadable files")
    add("--split-seed", type=_whole, default=0, metavar="N", help="seed of our own divisions")
    add("--host", type=_whole, default=0, metavar="I", help="number of this host, from 0")
    add("--hosts", type=_whole, default=1, metavar="N", help="hosts that share the work")
    add("--columns", metavar="KEY=COLUMN,...", help="of medinit_table/NAME: image=file,labels=dx")
    add("--beam", metavar="OPTIONS", help='with Apache Beam: --beam="--runner=DirectRunner"')
    sub = command("verify", "Reads a prepared set completely and names what is wrong.")
    sub.add_argument("--workers", type=_whole, help="threads (as many as cores)")
    sub = command("show", "Draws a contact sheet of images, labels and outlines.")
    sub.add_argument("--split", help="which split (the first)")
    sub.add_argument("--count", type=int, default=12, help="images (12)")
    sub.add_argument("--out", required=True, metavar="FILE.png")
    sub = command("unpack", "Unpacks an archive into a folder beside it.", takes_name=False)
    sub.add_argument("archive", metavar="ARCHIVE")
    sub.add_argument("--max-gb", type=_amount, default=200, help="most unpacked gigabytes (200)")
    sub.add_argument("--max-ratio", type=_amount, default=500, help="most times the packed size")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and hands over; returns the exit code."""
    options = vars(_parser().parse_args(argv))
    try:
        # Imported late: `--help` needs none of it.
        from medinit_jax.data.commands import COMMANDS

        return COMMANDS[options.pop("command")](**options)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        # What lies on disks is found out where it is used, which can be anywhere.
        print(_sentence(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("Stopped; prepare goes on from the finished shards.", file=sys.stderr)
        return interrupt.exit_code(stop)


def _sentence(error: OSError) -> str:
    """Says which file could not be read or written, why, and what to do."""
    where = " and ".join(str(name) for name in (error.filename, error.filename2) if name)
    fix = _FIXES.get(error.errno or 0, "put that right")
    return (
        f"{where or 'A file'} cannot be read or written: {error.strerror or error}; {fix}, then "
        f"run the same command again."
    )


if __name__ == "__main__":
    interrupt.raise_on_sigterm()
    sys.exit(main())
