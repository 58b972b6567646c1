"""Bad input through the command line: one clear sentence on standard error, and what was there before stays whole.

A row of `CASES` is a case: a name, a function that is run in the working folder beforehand, the words of the command,
and what the sentence must say of what came, where, or how to mend it.
"""

import json
import os
import pickle
import resource
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import CLASSES, SIZE, add_sample, blobs, colour_unet, make_data, painted, run_cli

import kirie
from kirie.classes import Classes
from kirie.models.file import ENTRY

LIMITED = resource.RLIMIT_FSIZE


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with sound things: `data`, `m.safetensors`, `r.yaml`, `a.png`, and a file `file`."""
    monkeypatch.chdir(tmp_path)
    make_data(Path("data"), (("train", 2), ("val", 1), ("test", 2)))
    kirie.save(colour_unet(), "m.safetensors")
    Path("r.yaml").write_text("data: {path: data}\ntrain: {epochs: 1, workers: 0, patch: [16, 16]}\n")
    Image.fromarray(painted(blobs(SIZE))).save("a.png")
    Path("file").write_text("mine")
    return tmp_path


@pytest.fixture
def kirie_(capsys):
    return lambda *words: run_cli(capsys, *words)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# What is wrong


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def huge_png(path):
    """A PNG of some bytes that says it is 60,000 x 60,000 pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + head + data)


def cut(path, share=0.6):
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: int(len(data) * share)])


def becomes_folder(path):
    Path(path).unlink()
    Path(path).mkdir()


def grey(path, values, size=SIZE):
    Image.fromarray(np.resize(np.array(values, np.uint8), size)).save(path)


def model(name="bad.safetensors", change=None, **card):
    """Writes a sound model file whose card is then changed."""
    kirie.save(colour_unet(), name)
    tensors = load_file(name)
    if change is not None:
        change(tensors)
    sound = {
        "format": 1, "architecture": "unet", "in_channels": 3, "classes": CLASSES.to_dict(), "inputs": {}, "scores": {},
        "arguments": colour_unet().arguments, "recipe": None,
    }  # fmt: skip
    save_file(tensors, name, metadata={ENTRY: json.dumps(sound | card)})


def foreign_model():
    save_file({"a": torch.zeros(2)}, "bad.safetensors")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch owned",)


def hostile_pickle(path):
    Path(path).write_bytes(pickle.dumps(Hostile()))


def hostile_checkpoint(path):
    torch.save({"inc.double_conv.0.weight": Hostile()}, path)


def set_nan(tensors):
    tensors["head.weight"][0] = float("nan")


SQUARE = [4, 3, 12, 3, 12, 9, 4, 9]


def coco(change=None, folder="coco", **values):
    """A COCO data set of two pictures, one object each; `values` change the annotation of the second."""
    height, width = SIZE
    images = [{"id": i, "file_name": f"{i}.png", "height": height, "width": width} for i in range(2)]
    sound = [{"id": i, "image_id": i, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0} for i in range(2)]
    document = {"images": images, "annotations": [sound[0], sound[1] | values], "categories": [{"id": 1, "name": "a"}]}
    Path(folder, "train").mkdir(parents=True)
    for i in range(2):
        Image.fromarray(painted(blobs(SIZE, seed=i))).save(f"{folder}/train/{i}.png")
    text = json.dumps(document)
    Path(folder, "train/_annotations.coco.json").write_text(text if change is None else change(text))


def yolo(line="0 0.1 0.2 0.5 0.2 0.5 0.7", description="train: images/train\nval: images/train\nnames: [a]\n"):
    """A YOLO data set of two pictures, one object each; `line` is that of the second."""
    for folder in ("images", "labels"):
        Path("yolo", folder, "train").mkdir(parents=True)
    for i, text in enumerate(("0 0.1 0.2 0.5 0.2 0.5 0.7", line)):
        Image.fromarray(painted(blobs(SIZE, seed=i))).save(f"yolo/images/train/{i}.png")
        Path(f"yolo/labels/train/{i}.txt").write_text(text)
    Path("yolo/data.yaml").write_text(description)


