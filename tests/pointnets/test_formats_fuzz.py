"""Mutated files of each format, and truncations, read in child processes.

Whatever the bytes, the process lives, in the memory it is given; an error is a ValueError that names the file; and what
reads without one has as many points and faces as an independent look at the file finds declared there. The same file
reads alike before and after all others.
"""

import hashlib
import json
import random
import re
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
from fuzzing import cuts, fuzz, mutated, tally, tries
from shape_files import small_files

from attlas.pointnets.shapes import read_shape

COUNT = tries(1000)
FILES = small_files()
NO_COUNT = {"a.obj", "a.txt", "a.xyz"}  # formats that declare none


def read(path: Path) -> list[dict]:
    """The shapes of a file; of an h5 file, as ScanObjectNN reads them."""
    if path.suffix != ".h5":
        return [read_shape(path)]
    from attlas.pointnets.datasets import ScanObjectNN

    place = path.parent / "main_split" / "training_objectdataset_augmentedrot_scale75.h5"
    place.parent.mkdir(exist_ok=True)
    path.replace(place)
    dataset = ScanObjectNN(path.parent)
    return [dataset.load(item) for item in range(len(dataset))]


def look(name: str, content: bytes) -> tuple[int | None, int]:
    """How many points a file declares, if it does, and the fewest faces: not by the readers' own means."""

    def number(pattern: bytes, default: int | None = None) -> int | None:
        found = re.search(pattern, content)
        return int(found[1]) if found else default

    match name.rpartition(".")[2]:
        case "pcd":
            return number(rb"(?:^|\n)\s*POINTS\s+(\d+)"), 0
        case "ply":
            faces = number(rb"\n\s*element\s+face\s+(\d+)", 0)
            return number(rb"\n\s*element\s+vertex\s+(\d+)"), faces
        case "off":
            points, faces = re.findall(rb"\d+", re.sub(rb"#.*", b"", content))[:2]
            return int(points), int(faces)
        case "stl":
            facets = content.lower().count(b"endfacet") or struct.unpack_from("<I", content, 80)[0]
            return 3 * facets, facets
        case "obj":
            text = re.sub(rb"\\\r?\n", b" ", re.sub(rb"\r", b"\n", content))
            return len(re.findall(rb"(?:^|\n)\s*v\s", text)), len(re.findall(rb"(?:^|\n)\s*f\s", text))
        case "npy":
            return number(rb"\(\s*(\d+)\s*[lL]?,"), 0
        case "npz":
            with zipfile.ZipFile(FOLDER / name) as archive:
                members = archive.namelist()
                held = archive.read("pos.npy" if "pos.npy" in members else members[0])
            return int(re.search(rb"\(\s*(\d+)\s*,", held)[1]), int("face.npy" in members)
        case "pts":
            return number(rb"^\s*(\d+)\s*[\r\n]"), 0
        case "glb" | "gltf":
            size = struct.unpack_from("<I", content, 12)[0]
            tree = json.loads(content if name.endswith("gltf") else content[20 : 20 + size])
            return tree["accessors"][1]["count"], 1
    return None, 0


TEMPORARY = tempfile.TemporaryDirectory(prefix="attlas-fuzz-")  # of the process, parent or child
FOLDER = Path(TEMPORARY.name)


def try_one(given) -> list:
    """The points, faces and digest of a file: mutated by a seed, or cut to a length."""
    name, how, number = given
    whole = FILES[name]
    content = mutated(whole, random.Random(number)) if how == "seed" else whole[:number]
    path = FOLDER / name
    path.write_bytes(content)
    try:
        shapes = read(path)
    finally:
        path.unlink(missing_ok=True)
    path.write_bytes(content)
    points, faces = sum(len(shape["pos"]) for shape in shapes), sum(len(shape.get("face", ())) for shape in shapes)
    declared, least = look(name, content)
    path.unlink()
    digest = hashlib.sha256(b"".join(array.tobytes() for shape in shapes for array in shape.values())).hexdigest()
    return [points, faces, declared, least, digest]


def check(outcomes) -> None:
    for outcome in outcomes:
        assert outcome.died is None, outcome
        if outcome.error:
            kind, message = outcome.error
            suffix = outcome.input[0].rpartition(".")[2]
            assert kind == "ValueError", outcome
            assert f".{suffix}" in message, outcome
            assert "allocate" not in message, outcome  # as a MemoryError says it
            assert "MemoryError" not in message, outcome
        else:
            points, faces, declared, least, _ = outcome.value
            assert declared in (None, points), outcome
            assert faces >= least, outcome


FAMILIES: dict[str, list[str]] = {}
for _name in FILES:
    _suffix = _name.rpartition(".")[2]
    FAMILIES.setdefault(
        {"npz": "npy", "gltf": "glb", "txt": "text", "xyz": "text", "pts": "text"}.get(_suffix, _suffix), []
    ).append(_name)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_mutated_files(family, count):
    inputs = [[name, "seed", seed] for name in FAMILIES[family] for seed in range(COUNT)]
    outcomes = fuzz(try_one, inputs + inputs[::-1])
    check(outcomes)
    for first, again in zip(outcomes[: len(inputs)], outcomes[: len(inputs) - 1 : -1]):
        assert first == again
    count("mutated shapes", f"{family} {tally(outcomes[: len(inputs)])}")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_truncations(family, count):
    inputs = [[name, "cut", length] for name in FAMILIES[family] for length in cuts(FILES[name])]
    outcomes = fuzz(try_one, inputs)
    check(outcomes)
    for outcome in outcomes:
        name, _, length = outcome.input
        whole = FILES[name]
        if length == len(whole):
            assert outcome.value, outcome
        elif (
            outcome.value and name not in NO_COUNT
        ):  # what may be missing is the last line end, or a name after the end
            assert len(whole[length:].split()) <= (name == "ascii.stl"), outcome
    count("truncated shapes", f"{family} {tally(outcomes)}")
