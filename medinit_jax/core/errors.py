"""The one exception that is meant for the person who started the command."""


class UsageError(Exception):
    """Something the user can put right.

    The message is one sentence that says what is wrong, where, and what to do about it. `main`
    prints it without a traceback and exits with code 2.
    """


class Unfit(UsageError):
    """A training can learn nothing any more: collapsed, solved, or not finite."""


class InUse(UsageError):
    """A folder belongs to another run that is at work there."""
