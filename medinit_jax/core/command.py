"""How a command ends: with an exit code, and a sentence where there is something to put right."""

import sys
from collections.abc import Callable

from medinit_jax.core import interrupt, storage
from medinit_jax.core.errors import UsageError


def exit_code(work: Callable[[], None], stopped: str) -> int:
    """Does what a command is for, and says in a sentence on stderr what kept it from its end.

    Args:
        work: What it is for.
        stopped: The sentence after ctrl-C or SIGTERM.

    Returns:
        0 done, 2 something to put right, 75 stopped by SIGTERM, 130 by ctrl-C.
    """
    try:
        work()
    except (UsageError, OSError) as error:
        print(storage.sentence(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(stopped, file=sys.stderr)
        return interrupt.exit_code(stop)
    return 0
