"""Which prompts are picked: what is computed for the picture, and what the picture says."""

import numpy as np
import pytest
import torch
from networks import fill

from attlas.backbones.inspection.prompts import draw, look
from attlas.backbones.tcpa import TCPA

SMALL = dict(dim=48, depth=3, heads=4, img_size=32, patch_size=8, num_classes=5)
POOLS = dict(class_pool=5, image_pool=6, class_length=2, image_length=3, class_topk=2, image_topk=3)


def small(**options):
    torch.manual_seed(0)
    return fill(TCPA(**{**SMALL, **POOLS, **options})).eval()


def image():
    return torch.randn(1, 3, 32, 44, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("block", "registers", "base"), [(0, 0, "deep"), (1, 2, "deep"), (-1, 0, "shallow"), (-1, 2, "deep")]
)
def test_the_picks_are_those_that_the_network_sees(block, registers, base):
    """At that block, without those of registers, on the grid of patches."""
    network, notes = small(registers=registers, base=base), {}
    seen = look(network, image(), block)
    for number, _ in enumerate(network.levels(network.check(image()), notes)):
        if number == block % 3:
            break
    of_class, of_image = notes["allowed"][0].split([10, 18], dim=1)
    assert seen.cosines.shape == (4, 6, 6)
    assert of_class[0].unflatten(0, (5, 2)).all(1).nonzero().flatten().tolist() == sorted(seen.class_groups.tolist())
    groups = of_image[1 + registers :].unflatten(1, (6, 3)).all(2).unflatten(0, (4, 6))
    assert torch.equal(torch.zeros_like(groups).scatter(2, seen.groups, True), groups)
    ordered = seen.cosines.sort(-1, descending=True)
    torch.testing.assert_close(seen.cosines.gather(2, seen.groups), ordered.values[..., :3])
    assert seen.class_groups.tolist() == seen.class_cosines.topk(2).indices.tolist()
    torch.testing.assert_close(seen.shares(), groups.float().mean((0, 1)))


def test_the_picture():
    """Every patch has the number of its first group, that of its key with the largest cosine; shares are means."""
    seen, other = look(small(), image()), look(small(), torch.zeros(1, 3, 32, 32))
    figure = draw(np.zeros((32, 44, 3), np.uint8), seen, 8, "title", [other])
    _, middle, right, of_class, of_image, *_ = figure.axes
    assert [int(text.get_text()) for text in middle.texts] == seen.cosines.argmax(-1).flatten().tolist()
    assert [text.get_position() for text in middle.texts[:2]] == [(3.5, 3.5), (11.5, 3.5)]
    np.testing.assert_allclose(right.images[0].get_array(), seen.cosines.amax(-1))
    np.testing.assert_allclose([bar.get_height() for bar in of_class.patches], seen.class_cosines, rtol=1e-6)
    dark = [bar.get_facecolor()[0] < 0.5 for bar in of_class.patches]
    assert np.flatnonzero(dark).tolist() == sorted(seen.class_groups.tolist())
    shares = [bar.get_height() for bar in of_image.patches]
    np.testing.assert_allclose(shares, 50 * (seen.shares() + other.shares()), rtol=1e-5)
    assert sum(shares) == pytest.approx(300)
    assert of_image.get_title() == "% of the patches of 2 images that pick each group, 3 of 6"


@pytest.mark.parametrize("without", ["class", "image"])
def test_one_pool_alone(without):
    seen = look(small(**{f"{without}_pool": 0}), image())
    assert (seen.class_groups is None) == (without == "class")
    assert (seen.shares() is None) == (without == "image")
    figure = draw(np.zeros((32, 44, 3), np.uint8), seen, 8)
    assert {text.get_text() for axes in figure.axes for text in axes.texts} >= {f"no {without} prompts"}


def test_what_picks_nothing():
    with pytest.raises(ValueError, match="tokens pick no prompts with coordination='roles'"):
        look(small(coordination="roles"), image())
    with pytest.raises(ValueError, match="tokens pick no prompts with class_pool=0, image_pool=0"):
        look(small(class_pool=0, image_pool=0), image())
    with pytest.raises(ValueError, match="block=3: there are 3 blocks"):
        look(small(), image(), 3)
