"""The table of costs in docs/models.md against what `kirie models` counts: every row, every number as it is printed."""

import re
from functools import partial
from pathlib import Path

import pytest
import yaml

from kirie.models import overview

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
ROW = re.compile(
    r"\| (?:`(?P<model>\w+)`)? *\| (?P<arguments>.*?) *\| (?P<parameters>\d+\.\d) \| (?P<gflops>\d+\.\d) \|"
)
WORDS = {  # arguments that the page tells in words
    "": {},
    "ResNet-50": {"encoder": "resnet50"},
    "the paper's width of 64": {"width": 64},
    "the release on MobileNetV3": {
        "encoder": "mobilenetv3_large_100",
        "encoder_options": {"dilate_first": True, "norm_eps": 0.001, "first_blocks": True},
        "output_stride": 16,
        "auxiliary_stride": 8,
    },
}


def rows():
    found = []
    model = ""
    for match in ROW.finditer(PAGE.read_text(encoding="utf-8")):
        model = match["model"] or model
        words = match["arguments"].strip("`")
        arguments = WORDS[words] if words in WORDS else yaml.safe_load(words)
        found.append(pytest.param(model, arguments, match["parameters"], match["gflops"], id=f"{model} {words}"))
    return found


def test_all_rows_are_read():
    table = PAGE.read_text(encoding="utf-8").partition("## What they cost")[2].partition("\n## ")[0]
    assert len(rows()) == sum(line.startswith("|") for line in table.splitlines()) - 2 > 20


@pytest.mark.parametrize(("model", "arguments", "parameters", "gflops"), rows())
def test_a_row_says_what_is_counted(model, arguments, parameters, gflops, monkeypatch):
    build = partial(overview.model_class(model), **arguments)
    monkeypatch.setattr(overview, "model_class", lambda _: build)
    facts = overview.describe(model)
    assert (f"{facts.parameters / 1e6:.1f}", f"{facts.gflops:.1f}") == (parameters, gflops)
