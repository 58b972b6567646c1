"""Objects in one label file and the classes of all pixels in another, joined: as objects, or as a panoptic map."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kirie.data.fault import Fault
from kirie.data.label_faults import check_size, unknown_mend, unknown_text
from kirie.data.labels import LabelFormat, majority_classes, read_labels
from kirie.data.layouts import Pair
from kirie.data.objects import Objects
from kirie.data.panoptic_maps import segment_map
from kirie.errors import counted
from kirie.masks import Masks
from kirie.results import Instances, PanopticMap


class _Joined(NamedTuple):
    """Objects whose class is a thing, the numbers of these classes, the classes of all pixels, and what is left out."""

    masks: Masks
    found: npt.NDArray[np.int64]
    labels: npt.NDArray[Any]
    faults: tuple[Fault, ...]


def with_classes(pair: Pair, masks: Masks, form: LabelFormat, class_form: LabelFormat) -> Objects:
    """Objects with the class that most of their pixels have in another mask; those where it is no thing are left out.

    Where `form.segments` says so they are the things of a panoptic map. Its stuff is what other pixels are in that
    mask; those of a class of things that lie in no object are a crowd of it, as nothing tells their objects apart.

    Raises:
        KirieError: when that mask cannot be read.
    """
    joined = _joined(pair, masks, form, class_form)
    if isinstance(joined, Objects):
        return joined
    if form.segments:
        return Objects(_panoptic(joined, form), joined.faults)
    return Objects(Instances.from_masks(joined.masks, joined.found, form.classes), joined.faults)


def _joined(pair: Pair, masks: Masks, form: LabelFormat, class_form: LabelFormat) -> _Joined | Objects:
    """The objects that are things, or why there are none."""
    if not pair.classes:
        what = f"{pair.mask} tells the objects of {pair.image} apart, but no mask says their classes."
        fault = Fault("fault", "picture without class mask", what, (pair.image,), "Add the mask of classes.")
        return Objects(None, (fault,), what)
    labels, unknown = read_labels(pair.classes, class_form)
    check_size(pair.mask, masks.size, pair.classes, labels.shape)
    if unknown:
        what, mend = f"{pair.classes} {unknown_text(unknown, class_form)}", unknown_mend(pair.classes, class_form)
        return Objects(None, (Fault("fault", "unknown ids", what, (pair.classes,), mend),), f"{what} {mend}")
    things = np.full(len(class_form.classes) + 1, -1, np.int64)  # the last is that of objects that are all void
    of_form = [i for i, thing in enumerate(form.classes.things) if thing]
    things[[class_form.classes.index(form.classes.names[i]) for i in of_form]] = of_form
    found = things[majority_classes(masks, labels, len(class_form.classes))]
    kept = np.flatnonzero(found >= 0)
    if len(kept) == len(masks):
        return _Joined(masks, found, labels, ())
    what = f"{pair.mask} has {counted(len(masks) - len(kept), 'object')} that mostly lie on no thing in {pair.classes}."
    mend = "Right for regions that are no objects; else mark their pixels with the class there."
    fault = Fault("note", "object without class", what, (pair.mask, pair.classes), mend)
    return _Joined(masks[kept], found[kept], labels, (fault,))


def _panoptic(joined: _Joined, form: LabelFormat) -> PanopticMap:
    """Objects numbered from 1, and behind them a segment for each class that other pixels have."""
    count, classes = len(joined.found), form.classes
    ids = joined.masks.id_map()
    rest = (ids == 0) & (joined.labels != classes.void)
    ids[rest] = count + 1 + joined.labels[rest].astype(np.int32)
    facts = {number: (label, False) for number, label in enumerate(joined.found.tolist(), 1)}
    facts |= {count + 1 + label: (label, thing) for label, thing in enumerate(classes.things)}
    return segment_map(ids, facts, classes)
