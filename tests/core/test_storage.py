import errno
import resource

import pytest

from medinit_jax.core import storage


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x", "runs/a/metrics.jsonl"), "runs/a/metrics.jsonl could not be"),
        (OSError(errno.EDQUOT, "x"), "A file of the run could not be written"),
        (OSError(errno.EROFS, "x", "runs/a"), "runs/a cannot be used (Read-only file system)"),
        (OSError(errno.EACCES, "x", "runs/a"), "runs/a cannot be used (Permission denied)"),
        (OSError(errno.ENOTDIR, "x", "file/run"), "file/run cannot be used (Not a directory)"),
        (ValueError("OUT_OF_RANGE: d: File too large [os_error_code='27']"), "(File too large)"),
    ],
    ids=str,
)
def test_an_error_of_storage_is_a_sentence(error, words):
    sentence = str(storage.explain(error))
    assert words in sentence and sentence.endswith(".") and "\n" not in sentence


@pytest.mark.parametrize("error", [FileNotFoundError(2, "x"), ValueError("a"), OSError("b")])
def test_any_other_error_is_left_as_it_is(error):
    assert storage.explain(error) is None and not storage.is_full(error)


def test_room_is_tried_before_anything_is_written(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    storage.reserve(tmp_path, 10_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            storage.reserve(tmp_path, 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert storage.is_full(caught.value) and not list(tmp_path.iterdir())


def test_full_and_gone_are_told_apart():
    assert storage.is_full(OSError(errno.ENOSPC, "x"))
    assert not storage.is_full(OSError(errno.EROFS, "x"))
