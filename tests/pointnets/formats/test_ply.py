"""PLY is read as other readers read it, and held to what it declares."""

import numpy as np
import pytest
from shape_files import FORMS, POINTS, ply, refused

from attlas.pointnets.formats.ply import PLY_TYPES


@pytest.mark.parametrize("form", FORMS)
def test_ply_of_any_type_and_polygons(read, form):
    vertices = (np.arange(21).reshape(7, 3) ** 2 % 11).tolist()
    polygons = [(0, 1, 2, 3), (0, 1, 4), (1, 2, 4, 5, 6), (2, 3, 4)]
    fans = [[0, 1, 2], [0, 2, 3], [0, 1, 4], [1, 2, 4], [1, 4, 5], [1, 5, 6], [2, 3, 4]]
    for kind in PLY_TYPES:
        counted = "uchar" if kind in ("float", "double", "float32", "float64") else kind
        for faces, triangles in ((polygons, fans), (polygons[1::2][:1] * 3, [[0, 1, 4]] * 3), (None, None), ([], None)):
            shape = read("a.ply", ply(form, vertices, faces, (kind, counted, "uint8")))
            assert shape["pos"].tolist() == vertices
            assert ("face" in shape) == bool(faces)
            assert not faces or shape["face"].tolist() == triangles


@pytest.mark.parametrize("form", FORMS)
def test_ply_is_held_to_its_header(read, form):
    whole = ply(form, POINTS, [(0, 1, 2), (2, 3, 4)])
    binary = form != "ascii"
    read("a.ply", whole + b"\n")
    at = whole.index(b"end_header\n")
    for content, message in [
        (whole[:-1] if binary else whole[:-4], "."),
        (whole[:at], "no line end_header was found"),
        (
            whole.replace(b"element face 2", b"element face 3"),
            "a row of the elements 'face'|9 rows|12 rows of|declared",
        ),
        (whole.replace(b"element face 2", b"element face 1"), "bytes are left|rows of elements are declared"),
        (whole.replace(b"element vertex 7", b"element vertex 8"), "."),
        (whole.replace(b"element vertex 7", b"element vertex 999999999999"), "are declared, (which|and)"),
        (whole.replace(b"element vertex 7", b"element vertex -7"), "the number of elements 'vertex' is '-7'"),
        (whole.replace(b"float y", b"float x"), "the line 'property float x' is not known in the header"),
        (whole.replace(b"float y", b"half y"), "the line 'property half y' is not known in the header"),
        (whole.replace(b"float y", b"float why"), "an element vertex with properties x, y and z was expected"),
        (whole.replace(b"vertex_indices", b"corners_of_it"), "one list vertex_indices of the faces was expected"),
        (ply(form, POINTS, [(0, 1, 7)]), "faces have corners 0 to 7; the vertices are 0 to 6"),
        (ply(form, POINTS, [(0, -1, 2)]), "faces have corners -1 to 2"),
        (ply(form, POINTS, [(0, 1, 2), (0, 1)]), "a face has 2 corners; 3 are the fewest"),
        (b"ply\n" + whole[at:], "the line 'end_header' is not known in the header, or not there"),
        (whole.replace(b"1.0", b"2.0", 1), "the line 'format .* 2.0' is not known"),
        (b"obj" + whole[3:], "the first line is not 'ply'"),
    ]:
        refused(read, "a.ply", content, message)
    assert len(read("a.ply", ply(form, POINTS))["pos"]) == 7


def test_ply_row_and_list_lengths(read):
    whole = ply("ascii", POINTS, [(0, 1, 2), (2, 3, 4)])
    for content, message in [
        (whole[:-2], "the row b'3 2 3 4 -' |values of 'flags' are no table"),
        (whole.replace(b"3 2 3 4 -1", b"3 2 3 4"), "the row b'3 2 3 4' of the elements 'face' has not the numbers"),
        (whole.replace(b"3 2 3 4 -1", b"3 2 3 4 -1 5"), "has not the numbers that it declares"),
        (whole.replace(b"3 2 3 4 -1", b"-3 2 3 4 -1"), "the length of a list 'vertex_indices' is b'-3'"),
        (whole.replace(b"3 2 3 4 -1", b"3 2 3 4.5 -1"), "corners of the faces are no integers"),
        (whole.replace(b"3 2 3 4 -1", b"3 2 3 nan -1"), "corners of the faces are no integers"),
        (ply("ascii", POINTS).replace(b"\n255 ", b"\n"), "4 properties, and 3 numbers"),
    ]:
        refused(read, "a.ply", content, message)
