import sys
import textwrap
import time

import pytest
import torch
import yaml
from tiny import make_data, random_unet

from kirie.classes import Classes
from kirie.data.augment import PRESETS
from kirie.errors import KirieError
from kirie.models.file import load, save
from kirie.models.unet import UNet
from kirie.prediction.evaluate import evaluate
from kirie.recipe import (
    Recipe,
    build_model,
    own_callable,
    parse_recipe,
    read_recipe,
    recipe_values,
    start_from,
    write_recipe,
)
from kirie.recipe_sections import AugmentRecipe, DataRecipe, ModelRecipe, TrainRecipe, augment_settings

SMALLEST = {"data": {"path": "somewhere"}}


def written(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(textwrap.dedent(text))
    return path


# Reading


def test_the_smallest_recipe_is_all_defaults():
    recipe = parse_recipe(SMALLEST)
    assert recipe == Recipe(data=DataRecipe(path="somewhere"))
    assert (recipe.model, recipe.augment, recipe.train) == (ModelRecipe(), AugmentRecipe(), TrainRecipe())


def test_a_full_recipe(tmp_path):
    recipe = read_recipe(
        written(
            tmp_path,
            """\
            data: {path: data/cells, task: semantic, classes: [a, b], ignore: [255, 7], group: '(\\d+)_'}
            model:
              name: unet
              arguments: {width: 16}
            augment: {preset: medical, change: {rotate: 90, crop_scale: [0.2, 1]}}
            train:
              patch: [64, 96]
              learning_rate: 1e-3
              class_weights: [1, 2.5]
              workers: 0
            """,
        )
    )
    assert recipe.data.classes == ("a", "b")
    assert recipe.data.ignore == (255, 7)
    assert recipe.data.folder_settings().group == r"(\d+)_"
    assert recipe.model.arguments == {"width": 16}
    assert augment_settings(recipe.augment).crop_scale == (0.2, 1)
    assert augment_settings(recipe.augment).elastic == PRESETS["medical"].elastic
    assert recipe.train.patch == (64, 96)
    assert recipe.train.learning_rate == 0.001
    assert recipe.train.class_weights == [1, 2.5]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E-3", 0.001), ("2.5e-4", 0.00025), ("5e+1", 50.0), (".5e1", 5.0), ("3", 3.0), ("0.1", 0.1)],
)
def test_numbers_are_read_as_people_write_them(text, value):
    assert parse_recipe(SMALLEST, [f"train.learning_rate={text}"]).train.learning_rate == value


