import json
import pickle
import random
from dataclasses import dataclass

import h5py
import numpy as np
import pytest
import torch
import trimesh
from mmengine.runner import Runner
from part_files import write_parts

from attlas.pointnets import datasets as D
from attlas.pointnets.shapes import read_shape
from attlas.pointnets.transforms import FarthestPoints, RandomDropout, RandomPoints, Shuffle
from attlas.registry import DATASETS

RNG = np.random.default_rng(0)
CUBE = trimesh.creation.box((1, 2, 3))
OFF = "OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"  # a tetrahedron


def unit_cloud(size=40) -> np.ndarray:
    """Columns x y z nx ny nz."""
    pos, normal = RNG.normal(size=(2, size, 3))
    return np.hstack([pos, normal / np.linalg.norm(normal, axis=1, keepdims=True)]).astype(np.float32)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content) if isinstance(content, str) else np.savetxt(path, content, fmt="%.4f", delimiter=",")
    return path


@pytest.fixture
def furniture(monkeypatch):
    """Four boxes in place of the built-in meshes."""

    @dataclass(frozen=True)
    class Mesh:
        name: str
        label: int
        vertices: np.ndarray
        faces: np.ndarray

    def load(split):
        mesh = np.asarray(CUBE.vertices, np.float32), np.asarray(CUBE.faces, np.int32)
        for array in mesh:
            array.setflags(write=False)
        return [Mesh(f"box{i}", i, *mesh) for i in range({"train": 4, "test": 2, "all": 6}[split])]

    monkeypatch.setattr(D.furniture, "load", load)


SAMPLE = [dict(type="SamplePoints", num=16, include_normals=True), dict(type="RandomRotation")]


def same(a, b) -> bool:
    return torch.equal(a.pos, b.pos) and torch.equal(a.normal, b.normal) and a.cloud == b.cloud


# --- draws


def test_a_draw_is_a_function_of_seed_epoch_and_item(furniture):
    dataset = D.Furniture14(transforms=SAMPLE)
    first = dataset[1]
    assert first.pos.shape == first.normal.shape == (16, 3)
    assert (int(first.y), first.cloud, first.name, first.y.dtype, first.y.ndim) == (1, 1, "box1", torch.int64, 0)
    assert first.pos.dtype == first.normal.dtype == torch.float32
    torch.manual_seed(5)
    random.seed(5)
    assert same(dataset[1], first)
    assert same(D.Furniture14(transforms=SAMPLE)[1], first)
    others = [dataset[0], dataset[5], dataset[9], D.Furniture14(transforms=SAMPLE, seed=1)[1]]
    assert not any(torch.equal(first.pos, other.pos) for other in others)
    assert [dataset[i].cloud for i in (5, 9, -3)] == [1, 1, 1]
    assert same(dataset[-3], first)
    assert same(dataset[1:3][0], first)  # a part of a data set keeps its draws


def test_a_draw_leaves_generators_and_the_source_alone(furniture):
    def move(data):  # a transform that draws from all three, and works in place
        data.pos += torch.rand(()) + random.random() + np.random.rand()
        return data

    dataset = D.Furniture14(transforms=[move])
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = dataset[0]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert torch.equal(dataset[0].pos, first.pos)
    assert not torch.equal(dataset[4].pos, first.pos)


def test_iteration_stops_and_metainfo_is_there(furniture):
    dataset = D.Furniture14("test", transforms=SAMPLE)
    assert [data.name for data in dataset] == ["box0", "box1"]
    assert dataset.metainfo == dict(classes=D.furniture.CLASSES)
    assert dataset.num_classes == 14
    mesh = dataset.get(0)
    assert mesh.face.shape == (3, 12)
    assert mesh.face.dtype == torch.int64


def test_the_built_in_furniture():
    train, test = (
        D.Furniture14("train", transforms=[dict(type="SamplePoints", num=64, include_normals=True)]),
        D.Furniture14("test"),
    )
    assert len(train) + len(test) == len(D.Furniture14("all"))
    assert set(train.labels) == set(test.labels) == set(range(14))
    for data in train[:20]:
        assert torch.allclose(data.normal.norm(dim=1), torch.ones(64), atol=1e-4)
        assert data.pos.abs().max() < 20  # meters


def epochs(num_workers):
    """Two epochs of training batches, as MMEngine's Runner makes them."""
    loader = Runner.build_dataloader(
        dict(
            dataset=dict(type="attlas.Furniture14", transforms=SAMPLE),
            sampler=dict(type="attlas.EpochSampler", shuffle=True),
            batch_size=2,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        ),
        seed=3,
    )
    assert loader.dataset.metainfo["classes"] == D.furniture.CLASSES
    drawn = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        drawn.append([data for batch in loader for data in batch])
    return drawn


