"""The one map from clips to frames, what is gathered by it, and events."""

import numpy as np
import pytest

from attlas.dense.video.windows import Event, Events, Gathered, Windows

AUTHORS = Windows(9, 3, 3)


def test_clips_of_the_authors():
    assert (AUTHORS.span, AUTHORS.middle, AUTHORS.delay) == (25, 3, 15)
    assert AUTHORS.targets(100) == [109, 112, 115]
    assert AUTHORS.starts(27) == [0, 1, 2]
    assert AUTHORS.starts(24) == []


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("shape", [(9, 3, 3), (5, 1, 2), (7, 2, 2), (8, 4, 1)])
def test_each_frame_is_predicted_and_as_often_as_said(shape, overlap):
    """By brute force: whatever the length of a video, one score for each frame, and what is NaN lies at the ends."""
    windows = Windows(*shape, overlap).check()
    for frames in range(windows.span, windows.span + 40):
        counts = np.zeros(frames, int)
        gathered, given = Gathered(windows), []
        for start in windows.starts(frames):
            assert max(windows.targets(start)) + windows.context * windows.step == start + windows.span - 1
            counts[windows.targets(start)] += 1
            gathered.add(start, np.array(windows.targets(start), float))  # a frame's score is its number
            given += gathered.until(start + windows.span - windows.delay)
            assert len(gathered.sums) <= windows.step * windows.middle
        given += gathered.until(frames)
        assert [frame for frame, _ in given] == list(range(frames))
        assert all(score == frame for frame, score in given if counts[frame])
        assert [np.isnan(score) for _, score in given] == (counts == 0).tolist()
        edge = windows.context * windows.step
        assert not counts[:edge].any()
        assert not counts[frames - edge :].any()
        if not overlap:
            assert counts.max() == 1
        if frames >= windows.span + windows.step * windows.middle:
            late = 0 if overlap else windows.step * (windows.middle - 1)
            assert counts[edge : frames - edge - late].all()


def test_a_score_is_final_when_it_is_given():
    """Nothing that comes later would change it."""
    windows, frames = Windows(7, 2, 2), 60
    last = {}
    for start in windows.starts(frames):
        for frame in windows.targets(start):
            last[frame] = start + windows.span - 1  # the frame with which the clip is there
    assert all(seen <= frame + windows.delay for frame, seen in last.items())
    assert any(seen == frame + windows.delay for frame, seen in last.items())


@pytest.mark.parametrize(("shape", "words"), [((6, 1, 3), "length is 6; .* over 6"), ((5, 0, 1), "step is 0")])
def test_windows_that_are_none(shape, words):
    with pytest.raises(ValueError, match=words):
        Windows(*shape).check()


def found(scores, *arguments):
    events, given = Events(*arguments), []
    for frame, score in enumerate(scores):
        given += events.push(frame, score)
    return given + list(events.end())


def test_events():
    nan = float("nan")
    scores = [nan, 0, 2, 3, 3, 0, 0, 2, 0, 0, 0, 5, nan]
    assert found(scores, 1.0, 0) == [Event(2, 4, 3, 3), Event(7, 7, 2, 7), Event(11, 11, 5, 11)]
    assert found(scores, 1.0, 2) == [Event(2, 7, 3, 3), Event(11, 11, 5, 11)]  # two frames between are bridged
    assert found(scores, 1.0, 0, 2) == [Event(2, 4, 3, 3)]
    assert found(scores, 5.0) == []
    assert found([2, 2], 1.0) == [Event(0, 1, 2, 0)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((float("nan"),), "threshold is nan"), ((0.0, -1), "gap is -1"), ((0.0, 1, 0), "least is 0")],
)
def test_events_that_are_none(arguments, words):
    with pytest.raises(ValueError, match=words):
        Events(*arguments)
