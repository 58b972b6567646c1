"""Parity cases: weights and images by name, and what the public reference answered for them, stage by stage."""

import importlib.util
import json
import zlib
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
import torch

from kirie.weights.load import import_checkpoint


class Case(NamedTuple):
    name: str
    facts: dict
    arrays: dict
    state: OrderedDict
    image: np.ndarray  # (3, H, W) in 0..255


def load_case(shared, name):
    """The facts, the reference's answers, the weights and the image of one parity case."""
    folder = shared / "parity"
    if not (folder / "fill.py").is_file():
        pytest.skip(f"no parity cases in {folder}")
    spec = importlib.util.spec_from_file_location("parity_fill", folder / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    facts = json.loads((folder / f"{name}.json").read_text())
    with np.load(folder / f"{name}.npz") as arrays:
        answers = dict(arrays)
    filled = fill.fill_state_dict(facts["keys"], facts["gains"])
    for key, change in facts.get("overrides", {}).items():
        for index, value in change if isinstance(change, list) else [(Ellipsis, change)]:
            filled[key][index] += np.float32(value)
    state = OrderedDict((key, torch.from_numpy(np.asarray(values))) for key, values in filled.items())
    image = fill.make_input(facts["input"]["seed"], tuple(facts["input"]["shape"]))
    case = Case(name, facts, answers, state, image)
    _check_fill(case)
    return case


def _check_fill(case):
    check = case.facts.get("fill_check")
    if check is None:
        return
    total = sum(float(t.double().sum()) for t in case.state.values())
    absolute = sum(float(t.double().abs().sum()) for t in case.state.values())
    assert total == pytest.approx(check["sum_of_all_tensors"], rel=1e-6)
    assert absolute == pytest.approx(check["sum_of_absolutes"], rel=1e-6)
    assert zlib.crc32(case.image.astype(np.float32).tobytes()) == check["input_crc32_of_float32_bytes"]


def through_file(content, path, write=torch.save):
    """What `import_checkpoint` makes of the file that a publisher would have written; the file is removed again."""
    write(content, path)
    found = import_checkpoint(path)
    path.unlink()
    return found


@torch.no_grad()
def stage_outputs(model, hooks, image):
    """What each named stage gives for the case's image, with `logits` and `argmax`.

    Args:
        model: in evaluation mode.
        hooks: the reference's stage name -> path of our module, or (path, "input") for what goes into it.
        image: (3, H, W) in 0..255.
    """
    kept, handles = {}, []

    def keep(name, path, place):
        def hook(_, given, output):
            kept[name] = (given[0] if place == "input" else output).detach().clone()[0]

        handles.append(model.get_submodule(path).register_forward_hook(hook))

    for name, target in hooks.items():
        path, place = target if isinstance(target, tuple) else (target, "output")
        keep(name, path, place)
    raw = model(torch.from_numpy(np.ascontiguousarray(image))[None] / 255)
    size = image.shape[1:]
    if raw.auxiliary is not None:
        model.auxiliary_logits(raw.auxiliary, size)  # for the hooks: prediction does without it
    for handle in handles:
        handle.remove()
    result = model.decode(raw, [size])[0]
    full = torch.nn.functional.interpolate(raw.logits, size=size, mode="bilinear", align_corners=False)
    logits = raw.logits if raw.logits.shape[-2:] == size else full
    return {"logits": logits[0], "argmax": result.labels} | kept


def check_stages(case, found):
    """Every stage that the case gives against what was found, in the network's order: the first that fails is wrong."""
    named = [name for name in case.facts["outputs"] if "argmax" not in name]
    assert set(named) <= set(found), f"stages without an answer: {sorted(set(named) - set(found))}"
    for name in named:
        facts, tolerance = case.facts["outputs"][name], case.facts["tolerance"][name]
        full = np.asarray(found[name])
        assert list(full.shape) == facts["full_shape"], name
        thinned = full[tuple(slice(None, None, step) for step in facts["steps"])]
        np.testing.assert_allclose(thinned, case.arrays[name], **tolerance, err_msg=name)
        for statistic in ("mean", "std", "min", "max"):  # of the full array, rounded
            if statistic in facts:
                double = torch.as_tensor(full).double()
                value = float(getattr(double, statistic)())  # PyTorch's deviation divides by n - 1
                assert value == pytest.approx(facts[statistic], abs=tolerance["atol"] + 1e-6), (name, statistic)


def check_argmax(case, found, *, name="argmax", logits="logits"):
    """The class of every pixel; it may differ only where the two best logits are nearly equal."""
    wrong = found[name] != case.arrays[name]
    assert wrong.shape == tuple(case.facts["outputs"][name]["shape"])
    assert wrong.mean() <= case.facts["tolerance"][name]["mismatch_fraction"]
    best = torch.as_tensor(found[logits]).topk(2, dim=0).values
    margin = (best[0] - best[1]).numpy()
    assert (margin[wrong] <= 2 * case.facts["tolerance"][logits]["atol"] + 1e-12).all()