def boxes_only():
    coco(segmentation=[])
    path = Path("coco/train/_annotations.coco.json")
    path.write_text(path.read_text().replace(json.dumps([SQUARE]), "[]"))


# The cases

NOTHING = lambda: None  # noqa: E731
IMAGE, MASK = "data/images/test/test0.png", "data/masks/test/test0.png"
TRAIN_IMAGE, TRAIN_MASK = "data/images/train/train0.png", "data/masks/train/train0.png"
CPU = ("--device", "cpu")
EVALUATE = ("evaluate", "m.safetensors", "data", *CPU)
PREDICT = ("predict", "m.safetensors", "a.png", "--out", "new", *CPU)
TRAIN = ("train", "r.yaml", "--out", "new", *CPU)

# Faults of a data set: what is made, and what inspect, train (in its train split) and evaluate say of them.
FAULTS = {
    "mask missing": (lambda i, m: Path(m).unlink(), "no label file", "{image}"),
    "mask of another size": (lambda i, m: grey(m, [0, 1, 2], (9, 9)), "9 x 9", "{mask}"),
    "mask truncated": (lambda i, m: cut(m), "damaged or cut short", "{mask}"),
    "mask of 0 bytes": (lambda i, m: Path(m).write_bytes(b""), "0 bytes", "{mask}"),
    "mask that is a text": (lambda i, m: Path(m).write_text("no picture"), "no picture that kirie reads", "{mask}"),
    "ids outside the classes": (lambda i, m: grey(m, [0, 1, 2, 7]), "no class: 7", "{mask}"),
    "picture truncated": (lambda i, m: cut(i), "damaged or cut short", "{image}"),
    "picture of 0 bytes": (lambda i, m: Path(i).write_bytes(b""), "0 bytes", "{image}"),
    "picture of 60,000 x 60,000": (lambda i, m: huge_png(i), "60,000 x 60,000", "{image}"),
    "picture that is a text": (lambda i, m: Path(i).write_text("hello"), "no picture that kirie reads", "{image}"),
}

# Faults of a model file, for evaluate and predict alike.
MODELS = {
    "missing": (NOTHING, "no model file bad.safetensors"),
    "a folder without one": (lambda: Path("bad.safetensors").mkdir(), "no model file"),
    "of 0 bytes": (lambda: Path("bad.safetensors").write_bytes(b""), "no safetensors file"),
    "a text": (lambda: Path("bad.safetensors").write_text("hello"), "no safetensors file"),
    "a pickle": (lambda: hostile_pickle("bad.safetensors"), "no safetensors file"),
    "a checkpoint of torch": (lambda: hostile_checkpoint("bad.safetensors"), "kirie import"),
    "of another project": (foreign_model, "not written by kirie"),
    "cut short": (lambda: (model(), cut("bad.safetensors")), "cut short"),
    "cut within its header": (lambda: (model(), cut("bad.safetensors", 0.01)), "cut short"),
    "with NaN": (lambda: model(change=set_nan), "NaN"),
    "with a tensor less": (lambda: model(change=lambda t: t.pop("head.bias")), "1 missing"),
    "that names a module": (lambda: model(architecture="os:system"), "os:system"),
    "of an unknown architecture": (lambda: model(architecture="skynet"), "no architecture 'skynet'"),
    "of another format": (lambda: model(format=99), "format 99"),
    "with huge arguments": (lambda: model(arguments={"width": 10**9, "depth": 4}), "width"),
    "with unknown arguments": (lambda: model(arguments={"shell": "rm"}), "shell"),
    "with weights from elsewhere": (lambda: model(arguments={"encoder_weights": "/etc/passwd"}), "encoder_weights"),
    "with too many channels": (lambda: model(in_channels=10**12), "in_channels"),
    "with wrong types": (lambda: model(classes=[1, 2]), "classes"),
    "with endless classes": (lambda: model(classes={"names": ["a"] * 70000}), "65534"),
    "with nested JSON": (lambda: save_file({}, "bad.safetensors", metadata={ENTRY: "[" * 100000}), "JSON"),
}

