"""Checks of constructor arguments, which come from recipes and model files and may be anything."""

from __future__ import annotations

from kirie.errors import KirieError


def check_flag(name: str, value: object) -> None:
    """Raises `KirieError` unless `value` is true or false."""
    if not isinstance(value, bool):
        raise KirieError(f"{name} must be true or false, got {value!r:.80}.")


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raises `KirieError` unless `value` is a whole number from `least` to `most`, or to any, where that is None."""
    if type(value) is not int or value < least or (most is not None and value > most):
        upto = "on" if most is None else f"to {most}"
        raise KirieError(f"{name} must be a whole number from {least} {upto}, got {value!r:.80}.")


def check_dropout(value: object, name: str = "dropout") -> None:
    """Raises `KirieError` unless `value` is a probability below 1."""
    if type(value) not in (int, float) or not 0 <= value < 1:  # type: ignore[operator]
        raise KirieError(f"{name} must be a number from 0 to below 1, got {value!r:.80}.")
