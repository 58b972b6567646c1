"""Detectron2's checkpoints in the publisher's formats: the public reference's answers, other forms, what is refused."""

import pytest
import torch

from kirie.class_lists import CITYSCAPES, COCO_PANOPTIC
from kirie.errors import KirieError
from kirie.models.semantic_fpn import SemanticFPN
from kirie.weights.from_detectron2 import recognises
from kirie.weights.load import import_checkpoint
from tests.weights.detectron2 import STAGES, published, trained, without, write_zoo, zoo
from tests.weights.parity import check_argmax, check_stages, load_case, stage_outputs, through_file

HOOKS = {
    "net_input": ("encoder.body.conv1", "input"),
    **STAGES,
    **{f"sem_head_p{level}": f"head.branches.{level - 2}" for level in range(2, 6)},
    "sem_logits_stride4": "head",
}
PIXELS = {
    "bgr": ([103.53, 116.28, 123.675], [1.0, 1.0, 1.0]),
    "rgb": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
}


def network(**options):
    """A narrow Semantic FPN whose running statistics are not those of its birth."""
    torch.manual_seed(1)
    options = {"channels": 8, "width": 32} | options
    model = SemanticFPN(options.pop("in_channels", 3), options.pop("classes", 5), **options)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


# ---- the public reference's answers


@pytest.fixture(scope="module")
def case(shared):
    return load_case(shared, "d2_semantic_fpn_r50")


@pytest.fixture(scope="module")
def imported(case, tmp_path_factory):
    """The model that comes out of the file the model zoo would have."""
    return through_file(zoo(case.state), tmp_path_factory.mktemp("release") / "model_final.pkl", write_zoo)


@torch.no_grad()
def test_every_stage_is_that_of_the_reference(case, imported):
    model, _ = imported
    found = stage_outputs(model, HOOKS, case.image)
    found["net_input"] = found["net_input"].flip(0)  # ours takes red, green, blue
    found["p6"] = found["p5"][:, ::2, ::2]
    raw = model(torch.from_numpy(case.image)[None] / 255)
    size = tuple(case.facts["input"]["output_height_width"])
    assert raw.logits.shape[-2:] == case.image.shape[1:]
    found["sem_logits_out"] = torch.nn.functional.interpolate(raw.logits, size, mode="bilinear", align_corners=False)[0]
    found["sem_argmax"] = model.decode(raw, [size])[0].labels
    assert set(case.facts["outputs"]) <= set(found)
    check_stages(case, found)
    check_argmax(case, found, name="sem_argmax", logits="sem_logits_out")


def test_the_network_is_that_of_the_release(case, imported):
    model, translation = imported
    tensors = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert len(tensors) == case.facts["parameters_and_buffers"]
    assert translation.architecture == "semantic_fpn"
    assert translation.dropped.keys() == {"__author__"}
    assert translation.assumed.keys() == {"classes", "encoder_options", "mean", "std"}
    assert model.classes.names == ("things", *(COCO_PANOPTIC.names[80:]))
    assert model.arguments["encoder"] == "resnet50"
    assert model.arguments["encoder_options"] == {"frozen_norm": True, "stride_first": True}
    assert not model.training


def test_a_file_written_in_training_gives_the_same_network(case, imported, tmp_path):
    model, _ = imported
    path = tmp_path / "model_0089999.pth"
    found, translation = through_file(trained(case.state), path)
    assert translation.dropped.keys() == {"optimizer", "scheduler", "iteration"}
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    assert found.arguments == model.arguments


# ---- other forms


@torch.no_grad()
@pytest.mark.parametrize(
    ("encoder", "stride_first"), [("resnet101", True), ("resnext50_32x4d", False), ("resnext101_32x8d", False)]
)
def test_other_encoders_are_told_by_their_blocks_and_groups(encoder, stride_first, tmp_path):
    options = {"frozen_norm": True, "stride_first": stride_first}
    model = network(encoder=encoder, encoder_options=options, classes=19)
    found, translation = through_file(trained(published(model)), tmp_path / "model_final.pth")
    assert translation.arguments["encoder"] == encoder
    assert translation.arguments["encoder_options"] == options
    assert found.classes == CITYSCAPES
    model.mean.copy_(torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1) / 255)
    deviation = torch.ones(3) if stride_first else torch.tensor([58.395, 57.12, 57.375])
    model.std.copy_(deviation.view(1, 3, 1, 1) / 255)
    images = torch.rand(1, 3, 60, 90)
    torch.testing.assert_close(found(images).logits, model(images).logits)


