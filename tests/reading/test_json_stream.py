import json
import random

import pytest

from kirie.errors import KirieError
from kirie.reading import json_stream
from kirie.reading.json_stream import json_entries


def read(path):
    return {key: list(entries) for key, entries in json_entries(path)}


def value(rng, depth=0):
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind < 5:
        texts = 'ä"\\\n😀' * rng.randrange(4)
        return [None, True, rng.random() * 10 ** rng.randrange(-9, 30), rng.randrange(-(10**9), 10**9), texts][kind]
    if kind < 7:
        return [value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {f"k{i}": value(rng, depth + 1) for i in range(rng.randrange(4))}


@pytest.mark.parametrize("chunk", [1, 2, 7, 50])
def test_equals_the_standard_library_wherever_the_text_is_cut(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    rng, path = random.Random(chunk), tmp_path / "x.json"
    for _ in range(60):
        whole = {f"{i}é": value(rng) for i in range(rng.randrange(5))}
        text = json.dumps(whole, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1, "\t"]))
        path.write_text(text, encoding=rng.choice(["utf-8", "utf-8-sig"]))
        assert read(path) == {key: entry if isinstance(entry, list) else [entry] for key, entry in whole.items()}
        path.write_text(text[: rng.randrange(len(text))], encoding="utf-8")
        with pytest.raises(KirieError, match="no sound JSON"):
            read(path)


def test_entries_that_are_not_taken_are_passed_over(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, {"b": [2]}, 3], "c": {"a": [9]}, "a": [4]}')
    assert [key for key, _ in json_entries(tmp_path / "x.json")] == ["a", "c", "a"]
    assert [next(entries) for _, entries in json_entries(tmp_path / "x.json")] == [1, {"a": [9]}, 4]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": [1,\n 2 3]}', r"line 2, column 4 \(character 14\): expected a comma or the closing \]"),
        (b'{"a": [1,\n tru]}' + b" " * 3000000, "line 2, column 2 .*expecting value"),
        (b"[1]", "begins with {"),
        (b"", "the file ends"),
        (b'{"a": 1} x', "nothing behind"),
        (b'{"a" 1}', "colon"),
        (b"{a: 1}", "key in quotes"),
        (b'{"a": "\xff"}', "UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "UTF-8"),
        (b'{"a": ' + b"[" * 200000, "too deeply"),
        (b'{"a": [' + b"1" * 5000 + b"]}", "digits"),
        (b'{"a": ["' + b"x" * 2**25 + b'"]}', "at most 16,777,216 characters"),
    ],
)
def test_errors_name_the_file_and_the_place(tmp_path, text, words):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(KirieError, match=words) as caught:
        read(tmp_path / "x.json")
    assert "x.json" in str(caught.value) and len(str(caught.value)) < 500


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(KirieError, match="cannot be read"):
        read(tmp_path / "no.json")
