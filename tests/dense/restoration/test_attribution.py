"""Local attribution maps: what theory says of them."""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import fill
from small_restorers import SmallUpscaler
from torch import nn
from torch.testing import assert_close

from attlas.backbones.inspection.capture import look
from attlas.backbones.inspection.normgrad import normgrad
from attlas.dense.restoration import HAT, FFNetSR
from attlas.dense.restoration.attribution import (
    Attribution,
    blurred,
    differences,
    gini,
    local_attribution,
    mean_of_patch,
    psnr_of_patch,
    sobel,
)

PICTURE = torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))


def index(values):
    return Attribution(torch.tensor(values).view(1, 1, -1), torch.empty(0), (0.0, 0.0)).diffusion_index


class Nearest(nn.Module):
    """Every pixel `scale` x `scale` times."""

    scale, multiple = 2, 1

    def forward(self, x):
        return F.interpolate(x, scale_factor=self.scale, mode="nearest")


def test_index_of_known_maps():
    assert gini(torch.ones(50)) == pytest.approx(0)
    assert gini(torch.tensor([0.0, 0.0, 0.0, 2.0])) == pytest.approx(3 / 4)
    assert gini(torch.tensor([3.0, 1.0])) == pytest.approx(1 / 4)
    assert index([1.0] * 100) == pytest.approx(100)
    assert index([0.0] * 999 + [5.0]) == pytest.approx(0.1)
    assert index([-2.0, 2.0]) == pytest.approx(100)  # a size counts, and no sign
    assert math.isnan(index([0.0, 0.0]))


def test_area():
    found = Attribution(torch.tensor([[[0.0, 5.0], [-4.0, 1.0]]]), torch.empty(0), (0.0, 0.0))
    assert found.area(0.9).tolist() == [[False, True], [True, False]]
    assert found.area(0.91).tolist() == [[False, True], [True, True]]
    assert found.area(0.5).sum() == 1
    assert not Attribution(torch.zeros(1, 2, 2), torch.empty(0), (0.0, 0.0)).area().any()


