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


def check_share(name: str, value: object) -> None:
    """Raises `KirieError` unless `value` is a number from 0 to 1, both of which are allowed."""
    if type(value) not in (int, float) or not 0 <= value <= 1:  # type: ignore[operator]
        raise KirieError(f"{name} must be a number from 0 to 1, got {value!r:.80}.")


def check_numbers(name: str, row: object) -> tuple[float, ...]:
    """A row of numbers above 0 and below a million, at least one, as a tuple; raises `KirieError` otherwise."""
    if not isinstance(row, list | tuple) or not row or not all(type(v) in (int, float) and 0 < v < 1e6 for v in row):
        raise KirieError(f"{name} must be one number above 0 or more, got {row!r:.80}.")
    return tuple(row)


def check_pixels(mean: object, std: object) -> None:
    """Raises `KirieError` unless each is None or finite numbers, one per channel, those of the deviation above 0."""
    for name, row in (("mean", mean), ("std", std)):
        if row is None:
            continue
        sound = isinstance(row, list | tuple) and all(type(v) in (int, float) and abs(v) < 1e6 for v in row)
        if not sound or (name == "std" and min(row, default=1) <= 0):  # type: ignore[call-overload]
            above = " above 0" if name == "std" else ""
            raise KirieError(f"{name} must be one number{above} per channel, for images in [0, 1]; got {row!r:.80}.")
