"""From facts to a recipe: what is measured, which rules apply, how the time is kept."""

import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import make_data, run_cli

import kirie
from kirie.classes import Classes
from kirie.data import open_dataset
from kirie.data.batch import BatchPlan
from kirie.data.dataset import Sample
from kirie.data.listed import SampleList
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.planning.case import FIRST, Case
from kirie.planning.facts import DataFacts, data_facts
from kirie.planning.machine import Machine, this_machine
from kirie.planning.plan import Pace, make_plan
from kirie.planning.rules import LADDER, RULES
from kirie.recipe import parse_recipe, read_recipe
from kirie.results import Instances, SemanticMap
from kirie.training.planned import plan
from kirie.training.timing import pace_of

MACHINE = Machine("cpu", "", 2, 24 * 2**30, 0)
CELLS = DataFacts(
    pictures=300, measured=60, height=256, width=320, grey=False,
    names=("background", "cell"), shares=(0.83, 0.17), foreground=0.17, empty_patches=0.0, upright=0.001,
    brightness=(5.0, 185.0), objects=(38, 198), diameters=(6.4, 18.0, 33.0), touching=0.29, rare_pictures=(64, 64),
    read=64,
)  # fmt: skip
STREET = replace(
    CELLS, height=360, width=480, names=("sky", "road", "car", "pole"), shares=(0.4, 0.5, 0.09, 0.01), foreground=1.0,
    upright=0.86, objects=None, diameters=None, touching=None, rare_pictures=None,
)  # fmt: skip


def case(facts=CELLS, task="semantic", model=None, machine=MACHINE, own_split=True):
    return Case(task, model or FIRST[task], facts, machine, own_split)


PACE = Pace(10.0, 0.5, 0.2)


def planned(*args, minutes=30.0, pace=PACE, changes=(), **kwargs):
    return make_plan(case(*args, **kwargs), "data", minutes=minutes, pace_of=lambda *_: pace, changes=changes)


# Facts


def test_facts_of_objects():
    ids = np.zeros((40, 60), np.int32)
    ids[4:12, 4:12], ids[4:12, 12:20], ids[25:35, 40:50] = 1, 2, 3  # the first two touch
    image = np.full((40, 60, 3), 20, np.uint8)
    image[ids > 0] = 200
    masks = Masks.from_ids(ids, [1, 2, 3])
    truth = Instances.from_masks(masks, [0, 0, 0], Classes(("cell",)))
    dark = Sample(255 - image, truth, "dark")
    facts = data_facts(SampleList({"train": [Sample(image, truth, "bright"), dark], "val": [dark]}, "train"), 1)
    assert (facts.pictures, facts.measured, facts.height, facts.width) == (2, 1, 40, 60)
    assert facts.names == ("background", "cell") and facts.shares[1] == facts.foreground == 228 / 2400
    assert facts.objects == (3, 3) and facts.touching == pytest.approx(2 / 3)
    assert facts.diameters[1] == 8 and facts.grey and facts.empty_patches == 0
    means = sorted(image.mean() for image in (image, 255 - image))
    assert means[0] < facts.brightness[0] < facts.brightness[1] < means[1]


def test_facts_of_pictures_with_an_up_and_a_down():
    rng = np.random.default_rng(0)
    labels = np.repeat([[0], [1]], 32, 0).repeat(64, 1).astype(np.uint8)
    samples = [
        Sample(rng.integers(0, 255, (64, 64, 3), np.uint8), SemanticMap(labels, Classes(("sky", "road"))), f"{number}")
        for number in range(3)
    ]
    facts = data_facts(SampleList({"train": samples, "val": samples}, "train"), 3)
    assert facts.upright == 1 and not facts.grey and facts.objects is None
    assert facts.foreground == 1 and facts.rarest[1] == 0.5
    same = [
        replace(s, truth=SemanticMap(rng.permuted(labels.ravel()).reshape(64, 64), s.truth.classes)) for s in samples
    ]
    assert data_facts(SampleList({"train": same}, "train"), 3).upright < 0.03


def test_sparse_foreground_tells_up_from_down_only_where_many_pictures_agree():
    classes, rng = Classes(("background", "cell")), np.random.default_rng(0)

    def upright(tops):
        samples = []
        for number, top in enumerate(tops):
            labels = np.zeros((64, 64), np.uint8)
            labels[top : top + 4, 20:24] = 1
            samples.append(Sample(np.zeros((64, 64, 3), np.uint8), SemanticMap(labels, classes), f"{number}"))
        return data_facts(SampleList({"train": samples}, "train"), 0).upright

    assert upright(rng.integers(34, 60, 20)) == 1
    assert upright(rng.permutation([10] * 10 + [50] * 10)) == 0
    assert upright([10] * 11 + [50] * 9) == 0, "by chance"


