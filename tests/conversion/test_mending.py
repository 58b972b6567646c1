import csv
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from tiny import run_cli

import kirie
from kirie.data import open_dataset
from kirie.data.inspect import inspect_dataset
from kirie.errors import KirieError


def scene(seed, size=(60, 80)):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random((*size, 3)), (6, 6, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def add(root, split, name, image, kind, labels):
    for folder, array in (("images", image), (kind, labels)):
        path = root / folder / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def fixes_of(folder):
    return [(row["picture"].split("/")[-1], row["split"], row["fix"]) for row in
            csv.DictReader((folder / "fixes.csv").read_text().splitlines())]  # fmt: skip


@pytest.fixture
def maps(tmp_path):
    """Maps with all that can be mended: unknown ids, a broken picture, a copy and a brightened copy in two splits."""
    root = tmp_path / "in"
    labels = (np.arange(60 * 80).reshape(60, 80) // 1600).astype(np.uint8)
    for number in range(4):
        add(root, "train", f"t{number}", scene(number), "masks", labels)
    strange = labels.copy()
    strange[:3, :5] = 9
    add(root, "train", "strange", scene(10), "masks", strange)
    add(root, "train", "broken", scene(11), "masks", labels)
    (root / "images" / "train" / "broken.png").write_bytes(b"no picture")
    add(root, "val", "copy", scene(2), "masks", labels)
    add(root, "val", "brighter", (scene(3)[:, ::-1] * 0.7 + 40).astype(np.uint8), "masks", labels)
    add(root, "val", "v", scene(20), "masks", labels)
    (root / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c"], "ignore_index": 255}))
    return root


def test_a_mended_copy_has_no_faults_and_the_source_is_as_it_was(maps, tmp_path, capsys):
    before = {path: path.read_bytes() for path in maps.rglob("*") if path.is_file()}
    assert not inspect_dataset(maps).ok
    status, out, _ = run_cli(capsys, "convert", maps, tmp_path / "out", "--fix")
    assert status == 0 and "4 fixes" in out
    assert {path: path.read_bytes() for path in maps.rglob("*") if path.is_file()} == before
    assert sorted(fixes_of(tmp_path / "out")) == [
        ("broken.png", "train", "left out: cannot be used"),
        ("strange.png", "train", "unknown ids made void"),
        ("t2.png", "train", "left out: another split has it"),
        ("t3.png", "train", "left out: another split has it"),
    ]
    found = inspect_dataset(tmp_path / "out")
    assert found.ok and found.splits == {"train": 3, "val": 3}
    assert not [fault for fault in found.faults if "splits" in fault.kind]
    train = open_dataset(tmp_path / "out", "train")
    strange = next(sample for sample in (train[index] for index in range(3)) if "strange" in sample.name)
    assert (strange.truth.labels[:3, :5] == 255).all() and (strange.truth.labels == 255).sum() == 15
    text = (tmp_path / "out" / "fixes.csv").read_text()
    assert "9: 15 pixels" in text and "mirrored, correlation" in text


def test_objects_twice_and_stray_pixels(tmp_path):
    rows = []
    for number, box in enumerate([(4, 4, 20, 20), (4, 4, 20, 20), (30, 30, 20, 20), (70, 5, 2, 1)]):
        x, y, w, h = box
        rows.append({
            "id": number + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": list(box), "area": w * h,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        })  # fmt: skip
    (tmp_path / "in" / "images").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "in" / "images" / "a.png"), scene(1))
    facts = {"images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}], "annotations": rows,
             "categories": [{"id": 1, "name": "cell"}]}  # fmt: skip
    (tmp_path / "in" / "instances.json").write_text(json.dumps(facts))
    done = kirie.convert(tmp_path / "in", tmp_path / "out", fix=True)
    assert done.format == "coco" and [fix.fix for fix in done.fixes] == [
        "stray pixels taken out", "objects stated twice taken out"
    ]  # fmt: skip
    assert len(open_dataset(tmp_path / "out")[0].truth) == 2


def test_small_objects_among_small_objects_stay(tmp_path):
    ids = np.zeros((60, 80), np.uint16)
    for number in range(6):
        ids[5 + 8 * number : 7 + 8 * number, 10:13] = number + 1
    add(tmp_path / "in", "train", "a", scene(1), "ids", ids)
    done = kirie.convert(tmp_path / "in", tmp_path / "out", fix=True)
    assert done.format == "ids" and not done.fixes and done.objects == 6
    assert (tmp_path / "out" / "fixes.csv").read_text() == "picture,split,fix,detail\n"


def test_without_fix_a_format_must_be_named_and_faults_stop(maps, tmp_path, capsys):
    with pytest.raises(KirieError, match="Name the format"):
        kirie.convert(maps, tmp_path / "out")
    with pytest.raises(KirieError, match="Nothing was written"):
        kirie.convert(maps, tmp_path / "out", "masks")
    status, _, err = run_cli(capsys, "convert", maps, maps / "inner", "--fix")
    assert status == 1 and "lies in the data set" in err and not (maps / "inner").exists()


def test_equal_files_leak_however_plain_and_pictures_of_other_channels_are_compared(tmp_path, capsys):
    root, labels = tmp_path / "in", np.zeros((60, 80), np.uint8)
    for split, number in (("train", 0), ("val", 1)):
        add(root, split, f"plain{number}", np.full((60, 80), 90, np.uint8), "masks", labels)
        add(root, split, f"own{number}", scene(number)[..., 0], "masks", labels)
    (root / "classes.json").write_text(json.dumps({"classes": ["a", "b"]}))
    status, _, _ = run_cli(capsys, "convert", root, tmp_path / "out", "--fix", "--set", "channels=1")
    assert status == 0 and fixes_of(tmp_path / "out") == [("plain0.png", "train", "left out: another split has it")]
