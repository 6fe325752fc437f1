"""What a camera sees of a room, and the truth about it."""

import subprocess
import sys

import numpy as np
import pytest

from attlas import rendering
from attlas.dense import rooms as R

HASH = """
import hashlib
from attlas.dense.rooms import Room
room = Room("train", 0, 3)
view = room.see(room.camera(), 80, 60)
arrays = [getattr(view, name) for name in ("image", "instances", "labels", "depth", "normals")]
arrays += [room.points(100)["pos"], room.see(room.camera(1), 16, 12).image]
digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
"""


@pytest.fixture(scope="module")
def room():
    return R.Room("train", 0, 7)


@pytest.fixture(scope="module")
def views(room):
    return room.see(room.camera(0), 160, 120), room.see(room.camera(1), 160, 120)


def test_a_room_is_the_same_in_any_process():
    found = {}
    (other := R.Room("test", 0, 1)).see(other.camera(), 8, 6)  # what was made before changes nothing
    exec(HASH, found)
    code = f"{HASH}\nprint(digest)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == found["digest"]


def test_rooms_differ():
    images = [R.Room(*key).see(R.Room(*key).camera(), 32, 24).image for key in (("train", 0, 0), ("train", 0, 1))]
    images += [R.Room(*key).see(R.Room(*key).camera(), 32, 24).image for key in (("train", 1, 0), ("test", 0, 0))]
    assert len({image.tobytes() for image in images}) == 4


def test_splits_share_no_object():
    names = [
        {thing.model.mesh.model for number in range(6) for thing in R.Room(split, 0, number).things}
        for split in R.SPLITS
    ]
    assert names[0]
    assert names[1]
    assert not names[0] & names[1]


def test_masks_boxes_and_labels_agree(room, views):
    for view in views:
        boxes, labels, numbers = view.boxes()
        assert len(boxes) >= 4
        for (left, top, right, bottom), label, number in zip(boxes, labels, numbers):
            mask = view.instances == number
            assert mask.sum() >= R.LEAST
            assert label == room.things[number - 1].label
            assert (view.labels[mask] == label).all()
            assert mask[top:bottom, left:right].sum() == mask.sum()
            for side in (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1]):
                assert side.any()
        for number in set(np.unique(view.instances)) - {0, *numbers}:
            assert (view.instances == number).sum() < R.LEAST
        structure = view.instances == 0
        assert set(np.unique(view.labels[structure])) <= {R.FLOOR, R.WALL, R.CEILING}
        assert (view.labels[~structure] < 14).all()


def test_floor_wall_and_ceiling_lie_where_they_should(room, views):
    places, labels = views[0].places, views[0].labels
    assert (abs(places[labels == R.FLOOR][:, 1]) < 1e-4).all()
    assert (abs(places[labels == R.CEILING][:, 1] - room.size[1]) < 1e-4).all()
    wall = places[labels == R.WALL]
    nearest = np.minimum(wall[:, [0, 2]], room.size[[0, 2]] - wall[:, [0, 2]]).min(1)
    assert (nearest < 0.03).all()  # and behind, in niches
    assert (nearest > -0.5).all()


def test_depth_and_intrinsics_give_the_places_back(views):
    for view in views:
        height, width = view.depth.shape
        flat = view.places.reshape(-1, 3).astype(float)
        pixel = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
        np.testing.assert_allclose(view.camera.project(flat) * (width, height) - 0.5, pixel, atol=0.02)
        np.testing.assert_allclose(view.camera.depth(flat), view.depth.ravel(), atol=1e-3)
        right, up, backward = ((flat - view.camera.eye) @ view.camera.frame.T).T
        column, row, depth = view.intrinsics @ np.stack([right, -up, -backward])
        np.testing.assert_allclose(np.stack([column / depth, row / depth], 1), pixel, atol=0.02)


def test_a_view_corresponds_to_itself(room, views):
    view = views[0]
    places, visible = room.correspondence(view, view)
    height, width = view.depth.shape
    np.testing.assert_allclose(places, np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1), atol=0.02)
    assert visible.mean() > 0.995  # but for what is seen through a slit, and edges of the picture


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_correspondence_is_exact(room, views, order):
    """A point that is said to be seen is what the other camera meets on the way there, and one that is not, hides."""
    one, other = (views[place] for place in order)
    places, visible = room.correspondence(one, other)
    height, width = other.depth.shape
    assert 0.2 < visible.mean() < 0.999
    inside = ((places >= -0.5) & (places <= [width - 0.5, height - 0.5])).all(-1)
    assert not (visible & ~inside).any()
    points = one.places.astype(float)
    toward = points - other.camera.eye
    hits = room.scene.hit(other.camera.eye, toward.reshape(-1, 3))
    short = 1 - hits.distance.reshape(height, width)  # of the way, how much is missing
    length = np.linalg.norm(toward, axis=-1)
    assert (abs(short * length)[visible] < 0.02).all()
    ahead = inside & (other.camera.depth(points.reshape(-1, 3)).reshape(height, width) > 0)
    hidden = (short * length)[ahead & ~visible]
    assert np.mean(hidden > 1e-3) > 0.97  # others lie on edges, or turn their back
    # and the pixel there has that depth, where the surface is smooth
    column, row = np.round(places[visible]).astype(int).T
    depth = other.camera.depth(points[visible])
    flat = np.einsum("nc,nc->n", one.normals[visible], other.normals[row, column]) > 0.99
    near = abs(other.depth[row, column] - depth)[flat]
    assert np.mean(near < 0.05 + 0.02 * depth[flat]) > 0.97
    assert np.mean(other.instances[row, column] == one.instances[visible]) > 0.95


