import errno

import pytest

from medinit_jax.core.command import exit_code
from medinit_jax.core.errors import UsageError
from medinit_jax.core.interrupt import Preempted


def ending(error):
    def work():
        if error is not None:
            raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (None, 0, ""),
        (UsageError("Do this."), 2, "Do this."),
        (OSError(errno.ENOSPC, "x", "a/b"), 2, "a/b could not be written"),
        (KeyboardInterrupt(), 130, "Stopped."),
        (Preempted(), 75, "Stopped."),
    ],
    ids=repr,
)
def test_an_end_is_a_code_and_a_sentence(error, code, words, capsys):
    assert exit_code(ending(error), "Stopped.") == code
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(words)
    assert told.err.count("\n") == (error is not None)


@pytest.mark.parametrize("error", [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "x")])
def test_a_defect_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        exit_code(ending(error), "")