def test_empty_sections_are_their_defaults(tmp_path):
    assert read_recipe(written(tmp_path, "data: {path: x}\ntrain:\nmodel: null\n")) == Recipe(data=DataRecipe(path="x"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_editors_and_shells_write(encoding, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes("data: {path: 細胞}\r\n".encode(encoding))
    assert read_recipe(tmp_path / "recipe.yaml").data.path == "細胞"


def test_every_entry_survives_writing_and_reading(tmp_path):
    recipe = parse_recipe(
        {
            "data": {"path": "daten/Zellen: ü", "task": "semantic", "classes": ["no", "1e3"], "ignore": [0], "seed": 4},
            "model": {"name": "mine.models:Net", "arguments": {"a": [1, None, "x"], "b": {"c": True}}, "start": "w.st"},
            "augment": {"preset": "street", "change": {"blur_sigma": [0.1, 2]}, "own": "mine:f"},
            "train": {"patch": None, "class_weights": [0.5, 2], "learning_rate": 1e-7, "workers": 3, "seed": 2**62},
        }
    )
    assert parse_recipe(recipe_values(recipe)) == recipe
    assert parse_recipe(yaml.safe_load(write_recipe(recipe))) == recipe
    assert read_recipe(written(tmp_path, write_recipe(recipe))) == recipe
    for section, entries in recipe_values(recipe).items():
        assert all(f"{name}:" in write_recipe(recipe) for name in entries), section


# Faults

FAULTS = {
    # unknown entries, with the nearest one
    "dat={}": r"dat is no entry of a recipe \(did you mean data\?\)",
    "epochs=3": r"epochs is no entry of a recipe \(did you mean train\.epochs\?\)",
    "data.pth=x": r"data\.pth is no entry of a recipe \(did you mean path\?\)",
    "model.arguements={}": r"model\.arguements is no entry of a recipe \(did you mean arguments\?\)",
    "augment.presets=x": r"augment\.presets is no entry of a recipe \(did you mean preset\?\)",
    "train.learningrate=1": r"train\.learningrate is no entry of a recipe \(did you mean learning_rate\?\)",
    "train.zzz=1": r"train\.zzz is no entry of a recipe \(known are epochs, draws, ",
    # types
    "data.path=3": r"data\.path: .*string, got 3",
    "data.path=null": r"data\.path: .*string, got None",
    "data.classes=[1]": r"data\.classes: .*string, got 1",
    "data.val_fraction=a": r"data\.val_fraction: .*number, got 'a'",
    "data=3": r"data: .*object, got 3",
    "model.arguments=[1]": r"model\.arguments: .*object, got \[1\]",
    "data.channels=three": r"data\.channels: .*integer, got 'three'",
    "augment.preset=[light]": r"augment\.preset: .*string",
    "augment.change=3": r"augment\.change: .*object",
    "train.epochs='3'": r"train\.epochs: .*integer, got '3'",
    "train.epochs=3.5": r"train\.epochs: .*integer, got 3\.5",
    "train.epochs=true": r"train\.epochs: .*integer, got True",
    "train.epochs=null": r"train\.epochs: .*integer, got None",
    "train.channels_last=1": r"train\.channels_last: .*boolean, got 1",
    "train.learning_rate='1e-3'": r"train\.learning_rate: .*number, got '1e-3'",
    "train.patch=256": r"train\.patch: .*array, got 256",
    "train.patch=[256]": r"train\.patch has too few values",
    "train.patch=[1, 2, 3]": r"train\.patch: .*at most 2",
    "train.class_weights=even": r"train\.class_weights: .*'balanced', got 'even', or .*array",
    # values
    "data.task=detection": r"data\.task: .*'semantic', 'instance' or 'panoptic', got 'detection'",
    "data.kind=png": r"data\.kind: .*'index'.*got 'png'",
    "data.val_fraction=2": r"val_fraction",
    "data.short_side=0": r"data\.short_side is 0",
    "model.name=unett": r"model\.name: there is no 'unett' \(did you mean unet\?\)",
    "model.name=a b:c": r"model\.name: there is no 'a b:c'",
    "data.channels=0": r"data\.channels is 0; expected 1 to 4096",
    "augment.preset=lite": r"augment\.preset: there is no 'lite' \(did you mean light\?\)",
    "augment.own=function": r"augment\.own must be package\.module:function, got 'function'",
    "augment.change={rotat: 3}": r"augment\.change has no 'rotat' \(did you mean rotate\?\)",
    "augment.change={rotate: [1, 2]}": r"augment\.change\.rotate must be a number",
    "augment.change={rotate: true}": r"augment\.change\.rotate must be a number",
    "augment.change={grid_steps: 2.5}": r"augment\.change\.grid_steps must be a number such as 5, got 2\.5",
    "augment.change={crop_scale: 3}": r"augment\.change\.crop_scale must be a list of numbers, got 3",
    "augment.change={crop_scale: [1]}": r"augment\.crop_scale is \(1,\)",
    "augment.change={hue: 2}": r"augment\.hue is 2; expected a probability",
    "train.epochs=0": r"train\.epochs must be at least 1, got 0",
    "train.draws=0": r"train\.draws must be at least 1",
    "train.batch_size=-1": r"train\.batch_size must be at least 1",
    "train.patch=[0, 5]": r"train\.patch must be at least 1, got \(0, 5\)",
    "train.patch=[5, 100000]": r"train\.patch must be at least 1 and below 65,536",
    "train.loss=dise": r"train\.loss: unknown loss 'dise'.*'dice'",
    "train.loss=''": r"train\.loss: cannot read",
    "train.class_weights=[-1, 1]": r"train\.class_weights must be at least 0",
    "train.class_weights=[0, 0]": r"train\.class_weights must be .*not all 0",
    "train.optimiser=adam": r"train\.optimiser: .*'adamw' or 'sgd', got 'adam'",
    "train.learning_rate=0": r"train\.learning_rate must be above 0",
    "train.learning_rate=.nan": r"train\.learning_rate must be above 0 and finite, got nan",
    "train.learning_rate=.inf": r"train\.learning_rate must be above 0 and finite, got inf",
    "train.layer_decay=0": r"train\.layer_decay must be above 0 and at most 1, got 0",
    "train.layer_decay=1.01": r"train\.layer_decay must be above 0 and at most 1, got 1\.01",
    "train.layer_decay=.nan": r"train\.layer_decay must be above 0 and at most 1, got nan",
    "train.layer_decay=half": r"train\.layer_decay: .*number, got 'half'",
    "train.weight_decay=-1": r"train\.weight_decay must be at least 0",
    "train.momentum=1": r"train\.momentum must be at least 0 and below 1",
    "train.warmup=1": r"train\.warmup must be at least 0 and below 1",
    "train.schedule=linear": r"train\.schedule: .*'cosine', 'poly', 'step' or 'constant'",
    "train.accumulate=0": r"train\.accumulate must be at least 1",
    "train.clip=-0.1": r"train\.clip must be at least 0",
    "train.ema=-0.1": r"train\.ema must be at least 0",
    "train.precision=fp8": r"train\.precision: .*'fp32'",
    "train.validate_every=0": r"train\.validate_every must be at least 1",
    "train.patience=-1": r"train\.patience must be at least 0",
    "train.samples_every=-1": r"train\.samples_every must be at least 0",
    "train.workers=-1": r"train\.workers must be at least 0",
    "train.seed=-1": r"train\.seed must be at least 0",
    "train.seed=18446744073709551616": r"train\.seed must be .*below 9,223,372,036,854,775,808",
}


@pytest.mark.parametrize("change", FAULTS)
def test_a_fault_is_told_with_its_entry(change):
    with pytest.raises(KirieError, match=FAULTS[change]) as told:
        parse_recipe(SMALLEST, [change], source="mine.yaml")
    message = str(told.value)
    assert message.startswith("mine.yaml cannot be followed: ")
    assert message.count("\n") == 0
    assert len(message) < 600
    assert not message.endswith("..")


def test_every_entry_of_the_recipe_is_covered_by_a_range_or_a_type():
    # None of the numbers of the train section may be negative, none of its words be any word.
    for name, value in recipe_values(Recipe(data=DataRecipe(path="x")))["train"].items():
        wrong = "nonsense" if isinstance(value, str | bool) or name == "class_weights" else -1
        with pytest.raises(KirieError, match=f"train.{name}"):
            parse_recipe({**SMALLEST, "train": {name: wrong}})


def test_several_faults_are_told_at_once():
    with pytest.raises(KirieError, match=r"data\.path is missing; .*") as told:
        parse_recipe({"train": {"epoch": 3, "batch_size": "a"}, "data": {}})
    assert "train.epoch is no entry" in str(told.value)
    assert "train.batch_size: " in str(told.value)
    with pytest.raises(KirieError, match=r"train\.epochs must.*; train\.momentum must"):
        parse_recipe({**SMALLEST, "train": {"epochs": 0, "momentum": 2.0}})


def test_without_data():
    with pytest.raises(KirieError, match="data is missing"):
        parse_recipe({})


@pytest.mark.parametrize("text", ["", "[1, 2]", "a word", "3", "~"])
def test_a_file_that_is_no_recipe(text, tmp_path):
    with pytest.raises(KirieError, match="must have the sections data, model, augment and train, got"):
        read_recipe(written(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "data: [",
        "data: {path: x",
        "data:\n\tpath: x",
        "data: !!python/object/apply:os.system [ls]",
        "data: {path: !!int ''}",
        "data: {path: 2024-13-45}",
        "data: {path: !!timestamp x}",
        "? [a, b]\n: c",
        "a: b\n---\nc: d",
        "data: \x00",
        "data: {path: " + "9" * 5000 + "}",
    ],
)
def test_what_is_no_yaml_is_told(text, tmp_path):
    with pytest.raises(KirieError, match=r"recipe\.yaml (is not valid YAML|holds a value)") as told:
        read_recipe(written(tmp_path, text))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["2024-01-02: {}", "? 2024-01-02\n: x", "data: {1: x, path: y}"])
def test_names_that_are_no_words(text, tmp_path):
    with pytest.raises(KirieError, match=r"recipe\.yaml"):
        read_recipe(written(tmp_path, text))


def test_an_entry_that_comes_twice(tmp_path):
    with pytest.raises(KirieError, match=r"found 'epochs' twice; keep one of them \(line 2, column 20\)"):
        read_recipe(written(tmp_path, "data: {path: x}\ntrain: {epochs: 3, epochs: 4}"))
    with pytest.raises(KirieError, match="found 'data' twice"):
        read_recipe(written(tmp_path, "data: {path: x}\ndata: {path: y}"))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("train: {schedule: step}", "rising shares of all steps for the schedule step, which needs them"),
        ("train: {milestones: [0.5]}", r"got \[0.5\] for 'cosine'"),
        ("train: {schedule: step, milestones: [0.9, 0.5]}", "rising shares"),
        ("train: {schedule: step, milestones: [0.5, 1]}", r"train\.milestones must be above 0 and below 1"),
        ("train: {schedule: step, milestones: [0.5], gamma: 0}", r"train\.gamma must be above 0"),
        ("augment: {short_sides: [0, 64]}", r"augment\.short_sides must be at least 1"),
        ("augment: {long_side: 1333}", r"augment\.long_side is 1333; expected at least the largest"),
        ("augment: {short_sides: [640, 800], long_side: 700}", r"augment\.long_side is 700"),
        ("augment: {short_sides: 640}", r"augment\.short_sides"),
        ("augment: {short_sides: [640.5]}", r"augment\.short_sides"),
    ],
)
def test_schedules_and_sizes_that_are_none(section, message, tmp_path):
    with pytest.raises(KirieError, match=message):
        read_recipe(written(tmp_path, f"data: {{path: x}}\n{section}"))


