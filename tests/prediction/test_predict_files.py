import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tiny import CLASSES, SIZE, blobs, colour_unet, painted, random_unet

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.models.parts.semantic import SemanticRaw
from kirie.prediction.manifest import MANIFEST
from kirie.prediction.predict_files import find_images, predict_files
from kirie.prediction.predictor import Predictor
from kirie.results import SemanticMap


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(path, seed=0, size=SIZE):
    """Writes a picture and returns its labels."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = blobs(size, seed=seed)
    Image.fromarray(painted(labels, seed)).save(path)
    return labels


def run(inputs, out="out", model=None, kinds=("labels",), scores=False):
    predictor = Predictor(model or colour_unet(), device="cpu", scores=scores)
    return list(predict_files(predictor, inputs, out, kinds=kinds))


def files_in(folder):
    """All files but the manifest of what was done."""
    names = (p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())
    return sorted(name for name in names if name != MANIFEST)


@contextmanager
def small_disk(limit):
    """A system that refuses to write files above `limit` bytes (EFBIG), as a full disk refuses (ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Which pictures


def test_files_folders_and_patterns_in_their_order(here):
    for name in ("b.png", "a.JPG", "c.tif", "folder/2.png", "folder/1.webp", "folder/deep/3.png", "x1.png", "x2.png"):
        picture(name)
    for name in ("folder/notes.txt", "folder/.hidden.png", "folder/._1.webp"):
        Path(name).write_text("no picture")
    found = find_images(["c.tif", "folder", "x*.png", Path("a.JPG"), "b.png"])
    assert [p.as_posix() for p in found] == "c.tif folder/1.webp folder/2.png x1.png x2.png a.JPG b.png".split()
    assert [p.as_posix() for p in find_images(["**/3.png"])] == ["folder/deep/3.png"]


def test_a_file_named_twice_is_kept_once(here):
    picture("a.png")
    picture("folder/b.png")
    named = ["a.png", "./a.png", here / "a.png", "folder/../a.png", "*.png", "folder", "folder/b.png"]
    assert find_images(named) == [Path("a.png"), Path("folder/b.png")]
    Path("link").symlink_to("folder")
    Path("other.png").symlink_to("a.png")
    assert find_images(["folder", "link"]) == [Path("folder/b.png")]
    assert find_images(["a.png", "other.png"]) == [Path("a.png"), Path("other.png")], "a link has its own name"


@pytest.mark.parametrize("name", ["a[1].png", "what?.png", "2*3.png", "[x]/a.png", "~a.png", "~/a.png"])
def test_names_that_look_like_patterns_are_files_where_there_are_such(here, name, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    picture(name.replace("~/", ""))
    picture("a1.png")
    assert [p.name for p in find_images([name])] == [Path(name).name]
    assert run([name])[0].error is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://example.org/a.png", "URL"),
        ("s3://bucket/a.png", "URL"),
        ("file:///a.png", "URL"),
        ("x*.png", "No file matches"),
        ("empty", "no pictures"),
        ("only-text", "no pictures"),
    ],
)
def test_inputs_that_mean_nothing(here, text, told):
    picture("good.png")
    Path("empty").mkdir()
    Path("only-text").mkdir()
    Path("only-text/a.txt").write_text("a")
    with pytest.raises(KirieError, match=told) as caught:
        predict_files(Predictor(colour_unet(), device="cpu"), ["good.png", text], "out")
    assert text in str(caught.value) and not Path("out").exists()


# What becomes of them


