"""The restorer: modes, losses, tiles without seams, symmetries, half precision, bad batches."""

import re

import numpy as np
import pytest
import torch
from small_restorers import SmallUpscaler
from torch import nn

from attlas.dense.restoration import restorer as module
from attlas.dense.restoration.restorer import (
    LOSSES,
    Restorer,
    ensemble,
    padded,
    reach,
    symmetry,
    tiles,
    unsymmetry,
)

NETWORK = dict(type="SmallUpscaler", start=0.1)


def pictures(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(module, "print_log", lambda text, **_: lines.append(text))
    return lines


# --- modes -----------------------------------------------------------------------------------------------------------


def test_modes():
    model = Restorer(NETWORK, losses=dict(l1=2.0, frequency=0.1)).eval()
    image, truth = pictures(2, 3, 9, 13), pictures(2, 3, 18, 26, seed=1)
    output = model(image)
    assert output.shape == (2, 3, 18, 26)
    losses = model(image, truth, mode="loss")
    assert set(losses) == {"loss_l1", "loss_frequency", "psnr"}
    assert torch.isclose(losses["loss_l1"], 2 * (output - truth).abs().mean())
    first, second = model(image, truth, ["a.png", "b.png"], mode="predict")
    assert torch.equal(first["restored"], output[0].clamp(0, 1))
    assert torch.equal(second["truth"], truth[1])
    assert second["name"] == "b.png"
    assert second["scale"] == 2
    assert model(image, mode="predict")[1]["truth"] is None


def test_a_step_of_training_and_of_test_take_batches_of_the_data():
    model = Restorer(NETWORK)
    batch = dict(image=list(pictures(2, 3, 8, 8)), truth=list(pictures(2, 3, 16, 16)), name=["a", "b"])
    wrapper = type("Wrapper", (), dict(update_params=lambda self, loss: loss.backward()))()
    wrapper.optim_context = lambda model: torch.enable_grad()
    log = model.train_step(batch, wrapper)
    assert torch.isfinite(log["loss"])
    assert model.network.first.weight.grad.abs().sum() > 0
    assert len(model.test_step(batch)) == 2


def test_losses_by_hand():
    restored, truth = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 0.0], [0.0, 0.4]]]])
    assert LOSSES["l1"](restored, truth).item() == pytest.approx(0.1)
    assert LOSSES["mse"](restored, truth).item() == pytest.approx(0.04)
    assert LOSSES["charbonnier"](restored, truth).item() == pytest.approx((0.003 + 0.4) / 4, abs=1e-5)
    two = torch.cat([truth, truth + 0.1])  # of each image alone
    assert LOSSES["psnr"](torch.zeros_like(two), two).item() == pytest.approx(
        5 * np.log10(0.04) + 5 * np.log10((0.25 + 3 * 0.01) / 4), abs=1e-4
    )
    # the transform of one pixel: 0.4, -0.4; -0.4, 0.4, all real: half of the eight numbers
    assert LOSSES["frequency"](restored, truth).item() == pytest.approx(0.2)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_have_gradients_where_nothing_differs(name):
    same = pictures(1, 3, 8, 8).requires_grad_()
    LOSSES[name](same, same.detach().clone()).backward()
    assert torch.isfinite(same.grad).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (4, 4), (9, 5)])
def test_any_size(size):
    network = SmallUpscaler(3, start=0.1, multiple=16)
    assert padded(network, pictures(1, 3, *size)).shape == (1, 3, 3 * size[0], 3 * size[1])


def test_no_padding_where_none_is_needed():
    network = SmallUpscaler(start=0.1)
    image = pictures(1, 3, 16, 8)
    assert torch.equal(padded(network, image), network(image))


# --- tiles -----------------------------------------------------------------------------------------------------------


def test_reach_is_measured():
    # two convolutions see 2 pixels, and bicubic upsampling of pixel 2i reads from i - 2 to i + 1
    assert reach(SmallUpscaler(start=0.1), share=1) == 2
    assert reach(SmallUpscaler(start=0.0), share=1) == 2
    assert reach(identity(), share=1) == 0
    far = nn.Sequential(nn.Conv2d(3, 3, 9, padding=4), nn.Conv2d(3, 3, 5, padding=2))
    far.scale, far.multiple = 1, 8
    assert reach(far, share=1) == 6
    assert 0 < reach(far, share=0.5) < 6


def identity():
    network = nn.Identity()
    network.scale, network.multiple = 1, 1
    return network


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("size", [(70, 45), (16, 100), (7, 7), (64, 33)])
def test_tiles_equal_the_whole_picture(scale, size):
    network = SmallUpscaler(scale, start=0.1, multiple=4).eval()
    image = pictures(2, 3, *size)
    calls = []
    with torch.no_grad():
        whole = padded(network, image)
        got = tiles(network, image, tile=24, overlap=12, progress=lambda *done: calls.append(done))
    torch.testing.assert_close(got, whole, atol=1e-5, rtol=0)
    assert calls == [(n + 1, len(calls)) for n in range(len(calls))]
    assert (len(calls) > 1) == (max(size) > 24)


