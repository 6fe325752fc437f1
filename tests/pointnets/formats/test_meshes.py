"""OFF, OBJ and STL are read as other readers read them, and held to what they declare."""

import numpy as np
import pytest
import trimesh
from shape_files import FACES, TETRAHEDRON, VERTICES, refused

# --- OFF


@pytest.mark.parametrize(
    "text",
    [
        f"OFF\n4 4 0\n{VERTICES}{FACES}",
        f"OFF4 4 0\n{VERTICES}{FACES}",  # as some files of ModelNet40
        f"OFF 4 4\r\n# a comment\r\n\r\n{VERTICES}{FACES}".replace("0 0 1\n", "0 0 1 # the top\r\n"),
        f"COFF\n4 4 0\n{VERTICES}{FACES}",
        "NOFF\n4 4 0\n" + VERTICES.replace("\n", " 0 0 1\n") + FACES,
        "CNOFF\n4 4 0\n" + VERTICES.replace("\n", " 0 0 1 255 0 0 255\n") + FACES,
        f"OFF\n4 4 6\n{VERTICES}" + FACES.replace("\n", " 255 0 0\n"),
        f"OFF\n4 4 6\n{VERTICES}" + FACES.replace("\n", " 9\n", 2),
    ],
)
def test_off(read, text):
    shape = read("a.off", text)
    assert shape["pos"].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert shape["face"].tolist() == TETRAHEDRON


def test_off_is_held_to_its_header(read):
    whole = f"OFF\n4 4 0\n{VERTICES}{FACES}"
    assert "face" not in read("a.off", f"OFF\n4 0 0\n{VERTICES}")
    assert read("a.off", f"OFF\n4 2 0\n{VERTICES}4 0 1 2 3\n3 0 1 3\n")["face"].tolist() == [
        [0, 1, 2], [0, 2, 3], [0, 1, 3],
    ]  # fmt: skip
    for content, message in [
        (f"OFF\n4 4 0\n{VERTICES}", "4 vertices and 4 faces are declared, and 4 lines follow"),
        (whole + "3 0 1 2\n", "4 vertices and 4 faces are declared, and 9 lines follow"),
        (whole.replace("4 4 0", "3 5 0"), "the face '0 0 1' has not the corners"),
        (whole.replace("4 4 0", "5 3 0"), "the vertices are no table of numbers"),
        (whole.replace("4 4 0", "99999999999 4 0"), "99999999999 vertices and 4 faces are declared"),
        (whole.replace("4 4 0", "4 BINARY 0"), "the number of vertices or faces is b'BINARY'"),
        (whole.replace("4 4 0", "4"), "the numbers of vertices, faces and edges were expected"),
        (whole.replace("3 1 2 3", "3 1 2"), "the face '3 1 2' has not the corners that its first number declares"),
        (whole.replace("3 1 2 3", "2 1 2"), "a face has 2 corners"),
        (whole.replace("3 1 2 3", "3 1 2 2.5"), "the corners of the faces are no integers"),
        (whole.replace("0 0 1\n3", "0 0\n3"), "the vertices are no table of numbers"),
        (whole.replace("OFF", "4OFF"), "the keyword OFF was expected"),
        ("\n", "the keyword OFF was expected"),
        ("OFF", "the numbers of vertices, faces and edges were expected"),
    ]:
        refused(read, "a.off", content, message)


# --- OBJ


def test_obj(read):
    text = """# two ways to count, three ways to write a vertex
mtllib a.mtl
v 0 0 0
v 1 0 0 0.5 0.5 0.5
v 0 1 0 1
vt 0 0
vn 0 0 1
usemtl ä
f 1/1/1 2/1/1 3/1/1
f 1//1 2//1 \\
3//1
v 0 0 1
l 1 2
f -1 -2 -3 -4
v 9 9 9
f -2/1 1/1 2/1
"""
    shape = read("a.obj", text)
    assert shape["pos"].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [9, 9, 9]]
    assert shape["face"].tolist() == [[0, 1, 2], [0, 1, 2], [3, 2, 1], [3, 1, 0], [3, 0, 1]]


def test_obj_is_refused(read):
    whole = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
    for content, message in [
        (whole[:24], "there are no faces; a cloud of points is read from"),
        (whole.replace("f 1 2 3", "f 1 2 4"), "faces have corners 0 to 3; the vertices are 0 to 2"),
        (whole.replace("f 1 2 3", "f 1 2 0"), "a face has the corner 0; vertices count from 1"),
        (whole.replace("f 1 2 3", "f -1 -2 -4"), "a face counts back before the first vertex"),
        (whole.replace("f 1 2 3", "f 1 2"), "a face has 2 corners"),
        (whole.replace("f 1 2 3", "f 1 2 3/x"), "the faces are no table of numbers"),
        (whole.replace("f 1 2 3", "f 1 2 3.5"), "the corners of the faces are no integers"),
        (whole.replace("v 1 0 0", "w 1 0 0"), "lines that begin with 'w' are not read"),
        (whole.replace("v 1 0 0", "v 1 0"), "a vertex has 2 numbers"),
        (whole.replace("v 1 0 0", "v 1 0 x"), "the vertices are no table of numbers"),
        (whole + "surf 0 1 0 1 1 2 3\n", "lines that begin with 'surf' are not read"),
    ]:
        refused(read, "a.obj", content, message)


# --- STL


def test_stl_is_held_to_its_count(read):
    box = trimesh.creation.box((1, 2, 3))
    binary, text = box.export(file_type="stl"), box.export(file_type="stl_ascii").encode()
    for content in (binary, text, text.replace(b"\n", b"\r\n"), text.upper(), text + text):
        shape = read("a.stl", content)
        triangles = np.tile(box.triangles, (len(shape["face"]) // 12, 1, 1))
        np.testing.assert_allclose(shape["pos"][shape["face"]], triangles, atol=1e-6)
    for content, message in [
        (binary[:-1], "12 triangles are declared, which is not what 683 bytes hold"),
        (binary + b"\0", "12 triangles are declared, which is not what 685 bytes hold"),
        (binary[:80] + b"\xff\xff\xff\xff" + binary[84:], "4294967295 triangles are declared"),
        (b"solid" + binary[5:-1], "not every solid, facet and loop"),
        (binary[:20], "0 triangles are declared, which is not what 20 bytes hold"),
        (text[:-10], "not every solid, facet and loop of three vertices is whole and ended"),
        (text.replace(b"endloop", b"endlop", 1), "not every solid, facet and loop"),
        (text.replace(b"vertex", b"vertex x", 1), "the vertices are no table of numbers"),
        (text.replace(b"vertex", b"vertex 1"), "the vertices have 4 numbers"),
        (b"solid\nendsolid\n", "with N >= 1 were expected"),
    ]:
        refused(read, "a.stl", content, message)
