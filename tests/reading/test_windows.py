"""Pictures read in parts: the parts are those of the whole, whatever the file looks like inside."""

import sys

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from kirie.errors import KirieError
from kirie.reading.georeference import georeference
from kirie.reading.images import read_image, read_numbers
from kirie.reading.windows import is_zarr, large_size, open_large

RNG = np.random.default_rng(0)
SIZE = (70, 90)


def noise(dtype=np.uint8, channels=(3,)):
    top = np.iinfo(dtype).max // 3 if np.dtype(dtype).kind == "u" else 1
    return (RNG.random((*SIZE, *channels)) ** 2 * top).astype(dtype)


def parts(path, channels):
    """The whole picture, put together from parts of odd sizes."""
    with open_large(path, channels) as picture:
        assert picture.size == SIZE
        rows = [
            np.concatenate(
                [picture.read(top, min(top + 23, 70), left, min(left + 37, 90)) for left in range(0, 90, 37)], 1
            )
            for top in range(0, 70, 23)
        ]
    return np.concatenate(rows)


TIFFS = {
    "tiles": (noise(), {"tile": (32, 32), "compression": "zlib", "photometric": "rgb"}),
    "strips": (noise(), {"rowsperstrip": 7, "compression": "lzw", "predictor": True, "photometric": "rgb"}),
    "stored": (noise(), {"photometric": "rgb"}),
    "one strip": (noise(), {"rowsperstrip": 70, "compression": "zlib", "photometric": "rgb"}),
    "big-endian 16": (noise(np.uint16), {"byteorder": ">", "photometric": "rgb"}),
    "16 tiles": (noise(np.uint16), {"tile": (16, 48), "compression": "zstd", "photometric": "rgb"}),
    "grey": (noise(channels=()), {"tile": (32, 32)}),
    "grey 16": (noise(np.uint16, ()), {"rowsperstrip": 3, "compression": "zlib"}),
    "float": (noise(np.float32, ()), {"tile": (32, 32)}),
    "planes": (
        np.moveaxis(noise(channels=(3,)), 2, 0),
        {"planarconfig": "separate", "photometric": "rgb", "tile": (32, 32)},
    ),
    "four channels": (
        np.moveaxis(noise(np.uint16, (4,)), 2, 0),
        {"planarconfig": "separate", "photometric": "minisblack"},
    ),
    "big": (noise(), {"bigtiff": True, "tile": (32, 32), "photometric": "rgb"}),
    "ome": (noise(), {"ome": True, "tile": (32, 32), "photometric": "rgb"}),
}


@pytest.mark.parametrize("name", TIFFS)
def test_parts_of_a_tiff_are_those_of_the_whole(name, tmp_path):
    pixels, options = TIFFS[name]
    options = dict(options)
    writer = {key: options.pop(key) for key in ("byteorder", "bigtiff", "ome") if key in options}
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, **writer) as tiff:
        tiff.write(pixels, **options)
    for channels in (4,) if name == "four channels" else (1, 3):
        assert np.array_equal(parts(path, channels), read_image(path, channels)), channels
    with open_large(path, 4 if name == "four channels" else 3) as picture:
        expected = read_numbers(path, picture.channels)
        assert np.array_equal(picture.numbers(10, 40, 5, 50), expected[10:40, 5:50])
    assert large_size(path) == SIZE


def test_jpeg_tiles_and_pyramids_are_read_at_their_finest(tmp_path):
    pixels, path = noise(), tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, subifds=1, tile=(32, 32), compression="jpeg", photometric="ycbcr")
        tiff.write(pixels[::2, ::2], subfiletype=1, tile=(32, 32), compression="jpeg", photometric="ycbcr")
    whole = tifffile.imread(path)
    assert np.array_equal(parts(path, 3), whole)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "palette.png", "turned.jpg", "turned.tif", "palette.tif"])
