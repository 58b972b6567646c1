"""U-Net checkpoints in the publisher's format against what the public reference answered, stage by stage."""

import importlib.util
import json
import zlib
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
import torch

from kirie.weights.load import import_checkpoint

CASES = ["milesial_unet", "seed_unet"]


class Case(NamedTuple):
    facts: dict
    arrays: dict
    state: OrderedDict
    image: np.ndarray  # (3, H, W) in 0..255


@pytest.fixture(scope="module", params=CASES)
def case(request, shared):
    """The facts, the reference's answers, the weights and the image of one parity case."""
    folder = shared / "parity"
    if not (folder / "fill.py").is_file():
        pytest.skip(f"no parity cases in {folder}")
    spec = importlib.util.spec_from_file_location("parity_fill", folder / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    facts = json.loads((folder / f"{request.param}.json").read_text())
    with np.load(folder / f"{request.param}.npz") as arrays:
        answers = dict(arrays)
    filled = fill.fill_state_dict(facts["keys"], facts["gains"])
    state = OrderedDict((name, torch.from_numpy(np.asarray(values))) for name, values in filled.items())
    image = fill.make_input(facts["input"]["seed"], tuple(facts["input"]["shape"]))
    return Case(facts, answers, state, image)


@pytest.fixture(scope="module")
def imported(case, tmp_path_factory):
    """The model that comes out of the file the publisher would have written, and how it was translated."""
    path = tmp_path_factory.mktemp("release") / "checkpoint.pth"
    torch.save(case.state, path)
    found = import_checkpoint(path)
    path.unlink()
    return found


@pytest.fixture(scope="module")
def stages(case, imported):
    """Every stage's output for the case's image, under the names of the reference."""
    model, _ = imported
    kept, hooks = {}, []

    def keep(name, module, *, its_input=False):
        def hook(_, given, output):
            kept[name] = (given[0] if its_input else output).detach()[0]

        hooks.append(module.register_forward_hook(hook))

    for level, block in enumerate(model.down):
        keep(f"down{level}" if level else "inc", block)
    for step, block in enumerate(model.up, start=1):
        keep(f"up{step}", block)
        keep(f"up{step}_concat", block.conv, its_input=True)
    keep("input", model.down[0], its_input=True)
    with torch.no_grad():
        raw = model(torch.from_numpy(case.image)[None] / 255)
    for hook in hooks:
        hook.remove()
    size = case.image.shape[1:]
    return kept | {"logits": raw.logits[0], "argmax": model.decode(raw, [size])[0].labels}


def test_weights_and_image_are_those_of_the_reference(case):
    check = case.facts["fill_check"]
    total = sum(float(t.double().sum()) for t in case.state.values())
    absolute = sum(float(t.double().abs().sum()) for t in case.state.values())
    assert total == pytest.approx(check["sum_of_all_tensors"], rel=1e-6)
    assert absolute == pytest.approx(check["sum_of_absolutes"], rel=1e-6)
    assert zlib.crc32(case.image.astype(np.float32).tobytes()) == check["input_crc32_of_float32_bytes"]


def test_the_network_has_the_size_of_the_release(case, imported):
    model, translation = imported
    assert sum(p.numel() for p in model.parameters()) == case.facts["parameters"]
    assert translation.architecture == "unet"
    assert translation.dropped == {}
    assert (model.in_channels, len(model.classes), model.binary) == (3, 2, False)
    assert model.arguments["bias"] is (case.facts["case"] == "seed_unet")
    assert not model.training


def test_every_stage_is_that_of_the_reference(case, stages):
    named = set(case.facts["outputs"]) - {"argmax"}
    assert named >= {"input", "inc", "down4", "up1_concat", "up4", "logits"}
    assert named | {"argmax"} == set(case.arrays)
    for name in case.facts["outputs"]:  # in the network's order: the first that fails is where it goes wrong
        if name == "argmax":
            continue
        facts = case.facts["outputs"][name]
        full = stages[name].numpy()
        assert list(full.shape) == facts["full_shape"], name
        thinned = full[tuple(slice(None, None, step) for step in facts["steps"])]
        tolerance = case.facts["tolerance"][name]
        np.testing.assert_allclose(thinned, case.arrays[name], **tolerance, err_msg=name)
        for statistic in ("mean", "std", "min", "max"):  # of the full array, rounded
            value = float(getattr(full.astype(np.float64), statistic)())
            assert value == pytest.approx(facts[statistic], abs=tolerance["atol"] + 1e-6), (name, statistic)


def test_the_classes_of_all_pixels_are_those_of_the_reference(case, stages):
    wrong = stages["argmax"] != case.arrays["argmax"]
    assert wrong.shape == tuple(case.facts["outputs"]["argmax"]["shape"])
    assert wrong.mean() <= case.facts["tolerance"]["argmax"]["mismatch_fraction"]
    margin = (stages["logits"][0] - stages["logits"][1]).abs().numpy()
    assert (margin[wrong] <= 2 * case.facts["tolerance"]["logits"]["atol"]).all()


def test_the_forms_in_which_files_come_give_the_same_network(case, imported, tmp_path):
    expected = imported[0].state_dict()
    without = OrderedDict((n, t) for n, t in case.state.items() if not n.endswith("num_batches_tracked"))
    assert len(without) < len(case.state)
    forms = {"with values": case.state | {"mask_values": [0, 1]}, "old": without}
    for name, state in forms.items():
        path = tmp_path / "checkpoint.pth"
        torch.save(OrderedDict(state), path)
        model, translation = import_checkpoint(path)
        path.unlink()
        assert list(translation.dropped) == (["mask_values"] if name == "with values" else [])
        found = model.state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[n], expected[n]) for n in expected)
