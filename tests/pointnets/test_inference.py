"""Labels of the points of arrays and files; of classes of shapes see tests/attlas/test_inference.py."""

import json
from types import SimpleNamespace

import numpy as np
import open3d as o3d
import pytest
import torch
import trimesh
from mmengine.config import Config
from part_files import SEGMENTER, solid, write_segmenter
from torch_geometric.data import Data

from attlas import rendering
from attlas.inference import Inferencer
from attlas.pointnets.datasets import ShapeNetPart
from attlas.pointnets.formats import labelled_ply
from attlas.pointnets.inference import PointClassification, PointSegmentation, class_colors
from attlas.pointnets.shapes import read_shape

MUG = ShapeNetPart.CATEGORIES.index("Mug")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return write_segmenter(tmp_path_factory.mktemp("parts") / "parts.pth")


@pytest.fixture(scope="module")
def mug():
    rows = solid("Mug", np.random.default_rng(0), 300)
    return dict(pos=rows[:, :3], normal=rows[:, 3:6])


def test_labels_in_the_order_of_the_points(segmenter, mug):
    ask = Inferencer(segmenter)
    found, bare, few = ask([mug | dict(category=MUG), dict(pos=mug["pos"], category=MUG), mug["pos"][:70]])[:3]
    assert (found["points"], found["category"], len(found["labels"])) == (300, "Mug", 300)
    assert set(found["labels"]) <= {36, 37}  # no part of another category, whatever the network prefers
    counts = np.bincount(found["labels"], minlength=50)
    for entry in found["classes"]:
        assert entry == dict(
            label=entry["label"],
            name=ShapeNetPart.CLASSES[entry["label"]],
            points=counts[entry["label"]],
            share=counts[entry["label"]] / 300,
        )
    assert sum(entry["points"] for entry in found["classes"]) == 300
    json.dumps(found)
    assert len(bare["labels"]) == 300  # normals are computed
    assert "must know the category of the cloud, 0 to 15 (0 Airplane, 1 Bag" in few["error"]
    prediction = ask.model.test_step([ask.model.transforms(ask.task.take(mug | dict(category=MUG)))])[0]
    assert (36 + prediction["log_probs"][:, 36:38].argmax(1)).tolist() == found["labels"]
    errors = ask([dict(mug, category="Mug"), dict(mug, category=99), dict(mug, face=np.array([[0, 1, 2]]), category=0)])
    assert "category must be the number of one, from 0, not 'Mug'" in errors[0]["error"]
    assert "got 99" in errors[1]["error"]
    assert "it is a mesh" in errors[2]["error"]
    assert "category must be the number of one, from 0, not -7" in ask([mug | dict(category=-7)])[0]["error"]


@pytest.mark.parametrize("classes", [("floor", "wall", "lamp"), ("lamp/pole", "lamp/foot", "floor")])
def test_a_category_for_a_network_that_takes_none(tmp_path, mug, classes):
    ask = Inferencer(write_segmenter(tmp_path / "scene.pth", classes, num_categories=0))
    bare, *told = ask([mug, *(mug | dict(category=number) for number in (0, 99))])
    assert len(bare["labels"]) == 300
    assert "category" not in bare
    for number, found in zip((0, 99), told):
        assert found["error"] == f"category is {number}, and the network takes none: leave it out"


def test_transforms_that_choose_points_are_refused(segmenter):
    config = Config(SEGMENTER)
    config.test_dataloader.dataset.dataset.transforms = [dict(type="RandomPoints", num=64)]
    with pytest.raises(ValueError, match=r"choose points \(RandomPoints\).*num_points"):
        Inferencer(segmenter, config)


@pytest.mark.parametrize(("up", "axis"), [("x", 0), ("y", 1), ("z", 2)])
def test_pictures_of_scenes_stand(up, axis, monkeypatch):
    seen = {}

    def snapshots(scenes, direction, up, size):
        seen.update(points=np.asarray(scenes[0].vertices), direction=direction, up=up)
        return [np.zeros((4, 4, 3))]

    monkeypatch.setattr(rendering, "snapshots", snapshots)
    points = np.zeros((20, 3))
    points[:, axis] = np.linspace(0, 9, 20)  # a pole
    found = dict(input="pole", up=up, labels=[0] * 20, classes=[dict(label=0, name="pole", share=1.0)])
    PointSegmentation().draw(Data(pos=torch.from_numpy(points)), found)
    shown = "xyz".index(seen["up"])
    assert np.ptp(seen["points"], 0).argmax() == shown
    assert seen["direction"][shown] == pytest.approx(np.sin(np.radians(20)))  # from above


@pytest.mark.parametrize("kind", ["SamplePoints", "attlas.PoissonPoints", "RandomPoints", "FarthestPoints"])
def test_an_export_has_as_many_points_as_the_test(kind):
    model = SimpleNamespace(network=torch.nn.Identity(), classes=())
    steps = [dict(type=kind, num=77), dict(type="UnitSphere")]
    points, normals = PointClassification().exportable(model, steps).inputs(2, None)
    assert points.shape == normals.shape == (2, 77, 3)
    with pytest.raises(ValueError, match=r"choose no number of points .*: give --size"):
        PointClassification().exportable(model, steps[1:]).inputs(2, None)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("normals", [True, False])
def test_other_viewers_read_a_labelled_ply(tmp_path, kind, normals):
    random = np.random.default_rng(0)
    pos, labels = random.normal(size=(60, 3)).astype(kind), random.integers(0, 20, 60)
    normal = pos / np.linalg.norm(pos, axis=1, keepdims=True) if normals else None
    colors, path = class_colors(labels), tmp_path / "cloud.ply"
    path.write_bytes(labelled_ply(pos, labels, colors, normal, {3: "chair", 19: "Stühle\nend_header"}))
    cloud = o3d.t.io.read_point_cloud(str(path)).point
    np.testing.assert_array_equal(cloud["positions"].numpy(), pos)
    np.testing.assert_array_equal(cloud["colors"].numpy(), colors)
    np.testing.assert_array_equal(cloud["label"].numpy().ravel(), labels)
    legacy = o3d.io.read_point_cloud(str(path))
    assert (len(legacy.points), legacy.has_colors(), legacy.has_normals()) == (60, True, normals)
    other = trimesh.load(path, process=False)
    np.testing.assert_array_equal(other.vertices, pos)
    np.testing.assert_array_equal(other.colors[:, :3], colors)
    np.testing.assert_array_equal(other.metadata["_ply_raw"]["vertex"]["data"]["label"], labels)
    ours = read_shape(path)
    np.testing.assert_allclose(ours["pos"], pos, atol=1e-6)
    if normals:
        np.testing.assert_array_equal(cloud["normals"].numpy(), normal)
        np.testing.assert_allclose(ours["normal"], normal, atol=1e-6)
    head = path.read_bytes().split(b"element")[0].decode("ascii").splitlines()
    assert head[2:] == ["comment label 3 chair", r"comment label 19 St\xfchle\nend_header"]


def test_labelled_ply_without_normals_and_in_float64():
    pos = np.array([[500_000.1, 0, 0], [500_000.2, 1, 0]])
    content = labelled_ply(pos, np.array([3, 0]), np.zeros((2, 3), np.uint8))
    assert b"property double x" in content
    assert b"nx" not in content
    assert b"property int label" in content
