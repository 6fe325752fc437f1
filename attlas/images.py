"""Reading a picture from a file. OpenCV decodes; its header is read here first.

Known by its first bytes, a file is BMP, JPEG, PNG, PPM (also PBM and PGM), TIFF or WebP; OpenCV's other decoders are
never asked. What a header declares must fit into the file and stay below `max_pixels`, before anything is decoded.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .files import replacing

SUFFIXES = (
    ".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip

# From here on Pillow warns of a decompression bomb: decoded, this is a quarter of a gigabyte, for which a file of a few
# kilobytes can ask.
MAX_PIXELS = 89_478_485
PNG = b"\x89PNG\r\n\x1a\n"  # how it begins
EXIF_ORIENTATION = 0x112


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS, upright: bool = True, deep: bool = False) -> np.ndarray:
    """An image file as uint8 (H, W, 3), red, green, blue, turned as its EXIF orientation says; grey is given three
    times, opacity is dropped; of several pages or frames the first is read.

    Args:
        max_pixels: most pixels of an image, of width times height.
        upright: whether EXIF turns the image; its pixels are else in the order in which they are stored.
        deep: whether 16 bits stay 16 bits (uint16), instead of being cut to 8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, declares more pixels than that, or breaks off. The message names the file.
    """
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    flags |= cv2.IMREAD_ANYDEPTH if deep else 0
    return _read(path, max_pixels, lambda content, header: _decoded(content, flags))


def read_pixels(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image file with all that its pixels hold: uint8, or of 16 bits uint16; grey (H, W), or red, green and blue
    (H, W, 3), or these and opacity (H, W, 4). Turned as its EXIF orientation says; of several pages or frames the first
    is read. A palette gives its colors, CMYK red, green and blue, and grey with opacity three equal colors with it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as of `read_image`; or it has opacity that OpenCV would drop, as grey TIFF files may, or is a
            TIFF of colors that OpenCV would change, as CIELab.
    """
    return _read(path, max_pixels, _whole_pixels)


def _read(path: str | Path, max_pixels: int, decode: Callable[[bytes, Any], np.ndarray]) -> np.ndarray:
    """What `decode` makes of a file, whose header was held to its content, and of the one of HEADERS that read it."""
    with open(path, "rb") as file:
        content = file.read()
    try:
        for begin, header in HEADERS.items():
            if content.startswith(begin):
                height, width, content = header(content)
                break
        else:
            raise ValueError(f"its {len(content)} bytes do not begin as BMP, JPEG, PNG, PPM, TIFF or WebP")
        if height < 1 or width < 1:
            raise ValueError(f"{width} x {height} pixels are declared")
        if height * width > max_pixels:
            raise ValueError(f"{width} x {height} pixels are declared, more than max_pixels = {max_pixels:,}")
        image = decode(content, header)
        if header is _jpeg and _ends_early(content, image, decode):
            raise ValueError("the JPEG ends before its last row; a decoder makes the rest grey")
        if sorted(image.shape[:2]) != sorted((height, width)):
            raise ValueError(f"{width} x {height} pixels are declared, and {image.shape[1]} x {image.shape[0]} decoded")
    except (cv2.error, ValueError, struct.error) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error
    return image


def _decoded(content: bytes, flags: int) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if image is None:
        raise ValueError(f"OpenCV cannot decode it ({len(content)} bytes)")
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"its numbers are {image.dtype}; 8 and 16 bits are read")
    return image