# Faults of data sets in one file: what is made, and what inspect prints with exit code 1. Above the gap it also stops
# a training before it starts.
FILES = {
    "coco: boxes alone": (boxes_only, "none of 2 annotations has an outline", "for detection (boxes)"),
    "coco: a category that is not listed": (lambda: coco(category_id=70000), "70000", "data.ignore"),
    "coco: an outline that is none": (lambda: coco(segmentation="square"), "annotation 1", "cannot be used"),
    "coco: cut short": (lambda: coco(lambda text: text[:-9]), "_annotations.coco.json"),
    "coco: endless brackets": (lambda: coco(lambda text: '{"images": ' + "[" * 10**5), "too deeply"),
    "yolo: names broken": (lambda: yolo(description="train: images/train\nnames: a, b\n"), "names must be a list"),
    "yolo: a list that is a picture": (
        lambda: yolo(description="train: [images/train/0.png]\nnames: [a]\n"), "0.png is a file", "data.yaml, train"),
    "yolo: alias": (lambda: yolo(description="names: &a [x, *a]\ntrain: images/train\n"), "alias"),

    "coco: no outline": (lambda: coco(segmentation=None), "annotation 1 (1.png) has no segmentation", "take it out"),
    "coco: no pixel": (lambda: coco(segmentation=[[1, 1, 9, 9]]), "1.png has 1 object without a pixel (annotation 1)"),
    "coco: a box beside": (lambda: coco(bbox=[12, 9, 1, 1]), "annotation 1", "but its outline lies in"),
    "coco: run lengths": (lambda: coco(segmentation={"size": list(SIZE), "counts": [1, 2]}), "annotation 1", "add up"),
    "coco: a picture missing": (lambda: (coco(), Path("coco/train/1.png").unlink()), "1.png is listed but not there"),
    "coco: a picture cut short": (lambda: (coco(), cut("coco/train/1.png")), "1.png is damaged or cut short"),
    "yolo: boxes": (lambda: yolo("0 0.5 0.5 0.2 0.2"), "1.txt, line 1 is a box"),
    "yolo: pixels": (lambda: yolo("0 12 14 40 14 40 33"), "1.txt, line 1", "Pixels are to be divided"),
    "yolo: a class without a name": (lambda: yolo("7 0.1 0.2 0.5 0.2 0.5 0.7"), "1.txt, line 1 has the class 7"),
    "yolo: no pixel": (lambda: yolo("0 0.5 0.5 0.5 0.5 0.5 0.5"), "1.txt has 1 object without a pixel (line 1)"),
    "yolo: no text": (lambda: (yolo(), huge_png("yolo/labels/train/1.txt")), "1.txt is no UTF-8 text"),
}  # fmt: skip
AT_OPENING = list(FILES)[: list(FILES).index("coco: no outline")]
TRAIN_FILE = ("--set", "data.train=train", "--set", "data.val=train", "--model", "yolact", "--out", "new", *CPU)

