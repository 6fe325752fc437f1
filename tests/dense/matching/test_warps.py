"""Coordinates: identity, round trips, one factor for each axis, both images in the type; mutual and spread matches."""

import pytest
import torch

from attlas.dense.matching.warps import Frame, Warp, follow, matches, middles, sample_cells

SIZE, OTHER = (60, 80), (90, 200)  # height and width, not square


def linear(frame, other, size=(3, 4), confidence=None):
    """The warp that takes shares of one image to the same shares of the other."""
    like = torch.zeros(1, dtype=torch.float64)
    given = torch.ones(size, dtype=torch.float64) if confidence is None else confidence
    return Warp(middles(size, like), given, frame, other)


def places(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_identity():
    frame = Frame.whole(SIZE)
    warp = linear(frame, frame)
    somewhere = places((0, 0), (0.5, 0.5), (79.5, 59.5), (80, 60), (13.2, 41.9))
    torch.testing.assert_close(warp.at(somewhere), somewhere)
    image = torch.rand(3, *SIZE, dtype=torch.float64)
    torch.testing.assert_close(warp.warped(image), image)
    dense, confidence = warp.dense()
    assert dense[7, 11].tolist() == pytest.approx([11.5, 7.5])  # the middle of that pixel
    torch.testing.assert_close(confidence, torch.ones_like(confidence))


def test_each_axis_has_its_own_factor():
    warp = linear(Frame.whole(SIZE), Frame.whole(OTHER))
    torch.testing.assert_close(warp.at(places((80, 60), (40, 15))), places((200, 90), (100, 22.5)))
    torch.testing.assert_close(warp.dense()[0][0, 0], torch.tensor([1.25, 0.75], dtype=torch.float64))


def test_there_and_back():
    there, back = linear(Frame.whole(SIZE), Frame.whole(OTHER)), linear(Frame.whole(OTHER), Frame.whole(SIZE), (5, 7))
    start = places((3, 4), (79, 1), (0, 60))
    torch.testing.assert_close(back.at(there.at(start)), start)
    assert there.cycle_error(back, start).max() < 1e-9
    with pytest.raises(ValueError, match="a way back must lead"):
        there.cycle_error(there, start)
    with pytest.raises(ValueError, match=r"has .90, 100. pixels, and the other one .90, 200."):
        there.warped(torch.zeros(3, 90, 100))


def test_a_displacement_is_followed_beyond_the_middles_of_cells():
    """A shift by a share of the image holds up to its border."""
    grid = middles((3, 4), torch.zeros(1, dtype=torch.float64))[None] + 0.25
    start = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [0.3, 0.9]]], dtype=torch.float64)
    torch.testing.assert_close(follow(grid, start), start + 0.25)


def test_cells_are_sampled_at_their_middles():
    cells = torch.arange(12.0).view(1, 1, 3, 4)
    middle = middles((3, 4), cells).flatten(1).T[None]
    torch.testing.assert_close(sample_cells(cells, middle)[0, :, 0], torch.arange(12.0))


def test_a_part_of_an_image():
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[10:40, 20:30] = True
    frame = Frame.of_mask(mask)
    assert frame == (SIZE, (20, 10, 30, 40))
    torch.testing.assert_close(frame.shares(places((20, 10), (25, 40))), places((0, 0), (0.5, 1)))
    torch.testing.assert_close(frame.places(frame.shares(places((3, 4)))), places((3, 4)))
    warp = linear(frame, Frame.whole(OTHER))
    dense, confidence = warp.dense()
    assert torch.equal(~dense.isnan().any(-1), mask)
    assert torch.equal(confidence > 0, mask)
    torch.testing.assert_close(warp.at(places((30, 40))), places((200, 90)))
    with pytest.raises(ValueError, match="leaves no pixel"):
        Frame.of_mask(torch.zeros(SIZE, dtype=torch.bool))


def folded():
    """Two cells of the first image lead to one place of the second, which leads back to the surer one."""
    frame = Frame.whole((10, 40))
    shares = middles((1, 4), torch.zeros(1, dtype=torch.float64)).clone()
    shares[0, 0, 1] = shares[0, 0, 0]  # the second cell goes where the first goes
    confidence = torch.tensor([[0.9, 0.4, 0.5, 0.8]], dtype=torch.float64)
    return Warp(shares, confidence, frame, frame), linear(frame, frame, (1, 4))


def test_matches_are_sorted_and_whole():
    there, back = folded()
    found = matches(there, back)
    assert found["confidence"].tolist() == [0.9, 0.8, 0.5, 0.4]
    assert found["source"][:, 0].tolist() == pytest.approx([5, 35, 25, 15])
    assert found["target"][:, 0].tolist() == pytest.approx([5, 35, 25, 5])
    assert len(matches(there, back, top=2)["source"]) == 2


def test_mutual_matches():
    there, back = folded()
    found = matches(there, back, mutual=1.0)
    assert found["source"][:, 0].tolist() == pytest.approx([5, 35, 25])
    assert found["cycle_error"].max() <= 1
    assert len(matches(there, back, mutual=10.5)["source"]) == 4


def test_matches_apart():
    there, back = folded()
    found = matches(there, back, apart=3)  # of the two that end at one place the surer
    assert found["source"][:, 0].tolist() == pytest.approx([5, 35, 25])
    assert matches(there, back, apart=15)["source"][:, 0].tolist() == pytest.approx([5, 35])


def test_a_match_outside_of_the_other_image_is_none():
    there, back = folded()
    there.shares[0, 0, 3] = 1.1
    assert len(matches(there, back)["source"]) == 3
