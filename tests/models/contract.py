"""What the contract tests share: small arguments for every architecture, pictures, and truths of every task."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kirie.masks import Masks, count_ids
from kirie.merging import MergeSettings
from kirie.models import MODELS, model_class
from kirie.results import Instances, PanopticMap, Segment, SemanticMap

SMALL = {  # arguments that make each architecture quick
    "deeplabv3": {"encoder": "test_efficientnet", "width": 16},
    "deeplabv3plus": {"encoder": "test_efficientnet", "width": 16, "low_width": 8},
    "fcn": {"encoder": "test_efficientnet"},
    "hrnet": {"width": 6, "blocks": 1, "modules": (1, 1, 1), "layer1": (8, 1)},
    "lraspp": {"encoder": "test_efficientnet", "width": 16},
    "mask_rcnn": {
        "encoder": "test_efficientnet",
        "channels": 16,
        "box_width": 16,
        "mask_convs": 1,
        "mask_width": 16,
        "anchor_sizes": (8, 16, 32, 64, 128),
    },
    "panoptic_fpn": {
        "encoder": "test_efficientnet",
        "channels": 16,
        "box_width": 16,
        "mask_convs": 1,
        "mask_width": 16,
        "anchor_sizes": (8, 16, 32, 64, 128),
        "width": 16,
    },
    "pspnet": {"encoder": "test_efficientnet", "width": 16, "bins": (1, 2)},
    "segformer": {
        "widths": (8, 16, 40, 32),
        "depths": (1, 1, 2, 1),
        "reductions": (2, 2, 1, 1),
        "decoder_width": 16,
    },
    "semantic_fpn": {"encoder": "test_efficientnet", "channels": 16, "width": 16},
    "solov2": {
        "encoder": "test_efficientnet",
        "channels": 16,
        "grids": (8, 6, 4),
        "strides": (4, 8, 16),
        "scale_ranges": ((1, 12), (8, 24), (16, 64)),
        "width": 16,
        "depth": 1,
        "mask_width": 8,
        "mask_channels": 8,
        "update_threshold": 0.0,
    },
    "unet": {"width": 4, "depth": 2},
    "yolact": {
        "encoder": "test_efficientnet",
        "input_size": 64,
        "scales": (16, 21, 32, 50, 64),
        "channels": 16,
        "prototypes": 8,
    },
}
OPTIONS = [  # of a model's own or of its encoder: parts that do not learn, and encoders put together otherwise
    ("deeplabv3", {"output_stride": 16, "encoder_options": {"frozen_stages": 2}}),
    ("deeplabv3plus", {"output_stride": 8, "encoder_options": {"pad_first": True, "frozen_norm": True}}),
    ("fcn", {"output_stride": 32, "encoder_options": {"frozen_norm": True, "norm_eps": 0.01}}),
    ("hrnet", {"frozen_norm": True}),
    ("hrnet", {"frozen_stages": 2, "align_corners": True}),
    ("lraspp", {"encoder_options": {"first_blocks": True, "frozen_stages": 2}}),
    ("mask_rcnn", {"norm": True, "flavour": "torchvision", "box_convs": 1, "encoder_options": {"frozen_norm": True}}),
    ("panoptic_fpn", {"norm": True, "encoder_options": {"frozen_norm": True}, "stuff_area": 9, "semantic_weight": 2.0}),
    ("pspnet", {"align_corners": False, "encoder_options": {"dilate_first": True, "frozen_norm": True}}),
    ("segformer", {"frozen_stages": 2}),
    ("semantic_fpn", {"encoder_options": {"norm_eps": 0.01, "frozen_stages": 3}}),
    ("unet", {"encoder": "test_efficientnet", "depth": 3, "encoder_options": {"frozen_stages": 1}}),
    ("yolact", {"square": False, "encoder_options": {"frozen_stages": 1}}),
]
RESULTS = {"semantic": SemanticMap, "instance": Instances, "panoptic": PanopticMap}

each_model = pytest.mark.parametrize("name", MODELS)
each_semantic = pytest.mark.parametrize("name", [n for n in MODELS if model_class(n).task == "semantic"])
each_instance = pytest.mark.parametrize("name", [n for n in MODELS if model_class(n).task == "instance"])
each_option = pytest.mark.parametrize(("name", "options"), OPTIONS)


def build(name, in_channels=3, classes=2, **options):
    torch.manual_seed(0)
    model = model_class(name)(in_channels, classes, **SMALL[name] | options)
    if model.task == "instance":
        model.score_threshold = 0.0  # what is not trained is sure of nothing
    if model.task == "panoptic":
        model.instance.score_threshold = 0.0
        model.settings = MergeSettings(score=0.0, stuff_area=options.get("stuff_area", 1))
    return model


def pictures(count=2, channels=3, size=(24, 40), seed=0):
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(seed))


def truths(model, count=2, size=(24, 40), seed=0):
    """Truths of the model's task with every class that has room: noise with some void, or rectangles of all sizes."""
    rng = np.random.default_rng(seed)
    if model.task == "instance":
        return [rectangles(rng, size, model.classes) for _ in range(count)]
    if model.task == "panoptic":
        return [things_and_stuff(rng, size, model.classes) for _ in range(count)]
    labels = rng.integers(0, len(model.classes), (count, *size))
    labels[rng.random(labels.shape) < 0.05] = model.classes.void
    dtype = np.uint8 if model.classes.void == 255 else np.int32
    return [SemanticMap(picture.astype(dtype), model.classes) for picture in labels]


