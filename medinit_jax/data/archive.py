"""Unpacks archives that were downloaded: everything is checked before anything is written."""

from __future__ import annotations

import gzip
import lzma
import os
import shlex
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from medinit_jax.core.errors import UsageError
from medinit_jax.data.layout import ARCHIVES, pointer_kind, unpacking
from medinit_jax.data.shards import Report

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# These are read as they are.
_READ_PACKED = (".ppm.gz", ".nii.gz")
_CHUNK = 1 << 20
# Masks and tables shrink a hundred times; in so small an archive that harms nobody.
_SMALL = 100_000_000
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError),
    *(zlib.error, lzma.LZMAError),
)


class Unpacked(NamedTuple):
    """What was written.

    Attributes:
        place: The folder, or the file of a .gz.
        files: Number of files.
        size: Their bytes.
        packed: Archives among them.
    """

    place: Path
    files: int
    size: int
    packed: list[Path]


class _Member(NamedTuple):
    name: str
    size: int
    open: Callable[[], Any]


def unpack(
    archive: Path,
    max_size: int = 200_000_000_000,
    max_ratio: float = 500,
    report: Report = lambda done, total: None,
) -> Unpacked:
    """Unpacks a .zip or .tar into a folder beside it, and a .gz into a file beside it.

    Args:
        archive: The file.
        max_size: Most bytes that it may unpack to.
        max_ratio: Most times its own size that it may unpack to, if that is above 100 MB.
        report: Told the number of bytes that are written, and of all.

    Returns:
        What was written.

    Raises:
        UsageError: The archive is damaged, of an unknown kind, too large, or holds something that
            would be written outside its folder; or the folder exists. Nothing is left behind.
    """
    name = archive.name.lower()
    if not archive.is_file():
        _explain_absent(archive)
    _refuse_parts(archive)
    with archive.open("rb") as stream:
        kind = pointer_kind(stream.read(200))
    if kind:
        raise UsageError(f"{archive} is {kind}; download it again, signed in.")
    limit = _Limit(archive, max_size, max_ratio)
    if name.endswith(_TAR):
        suffix = next(one for one in sorted(_TAR, key=len)[::-1] if name.endswith(one))
        opened = _tar_members(archive, limit)
    elif name.endswith(".zip"):
        suffix, opened = ".zip", _zip_members(archive, limit)
    elif name.endswith(".gz"):
        suffix, opened = ".gz", _gzip_member(archive, limit)
    else:
        raise UsageError(
            f"{archive.name} is of a kind that is not unpacked here; use its own program (as "
            f"`7z x {shlex.quote(archive.name)}`). Known are .zip, {', '.join(_TAR)} and .gz."
        )
    target = archive.with_name(archive.name[: -len(suffix)])
    partial = target.with_name(f"{target.name}.unpacking")
    for place in (target, partial):
        if place.exists() or place.is_symlink():
            raise UsageError(f"{place} exists already; delete it or move it away first.")
    with _explained(archive), opened as members:
        limit.check_disk(target.parent)
        try:
            written = _write(members, target.name if suffix == ".gz" else None, partial, report)
            os.rename(written.place, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    packed = [target / place.relative_to(written.place) for place in written.packed]
    return written._replace(place=target, packed=packed)


class _Limit:
    """Adds up declared sizes and stops at what is too much."""

    def __init__(self, archive: Path, max_size: int, max_ratio: float):
        self.archive, self.max_size, self.total = archive, max_size, 0
        self.max_by_ratio = max(_SMALL, int(max_ratio * archive.stat().st_size))

    def add(self, size: int) -> None:
        self.total += size
        if self.total > self.max_size:
            raise UsageError(
                f"{self.archive} unpacks to more than {self.max_size / 1e9:g} GB; if that is meant "
                f"to be, raise --max-gb."
            )
        if self.total > self.max_by_ratio:
            times = self.total / max(self.archive.stat().st_size, 1)
            raise UsageError(
                f"{self.archive} unpacks to over {self.total / 1e6:.0f} MB, {times:.0f} times its "
                f"size, as archives do that are meant to fill a disk; if it is trusted, raise "
                f"--max-ratio."
            )

    def check_disk(self, folder: Path) -> None:
        free = shutil.disk_usage(folder).free
        if self.total > free:
            raise UsageError(
                f"{self.archive} unpacks to {self.total / 1e9:.1f} GB, but {folder} has "
                f"{free / 1e9:.1f} GB free; make room or move the archive to another disk."
            )


@contextmanager
def _zip_members(archive: Path, limit: _Limit) -> Iterator[list[_Member]]:
    with zipfile.ZipFile(archive) as opened:
        members = []
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind and not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                _refuse(archive, info.filename, "is a link or a device")
            # `filename` ends at a NUL, so the name that is checked is the one that is written.
            name = _checked_name(archive, info.filename)
            if info.flag_bits & 1:
                raise UsageError(f"{archive} needs a password; unpack it with its own program.")
            if info.is_dir():
                continue
            limit.add(info.file_size)
            members.append(_Member(name, info.file_size, _opener(opened.open, info)))
        _refuse_doubles(archive, members)
        yield members


@contextmanager
def _tar_members(archive: Path, limit: _Limit) -> Iterator[list[_Member]]:
    with tarfile.open(archive) as opened:
        members = []
        for info in opened:
            if not (info.isreg() or info.isdir()):
                _refuse(archive, info.name, "is a link or a device")
            name = _checked_name(archive, info.name)
            if info.isdir():
                continue
            limit.add(info.size)
            members.append(_Member(name, info.size, _opener(opened.extractfile, info)))
        _refuse_doubles(archive, members)
        yield members


@contextmanager
def _gzip_member(archive: Path, limit: _Limit) -> Iterator[list[_Member]]:
    size = 0
    # The length that a .gz declares is that modulo 4 GB: only reading it tells.
    with gzip.open(archive) as stream:
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            limit.add(len(chunk))
    yield [_Member(archive.name[: -len(".gz")], size, lambda: gzip.open(archive))]


def _opener(method: Callable[..., Any], info: object) -> Callable[[], Any]:
    return lambda: method(info)


def _checked_name(archive: Path, name: str) -> str:
    """Returns a member's path, refused if it could lie outside the folder."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or (len(parts[0]) == 2 and parts[0][1] == ":"):
        _refuse(archive, name, "is an absolute path")
    if ".." in parts:
        _refuse(archive, name, "leads out of its folder")
    kept = [part for part in parts if part not in ("", ".")]
    if "\0" in name:
        _refuse(archive, name, "is no file name")
    return "/".join(kept)


def _refuse(archive: Path, name: str, why: str) -> None:
    raise UsageError(
        f"{archive} is not unpacked: its member {name!r} {why}; get the archive from its official "
        f"site, or unpack it by hand if you trust it."
    )


def _refuse_doubles(archive: Path, members: Iterable[_Member]) -> None:
    """Refuses what would overwrite another member, or needs it to be a folder."""
    names = [member.name for member in members]
    files = set(names)
    if len(files) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        _refuse(archive, double, "occurs twice")
    for name in names:
        above = name
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in files:
                _refuse(archive, above, "is a file and a folder")


def _write(members: list[_Member], single: str | None, partial: Path, report: Report) -> Unpacked:
    """Writes members into a folder that does not exist yet."""
    total, done = sum(member.size for member in members), 0
    report(0, total)
    partial.mkdir()
    packed = []
    for member in members:
        place = partial / member.name
        place.parent.mkdir(parents=True, exist_ok=True)
        size = 0
        # "x": nothing is overwritten, whatever the file system takes for the same name.
        with member.open() as source, place.open("xb") as sink:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > member.size:
                    raise zipfile.BadZipFile(f"{member.name} is longer than it says")
                sink.write(chunk)
                report(done + size, total)
        if size != member.size:
            raise zipfile.BadZipFile(f"{member.name} is shorter than it says")
        done += size
        lower = member.name.lower()
        if lower.endswith((*ARCHIVES, ".gz")) and not lower.endswith(_READ_PACKED):
            packed.append(place)
    return Unpacked(partial / single if single else partial, len(members), done, packed)


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    """Turns what damaged archives and full disks raise into sentences."""
    try:
        yield
    except _DAMAGED as error:
        raise UsageError(f"{archive} is damaged ({error}); download it again.") from error
    except NotImplementedError as error:
        raise UsageError(
            f"{archive} is packed in a way that Python does not know ({error}); unpack it with "
            f"`7z x {shlex.quote(archive.name)}`."
        ) from error
    except OSError as error:
        raise UsageError(f"{archive} cannot be unpacked: {error}.") from error


def _refuse_parts(archive: Path) -> None:
    name = archive.name
    number = name.rpartition(".")[2]
    if number.isdigit() and len(number) == 3:
        whole = name[: -len(number) - 1]
        raise UsageError(
            f"{name} is one part of a split archive. "
            f"{unpacking([f'{whole}.001'], archive.absolute().parent)}"  # type: ignore[arg-type]
        )
    if archive.with_suffix(".z01").exists():
        last = shlex.quote(f"{archive.stem}.zip")
        raise UsageError(
            f"{name} is the last part of a split archive ({archive.stem}.z01 lies beside it). Join "
            f"the parts first: zip -s 0 {last} --out whole.zip; then unpack whole.zip."
        )


def _explain_absent(archive: Path) -> None:
    first = archive.with_name(f"{archive.name}.001")
    if first.exists():
        _refuse_parts(first)
    kind = "is no regular file" if archive.exists() else "does not exist"
    kind = "is a folder: it is unpacked already" if archive.is_dir() else kind
    raise UsageError(f"{archive} {kind}; name a .zip, .tar, .tar.gz or .gz file.")
