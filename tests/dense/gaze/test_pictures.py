"""Pictures of scanpaths: a panel for each path, a circle for each look."""

import numpy as np

from attlas.dense.gaze.pictures import LOOK, TARGET, draw_scanpaths


def test_each_look_has_its_circle():
    image = np.full((40, 60, 3), 200, np.uint8)
    boxes = np.array([[0, 0, 20, 40], [20, 0, 40, 40], [40, 0, 60, 40]], float)
    rows = [[("truth", image, boxes, [0, 2, 2, 1], 1), ("drawn", image, boxes, [], 0)]]
    figure = draw_scanpaths(rows)
    first, second = figure.axes
    assert first.get_title() == "truth: 4 looks"
    assert [text.get_text() for text in first.texts] == ["1", "2", "3", "4"]
    places = np.array([text.get_position() for text in first.texts])
    assert [int(x // 20) for x in places[:, 0]] == [0, 2, 2, 1]
    assert len({tuple(place) for place in places.tolist()}) == 4  # two looks at one object lie apart
    assert (first.patches[0].get_x(), first.patches[0].get_width()) == (20, 20)
    assert len(first.collections) == 4
    assert not second.texts
    assert LOOK != TARGET
