"""Where networks look that have dropped pixels: on the grid, blank where nothing is left."""

import numpy as np
import pytest
import torch
from networks import fill

from attlas import backbones
from attlas.backbones.inspection.attention_maps import draw, look

PLACE = (0.3, 0.7)


def lite(**options):
    torch.manual_seed(0)
    network = backbones.systems()["DependencyViT"]
    return fill(
        network(dim=24, depth=3, heads=3, patch_size=8, prune_blocks=(0,), prune_ratio=0.5, num_classes=3, **options)
    ).eval()


def image():
    return torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("classes", [3, None])
def test_maps_of_what_is_left_are_on_the_grid(classes):
    network, notes = lite(), {}
    seen = look(lite() if classes else backbone(), image(), PLACE)
    assert [one.maps.shape for one in seen] == [(3, 6, 8)] * 2
    assert np.isfinite(seen[0].maps).all()
    for _ in network.levels(network.check(image()), notes):
        pass
    left = np.zeros(48, bool)
    left[notes["pruned"].places[0]] = True
    assert left.sum() == 24
    assert (np.isfinite(seen[1].maps) == left.reshape(6, 8)).all()
    found = network.dependencies(image(), 2)
    row, column = int(seen[1].place[0] * 6), int(seen[1].place[1] * 8)
    at = found.places[0].tolist().index(8 * row + column)
    expected = np.full(48, np.nan, np.float32)
    expected[found.places[0]] = found.mask[0, at]
    np.testing.assert_allclose(seen[1].maps.sum(0).flatten(), expected, rtol=1e-4, atol=1e-7)
    assert "levels" not in vars(network)


def backbone():
    dense = backbones.systems()["DependencyViT"](
        dim=24, depth=3, heads=3, patch_size=8, prune_blocks=(0,), prune_ratio=0.5
    )
    state = {name: value for name, value in lite().state_dict().items() if name in dense.state_dict()}
    dense.load_state_dict(state, strict=False)
    return dense.eval()


@torch.no_grad()
def test_a_place_that_was_dropped_is_the_nearest_that_is_left():
    network, notes = lite(), {}
    for _ in network.levels(network.check(image()), notes):
        pass
    left = notes["pruned"].places[0]
    places = torch.stack([left // 8, left % 8], 1)
    for pixel in range(48):
        asked = (pixel // 8 + 0.5) / 6, (pixel % 8 + 0.5) / 8
        place = look(network, image(), asked)[1].place
        if pixel in left.tolist():
            assert place == asked
        near = (places - torch.tensor([pixel // 8, pixel % 8])).square().sum(1)
        row, column = int(place[0] * 6), int(place[1] * 8)
        assert 8 * row + column in left.tolist()
        assert (row - pixel // 8) ** 2 + (column - pixel % 8) ** 2 == near.min()


def test_what_was_dropped_is_pale():
    """The scale is that of what is left."""
    seen = look(lite(), image(), PLACE)
    figure = draw(np.zeros((48, 64, 3), np.uint8), seen)
    assert any("24 left" in axes.get_title() for axes in figure.axes)
    means = [axes.images[0].get_array() for axes in figure.axes if axes.get_title() == "mean of 3"]
    dropped = np.isnan(seen[1].maps[0]).repeat(8, 0).repeat(8, 1)
    assert (means[1][dropped] == int(0.55 * 255)).all()
    assert (means[1][~dropped] != int(0.55 * 255)).any(-1).all()
