"""From another project's checkpoint file to a kirie model: read safely, recognise, translate, load strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from kirie import class_lists
from kirie.classes import Classes
from kirie.errors import KirieError, counted
from kirie.lookup import look_up
from kirie.models import model_class
from kirie.models.contract import SegmentationModel, unsound
from kirie.weights import PUBLISHERS
from kirie.weights.read import read_state, unwrapped
from kirie.weights.releases import find_release, named
from kirie.weights.translation import Translation

Changes = Mapping[str, Any] | Sequence[str]
MAX_CONFIG = 2**22  # bytes of a config.json; one with a thousand classes has 60,000


def import_checkpoint(
    path: str | Path, *, changes: Changes = (), release: str | None = None
) -> tuple[SegmentationModel, Translation]:
    """The model in a checkpoint of a known publisher, and how its entries were translated.

    Nothing in the file is executed: see `read_state`.

    Args:
        path: a `.pth`, `.pt`, `.bin`, `.pth.tar`, `.pkl` or `.safetensors` file.
        changes: arguments of the architecture to set otherwise than recognised, by name or as "name=value" in YAML;
            needed only where the entries cannot tell, which `Translation.assumed` says. `classes` takes a list of
            names or the name of a list in `kirie.class_lists`.
        release: the row of `RELEASES` that the file is, where its checksum does not tell.

    Raises:
        KirieError: when the file cannot be read safely, no publisher's layout fits, a tensor is missing, unknown or of
            the wrong shape or type, or a change names no argument.
    """
    path = Path(path)
    state, dropped = unwrapped(read_state(path), path)
    translation = translate(state, path)
    translation = replace(translation, dropped={**dropped, **translation.dropped})
    if release is None:
        release = find_release(path, translation)
    else:
        _check_release(path, translation, release)
    settled = named(release).settled() if release else names_beside(path, translation)
    translation = replace(_changed(translation, {**settled, **_given(changes)}), release=release)
    model = _built(translation, path)
    model.inputs = named(release).inputs if release is not None else translation.inputs
    return model, translation


def names_beside(path: Path, translation: Translation) -> dict[str, list[str]]:
    """The class names that Hugging Face keeps in a `config.json` beside the weights, as `classes`; {} without any."""
    config = path.parent / "config.json"
    if translation.publisher != "huggingface" or not config.is_file() or config.stat().st_size > MAX_CONFIG:
        return {}
    try:
        given = json.loads(config.read_text(encoding="utf-8"))["id2label"]
        names = [given[str(number)] for number in range(len(given))]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}  # the names are a courtesy; what cannot be read leaves the classes numbered
    count = translation.classes if isinstance(translation.classes, int) else len(translation.classes)
    plain = all(isinstance(name, str) and name.strip() for name in names) and len(set(names)) == len(names)
    if not plain or len(names) != count or count < 2 or all(name.startswith("LABEL_") for name in names):
        return {}
    if not isinstance(translation.classes, int) and [n.lower() for n in names] == [
        n.lower() for n in translation.classes.names
    ]:
        return {}  # the list that was recognised, which has colours too
    return {"classes": names}


def translate(state: Mapping[str, Any], path: Path) -> Translation:
    """A state dict in kirie's terms, by the publisher whose layout it has.

    Raises:
        KirieError: when no publisher's layout fits.
    """
    for name, row in PUBLISHERS.items():
        if look_up(f"{row.partition(':')[0]}:recognises")(state):
            try:
                translation: Translation = look_up(row)(state)
            except KirieError as error:
                raise KirieError(f"{path} looks like a checkpoint of {name}. {error}") from error
            return replace(translation, publisher=name)
    names = ", ".join(f"{name:.80}" for name in list(state)[:4])
    raise KirieError(
        f"{path} has the layout of no publisher that kirie knows ({', '.join(PUBLISHERS)}); it has "
        f"{counted(len(state), 'entry', 'entries')}" + (f", which begin {names}." if names else ".")
    )


def _check_release(path: Path, translation: Translation, name: str) -> None:
    """Raises a KirieError when there is no such release or the file has another form."""
    if not named(name).fits(translation):
        classes = translation.classes if isinstance(translation.classes, int) else len(translation.classes)
        raise KirieError(
            f"{path} is not {name}: it holds {translation.publisher}'s {translation.architecture} with {classes} "
            f"classes and {dict(translation.arguments)!r:.200}."
        )


def _given(changes: Changes) -> dict[str, Any]:
    """Changes by name, those of the command line read as YAML."""
    if isinstance(changes, Mapping):
        return dict(changes)
    given = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name.strip():
            raise KirieError(f"An argument is set as name=value, got {change!r:.80}.")
        try:
            given[name.strip()] = yaml.safe_load(text)
        # Besides its own errors, PyYAML lets those of its conversions through.
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
            raise KirieError(f"The value of {name.strip()} is not valid YAML: {text!r:.80}.") from error
    return given


def _changed(translation: Translation, given: Mapping[str, Any]) -> Translation:
    known = sorted({"classes", *translation.arguments, *translation.assumed})
    unknown = [name for name in given if name not in known]
    if unknown:
        raise KirieError(
            f"{translation.architecture} as imported has no argument {unknown[0]!r:.60}; those that can be set are "
            f"{', '.join(known)}."
        )
    assumed = {name: words for name, words in translation.assumed.items() if name not in given}
    arguments = {**translation.arguments, **given}
    classes = translation.classes
    if "classes" in given:
        count = classes if isinstance(classes, int) else len(classes)
        binary = count == 1 and model_class(translation.architecture).task == "semantic"
        classes = _classes(arguments.pop("classes"), classes, 2 if binary else count)
        if binary:
            arguments["binary"] = True  # one logit for two classes
    return replace(translation, arguments=arguments, classes=classes, assumed=assumed)


def _classes(given: Any, recognised: Classes | int, count: int) -> Classes:
    """Classes from a list of names or the name of a list in `class_lists`, as many as the checkpoint tells apart.

    Which of named ones are things is as in those that were recognised.
    """
    lists = {name: value for name, value in vars(class_lists).items() if isinstance(value, Classes)}
    if isinstance(given, str) and given.upper() in lists:
        classes = lists[given.upper()]
    elif isinstance(given, list) and all(isinstance(name, str) for name in given):
        things = () if isinstance(recognised, int) or len(given) != count else recognised.things
        classes = Classes(tuple(given), things=things)
    else:
        raise KirieError(
            f"classes must be a list of names or one of {', '.join(sorted(lists))}, in any case, got {given!r:.80}."
        )
    if len(classes) != count:
        raise KirieError(f"The checkpoint tells {count} classes apart, got {len(classes)} names.")
    return classes


def _built(translation: Translation, path: Path) -> SegmentationModel:
    """The model of a translation, in evaluation mode, with every tensor in its place."""
    build: Any = model_class(translation.architecture)
    try:
        with torch.device("meta"):  # names and shapes alone: a wrong file must not cost memory
            outline = build(translation.in_channels, translation.classes, **translation.arguments)
        _compare(outline.state_dict(), translation)
        model: SegmentationModel = build(translation.in_channels, translation.classes, **translation.arguments)
    except (KirieError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise KirieError(f"{path} does not fit the {translation.architecture} it looks like: {error}") from error
    model.load_state_dict(translation.state, strict=False)  # all there, as compared, but for batch counters
    wrong = unsound(model)
    if wrong is not None:
        raise KirieError(f"{path} holds {wrong}.")
    return model.eval()


def _compare(expected: Mapping[str, Tensor], translation: Translation) -> None:
    found = translation.state
    # Batch counters have no effect in prediction and old files lack them.
    missing = sorted(n for n in set(expected) - set(found) if not n.endswith("num_batches_tracked"))
    extra = sorted(set(found) - set(expected))
    shared = [name for name in expected if name in found]
    shape = [f"{n}: {tuple(found[n].shape)}, expected {tuple(expected[n].shape)}"
             for n in shared if found[n].shape != expected[n].shape]  # fmt: skip
    kind = [f"{n}: {found[n].dtype}, expected {expected[n].dtype}"
            for n in shared if found[n].is_floating_point() != expected[n].is_floating_point()]  # fmt: skip
    faults = {"missing": missing, "unknown": extra, "of another shape": shape, "of another type": kind}
    told = [f"{len(names)} {fault} {names[:4]}" for fault, names in faults.items() if names]
    if told:
        raise KirieError(f"of {len(expected)} tensors, by kirie's names, {'; '.join(told)}.")
