"""Pictures of artefacts: what is computed for them, and the command that draws them."""

import numpy as np
import pytest
import torch
from networks import build

from attlas import backbones
from attlas.backbones.inspection.registers import draw, look
from attlas.backbones.ph_reg import artefacts


def network(**options):
    torch.manual_seed(0)
    return backbones.systems()["ViT"](24, 2, 3, patch_size=8, img_size=32, **options).eval()


def test_what_is_seen():
    """The plain map is the network's, of whole patches; the denoised one is smoother where places leave a pattern."""
    model, image = network(), torch.randn(1, 3, 36, 52)
    with torch.no_grad():
        model.position.weight[:, 1:].normal_()
    plain, clean = look(model, image, "vit", views=6, shift=0.3)
    assert torch.equal(plain.map, model(image[..., :32, :48])[-1][0])
    assert clean.map.shape == plain.map.shape == (24, 4, 6)
    assert artefacts(clean.map[None])["roughness"] < artefacts(plain.map[None])["roughness"]
    again = look(model, image, "vit", views=6, shift=0.3)[1]
    assert torch.equal(again.map, clean.map)
    assert not torch.equal(look(model, image, "vit", views=6, shift=0.3, seed=1)[1].map, clean.map)
    torch.testing.assert_close(clean.basis.T @ clean.basis, torch.eye(3), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="image of 7 x 52 is smaller than a pixel of the map, 8"):
        look(model, image[..., :7, :], "vit")


@pytest.mark.parametrize("system", ["PHReg", "SHViT"])
def test_any_network_is_drawn(system):
    """A pyramid, too, and a classifier."""
    model = build(system, num_classes=3)
    looks = look(model, torch.randn(1, 3, 128, 192), "network", views=2)
    figure = draw(np.zeros((128, 192, 3), np.uint8), looks, "title")
    titles = [axes.get_title() for axes in figure.axes]
    assert sum("roughness" in title for title in titles) == 2
    assert sum("outliers" in title for title in titles) == 2
    assert f"{looks[0].map.shape[1]} x {looks[0].map.shape[2]} pixels" in titles[0]
