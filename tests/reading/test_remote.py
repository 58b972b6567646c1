"""Addresses of pictures in other stores: which ones are meant, what is read, and what is said when it cannot be."""

import json
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from tiny import blobs, painted

from kirie.errors import KirieError
from kirie.prediction.manifest import File
from kirie.reading.headers import IMAGE_SUFFIXES
from kirie.reading.images import image_facts, read_image
from kirie.reading.remote import Url, is_url, pictures_at


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bucket():
    """A store in memory with three pictures and other things."""
    store = fsspec.filesystem("memory")
    Image.fromarray(painted(blobs((8, 9)))).save("a.png")
    for name in ("b.png", "a.PNG", "deep/c.png", ".hidden.png"):
        store.pipe(f"/bucket/{name}", Path("a.png").read_bytes())
    store.pipe("/bucket/notes.txt", b"no picture")
    yield store
    store.rm("/bucket", recursive=True)


def found(url):
    return pictures_at(url, IMAGE_SUFFIXES)


def test_what_is_a_url():
    assert all(is_url(text) for text in ("s3://bucket/a.png", "https://example.org", "zip://*.png::s3://b/a.zip"))
    assert not any(is_url(text) for text in ("a.png", "/a//b.png", r"C:\a.png", "C:/a.png", "a:b.png", "://a"))


def test_files_folders_and_patterns(bucket):
    assert found("memory://bucket") == ["memory:///bucket/a.PNG", "memory:///bucket/b.png"]
    assert found("memory://bucket/*.png") == ["memory:///bucket/.hidden.png", "memory:///bucket/b.png"]
    assert found("memory://bucket/**/c.png") == ["memory:///bucket/deep/c.png"]
    assert found("memory://bucket/missing.png") == ["memory://bucket/missing.png"], "told in its turn"


def test_an_archive_is_a_store():
    Image.fromarray(painted(blobs((8, 9)))).save("a.png")
    with zipfile.ZipFile("all.zip", "w") as archive:
        for name in ("x/1.png", "x/2.png", "y/3.png"):
            archive.write("a.png", name)
    assert found("zip://x/*.png::all.zip") == ["zip://x/1.png::all.zip", "zip://x/2.png::all.zip"]
    assert found("zip://x::all.zip") == found("zip://x/*.png::all.zip")
    one = Url("zip://y/3.png::all.zip", Path("."))
    assert (one.name, one.stem, one.suffix, one.parent.name) == ("3.png", "3", ".png", "y")
    assert np.array_equal(read_image(one), read_image("a.png")) and image_facts(one) == image_facts("a.png")


def test_the_own_file_system_by_its_scheme():
    assert found(f"file://{Path.cwd()}/photos/*.png") == Path.cwd() / "photos/*.png"
    assert found("local://photos") == Path.cwd() / "photos"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nowhere://bucket/a", "Protocol not known"),
        ("zip://*.png::missing.zip", "missing.zip"),
        ("memory://nothing/*.png", "No file matches"),
        ("memory://bucket/deep/*.jpg", "No file matches"),
    ],
)
def test_an_address_of_nothing(bucket, url, told):
    with pytest.raises(KirieError, match=told) as caught:
        found(url)
    assert url in str(caught.value)


def test_a_folder_without_pictures(bucket):
    bucket.pipe("/bucket/texts/a.txt", b"a")
    with pytest.raises(KirieError, match="holds no pictures"):
        found("memory://bucket/texts")


def test_a_copy_is_made_once_and_messages_name_the_address(bucket, monkeypatch):
    Path("copies").mkdir()
    one = Url("memory://bucket/b.png", Path("copies"))
    assert np.array_equal(read_image(one), read_image("a.png"))
    (copy,) = Path("copies").iterdir()
    assert copy == one.local() and copy.suffix == ".png"
    bucket.rm("/bucket/b.png")
    assert image_facts(one).size == (8, 9), "the copy is still there"
    other = Url("memory://bucket/b.png?", Path("copies"))
    with pytest.raises(KirieError, match=r"^There is no file memory://bucket/b\.png\?\.$"):
        read_image(other)
    with pytest.raises(KirieError, match=r"notes\.txt is no picture"):
        read_image(Url("memory://bucket/notes.txt", Path("copies")))
    with pytest.raises(KirieError, match="--engine ray"):
        read_image(Url("memory://bucket/notes.txt"))


def test_a_store_that_fails_in_the_middle_leaves_no_part_of_a_copy(bucket, monkeypatch):
    def broken(self, place, copy, **_):
        Path(copy).write_bytes(b"half")
        raise ConnectionError("the line\nwent dead.")

    monkeypatch.setattr(type(bucket), "get_file", broken)
    with pytest.raises(KirieError, match=r"^memory://bucket/b\.png cannot be read: the line went dead\.$"):
        Url("memory://bucket/b.png", Path(".")).local()
    assert [path.name for path in Path(".").iterdir()] == ["a.png"]


def test_the_state_changes_with_the_file():
    def state():
        return File(Url("zip://a.txt::all.zip"), "a", "a.txt", 1).state()

    states = []
    for text in ("one", "two"):
        with zipfile.ZipFile("all.zip", "w") as archive:
            archive.writestr("a.txt", text)
        states += [state(), json.loads(json.dumps(state()))]
        fsspec.AbstractFileSystem.clear_instance_cache()
    assert states[0] == states[1] != states[2] == states[3] and states[0][4] == 3
    assert File(Url("zip://b.txt::all.zip"), "b", "b.txt", 1).state()[4:] == [-1, ""]
