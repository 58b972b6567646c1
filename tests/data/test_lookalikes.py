import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from tiny import run_cli

from kirie.data.inspect import inspect_dataset
from kirie.data.lookalikes import WAYS, Lookalikes


def scene(seed, size=(120, 160)):
    """A smooth picture (H, W, 3) of some contrast, unlike that of any other seed."""
    noise = np.random.default_rng(seed).random((*size, 3))
    smooth = ndimage.gaussian_filter(noise, (9, 9, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def jpeg(image, quality=40):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


CHANGES = {
    "resized": (lambda image: cv2.resize(image, (90, 70), interpolation=cv2.INTER_AREA), ""),
    "compressed": (jpeg, ""),
    "brightened": (lambda image: (image * 0.6 + 60).astype(np.uint8), ""),
    "grey": (lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, 2), ""),
    "mirrored": (lambda image: np.ascontiguousarray(image[:, ::-1]), "mirrored"),
    "upside down": (lambda image: np.ascontiguousarray(image[::-1]), "upside down"),
    "turned": (lambda image: np.rot90(image).copy(), "turned by 90 degrees"),
    "turned twice": (lambda image: np.rot90(image, 2).copy(), "turned by 180 degrees"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_copy_is_found_among_many(name):
    change, way = CHANGES[name]
    seen = Lookalikes()
    for seed in range(60):
        seen.add(f"{seed}", "train", scene(seed))
    for seed in range(60, 90):
        seen.add(f"{seed}", "val", scene(seed))
    seen.add("copy", "val", change(scene(17)))
    pairs = [(seen.files[a], seen.files[b], WAYS[how]) for a, b, how, _ in seen.pairs()]
    assert pairs == [("17", "copy", way)]


def test_copies_within_a_split_and_plain_pictures_are_no_matter():
    seen = Lookalikes()
    for name, split, image in (
        ("a", "train", scene(1)), ("b", "train", scene(1)), ("c", "", scene(1)),
        ("d", "train", np.full((40, 40, 3), 7, np.uint8)), ("e", "val", np.full((40, 40, 3), 7, np.uint8)),
        ("f", "val", scene(2)),
    ):  # fmt: skip
        seen.add(name, split, image)
    assert seen.files == ["a", "b", "f"] and not list(seen.pairs())


def test_a_picture_is_told_once_with_the_one_it_is_most_like(tmp_path):
    seen = Lookalikes()
    for name, split, image in (
        ("a", "train", scene(1)), ("b", "train", (scene(1) * 0.4 + 90).astype(np.uint8)),
        ("c", "val", jpeg(scene(1), 90)),
    ):  # fmt: skip
        (tmp_path / name).write_text(name)
        seen.add(str(tmp_path / name), split, image)
    assert len(list(seen.pairs())) == 2
    [fault] = seen.faults()
    assert f"{tmp_path / 'a'} (train) and {tmp_path / 'c'} (val)" in fault.what


def test_channels_of_any_number():
    seen = Lookalikes()
    seen.add("a", "train", scene(1)[..., :1])
    seen.add("b", "val", np.concatenate([scene(1), scene(1)], 2))
    assert len(list(seen.pairs())) == 1


def test_inspecting_tells(tmp_path, capsys):
    for split, name, image in (
        ("train", "a", scene(1)), ("train", "b", scene(2)), ("val", "c", jpeg(scene(1))), ("val", "d", scene(2))
    ):  # fmt: skip
        for kind, array in (("images", image), ("masks", (image[..., 0] > 128).astype(np.uint8))):
            path = tmp_path / kind / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    kinds = [fault.kind for fault in inspect_dataset(tmp_path).faults]
    assert kinds.count("pictures in two splits look alike") == 1, "those of equal bytes are told as such"
    assert kinds.count("one picture in two splits") == 1
    _, out, _ = run_cli(capsys, "inspect", tmp_path, "--no-sheet")
    assert "a.png (train) and" in out and "correlation 0.9" in out and "take it out of one split" in out
