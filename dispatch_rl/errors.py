"""The one exception that a user is meant to see."""


class UserError(ValueError):
    """Something the user gave is wrong. The message is one line: where, what is wrong, what would be right."""


def first_line(error: BaseException) -> str:
    """Return what an exception says, shortened to one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
