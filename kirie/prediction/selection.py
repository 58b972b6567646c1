"""Which of the objects that a model found are wanted: by score, by class, by number."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.results import Instances

MOST = 100_000  # objects of a picture that may be asked for


def select(
    instances: Instances,
    *,
    threshold: float | None = None,
    classes: Sequence[str] | None = None,
    max_detections: int | None = None,
) -> Instances:
    """The objects of these classes that score at least `threshold`, and of them the surest, in their order.

    Args:
        instances: what was found in one picture.
        threshold: the lowest score that is kept, 0 to 1; objects without a pixel, which can be neither seen nor
            measured, go as well. None keeps all.
        classes: names of the classes that are kept; None keeps all.
        max_detections: how many objects are kept, the surest; among equal scores the earlier ones. None keeps all.

    Raises:
        KirieError: when a name is no class, the threshold is outside 0..1, or `max_detections` is below 1.
    """
    check_selection(instances.classes, threshold=threshold, classes=classes, max_detections=max_detections)
    kept = np.ones(len(instances), bool)
    if threshold is not None:
        kept = (instances.scores >= threshold) & (instances.masks.areas() > 0)
    if classes is not None:
        kept &= np.isin(instances.labels, [instances.classes.index(name) for name in classes])
    chosen = np.flatnonzero(kept)
    surest = np.argsort(-instances.scores[chosen], kind="stable")[:max_detections]
    return instances[chosen[np.sort(surest)]]


def check_selection(
    known: Classes,
    *,
    threshold: float | None = None,
    classes: Sequence[str] | None = None,
    max_detections: int | None = None,
) -> None:
    """Raises a KirieError when `select` would refuse these wishes for objects of the classes `known`."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise KirieError(f"A threshold is the lowest score that is kept, from 0 to 1, got {threshold}.")
    if max_detections is not None and (type(max_detections) is not int or not 1 <= max_detections <= MOST):
        raise KirieError(f"The most objects of a picture are a whole number from 1 to {MOST}, got {max_detections!r}.")
    if classes is None:
        return
    if isinstance(classes, str) or not classes:
        raise KirieError(f"The classes to keep are a list of names, got {classes!r}.")
    for name in classes:
        if name not in known.names:
            raise KirieError(f"No class is called {name!r}; {_near(str(name), known.names)}.")


def _near(name: str, names: Sequence[str], most: int = 8) -> str:
    """The names that look most like one, in words; all of them where they are few."""
    if len(names) <= most:
        return f"the classes are {', '.join(names)}"
    plain = {each.casefold(): each for each in names}
    close = difflib.get_close_matches(name.casefold(), plain, n=5, cutoff=0.5)
    shown = [plain[each] for each in close] or list(names[:most])
    return f"{'near it are' if close else f'the first of {len(names)} are'} {', '.join(shown)}"
