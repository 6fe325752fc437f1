"""The built-in data: counts, sizes, orientation; the rule that made it; its writer; bad input."""

import csv
import importlib.util
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from attlas import furniture

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (ROOT / "tools" / "furniture14.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tool():
    pytest.importorskip("open3d")
    pytest.importorskip("trimesh")
    spec = importlib.util.spec_from_file_location("make_furniture14", ROOT / "tools" / "make_furniture14.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def box(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.creation.box(bounds=[[low] * 3, [high] * 3])
    return np.array(mesh.vertices), np.array(mesh.faces)


def random_rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


# -- what is shipped


def test_counts_and_order_are_those_of_the_table(rows):
    meshes = furniture.load("all")
    assert [(m.model, m.library, m.name, m.author) for m in meshes] == [
        (r["model"], r["library"], r["name"], r["creator"]) for r in rows
    ]
    assert [furniture.CLASSES[m.label] for m in meshes] == [r["label"] for r in rows]
    for split, count in (("train", 286), ("test", 122)):
        wanted = Counter(r["label"] for r in rows if r["split"] == split)
        assert sum(wanted.values()) == count
        assert Counter(furniture.CLASSES[m.label] for m in furniture.load(split)) == wanted
    assert sorted(furniture.CLASSES) == list(furniture.CLASSES)


def test_meshes_are_metric_and_well_formed(rows):
    for mesh, row in zip(furniture.load("all"), rows):
        assert mesh.vertices.dtype == np.float32
        assert mesh.faces.dtype == np.int32
        assert mesh.colors.dtype == np.uint8
        assert mesh.colors.shape == mesh.faces.shape
        assert mesh.faces.min() == 0
        assert mesh.faces.max() == len(mesh.vertices) - 1
        size = [float(row[key]) / 100 for key in ("width_cm", "height_cm", "depth_cm")]
        np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), size, rtol=0.02, err_msg=mesh.model)
        assert abs(mesh.vertices[:, 1].min()) < 1e-3
        corner = mesh.vertices[mesh.faces].astype(np.float64)
        area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1) / 2
        assert (area > 0).all(), mesh.model
        assert len(mesh.faces) <= 20_000


def test_licenses_say_what_the_package_says():
    licenses = Counter((m.library, m.license) for m in furniture.load("all"))
    assert licenses == {
        ("BlendSwap-CC-0", "CC0-1.0"): 74,
        ("BlendSwap-CC-0", "CC-BY-3.0"): 2,  # whose own license files differ from their library's
        ("BlendSwap-CC-BY", "CC-BY-3.0"): 68,
        ("KatorLegaz", "CC-BY-3.0-US"): 43,
        ("Reallusion", "CC-BY-3.0-US"): 25,
        ("Scopia", "CC-BY-3.0"): 196,
    }
    card = (ROOT / "attlas" / "FURNITURE14.md").read_text(encoding="utf-8")
    for mesh in furniture.load("all"):
        assert f"| `{mesh.model}` | {mesh.name} | {mesh.author} | {mesh.license} |" in card


def test_parts_are_those_of_the_table(tool):
    table = tool.read_parts()
    meshes = furniture.load("all")
    assert set(table) == {mesh.model for mesh in meshes if mesh.parts is not None}
    for mesh in meshes:
        if mesh.parts is None:
            continue
        assert mesh.parts.shape == mesh.faces.shape[:1]
        assert not mesh.parts.flags.writeable
        assert set(mesh.parts.tolist()) == set(table[mesh.model].values()), mesh.model
        categories = {furniture.PARTS[part].split("/")[0] for part in table[mesh.model].values()}
        assert categories == {furniture.CLASSES[mesh.label]}, mesh.model


def test_every_part_is_in_both_splits():
    for split, fewest in (("train", 11), ("test", 4)):
        meshes = [mesh for mesh in furniture.load(split) if mesh.parts is not None]
        models = Counter(int(part) for mesh in meshes for part in np.unique(mesh.parts))
        assert min(models[part] for part in range(len(furniture.PARTS))) >= fewest


