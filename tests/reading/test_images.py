import io
import struct
import subprocess
import sys
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from kirie.errors import KirieError
from kirie.reading.images import (
    MAX_PIXELS,
    image_facts,
    image_size,
    palette_colors,
    read_image,
    read_label_file,
    stretch,
)
from kirie.reading.windows import open_large

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 24, 37
RGB = cv2.GaussianBlur(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), (5, 5), 0)


def _chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png(size, bits, color_type, rows, *extra):
    head = struct.pack(">IIBBBBB", size[1], size[0], bits, color_type, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [_chunk(b"IHDR", head), *extra, _chunk(b"IDAT", packed), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK", "LA"])
def test_8_bit_files_read_as_pillow_reads_them(tmp_path, name, mode):
    picture = Image.fromarray(RGB).convert(mode)
    try:
        picture.save(tmp_path / name)
    except (OSError, ValueError):
        pytest.skip(f"Pillow writes no {mode} as {name}")
    expected = Image.open(tmp_path / name)
    assert image_size(tmp_path / name) == (HEIGHT, WIDTH)
    assert np.array_equal(read_image(tmp_path / name), np.asarray(expected.convert("RGB")))
    grey = read_image(tmp_path / name, 1)
    assert grey.shape == (HEIGHT, WIDTH, 1) and grey.dtype == np.uint8
    assert np.abs(grey[..., 0].astype(int) - np.asarray(expected.convert("RGB").convert("L"))).max() <= 1
    assert np.array_equal(read_image(tmp_path / name, 4), np.asarray(expected.convert("RGBA")))


def test_transparent_palette_and_colour_profile_make_no_noise(tmp_path, capfd):
    picture = Image.fromarray(RGB).convert("P")
    picture.save(tmp_path / "p.png", transparency=bytes(range(256)), icc_profile=b"nonsense" * 40)
    expected = np.asarray(Image.open(tmp_path / "p.png").convert("RGBA"))
    assert np.array_equal(read_image(tmp_path / "p.png"), expected[..., :3])
    assert np.array_equal(read_image(tmp_path / "p.png", 4), expected)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "lzw.tif", "deep.tif"])
