"""Checks of constructor arguments, which come from recipes and model files and may be anything."""

from __future__ import annotations

from kirie.errors import KirieError


def check_flag(name: str, value: object) -> None:
    """Raises `KirieError` unless `value` is true or false."""
    if not isinstance(value, bool):
        raise KirieError(f"{name} must be true or false, got {value!r:.80}.")


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raises `KirieError` unless `value` is a whole number from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        raise KirieError(f"{name} must be a whole number from {least} to {most}, got {value!r:.80}.")


def check_dropout(value: object) -> None:
    """Raises `KirieError` unless `value` is a probability below 1."""
    if type(value) not in (int, float) or not 0 <= value < 1:  # type: ignore[operator]
        raise KirieError(f"dropout must be a number from 0 to below 1, got {value!r:.80}.")