def test_what_is_seen_from_outside_faces_outward():
    o3d = pytest.importorskip("open3d")
    rng = np.random.default_rng(0)
    names = {"table", "sofa", "cabinet", "vessel", "car", "door"}
    meshes = [m for m in furniture.load("test") if furniture.CLASSES[m.label] in names][::4]
    facing = []
    for mesh in meshes:
        center = (mesh.vertices.max(0) + mesh.vertices.min(0)) / 2
        radius = np.linalg.norm(mesh.vertices - center, axis=1).max()
        direction = rng.normal(size=(4000, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        target = center + radius * rng.uniform(-0.7, 0.7, size=(4000, 3))
        rays = np.concatenate([target - 3 * radius * direction, direction], axis=1).astype(np.float32)
        scene = o3d.t.geometry.RaycastingScene()
        scene.add_triangles(o3d.core.Tensor(mesh.vertices.copy()), o3d.core.Tensor(mesh.faces.astype(np.uint32)))
        hits = scene.cast_rays(o3d.core.Tensor(rays))
        seen = np.isfinite(hits["t_hit"].numpy())
        assert seen.sum() > 100, mesh.model
        facing.append(((hits["primitive_normals"].numpy() * direction).sum(1)[seen] < 0).mean())
    assert len(facing) >= 10
    assert np.mean(facing) > 0.97
    assert min(facing) > 0.9


def test_arrays_are_read_only_and_shared():
    mesh = furniture.load("test")[0]
    with pytest.raises(ValueError, match="read-only"):
        mesh.vertices[0, 0] = 1
    assert furniture.load("test")[0] is mesh


# -- how it is made


def test_hidden_triangles_go_and_wrong_windings_turn(tool):
    outer, faces = box(-1, 1)
    inner, _ = box(-0.5, 0.5)
    wrong = np.array([0, 3, 7])
    mixed = faces.copy()
    mixed[wrong] = mixed[wrong][:, ::-1]
    seen = tool.outside_visibility(np.concatenate([outer, inner]), np.concatenate([mixed, faces + 8]))
    assert seen.keep.tolist() == [True] * 12 + [False] * 12
    assert np.flatnonzero(seen.flip[:12]).tolist() == wrong.tolist()
    assert seen.visible == pytest.approx(24 / 30)
    assert seen.turned == pytest.approx(3 / 12)


def test_rule_commutes_with_rotation(tool):
    mesh = furniture.load("all")[next(i for i, m in enumerate(furniture.load("all")) if len(m.faces) > 300)]
    rng = np.random.default_rng(0)
    vertices, faces = mesh.vertices.astype(np.float64), mesh.faces[:2500].copy()
    turned = rng.random(len(faces)) < 0.3
    faces[turned] = faces[turned][:, ::-1]
    here = tool.outside_visibility(vertices, faces)
    assert here.flip.any()
    for seed in range(3):
        there = tool.outside_visibility(vertices @ random_rotation(seed).T + rng.normal(size=3), faces)
        # rays are cast in float32: one that grazes an edge may decide otherwise
        assert (there.keep == here.keep).mean() > 0.995
        assert (there.flip == here.flip)[here.keep].mean() > 0.995


def test_rule_commutes_exactly_where_no_ray_grazes(tool):
    outer, faces = box(-1, 1)
    inner, _ = box(-0.5, 0.5)
    faces[::2] = faces[::2, ::-1]
    vertices, both = np.concatenate([outer, inner]), np.concatenate([faces, faces + 8])
    here = tool.outside_visibility(vertices, both)
    for seed in range(5):
        there = tool.outside_visibility(vertices @ random_rotation(seed).T, both)
        assert (there.keep == here.keep).all()
        assert (there.flip == here.flip)[here.keep].all()


def test_two_sided_sheet_keeps_its_winding_and_its_patch_together(tool):
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 6), indexing="ij"), axis=-1).reshape(-1, 2)
    vertices = np.column_stack([grid, 0.2 * np.sin(3 * grid[:, 0])])  # a leaf: a slightly curved sheet
    corner = np.array(
        [[i * 6 + j, (i + 1) * 6 + j, (i + 1) * 6 + j + 1, i * 6 + j + 1] for i in range(5) for j in range(5)]
    )
    faces = np.concatenate([corner[:, [0, 1, 2]], corner[:, [0, 2, 3]]])
    assert len(set(tool.winding_patches(faces))) == 1
    for winding in (faces, faces[:, ::-1]):
        seen = tool.outside_visibility(vertices, winding)
        assert seen.keep.all()
        assert not seen.flip.any()