def rectangles(rng, size, classes, count=4):
    masks = np.zeros((count, *size), bool)
    for index, mask in enumerate(masks):
        height, width = (max(1, side // (index + 1)) for side in size)
        top, left = (rng.integers(0, side - part + 1) for side, part in zip(size, (height, width), strict=True))
        mask[top : top + height, left : left + width] = True
    return Instances.from_masks(Masks.from_dense(masks), np.arange(count) % len(classes), classes)


def things_and_stuff(rng, size, classes, count=4, crowd=False):
    """Noise of all stuff with some void, under rectangles of things or of crowds."""
    stuff, things = ([k for k, thing in enumerate(classes.things) if thing is kind] for kind in (False, True))
    objects = rectangles(rng, size, classes.subset(things), count)
    ids = rng.integers(1, len(stuff) + 1, size).astype(np.int32)
    ids[rng.random(size) < 0.05] = 0
    above = objects.masks.id_map()
    ids[above > 0] = above[above > 0] + len(stuff)
    labels = [*stuff, *(things[label] for label in objects.labels)]
    return PanopticMap(ids, segments(ids, labels, classes, crowd), classes)


def segments(ids, labels, classes, crowd=False):
    """Those of a map of ids, of which id i is of the class labels[i - 1]."""
    found = [(i, labels[i - 1], area) for i, area in zip(*map(np.ndarray.tolist, count_ids(ids)), strict=True) if i]
    return tuple(
        Segment(i, label, classes.things[label], 1.0, area, crowd and classes.things[label]) for i, label, area in found
    )


def nothing(model, count=2, size=(24, 40)):
    """Truths that say nothing about any pixel, or that there is no object."""
    if model.task == "instance":
        return [Instances.from_masks(Masks(size), [], model.classes)] * count
    if model.task == "panoptic":
        return [PanopticMap(np.zeros(size, np.int32), (), model.classes)] * count
    return [SemanticMap(np.full(size, model.classes.void, np.uint8), model.classes)] * count


def tensors(raw):
    """The tensors of a `raw`, those in tuples as well."""
    if raw is None:
        return []
    return [raw] if isinstance(raw, Tensor) else [tensor for part in raw for tensor in tensors(part)]


def total(model, images, given):
    return torch.stack(list(model.loss(model(images), given).values())).sum()


def equal(result, other):
    """Whether two results are the same to the last bit."""
    assert type(result) is type(other)
    if isinstance(result, Instances):
        same = [np.array_equal(getattr(result, k), getattr(other, k)) for k in ("boxes", "labels", "scores")]
        return all(same) and result.masks.rles() == other.masks.rles()
    if isinstance(result, PanopticMap):
        return np.array_equal(result.ids, other.ids) and result.segments == other.segments
    return np.array_equal(result.labels, other.labels)


def class_ids(result):
    """All class ids of a result, in an array of any shape."""
    if isinstance(result, PanopticMap):
        return np.array([segment.label for segment in result.segments], np.int64)
    return result.labels


def assert_alike(one, other, share=0.99, atol=1e-4):
    """Two results are the same but for roundings, which may let a tie fall to the other side."""
    assert type(one) is type(other)
    if isinstance(one, Instances):
        assert abs(len(one) - len(other)) <= (1 - share) * len(one)
        shared = min(len(one), len(other))
        np.testing.assert_allclose(one.scores[:shared], other.scores[:shared], atol=atol)
    elif isinstance(one, PanopticMap):
        assert (one.ids == other.ids).mean() > share
    else:
        assert (one.labels == other.labels).mean() > share