def test_seams_show_without_overlap_and_vanish_with_it():
    network = SmallUpscaler(start=0.3, multiple=1).eval()
    image = pictures(1, 3, 60, 60)
    with torch.no_grad():
        whole = network(image)
        errors = [(tiles(network, image, 20, overlap) - whole).abs().max().item() for overlap in (0, 8)]
    assert errors[0] > 1e-2
    assert errors[1] < 1e-5


def test_weights_sum_to_one():
    for length in range(1, 90, 7):
        for tile, overlap in ((16, 8), (16, 0), (17, 5), (31, 1)):
            total = torch.zeros(2 * length)
            for start, weight in module._shares(length, tile, tile - overlap, overlap, 2):
                total[2 * start : 2 * start + len(weight)] += weight
            torch.testing.assert_close(total, torch.ones(2 * length))


def test_the_network_sees_no_more_than_a_tile():
    sizes = []
    network = SmallUpscaler()
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    with torch.no_grad():
        restorer_of(network, tile=32, overlap=8).restore(pictures(1, 3, 200, 300))
    assert max(sizes) == (32, 32)


def test_a_narrow_picture_counts_as_it_is_filled_up(monkeypatch):
    """A row of 900 pixels is 8 x 904, more than a tile of 64 x 64, whose memory is the bound."""
    areas = []
    network = SmallUpscaler(multiple=8)
    network.register_forward_pre_hook(lambda _, inputs: areas.append(inputs[0][0, 0].numel()))
    monkeypatch.setattr(module, "LARGE", 64)
    with torch.no_grad():
        for size in ((1, 900), (900, 1)):
            assert restorer_of(network, tile="auto").restore(pictures(1, 3, *size)).shape[2:] == (
                2 * size[0],
                2 * size[1],
            )
    assert max(areas) == 64**2


def restorer_of(network, **options):
    model = Restorer(NETWORK, **options).eval()
    model.network = network
    return model


def test_overlap_is_measured_once(said):
    model = Restorer(NETWORK, tile=32).eval()
    image = pictures(1, 3, 50, 50)
    with torch.inference_mode():  # as an inferencer asks
        got = model.restore(image)
        model.restore(image)
    assert model.overlap is None
    assert said == ["tiles of 32 overlap by 8 pixels, as measured."]
    torch.testing.assert_close(got, model(image), atol=1e-5, rtol=0)


class Far(nn.Module):
    """Means over `distance` pixels to the left and right, and `share` times that of the picture."""

    scale, multiple, in_channels = 1, 4, 3

    def __init__(self, distance, share=0.0):
        super().__init__()
        self.distance, self.share = distance, share

    def forward(self, x):
        near = nn.functional.avg_pool2d(x, (1, 2 * self.distance + 1), 1, (0, self.distance))
        return near + self.share * x.mean((2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("network", "tile", "overlap", "words"),
    [
        (Far(6), 48, 24, "tiles of 48 overlap by 24 pixels, as measured."),
        (Far(6), 44, 22, "reads 6 pixels far, which wants an overlap of 24; tiles of 44 overlap by 22, .* from 48 on"),
        (Far(40), 400, 160, "tiles of 400 overlap by 160 pixels, as measured."),  # farther than 64 / 2
        (
            Far(0, share=100.0),
            96,
            48,
            "reads at least 32 pixels far, .* overlap of 128; .* may show. Tiles from 256 on",
        ),
    ],
)
def test_an_overlap_that_is_less_than_wanted_is_told(said, network, tile, overlap, words):
    model = restorer_of(network, tile=tile)
    with torch.no_grad():
        model.restore(pictures(1, 3, tile + 4, 8))
    assert model._overlap(tile, 3) == overlap
    assert len(said) == 1
    assert re.search(words, said[0])
    other = restorer_of(network, tile=tile)
    other.configure(tile=512)  # which measures anew, over more
    assert other._overlap(512, 3) >= overlap


def test_integers_of_any_type_are_sides():
    options = dict(tile=np.int64(16), overlap=torch.tensor(8))
    model = Restorer(NETWORK, **options).eval()
    assert (model.tile, model.overlap) == (16, 8)
    assert isinstance(model.tile, int)
    image = pictures(1, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(tiles(model.network, image, **options), tiles(model.network, image, 16, 8))
    with pytest.raises(ValueError, match=r"overlap is 1\.5"):
        tiles(model.network, image, 16, 1.5)


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (14, 0), (16, 9), (16, -1), (4, 1)])
def test_bad_tiles(tile, overlap):
    with pytest.raises(ValueError, match=r"^tile is (0|14)|^overlap is (9|-1|1)"):
        tiles(SmallUpscaler(), pictures(1, 3, 8, 8), tile, overlap)


def test_a_network_that_is_of_another_scale_than_it_says():
    network = identity()
    network.scale = 4
    with pytest.raises(ValueError, match=r"Identity has scale=4, and made \(1, 3, 8, 8\)"):
        tiles(network, pictures(1, 3, 8, 8))


# --- half precision --------------------------------------------------------------------------------------------------


