"""Tables are read as they are written, and held to what they declare: text, .npy, .npz."""

import zipfile

import numpy as np
import pytest
from shape_files import POINTS, npy, npz, refused

from attlas.pointnets.shapes import read_shape


def test_text_tables_are_held_to_their_count(read):
    rows = "\n".join(" ".join(map(str, row)) for row in POINTS)
    assert len(read("a.pts", f"7\n{rows}")["pos"]) == 7
    refused(read, "a.pts", f"8\n{rows}", "8 points are declared, and 7 were found")
    refused(read, "a.pts", "7\n", "7 points are declared, and 0 were found")
    refused(read, "a.xyz", rows.rpartition(" ")[0], "number of columns changed")
    refused(read, "a.txt", "1e39 0 0\n0 0 0\n", "1 of 2 points are NaN or infinite")


def test_text_tables_as_they_are_written(read, tmp_path):
    """Shared case 11, and what editors, spreadsheets and scanners make of a table."""
    points = POINTS[:2]
    normals = np.array([[0.6, 0, 0.8], [0, 1, 0]])
    for name, options in (
        ("plain", dict()),
        ("commas", dict(delimiter=",", header="points of a chair")),
        ("spaces", dict(delimiter=", ", header="x, y, z")),
        ("tabs", dict(delimiter="\t", header="2 points, 3 columns", footer="the end")),
        ("semicolons", dict(delimiter=";", comments="// ", header="X;Y;Z")),
        ("names", dict(delimiter=",", comments="", header="X,Y,Z")),
    ):
        np.savetxt(tmp_path / f"{name}.txt", points, **options)
        content = (tmp_path / f"{name}.txt").read_bytes()
        for again in (
            content,
            b"\xef\xbb\xbf" + content,
            content.decode().encode("utf-16"),
            b"# caf\xe9\r\n\n" + content,
        ):
            np.testing.assert_allclose(read("a.xyz", again)["pos"], points, err_msg=name)

    def rows(*columns):
        return "\n".join(" ".join(map(str, row)) for row in np.hstack(columns)) + "\n"

    ones = np.ones((2, 1))
    for name, content, with_normals in (
        ("a.pts", "2\n" + rows(points, -1200 * ones), False),
        ("a.pts", "2\n" + rows(points, -1200 * ones, 255 * np.ones((2, 3))), False),
        ("a.pts", "2\n" + rows(points, normals), True),
        ("a.txt", "//X Y Z R G B Nx Ny Nz\n2\n" + rows(points, 255 * np.ones((2, 3)), normals), True),
        ("a.txt", '"nz" "y" "x" "z" "nx" "ny"\n' + rows(normals[:, 2:], points[:, [1, 0, 2]], normals[:, :2]), True),
        ("a.txt", "# x y z r g b\n" + rows(points, 255 * np.ones((2, 3))), False),
        ("a.txt", "# 2\n1 # of x, y and z\n".replace("1", "2") + rows(points).replace("\n", " // a point\n"), False),
    ):
        shape = read(name, content)
        np.testing.assert_allclose(shape["pos"], points, err_msg=content)
        assert ("normal" in shape) == with_normals, content
        if with_normals:
            np.testing.assert_allclose(shape["normal"], normals, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,5;2,5;3,5\n", "the line '1,5;2,5;3,5' has two kinds of separators; decimal commas are not read"),
        ("1,5 2,5 3,5\n", "two kinds of separators"),
        ("1,2,3\n4 5 6\n", "the lines are no table of numbers"),
        ("1;2;3\n4;5\n", "the number of columns changed from 3 to 2 at row"),
        ("x,y,z\n1,2,3,4\n", "the line 'x,y,z' has neither numbers nor the names of the columns, x y z among them"),
        ("a b c\n1 2 3\n", "the line 'a b c' has neither"),
        ("x y z\nl 2 3\n4 5 6\n", "the line 'l 2 3' has neither"),
        ("l 2 3\n4 5 6\n", "the line 'l 2 3' has neither"),
        ("1 2 3\nx y z\n", "could not convert string 'x'"),
        ("x x y z\n1 2 3 4\n", "the line 'x x y z' has neither"),
        ("# the x of y, z\n1 2 3 4\n", "x y z or x y z nx ny nz were expected, not 4; a first line such as"),
        ("# nothing\n", "there are no numbers in it"),
        ("<html>\n", "the line '<html>' has neither"),
        ("1 2 nan\n1 2 3\n", "1 of 2 points are NaN or infinite"),
        ("nan 2 1\n1 2 3\n", "1 of 2 points are NaN or infinite"),
    ],
)
def test_text_tables_are_refused(read, content, message):
    refused(read, "a.txt", content, message)


