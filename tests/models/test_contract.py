"""The contract, over every row of MODELS. A new architecture adds one line to `contract.SMALL`."""

import copy

import numpy as np
import pytest
import torch

from kirie.errors import KirieError
from kirie.models import MODELS, model_class, model_name
from kirie.models.contract import SegmentationModel
from kirie.models.file import load, save
from kirie.results import SemanticMap, to_panoptic
from tests.models.contract import (
    RESULTS,
    SMALL,
    assert_alike,
    build,
    class_ids,
    each_model,
    each_option,
    equal,
    nothing,
    pictures,
    tensors,
    total,
    truths,
)

SIZES = [(1, 1), (17, 33), (97, 203)]


def test_every_row_has_small_arguments():
    assert set(SMALL) == set(MODELS)


@each_model
def test_the_class_is_what_the_table_says(name):
    model = build(name)
    assert isinstance(model, SegmentationModel)
    assert model_name(model) == name
    assert model.task in RESULTS


@each_model
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_pictures_of_any_size(name, size):
    model = build(name).eval()
    raw = model(pictures(size=size))
    assert all(t.isfinite().all() for t in tensors(raw))
    results = model.decode(raw, [size, size])
    assert [type(r) for r in results] == [RESULTS[model.task]] * 2
    assert [r.size for r in results] == [size, size]
    assert all(r.classes == model.classes for r in results)


@each_model
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_number_of_channels(name, channels):
    model = build(name, in_channels=channels)
    images = pictures(channels=channels)
    assert model.in_channels == channels
    assert total(model, images, truths(model)).isfinite()
    changed = images.clone()
    changed[:, -1] += 0.5  # the last channel must count
    with torch.no_grad():
        model.eval()
        before, after = model(images), model(changed)
    assert not all(torch.equal(a, b) for a, b in zip(tensors(before), tensors(after), strict=True))


@each_model
@pytest.mark.parametrize("classes", [1, 2, 5, 300])
def test_any_number_of_classes(name, classes):
    model = build(name, classes=classes)
    count = classes if model.task == "instance" else max(classes, 2)
    assert len(model.classes) == count
    loss = total(model, pictures(), truths(model))
    loss.backward()
    assert loss.isfinite()
    result = model.eval().decode(model(pictures()), [(24, 40)] * 2)[0]
    if model.task == "semantic":
        assert result.labels.dtype == (np.uint8 if count <= 255 else np.int32)
    assert class_ids(result).max(initial=0) < count


@each_model
@pytest.mark.parametrize("size", [(1, 1), (24, 40)])
def test_a_batch_of_one_picture_trains(name, size):
    model = build(name).train()
    loss = total(model, pictures(1, size=size), truths(model, 1, size))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@each_model
@pytest.mark.parametrize("classes", [1, 5])
@torch.no_grad()
def test_a_saved_model_gives_equal_outputs(name, classes, tmp_path):
    model = build(name, in_channels=4, classes=classes)
    for seed in range(3):  # so that running statistics are no longer what they began as
        model.train()(pictures(channels=4, seed=seed))
    model.eval()
    found = load(save(model, tmp_path / "model.safetensors"))
    assert not found.training
    assert found.classes == model.classes
    images = pictures(channels=4, size=(19, 27), seed=9)
    for a, b in zip(tensors(model(images)), tensors(found(images)), strict=True):
        assert torch.equal(a, b)


@each_model
def test_a_model_can_be_built_again_from_its_arguments(name):
    for classes in (1, 3):
        model = build(name, classes=classes)
        again = type(model)(model.in_channels, model.classes, **model.arguments)
        assert again.arguments == model.arguments
        assert not model.never_from_file & set(model.arguments)
        again.load_state_dict(model.state_dict())
        assert set(SMALL[name].items()) <= set(model.arguments.items())


