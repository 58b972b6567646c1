"""Encoders from timm: names, weights from local files, and no way out to the network."""

import socket

import pytest
import timm
import torch
from safetensors.torch import save_file

from kirie.errors import KirieError
from kirie.models.parts.encoder import Encoder

NAMES = ["resnet18", "convnext_atto", "mobilenetv3_small_050"]  # three ways in which timm cuts a network


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def whole_network(name, seed=3):
    """Timm's own network with random weights and running statistics of its own."""
    torch.manual_seed(seed)
    network = timm.create_model(name, pretrained=False).eval()
    for key, tensor in network.state_dict().items():
        if key.endswith("running_mean"):
            tensor.normal_(0, 0.1)
    return network


def write(path, state):
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@torch.no_grad()
def test_weights_from_a_local_file_give_the_same_features(name, ending, tmp_path):
    network = whole_network(name)
    torch.manual_seed(4)
    encoder = Encoder(name, weights=write(tmp_path / f"weights{ending}", network.state_dict())).eval()
    images = torch.randn(2, 3, 64, 96)
    features = encoder(images)
    torch.testing.assert_close(features[-1], network.forward_features(images))
    assert [f.shape[1] for f in features] == encoder.channels
    assert [64 // f.shape[2] for f in features] == encoder.strides
    other = Encoder(name).eval()(images)
    assert not torch.allclose(other[-1], features[-1])


@torch.no_grad()
def test_weights_learned_on_rgb_serve_other_channels(tmp_path):
    network = whole_network("resnet18")
    path = write(tmp_path / "weights.pth", network.state_dict())
    grey = torch.randn(1, 1, 64, 64)
    expected = network.forward_features(grey.expand(1, 3, 64, 64))
    torch.testing.assert_close(Encoder("resnet18", 1, weights=path).eval()(grey)[-1], expected, rtol=1e-3, atol=1e-4)
    rgb = torch.randn(1, 3, 64, 64)
    twice = Encoder("resnet18", 6, weights=path).eval()(torch.cat([rgb, rgb], 1))[-1]
    torch.testing.assert_close(twice, network.forward_features(rgb), rtol=1e-3, atol=1e-4)


def test_batch_counters_may_be_missing_and_a_cut_encoder_takes_the_whole_file(tmp_path):
    state = whole_network("resnet18").state_dict()
    some = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    encoder = Encoder("resnet18", stages=2, weights=write(tmp_path / "weights.pth", some))
    assert encoder.channels == [64, 64]
    torch.testing.assert_close(encoder.body.state_dict()["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_tensors_missing_is_refused(name, tmp_path):
    state = whole_network(name).state_dict()
    gone = next(n for n in reversed(state) if n.endswith("weight") and ("layer" in n or "stages" in n or "blocks" in n))
    del state[gone]
    with pytest.raises(KirieError, match=r"lacks 1 tensors of this encoder"):
        Encoder(name, weights=write(tmp_path / "weights.pth", state))


def test_files_that_do_not_fit_are_refused(tmp_path):
    state = whole_network("resnet18").state_dict()
    with pytest.raises(KirieError, match="lacks"):
        Encoder("resnet34", weights=write(tmp_path / "a.pth", state))
    state["layer1.0.conv1.weight"] = torch.rand(64, 64, 5, 5)
    with pytest.raises(KirieError, match=r"another shape.*layer1\.0\.conv1\.weight.*\(64, 64, 5, 5\)"):
        Encoder("resnet18", weights=write(tmp_path / "b.pth", state))
    with pytest.raises(KirieError, match="lacks"):
        Encoder("resnet18", weights=write(tmp_path / "c.pth", {"state_dict": {}, "conv1.weight": 3}))
    with pytest.raises(KirieError, match="holds list, expected tensors by name"):
        Encoder("resnet18", weights=write(tmp_path / "d.pth", [1, 2]))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(KirieError, match=r"There is no encoder weight file .*none\.pth"):
        Encoder("resnet18", weights=str(tmp_path / "none.pth"))
    for ending in (".pth", ".safetensors"):
        path = tmp_path / f"text{ending}"
        path.write_text("no weights at all")
        with pytest.raises(KirieError, match="Cannot read encoder weights"):
            Encoder("resnet18", weights=str(path))


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"with open({str(self.path)!r}, 'w') as file: file.write('run')",)


def test_code_in_a_weight_file_is_not_run(tmp_path):
    torch.save({"conv1.weight": Trap(tmp_path / "trace")}, tmp_path / "trap.pth")
    with pytest.raises(KirieError, match="Cannot read"):
        Encoder("resnet18", weights=str(tmp_path / "trap.pth"))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(("name", "near"), [("resnet43", "resnet34"), ("efficientnetb0", "efficientnet_b0")])
def test_unknown_names_give_near_names(name, near):
    with pytest.raises(KirieError, match=f"no encoder called '{name}'; near names: .*{near}"):
        Encoder(name)


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:x/y", "hf_hub:x/resnet18", "hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp/resnet18", "timm/resnet18",
        "resnet18.a1_in1k/x", "resnet18.:x", "", "[", "os:system", "/etc/passwd",
    ],
)  # fmt: skip
def test_names_that_lead_outside_are_refused(name):
    with pytest.raises(KirieError, match="timm has no encoder called"):
        Encoder(name)


def test_a_name_may_carry_the_tag_of_its_weights():
    assert Encoder("resnet18.a1_in1k", stages=1).channels == [64]
    with pytest.raises(KirieError, match="nonsense"):
        Encoder("resnet18.nonsense", stages=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224", "strides .*must halve at each stage"),
        ("swin_tiny_patch4_window7_224", "does not take pictures of any size"),
        ("mixer_s16_224", "mixer_s16_224"),
    ],
)
def test_networks_that_cannot_serve_are_refused(name, message):
    with torch.device("meta"), pytest.raises(KirieError, match=message):
        Encoder(name)


def test_weights_from_the_hub_without_a_network_are_an_error(monkeypatch):
    def fail(*args, pretrained, **options):
        assert pretrained
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(KirieError, match="cannot give 'resnet18' with weights hub: no route to host"):
        Encoder("resnet18", weights="hub")


def test_mean_and_deviation_are_those_of_the_weights_or_neutral():
    encoder = Encoder("resnet18", stages=1)
    assert encoder.mean == (0.485, 0.456, 0.406)
    assert encoder.std == (0.229, 0.224, 0.225)
    grey = Encoder("resnet18", 1, stages=1)
    assert (grey.mean, grey.std) == ((0.5,), (0.25,))


def test_building_leaves_the_mode_and_the_random_numbers_alone():
    torch.manual_seed(0)
    encoder = Encoder("resnet18")
    after = torch.rand(3)
    torch.manual_seed(0)
    timm.create_model("resnet18", features_only=True)
    assert torch.equal(after, torch.rand(3))
    assert all(module.training for module in encoder.modules())
    assert all((b == 0).all() for n, b in encoder.named_buffers() if n.endswith(("running_mean", "tracked")))