def test_npy_as_numpy_writes_it(read, tmp_path):
    for dtype in ("<f2", ">f4", "<f8", "<i1", ">i4", "u1", "<u8"):
        for table in (POINTS, np.asfortranarray(POINTS)):
            table = (table * 10).astype(dtype)
            np.save(tmp_path / "a.npy", table)
            np.testing.assert_array_equal(read_shape(tmp_path / "a.npy")["pos"], table.astype(np.float32))
    np.savez_compressed(tmp_path / "a.npz", pos=POINTS, face=np.array([[0, 1, 2]]), other=np.array("text"))
    shape = read_shape(tmp_path / "a.npz")
    assert shape["face"].tolist() == [[0, 1, 2]]
    shape["pos"][:] = 0  # is writable
    shape["face"][:] = 0


def test_npy_is_held_to_its_header(read):
    assert len(read("a.npy", npy(POINTS))["pos"]) == 7
    for content, message in [
        (npy(POINTS, shape=(2**40, 3)), r"an array of shape \(1099511627776, 3\) is declared, which 168 bytes do not"),
        (npy(POINTS, shape=(8, 3)), r"shape \(8, 3\) is declared, which 168 bytes do not hold"),
        (npy(POINTS, shape=(6, 3)), r"shape \(6, 3\) is declared, which 168 bytes do not hold"),
        (npy(POINTS, shape=(-7, -3)), r"its shape is \(-7, -3\)"),
        (npy(POINTS, shape=[7, 3]), r"its shape is \[7, 3\]"),
        (npy(POINTS)[:-1], "which 167 bytes do not hold"),
        (npy(POINTS, descr="|O"), r"an array of numbers was expected, not of '\|O'; nothing is ever unpickled"),
        (npy(POINTS, descr=[("x", "<f8")]), "an array of numbers was expected"),
        (npy(POINTS, descr="<c8"), "an array of numbers was expected"),
        (npy(POINTS).replace(b"(7, 3)", b"((((("), "its header cannot be read"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff", "a header of 4294967295 bytes is declared"),
        (b"\x93NUMP", "it does not begin as an array"),
    ]:
        refused(read, "a.npy", content, message)


def test_npz_is_held_to_its_headers(read):
    faces = np.array([[0, 1, 2]])
    read("a.npz", npz(pos=npy(POINTS), face=npy(faces)))
    huge = npz(pos=npy(POINTS))
    at = huge.rindex(b"PK\1\2") + 24  # the size, in the archive's directory
    for content, message in [
        (npz(pos=npy(POINTS, shape=(2**40, 3))), r"shape \(1099511627776, 3\) is declared"),
        (npz(zipfile.ZIP_BZIP2, pos=npy(POINTS)), "'pos' is packed by another way than NumPy's"),
        (
            huge[:at] + b"\xff\xff\xff\x7f" + huge[at + 4 :],
            "'pos' of 2147483647 bytes is declared, which the file cannot",
        ),
        (huge[:-30], "."),
        (npz(pos=npy(POINTS), face=npy(faces.astype(float))), "face is of float64, which is not cast"),
        (npz(pos=npy(POINTS), face=npy(faces + 5)), "faces have corners 5 to 7; the vertices are 0 to 6"),
        (npz(a=npy(POINTS), b=npy(POINTS)), "columns x y z or x y z nx ny nz were expected"),
        (npz(), "columns x y z or x y z nx ny nz were expected, not nothing"),
    ]:
        refused(read, "a.npz", content, message)
