"""What a format can hold is read as other readers read it; what a file declares and does not hold is refused."""

import base64
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import trimesh
from shape_files import FACES, FORMS, TETRAHEDRON, VERTICES, gltf, lzf, npy, npz, pcd, ply

from attlas.pointnets import formats
from attlas.pointnets.shapes import SUFFIXES, read_shape

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(7, 3)).round(3)


@pytest.fixture
def read(tmp_path):
    """read(name, content) -> the shape of a file that holds `content`."""

    def call(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_shape(path)

    return call


def refused(read, name, content, message):
    with pytest.raises(ValueError, match=rf"{name} is not a readable shape: .*{message}"):
        read(name, content)


# --- PCD


def test_pcd_of_any_type_order_and_padding(read):
    kinds = dict(F4="<f4", F8="<f8", I1="<i1", I2="<i2", I4="<i4", I8="<i8", U1="<u1", U2="<u2", U4="<u4", U8="<u8")
    for kind, dtype in kinds.items():
        points = (POINTS if kind[0] == "F" else abs(POINTS * 100)).astype(dtype)
        table = np.zeros(7, [("z", dtype), ("_", "u1", 5), ("x", dtype), ("rgb", "<f4"), ("y", dtype)])
        for i, axis in enumerate("xyz"):
            table[axis] = points[:, i]
        options = dict(
            fields="z _ x rgb y",
            size=f"{kind[1]} 1 {kind[1]} 4 {kind[1]}",
            type=f"{kind[0]} U {kind[0]} F {kind[0]}",
            count="1 5 1 1 1",
            points=7,
        )
        packed = b"".join(np.ascontiguousarray(table[name]).tobytes() for name in table.dtype.names)
        bodies = dict(
            ascii="".join(f"{z} 0 0 0 0 0 {x} nan {y}\r\n" for x, y, z in points.tolist()),
            binary=table.tobytes(),
            binary_compressed=struct.pack("<II", len(lzf(packed)), len(packed)) + lzf(packed),
        )
        for data, body in bodies.items():
            got = read("a.pcd", pcd(data, body=body, **options))
            np.testing.assert_array_equal(got["pos"], points.astype(np.float32), err_msg=f"{kind} {data}")


def test_lzf():
    for data in (b"", b"a", bytes(1000), b"abc" * 200, RNG.bytes(100), bytes(RNG.integers(0, 2, 500, dtype=np.uint8))):
        packed = lzf(data)
        assert formats.unpack_lzf(packed, len(data)) == data
        for wrong in (packed[:-1], packed + b"\0", b"\x20\0" + packed):
            if wrong != packed:
                with pytest.raises(ValueError, match="the compressed data"):
                    formats.unpack_lzf(wrong, len(data))
    with pytest.raises(ValueError, match="refer to bytes before the first"):
        formats.unpack_lzf(b"\0a\x20\5", 4)


@pytest.mark.parametrize("options", [dict(write_ascii=True), dict(), dict(compressed=True)])
def test_pcd_and_ply_of_open3d(tmp_path, options):
    o3d = pytest.importorskip("open3d")
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(RNG.normal(size=(200, 3)).round(2)))
    cloud.colors = cloud.points
    cloud.normals = o3d.utility.Vector3dVector(np.tile([0.6, 0, 0.8], (200, 1)))
    for suffix in ("pcd", "ply"):
        path = tmp_path / f"a.{suffix}"
        assert o3d.io.write_point_cloud(str(path), cloud, **options)
        shape = read_shape(path)
        np.testing.assert_array_equal(shape["pos"], np.asarray(cloud.points, np.float32))
        np.testing.assert_allclose(shape["normal"], cloud.normals, atol=1e-6)


