"""glTF is read as other readers read it, and held to what it declares."""

import base64
import json

import numpy as np
import pytest
import trimesh
from shape_files import TETRAHEDRON, gltf, refused

from attlas.pointnets.formats import gltf as reader
from attlas.pointnets.shapes import read_shape

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
        turn = trimesh.transformations.random_rotation_matrix(np.random.default_rng(1).random(3))
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
    monkeypatch.setattr(reader, "GLTF_PARTS", 9_999)
    refused(read, "a.glb", content, "its nodes repeat meshes up to 10,000 parts")
    monkeypatch.undo()
    monkeypatch.setattr(reader, "GLTF_MOST", 50_000)
    refused(read, "a.glb", content, "its nodes repeat meshes up to 6,251 parts and 50,008 vertices and triangles")
