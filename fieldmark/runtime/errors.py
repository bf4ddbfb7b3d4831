"""Errors that a user reads: one line that says what is wrong, where, and what to do."""


class FieldmarkError(Exception):
    """The work cannot be done (exit status 1)."""


class UsageError(FieldmarkError):
    """The question is wrong: flags or arguments (exit status 2)."""


class ImageError(FieldmarkError):
    """One photo cannot be used. It never ends a run: it is listed with its reason."""
