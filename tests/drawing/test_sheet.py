"""Contact sheets and the panels of IoU."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kirie.drawing import sheet
from kirie.drawing.sheet import contact_sheet, iou_panels
from kirie.errors import KirieError


def flat(height, width, color):
    return np.full((height, width, 3), color, np.uint8)


def count(image, color):
    return int((np.asarray(image) == color).all(2).sum())


def test_a_sheet_holds_every_picture_at_the_scale_that_fits_its_cell():
    pictures = [
        ("a", [flat(60, 80, (200, 0, 0))]),
        ("b", [flat(60, 80, (0, 200, 0))]),
        ("c", [flat(60, 80, (0, 0, 200))]),
    ]
    drawn = contact_sheet(pictures, columns=2, cell=(240, 320))
    for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200)):
        assert count(drawn, color) == 240 * 320
    assert drawn.width == 12 + 2 * (320 + 12)
    assert drawn.height > 2 * 240


def test_two_pictures_share_a_cell_and_keep_their_shape():
    drawn = contact_sheet([("pair", [flat(100, 100, (200, 0, 0)), flat(50, 100, (0, 200, 0))])], cell=(240, 320))
    rows, columns = np.nonzero((np.asarray(drawn) == (200, 0, 0)).all(2))
    assert np.ptp(rows) == np.ptp(columns) == 158
    rows, columns = np.nonzero((np.asarray(drawn) == (0, 200, 0)).all(2))
    assert abs((np.ptp(columns) + 1) / (np.ptp(rows) + 1) - 2) < 0.05


def test_columns_never_exceed_the_pictures_and_captions_of_any_kind_are_drawn():
    for caption in ("名前" * 100, "a\nb", "\udcff", ""):
        assert contact_sheet([(caption, [flat(50, 50, (9, 9, 9))])], columns=4).width == 12 + 320 + 12


def test_a_long_caption_stays_in_its_cell():
    drawn = np.asarray(contact_sheet([("x" * 500, [flat(240, 320, (9, 9, 9))])]))
    caption = (drawn[12 + 240 :] < 128).all(2)
    assert caption.any()
    assert not caption[:, 12 + 321 :].any()


def test_grey_arrays_pillow_pictures_and_paths_may_be_mixed(tmp_path):
    Image.fromarray(flat(32, 32, (0, 200, 0))).save(tmp_path / "a.png")
    images = [np.zeros((32, 32), np.uint8), Image.new("RGB", (32, 32), (200, 0, 0)), tmp_path / "a.png"]
    drawn = contact_sheet([("three", images)])
    assert count(drawn, (200, 0, 0)) and count(drawn, (0, 200, 0)) and count(drawn, (0, 0, 0))


def test_what_makes_no_sheet_is_told():
    with pytest.raises(KirieError, match="at least one picture"):
        contact_sheet([])
    with pytest.raises(KirieError, match="no picture"):
        contact_sheet([("empty", [])])
    with pytest.raises(KirieError, match="columns"):
        contact_sheet([("a", [flat(9, 9, (1, 1, 1))])], columns=0)


def test_iou_panels_of_exercise_two_show_the_true_numbers(monkeypatch):
    """Two masks with areas 15 and 14 that share 12 of 17 pixels: IoU 12 / 17 = 0.7059."""
    truth, result = np.zeros((5, 6), int), np.zeros((5, 6), int)
    truth.ravel()[:15] = 1
    result.ravel()[3:17] = 1
    seen = {}
    real = sheet.contact_sheet
    monkeypatch.setattr(sheet, "contact_sheet", lambda panels, **rest: seen.update(panels) or real(panels, **rest))
    drawn = iou_panels(truth, result)
    assert list(seen) == [
        "Truth: 15 pixels",
        "Prediction: 14 pixels",
        "Intersection: 12 pixels",
        "Union: 17 pixels, IoU = 0.7059",
    ]
    assert drawn.width == 12 + 4 * (320 + 12)
    purple = (seen["Union: 17 pixels, IoU = 0.7059"][0] == (120, 81, 169)).all(2)
    assert (purple == ((truth + result) > 0)).all()


def test_two_empty_masks_agree_and_masks_must_match(monkeypatch):
    seen = {}
    monkeypatch.setattr(sheet, "contact_sheet", lambda panels, **rest: seen.update(panels))
    iou_panels(np.zeros((4, 4), bool), np.zeros((4, 4), bool))
    assert "Union: 0 pixels, IoU = 1.0000" in seen
    with pytest.raises(KirieError, match="one shape"):
        iou_panels(np.zeros((4, 4), bool), np.zeros((4, 5), bool))
