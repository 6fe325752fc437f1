"""Mutated pictures of each format, and truncations, read in child processes.

Whatever the bytes, the process lives, in the memory it is given; an error is a ValueError that names the file; what
reads without one has the size that Pillow finds in the header, and reads alike before and after all others.
"""

import hashlib
import random
import struct
import tempfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from fuzzing import cuts, fuzz, mutated, tally, tries
from PIL import Image

from attlas.images import read_image

COUNT = tries(1000)
SIDES = (9, 13)


def small_files() -> dict[str, bytes]:
    """A picture in each way to write it, by a name that ends in the format's suffix."""
    draw = np.random.default_rng(0)
    color = cv2.resize(draw.integers(0, 256, (3, 4, 3), dtype=np.uint8), SIDES[::-1])
    grey = color[..., 0]
    files = {f"color.{suffix}": encoded(suffix, color) for suffix in ("png", "jpg", "bmp", "tiff", "webp", "ppm")}
    files |= {f"grey.{suffix}": encoded(suffix, grey) for suffix in ("png", "bmp", "tiff", "pgm", "pbm")}
    files["lossless.webp"] = encoded("webp", color, cv2.IMWRITE_WEBP_QUALITY, 101)
    files["progressive.jpg"] = encoded("jpg", color, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    files["plain.ppm"] = b"P3\n# a comment\n13 9 255\n" + b"\n".join(b"%d" % value for value in color.ravel()) + b"\n"
    files["opacity.png"] = encoded("png", np.dstack([color, grey]))
    return files


def encoded(suffix: str, image: np.ndarray, *options: int) -> bytes:
    done, content = cv2.imencode(f".{suffix}", image, options)
    assert done
    return content.tobytes()


FILES = small_files()
TEMPORARY = tempfile.TemporaryDirectory(prefix="attlas-fuzz-")  # of the process, parent or child
FOLDER = Path(TEMPORARY.name)


def with_checksums(content: bytes) -> bytes:
    """The chunks of a PNG with the checksums that belong to them: otherwise no change gets past them."""
    parts, at = [content[:8]], 8
    while at + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        data = content[at + 4 : at + 8 + length]
        parts.append(content[at : at + 4] + data + struct.pack(">I", zlib.crc32(data)))
        at += 12 + length
    return b"".join(parts)


def try_one(given) -> list:
    """The shape, the size that Pillow finds, and the digest of a picture: mutated by a seed, or cut to a length."""
    name, how, number = given
    whole = FILES[name]
    content = mutated(whole, random.Random(number)) if how == "seed" else whole[:number]
    if how == "seed" and number % 2 and name.endswith("png"):
        content = with_checksums(content)
    path = FOLDER / name
    path.write_bytes(content)
    image = read_image(path)
    try:
        with Image.open(path) as theirs:
            size = sorted(theirs.size)
    except Exception:  # Pillow is stricter in places
        size = None
    return [sorted(image.shape[:2]), size, hashlib.sha256(image.tobytes()).hexdigest()]


def check(outcomes) -> None:
    for outcome in outcomes:
        assert outcome.died is None, outcome
        if outcome.error:
            kind, message = outcome.error
            assert kind == "ValueError", outcome
            assert f"{outcome.input[0]} is not a readable image" in message, outcome
            assert "nsufficient memory" not in message, outcome  # as OpenCV says it
        else:
            size, theirs, _ = outcome.value
            assert theirs in (None, size), outcome


@pytest.mark.slow
@pytest.mark.parametrize("suffix", sorted({name.rpartition(".")[2] for name in FILES}))
def test_mutated_files(suffix, count):
    inputs = [[name, "seed", seed] for name in FILES if name.endswith(suffix) for seed in range(COUNT)]
    outcomes = fuzz(try_one, inputs + inputs[::-1])
    check(outcomes)
    for first, again in zip(outcomes[: len(inputs)], outcomes[: len(inputs) - 1 : -1]):
        assert first == again
    count("mutated pictures", f"{suffix} {tally(outcomes[: len(inputs)])}")


@pytest.mark.slow
def test_truncations(count):
    inputs = [[name, "cut", length] for name in FILES for length in cuts(FILES[name])]
    outcomes = fuzz(try_one, inputs)
    check(outcomes)
    whole = {
        outcome.input[0]: outcome.value for outcome in outcomes if outcome.input[2] == len(FILES[outcome.input[0]])
    }
    assert all(whole.values())
    for outcome in outcomes:
        name = outcome.input[0]
        if outcome.value and name != "plain.ppm":  # where the last number may lack digits
            assert outcome.value == whole[name], outcome
    count("truncated pictures", tally(outcomes))
