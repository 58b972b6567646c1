import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import CLASSES, SIZE, add_sample, blobs, colour_unet, make_data, painted, run_cli
from torchvision.models import get_model_weights

import kirie
from kirie.data.splits import seeded_split
from kirie.models import MODELS, model_class
from kirie.models.unet import UNet

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a data set `data` and the model `colour.safetensors` that knows it all."""
    monkeypatch.chdir(tmp_path)
    make_data(Path("data"))
    kirie.save(colour_unet(), "colour.safetensors")
    return tmp_path


@pytest.fixture
def kirie_(capsys):
    """Runs `kirie WORDS...` and gives exit code, standard output and standard error."""
    return lambda *words: run_cli(capsys, *words)


TINY_TRAINING = [
    *("--set", "train.epochs=1", "--set", "train.patch=[16, 16]", "--set", "train.batch_size=2"),
    *("--set", "train.workers=0", "--set", "model.arguments={width: 3, depth: 1}", "--device", "cpu"),
]


def recorded(recipe_data, model=None):
    """Saves the colour model with a recipe that says it was trained on these data."""
    kirie.save(model or colour_unet(), "trained.safetensors", recipe={"data": recipe_data})
    return "trained.safetensors"


# The program


def python(*words, **options):
    options = {"capture_output": True, "text": True, "cwd": REPOSITORY, "timeout": 60, "check": False} | options
    return subprocess.run([sys.executable, *words], **options)


def test_help_is_light_and_quick():
    code = (
        "import sys, resource, runpy\n"
        "sys.argv = ['kirie', '--help']\n"
        "try: runpy.run_module('kirie', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "heavy = sorted({'torch', 'cv2', 'matplotlib', 'scipy', 'timm', 'pydantic'} & set(sys.modules))\n"
        "print(used.ru_utime + used.ru_stime, heavy, file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        done = python("-c", code)
        assert done.returncode == 0, done.stderr
        assert "inspect" in done.stdout and "import" in done.stdout
        time_used, _, heavy = done.stderr.partition(" ")
        assert heavy.strip() == "[]"
        seconds.append(float(time_used))
    assert min(seconds) < 0.4, seconds


def test_python_m_kirie_and_a_reader_that_has_gone(here):
    done = python("-m", "kirie", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"kirie {kirie.__version__}\n", "")
    read, write = os.pipe()
    os.close(read)
    words = ["-m", "kirie", "inspect", str(here / "data"), "--json", "--no-sheet"]
    done = python(*words, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nonsense"], "nonsense"),
        (["predict"], "MODEL"),
        (["predict", "m.safetensors", "a.png"], "--out"),
        (["train", "data", "--epochs", "3"], "--epochs"),
        (["demo", "--pictures", "many"], "--pictures"),
    ],
)
def test_wrong_words_are_told_on_standard_error(kirie_, words, told):
    code, out, err = kirie_(*words)
    assert code == 2 and out == "" and told in err and "Traceback" not in err


@pytest.mark.parametrize("command", ["demo", "inspect", "train", "evaluate", "predict", "import", "load", "models"])
def test_every_command_explains_itself(kirie_, command):
    code, out, err = kirie_(command, "--help")
    assert code == 0 and err == "" and "Usage" in out and len(out) > 200


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 1, "Error: Not enough memory"),
        (PermissionError(13, "Permission denied", "secret.png"), 1, "Error: secret.png: Permission denied."),
        (OSError("the tape is torn"), 1, "Error: the tape is torn."),
    ],
)
def test_what_a_command_cannot_help(here, kirie_, monkeypatch, error, code, told):
    def fail(*_):
        raise error

    monkeypatch.setattr("kirie.prediction.predict_files.find_images", fail)
    found, out, err = kirie_("predict", "colour.safetensors", "data/images/test", "--out", "cut")
    assert found == code and out == "" and err.startswith(told) and err.count("\n") <= 1


def test_a_mistake_in_kirie_keeps_its_traceback(here, kirie_, monkeypatch):
    monkeypatch.setattr("kirie.prediction.predict_files.find_images", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kirie_("predict", "colour.safetensors", "data/images/test", "--out", "cut")


def test_a_terminal_that_cannot_write_a_name(here, monkeypatch):
    Path("data/classes.json").write_text(json.dumps(["空", "coin", "ß"]))
    for words in (["inspect", "data", "--no-sheet"], ["inspect", "data", "--no-sheet", "--json"]):
        paper = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", paper)
        monkeypatch.setattr(sys, "argv", ["kirie", *words])
        with pytest.raises(SystemExit) as stop:
            kirie.cli.main()
        paper.flush()
        text = paper.buffer.getvalue().decode("ascii")
        assert not stop.value.code and "\\u7a7a" in text
    assert json.loads(text)["classes"][0]["name"] == "空"


# inspect


def test_inspect_tells_and_draws(here, kirie_):
    code, out, err = kirie_("inspect", "data")
    assert code == 0 and err == ""
    assert "data: 9 pictures (train 4, val 2, test 3)" in out and "no faults found" in out
    assert all(name in out for name in CLASSES.names) and "contact sheet: data_sheet.png" in out
    with Image.open("data_sheet.png") as sheet:
        assert sheet.format == "PNG" and min(sheet.size) > 200
    assert sorted(p.name for p in here.iterdir()) == ["colour.safetensors", "data", "data_sheet.png"]


def test_inspect_sheet_where_and_whether(here, kirie_):
    assert kirie_("inspect", "data", "--sheet", "new/place.jpg")[0] == 0
    with Image.open("new/place.jpg") as sheet:
        assert sheet.format == "JPEG"
    code, out, _ = kirie_("inspect", "data", "--no-sheet")
    assert code == 0 and "sheet" not in out and not Path("data_sheet.png").exists()


def test_inspect_names_the_sheet_of_a_file_by_its_stem(here, kirie_):
    file = {"id": 1, "file_name": "images/train/train0.png", "height": SIZE[0], "width": SIZE[1]}
    objects = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[4, 4, 12, 4, 12, 12]], "iscrowd": 0}]
    whole = {"images": [file], "annotations": objects, "categories": [{"id": 1, "name": "a"}]}
    Path("data/all.json").write_text(json.dumps(whole))
    code, out, err = kirie_("inspect", "data/all.json", "--set", "val_fraction=0")
    assert code == 0 and err == "" and "contact sheet: all_sheet.png" in out and Path("all_sheet.png").exists()


def test_inspect_json(here, kirie_):
    code, out, err = kirie_("inspect", "data", "--json")
    facts = json.loads(out)
    assert code == 0 and err == "" and facts == kirie.inspect_dataset("data").to_dict()
    assert facts["images"] == 9 and facts["ok"] and Path("data_sheet.png").exists()


def test_inspect_ends_with_1_on_faults_and_draws_the_rest(here, kirie_):
    Path("data/masks/train/train1.png").unlink()
    Path("data/images/test/test0.png").write_bytes(b"")
    code, out, err = kirie_("inspect", "data")
    assert code == 1 and err == "" and "train1.png" in out and "test0.png" in out and out.count("fault:") == 2
    assert Path("data_sheet.png").exists()
    code, out, _ = kirie_("inspect", "data", "--json")
    assert code == 1 and not json.loads(out)["ok"]


def test_inspect_names_no_sheet_that_it_did_not_draw(here, kirie_):
    Path("data_sheet.png").write_bytes(b"an earlier one")
    for mask in Path("data/masks").rglob("*.png"):
        mask.write_bytes(b"broken")
    code, out, _ = kirie_("inspect", "data")
    assert code == 1 and "sheet" not in out and Path("data_sheet.png").read_bytes() == b"an earlier one"


@pytest.mark.parametrize("change", ["suffix=_label", "data.suffix=_label"])
def test_inspect_takes_the_options_of_the_folders(here, kirie_, change):
    for mask in Path("data/masks").rglob("*.png"):
        mask.rename(mask.with_name(f"{mask.stem}_label.png"))
    Path("data/masks/train/train0_other.png").write_bytes(Path("data/masks/train/train0_label.png").read_bytes())
    assert kirie_("inspect", "data", "--no-sheet", "--set", change)[0] == 1, "the other file has no picture"
    Path("data/masks/train/train0_other.png").unlink()
    assert kirie_("inspect", "data", "--no-sheet", "--set", change)[0] == 0


# train


def test_train_by_the_folder_then_evaluate_and_predict_with_the_run(here, kirie_):
    code, out, err = kirie_("train", "data", "--out", "run", *TINY_TRAINING)
    assert code == 0 and out.startswith("best score 0.") and "model: run/model.safetensors" in out
    assert "epoch" in err and "Traceback" not in err and "\r" not in err and "\x1b" not in err
    for name in ("recipe.yaml", "model.safetensors", "history.csv", "history.png"):
        assert Path("run", name).is_file()
    code, out, err = kirie_("evaluate", "run", "data")
    assert (code, err) == (0, "") and "3 pictures (split test)" in out and "report: run/report.html" in out
    code, out, err = kirie_("predict", "run", "data/images/test", "--out", "cut")
    assert (code, err) == (0, "") and out.startswith("3 predicted into cut, ")


def test_train_by_a_recipe(here, kirie_):
    Path("mine.yaml").write_text("data: {path: data}\nmodel: {arguments: {width: 3, depth: 1}}\ntrain: {epochs: 7}\n")
    code, out, _ = kirie_("train", "mine.yaml", "--model", "unet", *TINY_TRAINING)
    assert code == 0 and "runs/data-unet/model.safetensors" in out
    rows = Path("runs/data-unet/history.csv").read_text().splitlines()
    assert len(rows) == 2, "what is typed goes before what the recipe says"


def test_train_on_neither_a_recipe_nor_a_folder(here, kirie_):
    picture = "data/images/test/test0.png"
    code, _, err = kirie_("train", picture)
    assert (
        code == 1
        and err == f"Error: {picture} is no recipe, which ends in .yaml, and no data set: a folder or a COCO file.\n"
    )
    Path("empty.yaml").write_text("# nothing yet\n")
    code, _, err = kirie_("train", "empty.yaml")
    assert code == 1 and "must have the sections data, model, augment and train, got nothing" in err


def test_a_stopped_training_says_how_to_go_on(here, kirie_, monkeypatch):
    from kirie.training.fit import Run

    stopped = Run(Path("runs/data"), None, None, (), False)
    monkeypatch.setattr("kirie.training.fit.train", lambda *_, **__: stopped)
    words = ["train", "data", "--set", "model.arguments={name: 'a \"b\"'}", "--set", "train.epochs=3"]
    words += ["--model", "unet", "--device", "cpu"]
    code, out, _ = kirie_(*words)
    assert code == 130
    again = shlex.split(out.partition("Go on with: ")[2])
    assert again == ["kirie", *words, "--out", "runs/data", "--resume"]


OWN_MODEL = "from kirie.models.unet import UNet\n\nclass Mine(UNet):\n    pass\n"


def test_an_own_class_in_the_working_directory(here, kirie_, monkeypatch):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(here))])
    Path("own_in_cwd.py").write_text(OWN_MODEL)
    name = "own_in_cwd:Mine"
    code, out, err = kirie_("train", "data", "--model", name, "--out", "run", *TINY_TRAINING)
    assert code == 0 and "model: run/model.safetensors" in out, err
    assert sys.path[-1] == str(here), "after all else, so that nothing of Python's own is hidden"
    for words in (["evaluate", "run", "data"], ["predict", "run", "data/images/test", "--out", "cut"]):
        code, _, err = kirie_(*words)
        assert code == 1 and name in err and "--architecture package.module:YourClass" in err
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(here))])
        monkeypatch.delitem(sys.modules, "own_in_cwd")
        assert kirie_(*words, "--architecture", name)[0] == 0
    assert kirie_("predict", "run", "data/images/test", "--out", "cut", "--architecture", "own_in_cwd:No")[0] == 1


# evaluate


def test_evaluate_prints_a_table_and_writes_reports(here, kirie_):
    code, out, err = kirie_("evaluate", "colour.safetensors", "data", "--out", "new")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "data: 3 pictures (split test)" and lines[2].split()[:3] == ["class", "IoU", "Dice"]
    assert [line.split()[:3] for line in lines[3:6]] == [[name, "1.0000", "1.0000"] for name in CLASSES.names]
    assert len({len(line) for line in lines[2:6]}) == 1, "columns are aligned"
    assert "mIoU 1.0000   mean Dice 1.0000   pixel accuracy 1.0000" in out
    assert "IoU = TP / (TP + FP + FN)" in out and "report: new/report.html" in out
    assert sorted(p.name for p in Path("new").iterdir()) == ["report.html", "report.json"]
    assert kirie_("evaluate", "colour.safetensors", "data")[0] == 0
    assert Path("report.html").exists(), "beside the model, when no place is named"


def test_evaluate_json(here, kirie_):
    code, out, err = kirie_("evaluate", "colour.safetensors", "data", "--split", "train", "--json", "--out", "r")
    facts = json.loads(out)
    assert (code, err) == (0, "") and facts["split"] == "train" and facts["pictures"] == 4 and facts["miou"] == 1
    expected = kirie.evaluate(colour_unet(), "data", split="train", device="cpu").to_dict()
    assert {key: facts[key] for key in expected} == expected


def test_evaluate_shows_what_has_no_value_as_a_dash(here, kirie_):
    for mask in Path("data/masks/test").iterdir():
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(mask)
    code, out, err = kirie_("evaluate", "colour.safetensors", "data")
    assert (code, err) == (0, "") and "mIoU -   mean Dice -   pixel accuracy -" in out and "nan" not in out
    code, out, _ = kirie_("evaluate", "colour.safetensors", "data", "--json")
    assert code == 0 and json.loads(out)["miou"] is None


def test_evaluate_on_its_own_data_drawn_by_seed_takes_the_unseen(here, kirie_):
    make_data(Path("own"), (("", 15),))
    for seed, fraction, wanted in ((0, 0.0, "val"), (1, 0.3, "test")):
        model = recorded({"path": "own", "seed": seed, "val_fraction": 0.3, "test_fraction": fraction})
        drawn = [seeded_split(f"p{i}", seed, 0.3, fraction) for i in range(15)]
        code, out, _ = kirie_("evaluate", model, "own/", "--json")
        facts = json.loads(out)
        assert code == 0 and facts["split"] == wanted and 0 < facts["pictures"] == drawn.count(wanted) < 15
        report = kirie.evaluate(kirie.load(model), "own", device="cpu").to_dict()
        assert {key: facts[key] for key in report} == report, "the library takes the same pictures"


def test_evaluate_on_its_own_data_with_a_test_split(here, kirie_):
    model = recorded({"path": str(here / "data"), "train": "train", "val": "val"})
    assert json.loads(kirie_("evaluate", model, "data", "--json")[1])["split"] == "test"
    assert json.loads(kirie_("evaluate", model, "data", "--json", "--split", "val")[1])["split"] == "val"


def test_evaluate_reads_folders_as_the_recipe_did_at_their_own_size(here, kirie_):
    labels = blobs(SIZE)
    add_sample(Path("odd"), "test", "a", painted(labels), labels)
    add_sample(Path("odd"), "test", "a_seen", painted(labels), (labels + 1) % 3)
    Path("odd/masks").rename("odd/truth")
    Path("odd/images/test/a_seen.png").unlink()
    Path("odd/classes.json").write_text(json.dumps(list(CLASSES.names)))
    data = {"path": "elsewhere", "masks": "truth", "short_side": 7}
    code, out, _ = kirie_("evaluate", recorded(data), "odd", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["miou"] == 1 and sum(map(sum, facts["table"])) == SIZE[0] * SIZE[1]
    code, out, _ = kirie_("evaluate", recorded(data), "odd", "--json", "--set", "suffix=_seen")
    assert code == 0 and json.loads(out)["miou"] == 0, "what is typed goes before what the recipe says"
    assert kirie_("evaluate", "colour.safetensors", "odd")[0] == 1


def test_evaluate_with_a_record_of_another_version(here, kirie_):
    kirie.save(colour_unet(), "old.safetensors", recipe={"data": {"path": "data"}, "fancy": {"new": 1}})
    assert kirie_("evaluate", "old.safetensors", "data")[0] == 0


# predict


def test_predict_writes_what_was_asked_for(here, kirie_):
    code, out, err = kirie_(
        *("predict", "colour.safetensors", "data/images/test", "data/images/val/*.png", "--out", "cut"),
        *("--save", "labels, overlay,scores", "--device", "cpu"),
    )
    assert (code, err) == (0, "") and out.startswith("5 predicted into cut, ") and "pictures a second" in out
    assert len(list(Path("cut").glob("*.*g"))) + len(list(Path("cut").glob("*.npz"))) == 15
    for split in ("test", "val"):
        for mask in Path("data/masks", split).iterdir():
            assert np.array_equal(np.asarray(Image.open(Path("cut", mask.name))), np.asarray(Image.open(mask)))


def test_predict_tells_bad_files_and_goes_on(here, kirie_):
    Path("broken.png").write_bytes(b"broken")
    code, out, err = kirie_("predict", "colour.safetensors", "broken.png", "data/images/test", "no.png", "--out", "cut")
    assert code == 1 and out.startswith("3 predicted into cut, 2 failed, ")
    assert [line.startswith("Error: ") for line in err.splitlines()] == [True, True]
    assert "broken.png" in err and "no.png" in err and len(list(Path("cut").glob("*.*g"))) == 6


# import


def published(model):
    """The state of a plain U-Net of depth 1 under the names of milesial/Pytorch-UNet."""
    names = {"down.0": "inc.double_conv", "down.1": "down1.maxpool_conv.1.double_conv", "up.0.up": "up1.up"}
    names |= {"up.0.conv": "up1.conv.double_conv", "head": "outc.conv"}
    state = {}
    for name, tensor in model.state_dict().items():
        ours = next(part for part in names if name.startswith(f"{part}."))
        state[names[ours] + name.removeprefix(ours)] = tensor
    return state


def test_import_brings_a_checkpoint_in(here, kirie_):
    torch.manual_seed(0)
    model = UNet(3, 4, width=4, depth=1).eval()
    torch.save({**published(model), "mask_values": [0, 1, 2, 3]}, "theirs.pth")
    code, out, err = kirie_("import", "theirs.pth", "--as", "ours.safetensors")
    assert (code, err) == (0, "") and "left out mask_values" in out
    assert "unet, 4 classes, 3 channels: ours.safetensors" in out
    picture = painted(blobs(SIZE))
    one, other = (kirie.predict(m, picture, device="cpu", scores=True) for m in (model, kirie.load("ours.safetensors")))
    assert np.array_equal(one.scores, other.scores)


@pytest.fixture
def theirs(here):
    """A checkpoint of four classes, without names, called theirs.pth.tar."""
    torch.manual_seed(0)
    model = UNet(3, 4, width=4, depth=1).eval()
    torch.save({"epoch": 3, "state_dict": published(model), "optimizer": {"state": {}}}, "theirs.pth.tar")
    return model


def test_import_says_what_it_recognised_and_names_the_file_itself(theirs, kirie_):
    code, out, err = kirie_("import", "theirs.pth.tar")
    assert (code, err) == (0, "") and Path("theirs.safetensors").is_file()
    assert out.splitlines() == [
        "recognised unet in the layout of milesial",
        'arguments: width=4, depth=1, up="transposed", bias=true',
        "classes: numbered, since the file does not name them; --set classes=[...] does",
        "left out epoch: a counter of the training",
        "left out optimizer: the optimiser's state",
        "unet, 4 classes, 3 channels: theirs.safetensors",
    ]


def test_import_names_the_classes_as_told(theirs, kirie_):
    code, out, _ = kirie_("import", "theirs.pth.tar", "--set", "classes=[sky, sea, sand, sail]")
    assert code == 0 and "classes: sky, sea, sand, sail" in out
    assert kirie.load("theirs.safetensors").classes.names == ("sky", "sea", "sand", "sail")


def test_import_replaces_only_what_it_is_told_to(theirs, kirie_):
    before = Path("colour.safetensors").read_bytes()
    Path("theirs.safetensors").write_bytes(b"mine")
    for words in ([], ["--as", "colour.safetensors"]):
        code, _, err = kirie_("import", "theirs.pth.tar", *words)
        assert code == 1 and "exists; name another file by --as, or replace it by --overwrite" in err
    assert Path("colour.safetensors").read_bytes() == before and Path("theirs.safetensors").read_bytes() == b"mine"
    assert kirie_("import", "theirs.pth.tar", "--as", "colour.safetensors", "--overwrite")[0] == 0
    assert len(kirie.load("colour.safetensors").classes) == 4


def test_import_never_replaces_what_it_reads(theirs, kirie_):
    save_file(published(theirs), "x.safetensors")
    before = Path("x.safetensors").read_bytes()
    for words in ([], ["--overwrite"], ["--as", "../" + Path.cwd().name + "/x.safetensors", "--overwrite"]):
        code, _, err = kirie_("import", "x.safetensors", *words)
        assert code == 1 and "x.safetensors is the checkpoint itself" in err
    assert Path("x.safetensors").read_bytes() == before


# models


@pytest.mark.parametrize("name", MODELS)
def test_models_tells_when_to_choose_each(name):
    advice = model_class(name).advice
    assert 30 < len(advice) < 120 and advice[0].isupper() and advice.endswith(".")


def test_models_prints_a_row_for_each(here, kirie_):
    code, out, err = kirie_("models", "--size", "64")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["model", "task", "million", "parameters", "GFLOPs", "public", "weights"]
    assert [line.split()[0] for line in lines[1 : len(MODELS) + 1]] == list(MODELS)
    assert "At 64 x 64 pixels and 21 classes" in out
    assert all(model_class(name).advice in out for name in MODELS)


def test_models_counts_as_torchvision_does(here, kirie_):
    """Its weights state multiply-adds, in billions, for pictures of 520 x 520 pixels, and the parameters.

    Its auxiliary heads run in prediction too, kirie's do not: a 3 x 3 and a 1 x 1 convolution on a map of 65 x 65.
    """
    names = {"deeplabv3": "deeplabv3_resnet50", "fcn": "fcn_resnet50", "lraspp": "lraspp_mobilenet_v3_large"}
    code, out, _ = kirie_("models", *names, "--size", "520", "--json")
    facts = {row["name"]: row for row in json.loads(out)["models"]}
    assert code == 0 and list(facts) == list(names)
    for name, theirs in names.items():
        (weights,) = get_model_weights(theirs)
        assert facts[name]["parameters"] == weights.meta["num_params"]
        auxiliary = 0 if name == "lraspp" else 65 * 65 * (1024 * 256 * 9 + 256 * 21) / 1e9
        assert facts[name]["gflops"] == pytest.approx(weights.meta["_ops"] - auxiliary, abs=6e-4)
        assert "milliseconds" not in facts[name]


def test_models_measures_on_this_machine(here, kirie_):
    code, out, err = kirie_("models", "lraspp", "--size", "32x64", "--measure", "--classes", "5")
    head, row = out.splitlines()[:2]
    assert (code, err) == (0, "") and head.split()[-4:] == ["CPU", "ms", "MB", "public", "weights"][-4:]
    time, memory = (float(cell) for cell in row.split()[-3:-1])
    assert time > 0 and 12.8 < memory < 40, "3.2 million weights of 4 bytes, and what lives beside them"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["unett"], "no architecture 'unett'"),
        (["--size", "big"], "512x1024; got 'big'"),
        (["--size", "0"], "1 to 16,384 pixels a side"),
        (["--size", "999999x2"], "1 to 16,384 pixels a side"),
        (["--classes", "0"], "classes"),
    ],
)
def test_models_refuses_what_it_cannot_count(here, kirie_, words, told):
    code, out, err = kirie_("models", *words)
    assert (code, out) == (1, "") and told in err


# demo


DEMO = ("demo", "--out", "show", "--pictures", "5", "--epochs", "1", "--device", "cpu")


def test_demo_walks_the_whole_road(here, kirie_):
    code, out, err = kirie_(*DEMO)
    assert code == 0 and "Traceback" not in err
    assert all(f"{step}/4" in out for step in range(1, 5)) and "1 predicted into show/cut" in out
    for name in ("inspect.png", "run/report.html", "run/history.png", "run/model.safetensors", "cut/0001.png"):
        assert Path("show", name).stat().st_size > 0


def test_demo_of_objects(here, kirie_):
    code, out, err = kirie_(*DEMO, "--task", "instance")
    assert code == 0 and "Traceback" not in err
    assert "matching accuracy" in out and "1 predicted into show/cut" in out
    for name in ("demo.jpg", "run/report.html", "run/model.safetensors", "cut/0001_overlay.jpg", "cut/objects.csv"):
        assert Path("show", name).stat().st_size > 0
    code, _, err = kirie_(*DEMO, "--task", "boxes")
    assert code == 1 and "semantic, instance, panoptic" in err


def test_demo_of_segments(here, kirie_):
    code, out, err = kirie_(*DEMO, "--task", "panoptic")
    assert code == 0 and "Traceback" not in err
    assert "PQ of stuff" in out and "1 predicted into show/cut" in out
    for name in ("demo.jpg", "run/report.html", "run/model.safetensors", "cut/panoptic_results/0001.png"):
        assert Path("show", name).stat().st_size > 0


def test_demo_replaces_its_own_run_and_spares_any_other(here, kirie_, monkeypatch):
    assert kirie_(*DEMO)[0] == 0
    own = Path("show/run/recipe.yaml").read_text()

    def stop(*_, **__):
        raise kirie.KirieError("training begins")

    monkeypatch.setattr("kirie.training.fit.train", stop)
    for other in (
        own.replace(str(here / "show" / "data"), str(here / "data")),
        own.replace("batch_size: 8", "batch_size: 4"),
    ):
        assert other != own
        Path("show/run/recipe.yaml").write_text(other)
        code, _, err = kirie_(*DEMO)
        assert code == 1 and "holds another run" in err and Path("show/run/model.safetensors").exists()
    Path("show/run/recipe.yaml").write_text(own)
    Path("show/run/notes.txt").write_text("mine")
    code, _, err = kirie_(*DEMO)
    assert code == 1 and "notes.txt, which no demo wrote" in err and Path("show/run/notes.txt").exists()
    Path("show/run/notes.txt").unlink()
    code, _, err = kirie_(*DEMO, "--epochs", "2")
    assert code == 1 and "training begins" in err and not Path("show/run").exists()


# The public names


def test_every_public_name_can_be_imported_at_once():
    names = {}
    exec("from kirie import *", names)
    assert set(kirie.__all__) <= set(names) and set(kirie.__all__) <= set(dir(kirie))
    assert callable(names["train"]) and callable(names["predict"]) and callable(names["draw"])
    with pytest.raises(AttributeError, match="nonsense"):
        _ = kirie.nonsense
