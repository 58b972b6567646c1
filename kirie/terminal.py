"""What the commands print: aligned tables, JSON and complaints."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def json_text(value: Any) -> str:
    """A value as JSON that standard output can write."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    return json.dumps(value, indent=1, ensure_ascii=not unicode)


def print_table(rows: Sequence[Mapping[str, Any]], *, digits: int = 4) -> None:
    """Prints rows with the same keys as aligned columns, words to the left and numbers to the right.

    Args:
        rows: at least one; None and NaN are shown as a dash.
        digits: after the decimal point.
    """
    proper = {"iou": "IoU", "dice": "Dice"}
    head = [proper.get(name, name.replace("_", " ")) for name in rows[0]]
    words = [all(isinstance(row[name], str) for row in rows) for name in rows[0]]
    lines = [head, *([shown(value, digits=digits) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [c.ljust(w) if left else c.rjust(w) for c, w, left in zip(line, widths, words, strict=True)]
        print("  ".join(cells).rstrip())


def shown(value: str | int | float | None, *, digits: int = 4) -> str:
    """A value of a table as text; None and NaN are a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    return value if isinstance(value, str) else f"{value:,}"


def complain(message: str) -> None:
    """Prints a fault to standard error as a sentence."""
    whole = "\n" in message or message.endswith((".", "?", "!"))
    print(f"Error: {message}" if whole else f"Error: {message}.", file=sys.stderr)
