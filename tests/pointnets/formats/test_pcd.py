"""PCD is read as other readers read it, and held to what it declares; so is LZF."""

import struct

import numpy as np
import pytest
from shape_files import POINTS, VERTICES, lzf, pcd, refused

from attlas.pointnets.formats.pcd import unpack_lzf
from attlas.pointnets.shapes import read_shape

RNG = np.random.default_rng(0)


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
        assert unpack_lzf(packed, len(data)) == data
        for wrong in (packed[:-1], packed + b"\0", b"\x20\0" + packed):
            if wrong != packed:
                with pytest.raises(ValueError, match="the compressed data"):
                    unpack_lzf(wrong, len(data))
    with pytest.raises(ValueError, match="refer to bytes before the first"):
        unpack_lzf(b"\0a\x20\5", 4)


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
