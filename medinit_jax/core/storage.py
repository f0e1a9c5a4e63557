"""Storage that is full, read-only or gone, told in one sentence."""

import errno
import os
import re
from pathlib import Path

from medinit_jax.core.errors import UsageError

# No room left; the limit of a file's size is one way to have none.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GONE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENODEV,
         errno.ENOTDIR)  # fmt: skip


def is_full(error: BaseException) -> bool:
    """Returns whether something could not be written for want of room."""
    return _number(error) in _FULL


def reserve(folder: Path, size: int) -> None:
    """Finds out whether there is room before anything is written.

    Args:
        folder: Where.
        size: Bytes that will be written; the file system may compress them to fewer.

    Raises:
        OSError: There is none, by the disk, a quota or the limit of a file's size.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    place = folder / ".room"
    try:
        with open(place, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
    except OSError as error:
        # Some file systems reserve nothing; then writing will tell.
        if is_full(error):
            raise
    finally:
        place.unlink(missing_ok=True)


def explain(error: BaseException, what: str = "") -> UsageError | None:
    """Returns the sentence for an error of storage, or one that is a sentence already; else None.

    Args:
        error: An OSError, or what TensorStore raises, which names the number in its text.
        what: What could not be written or read; taken from the error by default.
    """
    if isinstance(error, UsageError):
        return error
    number = _number(error)
    what = what or str(getattr(error, "filename", None) or "A file of the run")
    if number in _FULL:
        return UsageError(
            f"{what} could not be written ({os.strerror(number)}); make room, or raise the limit, "
            "and say the same command again: it goes on from the last whole checkpoint."
        )
    if number in _GONE:
        return UsageError(
            f"{what} cannot be used ({os.strerror(number)}); see that the storage is there and may "
            "be written, and say the same command again."
        )
    return None


def sentence(error: BaseException) -> UsageError:
    """Returns what `explain` does, and raises any other error again."""
    explained = explain(error)
    if explained is None:
        raise error
    return explained


def _number(error: BaseException) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else 0
