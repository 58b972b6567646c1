import threading
import time
import weakref

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tiny import CLASSES, SIZE, blobs, colour_unet, painted, random_unet

import kirie
from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.models.contract import InputFacts
from kirie.prediction.pictures import as_picture
from kirie.prediction.predictor import Predictor, pick_device, read_ahead
from kirie.reading.images import read_image

RNG = np.random.default_rng(0)
SIZES = [(24, 32), (24, 32), (40, 17), (24, 32), (1, 1), (1, 50), (40, 17), (40, 17), (33, 31)]


def noise(size=SIZE, channels=3, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, (*size, channels), dtype, endpoint=True)


def seen_by(model):
    """The batches that a model is given from now on, as they come."""
    batches = []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0]))
    return batches


# Results


def test_results_come_in_order_at_the_size_of_each_picture():
    truths = [blobs(size, seed=i) for i, size in enumerate(SIZES)]
    results = Predictor(colour_unet(), device="cpu")([painted(t, i) for i, t in enumerate(truths)])
    assert [r.size for r in results] == SIZES
    assert all(np.array_equal(r.labels, t) for r, t in zip(results, truths, strict=True))
    assert all(r.classes == CLASSES and r.scores is None and r.labels.dtype == np.uint8 for r in results)


def test_batch_size_changes_nothing_but_rounding():
    model, pictures = random_unet(), [noise(size) for size in SIZES]
    alone = [Predictor(model, device="cpu", batch_size=1, scores=True)([p])[0] for p in pictures]
    assert len({tuple(np.unique(r.labels)) for r in alone}) > 1, (
        "a model that gives one class everywhere proves nothing"
    )
    for batch_size in (2, 3, 100):
        together = Predictor(model, device="cpu", batch_size=batch_size, scores=True)(pictures)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(other.scores, one.scores, atol=2e-6)


def test_equal_sizes_are_run_together_and_no_more_than_a_batch():
    model = colour_unet()
    batches = seen_by(model)
    Predictor(model, device="cpu", batch_size=2)([noise(size) for size in SIZES])
    assert [len(b) for b in batches] == [2, 1, 1, 1, 1, 2, 1]
    assert all(b.is_contiguous(memory_format=torch.channels_last) for b in batches if min(b.shape) > 1)


def test_pixels_reach_the_model_as_rgb_from_0_to_1():
    model, picture = colour_unet(), noise()
    before = picture.copy()
    batches = seen_by(model)
    Predictor(model, device="cpu")([picture])
    expected = picture.transpose(2, 0, 1)[None].astype(np.float32) / 255
    np.testing.assert_allclose(batches[0].numpy(), expected, rtol=1e-6)
    assert np.array_equal(picture, before)


@pytest.mark.parametrize(("size", "seen"), [((48, 64), (16, 21)), ((8, 6), (21, 16)), ((16, 40), (16, 40))])
def test_pictures_are_resized_to_the_short_side_and_labels_are_not(size, seen):
    model = colour_unet()
    model.inputs = InputFacts(short_side=16)
    batches = seen_by(model)
    half = np.zeros((*size, 3), np.uint8)
    half[:, : size[1] // 2, 0] = half[:, size[1] // 2 :, 2] = 200
    (result,) = Predictor(model, device="cpu", scores=True)([half])
    assert tuple(batches[0].shape) == (1, 3, *seen)
    assert result.size == size and result.scores.shape == (3, *size)
    expected = np.where(np.arange(size[1]) < size[1] // 2, 0, 2)
    wrong = (result.labels != expected).any(0)
    assert wrong.sum() <= 1, "only the column at the seam may differ"


@pytest.mark.parametrize("binary", [False, True])
def test_scores_are_probabilities_that_agree_with_the_labels(binary):
    model = random_unet(Classes(("a", "b")), binary=True) if binary else random_unet(5)
    picture = noise()
    (result,) = Predictor(model, device="cpu", scores=True)([picture])
    assert result.scores.shape == (len(model.classes), *SIZE) and result.scores.dtype == np.float32
    np.testing.assert_allclose(result.scores.sum(0), 1, atol=1e-5)
    assert np.array_equal(result.scores.argmax(0), result.labels) and len(np.unique(result.labels)) > 1
    logits = model(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255).logits[0].detach()
    direct = torch.cat([1 - logits.sigmoid(), logits.sigmoid()]) if binary else logits.softmax(0)
    np.testing.assert_allclose(result.scores, direct.numpy(), atol=1e-5)


def test_300_classes():
    model = random_unet(300)
    with torch.no_grad():
        model.head.bias[299] += 3
    result = kirie.predict(model, noise(), device="cpu", scores=True)
    assert result.labels.max() == 299 and result.labels.min() < 299 and result.labels.dtype == np.int32
    assert result.classes.void == 65535 and result.scores.shape == (300, *SIZE)


def test_the_model_is_in_evaluation_mode_and_learns_nothing():
    model = random_unet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = []
    model.register_forward_hook(lambda *_: grads.append(torch.is_grad_enabled()))
    predictor = Predictor(model, device="cpu")
    assert not model.training and not any(module.training for module in model.modules())
    predictor([noise()])
    assert grads == [False] and torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# What is refused


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (noise(channels=1), "built for 3 channels"),
        (noise(channels=4), "built for 3 channels"),
        (noise()[..., 0], "(24, 32)"),
        (noise().astype(np.float32), "float32"),
        (np.zeros((0, 5, 3), np.uint8), "(0, 5, 3)"),
        ([[1, 2]], "list"),
    ],
)
def test_a_predictor_refuses_what_is_no_picture(picture, told):
    model = colour_unet()
    batches = seen_by(model)
    with pytest.raises(KirieError) as caught:
        Predictor(model, device="cpu")([noise(), picture])
    assert told in str(caught.value) and not batches


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_holds_a_picture(size):
    with pytest.raises(KirieError, match="batch size"):
        Predictor(colour_unet(), device="cpu", batch_size=size)