def test_patches_without_foreground_are_counted():
    labels = np.zeros((1024, 1024), np.uint8)
    labels[:8, :8] = 1
    sample = Sample(np.zeros((1024, 1024, 3), np.uint8), SemanticMap(labels, Classes(("background", "speck"))), "a")
    assert data_facts(SampleList({"train": [sample]}, "train"), 0).empty_patches > 0.8


def test_broken_pictures_do_not_stop_a_plan_and_no_pictures_do(tmp_path):
    data = make_data(tmp_path)
    (data / "images" / "train" / "train0.png").write_bytes(b"no picture")
    assert data_facts(open_dataset(data, "train"), 2).read == 3
    for path in (data / "images" / "train").glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(KirieError, match="train"):
        data_facts(open_dataset(data, "train"), 2)


def test_this_machine():
    machine = this_machine("cpu")
    assert machine.device == "cpu" and machine.cores >= 1 and machine.memory > 2**28 and "no GPU" in machine.words


# Rules


@pytest.mark.parametrize(
    ("given", "entry", "expected"),
    [
        (case(), "augment.change.flip_vertical", 0.5),
        (case(STREET), "augment.change.flip_vertical", None),
        (case(), "augment.change.hue", None),
        (case(), "augment.change.scale", None),
        (case(task="instance"), "augment.change.hue", 0.3),
        (case(task="instance"), "augment.change.scale", 0.25),
        (case(replace(CELLS, grey=True), "instance"), "augment.change.hue", None),
        (case(), "train.loss", "ce+dice"),
        (case(replace(CELLS, foreground=0.02)), "train.loss", "dice+ce"),
        (case(replace(CELLS, empty_patches=0.3)), "sampling.positive_ratio", 0.33),
        (case(replace(CELLS, empty_patches=0.7)), "sampling.positive_ratio", 0.5),
        (case(replace(STREET, empty_patches=0.7)), "sampling.positive_ratio", None),
        (case(STREET), "sampling.rare_ratio", 0.5),
        (case(STREET), "train.class_weights", "balanced"),
        (case(), "train.class_weights", None),
        (case(), "data.short_side", None),
        (case(task="instance"), "data.short_side", 448),
        (case(replace(CELLS, diameters=(30.0, 60.0, 90.0)), "instance"), "data.short_side", None),
        (case(replace(CELLS, diameters=(30.0, 60.0, 90.0)), "instance"), "model.arguments.scales", None),
        (case(task="instance"), "model.arguments.candidates", 396),
        (case(replace(CELLS, rare_pictures=(2, 60)), "instance"), "sampling.repeat_threshold", 0.05),
        (case(task="panoptic"), "train.batch_size", 4),
        (case(machine=replace(MACHINE, memory=4 * 2**30)), "train.batch_size", 4),
        (case(STREET), "train.patch", [256, 256]),
        (case(STREET, machine=Machine("cuda", "GPU", 8, 2**35, 2**35)), "train.patch", [352, 480]),
        (case(replace(CELLS, height=50, width=20)), "train.patch", [32, 32]),
        (case(model="deeplabv3plus"), "model.arguments.standardise", None),
    ],
)
def test_a_rule_follows_from_what_was_measured(given, entry, expected):
    made = make_plan(given, "data", minutes=10, pace_of=lambda *_: Pace(1, 0.5, 0.1))
    section, name, *inner = entry.split(".")
    value = getattr(getattr(made.recipe, section), name)
    if inner:
        value = value.get(inner[0])
    untouched = getattr(getattr(parse_recipe({"data": {"path": "data"}}), section), name)
    if expected is None and not inner:
        assert value == untouched and entry not in made.reasons
    else:
        assert (list(value) if isinstance(value, tuple) else value) == expected


@pytest.mark.parametrize("task", FIRST)
def test_every_entry_has_a_reason_and_the_text_is_the_recipe(task, tmp_path):
    made = planned(task=task, own_split=False)
    text = made.text()
    (tmp_path / "recipe.yaml").write_text(text)
    assert read_recipe(tmp_path / "recipe.yaml") == made.recipe
    assert max(map(len, text.splitlines())) <= 120
    assert all(why for entry, why in made.reasons.items() if entry != "data.path")
    assert "drawn by a seed: 60 of 360" in " ".join(text.replace("#", " ").split())
    entries = {rule.entry for rule in RULES} | {entry for entry, _ in LADDER[task]}
    assert set(made.reasons) - entries == {
        "data.path", "train.epochs", "train.draws", "train.validate_every", "train.samples_every"
    }  # fmt: skip


