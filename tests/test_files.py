"""Files are written whole or not at all, whatever goes wrong on the way."""

import os
import stat

import pytest

from kirie.errors import KirieError
from kirie.files import remove_stand_ins, stand_in_of, whole_file, write_text


@pytest.fixture
def target(tmp_path):
    """A file that an earlier run wrote."""
    path = tmp_path / "report.json"
    path.write_text("earlier")
    return path


def test_the_block_replaces_the_file_when_it_ends_well(target):
    with whole_file(target) as stand_in:
        assert stand_in != target and stand_in.parent == target.parent and stand_in.suffix == ".json"
        stand_in.write_text("new")
        assert target.read_text() == "earlier"
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["report.json"]


@pytest.mark.parametrize("fault", [ValueError("bad"), KeyboardInterrupt(), KirieError("worse")])
def test_a_fault_in_the_block_leaves_the_earlier_file_and_nothing_else(target, fault):
    with pytest.raises(type(fault)) as caught, whole_file(target) as stand_in:
        stand_in.write_text("half of it")
        raise fault
    assert caught.value is fault
    assert target.read_text() == "earlier"
    assert os.listdir(target.parent) == ["report.json"]


def test_a_full_disk_is_an_error_that_names_the_file(target):
    with pytest.raises(KirieError, match=r"report\.json: No space left on device.*earlier files are untouched"):
        with whole_file(target) as stand_in:
            stand_in.write_text("half of it")
            with open("/dev/full", "w") as full:  # a device on which every write meets a full disk
                full.write("x" * 100_000)
    assert target.read_text() == "earlier"
    assert os.listdir(target.parent) == ["report.json"]


def test_missing_folders_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "héllo 切り絵")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "héllo 切り絵".encode()


def test_a_folder_under_a_file_is_refused(target):
    with pytest.raises(KirieError, match="Cannot write"):
        write_text(target / "inside.txt", "x")
    assert target.read_text() == "earlier"


def test_a_folder_or_device_as_target_is_refused(tmp_path):
    (tmp_path / "place").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("place", "pipe"):
        with pytest.raises(KirieError, match="folder or a device; give the name of a file"):
            write_text(tmp_path / name, "x")
    assert sorted(os.listdir(tmp_path)) == ["pipe", "place"]
    assert (tmp_path / "place").is_dir()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "x.txt", "x")
        assert os.umask(umask) == umask  # not touched on the way
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.txt").stat().st_mode) == 0o666 & ~umask


def test_names_without_ending_and_long_names_work(tmp_path):
    for name in ("plain", ".hidden", "切" * 80, "a" * 255):
        write_text(tmp_path / name, name)
        assert (tmp_path / name).read_text(encoding="utf-8") == name
    assert len(os.listdir(tmp_path)) == 4


def test_a_block_that_moves_its_file_away_is_an_error(target):
    with pytest.raises(KirieError, match="Cannot write"), whole_file(target) as stand_in:
        stand_in.unlink()
    assert target.read_text() == "earlier"


def test_stand_ins_of_some_files_are_cleared_away(tmp_path):
    long = [tmp_path / f"{'plate' * 20}_{number}.tif" for number in range(2)]
    ours = [long[0], tmp_path / "folder" / "plain", tmp_path / "切り絵.zarr"]
    others = [long[1], tmp_path / "plain", tmp_path / "切り絵.png"]
    for path in (*ours[:2], *others):
        path.parent.mkdir(exist_ok=True)
        stand_in_of(path).touch()
    (stand_in_of(ours[2]) / "c").mkdir(parents=True)
    remove_stand_ins(lambda: ours)
    left = [path for path in tmp_path.rglob("*") if path != tmp_path / "folder"]
    assert sorted(path.suffix for path in left) == ["", ".png", ".tif"]
    remove_stand_ins(lambda: others)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_a_stand_in_with_a_link_to_nothing_goes(tmp_path):
    folder = stand_in_of(tmp_path / "a.zarr")
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "gone")
    remove_stand_ins(lambda: [tmp_path / "a.zarr"], until=2**40)
    assert not list(tmp_path.iterdir())


def test_a_stand_in_that_is_written_now_stays(tmp_path):
    path = tmp_path / "a.zarr"
    old, live = stand_in_of(path), stand_in_of(path)
    for folder, changed in ((old, 1000), (live, 3000)):
        (folder / "c").mkdir(parents=True)
        (folder / "c" / "0").touch()
        os.utime(folder / "c" / "0", (changed, changed))
        for each in (folder / "c", folder):
            os.utime(each, (1000, 1000))
    remove_stand_ins(lambda: [path], until=2000)
    assert [each.name for each in tmp_path.iterdir()] == [live.name]
