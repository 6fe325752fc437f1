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


def test_one_mesh_in_several_colors():
    mesh = rendering.surface(SQUARE, TRIANGLES, color=(1, 0.5, 0.2))
    camera = rendering.look([mesh], rendering.camera_frame(FRONT, "y"), margin=2)
    others = [np.random.default_rng(0).random((6, 3)), np.asarray(mesh.vertex_colors)]
    pictures = rendering.render_colors(mesh, others, camera, 20)
    np.testing.assert_array_equal(pictures[1], rendering.render(mesh, camera, 20))
    mesh.vertex_colors = rendering.o3d.utility.Vector3dVector(others[0])
    np.testing.assert_array_equal(pictures[0], rendering.render(mesh, camera, 20))
    assert np.abs(pictures[0] - pictures[1]).max() > 0.1


def test_discs_face_along_the_normals():
    random = np.random.default_rng(0)
    points, normals = random.normal(size=(2, 30, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    radius = random.uniform(0.1, 0.2, 30)
    mesh = rendering.discs(points, normals, random.random((30, 3)), radius, corners=6)
    corners = np.asarray(mesh.vertices).reshape(30, 6, 3)
    np.testing.assert_allclose(corners.mean(1), points)
    np.testing.assert_allclose(np.linalg.norm(corners - points[:, None], axis=2), np.repeat(radius[:, None], 6, 1))
    mesh.compute_triangle_normals()
    np.testing.assert_allclose(np.asarray(mesh.triangle_normals).reshape(30, 4, 3), np.repeat(normals[:, None], 4, 1))


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


def camera_at(eye, **options):
    return rendering.Camera(rendering.camera_frame(FRONT, "y"), np.array(eye, float), **options)


def test_a_scene_says_which_mesh_a_ray_meets_and_how():
    near = rendering.surface(SQUARE * 0.5, TRIANGLES, color=(1, 0, 0))
    far = rendering.surface(
        SQUARE * 3 - [0, 0, 2], TRIANGLES[:, ::-1], color=np.tile([[0, 0, 1], [0, 1, 1], [0, 0, 1]], (2, 1))
    )
    scene = rendering.Scene([near, far], threads=1)
    ways = np.array([[0.1, 0, -1], [0.25, 0.2, -1], [5, 0, -1]])
    hits = scene.hit(np.array([0, 0, 3.0]), ways)
    assert hits.rays.tolist() == [0, 1]  # the third goes past
    assert hits.mesh.tolist() == [0, 1]
    np.testing.assert_allclose(hits.distance, [3, 5], atol=1e-5)
    np.testing.assert_allclose(hits.place, [[0.3, 0, 0], [1.25, 1, -2]], atol=1e-5)
    np.testing.assert_allclose(
        hits.normal, [FRONT, FRONT], atol=1e-6
    )  # to the eye, whichever way the triangle is wound
    np.testing.assert_allclose(hits.flat, [FRONT, FRONT], atol=1e-6)
    np.testing.assert_allclose(hits.color[0], (1, 0, 0), atol=1e-6)
    assert 0 < hits.color[1, 1] < 1
    assert hits.color[1, 2] == pytest.approx(1)
    starts = np.array([[0.0, 0, 1], [2.0, 0, 1]])
    down = np.array([[0.0, 0, -1]] * 2)
    assert scene.unblocked(starts, down, 2.9).tolist() == [False, True]
    assert scene.unblocked(starts, down, 0.9).all()
    assert not scene.unblocked(starts, down, 3.1).any()
    assert len(scene.hit(np.array([0, 0, 3.0]), -down).rays) == 0


def test_cameras_of_wide_pictures():
    camera = camera_at([1, 2, 5], tangent=1.0, aspect=2.0)
    x, y = np.array([0.1, 0.5, 0.9]), np.array([0.25, 0.75])
    ways = camera.directions(x, y)
    assert ways.shape == (2, 3, 3)
    points = camera.eye + 3 * ways.reshape(-1, 3)
    np.testing.assert_allclose(camera.depth(points), 3, atol=1e-5)
    np.testing.assert_allclose(camera.project(points), np.stack(np.meshgrid(x, y), -1).reshape(-1, 2), atol=1e-6)
    np.testing.assert_allclose(ways[0, 1], [0, 0.25, -1], atol=1e-6)  # half as high as wide


def test_a_film_spreads_rays_and_means_light():
    film = rendering.Film(camera_at([0, 0, 1]), 6, 4, 2, part=(1, 1, 5, 3))
    assert film.directions.shape == (4 * 2 * 4, 3)
    rays = np.arange(len(film.directions))
    ways = np.stack(list(film.spread(rays, 8)))
    np.testing.assert_allclose(np.linalg.norm(ways, axis=-1), 1, atol=1e-5)
    pixel = rays // 8 // 2 * 4 + rays % 8 // 2
    for number in range(8):  # the 32 of a pixel lie on all sides
        assert abs(ways[:, pixel == number].mean((0, 1))).max() < 0.1
    half = rays[rays % 8 < 4]  # the left half of the part
    picture = film.develop(half, np.broadcast_to(np.float32([0.2, 0.4, 0.6]), (len(half), 3)))
    assert picture.shape == (4, 6, 4)
    np.testing.assert_allclose(picture[1:3, 1:3], np.broadcast_to([0.2, 0.4, 0.6, 1], (2, 2, 4)), atol=1e-6)
    assert (picture[[0, 3]] == 0).all()
    assert (picture[:, 3:] == 0).all()


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