PCD_HEADERS = {  # shared case 31; the last one killed the process
    "no SIZE, TYPE, POINTS": b"FIELDS x y z\nDATA binary\n",
    "no SIZE, but bytes": b"FIELDS x y z\nDATA binary\n" + b"A" * 60,
    "no SIZE, but text": b"FIELDS x y z\nDATA ascii\n1 2 3\n",
    "fewer SIZE": pcd("binary", fields="x y z rgb", points=2, body=b"A" * 40),
    "more SIZE": pcd(size="4 4 4 4", type="F F F F", count="1 1 1 1", points=2, body="1 2 3\n4 5 6\n"),
    "absurd compressed sizes": pcd("binary_compressed", points=2, body=b"\xff\xff\xff\x7f\xff\xff\xff\x7fAAAA"),
    "no word of PCD": b"x\n",
    "no fields": b"FIELDS\nDATA ascii\n",
    "points and one line": b"POINTS 5\nFIELDS x y z\nDATA ascii\n1 2 3\n",
    "a broken field": b"FIELDS x y z norma\x6c\xcc\xbe normal_y normal_z\nDATA binary\n" + b"\x60\xbe\x03\x7a" * 10,
}


@pytest.mark.parametrize("case", PCD_HEADERS)
def test_pcd_without_a_whole_header(read, case):
    refused(read, "a.pcd", PCD_HEADERS[case], ".")


def test_pcd_is_held_to_its_header(read):
    body = np.zeros((4, 3), "<f4").tobytes()
    read("a.pcd", pcd("binary", body=body + b"\n\0"))
    read("a.pcd", pcd(POINTS=None))
    read("a.pcd", pcd(WIDTH=None, HEIGHT=None))
    read("a.pcd", pcd(WIDTH=2, HEIGHT=2, count=None, COUNT=None))
    for content, message in [
        (pcd(points=5), "5 points are declared, and 4 lines follow"),
        (pcd(points=3), "3 points are declared, and 4 lines follow"),
        (pcd(POINTS=5), "the number of points is missing, or two were given"),
        (pcd(POINTS="4 4"), "POINTS is '4 4'; a natural number was expected"),
        (pcd(POINTS="-4"), "POINTS is '-4'; a natural number was expected"),
        (pcd(body=VERTICES.replace("0 0 1", "0 0")), "the points are no table of numbers"),
        (pcd(body=VERTICES.replace("0 0 1", "0 0 x")), "the points are no table of numbers"),
        (pcd(body=VERTICES.replace("\n", " 1\n")), "3 numbers for each point are declared, and 4 were found"),
        (pcd("binary", body=body[:-1]), "4 points of 12 bytes are declared, which 47 bytes do not hold"),
        (pcd("binary", body=body + b"1"), "1 bytes are left"),
        (pcd("binary", points=2**59, body=body), "points of 12 bytes are declared, which 48 bytes do not hold"),
        (pcd("binary", count="1 1 99999999999", body=body), "one field 'z' of one number was expected"),
        (pcd("binary_compressed", body=struct.pack("<II", 5, 48) + bytes(5)), "the compressed data hold"),
        (pcd("binary_compressed", points=10**7, body=struct.pack("<II", 5, 12 * 10**7) + bytes(5)), "do not hold"),
        (pcd("binary_compressed", body=b""), "do not hold"),
        (pcd("text"), "DATA is 'text'; it may be ascii, binary or binary_compressed"),
        (pcd(size="4 4 3"), "field 'z' is of TYPE F, SIZE 3 and COUNT 1, which cannot be read"),
        (pcd(fields="x y w"), "one field 'z' of one number was expected among x y w"),
        (pcd(fields="x y z x", size="4 4 4 4", type="F F F F", count="1 1 1 1"), "one field 'x' of one number"),
        (pcd().replace(b"HEIGHT", b"WIDTH"), "the header has the entry 'WIDTH' twice"),
        (pcd(points=0, body=""), "no points are declared"),
    ]:
        refused(read, "a.pcd", content, message)


# --- PLY


@pytest.mark.parametrize("form", FORMS)
def test_ply_of_any_type_and_polygons(read, form):
    vertices = (np.arange(21).reshape(7, 3) ** 2 % 11).tolist()
    polygons = [(0, 1, 2, 3), (0, 1, 4), (1, 2, 4, 5, 6), (2, 3, 4)]
    fans = [[0, 1, 2], [0, 2, 3], [0, 1, 4], [1, 2, 4], [1, 4, 5], [1, 5, 6], [2, 3, 4]]
    for kind in formats.PLY_TYPES:
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


