"""Names of things to import, as the written tables and users write them: `package.module:Name`."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from kirie.errors import KirieError


def look_up(place: str) -> Any:
    """What `package.module:Name` names, imported.

    Only for rows of kirie's own tables and for what a user typed or wrote in a recipe; never for what a file says.

    Raises:
        KirieError: when the module cannot be imported or has no such name.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise KirieError(f"Cannot import {place!r:.120}: {error}. Write it as package.module:Name.") from error


def see_own_modules() -> None:
    """Lets `package.module:Class` be found in the working directory too, as `python -m` does, but after all else."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
