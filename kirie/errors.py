"""The one error that the command line prints as a sentence instead of a traceback, and how its sentences count."""

from __future__ import annotations

import errno

# What the system says of a place where nothing can be written, however much room there is.
_NO_PLACE = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENAMETOOLONG,
)  # fmt: skip


class KirieError(ValueError):
    """Something a user can mend: a file, a recipe, a data set, a request.

    The message is one or a few plain sentences that say what came, what was expected and how to mend it. Library
    code raises it for bad input; the command line prints it and exits with code 1.
    """


def counted(count: int, noun: str, nouns: str | None = None) -> str:
    """A number with its noun, as in "1 picture" and "2,000 pictures"; `nouns` where its plural has no plain s."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


class WriteError(KirieError):
    """The system refuses, a file to be written for the most part: with more room, or elsewhere, it may do it."""


def refusal(error: OSError) -> str:
    """Why the system refuses to write, and what to do about it, to end a message with; without the full stop."""
    mend = "Choose" if error.errno in _NO_PLACE else "Free some space or choose"
    return f"{error.strerror or error}. {mend} another place"