def test_batches_keep_the_order_and_a_bad_file_spoils_no_batch(here, monkeypatch):
    labels = {f"{i}.png": picture(f"{i}.png", i) for i in range(7)}
    (here / "2.png").write_bytes(b"broken")
    predictor = Predictor(colour_unet(), device="cpu", batch_size=3)
    real, sizes = Predictor._run, []

    def lacking(self, pictures):
        sizes.append(len(pictures))
        if any(np.array_equal(p, painted(labels["4.png"], 4)) for p in pictures):
            raise KirieError("too large")
        return real(self, pictures)

    monkeypatch.setattr(Predictor, "_run", lacking)
    outcomes = list(predict_files(predictor, ["*.png"], "out", kinds=["labels"]))
    assert [o.path.name for o in outcomes] == sorted(labels)
    assert [o.path.name for o in outcomes if o.error] == ["2.png", "4.png"] and outcomes[4].error == "too large"
    assert sizes == [2, 3, 1, 1, 1, 1]
    for outcome in outcomes:
        if not outcome.error:
            assert np.array_equal(np.asarray(Image.open(outcome.written[0])), labels[outcome.path.name])


def test_bad_files_are_told_and_the_rest_is_done_in_order(here):
    truths = {f"{i}.png": picture(f"{i}.png", i, size=(20 + i, 30)) for i in range(6)}
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(Path("5.png").read_bytes()[:200])
    Path("empty.png").write_bytes(b"")
    tifffile.imwrite("bands.tif", np.zeros((9, 9, 7), np.uint8), photometric="minisblack", planarconfig="contig")
    order = [
        "0.png",
        "missing.png",
        "1.png",
        "text.png",
        "2.png",
        "cut.png",
        "3.png",
        "empty.png",
        "4.png",
        "bands.tif",
        "5.png",
    ]
    outcomes = run(order)
    assert [o.path.name for o in outcomes] == order
    for outcome in outcomes:
        if outcome.path.name in truths:
            assert outcome.error is None
            assert np.array_equal(np.asarray(Image.open(outcome.written[0])), truths[outcome.path.name])
        else:
            assert outcome.path.name in outcome.error and not outcome.written and "\n" not in outcome.error
    assert files_in("out") == sorted(truths)


def test_nothing_is_predicted_before_it_is_asked_for(here):
    for i in range(30):
        picture(f"{i:02d}.png", i)
    outcomes = predict_files(Predictor(colour_unet(), device="cpu"), ["*.png"], "out", kinds=["labels"])
    assert not Path("out").exists()
    next(outcomes)
    next(outcomes)
    outcomes.close()
    assert files_in("out") == ["00.png", "01.png", "02.png"], "one is written while the next is predicted"


def test_same_names_do_not_overwrite_each_other(here):
    paths = ["a/x.png", "b/x.png", "b/x.jpg", "c/b/x.png", "b_x.png", "x_2.png", "d/X.png", "e.f.png", "e.png"]
    truths = {path: picture(path, i) for i, path in enumerate(paths) if not path.endswith("jpg")}
    picture("b/x.jpg", 99)
    outcomes = run(paths, kinds=("labels", "overlay"))
    written = [w for o in outcomes for w in o.written]
    assert len({w.name.casefold() for w in written}) == len(written) == 2 * len(paths)
    for path, outcome in zip(paths, outcomes, strict=True):
        if path in truths:
            assert np.array_equal(np.asarray(Image.open(outcome.written[0])), truths[path])
    assert outcomes[0].written[0].name == "x.png" and outcomes[1].written[0].name == "b_x.png"


def test_a_result_never_replaces_a_picture(here):
    for place in ("photos/a.png", "photos/b.png"):
        picture(place)
    before = {name: Path("photos", name).read_bytes() for name in ("a.png", "b.png")}
    predictor = Predictor(colour_unet(), device="cpu", scores=True)
    for out in ("photos", "./photos/", here / "photos"):
        with pytest.raises(KirieError, match=r"would replace the picture .*a\.png"):
            predict_files(predictor, ["photos"], out)
    assert {name: Path("photos", name).read_bytes() for name in before} == before and len(files_in("photos")) == 2
    outcomes = list(predict_files(predictor, ["photos"], "photos", kinds=["scores"]))
    assert [o.error for o in outcomes] == [None, None], "other names may stand beside the pictures"