# --- glTF


MOVED = [[1, 2, 3], [0, 2, 3], [1, 3, 3], [1, 2, 4]]


@pytest.mark.parametrize("suffix", ["glb", "gltf"])
def test_gltf_places_its_meshes(read, suffix):
    shape = read(f"a.{suffix}", gltf(suffix == "glb"))
    assert shape["pos"].tolist() == MOVED
    assert shape["face"].tolist() == [face[::-1] for face in TETRAHEDRON]  # mirrored
    matrix = [
        0,
        1,
        0,
        0,
        -1,
        0,
        0,
        0,
        0,
        0,
        1,
        0,
        5,
        0,
        0,
        1,
    ]  # column after column: a quarter turn, then 5 to the right
    shape = read(
        f"a.{suffix}",
        gltf(suffix == "glb", nodes__0=dict(matrix=matrix), nodes__1=dict(mesh=0), scenes__0__nodes=[0, 1]),
    )
    assert shape["pos"].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    turned = dict(mesh=0, rotation=[0, 0, 0.5**0.5, 0.5**0.5])
    shape = read(f"a.{suffix}", gltf(suffix == "glb", nodes__1=turned))
    np.testing.assert_allclose(shape["pos"], [[1, 2, 3], [1, 3, 3], [0, 2, 3], [1, 2, 4]], atol=1e-6)
    assert shape["face"].tolist() == TETRAHEDRON


def test_gltf_as_trimesh_reads_it(tmp_path):
    scene = trimesh.Scene()
    for i in range(3):
        turn = trimesh.transformations.random_rotation_matrix(RNG.random(3))
        turn[:3, 3] = i
        scene.add_geometry(trimesh.creation.icosphere(subdivisions=i), transform=turn)
    path = tmp_path / "a.glb"
    scene.export(path)
    shape, theirs = read_shape(path), trimesh.load_mesh(path)
    ours = trimesh.Trimesh(shape["pos"], shape["face"])
    assert (len(ours.faces), len(ours.vertices)) == (len(theirs.faces), len(theirs.vertices))
    assert ours.volume == pytest.approx(theirs.volume, rel=1e-5)
    np.testing.assert_allclose(ours.bounds, theirs.bounds, atol=1e-5)


def test_gltf_strips_fans_and_lines(read):
    primitive = "meshes__0__primitives__0"
    assert read("a.glb", gltf(**{f"{primitive}__mode": 5}))["face"][:, ::-1].tolist()[:3] == [
        [0, 1, 2], [1, 0, 2], [2, 0, 1],
    ]  # fmt: skip
    assert read("a.glb", gltf(**{f"{primitive}__mode": 6}))["face"][:, ::-1].tolist()[2:4] == [[0, 0, 1], [0, 1, 3]]
    lines = gltf(meshes__0__primitives__1=dict(attributes=dict(POSITION=1), mode=1))
    assert len(read("a.glb", lines)["face"]) == 4
    refused(read, "a.glb", gltf(**{f"{primitive}__mode": 1}), "there are no triangles in the scene")


def test_gltf_buffers_lie_beside_the_file(read, tmp_path):
    data = base64.b64decode(json.loads(gltf(False))["buffers"][0]["uri"].partition(",")[2])
    (tmp_path / "a b.bin").write_bytes(data)
    assert read("a.gltf", gltf(False, buffers__0__uri="a%20b.bin"))["pos"].tolist() == MOVED
    outside = tmp_path / "models"
    outside.mkdir()
    (outside / "link.bin").symlink_to(tmp_path / "a b.bin")
    for uri, message in [
        ("../a b.bin", "lies outside the file's folder"),
        (str(tmp_path / "a b.bin"), "lies outside the file's folder"),
        ("link.bin", "lies outside the file's folder"),
        ("https://example.com/a.bin", "lies outside the file's folder"),
        ("no.bin", "the buffer 'no.bin' is missing"),
        ("data:,x?", "."),
    ]:
        (outside / "a.gltf").write_bytes(gltf(False, buffers__0__uri=uri))
        with pytest.raises(ValueError, match=rf"a\.gltf is not a readable shape: .*{message}"):
            read_shape(outside / "a.gltf")
    refused(read, "b.gltf", gltf(False, buffers__0__uri="a b.bin", buffers__0__byteLength=73), "and 72 were found")


