"""What semantic models share: logits brought to the size of the picture."""

import pytest
import torch
from torch.nn import functional as F

from kirie.errors import KirieError
from kirie.models.parts.label_maps import largest, largest_at
from kirie.models.parts.semantic import SemanticRaw, full_size, resized
from kirie.models.unet import UNet


def test_logits_stay_as_they_are_where_nothing_was_padded():
    logits = torch.rand(2, 3, 4, 5)
    assert full_size(logits, (32, 40), torch.Size((32, 40))) is logits


@pytest.mark.parametrize("align_corners", [False, True])
def test_padding_is_cropped_away_after_the_enlargement(align_corners):
    logits = torch.rand(2, 3, 4, 5)
    found = full_size(logits, torch.Size((32, 40)), (30, 37), align_corners=align_corners)
    enlarged = F.interpolate(logits, size=(32, 40), mode="bilinear", align_corners=align_corners)
    assert torch.equal(found, enlarged[:, :, :30, :37])


def test_aligned_corners_are_enlarged_here_also_without_padding():
    ramp = torch.linspace(0, 1, 3).expand(1, 1, 2, 3)
    found = full_size(ramp, (2, 5), (2, 5), align_corners=True)
    torch.testing.assert_close(found, torch.linspace(0, 1, 5).expand(1, 1, 2, 5))


def test_logits_of_the_padded_size_are_only_cropped():
    logits = torch.rand(1, 2, 8, 8)
    assert torch.equal(full_size(logits, (8, 8), (5, 7)), logits[..., :5, :7])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_give_no_labels(value):
    model = UNet(3, 2, width=4, depth=1)
    logits = torch.rand(2, 2, 8, 8)
    assert len(model.decode(SemanticRaw(logits), [(8, 8)] * 2)) == 2
    logits[1, 0, 3, 4] = value
    with pytest.raises(KirieError, match="gives NaN or infinity for this picture"):
        model.decode(SemanticRaw(logits), [(8, 8)] * 2)


@pytest.mark.parametrize("classes", [2, 5, 150])
@pytest.mark.parametrize(
    ("small", "size"), [((9, 13), (36, 52)), ((8, 8), (61, 37)), ((1, 7), (5, 29)), ((40, 30), (17, 11))]
)
def test_the_largest_of_enlarged_logits_is_found_without_all_of_them(classes, small, size):
    torch.manual_seed(classes)
    coarse = torch.randn(1, classes, 3, 3)
    for logits in (resized(coarse, small), torch.randn(1, classes, *small)):
        expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
        found = largest_at(logits[0], size)
        assert found.shape == size and found.dtype == torch.int64
        reached = expected.gather(0, found[None])[0]
        assert torch.allclose(reached, expected.amax(0), rtol=0, atol=1e-5)
        assert (found == expected.argmax(0)).float().mean() > 0.999


@pytest.mark.parametrize(("share", "size"), [(3, (19, 20)), (64, (64, 64))], ids=["hardly larger", "noise"])
def test_where_most_would_be_compared_all_is_resized(monkeypatch, share, size):
    torch.manual_seed(0)
    logits = F.interpolate(torch.randn(1, 4, share, share), (16, 16), mode="bilinear")[0]
    monkeypatch.setattr("kirie.models.parts.label_maps._in_question", None)
    expected = F.interpolate(logits[None], size, mode="bilinear")[0].argmax(0)
    assert torch.equal(largest_at(logits, size), expected)


def test_the_largest_of_maps_is_the_first_of_equals():
    maps = torch.randint(0, 3, (5, 6, 7)).float()
    assert torch.equal(largest(maps), torch.from_numpy(maps.numpy().argmax(0)))
