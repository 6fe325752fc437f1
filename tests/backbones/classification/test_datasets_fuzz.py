"""Mutated files of IDX, CIFAR and SVHN, truncations, and mutated lists of pictures, read in a child process.

Whatever the bytes, the process lives, in the memory it is given; an error is a ValueError that names the file; and
there are no more or fewer images than the files declare. No path of a list leaves its root.
"""

import gzip
import os
import random
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fuzzing import fuzz, mutated, tally, tries

from attlas.backbones.classification.datasets import CIFAR10, MNIST, SVHN, ImageList

COUNT = tries(1000)
TEMPORARY = tempfile.TemporaryDirectory(prefix="attlas-fuzz-")  # of the process, parent or child
FOLDER = Path(TEMPORARY.name)
IMAGES = struct.pack(">4I", 2051, 5, 4, 3) + bytes(range(60))
LABELS = struct.pack(">2I", 2049, 5) + bytes(range(5))
RECORDS = b"".join(bytes([label]) + bytes([label]) * 3072 for label in range(3))


def matrix(name: bytes, array: np.ndarray) -> bytes:
    """An array of bytes as an element of a MATLAB file."""
    parts = (
        (6, struct.pack("<2I", 9, 0)),
        (5, struct.pack(f"<{array.ndim}i", *array.shape)),
        (1, name),
        (2, array.tobytes("F")),
    )
    body = b"".join(struct.pack("<2I", kind, len(part)) + part + bytes(-len(part) % 8) for kind, part in parts)
    return struct.pack("<2I", 14, len(body)) + body


DIGITS = matrix(b"X", np.arange(3072, dtype=np.uint16).astype(np.uint8).repeat(2).reshape(32, 32, 3, 2))
DIGITS += matrix(b"y", np.array([[1], [10]], np.uint8))
HEADER = bytes(124) + b"\0\1IM"
FILES = {
    "test_32x32.mat": HEADER + DIGITS,
    "t10k-images-idx3-ubyte": IMAGES,
    "t10k-labels-idx1-ubyte": LABELS,
    "t10k-images-idx3-ubyte.gz": gzip.compress(IMAGES, mtime=0),
    "t10k-labels-idx1-ubyte.gz": gzip.compress(LABELS, mtime=0),
    "test_batch.bin": RECORDS,
}


def try_one(given) -> list:
    """How many images a data set has of which one file is mutated by a seed or cut to a length, and the sum of both."""
    name, how, number = given
    content = mutated(FILES[name], random.Random(number)) if how == "seed" else FILES[name][:number]
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    for other in FILES:  # the packed file has a plain neighbor, and the plain one a packed
        if other.partition("-")[0] == name.partition("-")[0] and other.split("-")[:2] != name.split("-")[:2]:
            (folder / other).write_bytes(FILES[other])
    (folder / name).write_bytes(content)
    dataset = {"bin": CIFAR10, "mat": SVHN}.get(name.rpartition(".")[2], MNIST)
    data = dataset(folder, "test")
    images = np.stack([data.load(item) for item in range(len(data))])
    return [len(data), int(images.sum()), data.labels.tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_mutated_files(name, count):
    inputs = [[name, "seed", seed] for seed in range(COUNT)]
    inputs += [[name, "cut", length] for length in range(min(len(FILES[name]), 200))]
    outcomes = fuzz(try_one, inputs + inputs[::-1])
    for first, again in zip(outcomes[: len(inputs)], outcomes[: len(inputs) - 1 : -1]):
        assert first == again
        assert first.died is None, first
        if first.error:
            kind, message = first.error
            assert kind == "ValueError", first
            assert str(first.input[0]) in message or "images and" in message, first
        else:
            size, _, labels = first.value
            declared = {"test_batch.bin": len(labels), "test_32x32.mat": 2}.get(first.input[0], 5)
            assert size == len(labels) == declared, first
            assert set(labels) <= set(range(10)), first
            assert first.input[1] == "seed", first
    count("mutated IDX, CIFAR and SVHN files", f"{name} " + tally(outcomes[: len(inputs)]))


LISTED = (
    b"clipart/axe/clipart_011_1.png 0\n./clipart/a bee/clipart_020_7.png 1\r\nclipart/axe/clipart_011_2.png 0\n" * 3
)
PIECES = (b"../", b"/", b"\\", b"C:", b"..\\", b" 0\n", b"\0", b"\n", b"//", b"..")


def try_list(seed) -> list:
    """How many pictures a list names that a seed mutates and adds pieces of other paths to."""
    rng = random.Random(seed)
    content = bytearray(mutated(LISTED, rng) if seed % 2 else LISTED)
    for _ in range(rng.randrange(3)):
        place = rng.randrange(len(content) + 1)
        content[place:place] = rng.choice(PIECES)
    (FOLDER / "list.txt").write_bytes(content)
    data = ImageList(FOLDER, "list.txt", classes=["axe", "bee"])
    for item in range(len(data)):
        assert Path(os.path.normpath(data.name(item))).is_relative_to(FOLDER), data.name(item)
        assert data.labels[item] in (0, 1)
    return [len(data)]


@pytest.mark.slow
def test_mutated_lists(count):
    outcomes = fuzz(try_list, list(range(COUNT)))
    for found in outcomes:
        assert found.died is None, found
        assert not found.error or found.error[0] == "ValueError", found
        assert not found.error or "list" in found.error[1], found
    assert 100 < sum(not found.error for found in outcomes) < COUNT - 100
    count("mutated lists of pictures", tally(outcomes))
