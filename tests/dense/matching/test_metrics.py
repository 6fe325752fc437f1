"""PCK and end-point error, by hand."""

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from attlas.dense.matching.metrics import PCK, EndPointError
from attlas.dense.matching.warps import Frame, Warp, middles


def sample(errors, size=(40, 80), box=(0, 0, 20, 10), category="a"):
    """A pair of equal images, whose known matches are off by so many pixels."""
    frame = Frame.whole(size)
    warp = Warp(middles((2, 2), torch.zeros(1)), torch.ones(2, 2), frame, frame)
    source = torch.full((len(errors), 2), 9.0)
    target = source + torch.tensor([[error, 0.0] for error in errors]).reshape(-1, 2)
    return dict(there=warp, source_points=source, target_points=target, target_box=box, category=category, name="pair")


def measured(metric, *samples):
    metric.process(None, samples)
    with DefaultScope.overwrite_default_scope("attlas"):
        return metric.evaluate(len(samples))


@pytest.mark.parametrize(("of", "length"), [("bbox", 20), ("image", 80), ("pixels", 1)])
def test_pck_compares_with_a_length(of, length):
    first = sample([0.09 * length, 0.11 * length])
    second = sample([0.09 * length] * 4 + [0.2 * length] * 4)
    got = measured(PCK(of=of, alphas=(0.1,)), first, second)
    assert got[f"PCK_{of}@0.1"] == pytest.approx(50)
    assert got[f"PCK_{of}@0.1_by_point"] == pytest.approx(50)
    got = measured(PCK(of=of, alphas=(0.1, 0.15)), sample([0.0]), second)
    assert got[f"PCK_{of}@0.1"] == pytest.approx(75)  # the mean over pairs
    assert got[f"PCK_{of}@0.1_by_point"] == pytest.approx(100 * 5 / 9)


def test_categories():
    got = measured(PCK(alphas=(0.1,), by_category=True), sample([0.0]), sample([50.0], category="b"))
    assert (got["PCK_image@0.1/a"], got["PCK_image@0.1/b"]) == (100, 0)
    got = measured(EndPointError(by_category=True), sample([1.0]), sample([3.0, 5.0], category="b"))
    assert got == pytest.approx({"EPE": 2.5, "EPE_by_point": 3, "EPE/a": 1, "EPE/b": 4})


def test_what_fills_up_has_no_effect():
    padded = sample([1.0, 3.0])
    for key in ("source_points", "target_points"):
        padded[key] = torch.cat([padded[key], torch.full((5, 2), np.nan)])
    for metric in (PCK, EndPointError):
        assert measured(metric(), padded) == measured(metric(), sample([1.0, 3.0]))


def test_pairs_without_matches_are_left_out():
    assert measured(EndPointError(), sample([]), sample([2.0]))["EPE"] == 2
    with pytest.raises(ValueError, match="no pair has a known match"):
        measured(EndPointError(), sample([]))


def test_errors():
    with pytest.raises(ValueError, match=r"PCK.of is 'box'.*Did you mean 'bbox'"):
        PCK(of="box")
    with pytest.raises(ValueError, match="alphas"):
        PCK(alphas=(0,))
    without = sample([1.0])
    del without["target_box"]
    with pytest.raises(ValueError, match="pair has no box"):
        PCK(of="bbox").process(None, [without])
    del without["source_points"]
    with pytest.raises(ValueError, match="no known matches"):
        EndPointError().process(None, [without])
    broken = sample([1.0])
    broken["there"].shares[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        EndPointError().process(None, [broken])