@torch.no_grad()
@pytest.mark.parametrize("order", PIXELS)
def test_mean_and_deviation_in_the_file_are_used_and_tell_the_rest(order, tmp_path):
    mean, std = PIXELS[order]
    model = network(encoder_options={"frozen_norm": True, "stride_first": order == "bgr"})
    state = published(model)
    if order == "rgb":  # the first convolution of such a network is not turned round
        state["backbone.bottom_up.stem.conv1.weight"] = state["backbone.bottom_up.stem.conv1.weight"].flip(1)
    state["pixel_mean"], state["pixel_std"] = (torch.tensor(row).view(3, 1, 1) for row in (mean, std))
    found, translation = through_file(trained(state), tmp_path / "model_final.pth")
    assert {"pixel_mean", "pixel_std"} <= translation.dropped.keys()
    assert translation.assumed.keys() == {"encoder_options"}
    assert found.arguments["encoder_options"]["stride_first"] is (order == "bgr")
    assert torch.equal(found.encoder.body.conv1.weight, model.encoder.body.conv1.weight)
    torch.testing.assert_close(found.mean.flatten() * 255, torch.tensor([123.675, 116.28, 103.53]))
    torch.testing.assert_close(found.std.flatten() * 255, torch.tensor(std))


def test_batch_norm_that_learned_is_not_frozen_and_options_can_be_set(tmp_path):
    model = network(encoder_options={})
    state = published(model)
    state |= {n.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for n in state if "running_mean" in n}
    path = tmp_path / "model_final.pth"
    found, translation = through_file(trained(state), path)
    assert translation.arguments["encoder_options"] == {"frozen_norm": False, "stride_first": True}
    assert found.encoder.body.bn1.num_batches_tracked == 7
    torch.save(trained(state), path)
    changes = ["encoder_options={stride_first: false}", "std=[0.2, 0.2, 0.2]"]
    found, translation = import_checkpoint(path, changes=changes)
    assert found.encoder.body.layer2[0].conv1.stride == (1, 1)
    assert found.std.flatten().tolist() == pytest.approx([0.2] * 3)
    assert translation.assumed.keys() == {"mean"}


def test_pictures_of_other_channels_have_no_usual_mean(tmp_path):
    model = network(in_channels=4)
    found, translation = through_file(trained(published(model)), tmp_path / "model_final.pth")
    assert torch.equal(found.encoder.body.conv1.weight, model.encoder.body.conv1.weight)
    assert found.mean.flatten().tolist() == [0] * 4
    assert "no number is usual" in translation.assumed["mean"]


# ---- what is refused


@pytest.fixture(scope="module")
def small():
    return published(network())


def with_entries(*names):
    return lambda state: state | {name: torch.zeros(1) for name in names}


HEADS = ("proposal_generator.rpn_head.conv.weight", "roi_heads.box_head.fc1.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: with_entries(*HEADS, "roi_heads.keypoint_head.x")(without("sem_seg")(s)), "a Keypoint R-CNN, an"),
        (lambda s: with_entries(*HEADS)(without("sem_seg")(s)), "a Faster R-CNN"),
        (lambda s: with_entries("head.cls_subnet.0.weight")(without("sem_seg")(s)), "a RetinaNet"),
        (lambda s: with_entries("mine.x")(without("sem_seg")(s)), "heads are none that kirie knows: mine"),
        (without("sem_seg"), "heads are none that kirie knows: it has none"),
        (without("res4.5"), r"\(3, 4, 5, 3\) blocks per stage and 1 groups of 64"),
        (without("fpn_lateral3"), r"missing \['fpn\.laterals\.1\.bias', 'fpn\.laterals\.1\.weight'\]"),
        (without("sem_seg_head.p5.4"), r"missing \['head\.branches\.3\.4\."),
        (with_entries("backbone.bottom_up.res3.0.conv2_offset.weight"), "no entry 'backbone.bottom_up.res3"),
        (with_entries("sem_seg_head.p2.9.weight"), r"unknown \['head\.branches\.0\.9\.0\.weight'\]"),
        (with_entries("pixel_mean", "pixel_std"), "pixel_mean and pixel_std must be 3 numbers"),
        (lambda s: s | {"pixel_mean": torch.zeros(3), "pixel_std": torch.zeros(3)}, "pixel_mean and pixel_std must"),
        (lambda s: s | {"sem_seg_head.predictor.weight": torch.zeros(5, 7, 1, 1)}, "of another shape"),
        (lambda s: s | {"sem_seg_head.predictor.bias": 1.0}, "no entry 'sem_seg_head.predictor.bias'"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(change, message, small, tmp_path):
    torch.save(trained(change(small)), tmp_path / "checkpoint.pth")
    with pytest.raises(KirieError, match=message):
        import_checkpoint(tmp_path / "checkpoint.pth")


def test_other_layouts_are_not_taken_for_detectron2s(small):
    assert recognises(small)
    assert not recognises({"backbone.conv1.weight": torch.zeros(1)})
    assert not recognises({})
