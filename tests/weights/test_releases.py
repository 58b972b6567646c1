"""The table of public releases against torchvision's own statements, how a file is known as one, and fetching."""

import hashlib
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from tiny import run_cli
from torchvision.models import detection, get_model_weights, list_models, segmentation

import kirie
from kirie import class_lists
from kirie.errors import KirieError
from kirie.models import MODELS, model_class
from kirie.models.contract import InputFacts
from kirie.models.unet import UNet
from kirie.weights import PUBLISHERS, download, load, releases
from kirie.weights.download import download as fetch
from kirie.weights.load import import_checkpoint
from kirie.weights.releases import RELEASES, alike, named

TORCHVISION = list_models(module=segmentation)
MASK_RCNN = list_models(module=detection, include="mask*")
each_release = pytest.mark.parametrize("name", RELEASES)


# ---- the table


@each_release
def test_a_row_holds_together(name):
    row = RELEASES[name]
    assert re.fullmatch(r"[a-z0-9]+/[a-z0-9_-]+", name)
    assert row.publisher in PUBLISHERS and row.architecture in MODELS
    assert row.page.startswith("https://") and (row.url is None or row.url.startswith("https://"))
    assert row.url is None or row.url.endswith(f"/{row.file}")
    assert row.classes is None or len(getattr(class_lists, row.classes)) == row.count
    assert (row.score is None) == (row.metric is None) == (row.source is None)
    assert row.score is None or 1 < row.score < 100
    assert row.licence and row.data
    InputFacts.from_dict({"short_side": row.short_side, "patch": row.patch})


@each_release
def test_a_row_describes_a_model_that_can_be_built(name):
    row = RELEASES[name]
    with torch.device("meta"):
        model = model_class(row.architecture)(3, row.count, **row.form, **row.arguments)
    assert len(model.classes) == row.count


def test_each_architecture_but_semantic_fpn_has_public_weights():
    """Detectron2 released its semantic head only as a part of Panoptic FPN."""
    assert {row.architecture for row in RELEASES.values()} == set(MODELS) - {"semantic_fpn"}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_rows_say_what_torchvision_says(name):
    (weights,) = get_model_weights(name)
    row = RELEASES[f"torchvision/{name}"]
    score = weights.meta["_metrics"]["COCO-val2017-VOC-labels"]
    assert (row.url, row.score) == (weights.url, score["miou"])
    assert row.count == len(weights.meta["categories"]) and row.file.endswith(f"-{row.sha256}.pth")
    assert row.short_side == weights.transforms().resize_size[0]


@pytest.mark.parametrize("name", MASK_RCNN)
def test_torchvisions_rows_of_mask_rcnn_say_what_torchvision_says(name):
    (weights,) = get_model_weights(name)
    row = RELEASES[f"torchvision/{name}"]
    assert (row.url, row.score) == (weights.url, weights.meta["_metrics"]["COCO-val2017"]["mask_map"])
    assert [c for c in weights.meta["categories"][1:] if c != "N/A"] == list(class_lists.COCO.names)
    assert row.count == len(class_lists.COCO) and row.file.endswith(f"-{row.sha256}.pth")


def test_all_of_torchvisions_are_there():
    expected = {f"torchvision/{name}" for name in (*TORCHVISION, *MASK_RCNN)}
    assert {name for name in RELEASES if name.startswith("torchvision/")} == expected


def test_a_mistyped_name_is_met_with_the_nearest():
    with pytest.raises(KirieError, match=r"no release 'nvidia/segformer-b6-ade20k'; did you mean nvidia/segformer-b"):
        named("nvidia/segformer-b6-ade20k")


# ---- a file is known as a release


@pytest.fixture(scope="module", params=TORCHVISION)
def foreign(request, tmp_path_factory):
    """The name of a network of torchvision, and its file with random weights."""
    torch.manual_seed(0)
    build = getattr(segmentation, request.param)
    auxiliary = {} if request.param.startswith("lraspp") else {"aux_loss": True}
    path = tmp_path_factory.mktemp("tv") / "weights.pth"
    torch.save(build(weights=None, weights_backbone=None, num_classes=21, **auxiliary).state_dict(), path)
    return request.param, path