def test_cameras_stand_free_and_see_much_of_the_same():
    for number in range(6):
        room = R.Room("test", 1, number)
        first, second = room.camera(0), room.camera(1)
        for camera in (first, second):
            assert (camera.eye > 0).all()
            assert (camera.eye < room.size).all()
            assert not any(
                R.Box(tuple(camera.eye - [0, 0.05, 0]), (0.1, 0.1, 0.1), 0).overlaps(t.box) for t in room.things
            )
        assert np.linalg.norm(first.eye - second.eye) > 0.1
        view, other = (room.see(camera, 32, 24) for camera in (first, second))
        assert view.depth.min() > 0.2
        assert room.correspondence(view, other)[1].mean() > 0.15


def test_no_ray_leaves_a_room():
    ways = np.random.default_rng(0).normal(size=(20_000, 3))
    for number in range(4):
        room = R.Room("train", 2, number)
        hits = room.scene.hit(room.size / 2, ways)
        assert len(hits.rays) == len(ways)
        assert np.linalg.norm(hits.place - room.size / 2, axis=1).max() < np.linalg.norm(room.size)


def test_points_lie_on_their_surfaces(room):
    points = room.points(3000)
    shapes = dict(pos=(3000, 3), normal=(3000, 3), color=(3000, 3), label=(3000,), instance=(3000,))
    assert {key: value.shape for key, value in points.items()} == shapes
    assert [value.dtype for value in points.values()] == [np.float32] * 3 + [np.int64] * 2
    np.testing.assert_allclose(np.linalg.norm(points["normal"], axis=1), 1, atol=1e-3)
    hits = room.scene.hit(points["pos"] + 0.004 * points["normal"], -points["normal"])
    assert len(hits.rays) == 3000
    on = abs(hits.distance - 0.004) < 1e-3
    assert on.mean() > 0.97  # others lie within 4 mm of another surface
    assert (room.labels[hits.mesh][on] == points["label"][on]).mean() > 0.99
    named = points["instance"] > 0
    assert (points["label"][~named] >= 14).all()
    labels = np.array([thing.label for thing in room.things])
    np.testing.assert_array_equal(labels[points["instance"][named] - 1], points["label"][named])
    floor = points["pos"][points["label"] == R.FLOOR]
    assert (floor[:, [0, 2]] >= 0).all()
    assert (floor[:, [0, 2]] <= room.size[[0, 2]] + 1e-6).all()
    assert points["color"].min() >= 0
    assert points["color"].max() <= 1
    again, other = room.points(3000), room.points(3000, draw=1)
    assert all(np.array_equal(points[key], again[key]) for key in points)
    assert not np.array_equal(points["pos"], other["pos"])


def test_pictures_are_exposed_and_have_shadows(views):
    """The floor in the shade of furniture is darker than in the open, and a picture is neither dark nor burnt."""
    for view in views:
        image = view.image.astype(float).mean(-1)
        assert 60 < image.mean() < 215
        assert np.mean(image > 252) < 0.4
        assert image.std() > 20
    darker = []
    for number in range(6):
        room = R.Room("train", 0, number)
        view = room.see(room.camera(), 80, 60)
        floor = view.labels == R.FLOOR
        up = np.broadcast_to([0.0, 1, 0], view.places[floor].shape)
        bare = room.scene.unblocked(view.places[floor] + 1e-3 * up, up, 1.2)
        image = view.image.astype(float).mean(-1)[floor]
        darker.append(image[bare].mean() - image[~bare].mean())
    assert np.mean(darker) > 5


def test_more_rays_give_the_same_picture_with_less_noise(room):
    small = R.Room("train", 0, 7)
    camera = small.camera()
    rough, fine = (small.see(camera, 64, 48, quality).image.astype(float) for quality in (2, 4))
    assert abs(rough - fine).mean() < 6


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"split is 'tets'; it may be 'train', 'test'. Did you mean 'test'\?"):
        R.Room("tets", 0, 0)
    with pytest.raises(ValueError, match="seed is -1; it must be an integer of at least 0"):
        R.Room("train", -1, 0)
    with pytest.raises(ValueError, match=r"number is 1\.5; it must be an integer of at least 0"):
        R.Room("train", 0, 1.5)
    room = R.Room("train", 0, 0)
    with pytest.raises(ValueError, match="number is -1; it must be an integer of at least 0"):
        room.camera(-1)
    camera = rendering.Camera(np.eye(3), np.array([1.0, 1.5, 1.0]))
    with pytest.raises(ValueError, match=r"its eye \[9\. .* must be inside the room, which reaches to"):
        room.see(rendering.Camera(np.eye(3), np.array([9.0, 1.5, 1.0])), 8, 8)
    with pytest.raises(ValueError, match="width is 0; it must be a positive integer"):
        room.see(camera, 0, 10)
    with pytest.raises(ValueError, match="quality is 0"):
        room.see(camera, 8, 8, 0)
    with pytest.raises(ValueError, match="count is 0"):
        room.points(0)
