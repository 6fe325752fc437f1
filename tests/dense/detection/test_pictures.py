"""What is drawn, and where."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from attlas.dense.detection import pictures
from attlas.dense.detection.inspection import Attended, Bridging, KeyPoints, Relation, Subject

IMAGE = np.full((60, 80, 3), 128, np.uint8)
TRUTH = [dict(label=0, name="box", box=[5, 5, 30, 30], mask=None)]
FOUND = [dict(label=1, name="ball", box=[10, 10, 40, 40], score=score) for score in (0.9, 0.5, 0.2)]


@pytest.fixture
def found(monkeypatch):
    """Detectors stand as the lists of what they find."""
    monkeypatch.setattr(pictures, "detections", lambda asked, subject: asked)


def names(axes):
    return [text.get_text() for text in axes.texts]


def test_detections(found):
    subjects = [Subject(IMAGE, "0: a.png", TRUTH), Subject(IMAGE, "1: b.png", [])]
    figure = pictures.draw_detections(FOUND, subjects, 0.4)
    assert [names(axes) for axes in figure.axes] == [["box"], [], *[["ball 0.50", "ball 0.90"]] * 2]
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        "0: a.png: 1 annotated", "1: b.png: 0 annotated", "2 found, score from 0.4",
    ]  # fmt: skip
    assert pictures.draw_detections(FOUND, subjects, 0.95).axes[2].get_title().endswith("(the best has 0.90)")
    for score in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"score is {score}; it must be in"):
            pictures.draw_detections(FOUND, subjects, score)


def test_a_strip_has_a_panel_for_each_and_the_truth_last(found):
    asked = [("epoch 1", []), ("epoch 4", FOUND[:1]), *[("more", FOUND)] * 4]
    figure = pictures.draw_strip(iter(asked), 6, Subject(IMAGE, "0: a.png", TRUTH))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["epoch 1: 0 found, score from 0.3", "epoch 4: 1 found, score from 0.3"]
    assert titles[6] == "annotated: 1"
    assert names(figure.axes[6]) == ["box"]
    assert not figure.axes[7].images  # of two rows of five
    alone = pictures.draw_strip(iter(asked[:2]), 2, Subject(IMAGE, "a.png"))
    assert len(alone.axes) == 2
    with pytest.raises(ValueError, match="score is 2"):
        pictures.draw_strip(iter(asked), 6, Subject(IMAGE, "a.png"), 2)


def boxes(axes):
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_relation():
    """Others by their bias, the strongest on top, the query in white; those of the highest scores, without itself."""
    corners = np.array([[n, n, n + 20.0, n + 20] for n in range(6)])
    bias = np.array([[0, 1, 2, 3, 4, 5.0], [9, 0, 8, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    scores = np.array([0.9, 0.8, 0.1, 0.7, 0.6, 0.5])
    seen = Relation(2, 6, 1, bias, np.array([1, 2, 30.0, 40]), corners, scores, ["box"] * 6, FOUND)
    figure = pictures.draw_relation(Subject(IMAGE, "a.png"), seen, others=4, heads=2)
    first, mean, *heads, bar = figure.axes
    assert first.get_title() == "query 1: box 0.80"
    assert names(first) == ["ball 0.50", "ball 0.90"]
    # query 2 is below the four best others, where head 1 differs most; head 2 differs nowhere
    assert [axes.get_title() for axes in (mean, *heads)] == ["mean of 3 heads", "head 0", "head 1"]
    drawn = boxes(heads[0])
    assert [patch.get_x() for patch in drawn] == [0, 3, 4, 5, 1, 1]
    assert drawn[-1].get_edgecolor() == to_rgba("white")
    assert drawn[-1].get_bbox().extents.tolist() == [1, 2, 30, 40]
    colors = {patch.get_x(): patch.get_edgecolor() for patch in drawn[:4]}
    assert len(set(colors.values())) == 4
    brightest = boxes(heads[1])[3]
    assert brightest.get_x() == 0
    assert sum(brightest.get_edgecolor()[:3]) > sum(colors[5][:3])  # 9 is the top of the scale, not 5
    assert figure.get_suptitle() == "a.png: layer 2 of 6, 4 other queries"
    assert bar.get_ylabel() == "added to the attention's logit"
    for name in ("others", "heads"):
        with pytest.raises(ValueError, match=f"{name} is 0; it must be positive"):
            pictures.draw_relation(Subject(IMAGE, "a.png"), seen, **{name: 0})


def test_a_relation_of_one_query():
    seen = Relation(2, 2, 0, np.ones((2, 1)), np.ones(4), np.ones((1, 4)), np.ones(1), ["box"], [])
    figure = pictures.draw_relation(Subject(IMAGE, "a.png"), seen)
    assert len(boxes(figure.axes[1])) == 2  # itself


def test_key_points():
    rng = np.random.default_rng(0)
    kinds = ("center", "top_left_corner", "bottom_right_corner")
    points = {kind: KeyPoints(rng.random((4, 5)), (80, 64), rng.random((3, 2)) * 50, np.ones(3)) for kind in kinds}
    attended = [Attended("box", kind, np.array([20.0, 10]), np.eye(3)[:2]) for kind in kinds[1:]]
    figure = pictures.draw_key_points(Subject(IMAGE, "a.png"), Bridging(points, FOUND, FOUND[0], attended))
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [
        "centers: scores and the best 3", "top left corners: scores and the best 3",
        "bottom right corners: scores and the best 3", "for the box: top left corners",
        "for the box: bottom right corners",
    ]  # fmt: skip
    assert panels[0].images[1].get_extent() == [0, 80, 64, 0]  # the map is padded
    assert panels[0].get_ylim() == (60, 0)
    np.testing.assert_array_equal(panels[0].collections[0].get_offsets(), points["center"].positions)
    lines = panels[3].lines[:3]
    ends = points["top_left_corner"].positions[[2, 0, 1]]  # by weight: 0, 1/2, 1/2
    np.testing.assert_allclose([line.get_xydata() for line in lines], [[[20, 10], end] for end in ends])
    assert lines[0].get_linewidth() < lines[1].get_linewidth() == lines[2].get_linewidth()
    assert "attention of ball 0.90" in figure.get_suptitle()
    none = pictures.draw_key_points(Subject(IMAGE, "a.png"), Bridging(points, [], None, []))
    assert "nothing was detected" in none.get_suptitle()
    assert len([axes for axes in none.axes if axes.get_title()]) == 3
