"""The one exception that a user is meant to see, and what many raise it for."""


class UserError(ValueError):
    """Something the user gave is wrong. The message is one line: where, what is wrong, what would be right."""


def check_seed(key: str, seed: int) -> None:
    """Refuse a seed that some generator would not take.

    Raises:
        UserError: Naming ``key``.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"{key}: {seed} is not in 0 ... 2**32 - 1")


def first_line(error: BaseException) -> str:
    """Return what an exception says, shortened to one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