def test_exif_rotation_is_that_of_pillow(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / name
    if name == "deep.tif":
        tifffile.imwrite(path, RGB.astype(np.uint16), photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
        picture = read_image(path)
        Image.fromarray(RGB).save(tmp_path / "same.png", exif=exif)
        expected = Image.open(tmp_path / "same.png")
    else:
        more = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
        Image.fromarray(RGB).save(path, exif=exif, **more)
        expected, picture = Image.open(path), read_image(path)
    upright = np.asarray(ImageOps.exif_transpose(expected).convert("RGB"))
    assert image_size(path) == picture.shape[:2] == upright.shape[:2]
    if name == "deep.tif":  # stretched, so only the order of the pixels can be compared
        assert np.corrcoef(picture.ravel(), upright.ravel())[0, 1] > 0.99
    else:
        assert np.array_equal(picture, upright)


def _microscope(shape):
    pixels = RNG.integers(200, 3000, shape).astype(np.uint16)
    pixels[0, 0], pixels[-1, -1] = 0, 65535  # a dead and a hot pixel
    return pixels


def _stretched(pixels):
    low, high = np.percentile(pixels, [0.1, 99.9], method="inverted_cdf")
    return np.clip((pixels - float(low)) / (float(high) - low), 0, 1) * 255


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("shape", [(60, 70), (60, 70, 3)])
def test_16_bits_are_stretched_between_their_percentiles(tmp_path, name, shape):
    pixels = _microscope(shape)
    if name == "a.png":
        cv2.imwrite(str(tmp_path / name), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    else:
        tifffile.imwrite(tmp_path / name, pixels, photometric="rgb" if pixels.ndim == 3 else None)
    read = read_image(tmp_path / name)
    expected = _stretched(pixels)
    assert np.abs(read - (expected if pixels.ndim == 3 else expected[..., None])).max() <= 0.51
    assert read.std() > 60  # dividing by 256 would leave 0..11
    facts = image_facts(tmp_path / name)
    assert (facts.bits, facts.channels) == (16, 3 if pixels.ndim == 3 else 1)


def test_stretching_takes_a_few_bytes_for_each_number():
    pixels = np.full((2000, 2000, 3), 300, np.uint16)
    pixels[:1000] = 900
    tracemalloc.start()
    try:
        stretched = stretch(pixels, is_color=True, has_alpha=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / pixels.size < 4  # counted at once it would be 9
    assert (stretched[:1000] == 255).all() and not stretched[1000:].any()


def test_float_constant_and_broken_numbers(tmp_path):
    ramp = np.linspace(-1, 1, 2000, dtype=np.float32).reshape(40, 50)
    ramp[3, 3], ramp[4, 4] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "f.tif", ramp)
    read = read_image(tmp_path / "f.tif", 1)[..., 0]
    assert read[0, 0] == 0 and read[-1, -1] == 255 and read[3, 3] == 0 and read[4, 4] == 255
    assert (np.diff(read[10:].ravel().astype(int)) >= 0).all()
    tifffile.imwrite(tmp_path / "c.tif", np.full((5, 6), 1234, np.uint16))
    assert not read_image(tmp_path / "c.tif").any()
    sparse = np.zeros((100, 100), np.uint16)
    sparse[5, 5] = 900
    tifffile.imwrite(tmp_path / "s.tif", sparse)
    assert read_image(tmp_path / "s.tif", 1)[5, 5, 0] == 255


def test_16_bit_alpha_is_halved_not_stretched(tmp_path):
    pixels = np.dstack([_microscope((30, 30, 3)), np.full((30, 30), 65535, np.uint16)])
    cv2.imwrite(str(tmp_path / "a.png"), pixels[..., [2, 1, 0, 3]])
    read = read_image(tmp_path / "a.png", 4)
    assert (read[..., 3] == 255).all()
    assert np.array_equal(read[..., :3], read_image(tmp_path / "a.png"))


@pytest.mark.parametrize("planar", [True, False])
def test_many_channels_need_a_tiff_that_has_them(tmp_path, planar):
    pixels = RNG.integers(0, 255, (5, 20, 30), np.uint8)
    path = tmp_path / "m.tif"
    if planar:
        tifffile.imwrite(path, pixels, metadata={"axes": "CYX"})
    else:
        tifffile.imwrite(path, pixels.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    assert np.array_equal(read_image(path, 5), pixels.transpose(1, 2, 0))
    assert image_facts(path)[:2] == ((20, 30), 5)
    with pytest.raises(KirieError, match=r"m\.tif has 5 channels but 3 are asked for"):
        read_image(path)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with pytest.raises(KirieError, match="has 3 channels but 7 are asked for; use pictures with 7"):
        read_image(tmp_path / "a.png", 7)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_infrared_is_no_alpha(tmp_path, dtype):
    pixels = RNG.integers(0, 255, (20, 30, 4)).astype(dtype)
    tifffile.imwrite(tmp_path / "n.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    read = read_image(tmp_path / "n.tif", 4)
    for band in range(4):
        assert np.corrcoef(read[..., band].ravel(), pixels[..., band].ravel())[0, 1] > 0.999
    assert np.array_equal(read_image(tmp_path / "n.tif"), read[..., :3])


def _pages(path, pixels, **options):
    with tifffile.TiffWriter(path) as tiff:
        for page in pixels:
            tiff.write(page, **options)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, pixels: tifffile.imwrite(path, pixels[..., 0], metadata={"axes": "ZYX"}),
        lambda path, pixels: tifffile.imwrite(path, pixels, photometric="rgb"),
        lambda path, pixels: tifffile.imwrite(path, pixels, photometric="rgb", imagej=True),
        lambda path, pixels: Image.fromarray(pixels[0]).save(
            path, save_all=True, append_images=[Image.fromarray(page) for page in pixels[1:]]
        ),
        lambda path, pixels: _pages(path, pixels, photometric="rgb"),
        lambda path, pixels: _pages(path, pixels[..., 0]),
    ],
    ids=["in depth", "RGB", "RGB of ImageJ", "pages of Pillow", "pages of RGB", "pages of grey"],
)
def test_stacks_are_refused(tmp_path, write):
    write(tmp_path / "z.tif", RNG.integers(0, 256, (9, 20, 30, 3), np.uint8))
    with pytest.raises(KirieError, match=r"z\.tif is a stack of 9 pictures"):
        read_image(tmp_path / "z.tif")


def test_pages_of_one_size_are_a_stack_whatever_their_numbers(tmp_path):
    with tifffile.TiffWriter(tmp_path / "z.tif") as tiff:
        tiff.write(np.zeros((20, 30), np.uint16))
        tiff.write(np.zeros((3, 20, 30), np.uint8), photometric="minisblack", metadata={"axes": "ZYX"})
        tiff.write(np.zeros((20, 30, 3), np.uint8), photometric="rgb")
    with pytest.raises(KirieError, match=r"z\.tif is a stack of 5 pictures"):
        read_image(tmp_path / "z.tif")


def test_a_mask_beside_its_picture_makes_no_stack(tmp_path):
    pixels = RNG.integers(0, 256, (20, 30, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "masked.tif") as tiff:
        tiff.write(pixels, photometric="rgb")
        tiff.write(np.ones((20, 30), bool), photometric="mask", subfiletype=4)
    assert np.array_equal(read_image(tmp_path / "masked.tif"), pixels)


def test_each_file_of_an_ome_set_is_its_own_picture(tmp_path):
    images = "".join(
        f'<Image ID="Image:{i}"><Pixels ID="Pixels:{i}" DimensionOrder="XYCZT" Type="uint8" SizeX="30" SizeY="20" '
        f'SizeC="1" SizeZ="1" SizeT="1"><TiffData IFD="0" PlaneCount="1"><UUID FileName="{i}.tif">urn:uuid:{i}</UUID>'
        "</TiffData></Pixels></Image>"
        for i in range(2)
    )
    for i in range(2):
        head = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{i}">'
        tifffile.imwrite(
            tmp_path / f"{i}.tif",
            np.full((20, 30), 50 + 100 * i, np.uint8),
            description=f'<?xml version="1.0"?>{head}{images}</OME>'.encode(),
            metadata=None,
        )
    for i in range(2):
        assert (read_image(tmp_path / f"{i}.tif") == 50 + 100 * i).all()
        with open_large(tmp_path / f"{i}.tif") as picture:
            assert (picture.read(0, 20, 0, 30) == 50 + 100 * i).all()


def test_levels_and_thumbnails_make_no_stack(tmp_path):
    pixels = RNG.integers(0, 256, (40, 60, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "levels.tif") as tiff:
        tiff.write(pixels, photometric="rgb", subifds=1)
        tiff.write(pixels[::2, ::2], photometric="rgb", subfiletype=1)
        tiff.write(pixels[::4, ::4], photometric="rgb")
        tiff.write(pixels[::4, ::4], photometric="rgb")
    assert np.array_equal(read_image(tmp_path / "levels.tif"), pixels)


# Label files


def test_labels_keep_their_numbers(tmp_path):
    ids = RNG.integers(0, 12, (HEIGHT, WIDTH), np.uint8)
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
    palette.save(tmp_path / "p.png")
    palette.save(tmp_path / "four.png", bits=4)
    Image.fromarray(ids).save(tmp_path / "g.png")
    Image.fromarray(ids).save(tmp_path / "g.tif", compression="tiff_adobe_deflate")
    Image.fromarray(np.dstack([ids, np.full_like(ids, 255)])).save(tmp_path / "la.png")
    for name in ("p.png", "four.png", "g.png", "g.tif", "la.png"):
        read = read_label_file(tmp_path / name)
        assert read.dtype == np.uint8 and np.array_equal(read, ids), name
    assert palette_colors(tmp_path / "p.png")[:256] == tuple(map(tuple, np.array(palette.getpalette()).reshape(-1, 3)))
    assert palette_colors(tmp_path / "g.png") == ()


@pytest.mark.parametrize(("bits", "top"), [(1, 1), (2, 3), (4, 15)])
def test_labels_of_few_bits_are_not_spread(tmp_path, bits, top):
    ids = RNG.integers(0, top + 1, (5, 16), np.uint8)
    unpacked = np.unpackbits(ids[..., None], axis=2)[..., 8 - bits :].reshape(5, -1)
    rows = [np.packbits(row).tobytes() for row in unpacked]
    (tmp_path / "a.png").write_bytes(_png((5, 16), bits, 0, rows))
    assert np.array_equal(read_label_file(tmp_path / "a.png"), ids)


def test_16_bit_ids_and_colours(tmp_path):
    ids = RNG.integers(0, 40000, (HEIGHT, WIDTH)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), ids)
    tifffile.imwrite(tmp_path / "a.tif", ids)
    tifffile.imwrite(tmp_path / "i.tif", ids.astype(np.int32))
    tifffile.imwrite(tmp_path / "f.tif", ids.astype(np.float32))
    for name in ("a.png", "a.tif", "i.tif", "f.tif"):
        read = read_label_file(tmp_path / name)
        assert read.dtype == np.uint16 and np.array_equal(read, ids), name
    Image.fromarray(RGB).save(tmp_path / "c.png")
    Image.fromarray(RGB).convert("RGBA").save(tmp_path / "ca.png")
    assert np.array_equal(read_label_file(tmp_path / "c.png"), RGB)
    assert np.array_equal(read_label_file(tmp_path / "ca.png"), RGB)
    tifffile.imwrite(tmp_path / "half.tif", np.full((4, 4), 0.5, np.float32))
    with pytest.raises(KirieError, match=r"half\.tif holds float32 numbers from 0.5 to 0.5"):
        read_label_file(tmp_path / "half.tif")
    tifffile.imwrite(tmp_path / "big.tif", np.full((4, 4), 70000, np.int32))
    with pytest.raises(KirieError, match=r"whole numbers in 0\.\.65535"):
        read_label_file(tmp_path / "big.tif")


# Broken files


def test_huge_header_is_refused_at_once(tmp_path):
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    (tmp_path / "bomb.png").write_bytes(data + _chunk(b"IEND", b""))
    vp8x = struct.pack("<I", 0) + (9999999).to_bytes(3, "little") + (200).to_bytes(3, "little")
    (tmp_path / "bomb.webp").write_bytes(b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0" + vp8x + b"\0" * 20)
    for read in (read_image, read_label_file, image_size):
        with pytest.raises(KirieError, match=r"bomb\.png is 60,000 x 60,000 = 3,600,000,000 pixels") as caught:
            read(tmp_path / "bomb.png")
        assert f"{MAX_PIXELS:,}" in str(caught.value) and "smaller pictures" in str(caught.value)
    with pytest.raises(KirieError, match=r"bomb\.webp is 201 x 10,000,000"):
        read_image(tmp_path / "bomb.webp")


def _saved(name):
    buffer = io.BytesIO()
    large = np.asarray(Image.fromarray(RGB).resize((200, 150)))
    if name == "deep.png":
        return cv2.imencode(".png", large.astype(np.uint16) * 200)[1].tobytes()
    if name == "deep.tif":
        tifffile.imwrite(buffer, large.astype(np.uint16) * 200, photometric="rgb", compression="zlib")
        return buffer.getvalue()
    more = {"progressive": True} if name == "p.jpg" else {}
    Image.fromarray(large).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.split(".")[1]), **more)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.png", "deep.png", "a.jpg", "p.jpg", "a.tif", "deep.tif", "a.bmp", "a.webp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_cut_files_are_errors_not_grey_pictures(tmp_path, name, share, capfd):
    data = _saved(name)
    path = tmp_path / name
    path.write_bytes(data)
    assert read_image(path).shape == (150, 200, 3)
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(KirieError, match=str(path)):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_cut_jpeg_with_a_thumbnail_is_found(tmp_path):
    data = _saved("a.jpg")
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data  # has an end mark of its own
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:2] + thumbnail + data[2:] + b"trailing bytes of a phone")
    assert read_image(path).shape == (150, 200, 3)
    path.write_bytes(data[:2] + thumbnail + data[2 : len(data) // 2])
    with pytest.raises(KirieError, match="ends before its end mark"):
        read_image(path)


def test_damage_inside_is_found(tmp_path, capfd):
    for name in ("a.png", "a.jpg"):
        data = bytearray(_saved(name))
        middle = len(data) * 2 // 3
        data[middle : middle + 64] = b"\xff\x12" * 32
        (tmp_path / name).write_bytes(bytes(data))
        with pytest.raises(KirieError, match=rf"{name} is damaged or cut short"):
            read_image(tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    for name, why in {
        "empty.png": "is empty",
        "text.png": "is no picture",
        "folder.png": "is a folder",
        "missing.png": "no file",
    }.items():
        for read in (read_image, read_label_file, image_size):
            with pytest.raises(KirieError, match=why) as caught:
                read(tmp_path / name)
            assert name in str(caught.value)


def test_header_alone_is_read_for_the_size(tmp_path):
    data = _saved("a.jpg")
    (tmp_path / "a.jpg").write_bytes(data[:700])
    assert image_size(tmp_path / "a.jpg") == (150, 200)


def test_reading_does_not_change_pillow(tmp_path):
    code = (
        "from PIL import Image; before = Image.MAX_IMAGE_PIXELS; import kirie.reading.images; "
        "assert Image.MAX_IMAGE_PIXELS == before"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