def test_simplified_mesh_keeps_shape_and_colors(tool):
    trimesh = pytest.importorskip("trimesh")
    ball = trimesh.creation.icosphere(subdivisions=5)
    colors = np.where(ball.triangles_center[:, :1] > 0, [255, 0, 0], [0, 0, 255]).astype(np.uint8)
    parts = (colors[:, 0] > 0).astype(np.uint8)
    simple = tool.simplify(tool.Model(np.array(ball.vertices), np.array(ball.faces), colors, parts))
    assert len(simple.faces) <= tool.MAX_FACES
    assert simple.area() == pytest.approx(4 * np.pi, rel=0.01)
    center = simple.vertices[simple.faces].mean(1)
    clear = np.abs(center[:, 0]) > 0.1
    assert ((simple.colors[:, 0] == 255) == (center[:, 0] > 0))[clear].all()
    assert ((simple.parts == 1) == (simple.colors[:, 0] == 255)).all()


def test_model_is_turned_scaled_and_stood_on_the_floor(tool):
    vertices, faces = box(0, 1)
    row = {"width_cm": "100", "depth_cm": "50", "height_cm": "200"}
    model = tool.Model(vertices * [1, 2, 3], faces, np.zeros((12, 3), np.uint8), np.zeros(12, np.uint8))
    metric = tool.to_meters(model, row, "1 0 0 0 0 1 0 -1 0").vertices  # z up -> y up
    np.testing.assert_allclose(metric.min(0), [-0.5, 0, -0.25], atol=1e-12)
    np.testing.assert_allclose(metric.max(0), [0.5, 2, 0.25], atol=1e-12)
    assert metric[vertices[:, 2] == 1][:, 1] == pytest.approx(2)


def test_texture_color_is_local_and_alpha_aware(tool):
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, :16] = (200, 0, 0, 255)
    pixels[:, 16:] = (0, 100, 0, 255)
    pixels[::2, :16] = (0, 0, 250, 0)  # transparent: does not count
    uv = np.array([[0.1, 0.1], [0.2, 0.1], [0.1, 0.2], [0.8, 0.8], [0.9, 0.8], [0.8, 0.9]])
    faces = np.array([[0, 1, 2], [3, 4, 5], [0, 3, 4]])
    colors = tool.texture_colors(image.fromarray(pixels), uv, faces)
    assert colors[0].tolist() == [200, 0, 0]
    assert colors[1].tolist() == [0, 100, 0]
    assert colors[2].tolist() == [67, 67, 0]  # spans the texture: its mean, weighted by alpha
    assert (tool.texture_colors(image.fromarray(pixels), None, faces) == [67, 67, 0]).all()


