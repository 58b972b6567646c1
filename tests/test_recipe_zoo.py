"""The recipes that come with kirie: every file has its row, can be followed, and its model can be built."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import run_cli

from kirie.class_lists import COCO_PANOPTIC
from kirie.demo import make_demo
from kirie.errors import KirieError
from kirie.models import model_class
from kirie.models.file import load
from kirie.reading.strict_yaml import parse_yaml
from kirie.recipe import build_model, parse_recipe, read_recipe
from kirie.recipe_sections import augment_settings
from kirie.recipe_zoo import HOME, RECIPES, recipe_file, recipe_rows, recipe_text
from kirie.training.fit import train
from kirie.training.optimise import schedule
from kirie.weights.releases import RELEASES

ROOT = Path(__file__).resolve().parents[1]
TRAIN2017 = 118_287  # pictures


def test_every_file_has_its_row():
    files = {path.relative_to(HOME).with_suffix("").as_posix() for path in HOME.rglob("*.yaml")}
    assert files == set(RECIPES)
    assert sorted(RECIPES) == list(RECIPES)


def test_the_recipes_of_a_clone_are_those_of_the_package():
    assert (ROOT / "recipes" / "nuclei" / "unet.yaml").samefile(recipe_file("nuclei/unet"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_followed(name):
    recipe = read_recipe(recipe_file(name))
    augment_settings(recipe.augment)
    kind = model_class(recipe.model.name)
    assert kind.task == RECIPES[name].task
    arguments = {n: value for n, value in recipe.model.arguments.items() if n not in kind.never_from_file}
    with torch.device("meta"):
        build_model(replace(recipe.model, arguments=arguments), COCO_PANOPTIC)


# Detectron2's Base-RCNN-FPN.yaml and defaults.py; steps and milestones of its 1x and 3x schedules.
THEIRS = {"1x": (90_000, (60_000, 80_000)), "3x": (270_000, (210_000, 250_000))}


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("coco/")])
def test_counterparts_have_detectron2s_settings(name):
    recipe = read_recipe(recipe_file(name))
    learned = recipe.train
    assert (learned.optimiser, learned.learning_rate, learned.momentum, learned.nesterov) == ("sgd", 0.02, 0.9, False)
    assert (learned.weight_decay, learned.decay_biases, learned.layer_decay) == (1e-4, True, 1)
    assert (learned.batch_size, learned.accumulate, learned.patch, learned.clip, learned.ema) == (16, 1, None, 0, 0)
    assert (recipe.augment.short_sides, recipe.augment.long_side) == ((640, 672, 704, 736, 768, 800), 1333)
    settings = augment_settings(recipe.augment)
    assert settings == replace(type(settings)(), flip_horizontal=0.5)
    arguments = recipe.model.arguments
    assert arguments["encoder_options"] == {"stride_first": True, "frozen_norm": True, "frozen_stages": 2}
    release = RELEASES["detectron2/mask-rcnn-r50-fpn-3x"].arguments
    assert arguments["mean"] == pytest.approx(release["mean"])
    assert arguments["std"] == pytest.approx(release["std"])

    steps, stones = THEIRS[name.rpartition("_")[2]]
    ours = -(-TRAIN2017 // 16) * learned.epochs
    assert ours == pytest.approx(steps, rel=0.015)
    factor = schedule(
        learned.schedule, steps=ours, warmup=learned.warmup, milestones=learned.milestones, gamma=learned.gamma
    )
    for step in range(1000):  # the warm-up of 1000 steps from a thousandth
        assert factor(step) == pytest.approx(0.001 + 0.999 * step / 1000, abs=2e-6)
    assert factor(1000) == 1
    for before, share in zip((1, 0.1), (stone / steps for stone in stones), strict=True):
        assert factor(int(ours * share) - 2) == pytest.approx(before)
        assert factor(int(ours * share) + 2) == pytest.approx(before / 10)


def test_the_encoder_of_a_counterpart_is_frozen_as_far_as_detectron2s():
    recipe = read_recipe(recipe_file("coco/semantic_fpn_r50_1x"))
    arguments = {name: value for name, value in recipe.model.arguments.items() if name != "encoder_weights"}
    with torch.device("meta"):
        model = build_model(replace(recipe.model, arguments=arguments), COCO_PANOPTIC)
    learns = {name.split(".")[2] for name, p in model.named_parameters() if "encoder" in name and p.requires_grad}
    assert learns == {"layer2", "layer3", "layer4"}  # FREEZE_AT 2: not the stem and not res2
    assert not any("bn" in name and p.requires_grad for name, p in model.named_parameters())


def test_scores_are_those_of_the_releases():
    for times in ("1x", "3x"):
        row = RECIPES[f"coco/mask_rcnn_r50_fpn_{times}"]
        release = RELEASES[f"detectron2/mask-rcnn-r50-fpn-{times}"]
        assert f"mask AP {release.score}" in row.score
        assert row.source == release.source


# Names


def test_a_name_leads_to_its_file_and_a_path_to_itself(tmp_path, monkeypatch):
    assert recipe_file("street/unet") == HOME / "street" / "unet.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("data: {path: x}\n")
    assert recipe_file("mine.yaml") == Path("mine.yaml")
    assert recipe_text("street/unet").startswith("# Eleven classes of a street")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("street/unett", "neither a recipe nor a data folder street/unett. Did you mean street/unet"),
        ("unet", "Did you mean demo/unet or nuclei/unet or street/unet?"),
        ("zzz", "`kirie models --recipes` lists the recipes' names"),
        ("notes.txt", "is no recipe, which ends in .yaml"),
    ],
)
def test_names_of_no_recipe(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(KirieError) as told:
        recipe_file(name)
    assert message in str(told.value)


def test_training_takes_a_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("kirie.training.fit.fit", lambda recipe, folder, **_: seen.append((recipe, folder)))
    monkeypatch.chdir(tmp_path)
    train("street/unet", changes=["data.path=elsewhere/camvid", "train.epochs=2"])
    ((recipe, folder),) = seen
    expected = read_recipe(HOME / "street" / "unet.yaml", ["data.path=elsewhere/camvid", "train.epochs=2"])
    assert (recipe, folder) == (expected, Path("runs/camvid-unet"))


# The command


def test_the_list(capsys):
    code, out, _ = run_cli(capsys, "models", "--recipes")
    assert code == 0
    assert all(name in out for name in RECIPES)
    assert "PQ 41.5" in out
    assert "MODEL_ZOO.md of detectron2" in out
    code, out, _ = run_cli(capsys, "models", "--recipes", "--json")
    assert parse_yaml(out, "JSON")["recipes"] == recipe_rows()
    rows = {row["recipe"]: row for row in recipe_rows()}
    assert rows["coco/panoptic_fpn_r50_3x"]["counterpart"] == "detectron2 panoptic_fpn_R_50_3x"
    assert (rows["street/fcn"]["model"], rows["street/fcn"]["path"]) == ("fcn", "data/street")


def test_a_recipe_is_printed_to_be_edited(capsys):
    code, out, _ = run_cli(capsys, "models", "--recipes", "nuclei/solov2")
    assert (code, out) == (0, (HOME / "nuclei" / "solov2.yaml").read_text())
    assert parse_recipe(parse_yaml(out, "it")) == read_recipe(HOME / "nuclei" / "solov2.yaml")
    code, _, err = run_cli(capsys, "models", "--recipes", "nuclei/solo")
    assert (code, "Did you mean" in err) == (1, True)


# For real


@pytest.mark.parametrize("name", ["mask_rcnn_r50_fpn_3x", "panoptic_fpn_r50_3x", "semantic_fpn_r50_1x"])
def test_a_counterpart_trains_on_a_small_encoder(name, tmp_path, monkeypatch):
    monkeypatch.setattr("kirie.training.run.history_figure", lambda history, path: path.touch())
    torch.set_num_threads(1)
    data = make_demo(tmp_path / "data", pictures=7, size=(64, 96))
    changes = [
        f"data.path={data}",
        "model.arguments.encoder=resnet18",
        "model.arguments.encoder_weights=null",
        "model.arguments.encoder_options.stride_first=false",
        "model.arguments.channels=32",
        "augment.short_sides=[64, 80]",
        "augment.long_side=100",
        "train.epochs=1",
        "train.batch_size=3",
        "train.samples_every=0",
        "train.workers=0",
    ]
    run = train(f"coco/{name}", changes=changes, out=tmp_path / "run", device="cpu")
    assert run.finished
    assert run.history[0]["step"] == 2, "five pictures of unequal size, three in a batch"
    inputs = load(run.folder).inputs
    assert (inputs.short_side, inputs.long_side) == (80, 100)
