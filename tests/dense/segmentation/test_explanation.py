"""Scores of pixels and regions of a segmentor's logits."""

import pytest
import torch
from networks import image
from torch import nn

from attlas.backbones.inspection.normgrad import linear_approximation
from attlas.dense.segmentation.explanation import Logits, pixel_logit, region_logit


class Segmentor(nn.Module):
    """Has the one function that is asked."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 4, 1)
        self.eval()

    def encode_decode(self, images, metas):
        assert [meta["img_shape"] for meta in metas] == [tuple(images.shape[-2:])] * len(images)
        return nn.functional.interpolate(self.head(self.conv(images).relu()), images.shape[-2:])


def test_pixels_and_regions():
    network, x = Logits(Segmentor().eval()), image(8, 12)
    logits = network(x)
    torch.testing.assert_close(pixel_logit([1, 3], 5, 7)(logits), logits[[0, 1], [1, 3], 5, 7])
    regions = torch.zeros(2, 8, 12, dtype=torch.bool)
    regions[0, 2:4, 6:9] = regions[1, 7, 0] = True
    expected = torch.stack([logits[0, 2, 2:4, 6:9].mean(), logits[1, 0, 7, 0]])
    torch.testing.assert_close(region_logit([2, 0], regions)(logits), expected)
    (found,) = linear_approximation(network, x, pixel_logit(1, 5, 7), "segmentor.conv")
    assert found.shape == (2, 4, 6)
    found[:, 2, 3] = 0  # the only place that the pixel reads
    assert not found.any()
    (together,) = linear_approximation(network, x, region_logit([2, 0], regions), "input")
    for i in range(2):
        (alone,) = linear_approximation(network, x[i : i + 1], region_logit([2, 0], regions).of_sample(i), "input")
        torch.testing.assert_close(alone[0], together[i])


def test_bad_targets():
    logits = torch.zeros(2, 4, 8, 12)
    for score, said in (
        (pixel_logit(4, 0, 0), "class 4: the network has 0 to 3"),
        (pixel_logit(0, 8, 0), "pixel 8, 0 is not inside the image of 8 x 12"),
        (pixel_logit([0, 1, 2], 0, 0), "classes are 3, and the batch has 2"),
        (region_logit(0, torch.ones(1, 4, 4, dtype=torch.bool)), r"\(4, 4\) pixels, and the logits"),
    ):
        with pytest.raises(ValueError, match=said):
            score(logits)
    for regions in (torch.zeros(1, 8, 12, dtype=torch.bool), torch.ones(1, 8, 12)):
        with pytest.raises(ValueError, match="regions must be bool"):
            region_logit(0, regions)