def test_epochs_differ_and_workers_do_not_matter(furniture):
    alone, workers = epochs(0), epochs(2)
    assert [len(epoch) for epoch in alone] == [4, 4]
    for a, b in zip(alone, workers):
        assert sorted(data.cloud for data in a) == [0, 1, 2, 3]
        assert all(same(x, y) for x, y in zip(a, b))
    second = {data.cloud: data for data in alone[1]}
    assert not any(torch.equal(data.pos, second[data.cloud].pos) for data in alone[0])


def test_rotated_views(furniture):
    base = dict(type="Furniture14", split="test", transforms=SAMPLE[:1])
    marks = []
    views = D.RotatedViews(
        base, dict(none=1, z=1, SO3=2), transforms=[lambda data: marks.append(random.random()) or data]
    )
    assert len(views) == 2 * 4
    drawn = list(views)
    assert [data.protocol for data in drawn] == ["none"] * 2 + ["z"] * 2 + ["SO3"] * 4
    assert [data.cloud for data in drawn] == [0, 1] * 4
    assert views.metainfo == dict(classes=D.furniture.CLASSES)
    assert torch.equal(drawn[0].pos, DATASETS.build(base)[0].pos)
    for cloud in range(2):
        none, z, *SO3 = drawn[cloud::2]
        for view in (z, *SO3):  # the same points, turned; the normals turned alike
            assert not torch.allclose(view.pos, none.pos, atol=1e-2)
            for a, b in (("pos", "pos"), ("pos", "normal"), ("normal", "normal")):
                assert torch.allclose(view[a] @ view[b].T, none[a] @ none[b].T, atol=1e-5)
        assert torch.allclose(z.pos[:, 1], none.pos[:, 1], atol=1e-6)  # y is up
        assert not torch.allclose(SO3[0].pos, SO3[1].pos, atol=1e-2)
        assert len(set(marks[cloud::2])) == 1
    assert same(views[5], drawn[5])
    assert same(views[-3], drawn[5])
    assert views.get(5).name == "box1"
    assert same(D.RotatedViews(base, dict(SO3=2))[3], drawn[7])  # a view does not depend on the other groups
    assert not torch.allclose(views[5 + 8].pos, drawn[5].pos, atol=1e-2)
    with pytest.raises(ValueError, match=r"views is 'so3'.* Did you mean 'SO3'"):
        D.RotatedViews(base, dict(so3=1))
    with pytest.raises(ValueError, match=r"views\['z'\] is 0; it must be a positive integer"):
        D.RotatedViews(base, dict(z=0))
    with pytest.raises(IndexError, match="index -9 of a data set of 8 items"):
        views[-9]
    with pytest.raises(ValueError, match="views is empty"):
        D.RotatedViews(base, {})


# --- ModelNet40


@pytest.fixture
def resampled(tmp_path):
    root = tmp_path / "modelnet40_normal_resampled"
    put(root / "modelnet40_shape_names.txt", "airplane\nnight_stand\n")
    put(root / "modelnet40_train.txt", "airplane_0001\nairplane_0002\nnight_stand_0001\n")
    put(root / "modelnet40_test.txt", "night_stand_0201\n")
    put(root / "modelnet10_shape_names.txt", "night_stand\n")
    put(root / "modelnet10_train.txt", "night_stand_0001\n")
    tables = {}
    for name in ("airplane_0001", "airplane_0002", "night_stand_0001", "night_stand_0201"):
        tables[name] = unit_cloud()
        put(root / name.rpartition("_")[0] / f"{name}.txt", tables[name])
    return root, tables


def test_modelnet40_resampled(resampled):
    root, tables = resampled
    dataset = D.ModelNet40(root)
    assert dataset.classes == ("airplane", "night_stand")
    assert [(data.name, int(data.y)) for data in dataset] == [
        ("airplane/airplane_0001", 0),
        ("airplane/airplane_0002", 0),
        ("night_stand/night_stand_0001", 1),
    ]
    np.testing.assert_allclose(dataset[2].pos, tables["night_stand_0001"][:, :3], atol=1e-4)
    np.testing.assert_allclose(dataset[2].normal, tables["night_stand_0001"][:, 3:], atol=1e-3)
    assert len(D.ModelNet40(root.parent, "test")) == 1
    assert len(D.ModelNet40(root, "all")) == 4
    ten = D.ModelNet40(root, names="modelnet10")
    assert (ten.classes, len(ten)) == (("night_stand",), 1)


def test_cache_is_used_and_follows_the_file(resampled, tmp_path):
    root, _ = resampled
    cache = tmp_path / "cache"
    dataset = D.ModelNet40(root, cache=cache)
    first = dataset[0]
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
    assert same(dataset[0], first)
    (file,) = cache.iterdir()
    np.savez(file, pos=np.ones((2, 3)))
    assert torch.equal(dataset[0].pos, torch.ones(2, 3))  # read from the cache
    put(root / "airplane" / "airplane_0001.txt", unit_cloud(12))
    assert dataset[0].pos.shape == (12, 3)