def test_earlier_results_are_replaced(here):
    picture("a.png", 1)
    run(["a.png"])
    truth = picture("a.png", 2)
    run(["a.png"])
    assert np.array_equal(np.asarray(Image.open("out/a.png")), truth) and files_in("out") == ["a.png"]


@pytest.mark.parametrize("kinds", [["maps"], ["labels", "gif", "Overlay"], []])
def test_unknown_kinds(here, kinds):
    picture("a.png")
    with pytest.raises(
        KirieError, match="labels, zarr, overlay, scores, ids, csv, coco, yolo, geojson, cutouts;"
    ) as caught:
        predict_files(Predictor(colour_unet(), device="cpu"), ["a.png"], "out", kinds=kinds)
    assert all(kind in str(caught.value) for kind in kinds if kind != "labels") and not Path("out").exists()


@pytest.mark.parametrize("kind", ["ids", "csv", "coco", "yolo", "cutouts"])
def test_kinds_of_objects_are_not_for_a_semantic_model(here, kind):
    picture("a.png")
    with pytest.raises(KirieError, match=f"'semantic' cannot be saved as {kind}; use labels, zarr, overlay, scores"):
        predict_files(Predictor(colour_unet(), device="cpu"), ["a.png"], "out", kinds=["labels", kind])
    assert not Path("out").exists()


def test_the_usual_kinds(here):
    picture("a.png")
    (outcome,) = predict_files(Predictor(colour_unet(), device="cpu"), ["a.png"], "out")
    assert [w.name for w in outcome.written] == ["a.png", "a_overlay.jpg"] and files_in("out") == [
        "a.png",
        "a_overlay.jpg",
    ]


def test_out_that_is_a_file_and_scores_that_are_not_kept(here):
    picture("a.png")
    Path("out").write_text("mine")
    predictor = Predictor(colour_unet(), device="cpu")
    with pytest.raises(KirieError, match="is a file"):
        predict_files(predictor, ["a.png"], "out")
    assert Path("out").read_text() == "mine"
    with pytest.raises(KirieError, match="scores=True"):
        predict_files(predictor, ["a.png"], "new", kinds=["scores"])


# What is written


class Fixed(torch.nn.Module):
    """A model that gives one label map, whatever it sees."""

    task, cleanup = "semantic", None

    def __init__(self, labels, classes):
        super().__init__()
        self.in_channels, self.classes, self.inputs = 3, classes, colour_unet().inputs
        self.labels = labels

    def forward(self, images):
        return SemanticRaw(images)

    def decode(self, raw, sizes, *, scores=False):
        return [SemanticMap(self.labels, self.classes) for _ in sizes]


def labels_file(labels, classes):
    size = labels.shape
    picture("a.png", size=size)
    (outcome,) = run(["a.png"], model=Fixed(labels, classes))
    assert outcome.error is None
    return Image.open(outcome.written[0])


def test_label_files_hold_the_ids_and_colours_of_the_data_set(here):
    classes = Classes(
        ("sky", "sea", "sand"), ((1, 2, 3), (0, 90, 200), (250, 240, 100)), ids=(7, 0, 200), void_ids=(99,)
    )
    labels = np.array([[0, 1, 2], [255, 0, 1]], np.uint8)
    image = labels_file(labels, classes)
    assert image.mode == "P" and np.array_equal(np.asarray(image), [[7, 0, 200], [99, 7, 0]])
    colors = np.asarray(image.convert("RGB"))
    assert colors[0].tolist() == [[1, 2, 3], [0, 90, 200], [250, 240, 100]]
    back, unknown = classes.from_file_ids(np.asarray(image))
    assert np.array_equal(back, labels) and not unknown


@pytest.mark.parametrize("classes", [Classes.numbered(300), Classes(("a", "b", "c"), ids=(1, 2, 1000))])
def test_ids_above_255_take_16_bits_in_every_file(here, classes):
    few = np.zeros((5, 6), np.int32 if len(classes) > 255 else np.uint8)
    many = few.copy()
    many[0] = len(classes) - 1
    for labels in (few, many):
        image = labels_file(labels, classes)
        assert np.asarray(image).dtype == np.uint16
        assert np.array_equal(np.asarray(image), np.array(classes.ids)[labels])


