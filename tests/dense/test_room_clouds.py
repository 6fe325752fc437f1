import numpy as np
import pytest

from attlas.dense.room_clouds import write_room_clouds
from attlas.dense.rooms import LABELS, Room
from attlas.pointnets.scenes import SegmentedClouds


def test_rooms_as_the_data_set_reads_them(tmp_path):
    calls = []
    write_room_clouds(tmp_path, train=2, test=1, points=500, seed=3, after=lambda: calls.append(1))
    assert len(calls) == 3
    rooms = SegmentedClouds(tmp_path, "train")
    assert (rooms.classes, rooms.names) == (LABELS, ["000000", "000001"])
    expected = Room("train", 3, 1).points(500)
    np.testing.assert_allclose(rooms[1].pos, expected["pos"])
    np.testing.assert_allclose(rooms[1].normal, expected["normal"], atol=1e-6)
    assert rooms[1].point_label.tolist() == expected["label"].tolist()
    assert rooms[1].color.tolist() == (255 * expected["color"]).round().tolist()
    assert len(SegmentedClouds(tmp_path, "test")) == 1
    with pytest.raises(FileExistsError, match="holds clouds already"):
        write_room_clouds(tmp_path, 1, 1, 10)
    (tmp_path / "classes.txt").unlink()  # as if it had been interrupted
    with pytest.raises(FileExistsError, match="holds clouds already, of a run that did not finish"):
        write_room_clouds(tmp_path, 1, 1, 10)
    with pytest.raises(ValueError, match="points is 0"):
        write_room_clouds(tmp_path / "new", 1, 1, 0)
