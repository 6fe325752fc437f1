"""Questions by name, and their picture."""

import numpy as np
import pytest
import torch
from networks import build, image

from attlas.backbones.inspection.explaining import explain
from attlas.backbones.inspection.pictures import draw_saliency, overlay
from attlas.backbones.inspection.relevance import propagate
from attlas.backbones.inspection.targets import Question, cross_entropy, logit


@pytest.fixture(scope="module")
def question():
    network = build("ResNet", num_classes=5)
    picture = np.full((64, 96, 3), 90, np.uint8)
    return Question(network, (image(64, 96, batch=1),), logit(3), "class 3", picture, (8, 4, 40, 30), cross_entropy(3))


def test_maps_by_name(question):
    assert explain(question, "normgrad").shape == (2, 3)
    assert explain(question, "proper").ndim == 2
    several = explain(question, "gradcam", ["stages.1", "stages.2"])
    assert several.shape == (64, 96)
    assert 0 <= several.min() <= several.max() <= 1
    assert not torch.allclose(explain(question, "normgrad", meta=1e-2), explain(question, "normgrad"), rtol=1e-4)
    with pytest.raises(ValueError, match="method 'lime' is none of"):
        explain(question, "lime")


def test_relevance_by_name(question):
    whole = explain(question, "lrp")
    assert whole.shape == (64, 96)
    assert whole.min() < 0 < whole.max()
    at_level = explain(question, "lrp", ["stages.1"])
    found = propagate(question.network, question.inputs, question.score, layers=["stages.1"])
    assert torch.equal(whole, found.inputs[0][0].sum(0))
    assert torch.equal(at_level, found.layers["stages.1"][0][0].sum(0))
    assert explain(question, "salient").shape == (64, 96)
    with pytest.raises(ValueError, match="salient takes layers='input' alone"):
        explain(question, "salient", ["stages.1"])
    with pytest.raises(ValueError, match=r"head.* gives no maps"):
        explain(
            question, "lrp", [next(name for name, _ in question.network.named_modules() if name.startswith("head"))]
        )


def test_picture(question):
    maps = [explain(question, method, ["input"]) for method in ("linear", "gradient")]
    figure = draw_saliency([question], [maps], ["linear", "gradient"], "network")
    assert [axes.get_title() for axes in figure.axes[:3]] == ["class 3", "linear", "gradient"]
    assert len(figure.axes) == 3 + 2  # a scale for signed maps, too
    gray = np.full((4, 6, 3), 100, np.uint8)
    signed = overlay(gray, np.array([[-1.0, 1.0]], np.float32))
    assert signed[0, 0, 2] > signed[0, 0, 0]  # blue lowers
    assert signed[0, -1, 0] > signed[0, -1, 2]  # red raises
    assert overlay(gray, np.zeros((2, 3), np.float32)).shape == (4, 6, 3)
    with pytest.raises(ValueError, match="NaN"):
        overlay(gray, np.full((1, 2), np.nan, np.float32))
