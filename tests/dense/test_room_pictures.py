"""The sheet of rooms shows the rooms, and the truth about the first."""

import numpy as np
import pytest

from attlas.dense.room_pictures import draw_rooms
from attlas.dense.rooms import Room


@pytest.mark.parametrize("count", [1, 2])
def test_a_sheet_of_rooms(count):
    rooms = [Room("test", 0, number) for number in range(count)]
    panels = draw_rooms(rooms).axes
    view = rooms[0].see(rooms[0].camera())
    for room, axes in zip(rooms, panels):
        np.testing.assert_array_equal(axes.images[0].get_array(), room.see(room.camera()).image)
    objects, regions, depth, other, points = panels[-5:]
    assert len(objects.patches) == len(view.boxes()[0])
    assert {text.get_text() for text in regions.texts} >= {"floor", "wall"}
    np.testing.assert_array_equal(depth.images[0].get_array(), view.depth)
    (dots,) = other.collections
    places = dots.get_offsets()
    assert len(places) > 20
    assert (places >= -0.5).all()
    assert (places <= (319.5, 239.5)).all()
    assert points.images[0].get_array()[..., 3].mean() > 0.1
