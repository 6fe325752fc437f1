"""The viewer draws what it is told to, and says what it cannot draw."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from attlas import files, rendering
from attlas.pointnets import viewer
from attlas.pointnets.datasets import Furniture14, RotatedViews
from attlas.pointnets.risurconv import RISurConvClassifier

FRONT = np.array([0.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def chair():
    torch.manual_seed(0)
    dataset = Furniture14("test", transforms=[dict(type="RandomPoints", num=128), dict(type="UnitSphere")])
    return viewer.subject(RotatedViews(dataset, dict(z=1)), int(np.flatnonzero(dataset.labels == 3)[0]))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return RISurConvClassifier(14, 64, (8, 8, 8), (8, 8), encoder_layers=0).eval()


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "ours.npz"
    confusion = np.array([[3, 1], [0, 4]])
    np.savez(path, classes=np.array(["bed", "car"]), confusion_z=confusion, confusion_SO3=4 * confusion)
    return path


def content(path: Path) -> np.ndarray:
    """The picture (H, W, 3), which must not be blank."""
    picture = matplotlib.image.imread(path)[..., :3]
    assert picture.std() > 0.01
    return picture


def test_subject_is_the_item_unrotated(chair):
    assert (chair.label, chair.classes[chair.label]) == (3, "chair")
    assert chair.cloud.pos.shape == chair.cloud.normal.shape == (128, 3)
    assert chair.surface.face.shape[0] == 3
    dataset = Furniture14("test", transforms=[dict(type="RandomPoints", num=8)])
    with pytest.raises(
        ValueError, match=rf"item is {len(dataset)}; the data set \(test\) has item 0 to {len(dataset) - 1}"
    ):
        viewer.subject(dataset, len(dataset))
    with pytest.raises(ValueError, match="still a mesh after the transforms"):
        viewer.subject(Furniture14("test"), 0)


@pytest.mark.parametrize("normals", [False, True])
def test_file_subject(tmp_path, normals):
    points = np.random.default_rng(0).normal(size=(50, 6 if normals else 3))
    points[:, 3:] /= np.linalg.norm(points[:, 3:], axis=1, keepdims=True) if normals else 1
    np.save(tmp_path / "blob.npy", points)
    item = viewer.file_subject(tmp_path / "blob.npy")
    assert (item.name, item.label, item.surface) == ("blob.npy", None, None)
    assert item.cloud.pos.norm(dim=1).max() == pytest.approx(1)
    if normals:
        np.testing.assert_allclose(item.cloud.normal, points[:, 3:], atol=1e-6)
    with pytest.raises(FileNotFoundError, match=r"blub\.npy does not exist\. Near it: .*blob\.npy"):
        viewer.file_subject(tmp_path / "blub.npy")


def test_samples_are_the_layers(chair, network):
    meshes, titles = viewer.samples_scenes(chair, network)
    assert titles == ["input: 128 points", "layer 1: 64 points, K = 8", "layer 2: 32 points, K = 8"]
    a_ball = len(rendering.spheres(np.zeros((1, 3)), rendering.CLAY).vertices)
    assert [len(mesh.vertices) // a_ball for mesh in meshes] == [128, 128 + 64, 64 + 32]
    with pytest.raises(ValueError, match="the network is a Linear; its layers can be shown of a RISurConv only"):
        viewer.samples_scenes(chair, torch.nn.Linear(1, 1))


@pytest.mark.parametrize("normalize", ["points", "queries"])
def test_weights_are_those_of_the_layer(chair, normalize):
    layer = RISurConvClassifier(14, 64, (8, 8), (8,), encoder_layers=0, normalize=normalize).eval().layers[0]
    points, normals = chair.cloud.pos[None], chair.cloud.normal[None]
    properties, _ = layer.neighbors(points, normals, points[:, :64], normals[:, :64])
    weights = viewer.neighbor_weights(layer, properties)
    attention, x = layer.neighbor_attention, layer.embedding(properties)
    expected = x + torch.relu(attention.norm(attention.trans(x - weights @ attention.v(x))))
    torch.testing.assert_close(attention(x), expected)


def test_neighborhood(chair, network, tmp_path):
    seen = viewer.neighborhood(chair, network, layer=2, query=5)
    assert seen.source.shape == (64, 3)
    assert seen.weights.shape == (8, 8)
    nearest = np.sort(np.linalg.norm(seen.source - seen.query, axis=1))[:8]
    np.testing.assert_allclose(np.sort(np.linalg.norm(seen.neighbors - seen.query, axis=1)), nearest, atol=1e-6)
    files.save_figure(
        viewer.draw_panels([viewer.normals_scene(chair)], ["chair"], FRONT, "y"), tmp_path / "normals.png"
    )
    content(tmp_path / "normals.png")
    files.save_figure(viewer.draw_neighborhood(seen, "layer 2", FRONT, "y", size=64), tmp_path / "x.png")
    content(tmp_path / "x.png")
    for arguments, message in {
        (0, 0): "layer is 0; the network has layer 1 to 2",
        (3, 0): "layer is 3; the network has layer 1 to 2",
        (2, 32): "query is 32; layer 2 has query 0 to 31",
        (1, -1): "query is -1; layer 1 has query 0 to 63",
    }.items():
        with pytest.raises(ValueError, match=message):
            viewer.neighborhood(chair, network, *arguments)


def test_turning_turns_picture_and_cloud_alike(chair, network):
    clouds = []

    def spy(points, normals):
        clouds.append((points[0], normals[0]))
        return torch.eye(14)[[3]] * 50

    seen = viewer.turning(chair, {"spy": spy, "ours": network}, views=3, size=24)
    assert [picture.shape for picture in seen.pictures] == [(24, 24, 4)] * 3
    torch.testing.assert_close(clouds[0][0], chair.cloud.pos)
    for points, normals in clouds:
        rotation = torch.linalg.lstsq(chair.cloud.pos, points).solution
        torch.testing.assert_close(rotation.T @ rotation, torch.eye(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(chair.cloud.normal @ rotation, normals, atol=1e-5, rtol=0)
    assert not torch.allclose(clouds[1][0], clouds[2][0], atol=0.1)
    assert seen.answers["spy"] == [(3, pytest.approx(1))] * 3
    assert np.ptp([probability for _, probability in seen.answers["ours"]]) < 1e-5
    texts = [text.get_text() for text in viewer.draw_turning(seen).texts]
    assert texts.count("✓ chair  100 %") == 3


def test_figure(chair, network, results, tmp_path):
    out = tmp_path / "figure.png"
    viewer.figure(chair, {"ours": network}, {"ours": results}, out, views=2, size=48)
    height, width, _ = content(out).shape
    assert 1600 <= width <= 1800  # what is left of 12 inches without the margin
    assert height > 900
    with pytest.raises(FileExistsError, match=r"figure\.png exists\. To replace it: --overwrite"):
        viewer.figure(chair, {"ours": network}, {"ours": results}, out)
    with pytest.raises(ValueError, match="results must hold protocols 'z' and 'SO3' of 'other'"):
        viewer.figure(chair, {"other": network}, {"ours": results}, tmp_path / "other.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "ours.npz"]
