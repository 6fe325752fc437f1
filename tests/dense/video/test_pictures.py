"""The curve with frames."""

import numpy as np
import pytest
from small_videos import frames_of

from attlas.dense.video.pictures import draw_anomalies, shown_frames
from attlas.dense.video.videos import Frames


def test_the_worst_frame_of_each_part_is_shown():
    scores = np.full(40, np.nan)
    scores[3:37] = 0
    scores[[7, 21]] = 5
    assert shown_frames(scores, 4) == [7, 10, 21, 30]
    assert shown_frames(np.full(40, np.nan), 2) == [10, 30]
    assert shown_frames(np.zeros(3), 8) == [0, 1, 2]


def result(count, **entries):
    scores = [None, *np.linspace(-60, -30, count - 2), None]
    return dict(scores=scores, threshold=-40.0, events=[dict(start=20, end=28)], measure="psnr") | entries


def test_a_figure():
    truth = np.zeros(30, bool)
    truth[18:25] = True
    figure = draw_anomalies(Frames(frames_of(30)), result(30), truth, "a_$video")
    images = [axes for axes in figure.axes if axes.images]
    (curve,) = [axes for axes in figure.axes if not axes.images]
    assert len(images) == 8
    np.testing.assert_array_equal(images[-1].images[0].get_array(), frames_of(30)[28])
    labels = curve.get_legend_handles_labels()[1]
    assert labels == ["anomalous in truth", "score", "threshold", "event"]
    assert curve.get_ylabel() == "minus the PSNR (dB)"
    figure.canvas.draw()  # also the title, with its dollar


def test_a_figure_without_threshold_or_truth():
    figure = draw_anomalies(Frames(frames_of(12)), result(12, threshold=None, events=None))
    (curve,) = [axes for axes in figure.axes if not axes.images]
    assert curve.get_legend_handles_labels()[1] == ["score"]
    with pytest.raises(ValueError, match="truth is of 3 frames, and the scores of 12"):
        draw_anomalies(Frames(frames_of(12)), result(12), np.zeros(3, bool))