CASES = [
    # data sets
    ("inspect: a setting of no use, COCO", coco, ("inspect", "coco", "--set", "suffix=_m"), "COCO has no use"),
    ("inspect: a setting of no use, YOLO", yolo, ("inspect", "yolo", "--set", "kind=ids"), "YOLO has no use"),
    ("convert: nothing left", yolo, ("convert", "yolo", "new", "--to", "coco", "--set", "ignore=[0]"), "leaves none"),
    ("convert: panoptic", coco, ("convert", "coco", "new", "--to", "ids", "--task", "panoptic"), "no panoptic truth"),
    ("convert: class masks as objects", NOTHING, ("convert", "data", "new", "--to", "yolo"), "data"),
    ("inspect: folder missing", NOTHING, ("inspect", "nowhere"), "no folder nowhere"),
    ("inspect: a file", NOTHING, ("inspect", "file"), "file is a file"),
    ("inspect: folder empty", lambda: Path("e").mkdir(), ("inspect", "e"), "e is empty"),
    ("inspect: no split of that task", NOTHING, ("inspect", "data", "--set", "kinds=index"), "kinds"),
    ("inspect: value of the wrong type", NOTHING, ("inspect", "data", "--set", "short_side=big"), "short_side"),
    ("inspect: sheet of another kind", NOTHING, ("inspect", "data", "--sheet", "s.gif"), "s.gif"),
    ("train: nothing there", NOTHING, ("train", "nowhere"), "nowhere"),
    ("train: folder empty", lambda: Path("e").mkdir(), ("train", "e", *CPU), "e is empty"),
    ("evaluate: data missing", NOTHING, ("evaluate", "m.safetensors", "nowhere"), "no folder nowhere"),
    ("evaluate: data a file", NOTHING, ("evaluate", "m.safetensors", "file"), "file is a file"),
    ("evaluate: folder empty", lambda: Path("e").mkdir(), ("evaluate", "m.safetensors", "e"), "e is empty"),
    ("evaluate: no such split", NOTHING, (*EVALUATE, "--split", "dev"), "no split 'dev'; expected train, val"),
    ("evaluate: split without pictures", lambda: (Path(IMAGE).unlink(), Path(IMAGE.replace("0", "1")).unlink()),
     (*EVALUATE, "--split", "test"), "no pictures in split test"),
    ("evaluate: other classes", lambda: Path("data/classes.json").write_text('["red", "green", "cyan"]'),
     EVALUATE, "red, green, cyan"),
    ("evaluate: class table broken", lambda: Path("data/classes.json").write_text("{"), EVALUATE, "classes.json"),
    ("evaluate: unknown --set", NOTHING, (*EVALUATE, "--set", "sufix=_m"), "sufix"),
    ("evaluate: --set without =", NOTHING, (*EVALUATE, "--set", "suffix"), "suffix"),
    ("evaluate: device", NOTHING, ("evaluate", "m.safetensors", "data", "--device", "toaster"), "no device 'toaster'"),
    ("evaluate: out is a file", NOTHING, (*EVALUATE, "--out", "file"), "file is a file"),
    ("evaluate: out below a file", NOTHING, (*EVALUATE, "--out", "file/below"), "file/below"),
    # recipes
    ("train: recipe of no YAML", lambda: Path("r.yaml").write_text("a: [b"), TRAIN, "r.yaml"),
    ("train: recipe of bytes", lambda: Path("r.yaml").write_bytes(bytes(range(256))), TRAIN, "r.yaml"),
    ("train: recipe is a picture", NOTHING, ("train", "a.png"), "a.png"),
    ("train: recipe is empty", lambda: Path("r.yaml").write_text(""), TRAIN, "r.yaml"),
    ("train: recipe is a list", lambda: Path("r.yaml").write_text("[1, 2]"), TRAIN, "r.yaml"),
    ("train: recipe calls code", lambda: Path("r.yaml").write_text("!!python/object/apply:os.system [touch owned]"),
     TRAIN, "r.yaml"),
    ("train: unknown section", lambda: Path("r.yaml").write_text("data: {path: data}\ntrian: {}"), TRAIN, "trian"),
    ("train: unknown entry", lambda: Path("r.yaml").write_text("data: {path: data}\ntrain: {epoch: 3}"), TRAIN,
     "train.epoch"),
    ("train: wrong type", lambda: Path("r.yaml").write_text("data: {path: data}\ntrain: {epochs: many}"), TRAIN,
     "train.epochs"),
    ("train: out of range", NOTHING, (*TRAIN, "--set", "train.learning_rate=-1"), "learning_rate"),
    ("train: unknown --set", NOTHING, (*TRAIN, "--set", "train.epohcs=3"), "epohcs"),
    ("train: --set without =", NOTHING, (*TRAIN, "--set", "train.epochs"), "train.epochs"),
    ("train: unknown model", NOTHING, (*TRAIN, "--model", "unett"), "unett"),
    ("train: model that cannot be imported", NOTHING, (*TRAIN, "--model", "no.such:Thing"), "no.such:Thing"),
    ("train: arguments of the model", NOTHING, (*TRAIN, "--set", "model.arguments={width: wide}"), "width"),
    ("train: unknown loss", NOTHING, (*TRAIN, "--set", "train.loss=magic"), "magic"),
    ("train: unknown preset", NOTHING, (*TRAIN, "--set", "augment.preset=wild"), "wild"),
    ("train: no such split", NOTHING, (*TRAIN, "--set", "data.val=dev"), "dev"),
    ("train: start that is missing", NOTHING, (*TRAIN, "--set", "model.start=no.safetensors"), "no.safetensors"),
    ("train: device", NOTHING, (*TRAIN[:-1], "toaster"), "no device 'toaster'"),
    ("train: out is a file", NOTHING, ("train", "r.yaml", "--out", "file", *CPU), "file is a file"),
    ("train: out below a file", NOTHING, ("train", "r.yaml", "--out", "file/below", *CPU), "file/below"),
    ("train: nothing to resume", NOTHING, (*TRAIN, "--resume"), "new"),
    ("train: a run is there", lambda: (Path("new").mkdir(), Path("new/recipe.yaml").write_text("mine")), TRAIN,
     "new holds", "--out"),
    # prediction
    ("predict: picture missing", NOTHING, ("predict", "m.safetensors", "no.png", "--out", "new"), "no file no.png"),
    ("predict: a text", NOTHING, ("predict", "m.safetensors", "file", "--out", "new"), "file is no picture"),
    ("predict: a list of pictures", lambda: Path("list.txt").write_text("a.png\n"),
     ("predict", "m.safetensors", "list.txt", "--out", "new"), "list.txt is no picture"),
    ("predict: a device", NOTHING, ("predict", "m.safetensors", "/dev/null", "--out", "new"), "/dev/null"),
    ("predict: a folder of that name", lambda: becomes_folder("a.png"), PREDICT, "a.png holds no pictures"),
    ("predict: a folder without pictures", lambda: Path("e").mkdir(),
     ("predict", "m.safetensors", "e", "--out", "new"), "e holds no pictures"),
    ("predict: a pattern without a match", NOTHING, ("predict", "m.safetensors", "x*.jpg", "--out", "new"), "x*.jpg"),
    ("predict: a URL", NOTHING, ("predict", "m.safetensors", "http://x.org/a.png", "--out", "new"), "is a URL"),
    ("predict: truncated", lambda: cut("a.png"), PREDICT, "a.png is damaged or cut short"),
    ("predict: 0 bytes", lambda: Path("a.png").write_bytes(b""), PREDICT, "a.png is empty (0 bytes)"),
    ("predict: 60,000 x 60,000", lambda: huge_png("a.png"), PREDICT, "60,000 x 60,000"),
    ("predict: unknown --save", NOTHING, (*PREDICT, "--save", "labels,video"), "cutouts; got video"),
    ("predict: empty --save", NOTHING, (*PREDICT, "--save", ""), "cutouts; got nothing"),
    ("predict: device", NOTHING, (*PREDICT[:-1], "toaster"), "no device 'toaster'"),
    ("predict: out is a file", NOTHING, ("predict", "m.safetensors", "a.png", "--out", "file", *CPU), "file is a file"),
    ("predict: out below a file", NOTHING, ("predict", "m.safetensors", "a.png", "--out", "file/x", *CPU), "file/x"),
    ("predict: out is the folder of the pictures", NOTHING, ("predict", "m.safetensors", "a.png", "--out", ".", *CPU),
     "would replace the picture a.png"),
    # checkpoints of others
    ("import: missing", NOTHING, ("import", "no.pth", "--as", "new.safetensors"), "no.pth"),
    ("import: a text", NOTHING, ("import", "file", "--as", "new.safetensors"), "file"),
    ("import: a pickle that calls code", lambda: hostile_pickle("x.pkl"),
     ("import", "x.pkl", "--as", "new.safetensors"), "x.pkl"),
    ("import: a checkpoint that calls code", lambda: hostile_checkpoint("x.pth"),
     ("import", "x.pth", "--as", "new.safetensors"), "without running code"),
    ("import: of no publisher", lambda: save_file({"a": torch.zeros(2)}, "x.safetensors"),
     ("import", "x.safetensors", "--as", "new.safetensors"), "no publisher"),
    ("import: of kirie itself", NOTHING, ("import", "m.safetensors", "--as", "new.safetensors"), "m.safetensors"),
    # demo
    ("demo: too few pictures", NOTHING, ("demo", "--out", "new", "--pictures", "2"), "at least 5"),
    ("demo: no epochs", NOTHING, ("demo", "--out", "new", "--pictures", "5", "--epochs", "0", *CPU), "epochs"),
    ("demo: out is a file", NOTHING, ("demo", "--out", "file"), "file"),
    ("demo: data of others", lambda: make_data(Path("new/data")), ("demo", "--out", "new"), "not a demo data set"),
    ("demo: device", NOTHING, ("demo", "--out", "new", "--device", "toaster"), "no device 'toaster'"),
]  # fmt: skip