def test_modelnet40_errors_name_the_file(resampled):
    root, _ = resampled
    path = root / "airplane" / "airplane_0001.txt"
    dataset = D.ModelNet40(root)
    table = unit_cloud()
    for content, message in [
        ("", "the file is empty"),
        ("1,2,3\n4,5", "airplane_0001.txt is not a readable shape"),
        ("1,2,x,0,0,1\n", "could not convert string 'x'"),
        ("1,2,3,4\n", "columns x y z or x y z nx ny nz were expected, not 4; a first line such as"),
        ("1,2,nan,0,0,1\n1,2,3,0,0,1\n", "1 of 2 points are NaN or infinite"),
        ("1,2,3,0,0,0\n1,2,3,0,0,1\n", "must have length 1; 1 of 2 have not"),
        ("1,2,3,0,0,nan\n", "must have length 1; 1 of 1 have not"),
        (np.hstack([table[:, :3], 200 * table[:, 3:]]), "must have length 1; 40 of 40"),
    ]:
        put(path, content)
        with pytest.raises(ValueError, match=f"airplane_0001.txt is not a readable shape: .*{message}|{message}"):
            dataset[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"airplane_0001\.txt is missing"):
        dataset[0]
    put(root / "modelnet40_test.txt", "spaceship_0001\n")
    with pytest.raises(ValueError, match=r"modelnet40_test.txt lists 'spaceship_0001'"):
        D.ModelNet40(root, "test")
    (root / "modelnet40_test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"modelnet40_test\.txt is missing"):
        D.ModelNet40(root, "test")


def test_modelnet40_meshes(tmp_path):
    root = tmp_path / "ModelNet40"
    put(root / "chair" / "train" / "chair_0001.off", OFF)
    put(root / "chair" / "test" / "chair_0890.off", OFF)
    put(
        root / "airplane" / "train" / "airplane_0001.off", OFF.replace("OFF\n", "OFF")
    )  # many published files have that
    dataset = D.ModelNet40(root, transforms=[dict(type="SamplePoints", num=9)])
    assert dataset.classes == ("airplane", "chair")
    assert [data.name for data in dataset] == ["airplane/airplane_0001", "chair/chair_0001"]
    assert dataset[0].pos.shape == (9, 3)
    assert dataset.get(0).pos.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert dataset.get(0).face.T.tolist() == [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]
    assert [data.name for data in D.ModelNet40(tmp_path, "test")] == ["chair/chair_0890"]
    ten = D.ModelNet40(root, names="modelnet10")
    assert ten.num_classes == 10
    assert [ten.classes[data.y] for data in ten] == ["chair"]
    file = root / "airplane" / "train" / "airplane_0001.off"
    for content, message in [
        ("", "the file is empty"),
        ("<html>not found</html>", "airplane_0001.off is not a readable shape"),
        (OFF[:30], "airplane_0001.off is not a readable shape"),
        (OFF[:-8], "4 vertices and 4 faces are declared, and 7 lines follow"),
        (OFF.replace("0 0 1", "0 0 nan"), "1 of 4 points are NaN"),
        (OFF.replace("3 1 2 3", "3 1 2 7"), "faces have corners 0 to 7; the vertices are 0 to 3"),
        (OFF.replace("1 0 0\n", "0 0 0\n").replace("0 1 0\n", "0 0 0\n"), "the mesh has no area"),
    ]:
        put(file, content)
        with pytest.raises(ValueError, match=message):
            dataset[0]


# --- ScanObjectNN


def h5(path, data, **labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"] = data
        for name, values in labels.items():
            file[name] = np.asarray(values)
    return path


@pytest.mark.parametrize(
    ("options", "file"),
    [
        (dict(), "main_split/training_objectdataset_augmentedrot_scale75.h5"),
        (dict(split="test"), "main_split/test_objectdataset_augmentedrot_scale75.h5"),
        (dict(background=False), "main_split_nobg/training_objectdataset_augmentedrot_scale75.h5"),
        (dict(variant="OBJ_BG"), "main_split/training_objectdataset.h5"),
        (dict(variant="OBJ_ONLY"), "main_split_nobg/training_objectdataset.h5"),
        (dict(variant="PB_T25", split="test"), "main_split/test_objectdataset_augmented25_norot.h5"),
        (dict(variant="PB_T25_R"), "main_split/training_objectdataset_augmented25rot.h5"),
        (dict(variant="PB_T50_R", background=False), "main_split_nobg/training_objectdataset_augmentedrot.h5"),
    ],
)
def test_scanobjectnn(tmp_path, options, file):
    data = RNG.normal(size=(3, 2048, 3)).astype(np.float32)
    h5(tmp_path / "h5_files" / file, data, label=[4, 0, 14], mask=np.zeros((3, 2048)))
    for root in (tmp_path, tmp_path / "h5_files"):
        dataset = D.ScanObjectNN(root, **options)
        assert dataset.num_classes == 15
        assert [dataset.classes[item.y] for item in dataset] == ["chair", "bag", "toilet"]
        np.testing.assert_array_equal(dataset[1].pos, data[1])
        assert "normal" not in dataset[1]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[2].pos, dataset[2].pos)  # as a spawned worker gets it


def test_scanobjectnn_errors_name_the_file(tmp_path):
    name = "training_objectdataset_augmentedrot_scale75.h5"
    path = tmp_path / "main_split" / name
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        D.ScanObjectNN(tmp_path)
    put(path, "no h5")
    with pytest.raises(ValueError, match=f"{name} is not a readable h5 file"):
        D.ScanObjectNN(tmp_path)
    data = np.zeros((2, 2048, 3), np.float32)
    with pytest.raises(ValueError, match=f"{name} is not a readable h5 file with 'data' and 'label'"):
        D.ScanObjectNN(h5(path, data).parents[1])
    with pytest.raises(ValueError, match=rf"{name}: data \(M, 2048, 3\), label \(M,\) were expected"):
        D.ScanObjectNN(h5(path, data, label=[0, 1, 2]).parents[1])
    with pytest.raises(ValueError, match=f"{name}: labels 0 to 14 were expected, not 0 to 15"):
        D.ScanObjectNN(h5(path, data, label=[0, 15]).parents[1])
    data[1, 5] = np.nan
    dataset = D.ScanObjectNN(h5(path, data, label=[0, 1]).parents[1])
    with pytest.raises(ValueError, match=f"{name}, shape 1: 1 of 2048 points are NaN"):
        dataset[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{name} is not a readable h5 file .*truncated"):
        D.ScanObjectNN(tmp_path)
    with pytest.raises(ValueError, match=r"variant is 'PB_T50_RSS'.* Did you mean 'PB_T50_RS'"):
        D.ScanObjectNN(tmp_path, variant="PB_T50_RSS")


NOT_HELD = {
    "is not held by 0 bytes": dict(shape=(2**30, 2048, 3), dtype="f4"),
    "in chunks .* is not held by 0 bytes": dict(shape=(2, 8, 3), dtype="f4", chunks=(1, 8, 3)),
    "'data' was not written whole": dict(shape=(2, 8, 3), dtype="f4", chunks=(1, 8, 3)),  # but for its first chunk
    "'data' is not an array of numbers in this": dict(shape=(2, 8, 3), dtype="f4", external=[("x.bin", 0, 192)]),
    "'data' is not an array of numbers": dict(data=np.array([b"text"])),
    "'data' is packed by the filter 6, which is not read": dict(data=np.zeros((2, 8, 3)), scaleoffset=2),
    "'data' is missing, or a link": h5py.ExternalLink("x.h5", "data"),
    "'data' is missing, or a link to somewhere": h5py.SoftLink("/label"),
}


@pytest.mark.parametrize("message", NOT_HELD)
def test_scanobjectnn_is_held_to_its_file(tmp_path, message):
    path = tmp_path / "main_split" / "training_objectdataset_augmentedrot_scale75.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["label"] = np.arange(2)
        if isinstance(NOT_HELD[message], dict):
            file.create_dataset("data", **NOT_HELD[message])
        else:
            file["data"] = NOT_HELD[message]
        if "whole" in message:
            file["data"][0] = 1
    with pytest.raises(
        ValueError, match=rf"{path.name} is not a readable h5 file with 'data' and 'label': .*{message}"
    ):
        D.ScanObjectNN(tmp_path)


# --- folders


@pytest.mark.parametrize("layout", ["{split}/{name}", "{name}/{split}"])
def test_fg3d(tmp_path, layout):
    for category in ("Airplane", "Car"):
        for split, count in (("train", 2), ("test", 1)):
            for name in ("a", "b"):
                for i in range(count):
                    folder = tmp_path / category / layout.format(split=split, name=f"{category}_{name}")
                    folder.mkdir(parents=True, exist_ok=True)
                    CUBE.export(folder / f"{split}{i}.{'obj' if i else 'off'}")
    dataset = D.FG3D(tmp_path, "Car", transforms=[dict(type="PoissonPoints", num=20)])
    assert dataset.classes == ("Car_a", "Car_b")
    assert [data.name for data in dataset] == ["Car_a/train0", "Car_a/train1", "Car_b/train0", "Car_b/train1"]
    assert dataset[3].pos.shape == dataset[3].normal.shape == (20, 3)
    assert len(D.FG3D(tmp_path, "Car", "test")) == 2
    with pytest.raises(ValueError, match=r"category is 'car'.* Did you mean 'Car'"):
        D.FG3D(tmp_path, "car")
    with pytest.raises(FileNotFoundError, match=r"is not a folder\. Expected there: <category>/<train"):
        D.FG3D(tmp_path, "Chair")


def test_shape_folder_reads_meshes_and_clouds(tmp_path):
    table = unit_cloud(30)
    for suffix in ("obj", "off", "stl", "ply", "glb"):
        (tmp_path / "mesh").mkdir(exist_ok=True)
        CUBE.export(tmp_path / "mesh" / f"box.{suffix}")
    clouds = tmp_path / "cloud"
    put(clouds / "commas.txt", table)
    put(clouds / "spaces.xyz", "\n".join(" ".join(map(str, row)) for row in table[:, :3]))
    put(clouds / "counted.pts", "30\n" + "\n".join(" ".join(map(str, row)) for row in table))
    np.save(clouds / "array.npy", table)
    np.savez(clouds / "one.npz", table[:, :3].astype(np.float64))
    np.savez(clouds / "named.npz", pos=table[:, :3], normal=table[:, 3:], y=5)
    rows = "\n".join(" ".join(map(str, row)) for row in table) + "\n"
    fields = ("x", "y", "z", "nx", "ny", "nz")
    properties = "".join(f"property float {f}\n" for f in fields)
    put(clouds / "cloud.ply", f"ply\nformat ascii 1.0\nelement vertex 30\n{properties}end_header\n{rows}")
    fields = "x y z normal_x normal_y normal_z"
    header = f"VERSION .7\nFIELDS {fields}\nSIZE 4 4 4 4 4 4\nTYPE F F F F F F\nCOUNT 1 1 1 1 1 1\nWIDTH 30\nHEIGHT 1\n"
    put(clouds / "cloud.pcd", f"# .PCD v.7\n{header}POINTS 30\nDATA ascii\n{rows}")
    put(clouds / ".hidden.txt", "")
    put(tmp_path / "__MACOSX" / "x.txt", "")

    transforms = [dict(type="RandomPoints", num=64), dict(type="EstimateNormals", k=8, only_missing=True)]
    dataset = D.ShapeFolder(tmp_path, "all", transforms=transforms)
    assert dataset.classes == ("cloud", "mesh")
    assert len(dataset) == 8 + 5
    for data in dataset:
        assert data.pos.shape == data.normal.shape == (64, 3)
        assert torch.allclose(data.normal.norm(dim=1), torch.ones(64), atol=1e-5)
    raw = {data.name: data for data in D.ShapeFolder(tmp_path, "all") if data.face is None}
    for name, data in raw.items():
        np.testing.assert_allclose(data.pos, table[:, :3], atol=1e-4, err_msg=name)
        assert ("normal" in data) == (name not in ("cloud/spaces", "cloud/one"))
        if "normal" in data:
            np.testing.assert_allclose(data.normal, table[:, 3:], atol=1e-3, err_msg=name)
    for suffix in ("obj", "off", "stl", "ply", "glb"):
        shape = read_shape(tmp_path / "mesh" / f"box.{suffix}")
        assert trimesh.Trimesh(shape["pos"], shape["face"]).volume == pytest.approx(6, rel=1e-4)


@pytest.mark.parametrize("cache", [False, True])
def test_a_small_shape_far_from_the_origin_keeps_its_digits(tmp_path, cache):
    """Shared case 03: half a meter in UTM coordinates, where float32 counts in halves of a meter."""
    table = unit_cloud(50).astype(np.float64)
    table[:, :3] *= 0.1
    far = table + np.array([500000, 4649776, 120, 0, 0, 0])
    for name, content in (("near", table), ("far", far)):
        folder = tmp_path / "clouds" / name
        folder.mkdir(parents=True)
        np.savetxt(folder / "a.txt", content, fmt="%.12f")
        np.savez(folder / "b.npz", pos=content[:, :3], normal=content[:, 3:])
        trimesh.Trimesh(content[:, :3], np.arange(48).reshape(-1, 3), process=False).export(folder / "c.obj", digits=12)
    rotation = [dict(type="NormalizeRotation"), dict(type="Center")]  # whose products need one dtype
    centered = dict(type="UnitSphere"), dict(type="Center"), dict(type="NormalizeScale")
    options = dict(cache=tmp_path / "parsed" if cache else None)
    for transform in centered:
        dataset = D.ShapeFolder(tmp_path / "clouds", "all", [transform], **options)
        for epoch in range(1 + cache):  # the second is read from the cache
            far_draws, near_draws = ([dataset[3 * i + j + 6 * epoch] for j in range(3)] for i in range(2))
            for there, here in zip(far_draws, near_draws):
                assert there.pos.dtype == torch.float32
                torch.testing.assert_close(there.pos, here.pos, atol=1e-6, rtol=0)
                assert ("normal" in here) == ("normal" in there)
    dataset = D.ShapeFolder(tmp_path / "clouds", "all", rotation, **options)
    assert {dataset.get(item).pos.dtype for item in (0, 1, 2)} == {torch.float64}
    assert {dataset.get(item).pos.dtype for item in (3, 4, 5)} == {torch.float32}
    assert dataset[0].normal.dtype == torch.float32
    dataset = D.ShapeFolder(tmp_path / "clouds", "all", **options)
    assert dataset[3].pos.dtype == torch.float32
    with pytest.raises(
        ValueError,
        match=r"far/a: its points lie around \(.*, 4649776, 1(19\.9|20).*\), where float32 has too few digits for a",
    ):
        dataset[0]


def test_points_that_float32_holds_are_float32(tmp_path):
    for pos in (
        np.array([[0.1, 0.2, 0.3]]),
        np.full((4, 3), 1e7 + 0.1),  # one place
        np.array([[5e5, 4649776, 120], [5e5 + 0.5, 4649777, 121]]),
        np.array([[500000, 4649776, 16777217], [0, 0, 0]]),
        RNG.normal(size=(9, 3)) + 50,
    ):
        np.save(tmp_path / "a.npy", pos)
        assert read_shape(tmp_path / "a.npy")["pos"].dtype == np.float32


def test_shape_folder_splits(tmp_path):
    for name, count in (("many", 20), ("two", 2), ("one", 1)):
        for i in range(count):
            put(tmp_path / name / f"model{i}" / f"{name}{i}.off", OFF)  # a folder for each model is fine too
    train, test = D.ShapeFolder(tmp_path), D.ShapeFolder(tmp_path, "test")
    assert train.classes == test.classes == ("many", "one", "two")
    assert np.bincount(train.labels).tolist() == [16, 1, 1]
    assert np.bincount(test.labels).tolist() == [4, 0, 1]
    assert not set(train.names) & set(test.names)
    assert set(train.names) | set(test.names) == set(D.ShapeFolder(tmp_path, "all").names)
    assert D.ShapeFolder(tmp_path, "test").names == test.names
    assert len(D.ShapeFolder(tmp_path, "test", test_share=0.5).names) == 11
    for split in ("train", "test"):
        put(tmp_path / "given" / split / "a" / f"{split}.off", OFF)
        put(tmp_path / "turned" / "a" / split / f"{split}.off", OFF)
        for root in ("given", "turned"):
            assert D.ShapeFolder(tmp_path / root, split).names == [f"a/{split}"]


def test_shape_folder_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' is not a folder. Expected there: <class>/<file>"):
        D.ShapeFolder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no file of split 'train' \(1 class folders; read are"):
        D.ShapeFolder(tmp_path)
    with pytest.raises(ValueError, match=r"split is 'tests'.* Did you mean 'test'"):
        D.ShapeFolder(tmp_path, "tests")
    with pytest.raises(ValueError, match="test_share is 20"):
        D.ShapeFolder(tmp_path, test_share=20)
    np.save(tmp_path / "empty" / "code.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"code\.npy is not a readable shape: .* nothing is ever unpickled"):
        D.ShapeFolder(tmp_path)[0]
    (tmp_path / "empty" / "code.npy").unlink()
    for name, content in [("a.pcd", "no"), ("b.ply", "ply"), ("c.obj", "no"), ("d.glb", "no"), ("e.stl", "solid x")]:
        path = put(tmp_path / "empty" / name, content)
        with pytest.raises(ValueError, match=f"{name} is not a readable shape: ."):
            D.ShapeFolder(tmp_path)[0]
        path.unlink()
    path = put(tmp_path / "empty" / "cut.pts", "3\n0 0 0\n0 0 1\n")
    with pytest.raises(ValueError, match=r"cut\.pts .* 3 points are declared, and 2 were found"):
        D.ShapeFolder(tmp_path)[0]
    path.unlink()
    np.savez(tmp_path / "empty" / "two.npz", np.zeros((4, 3)), np.zeros(4))
    with pytest.raises(ValueError, match=r"two\.npz .* not an array of shape \(4, 3\), an array of shape \(4,\)"):
        D.ShapeFolder(tmp_path)[0]
    (tmp_path / "empty" / "two.npz").unlink()
    put(tmp_path / "empty" / "tiny.xyz", "0 0 0\n0 0 1\n")
    with pytest.raises(ValueError, match="seed is -1"):
        D.ShapeFolder(tmp_path, seed=-1)
    with pytest.raises(TypeError, match="transforms holds 'UnitSphere'; its entries may be"):
        D.ShapeFolder(tmp_path, transforms=["UnitSphere"])
    with pytest.raises(ValueError, match="shape empty/tiny: FarthestPoints"):
        D.ShapeFolder(tmp_path, transforms=[dict(type="FarthestPoints", num=8)])[0]
    with pytest.raises(IndexError, match="index -2 of a data set of 1 items"):
        D.ShapeFolder(tmp_path)[-2]


# --- ShapeNetPart ----------------------------------------------------------------------------------------------------


def test_shapenet_part_as_published(tmp_path):
    root = write_parts(tmp_path / D.ShapeNetPart.FOLDER)
    assert (len(D.ShapeNetPart.CLASSES), len(D.ShapeNetPart.CATEGORIES)) == (50, 16)
    assert D.category_parts(D.ShapeNetPart.CLASSES)["Motorbike"] == [30, 31, 32, 33, 34, 35]
    for split, count in dict(train=6, val=3, test=3, trainval=9, all=12).items():
        assert len(D.ShapeNetPart(tmp_path, split)) == count
    clouds = D.ShapeNetPart(root, "train", cache=tmp_path / "cache")
    listed = json.loads((root / "train_test_split/shuffled_train_file_list.json").read_text())
    for _ in ("parsed", "from the cache"):
        for cloud, name in zip(clouds, listed):
            table = np.loadtxt(root / f"{name.removeprefix('shape_data/')}.txt")
            np.testing.assert_allclose(cloud.pos, table[:, :3], atol=1e-6)
            np.testing.assert_allclose(cloud.normal, table[:, 3:6], atol=1e-5)
            assert cloud.point_label.tolist() == table[:, 6].tolist()
            category = {"03636649": "Lamp", "03797390": "Mug", "04379243": "Table"}[name.split("/")[1]]
            assert D.ShapeNetPart.CATEGORIES[cloud.y] == category
            assert clouds.name(int(cloud.cloud)) == f"shape {category}/{name.split('/')[2]}"
    assert len(list((tmp_path / "cache").iterdir())) == 6


def test_transforms_keep_labels_with_their_points(tmp_path):
    clouds = D.ShapeNetPart(write_parts(tmp_path / "data"), transforms=[])
    of_point = {tuple(point): int(label) for point, label in zip(clouds[0].pos.tolist(), clouds[0].point_label)}
    for transform in (RandomPoints(200), RandomPoints(700), FarthestPoints(50, "random"), Shuffle(), RandomDropout()):
        cloud = transform(clouds[0])
        assert len(cloud.pos) == len(cloud.point_label)
        assert [of_point[tuple(point)] for point in cloud.pos.tolist()] == cloud.point_label.tolist()
    (turned,) = D.RotatedViews(clouds[[0]], views=dict(SO3=1))
    assert torch.equal(turned.point_label, clouds[0].point_label)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:1], "it has one point alone"),
        (lambda rows: rows[:0], "nothing|there are no|columns x y z nx ny nz label"),
        (lambda rows: [[*row[:6], 12.0] for row in rows], "300 of 300 points have labels 12 .* of Lamp are 24 to 27"),
        (lambda rows: [*rows[:9], [*rows[9][:6], 50], *rows[10:]], r"1 of 300 .* labels 50 \(the first in row 10\)"),
        (lambda rows: [*rows[:9], [*rows[9][:6], 24.5], *rows[10:]], r"labels 24\.5"),
        (lambda rows: [*rows[:9], [*rows[9][:6], np.nan], *rows[10:]], "labels nan"),
        (lambda rows: [[np.nan, *row[1:]] for row in rows], "300 of 300 points are NaN or infinite"),
        (lambda rows: [row[:6] for row in rows], r"nz label were expected, not an array of shape \(300, 6\)"),
        (lambda rows: [*rows[:9], rows[9][:5], *rows[10:]], "lines"),
        (lambda rows: [[*row[:3], 0, 0, 0, row[6]] for row in rows], "must have length 1"),
    ],
)
def test_shapenet_part_names_the_file_that_is_wrong(tmp_path, change, message):
    root = write_parts(tmp_path / "data", train=1)
    path = root / "03636649/train0.txt"
    rows = [list(map(float, line.split())) for line in path.read_text().splitlines()]
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in change(rows)))
    clouds = D.ShapeNetPart(root, "train")
    item = clouds.names.index("Lamp/train0")
    with pytest.raises(ValueError, match=rf"train0\.txt: .*({message})"):
        clouds[item]


