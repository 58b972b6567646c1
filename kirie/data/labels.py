"""What label files mean: their kind, found by looking at some, their classes, and how to read one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from kirie import boxes
from kirie.classes import BACKGROUND, Classes
from kirie.data.class_table import ClassTable, Color, read_class_table
from kirie.data.layouts import ID_FOLDERS, FolderSettings, Layout, list_pictures
from kirie.errors import KirieError, counted
from kirie.masks import Crop, Masks, count_ids
from kirie.reading.images import palette_colors, read_label_file

SAMPLED_FILES = 8  # label files that are looked at to tell their kind
MAX_GUESSED_CLASSES = 64  # more different ids than this without a table are rather smoothed edges than classes


@dataclass(frozen=True)
class LabelFormat:
    """How to read every label file of a data set.

    Attributes:
        kind: index, binary, colour, ids, instance_folders, polygons, coco or panoptic.
        classes: the classes of the truth; of ids without `class_masks` and of instance_folders one thing.
        void_colors: colours that mean void, for colour; with them, files of ids may hold a colour for each object.
        dropped_ids: object ids that are no objects, for ids.
        guessed: whether no table named the classes.
        published: the published data set whose classes these are, as no table beside the data names others; else ''.
        class_masks: how to read the masks (`Pair.classes`) that say the classes of the objects, for ids.
        segments: whether the truth has a segment for every pixel, of things and of stuff.
    """

    kind: str
    classes: Classes
    void_colors: tuple[Color, ...] = ()
    dropped_ids: tuple[int, ...] = ()
    guessed: bool = False
    published: str = ""
    class_masks: LabelFormat | None = None
    segments: bool = False

    @property
    def has_instances(self) -> bool:
        """Whether label files tell objects apart, and say nothing else or are read for nothing else."""
        return self.kind in ("ids", "instance_folders", "polygons", "panoptic") and not self.segments


# Looking at files


@dataclass(frozen=True)
class _Seen:
    """What some label files hold."""

    ids: frozenset[int]
    colors: Counter[Color]
    palette: tuple[Color, ...]
    deep: bool
    folders: bool


def find_format(
    root: Path, layout: Layout, settings: FolderSettings, task: str | None, table: ClassTable | None = None
) -> LabelFormat:
    """The kind of the label files and their classes.

    Looks at up to `SAMPLED_FILES` label files. All are read when these hold nothing but 0 or nothing but void, which
    fits several kinds, and when they are index files without a class table, whose classes are the ids that occur.

    Args:
        root: the data set's folder, where the class table lies.
        layout: its label files.
        settings: kind, classes and ignored ids, where the user says them.
        task: "semantic", "instance", "panoptic" or None.
        table: the classes; None reads the table beside the data.

    Raises:
        KirieError: when there are no label files, or classes must be told and are not, or do not fit each other.
    """
    files = [pair.mask for pair in layout.pairs if pair.mask]
    if not layout.pairs and layout.gaps:
        raise KirieError(f"{root} has no labelled pictures: {' '.join(gap.why for gap in layout.gaps)}")
    if not files:
        raise KirieError(
            f"{root} has {counted(len(layout.pairs), 'picture')} but no label file for any of them. Label files have "
            "the stem of their picture (set data.suffix if they end differently) and lie in a folder masks, labels or "
            "ids (set data.masks if it has another name)."
        )
    table = table or read_class_table(root)
    if settings.classes is not None:
        same = len(settings.classes) == len(table.names)
        kept = (table.colors, table.things if same else (), table.ids) if same else ((), (), ())
        table = ClassTable("data.classes", settings.classes, *kept, table.void_ids, table.void_colors)
    if settings.ignore is not None:
        wrong = [number for number in settings.ignore if not 0 <= number <= 65535]
        if wrong:
            raise KirieError(f"data.ignore holds {wrong[:6]}; label files hold numbers in 0..65535.")
        table = replace(table, void_ids=settings.ignore)
    seen = _look(_spread(files, SAMPLED_FILES))
    if len(files) > SAMPLED_FILES and _says_nothing(seen, settings.kind, layout.mask_folder, table):
        seen = _look(files)
    kind = settings.kind if settings.kind != "auto" else _kind(seen, layout.mask_folder, table, task)
    guessed, published = not table.names, table.source if table.published else ""
    if kind == "ids" and any(pair.classes for pair in layout.pairs):
        if task == "panoptic":
            return _with_stuff(root, layout, settings, table)
        if len(_things(table)) > 1:
            return _with_class_masks(root, layout, settings, table)
    if kind in ("ids", "instance_folders"):
        return LabelFormat(kind, _thing(table), (), table.void_ids or (), guessed, published)
    if kind == "colour":
        return LabelFormat(kind, _colour_classes(root, table, seen), table.void_colors, (), guessed, published)
    classes = _binary_classes(table, seen) if kind == "binary" else _index_classes(table, seen, files)
    return LabelFormat(kind, classes, (), (), guessed, published)


def _spread(files: Sequence[str], count: int) -> list[str]:
    return [files[i * (len(files) - 1) // max(min(count, len(files)) - 1, 1)] for i in range(min(count, len(files)))]


def _says_nothing(seen: _Seen, kind: str, folder: str, table: ClassTable) -> bool:
    """Whether the kind or the number of the foreground hangs on what the label files that were not seen hold."""
    if seen.folders or seen.colors or kind not in ("auto", "binary") or (kind == "auto" and folder in ID_FOLDERS):
        return False
    return seen.ids <= {0} or seen.ids <= set(table.void_ids or (255,))


def _look(files: Sequence[str]) -> _Seen:
    """Broken files are passed over: reading or inspecting them says what is wrong; all broken is an error."""
    ids: set[int] = set()
    colors: Counter[Color] = Counter()
    palette: tuple[Color, ...] = ()
    deep, troubles = False, []
    if any(Path(file).is_dir() for file in files):
        return _Seen(frozenset(), colors, (), False, True)
    for file in files:
        try:
            pixels = _flat(read_label_file(file))
            palette = palette or palette_colors(file)
        except KirieError as error:
            troubles.append(str(error))
            continue
        if pixels.ndim == 3:
            found, counts = np.unique(_codes(pixels), return_counts=True)
            most = np.argsort(-counts)[:256]
            colors.update({_color_of(int(found[i])): int(counts[i]) for i in most})
        else:
            ids.update(present_ids(pixels))
            deep = deep or pixels.dtype == np.uint16
    if len(troubles) == len(files):
        raise KirieError(troubles[0])
    return _Seen(frozenset(ids), colors, palette, deep, False)


def _kind(seen: _Seen, folder: str, table: ClassTable, task: str | None) -> str:
    if seen.folders:
        return "instance_folders"
    if seen.colors:
        return "colour"
    known = set(table.ids or range(len(table.names))) | set(table.void_ids or (255,))
    if folder in ID_FOLDERS or (seen.deep and not (len(table.names) > 1 and seen.ids <= known)):
        return "ids"
    if seen.ids <= {0, 255} and 255 in seen.ids:
        told = 255 in (table.void_ids or ()) or table.ids or len(table.names) > 2
        return "index" if told else "binary"
    greys = {color[0] for color in (*table.colors, *table.void_colors) if len(set(color)) == 1}
    if seen.ids <= greys and not seen.ids <= known and not seen.palette:
        return "colour"  # of a table whose colours are greys
    two = seen.ids <= {0, 1} and not table.ids
    return "binary" if two and len(table.names) < 2 else "index"


def _with_class_masks(root: Path, layout: Layout, settings: FolderSettings, table: ClassTable) -> LabelFormat:
    """The form of object ids whose classes other masks of the same pictures say.

    Raises:
        KirieError: as `find_format`, about those masks.
    """
    pairs = tuple(pair._replace(mask=pair.classes, classes="") for pair in layout.pairs)
    masks = replace(layout, pairs=pairs, mask_folder="")
    form = find_format(root, masks, replace(settings, kind="auto"), "semantic", table)
    names = _things(table)
    at = [form.classes.index(name) for name in names]
    classes = Classes(tuple(names), tuple(form.classes.colors[i] for i in at), (True,) * len(names))
    return LabelFormat("ids", classes, (), settings.ignore or (), False, form.published, form)


def _with_stuff(root: Path, layout: Layout, settings: FolderSettings, table: ClassTable) -> LabelFormat:
    """The form of object ids and class masks that are read together as panoptic truth.

    Raises:
        KirieError: as `_with_class_masks`, and when no table says which classes are things.
    """
    if not table.things:
        raise KirieError(
            f"{root} has object ids and class masks, but {table.source or 'no class table'} does not say which classes "
            'are things, whose objects the ids tell apart. Write classes.json with them: {"classes": ["road", "car"], '
            '"things": ["car"]}.'
        )
    form = _with_class_masks(root, layout, settings, table)
    whole = form.class_masks or form
    things = tuple(name in form.classes.names for name in whole.classes.names)
    return replace(form, classes=replace(whole.classes, things=things), segments=True)


def _things(table: ClassTable) -> list[str]:
    return list(table.things) or [name for name in table.names if name != BACKGROUND]


def _thing(table: ClassTable) -> Classes:
    names = _things(table)
    if len(names) > 1:
        raise KirieError(
            f"These label files tell objects apart but not their classes, and {table.source} names {len(names)}: "
            f"{', '.join(names[:8])}. Name the one class of the objects under things in classes.json or in "
            "data.classes; for objects of several classes add index masks of the same pictures in a folder masks, or "
            "use a COCO JSON file."
        )
    name = names[0] if names else "object"
    at = table.names.index(name) if name in table.names else 0
    colors = (table.colors[at],) if len(table.colors) > at else ()
    return Classes((name,), colors, (True,))


def _binary_classes(table: ClassTable, seen: _Seen) -> Classes:
    names = table.names or (BACKGROUND, "foreground")
    names = (BACKGROUND, *names) if len(names) == 1 else names
    if len(names) != 2:
        raise KirieError(f"Binary masks have two classes, but {table.source} names {len(names)}; name one or two.")
    top = 255 if 255 in seen.ids and 1 not in seen.ids else 1
    ids = (0, *table.ids) if len(table.ids) == 1 else table.ids or (0, top)
    return _classes(table, names, ids, table.colors if len(table.colors) == 2 else ())


def _index_classes(table: ClassTable, seen: _Seen, files: Sequence[str]) -> Classes:
    void = (255,) if table.void_ids is None else table.void_ids
    if table.names:
        ids = table.ids or tuple(range(len(table.names)))
        return _classes(table, table.names, ids, table.colors or _palette_part(seen, ids))
    ids = tuple(sorted(_scan(files) - set(void)))
    if not ids or len(ids) > MAX_GUESSED_CLASSES:
        raise KirieError(
            f"The label files hold {len(ids)} different ids besides void"
            + (f" ({ids[0]} to {ids[-1]}); smoothed or lossy (JPEG) masks look so. " if ids else ". ")
            + "Save masks with one number per class, or name the classes in classes.json."
        )
    if set(ids) <= {0, 1}:
        return Classes((BACKGROUND, "foreground"), _palette_part(seen, (0, 1)), void_ids=void)
    return Classes(tuple(f"class {i}" for i in ids), _palette_part(seen, ids), ids=ids, void_ids=void)


def _palette_part(seen: _Seen, ids: Sequence[int]) -> tuple[Color, ...]:
    return tuple(seen.palette[i] for i in ids) if seen.palette and max(ids) < len(seen.palette) else ()


def _scan(files: Sequence[str]) -> set[int]:
    ids: set[int] = set()
    for file in files:
        try:
            ids.update(present_ids(file_ids(file)))
        except KirieError:
            continue  # inspecting or reading the sample says it
    return ids


def _classes(table: ClassTable, names: Sequence[str], ids: Sequence[int], colors: Sequence[Color]) -> Classes:
    """The classes by a table; errors name where it comes from."""
    both = sorted(set(ids) & set(table.void_ids or ()))
    if both:
        raise KirieError(
            f"{table.source or 'The label files'}: {', '.join(map(str, both[:6]))} would be both a class and void "
            f"({'; '.join(f'{i} is {names[list(ids).index(i)]}' for i in both[:3])}). Take it out of ignore_index or "
            "data.ignore, or give the classes the ids that the label files use."
        )
    void = (255,) if table.void_ids is None else table.void_ids
    try:
        return Classes(tuple(names), tuple(colors), tuple(n in table.things for n in names), tuple(ids), void)
    except KirieError as error:
        raise KirieError(f"{table.source}: {error}" if table.source else str(error)) from None


def _colour_classes(root: Path, table: ClassTable, seen: _Seen) -> Classes:
    if not table.names or len(table.colors) != len(table.names):
        common = [color for color, _ in seen.colors.most_common(12)]
        example = {
            "classes": [f"name {i + 1}" for i in range(len(common))],
            "colors": [list(color) for color in common],
        }
        raise KirieError(
            f"The masks in {root} are colour-coded, and no table says which colour is which class. The first files "
            f"hold {len(seen.colors)} colours, most often {', '.join(map(str, common))}. Write {root / 'classes.json'} "
            f"as {json.dumps(example)}; colours without a class go under ignore_colors."
        )
    if len(set(table.colors)) != len(table.colors):
        raise KirieError(f"{table.source} gives two classes the same colour; each needs a colour of its own.")
    return _classes(replace(table, void_ids=None), table.names, range(len(table.names)), table.colors)


# Reading one file


def majority_classes(masks: Masks, labels: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    """The class that most pixels under each mask have, the first of those that are as frequent, (N,) int64.

    Args:
        masks: N masks.
        labels: (H, W) class ids 0..count-1; anything above is void and has no say.
        count: of the classes.

    Returns:
        Class ids; -1 where all pixels are void.
    """
    found = np.full(len(masks), -1, np.int64)
    for index, (top, left, bits) in enumerate(masks.crops()):
        under = labels[top : top + bits.shape[0], left : left + bits.shape[1]][bits]
        counts = np.bincount(under[under < count])
        found[index] = counts.argmax() if len(counts) else -1
    return found


def read_labels(path: str, form: LabelFormat) -> tuple[npt.NDArray[Any], dict[str, int]]:
    """The label map of a file of kind index, binary or colour, and what is unknown in it.

    Returns:
        (H, W) class ids or void, uint8 or int32, unknown pixels as void; and unknown ids or colours with pixel counts.
    """
    if form.kind != "colour":
        labels, unknown = form.classes.from_file_ids(file_ids(path))
        return labels, {str(i): count for i, count in unknown.items()}
    pixels = read_label_file(path)
    if pixels.ndim == 2:
        palette = np.array(palette_colors(path) or [(v, v, v) for v in range(256)], np.uint8)
        pixels = palette[np.minimum(pixels, len(palette) - 1)]
    return _labels_from_colors(pixels, form)


def file_ids(path: str) -> npt.NDArray[Any]:
    """The (H, W) ids in a label file; a grey picture saved as colours counts as grey.

    Raises:
        KirieError: when the file holds colours.
    """
    pixels = _flat(read_label_file(path))
    if pixels.ndim == 3:
        raise KirieError(
            f"{path} holds colours, expected ids as the other label files have. Save it as grey or palette PNG."
        )
    return pixels


def read_masks(path: str, form: LabelFormat) -> tuple[Masks | None, int]:
    """The masks of the objects in a file of ids or a folder of files, and how many of those files were empty.

    A folder without files gives None, as nothing says the size.

    Raises:
        KirieError: when a file is broken, or files in one folder differ in size.
    """
    if form.kind == "ids":
        ids = _object_ids(path, form)
        order = [i for i in present_ids(ids) if i != 0 and i not in form.dropped_ids]
        return Masks.from_ids(ids, order), 0
    files = list_pictures(path)
    crops: list[Crop] = []
    size: tuple[int, int] | None = None
    for file in files:
        bits = file_ids(f"{path}/{file}") != 0
        if size not in (None, bits.shape):
            raise KirieError(f"{path}/{file} is {_by(bits.shape)} but others in its folder are {_by(size or ())}.")
        size = (int(bits.shape[0]), int(bits.shape[1]))
        box = boxes.of_mask(bits)
        if box is not None:
            left, top, right, bottom = box
            crops.append(Crop(top, left, bits[top:bottom, left:right].copy()))
    return (None if size is None else Masks.from_crops(crops, size)), len(files) - len(crops)


def _object_ids(path: str, form: LabelFormat) -> npt.NDArray[Any]:
    """The (H, W) ids in a file of ids, or where it may hold colours a number for each; black and void are 0."""
    pixels = _flat(read_label_file(path)) if form.void_colors else file_ids(path)
    if pixels.ndim == 2:
        return pixels
    codes = _codes(pixels)
    nothing = _codes(np.array([[(0, 0, 0), *form.void_colors]], np.uint8))[0]
    return np.where(np.isin(codes, nothing), 0, codes)


def present_ids(ids: npt.NDArray[Any]) -> list[int]:
    """The ids that occur in an (H, W) array of whole numbers, ascending."""
    return [int(i) for i in count_ids(ids)[0]]


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _flat(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if pixels.ndim == 3 and (pixels[..., :2] == pixels[..., 1:]).all():
        return np.ascontiguousarray(pixels[..., 0])
    return pixels


def _codes(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """One number (H, W) for each colour (H, W, 3): the four bytes of RGBA as they lie in memory."""
    rgba = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2RGBA)
    return np.asarray(rgba, np.uint8).view(np.uint32)[..., 0]


def _color_of(code: int) -> Color:
    red, green, blue, _ = np.array([code], np.uint32).view(np.uint8).tolist()
    return red, green, blue


def _labels_from_colors(pixels: npt.NDArray[Any], form: LabelFormat) -> tuple[npt.NDArray[Any], dict[str, int]]:
    classes = form.classes
    known = [*classes.colors, *(color for color in form.void_colors if color not in classes.colors)]
    codes = _codes(np.array([known], np.uint8))[0]
    values = np.array([*range(len(classes)), *[classes.void] * (len(known) - len(classes))])
    order = np.argsort(codes)
    codes, values = codes[order], values[order].astype(np.uint8 if classes.void == 255 else np.int32)
    found = _codes(pixels)
    place = np.minimum(np.searchsorted(codes, found), len(codes) - 1)
    labels = values[place]
    wrong = codes[place] != found
    if not wrong.any():
        return labels, {}
    labels[wrong] = classes.void
    strange, counts = np.unique(found[wrong], return_counts=True)
    return labels, {str(_color_of(int(c))): int(n) for c, n in zip(strange, counts, strict=True)}
