"""Faults of label files that reading and inspecting tell in the same words."""

from __future__ import annotations

from typing import Any

from kirie.data.labels import LabelFormat
from kirie.errors import KirieError, counted


def missing_mask(image: str) -> KirieError:
    """The error for a picture without label file."""
    return KirieError(f"{image} has no label file; add one with its stem, or take the picture out of the data set.")


def check_size(image: str, size: tuple[int, ...], mask: str, mask_size: tuple[int, ...]) -> None:
    """Nothing, when picture and label file have the same (H, W).

    Raises:
        KirieError: when they differ.
    """
    if tuple(size) == tuple(mask_size):
        return
    turned = tuple(size) == tuple(mask_size)[::-1]
    hint = " It looks turned by 90 degrees, as pictures of a phone are that carry an EXIF rotation." if turned else ""
    raise KirieError(
        f"{image} is {size[0]} x {size[1]} pixels (H x W) but its label file {mask} is {mask_size[0]} x "
        f"{mask_size[1]}.{hint} Save the label file at the size of the picture as it is shown."
    )


def unknown_text(unknown: dict[str, int], form: LabelFormat) -> str:
    """What is wrong with a label file whose ids or colours are no class, with pixel counts."""
    most = sorted(unknown.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{key} ({counted(count, 'pixel')})" for key, count in most[:6])
    more = f" and {len(most) - 6} more" if len(most) > 6 else ""
    what = "colours" if form.kind == "colour" else "ids"
    return f"holds {what} that are no class: {listed}{more}; the classes are {_class_list(form)}."


def unknown_mend(mask: str, form: LabelFormat) -> str:
    """How to mend unknown ids or colours in a label file."""
    if mask.lower().endswith((".jpg", ".jpeg")):
        return "JPEG changes the numbers in a mask: save masks as PNG."
    if form.kind == "colour":
        return (
            "Add the colours to classes.json (colors, or ignore_colors for void), or save the mask without smoothing."
        )
    if form.kind == "binary":
        return "Save the mask with two numbers and without smoothing, or say data.kind: index with data.classes."
    return "Add them to classes.json (classes, or ignore_index for void) or to data.ignore, or mend the file."


def _class_list(form: LabelFormat) -> str:
    keys: list[Any] = list(form.classes.colors if form.kind == "colour" else form.classes.ids)
    pairs = [f"{key} {name}" for key, name in zip(keys, form.classes.names, strict=True)]
    void = list(form.void_colors if form.kind == "colour" else form.classes.void_ids)
    shown = ", ".join(pairs[:12]) + (f" and {len(pairs) - 12} more" if len(pairs) > 12 else "")
    return shown + (f"; void is {', '.join(map(str, void[:6]))}" if void else "")
