"""Training of models that find objects, from files to the run's folder, and exact resuming."""

import csv
import json

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file

from kirie.errors import KirieError
from kirie.models.file import load
from kirie.prediction.evaluate import evaluate
from kirie.training.fit import train
from tests.models.contract import SMALL

SIZE = (64, 80)
INSTANCE = ("mask_rcnn", "yolact", "solov2")


@pytest.fixture
def data(tmp_path):
    """Eight pictures with 0 to 3 bright discs of two classes, as a COCO data set with two splits and a crowd."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        images, annotations = [], []
        (tmp_path / "discs" / "images" / split).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 60, (*SIZE, 3), np.uint8)
            for index in range(number % 4):
                radius, x, y = 7 + 3 * (index % 2), 14 + 24 * index, int(rng.integers(14, 50))
                cv2.circle(image, (x, y), radius, (220, 90, 90) if index % 2 else (90, 220, 90), -1)
                ring = cv2.ellipse2Poly((x, y), (radius, radius), 0, 0, 360, 20).ravel().tolist()
                crowd = {"iscrowd": 1, "segmentation": {"size": list(SIZE), "counts": [0, 64 * 4, 64 * 76]}}
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 3 + 4 * (index % 2),
                        "bbox": [x - radius, y - radius, 2 * radius, 2 * radius],
                        "area": 3.14 * radius**2,
                        **({"iscrowd": 0, "segmentation": [ring]} if (number, index) != (3, 2) else crowd),
                    }
                )
            cv2.imwrite(str(tmp_path / "discs" / "images" / split / f"{number}.png"), image)
            images.append({"id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]})
        categories = [{"id": 3, "name": "small"}, {"id": 7, "name": "large"}]
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        (tmp_path / "discs" / f"instances_{split}.json").write_text(text)
    return tmp_path / "discs"


def changes(name, *more):
    return (
        f"model.arguments={json.dumps(SMALL[name])}",
        "train.patch=[48, 48]",
        "train.batch_size=2",
        "train.epochs=2",
        "train.workers=0",
        "train.precision=fp32",
        "train.samples_every=2",
        *more,
    )


@pytest.mark.parametrize("name", INSTANCE)
def test_from_files_to_a_model_that_is_measured(name, data, tmp_path):
    run = train(data, model=name, changes=changes(name), out=tmp_path / "run", device="cpu")
    rows = list(csv.DictReader((run.folder / "history.csv").read_text().splitlines()))
    assert run.finished and len(rows) == 2
    assert {"loss_mask", "val_ap", "val_ap50", "val_matching_accuracy"} <= set(rows[0])
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    model = load(run.folder)
    assert model.classes.names == ("small", "large")
    report = evaluate(model, data, split="val", out=tmp_path / "report", device="cpu")
    assert 0 <= report.score <= 1
    assert (tmp_path / "report" / "report.html").stat().st_size > 1000


def test_a_killed_training_goes_on_as_if_it_had_not_been(data, tmp_path, monkeypatch):
    whole = train(data, model="yolact", changes=changes("yolact"), out=tmp_path / "whole", device="cpu")

    from kirie.training.trainer import Trainer

    step, seen = Trainer._step, []

    def stop(self, *given):
        seen.append(1)
        if len(seen) == 5:  # in the second epoch
            raise KirieError("killed")
        return step(self, *given)

    monkeypatch.setattr(Trainer, "_step", stop)
    with pytest.raises(KirieError, match="killed"):
        train(data, model="yolact", changes=changes("yolact"), out=tmp_path / "cut", device="cpu")
    monkeypatch.setattr(Trainer, "_step", step)
    cut = train(data, model="yolact", changes=changes("yolact"), out=tmp_path / "cut", resume=True, device="cpu")
    one, other = (load_file(run.folder / "model.safetensors") for run in (whole, cut))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key].numpy(), other[key].numpy()) for key in one)


def test_a_file_is_a_data_set_too(data, tmp_path):
    (data / "instances_val.json").unlink()
    run = train(
        data / "instances_train.json",
        model="yolact",
        changes=changes("yolact", "data.train=train", "data.val=train", "train.epochs=1"),
        out=tmp_path / "run",
        device="cpu",
    )
    assert run.finished


@pytest.mark.parametrize("entry", ["train.loss=ce", "train.class_weights=balanced"])
def test_losses_of_semantic_models_are_refused(entry, data, tmp_path):
    with pytest.raises(KirieError, match="yolact has losses of its own"):
        train(data, model="yolact", changes=changes("yolact", entry), out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("*.yaml"))


def test_labels_of_objects_choose_a_model_that_finds_them(data, tmp_path, capsys):
    small = ("train.epochs=1", "train.patch=[48, 48]", "train.batch_size=2", "train.workers=0", "train.precision=fp32")
    run = train(data, changes=small, out=tmp_path / "objects", device="cpu")
    assert load(run.folder).task == "instance"
    assert "--model unet" in capsys.readouterr().err
    for name, chosen in (("unet", small), (None, (*small, "data.task=semantic"))):
        run = train(data, model=name, changes=chosen, out=tmp_path / f"pixels-{name}", device="cpu")
        assert load(run.folder).task == "semantic"
