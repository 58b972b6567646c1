import errno
import json

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from kirie.errors import KirieError
from kirie.files import stand_in_of
from kirie.training import checkpoint
from kirie.training.checkpoint import FILE, Standing, load_state, save_state


def training(layout=torch.contiguous_format, rule=torch.optim.AdamW):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).to(memory_format=layout)
    return model, rule(model.parameters(), lr=0.01)


def learn(model, rule, steps):
    for _ in range(steps):
        rule.zero_grad()
        model(torch.rand(2, 3, 9, 9)).square().mean().backward()
        rule.step()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "rule",
    [torch.optim.AdamW, torch.optim.SGD, lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True)],
    ids=["adamw", "sgd", "momentum"],
)
def test_a_restored_training_goes_on_as_the_saved_one(layout, rule, tmp_path):
    model, steps = training(layout, rule)
    learn(model, steps, 3)
    progress = Standing(2, 5, 17, 0.5, 1, False, [{"epoch": 1, "val_miou": float("nan")}], {"loss": 0.1 + 0.2})
    save_state(tmp_path, progress, {"model": model.state_dict()}, steps, {"scaler": None, "pictures": 3})
    learn(model, steps, 3)

    other, other_steps = training(layout, rule)
    torch.rand(100)
    restored, tensors, extra = load_state(tmp_path, other_steps)
    assert repr(restored) == repr(progress)  # a NaN is not itself
    assert extra == {"scaler": None, "pictures": 3}
    assert tensors.keys() == {"model"}
    other.load_state_dict(tensors["model"])
    for p, values in other_steps.state.items():
        for value in values.values():
            assert value is None or value.ndim < 4 or value.stride() == p.stride()
    learn(other, other_steps, 3)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_random_state_comes_back(tmp_path):
    _, rule = training()
    save_state(tmp_path, Standing(), {}, rule, {})
    expected = torch.rand(5)
    torch.manual_seed(77)
    load_state(tmp_path, rule)
    assert torch.equal(torch.rand(5), expected)


def test_the_state_is_plain_tensors_and_json(tmp_path):
    model, rule = training()
    learn(model, rule, 1)
    save_state(tmp_path, Standing(epoch=3), {"model": model.state_dict()}, rule, {})
    with safe_open(tmp_path / FILE, framework="pt") as file:
        assert json.loads(file.metadata()["state"])["progress"]["epoch"] == 3
        assert torch.equal(file.get_tensor("model/0.weight"), model[0].weight)


@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_leaves_the_former_state(fault, tmp_path, monkeypatch):
    _, rule = training()
    save_state(tmp_path, Standing(epoch=1), {}, rule, {})
    before = (tmp_path / FILE).read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise fault

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(KirieError, match="No space left"):
        save_state(tmp_path, Standing(epoch=2), {}, rule, {})
    assert (tmp_path / FILE).read_bytes() == before
    assert [file.name for file in (tmp_path / "last").iterdir()] == ["state.safetensors"]


def test_what_a_kill_left_behind_is_cleared_away(tmp_path):
    _, rule = training()
    save_state(tmp_path, Standing(), {}, rule, {})
    stand_in_of(tmp_path / FILE).write_bytes(b"half")
    (tmp_path / "last" / ".gitkeep").touch()
    load_state(tmp_path, rule)
    assert sorted(file.name for file in (tmp_path / "last").iterdir()) == [".gitkeep", "state.safetensors"]


def test_no_state(tmp_path):
    with pytest.raises(KirieError, match="nothing to resume"):
        load_state(tmp_path, training()[1])


@pytest.mark.parametrize(
    "facts",
    [
        "no json",
        "[]",
        "{}",
        '{"progress": {"epochs": 3}, "groups": [], "scalars": {}, "extra": {}}',
        '{"progress": {}, "groups": [{"params": [0]}], "scalars": {}, "extra": {}}',
        '{"progress": {}, "groups": [], "scalars": {"a": {}}, "extra": {}}',
    ],
)
def test_a_damaged_state_is_told(facts, tmp_path):
    (tmp_path / "last").mkdir()
    save_file({"random/cpu": torch.get_rng_state()}, tmp_path / FILE, metadata={"state": facts})
    with pytest.raises(KirieError, match="damaged or of another training"):
        load_state(tmp_path, training()[1])


def test_a_state_cut_short_is_told(tmp_path):
    model, rule = training()
    save_state(tmp_path, Standing(), {"model": model.state_dict()}, rule, {})
    whole = (tmp_path / FILE).read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        (tmp_path / FILE).write_bytes(whole[:length])
        with pytest.raises(KirieError, match="damaged"):
            load_state(tmp_path, rule)


def test_a_state_of_another_optimiser_is_told(tmp_path):
    model, rule = training()
    learn(model, rule, 1)
    save_state(tmp_path, Standing(), {}, rule, {})
    other = torch.optim.AdamW([nn.Parameter(torch.zeros(3))])
    with pytest.raises(KirieError, match="another training"):
        load_state(tmp_path, other)