def test_other_files_are_read_whole_and_given_in_parts(name, tmp_path):
    image = Image.fromarray(noise())
    if name.startswith("palette"):
        image = image.quantize(16)
    exif = Image.Exif()
    if name.startswith("turned"):
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6
    image.save(tmp_path / name, exif=exif)
    assert np.array_equal(parts(tmp_path / name, 3), read_image(tmp_path / name, 3))


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (noise(channels=()), {"photometric": "miniswhite", "tile": (32, 32)}),
        (noise(channels=()) > 20, {"photometric": "miniswhite"}),
        (noise(channels=(4,)), {"photometric": "separated", "tile": (32, 32)}),
        (noise(channels=(2,)), {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"}),
        (noise(channels=(4,)), {"photometric": "rgb", "extrasamples": ["unassalpha"], "tile": (32, 32)}),
    ],
    ids=["white is zero", "one bit", "CMYK", "grey and alpha", "RGBA"],
)
def test_what_is_seen_counts_where_the_numbers_are_others(pixels, options, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    assert np.array_equal(parts(tmp_path / "a.tif", 3), read_image(tmp_path / "a.tif"))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_damaged_tile_changes_little_of_how_the_rest_is_stretched(dtype, tmp_path):
    pixels = noise(dtype, ())
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, pixels, tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        offset, length = tiff.pages[0].dataoffsets[7], tiff.pages[0].databytecounts[7]
    with (tmp_path / "b.tif").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * length)
    with open_large(tmp_path / "a.tif") as sound, open_large(tmp_path / "b.tif") as damaged:
        ours, theirs = damaged.read(32, 70, 0, 90).astype(int), sound.read(32, 70, 0, 90).astype(int)
        assert np.abs(ours - theirs).max() <= 12 and ours.std() > 20
        with pytest.raises(KirieError, match="damaged"):
            damaged.read(0, 32, 0, 90)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ["yx", "yxc", "cyx", "tczyx"])
def test_zarr_arrays_and_ome_groups(version, axes, tmp_path):
    pixels = noise(channels=(3,) if "c" in axes else ())
    shaped = np.moveaxis(pixels, 2, 0) if axes in ("cyx", "tczyx") else pixels
    shaped = shaped[None, :, None] if axes == "tczyx" else shaped
    path = tmp_path / "a.zarr"
    chunks = tuple(min(32, side) for side in shaped.shape)
    if axes == "tczyx":
        group = zarr.create_group(path, zarr_format=version)
        group.create_array("0", shape=shaped.shape, dtype=shaped.dtype, chunks=chunks)[:] = shaped
        scales = {"multiscales": [{"axes": [{"name": a} for a in axes], "datasets": [{"path": "0"}]}]}
        group.attrs.update(scales if version == 2 else {"ome": scales})
    else:
        zarr.create_array(path, shape=shaped.shape, dtype=shaped.dtype, chunks=chunks, zarr_format=version)[:] = shaped
    assert is_zarr(path) and large_size(path) == SIZE
    expected = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
    assert np.array_equal(parts(path, 3), expected)