@each_model
def test_gradients_reach_every_parameter(name):
    model = build(name, classes=3).eval()  # batch norm in training mode cancels the biases before it
    total(model, pictures(), truths(model)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@each_model
def test_loss_falls_on_one_batch(name):
    model = build(name, classes=3).train()
    # In areas, which models whose logits have an eighth of the size can show as well.
    images = pictures(size=(3, 5)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    if model.task != "semantic":
        given = truths(model)
    else:
        labels = (images[:, 0] * 3).long().clamp(max=2).numpy().astype(np.uint8)  # something the picture shows
        given = [SemanticMap(picture, model.classes) for picture in labels]
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = total(model, images, given)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@each_model
def test_truths_with_nothing_in_them_give_finite_gradients(name):
    model = build(name)
    loss = total(model, pictures(), nothing(model))
    loss.backward()
    assert (
        loss == 0 if model.task == "semantic" else loss.isfinite()
    )  # void teaches nothing; that there is no object does
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@each_model
def test_half_precision_stays_finite(name):
    model = build(name, classes=3)
    with torch.autocast("cpu", torch.bfloat16):
        raw = model(pictures())
        loss = torch.stack(list(model.loss(raw, truths(model)).values())).sum()
    assert any(t.dtype == torch.bfloat16 for t in tensors(raw))
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    loss.backward()
    result = model.decode(raw, [(24, 40)] * 2, scores=True)[0]
    if model.task != "panoptic":
        assert result.scores.dtype == np.float32
    if model.task == "semantic":
        np.testing.assert_allclose(result.scores.sum(0), 1, atol=1e-5)


@each_model
@torch.no_grad()
def test_decode_is_deterministic_and_gives_the_sizes_asked_for(name):
    model = build(name, classes=5).eval()
    raw = model(pictures())
    kept = [t.clone() for t in tensors(raw)]
    sizes = [(50, 31), (7, 90)]
    first, second = model.decode(raw, sizes), model.decode(raw, sizes)
    assert [r.size for r in first] == sizes
    assert all(equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, tensors(raw), strict=True))


@each_model
@torch.no_grad()
def test_pictures_of_a_batch_do_not_touch_one_another(name):
    model = build(name, classes=5).eval()
    images = pictures(3)
    together = model.decode(model(images), [(24, 40)] * 3)
    alone = [model.decode(model(image[None]), [(24, 40)])[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        # Kernels for other batch sizes may round otherwise, so a tie may fall to the other side.
        assert_alike(one, other)


@each_model
def test_no_verb_looks_at_the_mode(name):
    model = build(name)
    given = truths(model)
    kinds = []
    for mode in (True, False):
        model.train(mode)
        raw = model(pictures())
        losses = model.loss(raw, given)
        decoded = model.decode(raw, [(24, 40)] * 2)
        shapes = [(t.shape, t.dtype) for t in tensors(raw)]
        kinds.append((type(raw), shapes, list(losses), [type(r) for r in decoded]))
        assert all(value.ndim == 0 for value in losses.values())
        assert model.training is mode
    assert kinds[0] == kinds[1]


@each_model
def test_forward_leaves_the_pictures_alone(name):
    for size in [(24, 40), (32, 32)]:
        images = pictures(size=size)
        kept = images.clone()
        build(name)(images)
        assert torch.equal(images, kept)


@each_model
@torch.no_grad()
def test_channels_last_gives_the_same(name):
    model = build(name).eval()
    plain = tensors(model(pictures()))
    model.to(memory_format=torch.channels_last)
    other = tensors(model(pictures().to(memory_format=torch.channels_last)))
    for a, b in zip(plain, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@each_model
@torch.no_grad()
def test_a_copy_is_a_model_of_its_own(name):
    model = build(name).eval()
    images = pictures()
    before = tensors(model(images))
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(model(images)), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, tensors(twin(images)), strict=True))


@each_model
@pytest.mark.parametrize(
    "images",
    [
        torch.rand(1, 4, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.rand(3, 8, 8),
        torch.rand(1, 3, 0, 8),
    ],
    ids=["channels", "integers", "three axes", "empty"],
)
def test_other_pictures_are_refused(name, images):
    with pytest.raises(KirieError, match=r"Expected non-empty float images of shape \(B, 3, H, W\)"):
        build(name)(images)


@each_model
def test_other_truths_are_refused(name):
    model = build(name)
    raw = model(pictures())
    few = truths(model, 1)
    with pytest.raises(KirieError):
        model.loss(raw, few)
    with pytest.raises(KirieError, match="one size"):
        model.loss(raw, [*few, *truths(model, 1, (24, 41))])
    other = SemanticMap(np.zeros((24, 40), np.uint8), model.classes)
    if model.task == "semantic":
        other = to_panoptic(other)
    with pytest.raises(KirieError, match=f"learns from .* truths, got {type(other).__name__}"):
        model.loss(raw, [other, other])


@each_model
@pytest.mark.parametrize("count", [0, -1, True, 2.0, "2", None])
def test_no_classes_and_no_channels_are_refused(name, count):
    with pytest.raises(KirieError, match="classes"):
        model_class(name)(3, count, **SMALL[name])
    with pytest.raises(KirieError, match="in_channels"):
        model_class(name)(False if count is True else count, 2, **SMALL[name])


# ---- options


def trained_a_little(model):
    for seed in range(2):  # so that running statistics are no longer what they began as
        model.train()(pictures(seed=seed))
    return model


@each_option
@torch.no_grad()
def test_options_are_kept_in_the_file(name, options, tmp_path):
    model = trained_a_little(build(name, classes=3, **options)).eval()
    found = load(save(model, tmp_path / "model.safetensors"))
    assert options.items() <= found.arguments.items()
    images = pictures(size=(64, 96), seed=9)
    raw, again = model(images), found(images)
    assert all(torch.equal(a, b) for a, b in zip(tensors(raw), tensors(again), strict=True))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in found.named_parameters() if p.requires_grad
    }


@each_option
def test_what_is_frozen_does_not_move_in_a_copy_either(name, options):
    model = build(name, **options)
    first = {n: t.clone() for n, t in model.state_dict().items()}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    places = {n.rpartition(".")[0] for n in frozen}
    assert frozen
    twin = trained_a_little(copy.deepcopy(model).eval())
    together = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval().train()
    for other in (twin, together):
        assert not any(m.training for n, m in other.named_modules() if n in places)
        assert {n for n, p in other.named_parameters() if not p.requires_grad} == frozen
    changed = {n for n, t in twin.state_dict().items() if not torch.equal(t, first[n])}
    assert changed  # batch norms of the head at the least
    assert not {n for n in changed if n.rpartition(".")[0] in places}
    assert all(torch.equal(t, first[n]) for n, t in model.state_dict().items())


@each_option
def test_all_that_is_not_frozen_learns(name, options):
    model = build(name, classes=3, **options).eval()
    total(model, pictures(), truths(model)).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert without == {n for n, p in model.named_parameters() if not p.requires_grad}