def test_what_is_asked_stands():
    made = planned(
        changes=["train.loss=focal", "augment.change.scale=0.1", "model.arguments={width: 8}", "train.draws=3"]
    )
    assert made.recipe.train.loss == "focal" and made.recipe.model.arguments == {"width": 8}
    assert made.recipe.augment.change["scale"] == 0.1 and made.recipe.augment.change["rotate90"] == 0.75
    assert made.recipe.train.draws == 3
    assert made.reasons["train.loss"] == made.reasons["train.draws"] == made.reasons["model.arguments"] == "as asked"
    assert parse_recipe(yaml.safe_load(made.text())) == made.recipe
    with pytest.raises(KirieError, match="no entry"):
        planned(changes=["train.los=focal"])


# Time


@pytest.mark.parametrize("pictures", [3, 9, 16, 300, 5000])
@pytest.mark.parametrize("minutes", [1.0, 10.0, 200.0])
@pytest.mark.parametrize("pace", [Pace(5, 0.1, 0.02), Pace(12, 0.65, 0.2), Pace(12, 2.0, 3.0)])
def test_the_steps_fill_the_time(pictures, minutes, pace):
    facts = replace(CELLS, pictures=pictures, measured=max(1, pictures // 5))
    recipe = make_plan(case(facts), "data", minutes=minutes, pace_of=lambda *_: pace).recipe.train
    steps = len(BatchPlan(pictures, 8, recipe.draws)) * recipe.epochs  # the last of an epoch may be of fewer pictures
    measurings = -(-recipe.epochs // recipe.validate_every)
    whole = pace.start + steps * pace.step + measurings * facts.measured * pace.picture
    one_pass = pictures / 8 * pace.step
    assert 0.8 * 60 * minutes <= whole <= 1.2 * 60 * minutes or one_pass + facts.measured * pace.picture > 20 * minutes
    assert recipe.epochs <= 120 and measurings <= 10


def test_time_that_is_too_short_for_a_pass_is_said():
    made = planned(replace(CELLS, pictures=10**6), minutes=1)
    assert made.recipe.train.epochs == 1 and "takes longer than that" in made.text()


def test_a_model_grows_with_the_time():
    def pace(recipe, _):
        return Pace(5, 0.1 * recipe.model.arguments["width"] / 16, 0.01)

    def width(minutes):
        return make_plan(case(), "d", minutes=minutes, pace_of=pace).recipe.model.arguments["width"]

    assert [width(minutes) for minutes in (2, 15, 600)] == [16, 32, 64]


def test_rules_leave_room_for_what_is_asked():
    sparse = replace(CELLS, empty_patches=0.7)
    assert planned(sparse).recipe.sampling.positive_ratio == 0.5
    recipe = planned(sparse, changes=["sampling.rare_ratio=0.6"]).recipe
    assert (recipe.sampling.rare_ratio, recipe.sampling.positive_ratio) == (0.6, 0)


def test_the_told_time_heeds_how_often_is_measured():
    def told(*changes):
        text = planned(minutes=10, pace=Pace(1, 0.1, 1.0), changes=changes).text()
        return float(re.search(r"should take ([\d.]+) minutes", text)[1]), text

    assert told("train.validate_every=1", "train.draws=1")[0] > 2 * told("train.draws=1")[0]
    assert "measuring the 60 pictures" in told("train.validate_every=1", "train.draws=1")[1]


def test_the_text_is_the_recipe_whatever_is_asked_and_however_the_data_are_called():
    asked = ["model.name=deeplabv3plus", "model.arguments.encoder_options.output_stride=8",
             "model.arguments.encoder_options.x=1", "train.epochs=1"]  # fmt: skip
    made = make_plan(case(), "1e5", minutes=1, pace_of=lambda *_: PACE, changes=asked)
    assert parse_recipe(yaml.safe_load(made.text())) == made.recipe and made.recipe.data.path == "1e5"
    assert made.text().count("encoder_options") == 1
    with pytest.raises(KirieError, match="entries of model one by one"):
        planned(changes=["model={name: unet}"])


@pytest.mark.parametrize("minutes", [0, -3, float("nan"), float("inf")])
def test_no_time_is_refused(minutes):
    with pytest.raises(KirieError, match="more than 0 minutes"):
        planned(minutes=minutes)


def test_the_pace_of_a_recipe_is_measured(tmp_path):
    data = make_data(tmp_path)
    small = {
        "data": {"path": str(data)},
        "model": {"arguments": {"width": 4, "depth": 1}},
        "train": {"patch": [16, 16]},
    }
    pace = pace_of(parse_recipe(small, ["train.workers=0", "train.batch_size=2"]), 4, device="cpu")
    assert 0 < pace.step < 5 and 0 < pace.picture < 5 and 0 < pace.start < 60


# The verb


def test_a_folder_is_planned_and_trained_by_its_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = make_data(tmp_path / "data")
    changes = ["model.arguments.width=4", "train.workers=0", "train.batch_size=2"]
    made = plan(data, minutes=0.05, changes=changes, device="cpu")
    assert made.recipe.data.task == "semantic" and made.recipe.model.name == "unet"
    assert re.search(r"planned for 0\.05 minutes", made.text())
    run = kirie.train(data, minutes=0.05, changes=changes, device="cpu")
    assert (
        run.finished and "# the data's own: 4 to learn from, 2 to measure on" in (run.folder / "plan.yaml").read_text()
    )
    assert read_recipe(run.folder / "plan.yaml") == read_recipe(run.folder / "recipe.yaml")
    assert "the data's own" in capsys.readouterr().err
    with pytest.raises(KirieError, match="holds a run already"):
        kirie.train(data, minutes=0.05)
    assert kirie.train(data, resume=True, changes=changes).finished, "a finished run stays as it is"


def test_kirie_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data")
    small = ["--set", "model.arguments.width=4", "--set", "train.workers=0", "--minutes", "0.05"]
    status, out, _ = run_cli(capsys, "plan", "data", *small)
    assert status == 0 and parse_recipe(yaml.safe_load(out)).model.arguments["width"] == 4
    status, out, _ = run_cli(capsys, "plan", "data", *small, "--out", "mine.yaml")
    assert status == 0 and "kirie train mine.yaml" in out and read_recipe("mine.yaml").data.path == "data"
    for words, told in (
        (("data", "--out", "mine.yaml"), "is there already"),
        (("data", "--out", "mine.txt"), "is a .yaml file"),
        (("data", "--minutes", "0"), "more than 0 minutes"),
        (("data", "--task", "instance"), "task 'instance'"),
        (("data", "--model", "resnet"), "there is no 'resnet'"),
        (("data", "--task", "semantic", "--model", "yolact"), "yolact learns instance"),
        (("data", "--device", "foo"), "no device 'foo'"),
        (("nothing",), "nothing"),
    ):
        status, _, err = run_cli(capsys, "plan", *words)
        assert status == 1 and told in err and "Traceback" not in err, (words, err)


def test_several_processes_do_not_plan_each_on_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(KirieError, match="kirie plan DATA --out"):
        plan(make_data(tmp_path))


def test_objects_are_learned_as_the_labels_have_them_or_as_asked(tmp_path):
    for split in ("train", "val"):
        for kind, array in (("images", np.zeros((40, 50, 3), np.uint8)), ("ids", np.zeros((40, 50), np.uint16))):
            (tmp_path / kind / split).mkdir(parents=True)
            array[5:20, 5:20] = 1
            Image.fromarray(array).save(tmp_path / kind / split / "a.png")
    asked = ["train.epochs=1"]
    assert plan(tmp_path, changes=asked).recipe.model.name == "yolact"
    as_map = plan(tmp_path, changes=asked, task="semantic")
    assert as_map.recipe.model.name == "unet" and as_map.recipe.data.task == "semantic"
    assert plan(tmp_path, changes=asked, model="unet").recipe.data.task == "semantic"


def test_labels_that_serve_one_task_alone_are_planned_for_it(tmp_path, monkeypatch):
    """As those of COCO panoptic data whose PNGs hold categories and no segments."""
    data = make_data(tmp_path)
    opened = []

    def panoptic_first(path, split=None, *, task=None, settings=None):
        opened.append(task)
        dataset = open_dataset(path, split, task="semantic", settings=settings)
        if task is None:
            monkeypatch.setattr(dataset, "task", "panoptic")
            monkeypatch.setattr(type(dataset), "__getitem__", broken)
        else:
            monkeypatch.undo()
        return dataset

    def broken(self, index):
        raise KirieError("no segments")

    monkeypatch.setattr("kirie.training.planned.open_dataset", panoptic_first)
    made = plan(data, task="semantic", changes=["train.epochs=1"])
    assert opened == [None, "semantic"] and made.recipe.data.task == "semantic"