for fault, (make, *told) in FAULTS.items():
    for command, words, image, mask in (
        ("train", TRAIN, TRAIN_IMAGE, TRAIN_MASK),
        ("evaluate", EVALUATE, IMAGE, MASK),
    ):
        sentence = [part.format(image=image, mask=mask) for part in told]
        CASES.append((f"{command}: {fault}", lambda m=make, i=image, k=mask: m(i, k), words, *sentence))
for fault, (make, told) in MODELS.items():
    for command, words in (("evaluate", ("data",)), ("predict", ("a.png", "--out", "new"))):
        CASES.append((f"{command}: model {fault}", make, (command, "bad.safetensors", *words, *CPU), told, "bad"))


@pytest.mark.parametrize(("make", "words", "told"), [pytest.param(m, w, t, id=n) for n, m, w, *t in CASES])
def test_one_sentence_and_nothing_is_lost(here, kirie_, make, words, told):
    make()
    before = contents(here)
    code, _, err = kirie_(*words)
    assert code == 1
    sentence, *more = err.strip().split("\n")
    assert sentence.startswith("Error: ") and "Traceback" not in err
    longer = "one of these layouts:" in sentence or "not valid YAML" in sentence
    assert not more or longer, "only a list of layouts and a place in a text take more than a line"
    for part in told:
        assert part in sentence
    assert more or sentence.endswith("."), "a whole sentence"
    assert len(sentence) < 600
    after = contents(here)
    assert {path: after.get(path) for path in before} == before
    assert not [path for path in after if path.name.startswith(".")], "nothing half-written"
    assert not Path("owned").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_inspect_tells_every_fault_of_a_data_set(here, kirie_, fault):
    make, *told = FAULTS[fault]
    make(IMAGE, MASK)
    before = contents(here)
    code, out, err = kirie_("inspect", "data", "--no-sheet")
    assert code == 1 and err == "" and "fault:" in out
    assert "mend:" in out or "Save the label file at the size" in out
    for part in told:
        assert part.format(image=IMAGE, mask=MASK) in out
    assert contents(here) == before


