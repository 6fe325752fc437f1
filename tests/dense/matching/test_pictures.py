"""Pictures of matches say where truth and answers are; their lines are read back from the axes."""

import io

import numpy as np
import pytest
import torch
from small_matchers import image, matcher

from attlas.dense.matching.pictures import LINES, draw_matches, draw_pairs


def pair(height=20, width=33, count=50, known=True):
    """Two images of other sizes, and known matches in the first, moved by (3, 1) in the second."""
    sample = dict(source=image(height, width), target=image(height + 6, width + 8, seed=1))
    if known:
        points = torch.rand(count, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor([width, height])
        sample |= dict(source_points=points, target_points=points + torch.tensor([3.0, 1.0]))
    return sample


def saved(figure):
    figure.savefig(file := io.BytesIO(), format="png")
    return file.getvalue()


def test_pairs_show_truth_and_errors():
    pairs, model = [pair(), pair(count=3)], matcher()
    figure = draw_pairs(pairs, model, [0, 1])
    with torch.inference_mode():
        found = model.test_step({key: [pairs[1][key]] for key in pairs[1]})[0]["there"]
    panels = np.array(figure.axes).reshape(2, 4)
    assert [axes.get_title() for axes in panels[0]] == [
        "source", "target: truth, and the error in red", "flow", "target, warped to the source",
    ]  # fmt: skip
    assert len(panels[0, 1].lines) == LINES
    put = found.at(pairs[1]["source_points"])
    for line, truth, end in zip(panels[1, 1].lines, pairs[1]["target_points"], put, strict=True):
        np.testing.assert_allclose(line.get_xydata(), torch.stack([truth, end]), rtol=1e-5)
    error = (put - pairs[1]["target_points"]).norm(dim=-1).mean()
    assert panels[1, 1].texts[0].get_text() == f"end-point error {error:.1f} pixels"
    for axes, side in ((panels[1, 0], "source"), (panels[1, 1], "target"), (panels[1, 3], "source")):
        height, width = pairs[1][side].shape[1:]  # an image covers the places from (0, 0) to (width, height)
        assert list(axes.images[0].get_extent()) == [0, width, height, 0]
    assert saved(figure).startswith(b"\x89PNG")


def test_a_pair_without_a_match():
    figure = draw_pairs([pair(count=0)], matcher(), [0])
    assert figure.axes[1].texts[0].get_text() == "end-point error no match"
    with pytest.raises(ValueError, match="item 0 has no known matches"):
        draw_pairs([pair(known=False)], matcher(), [0])


def test_lines_between_two_images():
    """As many as are told apart, spread over the list; ends in the second image lie behind the first and a gap."""
    source, target = (np.full((height, width, 3), 99, np.uint8) for height, width in ((20, 30), (24, 18)))
    pairs = [([i % 30, i % 20], [i % 18, i % 24], 1 - i / 100) for i in range(90)]
    places = np.full((20, 30, 2), np.nan)
    places[3, 4] = 17.9, 23.9
    target[23, 17] = 7
    figure = draw_matches(source, target, pairs, places, "left and $right$")
    both, _, warped = figure.axes
    lines = [line.get_xydata() for line in both.lines if line.get_linestyle() == "-"]
    assert len(lines) == 30
    x, y = lines[-1].T  # the surest, drawn last
    assert (x.tolist(), y.tolist()) == ([0, 38], [0, 0])
    pixels = warped.images[0].get_array()
    assert (pixels[3, 4] == 7).all()
    assert (np.delete(pixels.reshape(-1, 3), 3 * 30 + 4, 0) == 255).all()
    assert saved(figure).startswith(b"\x89PNG")
