"""U-Net checkpoints in the publisher's format against what the public reference answered, stage by stage."""

from collections import OrderedDict

import pytest
import torch

from tests.weights.parity import check_argmax, check_stages, load_case, stage_outputs, through_file

CASES = ["milesial_unet", "seed_unet"]


@pytest.fixture(scope="module", params=CASES)
def case(request, shared):
    return load_case(shared, request.param)


@pytest.fixture(scope="module")
def imported(case, tmp_path_factory):
    """The model that comes out of the file the publisher would have written, and how it was translated."""
    return through_file(case.state, tmp_path_factory.mktemp("release") / "checkpoint.pth")


@pytest.fixture(scope="module")
def stages(case, imported):
    """Every stage's output for the case's image, under the names of the reference."""
    model, _ = imported
    hooks = {f"down{level}" if level else "inc": f"down.{level}" for level in range(len(model.down))}
    hooks |= {f"up{step}": f"up.{step - 1}" for step in range(1, len(model.up) + 1)}
    hooks |= {f"up{step}_concat": (f"up.{step - 1}.conv", "input") for step in range(1, len(model.up) + 1)}
    return stage_outputs(model, hooks | {"input": ("down.0", "input")}, case.image)


def test_the_network_has_the_size_of_the_release(case, imported):
    model, translation = imported
    assert sum(p.numel() for p in model.parameters()) == case.facts["parameters"]
    assert translation.architecture == "unet"
    assert translation.dropped == {}
    assert (model.in_channels, len(model.classes), model.binary) == (3, 2, False)
    assert model.arguments["bias"] is (case.facts["case"] == "seed_unet")
    assert not model.training


def test_every_stage_is_that_of_the_reference(case, stages):
    assert set(case.facts["outputs"]) >= {"input", "inc", "down4", "up1_concat", "up4", "logits"}
    check_stages(case, stages)
    check_argmax(case, stages)


def test_the_forms_in_which_files_come_give_the_same_network(case, imported, tmp_path):
    expected = imported[0].state_dict()
    without = OrderedDict((n, t) for n, t in case.state.items() if not n.endswith("num_batches_tracked"))
    assert len(without) < len(case.state)
    forms = {"with values": case.state | {"mask_values": [0, 1]}, "old": without}
    for name, state in forms.items():
        model, translation = through_file(OrderedDict(state), tmp_path / "checkpoint.pth")
        assert list(translation.dropped) == (["mask_values"] if name == "with values" else [])
        found = model.state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[n], expected[n]) for n in expected)
