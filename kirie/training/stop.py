"""Stopping a training by Ctrl-C without losing anything."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Any


class StopSignal:
    """Turns Ctrl-C into a wish to stop after the step under way; a second one stops at once.

    Attributes:
        asked: whether to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> StopSignal:
        with suppress(ValueError):  # only the main thread may set signal handlers
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
