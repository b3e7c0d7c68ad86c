"""The one exception that a user is meant to see."""


class UserError(ValueError):
    """Something the user gave is wrong. The message is one line: where, what is wrong, what would be right."""
