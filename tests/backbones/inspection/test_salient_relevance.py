"""Context-aware saliency against its record, its bounds, and bad input; the SR map of a network."""

import numpy as np
import pytest
import torch
from golden_records import Record
from torch import nn

from attlas.backbones.inspection.salient_relevance import (
    Context,
    as_picture,
    context_saliency,
    draw,
    salient_relevance,
)

SMALL = dict(patch=3, nearest=8)


def test_equals_the_record():
    record = Record("salient-relevance/context_aware_saliency_derived")
    c = record.config
    context = Context(c["p"], c["K"], c["c"], c["scales"], c["ratios"], c["rmin"], c["thr"], tile=1000)
    found = context_saliency(record.input("x")[0].permute(1, 2, 0).numpy(), context)
    for number, got in enumerate((found.scales, found.mean, found.map)):
        np.testing.assert_allclose(got.reshape(record.output(number).shape), record.output(number), atol=1e-5, rtol=0)


def test_tiles_change_nothing():
    image = np.random.default_rng(0).random((17, 26, 2))
    whole, tiled = (context_saliency(image, Context(**SMALL, tile=tile)) for tile in (10**9, 1))
    np.testing.assert_allclose(whole.map, tiled.map, rtol=0, atol=1e-7)


def test_memory_is_of_a_tile(monkeypatch):
    """No table of distances is larger than the tile, whatever the image."""
    from attlas.backbones.inspection import salient_relevance as module

    sizes, distances = [], module._distances
    monkeypatch.setattr(module, "_distances", lambda a, b: sizes.append(len(a) * len(b)) or distances(a, b))
    context_saliency(np.random.default_rng(0).random((40, 30, 1)), Context(**SMALL, tile=5000))
    assert max(sizes) <= 5000
    assert len(sizes) > 50


def test_the_foci_keep_their_saliency():
    found = context_saliency(np.random.default_rng(1).random((19, 31, 3)), Context(**SMALL))
    assert (found.map <= found.mean).all()
    foci = found.mean > 0.8 * found.mean.max()
    np.testing.assert_array_equal(found.map[foci], found.mean[foci])
    assert found.map.min() == 0
    assert found.mean.shape == (19, 31)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (12, 7)])
def test_a_constant_image_has_no_saliency(size):
    found = context_saliency(np.full((*size, 3), 0.3), Context(**SMALL))
    assert (found.map == 0).all()
    assert (found.scales == 0).all()


def test_the_longer_side():
    image = np.random.default_rng(2).random((24, 36, 1))
    found = context_saliency(image, Context(**SMALL, longest=18))
    assert found.map.shape == (24, 36)
    assert np.isfinite(found.map).all()


def test_of_a_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.randn(2, 3, 12, 9)
    network(x)
    context = Context(**SMALL)
    found = salient_relevance(network, x, lambda y: y[:, 1], context=context)
    single = salient_relevance(network, x[1:], lambda y: y[:, 1], context=context)
    assert found.map.shape == (2, 12, 9)
    torch.testing.assert_close(found.map[1:], single.map, atol=1e-5, rtol=1e-4)
    picture = as_picture(found.relevance.inputs[0])
    assert picture.shape == (2, 12, 9, 3)
    assert picture.dtype == np.uint8
    assert picture.min() == 0
    assert picture.max() == 255
    figure = draw([np.zeros((12, 9, 3), np.uint8)] * 2, found, ["a", "b"])
    assert len(figure.axes) == 8


def test_bad_input():
    for options, message in (
        (dict(patch=4), "patch=4 must be odd"),
        (dict(nearest=0), "nearest=0 must be at least 1"),
        (dict(scales=()), "scales=.* must be numbers above 0"),
        (dict(ratios=(2.0,)), "ratios=.* at most 1"),
        (dict(scales=(0.1,)), "leaves no candidates at scale 0.1"),
        (dict(threshold=1.0), "threshold=1.0 must be"),
        (dict(longest=0), "longest=0"),
        (dict(position=-1.0), "position=-1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Context(**options)
    with pytest.raises(ValueError, match="NaN"):
        context_saliency(np.full((3, 3, 1), np.nan))
    with pytest.raises(ValueError, match=r"got shape \(3, 3\)"):
        context_saliency(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="must be images"):
        salient_relevance(nn.Linear(3, 2).eval(), torch.randn(2, 3), lambda y: y[:, 0])
