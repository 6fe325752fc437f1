"""Pictures are read as they are, or refused by name before they cost memory."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from attlas.images import MAX_PIXELS, encode_map, read_image, read_map, read_pixels, read_profile

RNG = np.random.default_rng(0)


def picture(*shape) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def put(path: Path, image: np.ndarray) -> Path:
    """Writes an image (red, green, blue) in the format that the path's suffix says."""
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)
    return path


def test_formats(tmp_path):
    image = picture(6, 9, 3)
    for suffix in ("png", "bmp", "ppm", "tif"):
        assert np.array_equal(read_image(put(tmp_path / f"image.{suffix}", image)), image)
    assert np.array_equal(read_image(put(tmp_path / "grey.png", image[..., 0])), image[..., :1].repeat(3, 2))
    opaque = np.dstack([image, picture(6, 9)])
    assert cv2.imwrite(str(tmp_path / "opacity.png"), cv2.cvtColor(opaque, cv2.COLOR_RGBA2BGRA))
    assert np.array_equal(read_image(tmp_path / "opacity.png"), image)


def test_exif_orientation_is_followed(tmp_path):
    path = put(
        tmp_path / "turned.jpg", np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 3).reshape(1, 24, 3).repeat(16, 0)
    )
    upright = read_image(path)
    content = path.read_bytes()
    # one EXIF tag: orientation 6, to be turned by a quarter clockwise
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:])
    assert np.array_equal(read_image(path), np.rot90(upright, -1))


# --- all that pixels hold --------------------------------------------------------------------------------------------


UPRIGHT = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(s, m) for s in ("png", "webp", "tif", "jpg") for m in ("L", "RGB", "RGBA") if (s, m) != ("jpg", "RGBA")],
)
def test_pixels_are_upright_as_every_orientation_says(tmp_path, suffix, mode):
    image = Image.fromarray(picture(4, 6, 3)).convert(mode)
    if mode == "RGBA" and suffix in ("png", "webp"):
        image.putalpha(Image.fromarray(picture(4, 6)))
    exact = dict(lossless=True, exact=True) if suffix == "webp" else {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        image.save(tmp_path / f"a.{suffix}", exif=exif, **exact)
        got = read_pixels(tmp_path / f"a.{suffix}")
        if orientation == 1:
            stored = got
            if suffix != "jpg":
                colors = "RGB" if mode == "L" and suffix == "webp" else mode  # which has no grey
                assert np.array_equal(stored, np.array(image.convert(colors)))
        assert np.array_equal(got, UPRIGHT[orientation](stored))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_keep_depth_and_channels(tmp_path, dtype, channels):
    image = RNG.integers(0, np.iinfo(dtype).max, (5, 7, channels), dtype, endpoint=True)
    stored = image[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]]
    for suffix in ("png", "tif") if channels < 4 else ("png",):
        assert cv2.imwrite(str(tmp_path / f"a.{suffix}"), stored)
        got = read_pixels(tmp_path / f"a.{suffix}")
        assert got.dtype == dtype
        assert np.array_equal(got, image[..., 0] if channels == 1 else image)