def test_pictures_are_resized_in_one_place_only():
    values = {"data": {"path": "x", "short_side": 512}, "augment": {"short_sides": [640]}}
    with pytest.raises(KirieError, match=r"data\.short_side and augment\.short_sides both resize"):
        parse_recipe(values)


def test_files_that_are_missing_or_too_large(tmp_path):
    with pytest.raises(KirieError, match="There is no recipe"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(KirieError, match=r"Cannot read the recipe .*directory"):
        read_recipe(tmp_path)
    (tmp_path / "long.yaml").write_bytes(b"#" * 2**21)
    with pytest.raises(KirieError, match="longer than 1,048,576 bytes"):
        read_recipe(tmp_path / "long.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"data: \xff\xfe\x00")
    with pytest.raises(KirieError, match="not valid YAML"):
        read_recipe(tmp_path / "bytes.yaml")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: &a [*a]",
        "data: &d {path: x}\nmodel: {<<: *d}",
        "data: {path: " + "[" * 20_000 + "]" * 20_000 + "}",
        "data: {path: " + "{a: " * 20_000 + "}" * 20_000 + "}",
        "".join("  " * n + "a:\n" for n in range(700)),
        "[" * 300_000,
    ],
    ids=["bomb", "itself", "merge", "lists", "mappings", "blocks", "open"],
)
def test_bombs_do_not_go_off(text, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(KirieError):
        read_recipe(tmp_path / "recipe.yaml")
    assert time.process_time() - start < 3
    if "*" in text:
        with pytest.raises(KirieError, match="alias"):
            read_recipe(tmp_path / "recipe.yaml")


def test_deep_values_from_elsewhere_do_not_go_off():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(KirieError):
        parse_recipe({"data": {"path": "x"}, "model": {"arguments": {"a": deep}}})
    itself: dict = {}
    itself["a"] = itself
    with pytest.raises(KirieError, match="holds a value that no recipe can hold"):
        parse_recipe({"data": {"path": "x"}, "model": {"arguments": itself}})
    with pytest.raises(KirieError, match="nested too deeply"):
        parse_recipe(SMALLEST, ["model.arguments=" + "[" * 5000 + "]" * 5000])


# Changes


def test_changes():
    recipe = parse_recipe(
        {**SMALLEST, "train": {"epochs": 3, "patch": [8, 8]}},
        [
            "train.epochs=40",
            "train.patch=null",
            "train.class_weights=[1, 2]",
            "model.arguments={width: 16}",
            "model.arguments.depth=2",
            " train.draws = 5 ",
            "train.loss=0.3*focal+0.7*tversky",
            "augment.change.rotate=5",
            "data.path=C:\\pictures",
            "data.group=a=(.)",
        ],
    )
    assert (recipe.train.epochs, recipe.train.patch, recipe.train.class_weights) == (40, None, [1, 2])
    assert recipe.model.arguments == {"width": 16, "depth": 2}
    assert (recipe.train.draws, recipe.train.loss) == (5, "0.3*focal+0.7*tversky")
    assert recipe.augment.change == {"rotate": 5}
    assert (recipe.data.path, recipe.data.group) == ("C:\\pictures", "a=(.)")


def test_a_later_change_wins_and_the_values_given_stay_as_they_were():
    values = {"data": {"path": "x"}, "train": {"epochs": 3}}
    assert parse_recipe(values, ["train.epochs=4", "train.epochs=5"]).train.epochs == 5
    assert values == {"data": {"path": "x"}, "train": {"epochs": 3}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epochs", "A change reads section.entry=value"),
        ("=3", "A change reads section.entry=value"),
        ("train.=3", "A change reads section.entry=value"),
        (".epochs=3", "A change reads section.entry=value"),
        ("train.epochs=[", "The value of train.epochs is not valid YAML"),
        ("train.epochs.more=3", "'train.epochs.more' leads nowhere: epochs is no section"),
        ("train.epochs=", "train.epochs: "),
    ],
)
def test_changes_that_cannot_be_made(change, message):
    with pytest.raises(KirieError) as told:
        parse_recipe({**SMALLEST, "train": {"epochs": 3}}, [change])
    assert message in str(told.value)


