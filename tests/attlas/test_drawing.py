"""Objects and regions lie over the image where they are."""

import numpy as np
from matplotlib.colors import to_rgb

from attlas.drawing import COLORS, WRONG, draw_objects, draw_regions, palette

IMAGE = np.full((20, 30, 3), 200, np.uint8)


def test_objects():
    mask = np.zeros((20, 30), int)
    mask[5:9, 4:7] = 1
    objects = [
        dict(label=1, name="chair\n", box=[4, 5, 7, 9], score=0.876, mask=mask),
        dict(label=1 + len(COLORS), name="lamp", box=[0, 0, 3, 3]),
    ]
    figure = draw_objects(IMAGE, objects, "a $title")
    (axes,) = figure.axes
    assert axes.get_title() == "a $title"
    assert [text.get_text() for text in axes.texts] == ["chair\\n 0.88", "lamp"]
    assert [box.get_bbox().extents.tolist() for box in axes.patches] == [[4, 5, 7, 9], [0, 0, 3, 3]]
    image, tint = (each.get_array() for each in axes.images)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(tint[..., 3] > 0, mask > 0)
    assert [box.get_edgecolor()[:3] for box in axes.patches] == [to_rgb(COLORS[1])] * 2  # the colors repeat


def test_names_lie_beside_each_other_and_within_the_image():
    image = np.zeros((200, 300, 3), np.uint8)
    boxes = [[30, 60, 90, 90]] * 3 + [[280, 60, 299, 90], [5, 1, 20, 20], [-9, 190, 20, 230]]
    names = ["chair", "lamp", "sofa", "washbasin", "door", "bed"]
    objects = [dict(label=n, name=name, box=box) for n, (name, box) in enumerate(zip(names, boxes))]
    figure = draw_objects(image, objects)
    figure.canvas.draw()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == names
    drawn = [text.get_window_extent() for text in axes.texts]
    frame = axes.get_window_extent().padded(2)
    for number, box in enumerate(drawn):
        assert not any(box.overlaps(other) for other in drawn[:number]), names[number]
        assert frame.contains(*box.min)
        assert frame.contains(*box.max)
    assert axes.texts[2].get_position() == (30, 60)  # what is drawn last has its name at its corner


def test_regions():
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 10:], labels[0, 0], labels[19, 29] = 1, 255, 2
    (axes,) = draw_regions(IMAGE, labels, ("floor", "wall", "dot")).axes
    assert [text.get_text() for text in axes.texts] == ["floor", "wall"]  # the dot is small
    assert len(axes.images) == 4
    for text, label in zip(axes.texts, (0, 1)):
        column, row = map(int, text.get_position())
        assert labels[row, column] == label
    (axes,) = draw_regions(IMAGE, labels, ()).axes
    assert [text.get_text() for text in axes.texts] == ["class 0", "class 1"]


def test_one_over_the_other():
    (axes,) = draw_regions(IMAGE, np.zeros((20, 30), int), ("floor",)).axes
    draw_objects(IMAGE, [dict(label=0, name="lamp", box=[0, 0, 3, 3])], axes=axes)
    assert len(axes.images) == 2  # the image once
    assert [text.get_text() for text in axes.texts] == ["floor", "lamp"]


def test_what_is_wrong_has_no_color_of_a_class():
    assert np.abs(palette(50).astype(int) - WRONG).sum(1).min() > 60
