"""Scores of clouds, the points that a map is of, and its picture."""

import numpy as np
import pytest
import torch
from geometry import random_cloud
from networks import fill
from torch_geometric.data import Data

from attlas.backbones.inspection.capture import look
from attlas.backbones.inspection.explaining import default_layer, explain
from attlas.backbones.inspection.normgrad import normgrad
from attlas.backbones.inspection.relevance import propagate
from attlas.backbones.inspection.targets import log_probability
from attlas.kernels import farthest_point_sample, gather_neighbors
from attlas.pointnets import explanation
from attlas.pointnets.classifier import PointClassifier
from attlas.pointnets.datasets import as_data
from attlas.pointnets.dgcnn import DGCNNClassifier
from attlas.pointnets.explanation import Cloud, points_of, question, rows
from attlas.pointnets.inference import PointClassification
from attlas.pointnets.pointnet2 import PointNet2Classifier
from attlas.pointnets.risurconv import RISurConvClassifier
from attlas.rendering import view_direction

NETWORKS = dict(
    dgcnn=lambda: DGCNNClassifier(num_classes=4, k=6, channels=(6, 8), embedding=16),
    pointnet2=lambda: PointNet2Classifier(num_classes=4, use_normals=True),
    risurconv=lambda: RISurConvClassifier(
        4, num_points=64, channels=(8, 12, 16), neighbors=(8, 8), encoder_layers=0, width=8
    ),
)
LAST = dict(dgcnn=("network.layers.1", 512), pointnet2=("network.layers.1[1]", 128), risurconv=("network.layers.1", 32))


@pytest.fixture(scope="module", params=NETWORKS)
def asked(request):
    """A network by name, two clouds with normals, and a question about the first."""
    torch.manual_seed(0)
    network = fill(NETWORKS[request.param]())
    points, normals = (x.float() for x in random_cloud(2, 512))
    points = points / points.norm(dim=-1).amax()
    return request.param, points, normals, question(network, points[:1], normals[:1], 2, "a class")


def test_the_points_of_a_map(asked):
    """As farthest point sampling chooses them; and the values are those of the layer."""
    name, points, _, about = asked
    layer, count = LAST[name]
    assert default_layer(about, "normgrad") == layer
    assert default_layer(about, "lrp") == "input"
    sampled = gather_neighbors(points[:1], farthest_point_sample(points[:1], count))[0]
    expected = points[0] if count == 512 else sampled
    np.testing.assert_array_equal(points_of(about, layer), expected.numpy())
    found = explain(about, "normgrad")
    (seen,) = look(about.network, about.inputs, about.score, layer, rows)
    torch.testing.assert_close(found, (seen.activation.norm(dim=1) * seen.gradient.norm(dim=1))[0])
    assert found.shape == (count,)
    assert found.max() > 0
    assert not torch.allclose(explain(about, "normgrad", meta=0.1), found, rtol=1e-3)


def test_a_batch_of_two_clouds_equals_two_singles(asked):
    name, points, normals, about = asked
    score, (layer, _) = log_probability([2, 0]), LAST[name]
    for where, grid in ((layer, rows), *([("input", None)] if name != "risurconv" else [])):
        (together,) = normgrad(about.network, (points.mT.unsqueeze(2), normals), score, where, grid=grid)
        for i in range(2):
            one = points[i : i + 1].mT.unsqueeze(2), normals[i : i + 1]
            (alone,) = normgrad(about.network, one, score.of_sample(i), where, grid=grid)
            assert (alone[0] - together[i]).abs().max() <= 1e-3 * alone.abs().max()


