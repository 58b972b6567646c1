"""The one error that the command line prints as a sentence instead of a traceback."""

from __future__ import annotations


class KirieError(ValueError):
    """Something a user can mend: a file, a recipe, a data set, a request.

    The message is one or a few plain sentences that say what came, what was expected and how to mend it. Library
    code raises it for bad input; the command line prints it and exits with code 1.
    """