def test_edges():
    """A slope of 3 rows down and 4 columns to the right, and a flat picture, whose slope is finite."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    slope = (3 * rows + 4 * columns)[None, None]
    assert_close(differences(slope)[..., :-1, :-1], torch.full((1, 1, 5, 6), 5.0))
    assert_close(sobel(slope)[..., 1:-1, 1:-1], torch.full((1, 1, 4, 5), 40.0))
    for edges in (differences, sobel):
        flat = torch.full((1, 2, 4, 4), 0.5, requires_grad=True)
        edges(flat).sum().backward()
        assert torch.equal(flat.grad, torch.zeros_like(flat))


def test_blur():
    image = PICTURE[None]
    assert blurred(image, 0, 4) is image
    assert_close(blurred(image, 1e-3, 4), image)
    assert_close(blurred(torch.ones(1, 2, 9, 9), 1.2, 4), torch.ones(1, 2, 9, 9))
    point = torch.zeros(1, 1, 15, 15)
    point[..., 7, 7] = 1
    taps = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * 1.2**2))
    assert_close(blurred(point, 1.2, 4)[0, 0, 7, 3:12], taps * taps[4] / taps.sum() ** 2)


def test_convolutions_look_no_farther_than_they_can():
    """Five convolutions of 3 x 3, one row and column more for the difference; exactly nothing outside."""
    network = fill(FFNetSR(2, dim=16, depth=1))
    found = local_attribution(network, PICTURE, (30, 40), 10, steps=3).map
    inside = torch.zeros_like(found, dtype=torch.bool)
    inside[15 - 5 : 20 + 1 + 5, 20 - 5 : 25 + 1 + 5] = True
    assert (found[~inside] == 0).all()
    assert (found[inside] > 0).double().mean() > 0.98  # without the corners, all four
    for edge in (found[10], found[25], found[:, 15], found[:, 30]):
        assert edge.max() > 0


@pytest.mark.parametrize("edges", ["differences", "sobel"])
def test_attributions_sum_to_what_the_blur_took_away(edges):
    network = fill(FFNetSR(2, dim=16, depth=1))
    errors = []
    for steps in (2, 8, 32):
        found = local_attribution(network, PICTURE, (30, 40), 16, steps, edges=edges)
        before, after = found.detected
        errors.append(abs(float(found.signed.sum()) - (after - before)) / (after - before))
    assert errors[2] < 2e-3
    assert errors[2] < errors[0] / 4


def test_of_a_known_network():
    """Of nearest neighbors the pixels of the patch alone take part, and the details are those of the picture."""
    found = local_attribution(Nearest(), PICTURE, (20, 20), 2, steps=20)  # one pixel, and its next row and column
    assert found.map.nonzero().tolist() == [[10, 10], [10, 11], [11, 10]]
    assert torch.equal(found.restored, Nearest()(PICTURE[None])[0])
    expected = differences(found.restored[None])[..., 20:22, 20:22].sum()
    assert found.detected[1] == pytest.approx(float(expected), rel=1e-5)
    flat = local_attribution(Nearest(), torch.full((3, 20, 20), 0.5), (4, 4), 8, steps=2)
    assert math.isnan(flat.diffusion_index)


def small_hat(**options):
    common = dict(dim=16, depths=(1,), heads=2, window=8, compress=4, squeeze=4, channel_scale=0)
    return fill(HAT(2, **{**common, **options}))


def reached(network, **options):
    """Of a patch in the middle of the window of rows 16 to 23 and columns 24 to 31."""
    seen = local_attribution(network, PICTURE, (36, 52), 6, steps=2, **options).map.nonzero()
    return [*seen.amin(0).tolist(), *seen.amax(0).tolist()]


def test_hat_reaches_beyond_the_window_of_the_patch():
    """Four convolutions of 3 x 3 lie around the body, so that windows alone reach the next ones and no farther.
    Overlapping windows, of 12 pixels, do."""
    plain = reached(small_hat(overlap_mixer="none"))
    assert plain[0] >= 8 - 1
    assert plain[1] >= 16 - 1
    assert plain[2] <= 31 + 1
    assert plain[3] <= 39 + 1
    beyond = reached(small_hat())
    assert beyond[0] < plain[0]
    assert beyond[1] < plain[1]
    assert beyond[2] > plain[2]
    everything = local_attribution(small_hat(channel_scale=0.01), PICTURE, (36, 52), 6, steps=2)
    assert (everything.map > 0).double().mean() > 0.99  # channel attention has the mean over all pixels


def test_what_is_refused():
    def told(message, *arguments, picture=PICTURE, **options):
        with pytest.raises(ValueError, match=message):
            local_attribution(Nearest(), picture, *arguments, **options)

    told("the patch is not inside the restored picture of 96 x 80 pixels; its first row may be 0 to 64", (65, 0), 16)
    told("its first column may be 0 to 80", (64, 81), 16)
    told("its first row may be 0 to 64", (-1, 0), 16)
    told("side=81: the restored picture has 96 x 80 pixels", (0, 0), 81)
    told("side is 0; ", (0, 0), 0)
    told("steps is 0; ", (0, 0), 4, 0)
    told("sigma is 0; it must be positive", (0, 0), 4, sigma=0)
    told("edges is 'canny'", (0, 0), 4, edges="canny")
    told("the picture has 4 x 4 pixels; a blur of radius=4 needs more", (0, 0), 4, picture=torch.rand(3, 4, 4))
    told(r"image must be floats .* torch.uint8 of \(1, 3, 9, 9\)", (0, 0), 4, picture=torch.zeros(3, 9, 9).byte())


# --- patches as scores -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["first", "input"])
def test_the_score_of_a_patch(layer):
    """By hand; NormGrad is ‖a‖ ‖g‖ of it, nothing beyond the reach of the patch, and the same one by one."""
    torch.manual_seed(0)
    network = SmallUpscaler(start=0.1).eval()
    x, truth = torch.rand(2, 3, 20, 28), torch.rand(2, 3, 40, 56)
    place, side = (12, 30), 8
    output = network(x)
    patch, wanted = (y[..., 12:20, 30:38] for y in (output, truth))
    psnr, mean = psnr_of_patch(truth, place, side), mean_of_patch(place, side)
    assert_close(psnr(output), 10 * torch.log10(1 / (patch - wanted).square().mean((1, 2, 3))))
    assert_close(mean(output), patch.mean((1, 2, 3)))
    for score in (psnr, mean):
        (together,) = normgrad(network, x, score, layer)
        (seen,) = look(network, x, score, layer)
        assert_close(together, seen.activation.norm(dim=1) * seen.gradient.norm(dim=1))
        assert together[:, 7:9, 16:18].min() > 0
        together[:, 3:13, 12:22] = 0  # the patch is rows 6 to 9, columns 15 to 18
        assert not together.any()
        (again,) = normgrad(network, x, score, layer)
        for i in range(2):
            of_one = psnr_of_patch(truth[i : i + 1], place, side) if score is psnr else score
            assert_close(normgrad(network, x[i : i + 1], of_one, layer)[0][0], again[i], rtol=1e-4, atol=1e-7)
    for wrong in ((33, 0), (0, 49), (-1, 0)):
        with pytest.raises(ValueError, match="the patch is not inside the picture of 56 x 40 pixels"):
            normgrad(network, x, mean_of_patch(wrong, side), layer)