def test_pixels_that_a_color_of_the_file_makes_transparent(tmp_path):
    """tRNS of PNG: a grey, a color, entries of a palette; which OpenCV drops of grey."""
    colors = picture(5, 7, 3)
    image = Image.fromarray(colors)
    for mode in ("L", "RGB", "P"):
        form = image.convert(mode)
        clear = form.getpixel((2, 1))
        form.save(tmp_path / "a.png", transparency=clear)
        got = read_pixels(tmp_path / "a.png")
        assert np.array_equal(got[..., :3], np.array(form.convert("RGB")))
        expected = np.array([[form.getpixel((x, y)) != clear for x in range(7)] for y in range(5)])
        assert np.array_equal(got[..., 3], 255 * expected)
    deep, bits = np.array([[0, 300], [7, 300]], np.uint16), np.array([[0, 85], [170, 255]], np.uint8)
    key = chunk(b"tRNS", struct.pack(">H", 300))
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep)
    content = (tmp_path / "deep.png").read_bytes()
    (tmp_path / "deep.png").write_bytes(content[:33] + key + content[33:])
    assert np.array_equal(read_pixels(tmp_path / "deep.png")[..., 3], 65535 * (deep != 300))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 2, 0, 0, 0, 0))  # of two bits: 0, 1; 2, 3
    data = chunk(b"IDAT", zlib.compress(b"\0\x10\0\xb0"))
    parts = header, chunk(b"tRNS", struct.pack(">H", 2)), data, chunk(b"IEND", b"")
    (tmp_path / "bits.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    got = read_pixels(tmp_path / "bits.png")
    assert np.array_equal(got[..., 0], bits)
    assert np.array_equal(got[..., 3], 255 * (bits != 170))


def test_inks_become_colors(tmp_path):
    image = Image.fromarray(cv2.resize(picture(4, 6, 3), (48, 32), interpolation=cv2.INTER_CUBIC)).convert("CMYK")
    for suffix, most in (("jpg", 2), ("tif", 1)):
        image.save(tmp_path / f"a.{suffix}")
        expected = np.array(Image.open(tmp_path / f"a.{suffix}").convert("RGB")).astype(int)
        got = read_pixels(tmp_path / f"a.{suffix}")
        assert got.shape == expected.shape
        assert abs(got - expected).max() <= most


@pytest.mark.parametrize("kind", [4, 8, 9, 10, 32_803, 32_844, 32_845])
def test_tiffs_of_colors_that_would_not_be_read_as_stored_are_refused(tmp_path, kind):
    """Masks, three kinds of CIELab, mosaics of sensors and logarithms of light."""
    Image.fromarray(picture(4, 6, 3)).save(tmp_path / "a.tif")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    at = content.index(struct.pack("<HHIHH", 262, 3, 1, 2, 0))
    content[at + 8 : at + 10] = struct.pack("<H", kind)
    (tmp_path / "b.tif").write_bytes(content)
    assert read_pixels(tmp_path / "a.tif").shape == (4, 6, 3)
    with pytest.raises(ValueError, match=r"kind 8 \(CIELab\)" if kind == 8 else "not a readable image"):
        read_pixels(tmp_path / "b.tif")


def test_opacity_that_would_not_be_read_as_stored_is_refused(tmp_path):
    image = Image.fromarray(picture(4, 6, 4))
    image.save(tmp_path / "colors.tif")
    with pytest.raises(ValueError, match="not opaque, whose colors are not read as stored: write it as PNG"):
        read_pixels(tmp_path / "colors.tif")
    image.convert("LA").save(tmp_path / "grey.tif")
    with pytest.raises(ValueError, match="2 samples a pixel, of which not all are read"):
        read_pixels(tmp_path / "grey.tif")
    image.putalpha(255)
    image.save(tmp_path / "opaque.tif")
    assert np.array_equal(read_pixels(tmp_path / "opaque.tif"), np.array(image))


def test_a_grey_jpeg_with_a_mid_grey_corner_is_whole(tmp_path):
    path = put(tmp_path / "a.jpg", np.full((16, 16), 128, np.uint8))
    assert np.array_equal(read_pixels(path), np.full((16, 16), 128))


def test_an_exif_that_breaks_off_turns_nothing(tmp_path):
    content = png(4, 3, chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x09"))
    (tmp_path / "a.png").write_bytes(content)
    assert read_pixels(tmp_path / "a.png").shape == (3, 4)


# --- headers ---------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, data: bytes | None = None) -> bytes:
    """A grey PNG, black if no `data` are given."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes((width + 1) * height)) if data is None else data
    parts = chunk(b"IHDR", header), *chunks, chunk(b"IDAT", packed), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHH", 198, 0, 54, 40, width, height, 1, 24) + bytes(24 + 144)


def tiff(**changed: int) -> bytes:
    """A black image of 4 x 3 pixels, with some of its tags changed."""
    tags = dict(width=4, height=3, bits=8, packing=1, grey=1, places=8, samples=1, rows=3, lengths=12) | changed
    numbers = dict(
        width=256, height=257, bits=258, packing=259, grey=262, places=273, samples=277, rows=278, lengths=279
    ) | dict(tile_width=322, tile_height=323)
    entries = b"".join(struct.pack("<HHII", numbers[name], 4, 1, value) for name, value in tags.items())
    return b"II*\0" + struct.pack("<I", 20) + bytes(12) + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_texts_profiles_and_frames_of_a_png_do_not_reach_the_decoder(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 3, chunk(b"acTL", struct.pack(">II", 2**31, 0)), chunk(b"iCCP", b"x"), chunk(b"zTXt", b"")))
    assert read_image(path).shape == (3, 4, 3)


def test_tiff_of_our_own(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff())
    assert (read_image(path) == np.zeros((3, 4, 3))).all()


def test_a_profile_that_breaks_off_is_an_error_of_its_own(tmp_path):
    """It does not keep the picture from being read."""
    image, profile = (
        Image.fromarray(picture(9, 9, 3)),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    )
    for suffix, old, new in (
        ("png", zlib.compress(profile), None),
        ("jpg", b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\1\2"),  # one part of two
        ("tif", struct.pack("<HHI", 34_675, 7, len(profile)), struct.pack("<HHI", 34_675, 7, 2**31)),
        ("webp", b"acsp", b"ascp"),
    ):
        file = tmp_path / f"a.{suffix}"
        image.save(file, icc_profile=profile)
        assert read_profile(file) == profile
        content = file.read_bytes()
        if suffix == "png":
            content = content[:33] + chunk(b"iCCP", b"name\0\0" + old[:-40]) + content[33:]
        else:
            assert content.count(old) == 1
            content = content.replace(old, new)
        file.write_bytes(content)
        assert read_image(file).shape == read_pixels(file).shape == (9, 9, 3)
        with pytest.raises(ValueError, match=rf"the color profile of .*a\.{suffix} is"):
            read_profile(file)
    assert read_profile(put(tmp_path / "a.bmp", picture(4, 4, 3))) is None


WHOLE = png(4, 3)
BAD = {
    "a BMP of seven times 33 million pixels": (bmp(7, 0x2000006), "7 x 33554438 pixels of 24 bits are declared"),
    "a BMP upside down": (bmp(7, -(2**31)), "7 x 2147483648 pixels of 24 bits"),
    "a BMP without a width": (bmp(0, 6), "0 x 6 pixels are declared"),
    "a chunk that is not there": (WHOLE[:33] + struct.pack(">I", 2_261_625_755) + WHOLE[37:], "of 2261625755 bytes"),
    "a PNG of other bits": (WHOLE[:18] + b"\1" + WHOLE[19:], "the checksum of a chunk b'IHDR' of the PNG is wrong"),
    "a PNG without an end": (WHOLE[:-12], "the PNG breaks off after"),
    "a PNG of a terapixel": (png(2**20, 2**20, data=b""), "1048576 x 1048576 pixels are declared, more than"),
    "a PNG without pixels": (png(4, 3, data=b""), "OpenCV cannot decode it"),
    "a JPEG of a thousand scans": (
        b"\xff\xd8\xff\xc0\0\x0b\x08\0\x08\0\x08\1\1\x11\0" + 1000 * b"\xff\xda\0\2" + b"\xff\xd9", "has 1000 scans"
    ),
    "a JPEG whose end is in its preview": (b"\xff\xd8\xff\xe1\0\6\xff\xd9\0\0\xff\xda\0\2\0\0", "the JPEG breaks off"),
    "a JPEG without a size": (b"\xff\xd8\xff\xda\0\2\xff\xd9\0\0", "the JPEG declares no size"),
    "a TIFF of a terapixel": (tiff(width=2**20, height=2**20), "1048576 x 1048576 pixels are declared, more than max"),
    "a TIFF strip elsewhere": (tiff(lengths=2**32 - 1), "the strips or tiles of the TIFF lie outside its"),
    "a TIFF tile of a terapixel": (tiff(tile_width=2**20, tile_height=2**20), "tiles of 1048576 x 1048576 pixels"),
    "a TIFF of deep pixels": (tiff(samples=60_000), "the TIFF has 60000 bytes a pixel"),
    "a TIFF of nothing": (tiff()[:4], "unpack_from requires"),
    "a PPM of a terapixel": (b"P6 1000000 1000000 255\n" + bytes(9), "1000000 x 1000000 pixels are declared"),
    "a PPM without its last number": (b"P3 2 1 255\n1 2 3 4 5 ", "2 x 1 pixels are declared, which the 21 bytes"),
    "a WebP that breaks off": (b"RIFF\xff\0\0\0WEBPVP8L" + bytes(20), "the WebP of 263 bytes breaks off after 36"),
    "a GIF": (b"GIF89a" + bytes(20), "its 26 bytes do not begin as BMP, JPEG, PNG, PPM, TIFF or WebP"),
    "a web page": (b"<html>", "its 6 bytes do not begin"),
    "nothing": (b"", "its 0 bytes do not begin"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_image_is_refused_by_name(tmp_path, case):
    content, message = BAD[case]
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.png is not a readable image: .*{message}"):
        read_image(path)


def test_most_pixels(tmp_path):
    path = put(tmp_path / "a.png", picture(6, 9, 3))
    assert read_image(path, max_pixels=54).shape == (6, 9, 3)
    with pytest.raises(ValueError, match=r"a\.png is not .* 9 x 6 pixels are declared, more than max_pixels = 53"):
        read_image(path, max_pixels=53)
    assert MAX_PIXELS < 2**27  # six bytes a pixel are less than a gigabyte


@pytest.mark.parametrize("suffix", ["bmp", "jpg", "png", "pbm", "pgm", "ppm", "tif", "webp"])
def test_no_image_reads_when_cut(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    content = put(path, picture(6, 9) if suffix in ("pbm", "pgm") else picture(6, 9, 3)).read_bytes()
    read_image(path)
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=rf"a\.{suffix} is not a readable image: ."):
            read_image(path)


JPEGS = [dict(), dict(IMWRITE_JPEG_OPTIMIZE=1), dict(IMWRITE_JPEG_PROGRESSIVE=1), dict(IMWRITE_JPEG_RST_INTERVAL=4)]


def jpeg(image: np.ndarray, **options) -> bytes:
    flags = [flag for name, value in options.items() for flag in (getattr(cv2, name), value)]
    return cv2.imencode(".jpg", image, flags)[1].tobytes()


def noise(height: int, width: int) -> np.ndarray:
    return cv2.resize(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8), (width, height))


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_a_jpeg_that_was_closed_early_or_filled_with_zeros_is_refused(tmp_path, options):
    whole, path = jpeg(noise(300, 400), **options), tmp_path / "a.jpg"
    path.write_bytes(whole)
    assert read_image(path).shape == (300, 400, 3)
    half = whole[: len(whole) // 2]
    progressive = "IMWRITE_JPEG_PROGRESSIVE" in options
    path.write_bytes(half + b"\xff\xd9")
    if progressive:
        assert read_image(path).shape == (300, 400, 3)  # coarse, but with all of its blocks
    else:
        with pytest.raises(ValueError, match=r"a\.jpg is not .*: the JPEG ends before its last row"):
            read_image(path)
    path.write_bytes(half + bytes(len(whole) - len(half) - 2) + whole[-2:])
    if not options:  # the standard tables, as most cameras write them
        with pytest.raises(ValueError, match=rf"the JPEG has zeros in place of data from byte {len(half)} on"):
            read_image(path)


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_grey_corners_and_flat_images_are_whole(tmp_path, options):
    framed = noise(120, 160)
    framed[-40:] = framed[:, -40:] = 128
    flat = np.full((2000, 3000, 3), 255, np.uint8)
    for image in (framed, np.full((33, 50, 3), 128, np.uint8), flat):
        (tmp_path / "a.jpg").write_bytes(jpeg(image, **options))
        assert np.abs(read_image(tmp_path / "a.jpg")[-8:].astype(int) - image[-8:]).max() < 20
    assert ("IMWRITE_JPEG_OPTIMIZE" in options) <= (bytes(1024) in jpeg(flat, **options))


# --- maps of labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["P", "L"])
def test_indices_are_read_as_they_are_stored(tmp_path, mode, bits):
    """With a palette, and as grey of less than 8 bits, which decoders stretch."""
    image = Image.fromarray(RNG.integers(0, 2**bits, (5, 11), dtype=np.uint8))
    labels = np.array(image)
    if mode == "P":
        image.putpalette(picture(256 * 3).tolist())
        image.save(tmp_path / "a.png", bits=bits, transparency=0)
    else:
        (tmp_path / "a.png").write_bytes(grey_png(labels, bits))
    found = read_map(tmp_path / "a.png")
    assert found.dtype == np.uint8
    assert np.array_equal(found, labels)


def grey_png(labels, bits):
    """A grey PNG of less than 8 bits, which nothing here writes."""
    rows = [np.unpackbits(row[:, None], axis=1)[:, -bits:].ravel() for row in labels]
    data = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_maps_of_16_bits_and_of_grey_colors(tmp_path):
    wide = RNG.integers(0, 65536, (5, 6), dtype=np.uint16)
    assert np.array_equal(read_map(put(tmp_path / "a.png", wide)), wide)
    grey = picture(5, 6)
    opaque = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    assert np.array_equal(read_map(put(tmp_path / "a.png", opaque[..., :3])), grey)
    assert cv2.imwrite(str(tmp_path / "a.png"), opaque)
    assert np.array_equal(read_map(tmp_path / "a.png"), grey)


def test_what_is_no_map(tmp_path):
    colors = np.zeros((4, 4, 3), np.uint8)
    colors[:3] = 128, 0, 0
    with pytest.raises(
        ValueError, match=r"a.png is no map of labels: it holds 2 colors .*: \(128, 0, 0\), \(0, 0, 0\)"
    ):
        read_map(put(tmp_path / "a.png", colors))
    clear = np.zeros((4, 4, 4), np.uint8)
    assert cv2.imwrite(str(tmp_path / "a.png"), clear)
    with pytest.raises(ValueError, match="transparent"):
        read_map(tmp_path / "a.png")
    with pytest.raises(ValueError, match="do not begin as PNG"):
        read_map(put(tmp_path / "a.jpg", colors))
    whole = put(tmp_path / "a.png", colors[..., 0]).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "a.png").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a.png is no map of labels"):
            read_map(tmp_path / "a.png")
    with pytest.raises(ValueError, match="4 x 4 pixels are declared; 15 are the most"):
        read_map(put(tmp_path / "a.png", colors[..., 0]), 15)


def test_a_map_shows_in_colors(tmp_path):
    labels, colors = RNG.integers(0, 256, (7, 9), dtype=np.uint8), picture(256, 3)
    (tmp_path / "a.png").write_bytes(encode_map(labels, colors))
    assert np.array_equal(read_map(tmp_path / "a.png"), labels)
    assert np.array_equal(read_image(tmp_path / "a.png"), colors[labels])


def test_sixteen_bits_stay_if_asked_for(tmp_path):
    deep = np.arange(12, dtype=np.uint16).reshape(2, 2, 3) * 5000
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., ::-1])
    assert np.array_equal(read_image(tmp_path / "a.png", deep=True), deep)
    assert np.array_equal(read_image(tmp_path / "a.png"), deep >> 8)
    cv2.imwrite(str(tmp_path / "b.png"), deep[..., ::-1].astype(np.uint8))
    assert read_image(tmp_path / "b.png", deep=True).dtype == np.uint8


@pytest.mark.parametrize("most", [1, 15, 200, 255, 256, 1023, 60_000, 65_535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_values_of_every_range_are_stretched(tmp_path, kind, most):
    """PGM and PPM declare a largest value, which is white."""
    values = np.linspace(0, most, 30 if kind in (2, 5) else 90).astype(int)
    dtype, full = (np.uint16, 65_535) if most > 255 else (np.uint8, 255)
    held = values.astype(">u2" if most > 255 else "u1").tobytes() if kind > 3 else " ".join(map(str, values)).encode()
    (tmp_path / "a.ppm").write_bytes(b"P%d # made by hand\n6 5\n%d\n" % (kind, most) + held)
    expected = np.floor(values * full / most + 0.5).astype(dtype).reshape((5, 6) if kind in (2, 5) else (5, 6, 3))
    got = read_pixels(tmp_path / "a.ppm")
    assert got.dtype == dtype
    assert np.array_equal(got, expected)
    colors = expected if expected.ndim == 3 else expected[..., None].repeat(3, 2)
    assert np.array_equal(read_image(tmp_path / "a.ppm", deep=True), colors)
    assert np.array_equal(read_image(tmp_path / "a.ppm"), colors >> 8 if most > 255 else colors)


@pytest.mark.parametrize("content", [b"P5 2 1 15\n\x0f\x10", b"P2 2 1 1000\n1000 1001", b"P2 2 1 1000\n-1 1000"])
def test_values_above_the_largest_are_refused(tmp_path, content):
    (tmp_path / "a.pgm").write_bytes(content)
    with pytest.raises(ValueError, match="as the largest value"):
        read_pixels(tmp_path / "a.pgm")
