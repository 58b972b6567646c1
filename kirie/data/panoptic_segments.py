"""The segments of one picture of a COCO panoptic file: their pixels, classes, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from kirie.classes import Classes
from kirie.coco_words import ids_of_colors
from kirie.data.fault import Fault, named
from kirie.data.objects import Objects
from kirie.data.panoptic_file import PanopticFile
from kirie.data.panoptic_maps import segment_map
from kirie.errors import KirieError, counted
from kirie.masks import count_ids
from kirie.reading.images import read_label_file


def picture_segments(
    file: PanopticFile,
    picture: int,
    mask: str,
    labels: Mapping[int, int],
    classes: Classes,
    *,
    grey_serves: bool = False,
) -> Objects:
    """The segments of a picture, with the ids that the files have.

    Segments that are listed and have no pixels are left out. Pixels of ids that are not listed, and segments of an
    unknown category, are void in what is given here, and the picture is refused.

    Args:
        file: the JSON file.
        picture: the picture's number in it.
        mask: the path of its PNG file.
        labels: class ids by the file's category ids; -1 for categories that are to be void.
        classes: the classes.
        grey_serves: whether a PNG file of grey values will do that are categories; each of these is then one segment.

    Raises:
        KirieError: when the PNG file cannot be read, or is no picture of colours and grey values do not serve.
    """
    name = file.names[picture]
    if file.mask(picture) is None:
        what = f"{file.path} has no annotation of {name}."
        mend = "Add it with its PNG file, or take the picture out of `images`."
        return Objects(
            None, (Fault("fault", "picture without annotation", what, (file.path,), mend),), f"{what} {mend}"
        )
    listed = file.segments(picture)
    numbers, categories = file.segment_ids[listed].tolist(), file.category_ids[listed].tolist()
    rows = list(zip(numbers, categories, file.crowd[listed].tolist(), strict=True))
    ids, grey = _read_ids(mask, set(categories), file.path, grey_serves)
    if grey:
        numbers = list(dict.fromkeys(categories))
        rows = [(category, category, False) for category in numbers]
    found, counts = count_ids(ids)
    pixels = {number: count for number, count in zip(found.tolist(), counts.tolist(), strict=True) if number}
    strange = pixels.keys() - set(numbers)
    faults = [
        *_unlisted(mask, file.path, {i: pixels[i] for i in strange}),
        *_unknown(file.path, name, {i: category for i, category, _ in rows if category not in labels}),
    ]
    refused = " ".join(f"{fault.what} {fault.mend}" for fault in faults[:1])
    faults += [
        *_empty(file.path, name, [i for i in numbers if i not in pixels]),
        *_stated_size(file, picture, mask, ids.shape),
    ]
    facts = {i: (labels[category], crowd) for i, category, crowd in rows if labels.get(category, -1) >= 0}
    return Objects(segment_map(ids, facts, classes), tuple(faults), refused)


def _read_ids(mask: str, categories: set[int], listing: str, grey_serves: bool) -> tuple[npt.NDArray[np.int32], bool]:
    """The ids (H, W) in a PNG file, and whether they are categories, as grey values.

    Raises:
        KirieError: when it cannot be read, or holds no colours and grey values do not serve.
    """
    pixels = read_label_file(mask)
    if pixels.ndim == 3:
        return ids_of_colors(pixels.astype(np.uint8, copy=False)), False
    words = "expected RGB colours, R + 256 G + 65536 B being the id of a segment."
    if set(count_ids(pixels)[0].tolist()) <= {0, *categories}:
        if grey_serves:
            return pixels.astype(np.int32), True
        words += (
            f" All its numbers are among the categories of {listing}: if they mean these, it says the class of each "
            "pixel and not its segment, and objects of one class cannot be told apart. Take the PNG file of the "
            "panoptic annotations, or learn the classes of pixels alone: data.task semantic."
        )
    raise KirieError(f"{mask} holds grey values or a palette, {words}")


def _unlisted(mask: str, listing: str, pixels: dict[int, int]) -> list[Fault]:
    if not pixels:
        return []
    most = sorted(pixels.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{i} ({counted(count, 'pixel')})" for i, count in most[:6])
    more = f" and {len(most) - 6} more" if len(most) > 6 else ""
    what = f"{mask} has pixels of segments that {listing} does not list: {shown}{more}."
    mend = "Add them to the picture's segments_info, or make their pixels black, which is void."
    return [Fault("fault", "pixels of no listed segment", what, (mask, listing), mend)]


def _unknown(listing: str, name: str, segments: dict[int, int]) -> list[Fault]:
    if not segments:
        return []
    which = named([f"segment {i} of {category}" for i, category in segments.items()])
    what = f"{listing}: {name} has {counted(len(segments), 'segment')} of a category that it does not list{which}."
    mend = "Add it to `categories`, or make its segments void with data.ignore."
    return [Fault("fault", "unknown category", what, (listing,), mend)]


def _empty(listing: str, name: str, numbers: list[int]) -> list[Fault]:
    if not numbers:
        return []
    which = named([f"segment {i}" for i in numbers])
    what = f"{listing}: {name} has {counted(len(numbers), 'listed segment')} without a pixel{which}."
    mend = "They are left out of the truth; take them out of segments_info, or paint them."
    return [Fault("note", "segment without pixels", what, (listing,), mend, len(numbers))]


def _stated_size(file: PanopticFile, picture: int, mask: str, size: tuple[int, ...]) -> list[Fault]:
    height, width = file.sizes[picture].tolist()
    if not height or (height, width) == tuple(size):
        return []
    what = (
        f"{file.path} states {height} x {width} pixels (H x W) for {file.names[picture]}, but {mask} is {size[0]} x "
        f"{size[1]}."
    )
    return [Fault("fault", "stated size differs", what, (file.path, mask), "Mend its height and width in `images`.")]