def test_writer_is_deterministic_and_readable(tool, tmp_path):
    arrays = {"a": np.arange(1000, dtype=np.uint16), "b": np.array(["x", "yz"])}
    for name in ("one.npz", "two.npz"):
        tool.write_npz(tmp_path / name, arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz", allow_pickle=False) as data:
        assert data["a"].tolist() == list(range(1000))
        assert data["b"].tolist() == ["x", "yz"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.npz", "two.npz"]
    assert tool.compare(tmp_path / "one.npz", tmp_path / "two.npz") == 0
    tool.write_npz(tmp_path / "two.npz", {**arrays, "b": np.array(["x"])})
    assert tool.compare(tmp_path / "one.npz", tmp_path / "two.npz") == 1


def test_packed_models_read_back(tool, rows, tmp_path, monkeypatch):
    some = [next(r for r in rows if r["label"] == name) for name in furniture.CLASSES]
    vertices, faces = box(0, 1)
    parts = [np.full(12, furniture.NO_PART if i % 2 else i, np.uint8) for i in range(14)]
    models = [tool.Model(vertices * (i + 1), faces, np.full((12, 3), i, np.uint8), parts[i]) for i in range(14)]
    tool.write_npz(tmp_path / "small.npz", tool.pack(models, [{**r, "license": "CC0-1.0"} for r in some]))
    monkeypatch.setattr(furniture, "ASSET", tmp_path / "small.npz")
    meshes = furniture.load("all")
    assert [m.label for m in meshes] == list(range(14))
    for i, mesh in enumerate(meshes):
        np.testing.assert_allclose(mesh.vertices, vertices * (i + 1), atol=1e-5 * (i + 1))
        assert (mesh.faces == faces).all()
        assert (mesh.colors == i).all()
        assert mesh.parts is None if i % 2 else mesh.parts.tolist() == [i] * 12


def test_material_decides_the_part(tool, tmp_path):
    corners = "".join(f"v {x} {y} 0\n" for x in (0, 1, 2) for y in (0, 1))
    text = f"{corners}usemtl wood\nf 1 3 4\nf 1 4 2\nusemtl cloth\nf 3 5 6\n"
    with zipfile.ZipFile(tmp_path / "a.sh3f", "w") as library:
        library.writestr("a/a.obj", f"mtllib a.mtl\n{text}")
        library.writestr("a/a.mtl", "newmtl wood\nKd 1 0 0\nnewmtl cloth\nKd 0 0 1\n")
        model = tool.read_model(library, "a/a.obj", {"wood": 3, "cloth": 2})
        assert sorted(zip(model.colors[:, 0].tolist(), model.parts.tolist())) == [(0, 2), (255, 3), (255, 3)]
        assert (tool.read_model(library, "a/a.obj").parts == furniture.NO_PART).all()
        for wrong in ({"wood": 3}, {"wood": 3, "cloth": 2, "silk": 1}):
            with pytest.raises(ValueError, match=r"a/a\.obj: .* do not name the same materials \((cloth|silk)\)"):
                tool.read_model(library, "a/a.obj", wrong)


def test_missing_library_names_itself(tool, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"BlendSwap-CC-0\.sh3f"):
        tool.build(tmp_path)


# -- bad input


@pytest.mark.parametrize("split", ["trian", "val", None, 3])
def test_bad_split_names_the_choices(split):
    with pytest.raises(ValueError, match=r"split: got .*'train', 'test', 'all'"):
        furniture.load(split)


def test_near_split_is_suggested():
    with pytest.raises(ValueError, match="did you mean 'train'"):
        furniture.load("trian")


@pytest.mark.parametrize("content", [b"", b"not a zip", "cut"])
def test_corrupt_asset_names_itself(tmp_path, monkeypatch, content):
    broken = tmp_path / "furniture14.npz"
    broken.write_bytes(furniture.ASSET.read_bytes()[:100_000] if content == "cut" else content)
    monkeypatch.setattr(furniture, "ASSET", broken)
    with pytest.raises(RuntimeError, match=r"furniture14\.npz: not a readable Furniture14 asset"):
        furniture.load("all")


def test_damaged_bytes_are_noticed(tmp_path, monkeypatch):
    content = bytearray(furniture.ASSET.read_bytes())
    content[len(content) // 2] ^= 0xFF
    broken = tmp_path / "damaged.npz"
    broken.write_bytes(content)
    monkeypatch.setattr(furniture, "ASSET", broken)
    with pytest.raises(RuntimeError, match=r"damaged\.npz: not a readable"):
        furniture.load("all")


def test_missing_asset_names_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(furniture, "ASSET", tmp_path / "nowhere.npz")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz: the Furniture14 asset is missing"):
        furniture.load("all")