LACKS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", LACKS, ids=["gpu", "cpu", "numpy"])
def test_lack_of_memory_is_told_with_the_size(error, monkeypatch):
    model = colour_unet()

    def forward(images):
        raise error

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(KirieError, match=r"1 x 24 x 32 pixels.*smaller"):
        Predictor(model, device="cpu")([noise()])


def test_other_errors_of_a_model_stay_what_they_are(monkeypatch):
    model = colour_unet()

    def forward(images):
        raise RuntimeError("a mistake in the model")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(RuntimeError, match="a mistake in the model"):
        Predictor(model, device="cpu")([noise()])


@pytest.mark.parametrize("name", ["nonsense", "", "meta", "cuda:99", "cuda:-1", "xpu", "hpu", "vulkan", "Cpu"])
def test_devices_that_do_not_exist(name):
    with pytest.raises(KirieError) as caught:
        pick_device(name)
    assert repr(name) in str(caught.value) and "cpu" in str(caught.value) and "\n" not in str(caught.value)


def test_devices_that_exist():
    assert pick_device("cpu") == torch.device("cpu")
    assert torch.ones(2, device=pick_device("auto")).sum().item() == 2


# Streams


def test_a_stream_holds_one_batch():
    drawn, alive = [], []

    def pictures():
        for i in range(20):
            picture = noise()
            drawn.append(i)
            alive.append(weakref.ref(picture))
            yield picture
            del picture

    most = 0
    for number, _ in enumerate(Predictor(colour_unet(), device="cpu", batch_size=4).stream(pictures())):
        assert len(drawn) <= (number // 4 + 1) * 4
        most = max(most, sum(each() is not None for each in alive))
    assert number == 19 and most <= 5


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_a_stream_gives_every_result_in_order(count):
    truths = [blobs(SIZES[i], seed=i) for i in range(count)]
    stream = Predictor(colour_unet(), device="cpu", batch_size=4).stream(painted(t) for t in truths)
    assert all(np.array_equal(r.labels, t) for r, t in zip(stream, truths, strict=True))


def test_reading_ahead_keeps_the_order_and_stays_near():
    started = []

    def read(index):
        started.append(index)
        time.sleep(0.004 * (index % 3))
        return index

    for expected, item in enumerate(read_ahead(read, 25, ahead=4)):
        assert item == expected and max(started) <= expected + 4
    assert expected == 24 and sorted(started) == list(range(25))
    assert list(read_ahead(read, 0)) == []


def test_reading_ahead_passes_an_exception_on_in_its_place():
    def read(index):
        if index == 3:
            raise KirieError("picture 3 is broken")
        return index

    items = read_ahead(read, 100)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KirieError, match="picture 3"):
        next(items)
    assert list(items) == []


def test_reading_ahead_stops_with_its_reader():
    before, started = threading.active_count(), []
    items = read_ahead(lambda i: started.append(i), 1000)
    next(items)
    items.close()
    assert len(started) <= 6 and threading.active_count() == before


# Pictures of any kind


def saved(tmp_path, name, picture, **more):
    picture.save(tmp_path / name, **more)
    return tmp_path / name


