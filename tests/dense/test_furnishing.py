"""Where things stand in rooms: beside each other, on the floor, on tables and in walls."""

import itertools

import numpy as np
import pytest

from attlas import furniture
from attlas.dense import furnishing as F
from attlas.rendering import Scene

DOWN = np.array([[0.0, -1, 0]])


@pytest.fixture(scope="module")
def rooms():
    return [
        F.Furnishing(split, np.random.default_rng([number, place]))
        for number in range(16)
        for place, split in enumerate(("train", "test"))
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_models_have_a_place_and_a_plausible_size(split):
    kinds = F.models(split)
    assert {model.mesh.label for models in kinds.values() for model in models} == set(range(14))
    left_out = [mesh.name for mesh in furniture.load(split) if F.kind_of(mesh) is None]
    assert all("edge" in name or "arage" in name for name in left_out), left_out  # hedges, garages' doors
    for kind, models in kinds.items():
        for model in models:
            assert (model.size <= (3.5, 2.4, 2.7)).all(), (kind, model.mesh.name, model.size)
    assert max(model.size.max() for model in kinds["car"]) <= 0.42
    assert all(0.9 < model.size[1] < 1.9 for model in kinds["tree"])
    assert all(model.scale == 1 for kind in ("bed", "chair", "sofa", "table", "window") for model in kinds[kind])


def test_boxes_overlap_where_they_do():
    square = F.Box((0, 0, 0), (2, 1, 2), 0)
    turned = F.Box((2.3, 0, 0), (2, 1, 2), np.pi / 4)  # a corner of it reaches to 2.3 - 1.414
    assert square.overlaps_in_plan(turned)
    assert not square.overlaps_in_plan(F.Box((2.5, 0, 0), (2, 1, 2), np.pi / 4))
    assert square.overlaps(F.Box((2.5, 0, 0), (2, 1, 2), np.pi / 4), gap=0.2)
    assert not square.overlaps(F.Box((0, 1, 0), (2, 1, 2), 0))  # it stands on it
    np.testing.assert_allclose(turned.forward, [np.sqrt(0.5), np.sqrt(0.5)])
    long = F.Box((0, 0, 0), (4, 1, 1), np.pi / 2)  # its width lies along z
    np.testing.assert_allclose(abs(long.plan()).max(0), [0.5, 2])


def test_a_thing_fills_its_box(rooms):
    for thing in rooms[0].things + rooms[1].things:
        vertices = np.asarray(thing.placed().vertices)
        middle = np.array([thing.box.place[0], thing.box.place[2]])
        along = abs((vertices[:, [0, 2]] - middle) @ thing.box.axes.T).max(0)
        np.testing.assert_allclose(2 * along, [thing.box.size[0], thing.box.size[2]], atol=2e-3)
        np.testing.assert_allclose(
            [vertices[:, 1].min(), vertices[:, 1].max()], [thing.box.place[1], thing.box.top], atol=2e-3
        )


def test_no_two_things_overlap(rooms):
    assert sum(len(room.things) for room in rooms) > 10 * len(rooms)
    for room in rooms:
        for (one, a), (other, b) in itertools.combinations(enumerate(room.things), 2):
            if one != b.on:
                assert not a.box.overlaps(b.box), (room.theme, a.model.mesh.name, b.model.mesh.name, other)
        assert not any(
            thing.box.overlaps(kept)
            for thing in room.things
            if thing.model.kind not in ("door", "window")
            for kept in room.reserved
        )


def test_things_stay_inside_and_do_not_float(rooms):
    seen = set()
    for room in rooms:
        for thing in room.things:
            kind, box = thing.model.kind, thing.box
            seen.add(thing.label)
            if kind not in ("door", "window"):
                assert (box.plan() >= -1e-6).all()
                assert (box.plan() <= room.size[[0, 2]] + 1e-6).all()
            assert box.top <= room.size[1]
            walled = ("door", "window", "upper cabinet", "hung washbasin", "wall lamp", "wallplate")
            if kind == "hanging lamp":
                assert room.size[1] - box.top < 0.01
            elif thing.on is not None and box.place[1] > 0:
                support = Scene([room.things[thing.on].placed()], threads=1)
                start = np.add(box.place, (0, 0.05, 0))
                assert support.hit(start, DOWN).distance[0] == pytest.approx(0.05, abs=0.01)
            elif kind not in walled:
                assert box.place[1] == 0
            elif kind not in ("door", "window"):
                behind = box.plan() - 0.02 * box.forward  # its back is at a wall
                assert (behind < 0).any() or (behind > room.size[[0, 2]]).any()
    assert seen == set(range(14))


def test_chairs_look_at_their_table(rooms):
    pairs = []
    for room in rooms:
        for table in room.numbers("table") if room.theme == "dining room" else ():
            middle = np.array(room.things[table].box.place)[[0, 2]]
            for chair in room.numbers("chair"):
                box = room.things[chair].box
                toward = middle - np.array(box.place)[[0, 2]]
                pairs.append(toward @ box.forward / np.linalg.norm(toward))
    assert len(pairs) > 5
    assert np.mean(np.array(pairs) > 0.6) > 0.9


def test_holes_lie_in_their_walls(rooms):
    for room in rooms:
        assert len(room.holes) == len(room.numbers("door", "window"))
        for wall, left, right, bottom, top, depth in room.holes:
            frame = F.WallFrame.of(room.size, wall)
            assert 0 < left < right < frame.length
            assert 0 <= bottom < top < room.size[1]
            assert 0 < depth < 0.4