def test_gradients_of_points(asked):
    """Those of the network alone; the surface properties of a RISurConv have none."""
    name, points, normals, about = asked
    if name == "risurconv":
        with pytest.raises(ValueError, match="the score does not depend on input: nothing leads from its output"):
            explain(about, "gradient", ["input"])
        return
    given = points[:1].clone().requires_grad_()
    (expected,) = torch.autograd.grad(about.network.network(given, normals[:1]).log_softmax(1)[0, 2], given)
    found = explain(about, "gradient", ["input"])
    torch.testing.assert_close(found, expected.abs().amax(2), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(points_of(about, "input"), points[0].numpy())


def test_relevance_of_points():
    """Its sum, and what constants kept, is the score."""
    about = question(fill(NETWORKS["dgcnn"]()), random_cloud(1, 64)[0].float(), None, 1, "")
    found = explain(about, "lrp")
    whole = propagate(about.network, about.inputs, about.score)
    assert found.shape == (1, 64)
    torch.testing.assert_close(found.sum(), whole.sums[0])
    torch.testing.assert_close(whole.scores, about.score(about.network(*about.inputs)).detach())
    assert found.abs().max() > 0


def test_what_is_refused(asked):
    name, _, _, about = asked
    layer, _ = LAST[name]
    for layers, said in (
        ([layer, "input"], "have no places in common"),
        (["network.head"], r"gives features \(B, points, C\), and this one gives shape \(1, 4\)"),
        (["network.layer.1"], "the network has no such module; near are"),
    ):
        with pytest.raises(ValueError, match=said):
            explain(about, "normgrad", layers)
    with pytest.raises(ValueError, match=rf"network.head \(Head\) does not say which points .*{layer[:16]}"):
        points_of(about, "network.head")
    with pytest.raises(ValueError, match="which the points of a cloud have not: take lrp"):
        explain(about, "salient")
    with pytest.raises(ValueError, match="lrp takes no grid"):
        explain(about, "lrp", [layer])


def test_targets_by_name():
    torch.manual_seed(0)
    model = PointClassifier(dict(type="DGCNNClassifier", num_classes=3, k=6, channels=(6, 8), embedding=16)).eval()
    fill(model.network)
    model.classes, model.transforms = ("mug", "lamp", "bed"), lambda data: data
    task, points = PointClassification(), random_cloud(1, 50)[0][0].float()
    source = as_data(dict(pos=points.numpy()), "cloud")
    given = source.pos.clone()
    best, lamp, third = (task.question(model, source, target) for target in (None, "lamp", "2"))
    assert torch.equal(source.pos, given)
    with torch.no_grad():
        log_probs = model.network(points[None]).log_softmax(1)[0]
        assert [float(q.score(q.network(*q.inputs))) for q in (lamp, third)] == pytest.approx(log_probs[1:].tolist())
        assert best.score(best.network(*best.inputs)) == pytest.approx(float(log_probs.max()))
    assert lamp.said == f"lamp ({100 * float(log_probs[1].exp()):.0f} %)"
    for wrong in ("lmap", "3", "-1"):
        with pytest.raises(ValueError, match=rf"target '{wrong}' is no class: there are 0 to 2, such as .*lamp"):
            task.question(model, source, wrong)
    mesh = Data(pos=points, face=torch.tensor([[0], [1], [2]]))
    with pytest.raises(ValueError, match="still a mesh"):
        task.question(model, mesh, None)


@pytest.mark.parametrize("asked", ["pointnet2"], indirect=True)
def test_picture(asked):
    """Of a layer with fewer points than the cloud, and of the input."""
    about, methods, layers = asked[-1], ["normgrad", "linear"], [LAST["pointnet2"][0], "input"]
    maps = [explain(about, method, [where]) for method, where in zip(methods, layers)]
    rest = methods, layers, "title", view_direction(), "y", 90
    figure = explanation.draw_saliency([about], [maps], *rest)
    panels = figure.axes[:3]
    assert [axes.get_title() for axes in panels] == ["cloud", *methods]
    assert [axes.get_xlabel() for axes in panels] == [
        "512 points",
        "network.layers.1[1]: 128 points",
        "input: 512 points",
    ]
    assert len(figure.axes) == 3 + 2  # a scale for signed maps, too
    grey, hot, signed = (np.ptp(axes.images[0].get_array()[..., :3], axis=2).max() for axes in panels)
    assert grey < 0.1 < min(hot, signed)
    with pytest.raises(ValueError, match="NaN"):
        explanation.draw_saliency([about], [[maps[0], maps[1] * float("nan")]], *rest)


def test_the_network_is_that_of_the_classifier(asked):
    _, points, normals, about = asked
    torch.testing.assert_close(
        Cloud(about.network.network)(points.mT.unsqueeze(2), normals), about.network.network(points, normals)
    )