def grey16():
    return np.clip(RNG.normal(900, 300, SIZE), 0, 4095).astype(np.uint16)


FORMS = {
    "RGB": lambda: Image.fromarray(noise()),
    "grey": lambda: Image.fromarray(noise()[..., 0]),
    "RGBA": lambda: Image.fromarray(noise(channels=4)),
    "grey with alpha": lambda: Image.fromarray(noise(channels=2)),
    "palette": lambda: Image.fromarray(noise()).convert("P", palette=Image.Palette.ADAPTIVE),
    "1 bit": lambda: Image.fromarray(noise()[..., 0]).convert("1"),
    "16 bit": lambda: Image.fromarray(grey16()),
}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("form", FORMS)
def test_a_pillow_image_is_read_as_its_file_is(tmp_path, form, channels):
    image = FORMS[form]()
    path = saved(tmp_path, "a.png", image)
    by_file = as_picture(path, channels)
    assert by_file.shape == (*SIZE, channels) and np.array_equal(by_file, read_image(path, channels))
    for given in (image, Image.open(path), str(path)):
        assert np.array_equal(as_picture(given, channels), by_file)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("form", ["RGB", "grey", "RGBA", "16 bit"])
def test_an_array_is_read_as_its_file_is(tmp_path, form, channels):
    image = FORMS[form]()
    by_file = as_picture(saved(tmp_path, "a.png", image), channels)
    assert np.array_equal(as_picture(np.asarray(image), channels), by_file)
    if np.asarray(image).ndim == 2:
        assert np.array_equal(as_picture(np.asarray(image)[..., None], channels), by_file)


def test_16_bit_colours_are_stretched_as_their_file_is(tmp_path):
    deep = (noise(dtype=np.uint16) >> 3) + np.uint16(1000)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., ::-1])
    for name in ("a.tif", "a.png"):
        assert np.array_equal(as_picture(deep, 3), as_picture(tmp_path / name, 3))
    assert as_picture(deep, 3).min() == 0 and as_picture(deep, 3).max() == 255


def test_a_turned_pillow_image_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, "a.png", Image.fromarray(noise()), exif=exif)
    upright = as_picture(Image.open(path), 3)
    assert upright.shape == (SIZE[1], SIZE[0], 3) and np.array_equal(upright, read_image(path))


def test_models_of_other_channels(tmp_path):
    bands = noise(channels=5)
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="contig")
    model = colour_unet(Classes.numbered(5), in_channels=5)
    by_array, by_file = (kirie.predict(model, given, device="cpu") for given in (bands, tmp_path / "a.tif"))
    assert np.array_equal(by_array.labels, bands.argmax(2)) and np.array_equal(by_file.labels, by_array.labels)
    model = random_unet(2, in_channels=1)
    grey = cv2.cvtColor(noise(), cv2.COLOR_RGB2GRAY)
    one, other = (kirie.predict(model, given, device="cpu", scores=True) for given in (grey, np.dstack([grey] * 3)))
    assert one.size == SIZE and np.array_equal(one.scores, other.scores)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (noise(channels=2), "2 channels"),
        (noise(channels=5), "5 channels"),
        (noise().astype(np.int64), "int64"),
        (noise() / 255, "float64"),
        (np.zeros((4, 0, 3), np.uint8), "(4, 0, 3)"),
        (np.zeros(7, np.uint8), "(7,)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "(2, 4, 4, 3)"),
        (None, "NoneType"),
        (torch.zeros(3, 4, 4), "Tensor"),
        ("no/such.png", "no/such.png"),
    ],
)
def test_what_is_no_picture_of_these_channels(image, told):
    with pytest.raises(KirieError) as caught:
        kirie.predict(colour_unet(), image, device="cpu")
    assert told in str(caught.value)


def test_predict_gives_one_for_one_and_a_list_for_several(tmp_path):
    truths = [blobs(size, seed=i) for i, size in enumerate(SIZES[:4])]
    pictures = [painted(t, i) for i, t in enumerate(truths)]
    path = saved(tmp_path, "a.png", Image.fromarray(pictures[1]))
    model = colour_unet()
    assert np.array_equal(kirie.predict(model, path, device="cpu").labels, truths[1])
    several = (pictures[0], path, str(path), Image.fromarray(pictures[2]))
    results = kirie.predict(model, several, device="cpu")
    expected = [truths[0], truths[1], truths[1], truths[2]]
    assert isinstance(results, list)
    assert all(np.array_equal(r.labels, t) for r, t in zip(results, expected, strict=True))
    assert kirie.predict(model, [], device="cpu") == []
