"""Every architecture on a GPU, beside the same on the CPU. Skipped where there is none."""

import numpy as np
import pytest
import torch

from kirie.prediction.predictor import Predictor
from tests.models.contract import assert_alike, build, each_model, nothing, pictures, tensors, total, truths

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Products in float32: TF32, the default of convolutions, keeps ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@each_model
@torch.no_grad()
def test_outputs_equal_those_of_the_cpu(name):
    model, images = build(name, classes=3).eval(), pictures(size=(48, 80))
    expected = model(images)
    results = model.decode(expected, [(48, 80)] * 2)
    model.cuda()
    raw = model(images.cuda())
    assert all(t.is_cuda for t in tensors(raw))
    for mine, theirs in zip(tensors(raw), tensors(expected), strict=True):
        if mine.shape == theirs.shape and mine.is_floating_point():  # two-stage models may keep another region
            torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-3, atol=1e-3)
    for one, other in zip(model.decode(raw, [(48, 80)] * 2), results, strict=True):
        assert_alike(one, other, share=0.98, atol=1e-3)


@each_model
def test_losses_equal_those_of_the_cpu(name):
    model, images = build(name, classes=3).eval(), pictures()  # without dropout
    given = truths(model)
    expected = model.loss(model(images), given)
    model.cuda()
    terms = model.loss(model(images.cuda()), given)
    assert terms.keys() == expected.keys()
    assert all(term.is_cuda and term.isfinite() for term in terms.values())
    if name not in ("mask_rcnn", "panoptic_fpn"):  # these draw regions by chance, on each device by its own
        for term, value in expected.items():
            torch.testing.assert_close(terms[term].cpu(), value, rtol=1e-3, atol=1e-3)


@each_model
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_learns(name, dtype):
    model = build(name, classes=3).cuda().to(memory_format=torch.channels_last).train()
    images, given = pictures().cuda(), truths(model)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        with torch.autocast("cuda", dtype):
            loss = total(model, images, given)
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@each_model
def test_truths_with_nothing_in_them(name):
    model = build(name).cuda()
    total(model, pictures().cuda(), nothing(model)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@each_model
def test_a_predictor_gives_the_same(name):
    model = build(name, classes=3)
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    on_gpu = Predictor(model, device="cuda")([picture])[0]
    assert_alike(on_gpu, Predictor(model, device="cpu")([picture])[0], share=0.98, atol=1e-3)
