"""The folder that a user downloaded: found, searched and, where something is wrong, explained.

Names are compared without case, with blanks, underscores and "%20" as one, because copies differ.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NoReturn

from etils import epath

from medinit_jax.core.errors import UsageError

Code = Literal[
    "E_MISSING_ROOT",
    "E_MISSING_FILE",
    "E_ARCHIVE",
    "E_COLUMNS",
    "E_ORPHAN",
    "E_COUNT",
    "E_DECODE",
    "E_MASK_VALUES",
    "E_LABEL_RANGE",
    "E_LFS",
    "E_MISPLACED",
    "E_NO_TEST_GT",
]
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar", ".001")
# Left by operating systems and unpackers; "Illustration" comes with REFUGE.
_JUNK = frozenset({"macosx", ".ds store", "thumbs.db", "illustration"})
_MOST_NAMES = 5
_MISSING = frozenset({"E_MISSING_ROOT", "E_MISSING_FILE", "E_ORPHAN", "E_COUNT", "E_NO_TEST_GT"})
_LONGEST_NAME = 200


class DatasetLayoutError(UsageError, RuntimeError):
    """A dataset's folder is not as expected; the message has four lines and ends with what to do.

    Attributes:
        code: What kind of defect it is.
        dataset: Name of the dataset.
        path: Where it was looked for.
        found: What was there instead.
        expected: What should have been there.
        fix: What to do.
    """

    def __init__(
        self,
        code: Code,
        dataset: str,
        path: epath.PathLike,
        what: str,
        found: Sequence[object],
        expected: str,
        fix: str,
        most: int = _MOST_NAMES,
    ):
        names = [_shown(str(name)) for name in found]
        more = f" and {len(names) - most} more" if len(names) > most else ""
        shown = ", ".join(names[:most]) + more if names else "nothing"
        super().__init__(
            f"{dataset}: {' '.join(what.split())} [{code}]\n  in {path}\n"
            f"  found {shown}; expected {expected}\n  {fix}"
        )
        self.code, self.dataset, self.path = code, dataset, str(path)
        self.found, self.expected, self.fix = names, expected, fix

    def __reduce__(self):
        """Survives the way from a worker process."""
        return _restore, (self.args, dict(self.__dict__))


def _shown(name: str) -> str:
    """Returns a name on one line, cut where it is long: damaged tables hold any text."""
    name = " ".join(name.split())
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


def _restore(args, state):
    error = DatasetLayoutError.__new__(DatasetLayoutError)
    error.args = args
    error.__dict__.update(state)
    return error


def normal(name: str) -> str:
    """Returns a file name as it is compared: no case, one kind of blank."""
    return " ".join(name.replace("%20", " ").replace("_", " ").casefold().split())


class Tree:
    """A folder of a dataset.

    Attributes:
        dataset: Name of the dataset, for messages.
        path: The folder.
        outside: What is not read: links that lead out of the downloaded folder or to nothing, and
            what is neither file nor folder. Shared by all folders of one tree.
    """

    def __init__(
        self,
        dataset: str,
        path: epath.PathLike,
        _root: str | None = None,
        _outside: dict[str, None] | None = None,
    ):
        self.dataset, self.path = dataset, epath.Path(path)
        # epath's own `resolve` does not follow links.
        self._root = os.path.realpath(self.path) if _root is None else _root
        # A folder may be listed several times.
        self._outside: dict[str, None] = {} if _outside is None else _outside
        self._entries: dict[str, epath.Path] | None = None

    @property
    def outside(self) -> list[str]:
        """What is not read, see the class."""
        return list(self._outside)

    @property
    def entries(self) -> dict[str, epath.Path]:
        """What lies in the folder, {normal name: path}, sorted, without junk."""
        if self._entries is None:
            self._entries = {normal(place.name): place for place in self._listed(self.path)}
        return self._entries

    def _listed(self, folder: epath.Path) -> list[epath.Path]:
        """Returns what lies in a folder, sorted, without junk and what is not read."""
        with os.scandir(folder) as found:
            places = sorted(found, key=lambda place: place.name)
        return [
            folder / place.name
            for place in places
            if normal(place.name) not in _JUNK
            and not place.name.startswith(".")
            and self._is_read(place)
        ]

    def _is_read(self, place: os.DirEntry[str]) -> bool:
        # Only links are resolved, which is slow: a folder can hold 50,000 files.
        if place.is_symlink():
            target = os.path.realpath(place)
            if os.path.commonpath((self._root, target)) != self._root:
                self._outside[place.path] = None
                return False
            if not os.path.exists(target):
                self._outside[f"{place.path} (a link to nothing)"] = None
                return False
        # A pipe would be waited for, a device has no end.
        if not place.is_file() and not place.is_dir():
            self._outside[f"{place.path} (neither file nor folder)"] = None
            return False
        return True

    def find(self, *names: str) -> epath.Path | None:
        """Returns the first of `names` ("a/b" for a path) that exists; None if none does."""
        for name in names:
            first, _, rest = name.partition("/")
            place = self.entries.get(normal(first))
            if place is not None and rest:
                place = self._sub(place).find(rest) if place.is_dir() else None
            if place is not None:
                return place
        return None

    def _sub(self, place: epath.Path) -> Tree:
        return Tree(self.dataset, place, self._root, self._outside)

    def folder(self, *names: str, fix: str = "") -> Tree:
        """Returns the folder of one of these names; one that holds only its namesake stands for it.

        Raises:
            DatasetLayoutError: E_MISSING_FILE, or E_ARCHIVE if it is still packed.
        """
        for name in names:
            place = self.find(name)
            if place is not None and place.is_dir():
                found = self._sub(place)
                if list(found.entries) == [normal(place.name)]:
                    inner = found.entries[normal(place.name)]
                    return self._sub(inner) if inner.is_dir() else found
                return found
        self.missing(f"the folder {names[0]}", names, fix)

    def has(self, *names: str) -> bool:
        """Says whether all of these names exist."""
        return all(self.find(name) is not None for name in names)

    def file(self, *names: str, fix: str = "") -> epath.Path:
        """Returns the file of one of these names; a folder that holds its namesake counts as it.

        Raises:
            DatasetLayoutError: E_MISSING_FILE, or E_ARCHIVE if it is still packed.
        """
        for name in names:
            place = self.find(name)
            if place is not None and place.is_dir():
                place = self._sub(place).find(place.name)
            if place is not None and not place.is_dir():
                return place
        self.missing(names[0], names, fix)

    def files(self, *suffixes: str) -> dict[str, epath.Path]:
        """Returns the files with these suffixes (".jpg"), {name without suffix: path}, sorted."""
        return {
            place.name[: -len(suffix)]: place
            for place in self.entries.values()
            for suffix in suffixes
            if place.name.lower().endswith(suffix)
        }

    def walk(self) -> Iterator[tuple[str, epath.Path]]:
        """Yields every file at any depth, (path relative to this folder, file), without junk."""
        seen = {os.path.realpath(self.path)}
        below = [("", self.path)]
        while below:
            above, folder = below.pop()
            for place in self._listed(folder):
                if not place.is_dir():
                    yield f"{above}{place.name}", place
                elif os.path.realpath(place) not in seen:
                    # A link may lead back to a folder above it.
                    seen.add(os.path.realpath(place))
                    below.append((f"{above}{place.name}/", place))

    def packed(self, *names: str) -> list[str]:
        """Returns the archives here whose names begin with one of these."""
        wanted = tuple(normal(name.rpartition("/")[2]) for name in names)
        return [
            place.name
            for name, place in self.entries.items()
            if name.endswith(ARCHIVES) and name.startswith(wanted)
        ]

    def missing(self, what: str, names: Sequence[str], fix: str = "") -> NoReturn:
        """Raises E_ARCHIVE if archives of that name lie here, E_MISSING_FILE otherwise."""
        packed = self.packed(*names)
        if packed:
            self.fail(
                "E_ARCHIVE",
                f"{what} is still packed",
                found=packed,
                expected=" or ".join(names),
                fix=unpacking(packed, self.path),
            )
        self.fail(
            "E_MISSING_FILE",
            f"{what} is missing",
            found=[place.name for place in self.entries.values()],
            expected=" or ".join(names),
            fix=fix
            or f"Put {what} there. The whole tree: python -m medinit_jax.data info {self.dataset}",
        )

    def fail(
        self,
        code: Code,
        what: str,
        *,
        fix: str,
        found: Iterable[object] = (),
        expected: str = "",
        path: epath.PathLike | None = None,
    ) -> NoReturn:
        """Raises a DatasetLayoutError of this dataset, at this folder unless `path` says else.

        Where something is missing, it names the links that were not followed: it may lie there.
        """
        if self.outside and code in _MISSING:
            fix = (
                f"Not followed: {len(self.outside)} links (or what is no file), among them "
                f"{_shown(self.outside[0])}; put the files themselves there. {fix}"
            )
        raise DatasetLayoutError(
            code, self.dataset, path or self.path, what, list(found), expected, fix
        )


def unpacking(packed: Sequence[str], folder: epath.Path) -> str:
    """Returns the command that unpacks archives."""
    parts = sorted(name for name in packed if name.lower().endswith(".001"))
    if parts:
        whole = parts[0][: -len(".001")]
        joined = shlex.quote(whole)
        return (
            f"Join the parts first: cd {shlex.quote(str(folder))} && cat {joined}.0* > {joined}; "
            f"then unpack {whole}."
        )
    first = shlex.quote(str(folder / sorted(packed)[0]))
    return f"Unpack it: python -m medinit_jax.data unpack {first}"


def locate(
    dataset: str,
    folder: epath.PathLike,
    is_root: Callable[[Tree], bool],
    expected: str,
    where_from: str,
    recognize: Callable[[Tree], str | None] = lambda tree: None,
) -> Tree:
    """Finds the root of a dataset in the folder that the user named, at most two levels below.

    Args:
        dataset: Name of the dataset.
        folder: The user's folder.
        is_root: Says whether a folder is the dataset's root.
        expected: What a root holds, for the message.
        where_from: Where the files can be had; "" if they are the user's own.
        recognize: Folder -> name of another dataset that it looks like.

    Raises:
        DatasetLayoutError: E_MISSING_ROOT, E_ARCHIVE, E_MISPLACED or E_MISSING_FILE.
    """
    path = epath.Path(folder)
    download = f"Download by hand from {where_from} and unpack it there." if where_from else ""
    named = "Name the folder that holds these with --from."
    if path.exists() and not path.is_dir():
        archive = path.name.lower().endswith(ARCHIVES)
        raise DatasetLayoutError(
            "E_ARCHIVE" if archive else "E_MISSING_ROOT",
            dataset,
            path,
            "the files are still packed" if archive else "this is a file, not a folder",
            [path.name],
            expected,
            unpacking([path.name], path.parent) if archive else named,
        )
    if not path.is_dir():
        raise DatasetLayoutError(
            "E_MISSING_ROOT", dataset, path, "no such folder", [], expected, download or named
        )
    tree = Tree(dataset, path)
    if not tree.entries:
        what = "the folder holds nothing that is read" if tree.outside else "the folder is empty"
        tree.fail("E_MISSING_ROOT", what, expected=expected, fix=download or named)
    top = tree
    for _ in range(3):
        if is_root(tree):
            return tree
        other = recognize(tree)
        if other:
            tree.fail(
                "E_MISPLACED",
                f"this looks like {other}",
                found=[place.name for place in tree.entries.values()],
                expected=expected,
                fix=(f"Prepare it as {other}, or name" if other.startswith("medinit_") else "Name")
                + f" the folder of {dataset} with --from.",
            )
        folders = [place for place in tree.entries.values() if place.is_dir()]
        if len(folders) != 1:
            break
        tree = tree._sub(folders[0])
    for place in (top, tree):
        packed = place.packed("")
        if packed:
            place.fail(
                "E_ARCHIVE",
                "the files are still packed",
                found=packed,
                expected=expected,
                fix=unpacking(packed, place.path),
            )
    top.fail(
        "E_MISSING_FILE",
        "the folder does not hold this dataset",
        found=[place.name for place in top.entries.values()],
        expected=expected,
        fix=f"{named} {download}".rstrip(),
    )


def pointer_kind(start: bytes) -> str | None:
    """Says whether a file's first bytes are those of a git-lfs pointer or of a web page."""
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the data"
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "a web page (of a login, perhaps), not the data"
    return None
