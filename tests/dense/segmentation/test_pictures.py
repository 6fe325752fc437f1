"""Maps beside the truth."""

import numpy as np
import pytest

from attlas.dense.masks import encoded
from attlas.dense.segmentation import FurnishedRoomsMaps
from attlas.dense.segmentation.inference import Segmentation
from attlas.dense.segmentation.pictures import WRONG, draw_maps


class Asked:
    """A segmentor that says what it is told to."""

    task = Segmentation()
    model = None

    def __init__(self, maps):
        self.maps = iter(maps)

    def __call__(self, image):
        labels = next(self.maps)
        kinds = np.unique(labels).tolist()
        return [dict(classes=[dict(label=kind, name=str(kind), mask=encoded(labels == kind)) for kind in kinds])]


def test_errors_are_red(rooms):
    dataset = FurnishedRoomsMaps(**rooms, pipeline=[dict(type="attlas.ReadMap")])
    truth = [dataset[i]["gt_seg_map"] for i in (0, 2)]
    wrong = truth[1].copy()
    wrong[:36] = (wrong[:36] + 1) % 17
    figure = draw_maps(dataset, Asked([truth[0], wrong]), [0, 2])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[2:4] == ["predicted, 100.0 % of the pixels right", "predicted, 50.0 % of the pixels right"]
    red = [(axes.images[0].get_array() == WRONG).all(2) for axes in figure.axes[4:]]
    assert not red[0].any()
    assert red[1][:36].all()
    assert not red[1][36:].any()
    with pytest.raises(ValueError, match="the data set has items 0 to 2"):
        draw_maps(dataset, Asked([]), [3])