def test_shapenet_part_with_files_missing(tmp_path):
    root = write_parts(tmp_path / "data")
    (root / "03636649/train1.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"train1.txt is missing; train_test_split lists it"):
        list(D.ShapeNetPart(root, "train"))
    listing = root / "train_test_split/shuffled_val_file_list.json"
    for text, message in (
        ('["shape_data/00000000/a"]', "'00000000', which synsetoffset2category.txt does not name"),
        ('["a"]', "a list of names such as"),
        ('["shape_data/03636649/.."]', "a list of names such as"),
        ("{", "shuffled_val_file_list.json is no JSON"),
        ("7", "a list of names such as"),
    ):
        listing.write_text(text)
        with pytest.raises(ValueError, match=message):
            D.ShapeNetPart(root, "val")
    listing.unlink()
    with pytest.raises(FileNotFoundError, match=r"shuffled_val_file_list\.json is missing"):
        D.ShapeNetPart(root, "trainval")
    (root / "synsetoffset2category.txt").write_text("Boat\t03636649\n")
    with pytest.raises(ValueError, match=r"synsetoffset2category\.txt: 'Boat.*t03636649' is no category"):
        D.ShapeNetPart(root, "train")
    (root / "synsetoffset2category.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"synsetoffset2category\.txt is missing. Expected there: .*_v0_normal"):
        D.ShapeNetPart(root, "train")
    with pytest.raises(ValueError, match=r"'trian'; it may be .* Did you mean 'train'"):
        D.ShapeNetPart(root, "trian")


# --- FurnitureParts --------------------------------------------------------------------------------------------------


def test_parts_of_the_built_in_furniture():
    train, test = (D.FurnitureParts(split, points=512) for split in ("train", "test"))
    assert (len(train), len(test), train.num_classes, len(train.CATEGORIES)) == (128, 60, 17, 8)
    assert len(D.FurnitureParts("all")) == 188
    owned = list(D.category_parts(train.classes).values())
    for split, clouds in (("train", train), ("test", test)):
        whole = {(mesh.name, D.furniture.CLASSES[mesh.label]) for mesh in D.furniture.load(split)}
        counts = np.zeros(17, int)
        for cloud in clouds:
            assert cloud.pos.shape == cloud.normal.shape == (512, 3)
            assert cloud.pos.dtype == cloud.normal.dtype == torch.float32
            assert cloud.point_label.dtype == torch.int64
            torch.testing.assert_close(cloud.normal.norm(dim=1), torch.ones(512))
            assert set(cloud.point_label.tolist()) <= set(owned[int(cloud.y)])
            assert (cloud.name, clouds.CATEGORIES[int(cloud.y)]) in whole  # the splits of the 14 classes
            counts += np.bincount(cloud.point_label, minlength=17)
        assert counts.min() > 100, split


def distances(vertices: np.ndarray, faces: np.ndarray, points: np.ndarray) -> np.ndarray:
    """From points to a mesh."""
    o3d = pytest.importorskip("open3d")
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3d.core.Tensor(vertices.copy()), o3d.core.Tensor(faces.astype(np.uint32)))
    return scene.compute_distance(o3d.core.Tensor(points)).numpy()


def test_points_of_parts_lie_on_their_triangles():
    clouds = D.FurnitureParts("test", points=400)
    for item in (0, 20, 40):
        cloud, mesh = clouds[item], clouds.meshes[item]
        for part in np.unique(mesh.parts):
            own, mine = mesh.faces[mesh.parts == part], (cloud.point_label == int(part)).numpy()
            assert distances(mesh.vertices, own, cloud.pos.numpy()[mine]).max() < 1e-3  # of Embree, in float32
            area = trimesh.Trimesh(mesh.vertices, own, process=False).area
            whole = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).area
            assert mine.mean() == pytest.approx(area / whole, abs=0.1)
    assert torch.equal(clouds[3].pos, D.FurnitureParts("test", points=400)[3].pos)


