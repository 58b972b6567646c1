"""Figures: what they show, and that nothing global is touched."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix

from kirie.drawing.curves import confusion_figure, distribution_figure, figure_png, history_figure, lines_figure
from kirie.errors import KirieError


def history(epochs=12):
    return [
        {
            "epoch": e + 1,
            "loss": 2 / (e + 1),
            "loss_dice": 1 / (e + 1),
            "val_loss": 2.2 / (e + 1),
            "val_miou": math.nan if e % 2 else 0.8 - 0.1 * abs(e - 6),
            "lr": 1e-3 * (1 - e / epochs),
        }
        for e in range(epochs)
    ]


def test_a_history_is_a_png_of_three_panels(tmp_path):
    history_figure(history(), tmp_path / "new" / "history.png")
    with Image.open(tmp_path / "new" / "history.png") as image:
        assert image.format == "PNG"
        assert image.size == (int(3 * 4.6 * 144), int(3.4 * 144))
        assert np.asarray(image.convert("L")).std() > 5
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["history.png"]


def test_the_best_epoch_of_the_first_score_is_marked(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("kirie.drawing.curves.figure_png", lambda figure: figures.append(figure) or b"png")
    history_figure(history(), tmp_path / "history.png")
    losses, scores, rate = figures[0].axes
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["training", "Dice", "validation"]
    assert [text.get_text() for text in scores.get_legend().get_texts()] == ["mIoU", "best mIoU 0.8000, epoch 7"]
    assert list(scores.lines[0].get_xdata()) == [1, 3, 5, 7, 9, 11], "epochs without a score leave no point"
    assert rate.lines[0].get_ydata()[0] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("rows", "panels"),
    [
        ([{"loss": 1.0}], 1),
        ([{"epoch": 1, "loss": math.nan, "val_miou": math.nan, "lr": 0.1}], 3),
        ([{"epoch": 1, "loss": 1.0, "val_pq": ""}, {"epoch": 2, "lr": 1e-3}], 3),
    ],
)
def test_short_and_broken_histories_are_drawn(tmp_path, rows, panels):
    history_figure(rows, tmp_path / "history.png")
    with Image.open(tmp_path / "history.png") as image:
        assert image.width == int(panels * 4.6 * 144)


def test_a_history_without_anything_to_draw_is_told(tmp_path):
    with pytest.raises(KirieError, match="no rows"):
        history_figure([], tmp_path / "history.png")
    with pytest.raises(KirieError, match="only epoch, seconds"):
        history_figure([{"epoch": 1, "seconds": 3.0}], tmp_path / "history.png")
    assert not (tmp_path / "history.png").exists()


def test_confusion_rows_are_shares_of_the_truth_as_scikit_learn_has_them():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 500)
    result = np.where(rng.random(500) < 0.7, truth, rng.integers(0, 4, 500))
    figure = confusion_figure(confusion_matrix(truth, result), ["a", "b", "c", "d"])
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, confusion_matrix(truth, result, normalize="true"))
    written = {text.get_text() for text in figure.axes[0].texts}
    assert f"{100 * shown[2, 2]:.0f}" in written


def test_no_class_is_a_column_only_where_it_has_counts_and_an_absent_class_is_told():
    table = np.array([[5, 1, 0], [0, 0, 0]])
    assert confusion_figure(table, ["a", "b"]).axes[0].images[0].get_array().shape == (2, 2)
    table[0, 2] = 2
    figure = confusion_figure(table, ["a", "b"])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a", "b", "no class"]
    assert "not in the truth" in [text.get_text() for text in figure.axes[0].texts]


def test_many_classes_go_without_numbers_and_very_many_without_names():
    for count, named in ((31, True), (150, False)):
        axes = confusion_figure(np.eye(count), [f"class {i}" for i in range(count)]).axes[0]
        assert not axes.texts
        assert ("class 1" in [label.get_text() for label in axes.get_xticklabels()]) is named


def test_names_in_any_script_are_drawn_without_a_warning():
    names = ["道路", "$x_{$", "Größe", "\U0001f600", "a\nb \udcff"]
    png = figure_png(confusion_figure(np.eye(5), names))
    with Image.open(io.BytesIO(png)) as image:
        assert min(image.size) > 300
    assert figure_png(distribution_figure([0.5, 0.7], "平均 IoU $"))


def test_letters_that_no_font_has_become_question_marks(monkeypatch):
    monkeypatch.setattr("kirie.drawing.curves.font_file_for", lambda text: None)
    figure = confusion_figure(np.eye(2), ["道路 a", "b"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["?? a", "b"]
    assert figure_png(figure)


def test_a_table_that_does_not_fit_is_told():
    with pytest.raises(KirieError, match=r"\(2, 2\) or \(2, 3\)"):
        confusion_figure(np.eye(3), ["a", "b"])


def test_a_distribution_counts_every_finite_value_and_marks_the_median():
    values = [0.0, 0.2, 0.9, 1.0, math.nan]
    axes = distribution_figure(values, "IoU of each picture").axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 4
    assert axes.get_xlim() == (0, 1)
    assert axes.get_legend().get_texts()[0].get_text() == "median 0.550"
    assert axes.get_ylabel() == "pictures (of 4)"
    assert figure_png(distribution_figure([7.0], "seconds"))
    with pytest.raises(KirieError, match="at least one finite"):
        distribution_figure([math.nan], "IoU")


def test_lines_are_the_values_and_differ_without_colours():
    x = np.linspace(0, 1, 5)
    figure = lines_figure(x, {"a": x**2, "b": np.array([0.5, np.nan, 0.25, 0, 1])}, across="recall", up="precision")
    (axes,) = figure.axes
    first, second = axes.lines
    np.testing.assert_array_equal(first.get_ydata(), x**2)
    assert math.isnan(second.get_ydata()[1]) and first.get_linestyle() != second.get_linestyle()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("recall", "precision") and figure_png(figure)[1:4] == b"PNG"
    with pytest.raises(KirieError, match="precision needs at least one"):
        lines_figure(x, {"a": x * np.nan}, across="recall", up="precision")


def test_drawing_leaves_pyplot_alone_and_the_package_is_light(tmp_path):
    code = (
        "import sys, kirie.drawing\n"
        "assert not {'matplotlib', 'cv2', 'PIL'} & set(sys.modules), 'kirie.drawing is not lazy'\n"
        "from kirie.drawing import distribution_figure, figure_png\n"
        "figure_png(distribution_figure([0.5], 'IoU'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