class Overflowing(nn.Module):
    """Bright pictures leave the range of float16 on the way through a product."""

    scale, multiple = 1, 1

    def __init__(self):
        super().__init__()
        self.large = nn.Linear(3, 3, bias=False)
        nn.init.constant_(self.large.weight, 40_000.0)

    def forward(self, x):
        return self.large(x.movedim(1, -1)).movedim(-1, 1) / 120_000


def test_a_tile_that_is_not_finite_in_half_precision_is_done_again(said):
    network = Overflowing().eval()
    image = 0.1 * pictures(1, 3, 16, 48)
    image[..., 32:] = 0.9  # in one of three tiles
    with torch.no_grad():
        exact = tiles(network, image, 16)
        assert not said
        got = tiles(network, image, 16, half=torch.float16)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, exact, atol=1e-3, rtol=0)
    assert torch.equal(got[..., 32:], exact[..., 32:])
    assert not torch.equal(got[..., :32], exact[..., :32])  # those stayed in half precision
    assert said == ["1 of 3 tiles were not finite in float16, and were done again in float32."]


def test_what_is_not_finite_in_float32_either_is_an_error():
    network = Overflowing()
    nn.init.constant_(network.large.weight, float("nan"))
    with pytest.raises(ValueError, match=r"rows from 0, columns from 0.*float32"):
        tiles(network, pictures(1, 3, 8, 8), half=torch.float16)
    with pytest.raises(ValueError, match="the network gives NaN or infinite numbers"):  # where its reach is measured
        restorer_of(network, tile=16).restore(pictures(1, 3, 20, 20))


# --- symmetries ------------------------------------------------------------------------------------------------------


def test_the_eight_symmetries_and_back():
    image = pictures(1, 2, 3, 4)
    forms = [symmetry(image, number) for number in range(8)]
    assert len({form.numpy().tobytes() + str(form.shape).encode() for form in map(torch.clone, forms)}) == 8
    for number, form in enumerate(forms):
        assert torch.equal(unsymmetry(form, number), image)


def test_self_ensemble_is_equivariant_and_another_result():
    model = Restorer(NETWORK, ensemble=True).eval()
    image = pictures(1, 3, 12, 20)
    with torch.no_grad():
        mean = model.restore(image)
        for number in range(8):
            turned = model.restore(symmetry(image, number).contiguous())
            torch.testing.assert_close(turned, symmetry(mean, number), atol=1e-5, rtol=0)
        assert (mean - model(image)).abs().max() > 1e-3
    # of a network without a preference it changes nothing
    torch.testing.assert_close(ensemble(lambda x: 2 * x, image), 2 * image)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_scale_of_the_data():
    model = Restorer(NETWORK)
    with pytest.raises(ValueError, match="network has scale=2, and the data have scale 3"):
        model(pictures(1, 3, 8, 8), pictures(1, 3, 24, 24), mode="loss")
    with pytest.raises(ValueError, match="no one scale"):
        model(pictures(1, 3, 8, 8), pictures(1, 3, 24, 16), mode="predict")


def test_bad_batches():
    model = Restorer(NETWORK)
    nan = pictures(3, 8, 8)
    nan[0, 1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"image 1 of the batch \(b\.png\) holds NaN"):
        model.test_step(dict(image=[pictures(3, 8, 8), nan], name=["a.png", "b.png"]))
    with pytest.raises(ValueError, match=r"one shape.*batch_size=1"):
        model.test_step(dict(image=[pictures(3, 8, 8), pictures(3, 8, 9)]))
    with pytest.raises(ValueError, match="uint8"):
        model.test_step(dict(image=torch.zeros(1, 3, 8, 8, dtype=torch.uint8)))
    with pytest.raises(ValueError, match="empty"):
        model.test_step(dict(image=[]))
    with pytest.raises(ValueError, match="needs the true pictures"):
        model(pictures(1, 3, 8, 8), mode="loss")


def test_a_training_that_diverged_stops():
    model = Restorer(NETWORK)
    nn.init.constant_(model.network.last.bias, np.inf)
    with pytest.raises(FloatingPointError, match="diverged"):
        model(pictures(1, 3, 8, 8), pictures(1, 3, 16, 16), mode="loss")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(losses={}), "losses is empty"),
        (dict(losses=dict(L1=1.0)), "Did you mean 'l1'"),
        (dict(losses=dict(l1=0)), "weight of 'l1' is 0"),
        (dict(half="fp16"), "half is 'fp16'"),
        (dict(overlap=8), "tile=None"),
        (dict(tile=16, overlap=9), "half of tile=16"),
        (dict(tile=18), "multiple of 4"),
        (dict(tile=16.0), r"tile is 16\.0; it must be an integer"),
        (dict(tile=[16]), r"tile is \[16\]; it must be an integer"),
        (dict(tile=16, overlap=1.5), r"overlap is 1\.5; it must be an integer"),
        (dict(tile=16, overlap="4"), "overlap is '4'; it must be an integer"),
        (dict(network=dict(type="PooledHead", num_classes=2, in_channels=2)), "no integer scale and multiple"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        Restorer(**{"network": NETWORK, **options})
