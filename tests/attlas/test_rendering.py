"""Rays and scenes: what is drawn lies where it should, and is shaded as it should."""

import numpy as np
import pytest

from attlas import rendering

FRONT = np.array([0.0, 0.0, 1.0])
TRIANGLES = np.array([[0, 1, 2], [0, 2, 3]])
SQUARE = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])


def test_rays_see_a_square_where_it_is():
    mesh = rendering.surface(SQUARE, TRIANGLES, color=(1, 0.5, 0.2))
    camera = rendering.look([mesh], rendering.camera_frame(FRONT, "y"), margin=2)
    picture = rendering.render(mesh, camera, 40)
    assert picture.shape == (40, 40, 4)
    assert (picture[11:29, 11:29, 3] == 1).all()
    assert (picture[:9, :, 3] == 0).all()
    assert (picture[:, 31:, 3] == 0).all()
    red, green, blue = picture[20, 20, :3]
    assert red > green > blue > 0
    np.testing.assert_allclose(camera.project(SQUARE), [[0.25, 0.75], [0.75, 0.75], [0.75, 0.25], [0.25, 0.25]])


def test_up_is_up():
    mesh = rendering.surface(np.array([[-0.1, 0, 0], [0.1, 0, 0], [0, 0, 2.0]]), np.array([[0, 1, 2]]))
    picture = rendering.snapshots([mesh], rendering.view_direction(0, 0, "z"), "z", 40)[0][..., 3]
    assert picture[30:].sum() > picture[:10].sum() > 0  # the broad end is below
    with pytest.raises(ValueError, match="up is 'w'; it may be 'y', 'z'"):
        rendering.view_direction(0, 0, "w")


def test_smooth_but_for_creases():
    bent = np.array([[0.0, 0, 0], [0, 1, 0], [1, 0, 0.1], [-1, 0, 0.1]])
    faces = np.array([[0, 2, 1], [0, 1, 3]])
    normals = np.asarray(rendering.surface(bent, faces, crease=30).vertex_normals)
    np.testing.assert_allclose(normals[0], [0, 0, 1], atol=1e-9)  # the two faces meet at 11 degrees
    normals = np.asarray(rendering.surface(bent, faces, crease=5).vertex_normals)
    np.testing.assert_allclose(normals[0] @ [1, 0, 0.1], 0, atol=1e-9)


def test_window_without_display(monkeypatch):
    class NoWindow:
        def create_window(self, *size):
            return False

    message = r"Open3D cannot open a window.*libgl1 libegl1 .*: --out"
    monkeypatch.setattr(rendering.o3d.visualization, "Visualizer", NoWindow)
    for display in ("", ":99"):
        monkeypatch.setenv("DISPLAY", display)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        with pytest.raises(RuntimeError, match=message):
            rendering.window([rendering.surface(SQUARE, TRIANGLES)], "square")
