"""Faults and notes about a data set that only the whole of it shows, and how all are listed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kirie.data.fault import Fault
from kirie.data.labels import LabelFormat
from kirie.data.layouts import Layout, Pair
from kirie.data.splits import stem
from kirie.errors import counted
from kirie.reading.headers import IMAGE_SUFFIXES

EXAMPLES = 10


def grouped(faults: Iterable[Fault]) -> list[str]:
    """Faults, then notes, as lines of plain text: those of one kind together, at most `EXAMPLES` of them."""
    listed = list(faults)
    if not listed:
        return ["no faults found"]
    lines = []
    for severity in ("fault", "note"):
        groups: dict[tuple[str, str], list[Fault]] = {}
        for fault in listed:
            if fault.severity == severity:
                groups.setdefault((fault.kind, fault.mend), []).append(fault)
        for (kind, mend), group in groups.items():
            times = sum(fault.count for fault in group)
            lines.append(f"{severity}: {kind}" + (f" ({times:,} times)" if times > 1 else ""))
            lines += [f"  {fault.what}" for fault in group[:EXAMPLES]]
            if len(group) > EXAMPLES:
                lines.append(f"  and {len(group) - EXAMPLES} more")
            if mend and mend not in group[0].what:
                lines.append(f"  mend: {mend}")
    return lines


def layout_faults(layout: Layout) -> list[Fault]:
    """What the names of the files show: empty splits, label files without picture, doubled stems..."""
    faults = []
    for gap in layout.gaps:
        kind = "split without pictures" if gap.severity == "fault" else "split without truth"
        faults.append(Fault(gap.severity, kind, gap.why, (), gap.mend))
    for path in layout.strays:
        mend = "Add the picture with its stem, or take the label file out."
        faults.append(Fault("fault", "label file without picture", f"{path} has no picture.", (path,), mend))
    for entry in layout.unfound:
        mend = "Add the picture, or take it out of the list."
        faults.append(Fault("fault", "listed picture is missing", f"{entry} is listed but not there.", (entry,), mend))
    unlisted = [pair for pair in layout.pairs if not pair.split]
    for pair in unlisted:
        mend = "Add it to a list file, or leave it out on purpose."
        faults.append(Fault("note", "picture in no split", f"{pair.image} is in no list file.", (pair.image,), mend))
    return [*layout.faults, *faults, *_doubled(layout), *_shared_by_splits(layout)]


def _doubled(layout: Layout) -> list[Fault]:
    faults = []
    by_path: dict[tuple[str, str, int], list[str]] = {}
    for pair in layout.pairs:
        files = by_path.setdefault((stem(pair.name, IMAGE_SUFFIXES), pair.mask, pair.row), [])
        if pair.image not in files:  # as it is once more where two splits have it
            files.append(pair.image)
    for files in by_path.values():
        if len(files) > 1:
            what = f"{' and '.join(files)} have one stem and share a label file."
            faults.append(
                Fault("fault", "two pictures of one stem", what, tuple(files), "Delete or rename one of them.")
            )
    return faults


def _shared_by_splits(layout: Layout) -> list[Fault]:
    """Pictures that lie in two splits with the same bytes; only files of equal length are read to find them."""
    by_length: dict[int, list[Pair]] = {}
    for pair in layout.pairs:
        if pair.split:
            with suppress(OSError):  # a file that is not there is told elsewhere
                by_length.setdefault(Path(pair.image).stat().st_size, []).append(pair)
    by_bytes: dict[bytes, dict[str, str]] = {}
    for pairs in by_length.values():
        if len({pair.split for pair in pairs}) > 1:
            for pair in pairs:
                with suppress(OSError):
                    code = hashlib.blake2b(Path(pair.image).read_bytes()).digest()
                    by_bytes.setdefault(code, {}).setdefault(pair.split, pair.image)
    mend = "Take it out of one of them: a score on training pictures misleads."
    faults = []
    for by_split in by_bytes.values():
        if len(by_split) > 1:
            files = tuple(dict.fromkeys(by_split.values()))
            same = f"{' and '.join(files)} are the same picture" if len(files) > 1 else f"{files[0]} is one picture"
            what = f"{same}, in {' and in '.join(by_split)}."
            faults.append(Fault("note", "one picture in two splits", what, files, mend))
    return faults


def check_whole(form: LabelFormat, pixels: npt.NDArray[np.int64], void: int, unknown: Mapping[str, int]) -> list[Fault]:
    """What the counts over all label files show: ids off by one, what 255 means, classes that never occur.

    Args:
        form: kind and classes.
        pixels: (K,) pixels of each class.
        void: void pixels.
        unknown: unknown ids or colours with their pixels.
    """
    classes, faults = form.classes, []
    count = len(classes)
    plain_ids = form.kind == "index" and classes.ids == tuple(range(count))
    if plain_ids and not pixels[0] and pixels[1:].any() and str(count) in unknown:
        what = f"Ids run from 1 to {count} and 0 never occurs; expected 0 to {count - 1}: they are off by one."
        mend = f'Write "ids": {list(range(1, count + 1))} into classes.json, or subtract 1 from the masks.'
        faults.append(Fault("fault", "ids off by one", what, (), mend))
    if form.kind == "index" and form.guessed and min(classes.ids) == 1:
        what = f"No class table: classes are the ids that occur, {classes.ids[0]} to {classes.ids[-1]}; 0 never occurs."
        faults.append(Fault("note", "ids start at 1", what, (), "Name the classes in classes.json."))
    if form.kind in ("index", "binary"):
        # In masks of 0 and 255 alone, 255 can be nothing else than the foreground.
        if 255 in classes.ids and classes.ids != (0, 255):
            name = classes.names[classes.ids.index(255)]
            mend = "If it means void, take it out of the classes and write ignore_index 255 into classes.json."
            faults.append(Fault("note", "id 255", f"Id 255 is the class {name!r}.", (), mend))
        elif 255 in classes.void_ids and void and count == 2 and pixels[0] and not pixels[1]:
            name = classes.names[1]
            what = (
                f"Label files hold {classes.names[0]!r} and void alone, and {name!r} nowhere: nothing can be learned."
            )
            mend = f"If 255 is {name!r}, leave 255 out of ignore_index and data.ignore."
            faults.append(Fault("fault", "nothing but one class and void", what, (), mend))
        elif 255 in classes.void_ids and void and not form.published:
            listed = ", ".join(map(str, classes.void_ids))
            what = f"{counted(void, 'pixel')} {'is' if void == 1 else 'are'} void ({listed}) and count nowhere."
            mend = "If it is a class, take it out of ignore_index and data.ignore, and name it in classes.json."
            faults.append(Fault("note", "id 255", what, (), mend))
    return faults + _never_seen(form, pixels)


def _never_seen(form: LabelFormat, pixels: npt.NDArray[np.int64]) -> list[Fault]:
    """Notes on classes without pixels; one for all where the classes are those of a published data set."""
    names = [name for name, seen in zip(form.classes.names, pixels.tolist(), strict=True) if not seen]
    kind = "class never occurs"
    if form.published and len(names) > 1:
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        what = f"{len(names)} of the {len(pixels)} classes of {form.published} never occur: {shown}."
        return [Fault("note", kind, what, (), "They cannot be learned or measured on these pictures.")]
    mend = "Take it out of the table, or add pictures of it; it cannot be learned or measured."
    return [Fault("note", kind, f"The class {name!r} never occurs.", (), mend) for name in names]