def test_256_classes_fit_into_8_bits(here):
    labels = np.arange(256, dtype=np.int32).reshape(16, 16)
    image = labels_file(labels, Classes.numbered(256))
    assert image.mode == "P" and np.array_equal(np.asarray(image), labels)


def test_scores_are_the_probabilities(here):
    picture("a.png", size=(20, 30))
    model = random_unet()
    (outcome,) = run(["a.png"], model=model, kinds=("scores", "labels"), scores=True)
    assert [w.name for w in outcome.written] == ["a_scores.npz", "a.png"]
    with np.load(outcome.written[0], allow_pickle=False) as saved:
        assert saved["classes"].tolist() == list(CLASSES.names)
        scores = saved["scores"]
    assert scores.shape == (3, 20, 30) and scores.dtype == np.float16
    pixels = torch.from_numpy(np.array(Image.open("a.png"))).permute(2, 0, 1)[None] / 255
    np.testing.assert_allclose(scores, model(pixels).logits.detach().softmax(1)[0].numpy(), atol=1e-3)


def test_an_overlay_shows_the_picture_with_its_classes(here):
    truth = picture("a.png", size=(120, 160))
    (outcome,) = run(["a.png"], kinds=("overlay",))
    overlay = np.asarray(Image.open(outcome.written[0]))
    assert outcome.written == (Path("out/a_overlay.jpg"),)
    assert overlay.shape[1:] == (160, 3) and overlay.shape[0] > 120, "a strip with the names stands below"
    painted_red = overlay[:120][truth == 0].mean(0) - np.asarray(Image.open("a.png"))[truth == 0].mean(0)
    tint = np.array(CLASSES.colors[0]) - np.asarray(Image.open("a.png"))[truth == 0].mean(0)
    assert painted_red @ tint > 0.2 * (tint @ tint)


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_pictures_of_other_channels_are_written_too(here, channels):
    bands = np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8)
    tifffile.imwrite(
        "a.tif", bands.squeeze(), photometric="minisblack", planarconfig="contig" if channels > 1 else None
    )
    (outcome,) = run(["a.tif"], model=random_unet(3, in_channels=channels), kinds=("labels", "overlay"))
    assert outcome.error is None and len(outcome.written) == 2


# A system that refuses


def test_a_full_disk_is_told_for_the_file_and_the_rest_is_done(here):
    picture("large.png", size=(300, 400))
    for name in ("small.png", "small2.png"):
        picture(name, size=(8, 8))
    run(["large.png"], kinds=("labels",))
    before = Path("out/large.png").read_bytes()
    picture("large.png", seed=5, size=(300, 400))
    with small_disk(1500):
        outcomes = run(["small.png", "large.png", "small2.png"])
    assert [o.error is None for o in outcomes] == [True, False, True]
    assert "out/large.png" in outcomes[1].error and "space" in outcomes[1].error and not outcomes[1].written
    assert Path("out/large.png").read_bytes() == before, "the earlier file stays whole"
    assert files_in("out") == ["large.png", "small.png", "small2.png"], "nothing half-written is left"


@pytest.mark.parametrize("kind", ["labels", "overlay", "scores"])
def test_nothing_half_written_of_any_kind(here, kind):
    picture("a.png", size=(200, 300))
    with small_disk(600):
        (outcome,) = run(["a.png"], kinds=(kind,), scores=True)
    assert outcome.error and not outcome.written and files_in("out") == []


def test_what_was_written_before_the_disk_was_full_is_named(here):
    picture("a.png", size=(200, 300))
    run(["a.png"])
    with small_disk(os.path.getsize("out/a.png")):
        (outcome,) = run(["a.png"], kinds=("labels", "overlay"))
    assert outcome.written == (Path("out/a.png"),) and "a_overlay.jpg" in outcome.error