def test_gltf_is_held_to_its_counts(read):
    whole = gltf()
    for content, message in [
        (whole[:-1], "version 2 and .* bytes were expected"),
        (whole[:8], "version 2 and 8 bytes were expected, not 0 and 0"),
        (whole[:16] + b"BIN\0" + whole[20:], "the first chunk is not JSON"),
        (whole[:12] + b"\xff\xff\xff\x7f" + whole[16:], "a chunk of 2147483647 bytes is declared"),
        (gltf(accessors__1__count=5), r"accessors\[1\] of 5 times 12 bytes lies outside its buffer"),
        (gltf(accessors__1__count=2**60), "lies outside its buffer"),
        (gltf(accessors__1__count=-1), "count is '-1'; a int was expected"),
        (gltf(accessors__1__byteOffset=4), "lies outside its buffer"),
        (gltf(bufferViews__1__byteLength=60), "lies outside its buffer"),
        (gltf(bufferViews__1__byteStride=1), "lies outside its buffer"),
        (gltf(bufferViews__1__byteStride=16), "lies outside its buffer"),
        (gltf(buffers__0__byteLength=73), "of 73 bytes is declared, and 72 were found"),
        (gltf(accessors__1__sparse=dict(count=1)), "is sparse or compressed"),
        (gltf(accessors__1=dict(componentType=5126, count=4, type="VEC3")), "is sparse or compressed"),
        (gltf(accessors__1__componentType=5122), "is no VEC3 of a type that is read"),
        (gltf(accessors__0__count=11), "11 corners do not make triangles"),
        (gltf(accessors__1__count=3), "a triangle has the corner 3, and there are 3 vertices"),
        (gltf(extensionsRequired=["KHR_draco_mesh_compression"]), "needs the extension 'KHR_draco_mesh_compression'"),
        (gltf(asset__version="1.0"), "this is no glTF 2.0"),
        (gltf(nodes__1__children=[0]), r"nodes\[0\] stands twice in the scene"),
        (gltf(scenes__0__nodes=[7]), r"nodes\[7\] does not exist; there are 2"),
        (gltf(nodes__1__mesh="0"), r"meshes\[0\] does not exist"),
        (gltf(nodes__1__scale=[1, 1]), "the scale of a node has not 3 numbers"),
        (gltf(nodes=3), "nodes is '3'; a list was expected"),
    ]:
        refused(read, "a.glb", content, message)
    refused(read, "a.gltf", b"[" * 100_000, ".")


def test_a_small_gltf_cannot_ask_for_many_meshes(read, monkeypatch):
    """A hundred nodes that all stand for one mesh of a hundred parts."""
    part = dict(attributes=dict(POSITION=1), indices=0)
    content = gltf(
        scenes=[dict(nodes=[*range(100)])], nodes=[dict(mesh=0)] * 100, meshes=[dict(primitives=[part] * 100)]
    )
    assert len(read("a.glb", content)["face"]) == 40_000
    monkeypatch.setattr(formats, "GLTF_PARTS", 9_999)
    refused(read, "a.glb", content, "its nodes repeat meshes up to 10,000 parts")
    monkeypatch.undo()
    monkeypatch.setattr(formats, "GLTF_MOST", 50_000)
    refused(read, "a.glb", content, "its nodes repeat meshes up to 6,251 parts and 50,008 vertices and triangles")


# --- NumPy


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


# --- all


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


def test_no_error_advises_to_unpickle(read):
    for name in ("a.npz", "a.npy"):
        for content in (b"no archive", pickle.dumps({"pos": 1}), npz(pos=npy(POINTS))[:-40]):
            with pytest.raises(ValueError, match=f"{name} is not a readable shape") as error:
                read(name, content)
            assert "allow_pickle" not in str(error.value)
            assert "pickle.load" not in str(error.value)
