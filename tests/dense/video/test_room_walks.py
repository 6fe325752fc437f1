"""The built-in videos: what breaks the rule and when, the same every time, made once."""

import numpy as np
import pytest

from attlas.dense.video import room_walks as module
from attlas.dense.video.room_walks import Walk, walk_folder
from attlas.dense.video.videos import Video


def test_the_files(walks):
    train, test = (walk_folder(split, **walks) for split in ("train", "test"))
    assert len(list(Video(train / "training/frames/00"))) == 24
    frames = np.stack(list(Video(test / "testing/frames/00_jump"))).astype(float)
    truth = np.load(test / "testing/test_frame_mask/00_jump.npy").astype(bool)
    assert frames.shape == (24, 24, 32, 3)
    assert 6 <= truth.sum() <= 8
    # the camera moves evenly: what an anomalous frame differs from the mean of those beside it is more
    error = np.square(frames[1:-1] - (frames[:-2] + frames[2:]) / 2).mean((1, 2, 3))
    normal = ~(truth[1:-1] | truth[:-2] | truth[2:])
    assert np.median(error[truth[1:-1]]) > 2 * np.median(error[normal])
    assert np.square(frames[0] - frames[-1]).mean() > 10  # it moves


def test_the_same_every_time_and_made_once(walks, monkeypatch):
    folder = walk_folder("test", **walks)
    walk = Walk("test", 0, 0, 24)
    assert walk.kind == "jump"
    frame = int(np.flatnonzero(walk.anomalous)[1])
    again = walk.see(frame, 32, 24)
    np.testing.assert_array_equal(again, Video(folder / "testing/frames/00_jump").picked([frame])[frame])
    assert walk.mover is not None
    monkeypatch.setattr(module, "make_files", lambda *_: pytest.fail("it was made again"))
    assert walk_folder("test", **walks) == folder
    monkeypatch.setattr(module, "MAKER", module.MAKER + 1)
    with pytest.raises(pytest.fail.Exception, match="made again"):
        walk_folder("test", **walks)


def test_what_each_kind_does():
    """By the box of the object, in frames of one walk."""
    walk = Walk("test", 0, 0, 24)
    still = np.asarray(walk.room.meshes[-len(walk.room.things) :][walk.mover].vertices)
    since = int(np.argmax(walk.anomalous))

    def moved(kind, frame):
        walk.kind = kind
        return np.asarray(walk.mesh(frame).vertices)

    jumped = moved("jump", since + 1) - still
    np.testing.assert_allclose(jumped, np.broadcast_to(jumped[0], jumped.shape), atol=1e-9)
    assert 0.1 < jumped[0, 1] <= 0.4
    grown = moved("grow", since + 2)
    np.testing.assert_allclose(np.ptp(grown, axis=0), 1.5 * np.ptp(still, axis=0))
    assert grown[:, 1].min() == pytest.approx(still[:, 1].min(), abs=1e-3)
    spun = moved("spin", since)
    np.testing.assert_allclose(spun[:, 1], still[:, 1])
    assert abs(spun - still).max() > 0.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(split="val"), "split is 'val'"),
        (dict(frames=23), "frames is 23; it must be at least 24"),
        (dict(size=64), "size is 64"),
        (dict(count=0), "count is 0"),
        (dict(seed=-1), "seed is -1"),
    ],
)
def test_arguments_that_are_none(arguments, words):
    with pytest.raises(ValueError, match=words):
        walk_folder(**arguments)
