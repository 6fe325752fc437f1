"""What holds for all formats of shapes: cuts are refused, other formats are named, nothing is unpickled."""

import pickle

import pytest
from shape_files import FACES, POINTS, VERTICES, gltf, npy, npz, ply, refused

from attlas.pointnets.shapes import SUFFIXES


@pytest.mark.parametrize("name", ["a.off", "ascii.ply", "ascii.pcd", "binary.ply", "binary.pcd", "a.glb"])
def test_no_shape_reads_as_another_when_cut(read, name):
    """Shared case 34; every format in test_formats_fuzz.py."""
    head = "VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 4\nHEIGHT 1\nPOINTS 4\nDATA "
    header = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    header += "element face 4\nproperty list uchar int vertex_indices\nend_header\n"
    content = {
        "a.off": f"OFF\n4 4 0\n{VERTICES}{FACES}".encode(),
        "ascii.ply": f"{header}{VERTICES}{FACES}".encode(),
        "ascii.pcd": f"{head}ascii\n{VERTICES}".encode(),
        "binary.ply": ply("binary_big_endian", POINTS, [(0, 1, 2)]),
        "binary.pcd": f"{head}binary\n".encode() + POINTS[:4].astype("<f4").tobytes(),
        "a.glb": gltf(),
    }[name]
    whole = read(name, content)
    for end in range(len(content) - 1):
        refused(read, name, content[:end], ".")
    if content.endswith(b"\n"):  # the last number is whole
        assert all((read(name, content[:-1])[key] == whole[key]).all() for key in whole)


def test_other_formats_are_named(read):
    for name in ("a.dae", "a.3mf", "a.zip", "a.obj.gz", "a.stl_ascii", "a"):
        refused(read, name, b"x", r"are not read; export it as \.glb, \.ply, \.obj or \.xyz")
    assert {".pcd", ".ply", ".off", ".obj", ".stl", ".glb", ".gltf", ".npy", ".npz", ".txt", ".xyz", ".pts"} == set(
        SUFFIXES
    )


def test_no_error_advises_to_unpickle(read):
    for name in ("a.npz", "a.npy"):
        for content in (b"no archive", pickle.dumps({"pos": 1}), npz(pos=npy(POINTS))[:-40]):
            with pytest.raises(ValueError, match=f"{name} is not a readable shape") as error:
                read(name, content)
            assert "allow_pickle" not in str(error.value)
            assert "pickle.load" not in str(error.value)