def test_a_file_of_torchvision_is_recognised_by_one_publisher_and_has_the_form_of_one_release(foreign):
    name, path = foreign
    state, _ = load.unwrapped(load.read_state(path), path)
    knowing = [p for p, row in PUBLISHERS.items() if load.look_up(f"{row.partition(':')[0]}:recognises")(state)]
    assert knowing == ["torchvision"]
    model, translation = import_checkpoint(path)
    assert list(alike(translation)) == [f"torchvision/{name}"]
    assert translation.release is None, "its checksum is another"
    assert model.inputs == InputFacts()
    (weights,) = get_model_weights(name)
    assert sum(p.numel() for p in model.parameters()) == weights.meta["num_params"]


def test_the_checksum_tells_a_release(foreign, monkeypatch):
    name, path = foreign
    assert list(import_checkpoint(path)[1].assumed) == ["classes"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(RELEASES, f"torchvision/{name}", replace(RELEASES[f"torchvision/{name}"], sha256=digest[:8]))
    model, translation = import_checkpoint(path)
    assert translation.release == f"torchvision/{name}"
    assert model.inputs == InputFacts(520, (480, 480))
    assert (model.classes, translation.assumed) == (class_lists.VOC, {}), "a release's classes are settled"


def carvana(classes=2, **options):
    """A state dict in the layout of milesial's releases, of their size, and its model."""
    torch.manual_seed(0)
    model = UNet(3, classes, bias=False, **options).eval()
    state = {}
    for name, tensor in model.state_dict().items():
        part, number, *rest = name.split(".")
        leaf = ".".join(rest)
        if part == "head":
            state[f"outc.conv.{number}"] = tensor
        elif part == "down":
            place = "inc" if number == "0" else f"down{number}.maxpool_conv.1"
            state[f"{place}.double_conv.{leaf}"] = tensor
        else:
            place = f"up{int(number) + 1}"
            leaf = leaf if rest[0] == "up" else leaf.replace("conv.", "conv.double_conv.", 1)
            state[f"{place}.{leaf}"] = tensor
    return state


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    path = tmp_path_factory.mktemp("carvana") / "unet_carvana_scale0.5_epoch2.pth"
    torch.save(carvana(), path)
    return path


def test_a_name_alone_proves_no_release(half, tmp_path):
    """A project's own training writes files of the same names."""
    for path in (half, tmp_path / "mine.pth"):
        if path != half:
            path.symlink_to(half)
        model, translation = import_checkpoint(path)
        assert translation.release is None and model.inputs == InputFacts()
        assert set(alike(translation)) == {"milesial/unet-carvana-half", "milesial/unet-carvana"}


def test_a_release_can_be_stated(half, tmp_path):
    renamed = tmp_path / "mine.pth"
    renamed.symlink_to(half)
    model, translation = import_checkpoint(renamed, release="milesial/unet-carvana-half")
    assert translation.release == "milesial/unet-carvana-half" and model.inputs.short_side == 640
    with pytest.raises(
        KirieError, match=r"mine\.pth is not semseg/pspnet50-ade20k: it holds milesial's unet with 2 cla"
    ):
        import_checkpoint(renamed, release="semseg/pspnet50-ade20k")
    with pytest.raises(KirieError, match="no release 'unet'"):
        import_checkpoint(renamed, release="unet")


def test_a_folder_tells_where_the_name_does_not(tmp_path):
    row = replace(RELEASES["milesial/unet-carvana"], file="pytorch_model.bin", folder="unet-b0")
    places = {"models--someone--unet-b0/snapshots/1f": True, "unet-b0": True, "unet-b01": False, "mine": False}
    for place, known in places.items():
        assert row.is_called(tmp_path / place / "pytorch_model.bin") is known
    assert not row.is_called(tmp_path / "unet-b0" / "model.bin")


def test_what_a_release_states_is_set_and_what_the_user_states_goes_before(half, monkeypatch):
    name = "milesial/unet-carvana-half"
    monkeypatch.setitem(RELEASES, name, replace(RELEASES[name], arguments={"standardise": True}))
    translate = load.look_up

    def look_up(place):
        found = translate(place)
        if not place.endswith("milesial:translate"):
            return found
        return lambda state: replace(found(state), assumed={"standardise": "false; the tensors cannot tell"})

    monkeypatch.setattr(load, "look_up", look_up)
    model, translation = import_checkpoint(half)
    assert (model.standardise, list(translation.assumed)) == (False, ["standardise"])
    model, translation = import_checkpoint(half, release=name)
    assert (model.standardise, translation.assumed) == (True, {})
    assert import_checkpoint(half, changes={"standardise": False}, release=name)[0].standardise is False


# ---- fetching


class Server(BaseHTTPRequestHandler):
    files: dict = {}  # noqa: RUF012
    requests: list = []  # noqa: RUF012

    def do_GET(self):
        self.requests.append(self.path)
        answer = self.files.get(self.path)
        if answer is None:
            self.send_error(404)
        elif isinstance(answer, str):
            self.send_response(302)
            self.send_header("Location", answer)
            self.end_headers()
        else:
            body, length = answer
            self.send_response(200)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """Answers by path: (body, length) or an address to go to; plain http is allowed meanwhile."""
    monkeypatch.setattr(download, "SCHEMES", ("http",))
    monkeypatch.setattr(Server, "files", {})
    monkeypatch.setattr(Server, "requests", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as host:
        thread = threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{host.server_port}"
        host.shutdown()
        thread.join()


BODY = bytes(range(256)) * 9000  # more than one piece


def test_a_file_is_fetched_and_checked(server, tmp_path):
    digits = hashlib.sha256(BODY).hexdigest()[:8]
    Server.files |= {"/a": (BODY, len(BODY)), "/b": (BODY, None), "/c": "/a"}
    for place in ("/a", "/b", "/c"):
        fetch(server + place, tmp_path / "file", sha256=digits)
        assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize(
    ("answer", "options", "message"),
    [
        (None, {}, "answers 404"),
        ((BODY, len(BODY)), {"sha256": "00000000"}, "is not the file that was released: its sha256 begins"),
        ((BODY, len(BODY)), {"most": 100}, "longer than 100 bytes"),
        ((BODY, None), {"most": 100}, "longer than 100 bytes"),
        ((BODY, 10**15), {}, "longer than"),
        ((BODY, len(BODY) + 1), {}, r"was cut off|broke off"),
        ("ftp://127.0.0.1/a", {}, "Only https addresses are fetched from, got 'ftp:"),
        ("file:///etc/hostname", {}, r"Only https|answers 302"),
        ("/a", {}, "answers 302"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_told(answer, options, message, server, tmp_path):
    Server.files |= {} if answer is None else {"/a": answer}
    with pytest.raises(KirieError, match=message):
        fetch(f"{server}/a", tmp_path / "file", **options)


@pytest.mark.parametrize("url", ["http://127.0.0.1/a", "file:///etc/hostname", "ftp://127.0.0.1/a", "a.pth", ""])
def test_only_https_is_fetched_from(url, tmp_path):
    with pytest.raises(KirieError, match="Only https addresses"):
        fetch(url, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_missing_network_is_told(server, tmp_path, monkeypatch):
    with pytest.raises(KirieError, match=r"There is no network connection to 127\.0\.0\.1:1 \(.*\)\."):
        fetch("http://127.0.0.1:1/a", tmp_path / "file")


# ---- the command


def test_import_says_which_release_a_file_may_be(kirie_, half):
    name = "milesial/unet-carvana-half"
    code, out, _ = kirie_("import", str(half))
    assert code == 0 and "release:" not in out
    assert f"by its name it may be {name}, or one that you trained; if it is, say --release {name}" in out
    assert "licence of these weights and of what was trained from them" in out
    code, out, _ = kirie_("import", str(half), "--release", name)
    assert code == 0 and f"release: {name}, without" in out and "may be" not in out


def test_import_says_that_classes_are_assumed(kirie_, foreign):
    name, path = foreign
    told = "assumed classes: the 21 classes are taken for those of Pascal VOC, in its order (otherwise: --set classes="
    assert told in kirie_("import", str(path))[1]
    settled = kirie_("import", str(path), "--release", f"torchvision/{name}")
    assert settled[0] == 0 and "assumed" not in settled[1] and "(VOC)" in settled[1]
    names = ", ".join(f"c{i}" for i in range(21))
    other = kirie_("import", str(path), "--as", "other.safetensors", "--set", f"classes=[{names}]")
    assert other[0] == 0 and "assumed" not in other[1] and "classes: c0, c1" in other[1]
    assert kirie.load("other.safetensors").classes.names[20] == "c20"


@pytest.fixture
def kirie_(capsys, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *words: run_cli(capsys, *words)


def test_load_lists_the_releases(kirie_):
    code, out, err = kirie_("load")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert set(RELEASES) <= set(lines)
    assert "66.4" in lines["torchvision/deeplabv3_resnet50"] and "by kirie" in lines["torchvision/deeplabv3_resnet50"]
    assert "by hand" in lines["semseg/pspnet50-ade20k"]
    assert "no commercial use" in out and "GPL-3.0" in out


def test_load_fetches_imports_and_writes(kirie_, server, half, tmp_path, monkeypatch):
    body = half.read_bytes()
    name = "milesial/unet-carvana-half"
    row = replace(RELEASES[name], url=f"{server}/{half.name}", sha256=hashlib.sha256(body).hexdigest()[:8])
    monkeypatch.setitem(RELEASES, name, row)
    Server.files[f"/{half.name}"] = (body, len(body))
    code, out, err = kirie_("load", name)
    assert (code, err) == (0, "")
    assert f"release: {name}, without a published score" in out and "GPL-3.0" in out
    model = kirie.load("unet-carvana-half.safetensors")
    assert model.inputs.short_side == 640
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["unet-carvana-half.safetensors"]
    code, _, err = kirie_("load", name)
    assert code == 1 and "unet-carvana-half.safetensors exists" in err and len(Server.requests) == 1
    assert kirie_("load", name, "--overwrite")[0] == 0
    assert kirie_("load", name, "--as", "new/mine.safetensors")[0] == 0
    monkeypatch.setitem(RELEASES, name, replace(row, sha256="00000000"))
    code, _, err = kirie_("load", name, "--as", "other.safetensors")
    assert code == 1 and "is not the file that was released" in err
    assert not (tmp_path / "here" / "other.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["semseg/pspnet50-voc"], ["https://github.com/hszhao/semseg", "kirie import train_epoch_50.pth --release"]),
        (["semseg/pspnet50-vox"], ["did you mean semseg/pspnet50-voc"]),
        (["milesial/unet-carvana", "--as", "model.pth"], [".safetensors, got model.pth"]),
    ],
)  # fmt: skip
def test_load_says_what_it_cannot_do(words, told, kirie_, tmp_path):
    code, out, err = kirie_("load", *words)
    assert (code, out) == (1, "") and err.count("\n") == 1 and err.startswith("Error: ")
    assert all(part in err for part in told)
    assert list((tmp_path / "here").iterdir()) == []


def test_load_without_a_network_says_so_in_a_sentence(kirie_, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "SCHEMES", ("http",))
    row = replace(RELEASES["milesial/unet-carvana"], url="http://127.0.0.1:1/unet.pth")
    monkeypatch.setitem(releases.RELEASES, "milesial/unet-carvana", row)
    code, out, err = kirie_("load", "milesial/unet-carvana")
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert "There is no network connection to 127.0.0.1:1" in err
    assert "kirie import unet_carvana_scale1.0_epoch2.pth --release milesial/unet-carvana" in err
    assert list((tmp_path / "here").iterdir()) == []
