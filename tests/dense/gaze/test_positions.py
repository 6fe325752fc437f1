"""Tables whose cosines fall as a Gaussian, learned and in closed form; sinusoids; places outside; boxes on a grid."""

import math

import pytest
import torch
from torch.testing import assert_close

from attlas.dense.gaze.positions import (
    GridPositions,
    cells_of_boxes,
    gaussian_similarity,
    gaussian_table,
    learn_table,
    sinusoid_table,
    step_sinusoids,
)


def cosines(table):
    rows = table.double() / table.double().norm(dim=1, keepdim=True)
    return rows @ rows.T


def mean_error(table, sigma=2.0):
    return float((cosines(table) - gaussian_similarity(len(table), sigma)).abs().mean())


def test_the_learned_table_nears_the_gaussian():
    """14 rows of 86, as for book covers. The authors take 10,000 steps."""
    table = learn_table(14, 86, steps=1000)
    assert mean_error(table) < 2e-3
    assert float(table.norm(dim=1).std() / table.norm(dim=1).mean()) < 1e-2
    assert mean_error(learn_table(14, 86, steps=1)) > 0.1


@pytest.mark.parametrize(("positions", "sigma"), [(14, 2.0), (11, 2.5), (86, 2.0), (1, 1.0)])
def test_the_table_in_closed_form_is_exact(positions, sigma):
    table = gaussian_table(positions, 86, sigma)
    assert table.shape == (positions, 86)
    assert mean_error(table, sigma) < 1e-6
    assert_close(table.norm(dim=1), torch.full((positions,), 86**0.5), rtol=1e-5, atol=0)


def test_places_outside_have_zeros():
    places = torch.tensor([[1.0, 2.5, 1.0], [3.0, 0.0, 0.0], [0.0, 99.0, 0.0]])
    learned = GridPositions(3, 4, 10)
    found = learned(places)
    assert found.shape == (3, 10)
    table = learned.table
    assert_close(found[0], torch.cat([table[1], table[2], table[1]])[:10])  # the fraction is cut off
    assert_close(found[2], torch.cat([table[0], torch.zeros(4), table[0]])[:10])
    waves = GridPositions(3, 4, 10, "linear", alpha=0.5)(places)
    assert_close(waves[0], sinusoid_table(3, 4, 10, "linear", 0.5)[1, 2, 1])
    assert (waves[1:] == 0).all()
    larger = GridPositions(2, 4, 10, "linear", positions=(4, 11), alpha=0.5)(places)
    assert_close(larger[1], sinusoid_table(4, 11, 10, "linear", 0.5)[3, 0, 0])
    for kind, positions in (("linear", 4), ("learned", (3, 4))):
        with pytest.raises(ValueError, match="positions is"):
            GridPositions(2, 4, 10, kind, positions)


@pytest.mark.parametrize("spacing", ["original", "exp1", "exp2", "linear"])
def test_sinusoids_by_their_formulas(spacing):
    alpha, channels = 1.5, 4  # 2 ceil(10 / 6)
    frequencies = dict(
        original=[1, 10000 ** (-2 / channels)],
        exp1=[0, 2**alpha / channels],
        exp2=[0, (2 / channels) ** alpha],
        linear=[0, 2 * alpha / channels],
    )[spacing]
    table = sinusoid_table(3, 5, 10, spacing, alpha)
    assert table.shape == (3, 5, 2, 10)
    for axis, place in enumerate((2, 4)):
        waves = [wave(place * f) for f in frequencies for wave in (math.sin, math.cos)]
        assert_close(table[2, 4, 1, 4 * axis : 4 * axis + 4], torch.tensor(waves), rtol=1e-5, atol=1e-6)


def test_steps_have_the_usual_sinusoids():
    found, angle = step_sinusoids(5, 6, torch.zeros(1)), 3 * 10000 ** (-2 / 6)
    assert_close(found[3, 2:4], torch.tensor([math.sin(angle), math.cos(angle)]))
    assert (found[0] == torch.tensor([0, 1, 0, 1, 0, 1])).all()


def test_boxes_lie_on_the_grid_by_their_centers():
    boxes = torch.tensor([[0, 0, 20, 10], [180, 90, 200, 110], [90, 40, 110, 60], [190, 95, 210, 105]])
    assert cells_of_boxes(boxes, (100, 200), 4, 5).tolist() == [[0, 0], [3, 4], [2, 2], [3, 4]]
    for changed, message in (
        (boxes + 200, r"box 0 \(200, 200, 220, 210\) lies outside the picture of 200 x 100"),
        (boxes * float("nan"), "center of box 0"),
        (boxes[:, :3], r"must be \(N, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            cells_of_boxes(changed, (100, 200), 4, 5)
