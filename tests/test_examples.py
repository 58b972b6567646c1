"""The examples, run for real on few small pictures, and the worked example of the page for users of Detectron2."""

import inspect
import pickle
import pkgutil
import re
import runpy
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open

import kirie
from kirie.data.listed import own_dataset
from kirie.demo import make_demo
from kirie.models.mask_rcnn import MaskRCNN
from kirie.models.panoptic_fpn import PanopticFPN
from kirie.models.parts.encoder import OPTIONS, Encoder
from kirie.recipe_sections import AugmentRecipe, DataRecipe, ModelRecipe, TrainRecipe
from kirie.recipe_zoo import RECIPES
from kirie.training import run as run_folder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """One thread, no figure of the history, and a folder of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(run_folder, "history_figure", lambda history, path: path.touch())
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", pictures=10)


def example(name):
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def test_a_plain_loop(demo, capsys):
    torch.manual_seed(0)
    score = example("plain_loop")["main"](str(demo), pictures=10, epochs=2)
    assert 0 < score < 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["epoch 1", "epoch 2"]
    assert lines[2].startswith(f"mIoU {score:.3f}. ")


def test_a_trainer_of_ones_own(demo):
    module = example("own_trainer")
    run = module["main"](str(demo), pictures=10, epochs=2, out="run")
    steps = (run.folder / "steps.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in steps] == ["1", "2"], "6 pictures, 8 in a batch, 2 epochs"
    assert len(steps[0].split("\t")[2].split(", ")) == 6
    # RMSprop keeps one average of squares for each weight; AdamW would keep two, and SGD none of that name.
    with safe_open(run.folder / "last" / "state.safetensors", "pt") as state:
        kinds = {name.rpartition("/")[2] for name in state.keys() if name.startswith("optimiser/")}
    assert kinds == {"square_avg", "step"}
    assert kirie.load(run.folder).recipe["data"]["path"] == str(demo)


def test_a_data_set_of_ones_own(monkeypatch):
    module = example("own_dataset")
    run = module["main"](out="run", epochs=1)
    assert run.finished
    model = kirie.load(run.folder)
    assert model.classes.names == ("background", "disc", "square")
    assert model.recipe["data"]["path"] == "SampleList"


def test_a_data_set_of_ones_own_by_its_name(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    changes = ["train.epochs=1", "train.patch=[96, 128]", "model.arguments.width=4", "train.workers=2"]
    run = kirie.train("examples.own_dataset:shapes", model="unet", changes=changes)
    assert run.folder == Path("runs/shapes")
    report = kirie.evaluate(kirie.load(run.folder), own_dataset("examples.own_dataset:shapes", "val", task="semantic"))
    assert report.score == pytest.approx(run.best)


def test_the_encoder_of_detectron2():
    """A file as Detectron2 has it, made of timm's network: the weights come back, and RGB gives what BGR gave."""
    torch.manual_seed(0)
    body = timm.create_model("resnet50", features_only=True)
    with torch.no_grad():
        for name, tensor in body.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif "bn" in name or "downsample.1" in name:
                tensor.copy_(torch.rand_like(tensor.float()))
    theirs = {}
    for name, tensor in body.state_dict().items():
        new = re.sub(r"^conv1\.", "stem.conv1.", re.sub(r"^bn1\.", "stem.conv1.norm.", name))
        new = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", new)
        new = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", new)
        new = new.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        if not name.endswith("num_batches_tracked"):
            theirs[new] = tensor.flip(1).numpy() if new == "stem.conv1.weight" else tensor.numpy()
    theirs |= {"stem.fc.weight": np.zeros((1000, 2048), np.float32), "stem.fc.bias": np.zeros(1000, np.float32)}
    Path("R-50.pkl").write_bytes(pickle.dumps({"model": theirs, "matching_heuristics": True}, protocol=2))

    example("detectron2_encoder")["main"]("R-50.pkl", "data/msra_r50.safetensors")
    encoder = Encoder("resnet50", weights="data/msra_r50.safetensors", frozen_stages=2, frozen_norm=True)
    expected = body.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in encoder.body.state_dict().items() if "num_batches" not in n)


# The page for users of Detectron2

PAGE = (ROOT / "docs" / "from-detectron2.md").read_text(encoding="utf-8")


def test_its_worked_example_works(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "docs/from-detectron2.md", "exec"), {})
    assert "One confusion table over all pictures" in capsys.readouterr().out
    assert Path("cut.png").exists()


def test_the_names_it_gives_are_there():
    names = set(re.findall(r"\bkirie(?:\.[A-Za-z_]\w*)+", PAGE))
    assert len(names) > 15
    for name in names:
        pkgutil.resolve_name(name)


def test_the_entries_it_gives_are_those_of_a_recipe():
    sections = {"data": DataRecipe, "model": ModelRecipe, "augment": AugmentRecipe, "train": TrainRecipe}
    entries = set(re.findall(r"[`\s](data|model|augment|train)\.([a-z_]+)\b(?![(/])", PAGE))
    assert len(entries) > 20
    for section, entry in entries:
        assert entry in {f.name for f in fields(sections[section])}, f"{section}.{entry}"
    known = [*inspect.signature(MaskRCNN).parameters, *inspect.signature(PanopticFPN).parameters, *OPTIONS]
    for line in re.findall(r"^\| `(?:MODEL|TEST.DET).*$", PAGE, re.MULTILINE):
        for argument in re.findall(r"`([a-z_]+)(?:: \w+)?`", line.split("|")[2]):
            assert argument in known, argument


def test_the_recipes_and_scores_it_gives_are_those_of_the_list():
    rows = re.findall(r"^\| `[\w-]+/(\w+)` \| `(coco/\w+)` \| (.*) \|$", PAGE, re.MULTILINE)
    assert {recipe for _, recipe, _ in rows} == {name for name in RECIPES if name.startswith("coco/")}
    for config, recipe, score in rows:
        assert RECIPES[recipe].counterpart == f"detectron2 {config}"
        assert (RECIPES[recipe].score or "not published") == score