@pytest.mark.parametrize("fault", FILES)
def test_inspect_tells_every_fault_of_a_data_set_in_one_file(here, kirie_, fault):
    make, *told = FILES[fault]
    make()
    before = contents(here)
    code, out, err = kirie_("inspect", fault.partition(":")[0], "--no-sheet")
    assert code == 1 and "Traceback" not in err
    assert (out == "" and err.startswith("Error: ")) or (err == "" and "fault:" in out and "mend:" in out)
    for part in told:
        assert part in out + err
    assert contents(here) == before


@pytest.mark.parametrize("fault", AT_OPENING)
def test_what_the_file_shows_stops_a_training_before_it_starts(here, kirie_, fault):
    make, *told = FILES[fault]
    make()
    code, _, err = kirie_("train", fault.partition(":")[0], *TRAIN_FILE)
    assert code == 1 and err.startswith("Error: ") and "Traceback" not in err and err.count("\n") < 4
    for part in told:
        assert part in err
    assert not Path("new").exists()


# A system that refuses to write


@contextmanager
def small_disk(limit):
    """A system that refuses to write files above `limit` bytes, as a full disk refuses."""
    before = resource.getrlimit(LIMITED)
    resource.setrlimit(LIMITED, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(LIMITED, before)


def large_checkpoint():
    state = {name: torch.zeros(2, 3) for name in ("inc.double_conv.0.weight", "outc.weight")}
    torch.save(state, "x.pth")


WRITING = [
    ("inspect", ("inspect", "data"), 2000, "data_sheet.png"),
    ("inspect, JPEG", ("inspect", "data", "--sheet", "s.jpg"), 2000, "s.jpg"),
    ("train", ("train", "r.yaml", "--out", "run", *CPU), 60_000, "run"),
    ("evaluate, JSON", EVALUATE, 100, "report.json"),
    ("evaluate, page", EVALUATE, 4000, "report.html"),
    ("predict, manifest", (*PREDICT, "--save", "labels"), 100, "manifest.jsonl"),
    ("predict, labels", (*PREDICT, "--save", "labels"), 190, "a.png"),
    ("predict, overlay", (*PREDICT, "--save", "overlay"), 500, "a_overlay.jpg"),
    ("predict, scores", (*PREDICT, "--save", "scores"), 500, "a_scores.npz"),
]


@pytest.mark.parametrize(("words", "limit", "where"), [c[1:] for c in WRITING], ids=[c[0] for c in WRITING])
def test_a_full_disk(here, kirie_, words, limit, where):
    earlier = [Path("data_sheet.png"), Path("s.jpg"), Path("report.html"), Path("report.json")]
    earlier += [Path("new", name) for name in ("a.png", "a_overlay.jpg", "a_scores.npz")]
    Path("new").mkdir()
    for path in earlier:
        path.write_bytes(b"an earlier one")
    with small_disk(limit):
        code, _, err = kirie_(*words)
    assert code == 1 and "Traceback" not in err
    (sentence,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert where in sentence and "space" in sentence
    refused = [path for path in earlier if path.name == where]
    assert all(path.read_bytes() == b"an earlier one" for path in refused)
    assert not [path for path in here.rglob(".*") if path.is_file()], "nothing half-written"


def test_a_folder_that_stands_where_a_file_shall_go(here, kirie_):
    for name, words in (
        ("data_sheet.png", ("inspect", "data")),
        ("report.json", EVALUATE),
        ("new/a.png", PREDICT),
    ):
        Path(name).mkdir(parents=True)
        code, _, err = kirie_(*words)
        assert code == 1 and name in err and err.count("\n") == 1 and err.startswith("Error: ")


def test_binary_model_for_three_classes(here, kirie_):
    kirie.save(colour_unet(Classes(("sky", "sea"))), "two.safetensors")
    code, _, err = kirie_("evaluate", "two.safetensors", "data", *CPU)
    assert code == 1 and "sky, sea" in err and "red, green, blue" in err


def test_a_bad_picture_among_good_ones_costs_only_itself(here, kirie_):
    for index in range(3):
        add_sample(Path("more"), "", f"p{index}", painted(blobs(SIZE, seed=index)), blobs(SIZE, seed=index))
    huge_png("more/images/p1.png")
    code, out, err = kirie_("predict", "m.safetensors", "more/images", "--out", "new", "--save", "labels", *CPU)
    assert code == 1 and out.startswith("2 predicted into new, 1 failed, ") and err.count("\n") == 1 and "p1.png" in err
    assert sorted(p.name for p in Path("new").glob("*.png")) == ["p0.png", "p2.png"]