def test_what_cannot_be_read_in_parts_is_told(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(), tile=(32, 32), compression="zlib", photometric="rgb")
    with pytest.raises(KirieError, match="3 channels but 5"), open_large(path, 5) as picture:
        picture.read(0, 4, 0, 4)
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, np.zeros((4, 20, 20), np.uint8), photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(KirieError, match="stack of 4"), open_large(stack):
        pass
    zarr.create_array(tmp_path / "stack.zarr", shape=(4, 20, 20), dtype="u1", dimension_names=("z", "y", "x"))
    with pytest.raises(KirieError, match="stack of 4"), open_large(tmp_path / "stack.zarr"):
        pass
    zarr.create_group(tmp_path / "group.zarr")
    with pytest.raises(KirieError, match="multiscales"), open_large(tmp_path / "group.zarr"):
        pass
    with pytest.raises(KirieError, match="no file"), open_large(tmp_path / "none.tif"):
        pass
    (tmp_path / "text.tif").write_text("no picture")
    with pytest.raises(KirieError, match="no picture"), open_large(tmp_path / "text.tif"):
        pass
    monkeypatch.setattr("kirie.reading.windows.MAX_PIXELS", 100)
    Image.fromarray(noise()).save(tmp_path / "a.png")
    with pytest.raises(KirieError, match="tiled TIFF"), open_large(tmp_path / "a.png"):
        pass
    monkeypatch.setattr("kirie.reading.windows.PIECE", 1000)
    whole = {"compression": "zlib", "rowsperstrip": len(noise()), "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "one.tif", noise(), **whole)
    with pytest.raises(KirieError, match=r"in pieces of \d+ x \d+ pixels.*tiled TIFF"):
        open_large(tmp_path / "one.tif").__enter__()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(KirieError, match=r"kirie\[large\]"), open_large(path):
        pass


@pytest.mark.parametrize(
    "attributes",
    [
        {"ome": {"multiscales": 3}}, {"multiscales": "abc"}, {"multiscales": [{}]}, {"multiscales": []},
        {"multiscales": [{"datasets": [{"path": "gone"}]}]}, {"multiscales": [{"datasets": [{"path": "group"}]}]},
        {"multiscales": [{"axes": 3, "datasets": [{"path": "array"}]}]},
    ],
)  # fmt: skip
def test_ome_metadata_that_lead_nowhere(tmp_path, attributes):
    group = zarr.create_group(tmp_path / "a.zarr", attributes=attributes)
    group.create_group("group")
    group.create_array("array", shape=(9, 9), dtype="uint8")
    with (
        pytest.raises(KirieError, match=r"a\.zarr has OME metadata that lead to no"),
        open_large(tmp_path / "a.zarr"),
    ):
        pass


@pytest.mark.parametrize("ome", ["x", {"plate": {}}])
def test_other_ome_metadata(tmp_path, ome):
    group = zarr.create_group(tmp_path / "a.zarr", attributes={"ome": ome})
    group.create_array("array", shape=(9, 12), dtype="uint8")
    with pytest.raises(KirieError, match=r"without OME's `multiscales`"), open_large(tmp_path / "a.zarr"):
        pass
    group.attrs["multiscales"] = [{"axes": ["y", "x"], "datasets": [{"path": "array"}]}]
    assert large_size(tmp_path / "a.zarr") == (9, 12)


@pytest.mark.parametrize(
    ("names", "shape", "size"),
    [
        ("y x", (9, 12), (9, 12)), ("x y", (9, 12), (12, 9)), ("dim_0 dim_1", (9, 12), (9, 12)),
        ("northing E", (9, 12), (9, 12)), ("lon N", (9, 12), (12, 9)), ("year y x c", (1, 9, 12, 3), (9, 12)),
        ("c y x s", (1, 9, 12, 3), (9, 12)), ("c y x s", (3, 9, 12, 1), (9, 12)),
        ("scene c Y X", (1, 3, 9, 12), (9, 12)), ("s t c z y x", (1, 1, 3, 1, 9, 12), (9, 12)),
        ("channel height width", (3, 2, 4), (2, 4)), ("c y x s", (1, 9, 12, 1), (9, 12)),
        ("height width rgb", (9, 12, 3), (9, 12)), ("band y x", (3, 9, 12), (9, 12)),
    ],
)  # fmt: skip
def test_names_of_axes(tmp_path, names, shape, size):
    array = zarr.create_array(tmp_path / "a.zarr", shape=shape, dtype="uint8", dimension_names=names.split())
    pixels = noise(channels=(3,) if 3 in shape else ())[: size[0], : size[1]]
    words = names.lower().split()
    upright = pixels.transpose(1, 0) if words[0] in ("x", "lon") else pixels
    array[:] = (np.moveaxis(upright, 2, 0) if 3 in shape and shape[-1] != 3 else upright).reshape(shape)
    assert large_size(tmp_path / "a.zarr") == size
    with open_large(tmp_path / "a.zarr", 3) as picture:
        expected = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
        assert np.array_equal(picture.read(1, 2, 0, 4), expected[1:2, :4])


@pytest.mark.parametrize("names", ["y y", "x y y", "z y c", "c y x s"])
def test_names_of_axes_that_contradict_each_other(tmp_path, names):
    names = names.split()
    zarr.create_array(tmp_path / "a.zarr", shape=(3, 9, 12, 4)[: len(names)], dtype="uint8", dimension_names=names)
    with pytest.raises(KirieError, match="expected one `y`, one `x`, and `c`"), open_large(tmp_path / "a.zarr"):
        pass


@pytest.mark.parametrize(
    ("shape", "kind", "told"),
    [
        ((9, 9), "complex64", "whole or real numbers"), ((9, 9), "<U4", "whole or real numbers"),
        ((0, 9), "uint8", "at least one pixel"), ((9, 9, 4), "uint8", "has 4 channels but 3"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*zarr.*")
def test_zarr_arrays_that_are_no_pictures(tmp_path, shape, kind, told):
    zarr.create_array(tmp_path / "a.zarr", shape=shape, dtype=kind)
    with pytest.raises(KirieError, match=rf"a\.zarr .*{told}"), open_large(tmp_path / "a.zarr"):
        pass


def test_a_tiff_packed_in_one_piece_is_unpacked_once(tmp_path, monkeypatch):
    pixels = noise()
    options = {"compression": "zlib", "rowsperstrip": len(pixels), "photometric": "rgb", "resolution": (100, 200)}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    with open_large(tmp_path / "a.tif") as picture:
        resolution = picture.resolution
    monkeypatch.setattr("kirie.reading.windows.PIECE", 1000)
    with open_large(tmp_path / "a.tif") as picture:
        (tmp_path / "a.tif").unlink()
        assert picture.resolution == resolution and resolution is not None and picture.is_color
        assert np.array_equal(picture.read(3, 20, 5, 30), pixels[3:20, 5:30])


@pytest.mark.parametrize("kind", [np.uint8, ">u2"])
def test_planes_that_lie_apart_are_read_row_by_row(tmp_path, monkeypatch, kind):
    pixels = noise().astype(kind)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.moveaxis(pixels, 2, 0), photometric="rgb", planarconfig="separate", byteorder=">")
    monkeypatch.setattr("kirie.reading.windows.PIECE", 1000)
    monkeypatch.setattr("kirie.reading.windows.MAX_PIXELS", 1000)
    asked = []
    monkeypatch.setattr(np, "fromfile", lambda *a, real=np.fromfile, **k: asked.append(a[2]) or real(*a, **k))
    with open_large(path) as picture:
        assert np.array_equal(picture.numbers(3, 20, 5, 30), pixels[3:20, 5:30])
    assert asked == [17 * pixels.shape[1]] * 3


@pytest.mark.parametrize("options", [{"tile": (32, 32), "compression": "zlib"}, {}], ids=["tiles", "stored"])
def test_a_file_cut_short_is_read_up_to_there(options, tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(), photometric="rgb", **options)
    whole = read_image(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)
    if options:  # tifffile writes the directory first
        with open_large(path) as picture:
            assert np.array_equal(picture.read(0, 30, 0, 90), whole[:30])
            with pytest.raises(KirieError, match=r"a\.tif is damaged"):
                picture.read(60, 70, 0, 90)
    else:
        with open_large(path) as picture:
            assert np.array_equal(picture.read(0, 40, 0, 90), whole[:40])
            with pytest.raises(KirieError, match="ends within rows"):
                picture.read(40, 70, 0, 90)


# Where it lies


def geo(path, extra):
    tifffile.imwrite(path, noise(), photometric="rgb", tile=(32, 32), extratags=extra)
    with open_large(path) as picture:
        return georeference(picture.tags)


KEYS = (1, 1, 0, 2, 1025, 0, 1, 1, 3072, 0, 1, 32633)


def test_pixels_become_map_coordinates(tmp_path):
    scale, tie = (33550, 12, 3, (0.5, 0.25, 0.0), True), (33922, 12, 6, (10.0, 20.0, 0.0, 1000.0, 2000.0, 0.0), True)
    place = geo(tmp_path / "a.tif", [scale, tie, (34735, 3, 12, KEYS, True)])
    assert place.epsg == 32633
    assert place.place(np.array([[10, 20], [12, 24], [0, 0]])).tolist() == [[1000, 2000], [1001, 1999], [995, 2005]]
    point = (*KEYS[:7], 2, *KEYS[8:])
    centred = geo(tmp_path / "b.tif", [scale, tie, (34735, 3, 12, point, True)])
    assert centred.place(np.array([[10.5, 20.5]])).tolist() == [[1000, 2000]]
    matrix = (2.0, 0.5, 0, 100.0, 0.25, -3.0, 0, 50.0, 0, 0, 0, 0, 0, 0, 0, 1.0)
    turned = geo(tmp_path / "c.tif", [(34264, 12, 16, matrix, True)])
    assert turned.epsg is None and turned.place(np.array([[4, 2]])).tolist() == [[109, 45]]
    assert geo(tmp_path / "d.tif", []) is None