# Building


def test_build_model():
    model = build_model(ModelRecipe(arguments={"width": 4, "depth": 2}), Classes(("a", "b", "c")), 1)
    assert isinstance(model, UNet)
    assert (model.in_channels, len(model.classes), model.arguments["width"]) == (1, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widht": 4}, r"model\.arguments has no 'widht' for unet \(did you mean width\?\)"),
        ({"classes": 4}, r"model\.arguments has no 'classes'"),
        ({"in_channels": 4}, r"model\.arguments has no 'in_channels'"),
        ({"width": "wide"}, "width must be a whole number"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(KirieError, match=message):
        build_model(ModelRecipe(arguments=arguments), Classes(("a", "b")))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's package on the path, with two models and an augmentation, that tells when it is imported."""
    (tmp_path / "minepack").mkdir()
    (tmp_path / "minepack" / "__init__.py").write_text("")
    (tmp_path / "minepack" / "nets.py").write_text(
        textwrap.dedent(
            """\
            from torch import nn

            from kirie.models.parts.semantic import SemanticModel, SemanticRaw


            class Net(SemanticModel):
                def __init__(self, in_channels, classes, *, kernel=1):
                    super().__init__(in_channels, classes, {"kernel": kernel})
                    self.layer = nn.Conv2d(in_channels, self.logit_channels, kernel)

                def forward(self, images):
                    return SemanticRaw(self.layer(self.normalise(images)))


            class Loose(Net):
                def __init__(self, in_channels, classes, **more):
                    super().__init__(in_channels, classes, **more)


            class NoModel:
                pass


            def shift(image, mask):
                return {"image": image, "mask": mask}


            number = 3
            """
        )
    )
    (tmp_path / "minepack" / "broken.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith("minepack")]:
        del sys.modules[name]


def test_a_users_own_model(mine):
    model = build_model(ModelRecipe(name="minepack.nets:Net", arguments={"kernel": 3}), Classes(("a", "b", "c")))
    assert type(model).__name__ == "Net"
    assert model(torch.rand(1, 3, 8, 8)).logits.shape == (1, 3, 6, 6)
    with pytest.raises(KirieError, match=r"has no 'kernels' .*did you mean kernel"):
        build_model(ModelRecipe(name="minepack.nets:Net", arguments={"kernels": 3}), Classes(("a", "b")))
    with pytest.raises(KirieError, match=r"model\.arguments do not fit minepack\.nets:Loose: .*'kernels'"):
        build_model(ModelRecipe(name="minepack.nets:Loose", arguments={"kernels": 3}), Classes(("a", "b")))


@pytest.mark.parametrize("name", ["minepack.none:Net", "minepack.nets:None_", "minepack.nets:NoModel"])
def test_a_users_model_that_is_none(name, mine):
    with pytest.raises(KirieError, match=r"minepack\.n"):
        build_model(ModelRecipe(name=name), Classes(("a", "b")))


def test_a_users_own_augmentation(mine):
    assert own_callable(AugmentRecipe()) is None
    function = own_callable(AugmentRecipe(own="minepack.nets:shift"))
    assert function is not None
    assert function.__name__ == "shift"
    for own in ("minepack.nets:shaft", "minepack.none:shift", "minepack.broken:f", "minepack.nets:number"):
        with pytest.raises(KirieError, match=r"augment\.own"):
            own_callable(AugmentRecipe(own=own))


def test_reading_a_recipe_imports_no_code_it_names(mine, tmp_path):
    # Model files keep a recipe as a record, and whoever wrote one must not choose what runs here.
    recipe = parse_recipe(
        {
            "data": {"path": "minepack.nets:shift"},
            "model": {"name": "minepack.nets:Net"},
            "augment": {"own": "minepack.nets:shift"},
        }
    )
    assert recipe.model.name == "minepack.nets:Net"
    assert not [name for name in sys.modules if name.startswith("minepack")]


def test_a_model_file_imports_no_data_that_it_names(mine, tmp_path):
    record = {"data": {"path": "minepack.nets:shift", "val": "val"}}
    save(random_unet(), tmp_path / "model.safetensors", recipe=record)
    evaluate(load(tmp_path / "model.safetensors"), make_data(tmp_path / "data"), device="cpu")
    assert not [name for name in sys.modules if name.startswith("minepack")]


def test_start_weights_of_a_model_with_other_classes(tmp_path, capfd):
    torch.manual_seed(0)
    given = UNet(3, 5, width=4, depth=2)
    save(given, tmp_path / "given.safetensors")
    recipe = ModelRecipe(arguments={"width": 4, "depth": 2}, start=str(tmp_path / "given.safetensors"))
    model = build_model(recipe, Classes(("a", "b")))
    ours, theirs = model.state_dict(), given.state_dict()
    differing = [name for name in ours if ours[name].shape != theirs[name].shape]
    assert differing == ["head.weight", "head.bias"]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name not in differing)
    assert "does not fit head.bias, head.weight; these start at random" in capfd.readouterr().err
    assert start_from(UNet(3, 5, width=4, depth=2), str(tmp_path / "given.safetensors")) == []


def test_start_weights_that_do_not_fit_at_all(tmp_path, mine):
    save(UNet(3, 5, width=4, depth=2), tmp_path / "given.safetensors")
    with pytest.raises(KirieError, match=r"Nothing in .*given\.safetensors fits this model"):
        build_model(
            ModelRecipe(name="minepack.nets:Net", start=str(tmp_path / "given.safetensors")), Classes(("a", "b"))
        )
    with pytest.raises(KirieError, match="no model file"):
        build_model(ModelRecipe(start=str(tmp_path / "none.safetensors")), Classes(("a", "b")))


def test_recipes_made_in_python_are_checked_too():
    with pytest.raises(KirieError, match=r"train\.epochs must be at least 1"):
        TrainRecipe(epochs=0)
    with pytest.raises(KirieError, match=r"augment\.preset"):
        AugmentRecipe(preset="lite")
    with pytest.raises(KirieError, match=r"model\.name"):
        ModelRecipe(name="unett")
    assert augment_settings(AugmentRecipe(change={"crop_scale": (0.3, 0.9)})).crop_scale == (0.3, 0.9)


@pytest.mark.parametrize("name", ["__class__", "__doc__", "__dataclass_fields__", "__init__"])
def test_only_fields_of_an_augmentation_can_be_changed(name):
    with pytest.raises(KirieError, match=f"augment.change has no '{name}'"):
        parse_recipe({"data": {"path": "x"}, "augment": {"change": {name: 1}}})


def test_only_sections_that_exist_may_be_empty():
    assert parse_recipe({"data": {"path": "x"}, "train": None}) == parse_recipe({"data": {"path": "x"}})
    with pytest.raises(KirieError, match=r"trian is no entry of a recipe \(did you mean train"):
        parse_recipe({"data": {"path": "x"}, "trian": None})
