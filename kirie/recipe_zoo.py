"""The recipes that come with kirie, by name: what each learns, from which data, and what its counterpart reached.

The files are in `kirie/recipes/`, NAME.yaml. `kirie train NAME` trains by one, `kirie models --recipes NAME` prints it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from kirie.errors import KirieError
from kirie.reading.strict_yaml import read_yaml

HOME = Path(__file__).parent / "recipes"
_ZOO = "MODEL_ZOO.md of detectron2"
_COCO = "COCO 2017: train2017/, val2017/, annotations/instances_{train,val}2017.json"
_PANOPTIC = "COCO 2017 panoptic: train2017/, val2017/, annotations/panoptic_{train,val}2017.json with their PNG folders"
_DEMO = "the demo's pictures, made by `kirie demo`"
_NUCLEI = "BBBC038 (Data Science Bowl 2018), stage 1: a folder per picture"
_STREET = "CamVid at 480 x 360, 11 classes: images and index masks in folders"
_OURS = "benchmarks/README.md, by kirie from random weights"


@dataclass(frozen=True)
class Entry:
    """What is known of a recipe beyond its file.

    Attributes:
        title: what it trains.
        task: the truth that it learns.
        data: what the recipe expects in its `data.path`.
        counterpart: the configuration of another project whose settings it has; '' for none.
        score: what the counterpart reached, or without one this recipe; an anchor to compare with. '' where unknown.
        source: where that score is stated.
    """

    title: str
    task: str
    data: str
    counterpart: str = ""
    score: str = ""
    source: str = ""


RECIPES: dict[str, Entry] = {
    "coco/mask_rcnn_r50_fpn_1x": Entry(
        "Mask R-CNN, ResNet-50 FPN, 12 epochs", "instance", _COCO,
        "detectron2 mask_rcnn_R_50_FPN_1x", "mask AP 35.2, box AP 38.6", _ZOO,
    ),
    "coco/mask_rcnn_r50_fpn_3x": Entry(
        "Mask R-CNN, ResNet-50 FPN, 37 epochs", "instance", _COCO,
        "detectron2 mask_rcnn_R_50_FPN_3x", "mask AP 37.2, box AP 41.0", _ZOO,
    ),
    "coco/panoptic_fpn_r50_1x": Entry(
        "Panoptic FPN, ResNet-50, 12 epochs", "panoptic", _PANOPTIC,
        "detectron2 panoptic_fpn_R_50_1x", "PQ 39.4, mask AP 34.7, box AP 37.6", _ZOO,
    ),
    "coco/panoptic_fpn_r50_3x": Entry(
        "Panoptic FPN, ResNet-50, 37 epochs", "panoptic", _PANOPTIC,
        "detectron2 panoptic_fpn_R_50_3x", "PQ 41.5, mask AP 36.5, box AP 40.0", _ZOO,
    ),
    "coco/semantic_fpn_r50_1x": Entry(
        "Semantic FPN, ResNet-50, 12 epochs", "semantic", _PANOPTIC, "detectron2 semantic_R_50_FPN_1x"
    ),
    "demo/panoptic_fpn": Entry("grounds and single coins, Panoptic FPN", "panoptic", _DEMO, "", "PQ 76.8", _OURS),
    "demo/unet": Entry("grounds and coins, U-Net", "semantic", _DEMO, "", "mIoU 0.927", _OURS),
    "demo/yolact": Entry("single coins, YOLACT", "instance", _DEMO, "", "mask AP 64.8", _OURS),
    "nuclei/mask_rcnn": Entry("single nuclei, Mask R-CNN", "instance", _NUCLEI),
    "nuclei/solov2": Entry("single nuclei, SOLOv2", "instance", _NUCLEI),
    "nuclei/unet": Entry("nuclei against background, U-Net", "semantic", _NUCLEI, "", "mIoU 0.889", _OURS),
    "nuclei/unet_objects": Entry("single nuclei, U-Net and watershed", "semantic", _NUCLEI),
    "nuclei/yolact": Entry(
        "single nuclei, YOLACT", "instance", _NUCLEI, "", "mask AP 39.2, matching accuracy 0.623", _OURS
    ),
    "street/deeplabv3": Entry("street scenes, DeepLabV3", "semantic", _STREET),
    "street/deeplabv3plus": Entry("street scenes, DeepLabV3+", "semantic", _STREET),
    "street/fcn": Entry("street scenes, FCN", "semantic", _STREET),
    "street/hrnet": Entry("street scenes, HRNet", "semantic", _STREET),
    "street/lraspp": Entry("street scenes, LR-ASPP", "semantic", _STREET),
    "street/pspnet": Entry("street scenes, PSPNet", "semantic", _STREET),
    "street/segformer": Entry("street scenes, SegFormer", "semantic", _STREET),
    "street/semantic_fpn": Entry("street scenes, Semantic FPN", "semantic", _STREET),
    "street/unet": Entry("street scenes, U-Net", "semantic", _STREET, "", "mIoU 0.594", _OURS),
}  # fmt: skip


def recipe_file(recipe: str | Path) -> Path:
    """The file of a recipe: a path to a YAML file as it is, or where a recipe of `RECIPES` lies.

    Raises:
        KirieError: when it is neither.
    """
    path, name = Path(recipe), Path(recipe).as_posix()
    if path.exists():
        if path.suffix.lower() not in (".yaml", ".yml"):
            raise KirieError(f"{path} is no recipe, which ends in .yaml, and no data set: a folder or a COCO file.")
        return path
    if name not in RECIPES:
        last = [known for known in RECIPES if name.lower() in (known, known.rpartition("/")[2])]
        near = last or difflib.get_close_matches(name, RECIPES, 1)
        hint = f" Did you mean {' or '.join(near)}?" if near else " `kirie models --recipes` lists the recipes' names."
        raise KirieError(f"There is neither a recipe nor a data folder {path}.{hint}")
    return HOME / f"{name}.yaml"


def recipe_text(name: str) -> str:
    """The YAML of a recipe of `RECIPES`, with its comments.

    Raises:
        KirieError: when there is no such recipe.
    """
    return recipe_file(name).read_text(encoding="utf-8")


def recipe_rows() -> list[dict[str, str]]:
    """A row for each recipe: its name, and what it trains, with which model, by which counterpart."""
    rows = []
    for name, entry in RECIPES.items():
        values = read_yaml(HOME / f"{name}.yaml", "recipe")
        rows.append(
            {
                "recipe": name,
                "title": entry.title,
                "task": entry.task,
                "model": str(values["model"]["name"]),
                "path": str(values["data"]["path"]),
                "data": entry.data,
                "counterpart": entry.counterpart,
                "score": entry.score,
                "source": entry.source,
            }
        )
    return rows
