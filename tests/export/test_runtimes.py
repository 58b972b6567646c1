"""Every architecture in every runtime, beside the original: the same maps and the same objects at three sizes."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import kirie
from kirie.errors import KirieError
from kirie.export.capture import write_onnx
from kirie.export.proof import LEAST_IOU, prove
from kirie.export.targets import Parts
from kirie.export.write import export_model
from kirie.merging import MergeSettings
from kirie.models import MODELS
from kirie.models.file import load, save
from kirie.prediction.predictor import Predictor
from kirie.results import Instances
from kirie.runtimes import RUNTIMES
from kirie.runtimes.exported import load_export
from kirie.runtimes.record import head_file
from tests.models.contract import build

SIZES = [(64, 96), (97, 131), (75, 70)]


def noise(size, seed=0):
    """A picture (H, W, 3) uint8 of soft areas."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 256, (size[0] // 8 + 2, size[1] // 8 + 2, 3), np.uint8)
    return rough.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]


def small(name, **options):
    """A small model whose outputs are no noise around zero, so that its answers are decided."""
    model = build(name, classes=3, **options)
    torch.manual_seed(1)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
        if name in ("mask_rcnn", "panoptic_fpn"):
            own = model if name == "mask_rcnn" else model.instance
            own.box_head.logits.weight.normal_(0, 0.3)
            own.proposals.codes.weight.normal_(0, 0.05)
        if name == "solov2":
            model.head.categories.weight.normal_(0, 0.3)
            model.head.kernels.weight.normal_(0, 0.3)
        model.eval()
        if model.task == "semantic":
            named = [n for n, m in model.named_modules() if getattr(m, "out_channels", 0) == model.logit_channels]
            last = model.get_submodule([n for n in named if not n.startswith("auxiliary")][-1])
            images = torch.from_numpy(noise((96, 128))).permute(2, 0, 1)[None] / 255
            last.weight /= model(images).logits.std((2, 3)).mean()
            last.bias -= model(images).logits.mean((0, 2, 3))
    if "score_threshold" in model.arguments:
        own = getattr(model, "instance", model)
        own.score_threshold = model.arguments["score_threshold"]
    if name == "panoptic_fpn":
        model.settings = MergeSettings(0.3, 0.5, 1)
    return model


def arguments(name):
    """Those that let what was not trained find something."""
    if name in ("mask_rcnn", "yolact", "solov2"):
        return {"score_threshold": 0.02 if name == "solov2" else 0.2, "max_detections": 20}
    return {"score": 0.3, "stuff_area": 1, "max_detections": 20} if name == "panoptic_fpn" else {}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What gives the folder of a small model and the exports made of it, each made once."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            save(small(name, **arguments(name)), folder / "model.safetensors")
            with shared_graphs():
                for to in RUNTIMES:
                    export_model(folder / "model.safetensors", to=to, pictures=[noise(SIZES[0])])
            made[name] = folder
        return made[name]

    return of


@contextmanager
def shared_graphs():
    """One model's graphs are captured and translated once for all exports made of it within."""
    captured, written, programs = [], {}, Parts.programs

    def once_captured(self):
        if not captured:
            captured.extend(programs(self))
        return [(name, head_file(self.path, name) if name else self.path, *rest) for name, _, *rest in captured]

    def once_written(program, names, path):
        if path.stem not in written:
            write_onnx(program, names, path)
            written[path.stem] = path.read_bytes()
        path.write_bytes(written[path.stem])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "programs", once_captured)
        patch.setattr("kirie.export.targets.write_onnx", once_written)
        yield


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_gives_the_same_in_every_runtime(name, runtime, exported):
    folder = exported(name)
    original = load(folder / "model.safetensors")
    other = kirie.load(folder / "model.safetensors", runtime=runtime)
    assert other.artifact.startswith(runtime)
    assert not list(other.parameters())
    pictures = [noise(size, seed) for seed, size in enumerate(SIZES)]
    proof = prove(original, other, pictures)
    assert proof.passed, proof.words()
    results = Predictor(original)(pictures)
    if original.task == "instance":
        assert proof.least_iou >= LEAST_IOU
        assert all(len(result) for result in results), "nothing to compare"
    else:
        assert len({int(each) for result in results for each in np.unique(_ids(result))}) > 1, "one class only"


def _ids(result):
    return result.labels if hasattr(result, "labels") else result.ids


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_batch_is_its_pictures_one_by_one(runtime, exported):
    other = kirie.load(exported("unet") / "model.safetensors", runtime=runtime)
    pictures = [noise(SIZES[1], seed) for seed in range(3)]
    alone = Predictor(other, batch_size=1)(pictures)
    together = Predictor(other, batch_size=3)(pictures)
    assert all(np.mean(a.labels == b.labels) > 0.999 for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_objects_are_chosen_as_of_the_model_itself(runtime, exported):
    folder = exported("mask_rcnn")
    for options in ({"max_detections": 3}, {"threshold": 0.4}, {"max_detections": 40}):
        ours, theirs = (
            Predictor(kirie.load(folder, runtime=each), **options)([noise(SIZES[1], 1)])[0]
            for each in ("torch", runtime)
        )
        assert isinstance(theirs, Instances)
        assert len(ours) == len(theirs)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)


@pytest.mark.parametrize("name", ["fcn", "semantic_fpn", "unet", "pspnet", "solov2"])
def test_small_pictures_are_padded_as_the_model_pads_them(name, exported):
    folder = exported(name)
    original, other = load(folder / "model.safetensors"), kirie.load(folder, runtime="onnx")
    proof = prove(original, other, [noise((1, 1)), noise((9, 40)), noise((33, 17))])
    assert proof.passed, proof.words()


def test_too_small_pictures_go_to_the_model_file_beside_it(exported, tmp_path):
    folder = exported("segformer")
    picture = noise((20, 30))
    ours, theirs = (Predictor(kirie.load(folder, runtime=each))([picture])[0] for each in ("torch", "onnx"))
    assert np.array_equal(ours.labels, theirs.labels)
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(KirieError, match="takes pictures from 64 x 64 pixels on, got 20 x 30"):
        Predictor(load_export(tmp_path / "model.onnx"))([picture])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deeplabv3plus", {"encoder_options": {"pad_first": True}}),
        ("mask_rcnn", {"norm": True, "flavour": "torchvision", "box_convs": 1}),
        ("pspnet", {"align_corners": False}),
        ("unet", {"up": "bilinear", "norm": "group", "standardise": True}),
        ("unet", {"encoder": "test_efficientnet", "depth": 3}),
        ("yolact", {"input_size": None}),
    ],
    ids=str,
)
def test_what_an_option_changes_is_exported_too(name, options, tmp_path):
    path = save(small(name, **arguments(name) | options), tmp_path / "model.safetensors")
    done = export_model(path, to="onnx", pictures=[noise(SIZES[0])])
    assert done.proof.passed
    assert len(done.proof.sizes) == (3 if load(path).least_side > 19 else 4)


def test_the_valid_form_of_the_unet_is_refused(tmp_path):
    with pytest.raises(KirieError, match="valid form"):
        export_model(
            save(small("unet", valid=True), tmp_path / "model.safetensors"), to="onnx", pictures=[noise(SIZES[0])]
        )
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