def _whole_pixels(content: bytes, header: Any) -> np.ndarray:
    if header is _jpeg:
        image = _decoded(content, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    else:  # the only flag that keeps opacity; of TIFF it turns the image too, of the others not
        image = _decoded(content, cv2.IMREAD_UNCHANGED)
    if header is _tiff:
        image = _of_tiff(image, _tiff_tags(content))
    if header is _png and content[KIND] == GREY and (at := content.find(b"tRNS", 0, content.index(b"IDAT"))) >= 0:
        (clear,) = struct.unpack_from(">H", content, at + 4)
        clear *= 255 // (2 ** content[DEPTH] - 1) if content[DEPTH] < 8 else 1
        opacity = np.where(image == clear, 0, np.iinfo(image.dtype).max).astype(image.dtype)
        image = np.dstack([image, image, image, opacity])
    if header in (_png, _webp):
        image = _turned(image, _orientation(content, header is _png))
    if image.ndim == 2:
        return image
    order = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return cv2.cvtColor(image, order)


def _of_tiff(image: np.ndarray, tags: Mapping[int, np.ndarray]) -> np.ndarray:
    """What OpenCV made of a TIFF, unless that is not what the file holds.

    Of four samples of 8 bits libtiff multiplies the colors by the opacity, or not, as the file calls it.
    """
    photometric, samples = (int(tags[tag][0]) if tag in tags else 1 for tag in (TIFF_PHOTOMETRIC, TIFF_SAMPLES))
    channels = 1 if image.ndim == 2 else image.shape[2]
    if photometric not in TIFF_COLORS:
        raise ValueError(
            f"the colors of the TIFF are of kind {photometric}{' (CIELab)' * (photometric in TIFF_LAB)}, which are not "
            "read as stored: write it as PNG"
        )
    if photometric == TIFF_CMYK and image.dtype == np.uint8 and samples == 4:
        return np.ascontiguousarray(image[..., :3])
    if photometric == TIFF_CMYK or samples > channels:
        raise ValueError(f"the TIFF has {samples} samples a pixel, of which not all are read: write it as PNG")
    if channels == 4 and not (image[..., 3] == np.iinfo(image.dtype).max).all():
        raise ValueError(
            "the TIFF has pixels that are not opaque, whose colors are not read as stored: write it as PNG"
        )
    return image


def _orientation(content: bytes, png: bool) -> int:
    """The EXIF orientation, 1 to 8, of a PNG, else of a WebP; 1 where it has none that can be read."""
    try:
        for kind, data in _chunks(content, png):
            if kind in (b"eXIf", b"EXIF"):
                exif = data.removeprefix(b"Exif\0\0")
                order = "<" if exif[:2] == b"II" else ">"
                (start,) = struct.unpack_from(order + "I", exif, 4)
                (count,) = struct.unpack_from(order + "H", exif, start)
                for entry in range(start + 2, start + 2 + 12 * count, 12):
                    tag, _, _, value = struct.unpack_from(order + "HHIH", exif, entry)
                    if tag == EXIF_ORIENTATION and 1 <= value <= 8:
                        return value
    except struct.error:  # in an EXIF that breaks off
        pass
    return 1


def _chunks(content: bytes, png: bool) -> Iterator[tuple[bytes, bytes]]:
    """Kind and data of the chunks of a PNG, else of a WebP."""
    at = 8 if png else 12
    while at + 8 <= len(content):
        if png:
            length, kind = struct.unpack_from(">I4s", content, at)
        else:
            kind, length = struct.unpack_from("<4sI", content, at)
        yield kind, content[at + 8 : at + 8 + length]
        at += 8 + length + (4 if png else length % 2)


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image as it is to be seen, of one as it is stored."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(image[:: -1 if rows else 1, :: -1 if columns else 1])


def _ends_early(content: bytes, image: np.ndarray, decode: Callable[[bytes, Any], np.ndarray]) -> bool:
    """Whether a JPEG was closed before its last block, of which a decoder says nothing: it makes the rest mid-grey.

    Only an image with such a corner is looked at again, with more data before its end. A whole image does not take
    them, and the decoder prints that they are too many. (Of a progressive JPEG that lacks its last scans the blocks are
    all there, and coarse: it is read.)
    """
    # of the corner's block, which may be cut: the half at the corner, where no block before it shows through
    height, width = (((side - 1) % 8 + 2) // 2 for side in image.shape[:2])
    corners = [image[y, x] for y in (slice(height), slice(-height, None)) for x in (slice(width), slice(-width, None))]
    if not any((corner == 128).all() for corner in corners):
        return False
    end = content.rindex(b"\xff\xd9")
    more = np.random.default_rng(0).integers(1, 255, 4096, dtype=np.uint8).tobytes()
    return not np.array_equal(image, decode(content[:end] + more + content[end:], _jpeg))


# --- color profiles ---------------------------------------------------------------------------------------------------

MAX_PROFILE = 2**22  # bytes; those of printers have about two million


def read_profile(path: str | Path) -> bytes | None:
    """The ICC profile of a JPEG, PNG, TIFF or WebP, which says what its numbers mean; None where it has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has one that breaks off, is no profile, or is larger than MAX_PROFILE.
    """
    with open(path, "rb") as file:
        content = file.read()
    header = next((header for begin, header in HEADERS.items() if content.startswith(begin)), None)
    try:
        profile = PROFILES[header](content) if header in PROFILES else None
    except (zlib.error, struct.error, ValueError) as error:
        raise ValueError(f"the color profile of {path} is not readable: {error}") from error
    if profile is None:
        return None
    if len(profile) > MAX_PROFILE:
        raise ValueError(f"the color profile of {path} is larger than {MAX_PROFILE:,} bytes")
    if profile[36:40] != b"acsp" or int.from_bytes(profile[:4], "big") != len(profile):
        raise ValueError(f"the color profile of {path} is none, or breaks off")
    return profile


def profile_fits(profile: bytes, pixels: np.ndarray) -> bool:
    """Whether an ICC profile is of such pixels: one of grey of (H, W), and one of red, green and blue of others."""
    return profile[16:20] == (b"GRAY" if pixels.ndim == 2 else b"RGB ")


def _png_profile(content: bytes) -> bytes | None:
    for kind, data in _chunks(content, True):
        if kind == b"iCCP":
            _, _, packed = data.partition(b"\0")
            return zlib.decompressobj().decompress(packed[1:], MAX_PROFILE + 1)
    return None


def _webp_profile(content: bytes) -> bytes | None:
    return next((data for kind, data in _chunks(content, False) if kind == b"ICCP"), None)


def _jpeg_profile(content: bytes) -> bytes | None:
    """Its parts, one or more, each of which has its number and how many there are."""
    parts, at, begin = [], content.find(b"\xff", 2), b"ICC_PROFILE\0"
    while at >= 0:
        if content[at + 1 : at + 2] == b"\xff":  # a fill byte
            at += 1
            continue
        marker, length = struct.unpack_from(">BH", content, at + 1)
        if marker == 0xDA:  # the first scan
            break
        segment = content[at + 4 : at + 2 + length]
        if marker == 0xE2 and segment.startswith(begin):
            parts.append(segment[len(begin) :])
        at = content.find(b"\xff", at + 2 + length)
    parts.sort(key=lambda part: part[:1])
    if any(tuple(part[:2]) != (number, len(parts)) for number, part in enumerate(parts, 1)):
        raise ValueError("it lacks parts")
    return b"".join(part[2:] for part in parts) if parts else None


def _tiff_profile(content: bytes) -> bytes | None:
    tags = _tiff_tags(content)
    return tags[TIFF_PROFILE].tobytes() if TIFF_PROFILE in tags else None


# --- writing ---------------------------------------------------------------------------------------------------------


def write_png(path: str | Path, pixels: np.ndarray, profile: bytes | None = None) -> None:
    """Write a PNG, whole or not at all, which `read_pixels` reads.

    Args:
        path: file, whose folder is made.
        pixels: uint8 or uint16; grey (H, W), or red, green and blue (H, W, 3), or these and opacity (H, W, 4).
        profile: ICC profile, which fits them (see `profile_fits`).
    """
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    _, encoded = cv2.imencode(".png", pixels)
    content = encoded.tobytes()
    chunk = _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)) if profile else b""
    with replacing(path) as temporary:
        temporary.write_bytes(content[: HEADER.stop] + chunk + content[HEADER.stop :])


