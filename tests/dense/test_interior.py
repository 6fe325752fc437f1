"""Walls with niches, patterns on plain colors, and lights."""

import numpy as np
import pytest

from attlas.dense import interior as I
from attlas.dense.furnishing import Furnishing, WallFrame
from attlas.rendering import Scene


@pytest.fixture(scope="module")
def furnishings():
    return [Furnishing("train", np.random.default_rng([7, number])) for number in range(8)]


@pytest.fixture(scope="module")
def interiors(furnishings):
    return [I.Interior(each, np.random.default_rng([8, number])) for number, each in enumerate(furnishings)]


def test_an_empty_room_is_closed_and_has_niches(interiors):
    ways = np.random.default_rng(0).normal(size=(5000, 3))
    for interior in interiors:
        scene = Scene(interior.meshes(), threads=1)
        middle = interior.size / 2
        hits = scene.hit(middle, ways)
        assert len(hits.rays) == len(ways)
        assert set(hits.mesh) == {0, 1, 2}
        np.testing.assert_allclose(hits.place[hits.mesh == 0][:, 1], 0, atol=1e-5)
        np.testing.assert_allclose(hits.place[hits.mesh == 2][:, 1], interior.size[1], atol=1e-5)
        assert (np.einsum("rc,rc->r", middle - hits.place, hits.flat) > 0).all()
        for number, left, right, bottom, top, depth in interior.holes:
            wall = WallFrame.of(interior.size, number)
            (start,) = wall.room([((left + right) / 2, (bottom + top) / 2, 1.0)])
            way = np.array([[-wall.inward[0], 0, -wall.inward[1]]])
            assert scene.hit(start, way).distance[0] == pytest.approx(1 + depth, abs=1e-4)
            (beside,) = wall.room([(left - 0.05, (bottom + top) / 2, 1.0)])
            assert scene.hit(beside, way).distance[0] == pytest.approx(1, abs=0.03)  # pictures stand out a little


def test_triangles_of_rooms_face_inward(interiors):
    for interior in interiors:
        middle = interior.size / 2
        for mesh in interior.meshes():
            corners = np.asarray(mesh.vertices)[np.asarray(mesh.triangles)]
            normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
            plane = np.einsum("fc,fc->f", middle - corners[:, 0], normals)
            assert np.mean(plane > 0) > 0.8  # but for sides of niches


def test_patterns_are_on_floor_and_walls_alone(interiors):
    random = np.random.default_rng(1)
    seen = set()
    for interior in interiors:
        places = random.uniform(0, interior.size, size=(2000, 3)).astype(np.float32)
        meshes = np.repeat([0, 1, 2, 3], 500)
        plain = np.empty((2000, 3), np.float32)
        plain[:500], plain[500:1000], plain[1000:] = interior.floor_color, interior.wall_color, 0.5
        colors = interior.painted(meshes, places, plain)
        assert (colors[1000:] == 0.5).all()
        assert colors[:500].std(0).max() > 0.01
        assert (colors[500:1000].std(0).max() < 1e-4) == (interior.wall_style == "plain")
        assert (colors >= 0).all()
        assert (colors <= 1.1).all()
        assert (plain[:500] == interior.floor_color.astype(np.float32)).all()  # a copy was painted
        seen |= {interior.flooring}
    assert len(seen) > 1


def test_lights(furnishings, interiors):
    for furnishing, interior in zip(furnishings, interiors):
        lamp, *windows = interior.emitters
        assert (lamp.place > 0).all()
        assert (lamp.place < interior.size).all()
        assert lamp.place[1] > 1.2
        assert len(windows) == min(len(furnishing.numbers("window")), 1)
        for window in windows:
            assert window.facing @ (interior.size / 2 - window.place) > 0
            assert np.linalg.norm(window.facing) == pytest.approx(1)
        assert (interior.ambient > 0).all()
