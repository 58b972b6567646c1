"""The report page: whole, self-contained, escaped, in the order a reader needs."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from kirie.drawing.curves import confusion_figure
from kirie.drawing.mistakes import Mark
from kirie.drawing.report import PictureRow, ReportContent, ReportFigure, report_html, write_report
from kirie.errors import KirieError

VOID_TAGS = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags that must close in order, texts and pictures of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.images, self.bars = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        if tag == "img":
            self.images.append(attributes)
        if "--share" in (attributes.get("style") or ""):
            self.bars.append(attributes["style"])
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def picture(width=900, height=600):
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    return np.repeat(np.tile(ramp, (height, 1))[..., None], 3, 2)


def content(**changes):
    row = PictureRow("test/<i>写真</i>.png", 0.25, picture(), picture(), picture(), picture())
    values = {
        "title": 'Cells & "coins" <script>',
        "subtitle": "unet on test",
        "summary": (("mIoU", "0.8312", "Mean over 2 classes."), ("Pictures", "24", "")),
        "conventions": ("One table over the whole data set.",),
        "header": ("class", "IoU", "Dice", "Pixels"),
        "rows": (("<b>cell</b>", 0.625, float("nan"), 12345), ("硬貨", 1.0, None, 0)),
        "colors": ((0, 0, 0), (10, 20, 30)),
        "figures": (ReportFigure("Which class got which.", confusion_figure(np.eye(2), ["a", "b"])),),
        "worst": (row,),
        "best": (PictureRow("best", float("nan"), picture(), None, None),),
        "score_name": "mean IoU",
    }
    return ReportContent(**{**values, **changes})


def test_the_page_is_well_formed_and_every_name_is_escaped(tmp_path):
    path = tmp_path / "runs" / "report.html"
    write_report(path, content())
    text = path.read_text("utf-8")
    page = Page(text)
    assert not page.open
    assert {"<b>cell</b>", "硬貨", "test/<i>写真</i>.png", 'Cells & "coins" <script>'} <= set(page.texts)
    assert "&lt;b&gt;cell&lt;/b&gt;" in text
    assert not {"script", "i><i", "link", "iframe", "a"} & set(page.tags)
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_nothing_is_loaded_from_elsewhere():
    text = report_html(content())
    assert "http://" not in text and "https://" not in text
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text
    assert all(image["src"].startswith("data:image/") for image in Page(text).images)


def test_what_a_reader_needs_first_stands_first():
    text = report_html(content())
    order = ["0.8312", "One table over", "<h2>By class", "<h2>In figures", "<h2>Worst", "<h2>Best"]
    places = [text.index(each) for each in order]
    assert places == sorted(places)


def test_bars_are_as_long_as_their_values_and_missing_values_are_dashes():
    page = Page(report_html(content()))
    assert page.bars == ["--share:62.5%", "--share:100.0%"]
    assert {"0.6250", "1.0000", "12,345"} <= set(page.texts)
    assert page.texts.count("\N{EN DASH}") == 3, "two cells, and the line that says what a dash means"


def test_columns_are_explained_by_the_page_or_by_the_caller():
    text = report_html(content(header=("class", "IoU", "Dice", "Holes"), meanings={"Holes": "Holes < 3 pixels."}))
    assert "TP / (TP + FP + FN)" in text
    assert "Holes &lt; 3 pixels." in text


def test_pictures_are_at_most_480_wide_and_are_the_pictures_given():
    images = Page(report_html(content())).images
    jpegs = [image for image in images if image["src"].startswith("data:image/jpeg")]
    assert len(jpegs) == 5
    decoded = Image.open(io.BytesIO(base64.b64decode(jpegs[0]["src"].split(",")[1])))
    assert decoded.format == "JPEG" and decoded.size == (480, 320)
    assert (jpegs[0]["width"], jpegs[0]["height"]) == ("480", "320")
    expected = np.linspace(0, 255, 480)
    assert np.abs(np.asarray(decoded).mean(2)[160] - expected).max() < 5
    assert jpegs[1]["alt"] == "Truth: test/<i>写真</i>.png"


def test_a_tiny_picture_is_kept_without_loss():
    tiny = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    images = Page(report_html(content(figures=(), worst=(), best=(PictureRow("t", 1, tiny, None, None),)))).images
    assert len(images) == 1
    stored = Image.open(io.BytesIO(base64.b64decode(images[0]["src"].split(",")[1])))
    assert (np.asarray(stored) == tiny).all()


def test_a_report_of_nothing_but_a_title_is_a_page():
    text = report_html(ReportContent("Empty"))
    page = Page(text)
    assert not page.open and page.texts.count("Empty") == 2
    assert "<h2>" not in text


def test_the_marks_of_errors_are_explained_where_errors_are_shown():
    marks = (Mark((1, 2, 3), "dashes", "missed <i>"), Mark((4, 5, 6), "area", "false"))
    page = report_html(content(marks=marks, marks_note="Crowds are <b>hatched</b>."))
    assert '<i class="mark dashes" style="--mark:rgb(1,2,3)"></i>missed &lt;i&gt;' in page
    assert "Crowds are &lt;b&gt;hatched" in page and page.count("mark area") == 1
    assert not Page(page).open
    assert "mark dashes" not in report_html(content(marks=marks, worst=()))


def test_a_png_may_be_given_as_bytes_and_a_broken_letter_is_no_error():
    text = report_html(ReportContent("bad \udcff", figures=(ReportFigure("f", b"\x89PNG"),)))
    assert re.search(r"data:image/png;base64,iVBORw==", text)
    text.encode("utf-8")


def test_what_does_not_fit_is_told_and_an_older_report_survives(tmp_path):
    with pytest.raises(KirieError, match="3 cells and the header 4"):
        content(rows=(("a", 1.0, 2),), colors=())
    with pytest.raises(KirieError, match="colours"):
        content(colors=((0, 0, 0),))
    path = tmp_path / "report.html"
    path.write_text("older")
    with pytest.raises(KirieError, match=r"missing\.png"):
        write_report(path, content(best=(PictureRow("b", 1.0, tmp_path / "missing.png", None, None),)))
    assert path.read_text() == "older"