# --- maps of labels ---------------------------------------------------------------------------------------------------

GREY, PALETTE = 0, 3  # kinds of PNG
HEADER = slice(8, 33)  # where the first chunk lies, with its length and checksum
DEPTH, KIND = 24, 25


def read_map(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The numbers in a PNG as they are stored: (H, W) uint8 or uint16. Of an image with a palette they are the indices.
    Of one with colors that are all grey it is that grey.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no PNG, breaks off, is larger than `max_pixels`, or holds colors, or pixels that are not
            opaque. The message names the file.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        content = _whole_png(content, max_pixels)
        depth, kind = content[DEPTH], content[KIND]
        if kind in (GREY, PALETTE):  # the decoder would put colors in place of indices, and stretch 1, 2 and 4 bits
            content = _as_grey(content)
        numbers = _unchanged(content)
        if depth < 8:
            numbers = numbers // (255 // (2**depth - 1))
        return numbers if numbers.ndim == 2 else _grey_of(numbers)
    except (cv2.error, ValueError, IndexError) as error:
        raise ValueError(f"{path} is no map of labels: {error}") from error


def read_png(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels of a PNG, uint8 or uint16: grey (H, W), or blue, green, red, and opacity where it has any (H, W, 3 or
    4). Less than 8 bits are stretched to these, and a palette gives its colors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no PNG, breaks off, or is larger than `max_pixels`. The message names the file.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        return _unchanged(_whole_png(content, max_pixels))
    except (cv2.error, ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a readable PNG: {error}") from error


def _whole_png(content: bytes, max_pixels: int) -> bytes:
    """What OpenCV needs of a PNG, whose header was held to the file."""
    if not content.startswith(PNG):
        raise ValueError(f"its {len(content)} bytes do not begin as PNG; JPEG and other formats change labels")
    height, width, content = _png(content)
    if not 0 < height * width <= max_pixels:
        raise ValueError(f"{width} x {height} pixels are declared; {max_pixels:,} are the most")
    return content


def _unchanged(content: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError(f"OpenCV cannot decode it ({len(content)} bytes)")
    return pixels


def _grey_of(colors: np.ndarray) -> np.ndarray:
    """The one channel of an image (H, W, 3 or 4) whose colors are grey."""
    first, full = colors[..., 0], np.iinfo(colors.dtype).max
    if not (colors[..., :3] == first[..., None]).all():
        kinds, counts = np.unique(colors[..., 2::-1].reshape(-1, 3), axis=0, return_counts=True)
        shown = ", ".join(str(tuple(kinds[i].tolist())) for i in counts.argsort()[::-1][:4])
        raise ValueError(
            f"it holds {len(kinds)} colors (the commonest, red, green, blue: {shown}), and a number for each pixel is "
            "wanted: write the number of its class in place of each color"
        )
    if colors.shape[2] == 4 and not (colors[..., 3] == full).all():
        raise ValueError("some of its pixels are transparent; whether these have labels, nothing tells")
    return np.ascontiguousarray(first)


def _as_grey(content: bytes) -> bytes:
    """A PNG of indices whose indices are shades of grey."""
    header = bytearray(content[HEADER])
    header[KIND - HEADER.start] = GREY
    kept, at = [content[: HEADER.start], _chunk(b"IHDR", bytes(header[8:-4]))], HEADER.stop
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] not in (b"PLTE", b"tRNS", b"eXIf"):
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def encode_map(labels: np.ndarray, colors: np.ndarray) -> bytes:
    """A PNG of labels, which viewers show in colors and `read_map` reads as numbers.

    Args:
        labels: uint8 (H, W).
        colors: uint8 (N, 3), red, green, blue, of the labels 0 to N - 1; N is at most 256. Others are black.
    """
    _, encoded = cv2.imencode(".png", labels)
    content = encoded.tobytes()
    header = bytearray(content[HEADER])
    header[KIND - HEADER.start] = PALETTE
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    chunks = _chunk(b"IHDR", bytes(header[8:-4])), _chunk(b"PLTE", table.tobytes())
    return b"".join((content[: HEADER.start], *chunks, content[HEADER.stop :]))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# --- headers ---------------------------------------------------------------------------------------------------------
# Each gives height, width, and what goes to OpenCV, or raises an error where the file does not hold what it declares.

Header = tuple[int, int, bytes]


def _bmp(content: bytes) -> Header:
    start, size = struct.unpack_from("<II", content, 10)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<4H", content, 18)
        packing = 0
    else:
        width, height, _, bits, packing = struct.unpack_from("<iiHHI", content, 18)
    height = abs(height)  # negative where the first row is at the top
    if packing in (0, 3) and start + (width * bits + 31) // 32 * 4 * height > len(content):
        raise ValueError(
            f"{width} x {height} pixels of {bits} bits are declared, which {len(content)} bytes do not hold"
        )
    return height, width, content


def _jpeg(content: bytes) -> Header:
    size, frame = None, 0
    first_symbols: list[int] = []  # of the Huffman tables for the coefficients behind the first
    at = 2
    while True:
        at = content.find(b"\xff", at)
        while at >= 0 and content[at + 1 : at + 2] == b"\xff":  # fill bytes
            at += 1
        if at < 0 or at + 4 > len(content):
            raise ValueError(f"the JPEG breaks off after {len(content)} bytes")
        marker, length = struct.unpack_from(">BH", content, at + 1)
        if marker in (0x00, 0x01, *range(0xD0, 0xD8)):  # without a segment
            at += 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and size is None:
            size, frame = struct.unpack_from(">HH", content, at + 5), marker
        if marker == 0xC4:
            first_symbols += _first_symbols(content[at + 4 : at + 2 + length])
        if marker == 0xDA:  # the first scan
            break
        at += 2 + length
    end = content.find(b"\xff\xd9", at)
    if end < 0:
        raise ValueError(f"the JPEG breaks off after {len(content)} bytes")
    # Of a download into a file of the final size, the rest is zeros. The shortest code is all zeros. If it does not
    # mean "the rest of this block is 0", then so many zeros are blocks of -1 throughout, which no image has.
    if frame in (0xC0, 0xC1) and any(first_symbols) and (zeros := content.find(bytes(1024), at, end)) >= 0:
        raise ValueError(f"the JPEG has zeros in place of data from byte {zeros} on")
    if size is None:
        raise ValueError("the JPEG declares no size")
    if (scans := content.count(b"\xff\xda", at)) > 100:  # each goes over the whole image
        raise ValueError(f"the JPEG has {scans} scans; over 100 are not read")
    return *size, content


def _first_symbols(segment: bytes) -> list[int]:
    """What the shortest codes mean, of the tables of a DHT segment that are for AC coefficients."""
    found, at = [], 0
    while at + 17 < len(segment):
        if segment[at] >> 4:
            found.append(segment[at + 17])
        at += 17 + sum(segment[at + 1 : at + 17])
    return found


# What OpenCV has a use for. Texts and profiles can be bombs of their own, and further frames are not asked for.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")


def _png(content: bytes) -> Header:
    kept, at, kind = [content[:8]], 8, b""
    while kind != b"IEND":
        if at + 12 > len(content):
            raise ValueError(f"the PNG breaks off after {len(content)} bytes")
        length, kind = struct.unpack_from(">I4s", content, at)
        chunk = content[at : at + 12 + length]
        if len(chunk) != 12 + length:
            raise ValueError(f"a chunk {kind!r} of {length} bytes is declared, which the PNG does not hold")
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise ValueError(f"the checksum of a chunk {kind!r} of the PNG is wrong")
        if kind in PNG_CHUNKS:
            kept.append(chunk)
        at += 12 + length
    if kept[1][4:8] != b"IHDR" or len(kept[1]) != 25:
        raise ValueError("the PNG does not begin with its header")
    width, height = struct.unpack_from(">II", kept[1], 8)
    return height, width, b"".join(kept)


def _ppm(content: bytes) -> Header:
    kind = content[1] - ord("0")
    colors, bitmap = (3 if kind in (3, 6) else 1), kind in (1, 4)
    space = rb"(?:\s|#[^\n]*\n)+"
    header = re.match(rb"P\d" + (space + rb"(\d{1,9})") * (2 if bitmap else 3) + rb"\s", content)
    if not header:
        raise ValueError("the PPM has no whole header")
    width, height, *most = (int(word) for word in header.groups())
    if most and not 0 < most[0] < 65536:
        raise ValueError(f"the largest value of the PPM is {most[0]}")
    rest = content[header.end() :]
    if kind > 3:
        row = (width + 7) // 8 if bitmap else width * colors * (2 if most[0] > 255 else 1)
        held, needed = len(rest), row * height
    else:
        words = re.sub(rb"#[^\n]*", b"", rest).split()
        held, needed = (sum(map(len, words)) if bitmap else len(words)), width * height * colors
    if held < needed:
        raise ValueError(f"{width} x {height} pixels are declared, which the {len(content)} bytes do not hold")
    if bitmap or not needed or (kind > 3 and most[0] in (255, 65535)):
        return height, width, content
    if kind > 3:
        samples = np.frombuffer(rest, ">u2" if most[0] > 255 else "u1", width * height * colors)
    else:
        samples = np.array(words[:needed], dtype=np.int64)
    return height, width, b"P%d %d %d " % (5 if colors == 1 else 6, width, height) + _stretched(samples, most[0])


def _stretched(samples: np.ndarray, most: int) -> bytes:
    """The end of a binary PGM or PPM, from its maximum on: 255, or 65535 of those of 16 bits. Values in other ranges
    OpenCV gives as they are stored, or cuts."""
    if samples.min() < 0 or samples.max() > most:
        raise ValueError(f"the PPM holds {samples.min()} to {samples.max()}, and declares {most} as the largest value")
    full, dtype = (65535, ">u2") if most > 255 else (255, "u1")
    table = (2 * np.arange(most + 1) * full + most) // (2 * most)  # floor(value * full / most + 0.5)
    return b"%d\n" % full + table.astype(dtype)[samples].tobytes()


TIFF_TYPES = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_SAMPLES, TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT = 256, 257, 258, 277, 322, 323
TIFF_PHOTOMETRIC, TIFF_CMYK, TIFF_LAB = 262, 5, (8, 9, 10)
TIFF_PROFILE = 34675
TIFF_COLORS = (0, 1, 2, 3, TIFF_CMYK, 6)  # grey (white is 0, or black), RGB, palette, inks, YCbCr
TIFF_PARTS = ((273, 279), (324, 325))  # where strips and tiles lie, and how long they are


def _tiff_tags(content: bytes) -> dict[int, np.ndarray]:
    """The whole numbers in the first directory of a TIFF, and the bytes of its color profile, by tag."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    entries, word = ("Q", "Q") if big else ("H", "I")
    (start,) = struct.unpack_from(order + word, content, 8 if big else 4)
    (count,) = struct.unpack_from(order + entries, content, start)
    start += struct.calcsize(entries)
    inside = struct.calcsize(word)  # a value of so many bytes stands in the entry
    tags: dict[int, np.ndarray] = {}
    for _ in range(count):
        tag, kind, number = struct.unpack_from(f"{order}HH{word}", content, start)
        start += 4 + inside
        if kind in TIFF_TYPES or tag == TIFF_PROFILE:
            dtype = np.dtype(order + TIFF_TYPES.get(kind, "u1"))
            length = number * dtype.itemsize
            at = start if length <= inside else struct.unpack_from(order + word, content, start)[0]
            if at + length > len(content) and tag != TIFF_PROFILE:  # which no decoder needs; it is found to break off
                raise ValueError(f"the tag {tag} of the TIFF lies outside its {len(content)} bytes")
            tags[tag] = np.frombuffer(content[at : at + length], dtype)
        start += inside
    return tags


def _tiff(content: bytes) -> Header:
    tags = _tiff_tags(content)

    def value(tag: int, default: int | None = None) -> int:
        if default is None and not len(tags.get(tag, ())):
            raise ValueError(f"the TIFF has no tag {tag}")
        return int(tags[tag].max()) if len(tags.get(tag, ())) else int(default or 0)

    width, height = value(TIFF_WIDTH), value(TIFF_HEIGHT)
    parts = [(tags[places], tags[lengths]) for places, lengths in TIFF_PARTS if {places, lengths} <= tags.keys()]
    if len(parts) != 1 or len(parts[0][0]) != len(parts[0][1]):
        raise ValueError("the TIFF does not say where its strips or tiles lie")
    places, lengths = (array.astype(object) for array in parts[0])  # whole numbers of any size
    if len(places) == 0 or (places + lengths).max() > len(content):
        raise ValueError(f"the strips or tiles of the TIFF lie outside its {len(content)} bytes")
    # a tile may be larger than the image, and a sample than a byte; for both a decoder needs memory
    tile = value(TIFF_TILE_WIDTH, 0), value(TIFF_TILE_HEIGHT, 0)
    if tile[0] * tile[1] > max(MAX_PIXELS, width * height):
        raise ValueError(f"tiles of {tile[0]} x {tile[1]} pixels are declared in the TIFF")
    if (samples := value(TIFF_SAMPLES, 1) * -(-value(TIFF_BITS, 1) // 8)) > 8:
        raise ValueError(f"the TIFF has {samples} bytes a pixel; 8 are the most that are read")
    return height, width, content


def _webp(content: bytes) -> Header:
    if len(content) < 20 or content[8:12] != b"WEBP":
        raise ValueError("this is RIFF, but no WebP")
    end = 8 + int.from_bytes(content[4:8], "little")
    if end > len(content):
        raise ValueError(f"the WebP of {end} bytes breaks off after {len(content)}")
    kind, data = content[12:16], content[20:30]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[i : i + 3], "little") for i in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (6, 8))
    else:
        raise ValueError(f"the WebP begins with a chunk {kind!r}")
    return height, width, content


HEADERS = {
    b"BM": _bmp, b"\xff\xd8": _jpeg, PNG: _png, b"RIFF": _webp,
    b"II*\0": _tiff, b"MM\0*": _tiff, b"II+\0": _tiff, b"MM\0+": _tiff,
    **{b"P%d" % kind: _ppm for kind in range(1, 7)},
}  # fmt: skip
PROFILES = {_jpeg: _jpeg_profile, _png: _png_profile, _tiff: _tiff_profile, _webp: _webp_profile}
