"""Pictures of labelled clouds show what was asked, and open a room where it hides its inside."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from part_files import solid, write_parts, write_segmenter

from attlas import rendering
from attlas.drawing import WRONG
from attlas.inference import Inferencer
from attlas.pointnets import pictures
from attlas.pointnets.datasets import RotatedViews, ShapeNetPart
from attlas.pointnets.inference import class_colors, standing
from attlas.pointnets.scenes import SegmentedClouds

CLASSES = ("lamp", "wall", "floor", "ceiling")
BACKWARD = rendering.view_direction(30, 40)


def room(found=("ours",), up="y", flip=0):
    """A room of 4 x 2 x 3 with a lamp in it; the sign of normals is arbitrary."""
    random = np.random.default_rng(0)
    points, normals, labels = (
        [random.uniform(-0.1, 0.1, (200, 3))],
        [random.normal(size=(200, 3))],
        [np.zeros(200, int)],
    )
    for axis, (size, names) in enumerate(zip((4, 2, 3), ((1, 1), (2, 3), (1, 1)))):
        for side, label in zip((-1, 1), names):
            place = random.uniform(-0.5, 0.5, (300, 3)) * (4, 2, 3)
            place[:, axis] = side * size / 2
            points.append(place)
            normals.append(np.eye(3)[[axis] * 300] * np.random.default_rng(flip).choice([-1, 1], (300, 1)))
            labels.append(np.full(300, label))
    points, normals, labels = map(np.concatenate, (points, normals, labels))
    guess = np.where(np.arange(len(labels)) % 4 == 0, (labels + 1) % 3, labels)
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    return pictures.Labelled("a room", points, normals, None, labels, dict.fromkeys(found, guess), CLASSES, up)


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("backward", [BACKWARD, -BACKWARD])
def test_what_stands_before_the_inside_is_left_out(flip, backward):
    seen = room(flip=flip)
    drawing = pictures.Drawing(seen, pictures.shell_of(CLASSES))
    mesh, (colors,) = drawing.from_eye([class_colors(seen.truth) / 255], backward)
    places = np.asarray(mesh.vertices).reshape(-1, pictures.CORNERS, 3).mean(1)
    sides = np.sign(backward)  # the eye is on these sides of the room
    wall = np.abs(places).max(1) > 0.5
    far = np.stack([abs(places[:, axis] + sides[axis] * size / 2) < 1e-9 for axis, size in enumerate((4, 2, 3))])
    assert (~wall).sum() == 200  # the whole lamp
    assert far[:, wall].any(0).all()
    assert far.sum(1).tolist() == [300] * 3  # and nothing of the near sides
    assert len(colors) == pictures.CORNERS * (200 + 900)
    whole, _ = pictures.Drawing(seen, []).from_eye([], backward)
    assert len(whole.vertices) == pictures.CORNERS * (200 + 1800)
    window = drawing.all_round(class_colors(seen.truth) / 255)  # walls have one face, the lamp has two
    assert len(window.vertices) == pictures.CORNERS * (1800 + 2 * 200)
    assert pictures.shell_of(CLASSES, ["lamp"]) == [0]
    with pytest.raises(ValueError, match=r"open is 'lmap'; .* Did you mean 'lamp'"):
        pictures.shell_of(CLASSES, ["lmap"])


def test_panels_have_the_colors_of_classes_and_errors_in_red():
    seen = room()
    found = pictures.panels(seen, colored=False)
    assert list(found) == ["truth", "ours: predicted", "ours: wrong"]
    assert np.array_equal(found["truth"], class_colors(seen.truth) / 255)
    wrong = (found["ours: wrong"] == np.array(WRONG) / 255).all(1)
    assert np.array_equal(wrong, seen.found["ours"] != seen.truth)
    assert np.array_equal(found["ours: predicted"][~wrong], found["truth"][~wrong])


def test_the_figure():
    figure = pictures.draw_segments([room(("ours", "theirs")), room(("ours", "theirs"))], size=80)
    assert len(figure.axes) == 2 * 5
    assert [axes.get_title() for axes in figure.axes[:2]] == ["truth", "ours: predicted"]
    right = 100 * (1 - np.ceil(2000 / 4) / 2000)
    assert [axes.get_xlabel() for axes in figure.axes[:3]] == ["", f"{right:.1f} % of the points right", ""]
    assert [text.get_text() for text in figure.legends[0].texts] == [*CLASSES, "wrong"]
    for axes in figure.axes:
        assert axes.images[0].get_array()[..., 3].mean() > 0.3
    strip = pictures.draw_segments([room()], around=3, size=80)
    assert len(strip.axes) == 3 * 3
    assert strip.axes[3].get_ylabel() == f"ours: predicted\n{right:.1f} % of the points right"
    assert [axes.get_title() for axes in strip.axes[:3]] == ["0°", "120°", "240°"]
    views = [axes.images[0].get_array() for axes in strip.axes[:2]]
    assert np.abs(views[0] - views[1]).max() > 0.3
    with pytest.raises(ValueError, match="around is 2; it must be at least 1, and 1 for 2 clouds"):
        pictures.draw_segments([room(), room()], around=2)


def test_colors_that_some_clouds_lack():
    bare = room()
    colors = np.full((len(bare.points), 3), 0.25)
    for clouds in ([bare, replace(bare, colors=colors)], [replace(bare, colors=colors), bare]):
        figure = pictures.draw_segments(clouds, size=80)
        titles = [axes.get_title() for axes in figure.axes[:4]]
        assert titles == ["points", "truth", "ours: predicted", "ours: wrong"]
        assert [axes.get_xlabel() != "" for axes in figure.axes] == 2 * [False, False, True, False]
    assert (pictures.panels(bare, colored=True)["points"] == pictures.CLAY).all()


@pytest.mark.parametrize("points", [np.zeros((1, 3)), np.random.default_rng(0).random((400, 3)) * (1, 0, 1)])
@pytest.mark.parametrize("elevation", [-40, 40])
def test_a_shell_alone_is_drawn_whole(points, elevation):
    count = len(points)
    normals, labels = np.eye(3)[[1] * count], np.full(count, CLASSES.index("floor"))
    seen = pictures.Labelled("a floor", points, normals, None, labels, {"ours": labels}, CLASSES, "y")
    for axes in pictures.draw_segments([seen], elevation=elevation, size=80).axes:
        assert axes.images[0].get_array()[..., 3].mean() > 0.1


def test_clouds_are_drawn_at_one_scale():
    def ball(size):
        points = np.random.default_rng(0).normal(size=(400, 3))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        labels = np.zeros(400, int)
        return pictures.Drawing(pictures.Labelled("x", size * points, points, None, labels, {}, ("a",), "y"), [])

    white = np.ones((400, 3))
    views = [(ball(size), [white], BACKWARD) for size in (2, 1)]
    (large,), (small,) = pictures.photograph(views, "y", 120)
    widths = [np.ptp(np.flatnonzero(picture[..., 3].any(0))) for picture in (large, small)]
    assert widths[1] / widths[0] == pytest.approx(0.5, abs=0.03)


def test_what_networks_are_asked(tmp_path):
    parts = write_parts(tmp_path / "parts")
    ask = Inferencer(write_segmenter(tmp_path / "parts.pth"))
    clouds = ShapeNetPart(parts, "train", transforms=[dict(type="UnitSphere")])
    views = RotatedViews(clouds, dict(z=1))
    raw = clouds.get(3)
    upright = pictures.ask(views, 3, {"ours": ask})
    centered = raw.pos.double() - raw.pos.double().mean(0)
    np.testing.assert_allclose(upright.points, centered, atol=1e-6)
    np.testing.assert_allclose(upright.normals, raw.normal, atol=1e-6)
    assert (upright.truth.tolist(), upright.up, upright.colors) == (raw.point_label.tolist(), "y", None)
    (expected,) = ask([dict(pos=raw.pos.numpy(), normal=raw.normal.numpy(), category=int(raw.y))])
    assert upright.found["ours"].tolist() == expected["labels"]
    turned, again, other = (pictures.ask(views, 3, {"ours": ask}, "SO3", seed) for seed in (5, 5, 6))
    rotation = torch.linalg.lstsq(centered, torch.from_numpy(turned.points)).solution
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(3).double(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(upright.normals @ rotation.numpy(), turned.normals, atol=1e-5)
    np.testing.assert_array_equal(turned.points, again.points)
    assert np.abs(turned.points - other.points).max() > 0.1
    assert upright.name == f"3: {raw.name}, upright"
    with pytest.raises(ValueError, match=r"item 99: the data set has items 0 to"):
        pictures.ask(views, 99, {"ours": ask})


def test_all_classes_of_a_scene_compete(tmp_path):
    (tmp_path / "train").mkdir()
    classes = ("table/desk", "floor", "table/top")  # as of parts, and yet of no categories
    (tmp_path / "classes.txt").write_text("\n".join(classes))
    rows = solid("Mug", np.random.default_rng(0), 300)
    np.savez(tmp_path / "train/a.npz", pos=rows[:, :3], normal=rows[:, 3:6], point_label=np.arange(300) % 3)
    clouds = SegmentedClouds(tmp_path)
    ask = Inferencer(write_segmenter(tmp_path / "scene.pth", classes, num_categories=0))
    found = pictures.ask(clouds, 0, {"ours": ask}).found["ours"]
    data = clouds.get(0)
    (prediction,) = ask.model.test_step([ask.model.transforms(data)])
    assert np.array_equal(found, prediction["log_probs"].argmax(1))
    assert 1 in found  # which the first category lacks


def test_what_is_no_segmented_cloud(tmp_path):
    ask = Inferencer(write_segmenter(tmp_path / "parts.pth"))
    (tmp_path / "train").mkdir()
    (tmp_path / "classes.txt").write_text("floor\nlamp\n")
    np.savez(tmp_path / "train/a.npz", pos=np.eye(3), point_label=[0, 1, 1])
    with pytest.raises(ValueError, match="ours knows other classes than the data: Airplane/0, "):
        pictures.ask(SegmentedClouds(tmp_path), 0, {"ours": ask})


@pytest.mark.parametrize(("up", "axis"), [("x", 0), ("y", 1), ("z", 2)])
def test_cameras_stand_on_y_or_z(up, axis):
    turned, stands = standing(np.eye(3), up)
    assert turned[axis].tolist() == np.eye(3)["xyz".index(stands)].tolist()
    assert np.linalg.det(turned) == pytest.approx(1)
    assert stands in "yz"
