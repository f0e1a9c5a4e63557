"""Where an initializer lies: a folder, a workdir, a release as a .zip, or a name in the cache.

A release holds one folder, named as it is installed, with exactly the files of `FILES`. It is read
member by member, so nothing in an archive can be written to another place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from medinit_jax.core.compilation_cache import root
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import INITIALIZER_FOLDER, METADATA_FILE, PARAMS_FILE, load_params

CARD_FILE, READABLE_CARD = "card.json", "CARD.md"
FILES = (PARAMS_FILE, METADATA_FILE, CARD_FILE, READABLE_CARD)
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
# A hypernetwork is some megabytes; what claims more than this is none.
LARGEST = 2_000_000_000
# The earliest time that a .zip can hold: the same initializer gives the same bytes.
TIME = (1980, 1, 1, 0, 0, 0)
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


def installed() -> Path:
    """Returns the folder of the initializers that are known by name."""
    return root() / "initializers"


def pack(folder: Path, cards: Mapping[str, str], name: str, version: str, out: Path) -> Path:
    """Writes an initializer with its card as one .zip.

    Args:
        folder: The initializer, as `publish` wrote it.
        cards: The texts of `CARD_FILE` and `READABLE_CARD`.
        name: Under which it is installed.
        version: Of the release.
        out: Folder of the .zip.

    Returns:
        The .zip; the same input gives the same bytes. Its digest lies beside it.

    Raises:
        UsageError: The name is none, or the .zip is there already.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"An initializer cannot be named {name!r}; take small letters, digits, '.', '_' and "
            "'-', and begin with a letter or digit."
        )
    archive = out / f"{name}-{version}.zip"
    if archive.exists():
        raise UsageError(f"{archive} is there already; remove it or write to another folder.")
    load_params(folder)
    contents = {file: (folder / file).read_bytes() for file in (PARAMS_FILE, METADATA_FILE)}
    contents |= {file: text.encode() for file, text in cards.items()}
    out.mkdir(parents=True, exist_ok=True)
    partial = archive.with_name(f".{archive.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(partial, "x", zipfile.ZIP_DEFLATED) as opened_archive:
            for file in FILES:
                info = zipfile.ZipInfo(f"{name}/{file}", TIME)
                info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                opened_archive.writestr(info, contents[file])
        os.replace(partial, archive)
    finally:
        partial.unlink(missing_ok=True)
    # The form that `sha256sum -c` reads.
    beside = archive.with_name(f"{archive.name}.sha256")
    beside.write_text(f"{digest(archive)}  {archive.name}\n", encoding="utf-8")
    return archive


def digest(archive: Path) -> str:
    """Returns the SHA-256 of a file."""
    with archive.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def install(archive: Path, sha256: str = "") -> Path:
    """Puts a release where `medinit_jax.load` finds it by name.

    Args:
        archive: The .zip.
        sha256: What its digest has to be; "" takes any.

    Returns:
        The folder, whose name is that of the initializer.

    Raises:
        UsageError: The .zip is no release, is damaged, has another digest, or another initializer
            of this name is installed. What was installed stays as it is.
    """
    place = installed()
    if not archive.is_file():
        raise UsageError(f"{archive} is no file; name the .zip of a release.")
    if sha256 and digest(archive) != sha256.strip().lower():
        raise UsageError(
            f"{archive} has the SHA-256 {digest(archive)}, not the one given; download it again."
        )
    try:
        place.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".installing-", dir=place))
    except OSError as error:
        raise UsageError(
            f"{place} cannot be written ({error.strerror}); set the environment's "
            "MEDINIT_CACHE_DIR to a folder that can be."
        ) from error
    try:
        unpacked = _unpack(archive, temporary)
        load_params(unpacked)
        target = place / unpacked.name
        if target.exists():
            if not _equal(unpacked, target):
                raise UsageError(
                    f"Another initializer is installed as {target.name}; remove {target} before, "
                    f"or load {archive} by its path."
                )
            return target
        os.replace(unpacked, target)
        return target
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives the folder of an initializer for as long as it is read.

    Args:
        path: A folder, a workdir, a .zip, or the name of one that is installed.

    Raises:
        UsageError: There is none, or the .zip is no release or damaged.
    """
    place = Path(path)
    if place.is_file():
        with tempfile.TemporaryDirectory(prefix="medinit-") as folder:
            yield _unpack(place, Path(folder))
        return
    if not place.exists():
        place = _by_name(path)
    if not (place / METADATA_FILE).is_file() and (place / INITIALIZER_FOLDER).is_dir():
        place = place / INITIALIZER_FOLDER
    yield place


def _by_name(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    place = installed() / text
    if NAME.fullmatch(text) and place.is_dir():
        return place
    there = sorted(one.name for one in installed().glob("*") if NAME.fullmatch(one.name))
    raise UsageError(
        f"There is no initializer {text}: nothing lies at this path, and {installed()} holds "
        f"{'only ' + ', '.join(there) if there else 'none'}; check the path, or download a release "
        "and run `python -m medinit_jax.release install FILE.zip`."
    )


def _unpack(archive: Path, folder: Path) -> Path:
    """Writes the members of a release into a folder, and returns the one they lie in."""
    try:
        with zipfile.ZipFile(archive) as source:
            # A folder's own entry, as other programs write it, says nothing.
            members = [info for info in source.infolist() if not info.is_dir()]
            top = _top(archive, [info.filename for info in members])
            if sum(info.file_size for info in members) > LARGEST:
                raise UsageError(
                    f"{archive} unpacks to more than {LARGEST / 1e9:g} GB, which no initializer "
                    "does; download the release again."
                )
            (folder / top).mkdir()
            for info in members:
                file = folder / top / info.filename.removeprefix(f"{top}/")
                file.write_bytes(source.read(info))
    except _DAMAGED as error:
        raise UsageError(
            f"{archive} is no release of an initializer, or it is damaged ({error}); name a "
            "folder, a workdir or a .zip, or download it again."
        ) from error
    return folder / top


def _top(archive: Path, names: list[str]) -> str:
    """Returns the name of a release's only folder."""
    top = names[0].partition("/")[0] if names else ""
    wanted = {f"{top}/{file}" for file in FILES}
    if not NAME.fullmatch(top) or set(names) != wanted or len(names) != len(wanted):
        odd = sorted(set(names) ^ wanted) or names
        raise UsageError(
            f"{archive} is no release of an initializer: it should hold one folder with "
            f"{', '.join(FILES)} and nothing else (see {odd[0]!r}); download the release itself."
        )
    return top


def _equal(first: Path, second: Path) -> bool:
    return all(
        (second / file).is_file() and (first / file).read_bytes() == (second / file).read_bytes()
        for file in FILES
    )
