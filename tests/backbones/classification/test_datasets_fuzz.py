"""A thousand mutated files of IDX and CIFAR, and truncations, read in a child process.

Whatever the bytes, the process lives, in the memory it is given; an error is a ValueError that names the file; and
there are no more or fewer images than the files declare.
"""

import gzip
import random
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fuzzing import fuzz, mutated, tally

from attlas.backbones.classification.datasets import CIFAR10, MNIST

COUNT = 1000
TEMPORARY = tempfile.TemporaryDirectory(prefix="attlas-fuzz-")  # of the process, parent or child
FOLDER = Path(TEMPORARY.name)
IMAGES = struct.pack(">4I", 2051, 5, 4, 3) + bytes(range(60))
LABELS = struct.pack(">2I", 2049, 5) + bytes(range(5))
RECORDS = b"".join(bytes([label]) + bytes([label]) * 3072 for label in range(3))
FILES = {
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
    data = (CIFAR10 if name.endswith("bin") else MNIST)(folder, "test")
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
            assert size == len(labels) == (len(labels) if first.input[0] == "test_batch.bin" else 5), first
            assert set(labels) <= set(range(10)), first
            assert first.input[1] == "seed", first
    count("mutated IDX and CIFAR files", f"{name} " + tally(outcomes[: len(inputs)]))