def test_bad_arguments_of_parts():
    with pytest.raises(ValueError, match=r"FurnitureParts\.split is 'trian'; it may be .* Did you mean 'train'"):
        D.FurnitureParts("trian")
    with pytest.raises(ValueError, match=r"FurnitureParts\.points"):
        D.FurnitureParts(points=0)


def test_labels_and_colors_of_points_in_an_npz(tmp_path):
    color = np.full((3, 3), 7, np.uint8)
    np.savez(tmp_path / "a.npz", pos=np.eye(3), point_label=np.array([2, 0, 1], np.int16), color=color)
    assert read_shape(tmp_path / "a.npz")["point_label"].tolist() == [2, 0, 1]
    assert "color" not in read_shape(tmp_path / "a.npz")
    for same in (color, color.astype(np.int64)):
        np.savez(tmp_path / "a.npz", pos=np.eye(3), color=same)
        found = read_shape(tmp_path / "a.npz", colors=True)["color"]
        assert found.dtype == np.uint8
        assert np.array_equal(found, color)
    for other, message in (
        (color / 255, r"color must be integers \(3, 3\) of 0 to 255, not float64 \(3, 3\)"),
        (np.zeros((3, 4), np.uint8), r"color must be integers \(3, 3\) of 0 to 255, not uint8 \(3, 4\)"),
        (color[:2], r"color must be integers \(3, 3\) of 0 to 255, not uint8 \(2, 3\)"),
        (color.astype(int) * 40, "color must be integers of 0 to 255, not 280 to 280"),
        (color.astype(str), "an array of numbers was expected"),
    ):
        np.savez(tmp_path / "a.npz", pos=np.eye(3), color=other)
        assert "color" not in read_shape(tmp_path / "a.npz")  # nobody needs it
        with pytest.raises(ValueError, match=rf"a\.npz is not a readable shape: .*{message}"):
            read_shape(tmp_path / "a.npz", colors=True)
    for arrays, message in (
        (dict(point_label=np.zeros(2, int)), r"labels of 3 points were expected, not \(2,\)"),
        (dict(point_label=np.ones(3)), "not cast"),
    ):
        np.savez(tmp_path / "a.npz", pos=np.eye(3), **arrays)
        with pytest.raises(ValueError, match=rf"a\.npz is not a readable shape: .*{message}"):
            read_shape(tmp_path / "a.npz")
