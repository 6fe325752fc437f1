"""NormGrad against the authors' results, its definition by an inserted identity, and the brute force."""

import pytest
import torch
import torch.nn.functional as F
from golden_records import Record
from torch import nn

from attlas.backbones.inspection.normgrad import (
    AGGREGATIONS,
    EXTRACTIONS,
    combined,
    contributions,
    linear_approximation,
    normgrad,
    proper_normgrad,
    resized,
    scaled,
    selective_normgrad,
    smoothed,
)
from attlas.backbones.inspection.saliency import meta_saliency
from attlas.backbones.inspection.targets import cross_entropy, logit


class SmallCNN(nn.Module):
    """The network of the records."""

    def __init__(self, widths=(8, 12, 16), classes=10):
        super().__init__()
        parts, before = [], 3
        for i, width in enumerate(widths):
            parts += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            parts += [nn.MaxPool2d(2)] if i + 1 < len(widths) else []
            before = width
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def of_record(name):
    record = Record(f"normgrad/{name}")
    network = SmallCNN(record.config["widths"], record.config["classes"]).double().eval()
    network.load_state_dict(record.state_dict(), strict=False)
    return record, network, record.input("x"), logit(record.config["target"])


def near(got, expected):
    torch.testing.assert_close(got.float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extraction", EXTRACTIONS)
def test_the_authors_maps(extraction):
    record, network, x, score = of_record("extract_aggregate_small_cnn")
    order = ("scaling", "conv1x1", "conv3x3", "conv3x3_depthwise", "bias")
    for j, aggregation in enumerate(AGGREGATIONS):
        (found,) = normgrad(network, x, score, record.config["layer"], extraction, aggregation)
        near(scaled(resized(found, x.shape[2:]))[0], record.output(0)[order.index(extraction), j])


def test_the_authors_combination():
    record, network, x, score = of_record("extract_aggregate_small_cnn")
    for i, extraction in enumerate(("conv1x1", "scaling", "conv3x3")):
        maps = normgrad(network, x, score, record.config["combi"], extraction)
        near(combined(maps, x.shape[2:])[0], record.output(1)[i])


def test_the_authors_methods():
    record, network, x, score = of_record("norm_grad_and_meta")
    layer, size = record.config["layer"], x.shape[2:]
    near(normgrad(network, x, score, layer)[0], record.output(0)[:, 0])
    near(selective_normgrad(network, x, score, layer)[0], record.output(1)[:, 0])
    near(proper_normgrad(network, x, score, record.config["conv_layer"])[0], record.output(2)[:, 0])
    loss, rate = cross_entropy(record.config["target"]), record.config["meta_lr"]
    for number, negate in ((3, False), (4, True)):
        (found,) = meta_saliency(normgrad, network, x, score, layer, loss, rate, negate)
        near(found, record.output(number)[:, 0])
    maps = normgrad(network, x, score, record.config["layers"])
    near(combined(maps, size, "product", "uniform"), record.output(5)[:, 0])
    near(combined(maps, size, "sum", "linear"), record.output(6)[:, 0])


# --- the definition --------------------------------------------------------------------------------------------------


def maps_of(channels=16, height=5, width=7, batch=2):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, channels, height, width, dtype=torch.float64, generator=generator) for _ in range(2))


def vectors(a, g, extraction):
    """What every place contributes, written out: (B, values, H, W)."""
    windows = F.unfold(a, 3, padding=1).unflatten(1, (a.shape[1], 9)).unflatten(3, a.shape[2:])
    return {
        "bias": lambda: g,
        "scaling": lambda: a * g,
        "conv1x1": lambda: (a[:, :, None] * g[:, None]).flatten(1, 2),
        "conv3x3": lambda: (windows[:, :, :, None] * g[:, None, None]).flatten(1, 3),
        "conv3x3_depthwise": lambda: (windows * g[:, :, None]).flatten(1, 2),
    }[extraction]()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("extraction", EXTRACTIONS)
def test_closed_forms(extraction, aggregation):
    for channels in (16, 1):
        a, g = maps_of(channels)
        for a2, g2 in ((a, g), (a.abs(), -g.abs())):  # also of one sign, where the maximum is another product
            v = vectors(a2, g2, extraction)
            positive = v.clamp(min=0)
            by_hand = dict(sum=v.sum(1), filter_norm=positive.norm(dim=1), norm=v.norm(dim=1), max=v.amax(1))
            found = contributions(a2, g2, extraction, aggregation)
            torch.testing.assert_close(found, by_hand[aggregation], rtol=1e-10, atol=1e-12)


class Inserted(nn.Module):
    """A network with an identity behind its stem: a 1x1 or 3x3 convolution, a scale or a bias."""

    def __init__(self, kind, channels=6):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.kind = nn.Conv2d(3, channels, 3), kind
        if kind in ("scaling", "bias"):
            weight = torch.ones(channels) if kind == "scaling" else torch.zeros(channels)
        else:
            side = {"conv1x1": 1, "conv3x3": 3}.get(kind, 3)
            depthwise = kind == "conv3x3_depthwise"
            weight = torch.zeros(channels, 1 if depthwise else channels, side, side)
            for c in range(channels):
                weight[c, 0 if depthwise else c, side // 2, side // 2] = 1
        self.weight = nn.Parameter(weight)
        self.rest = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.double().eval()

    def forward(self, x):
        a = self.stem(x)
        if self.kind == "bias":
            a = a + self.weight[:, None, None]
        elif self.kind == "scaling":
            a = a * self.weight[:, None, None]
        else:
            groups = a.shape[1] if self.weight.shape[1] == 1 else 1
            a = F.conv2d(a, self.weight, padding=self.weight.shape[-1] // 2, groups=groups)
        return self.rest(a)


@pytest.mark.parametrize("extraction", EXTRACTIONS)
def test_contributions_sum_to_the_gradient_of_an_inserted_identity(extraction):
    network = Inserted(extraction)
    x = torch.randn(1, 3, 9, 11, dtype=torch.float64)
    network(x)[:, 1].sum().backward()
    by_autograd = network.weight.grad
    network.zero_grad()
    v = vectors(*_layer(network, x), extraction).sum((0, 2, 3))
    if "conv" in extraction and "depthwise" not in extraction:  # (in, taps, out) -> (out, in, taps)
        out, inside, side, _ = by_autograd.shape
        v = v.unflatten(0, (inside, side * side, out)).permute(2, 0, 1)
    torch.testing.assert_close(v.flatten(), by_autograd.flatten())
    # the map of the sums over the vector is that gradient's sum
    (found,) = normgrad(network, x, logit(1), "stem", extraction, "sum")
    torch.testing.assert_close(found.sum(), by_autograd.sum())


def _layer(network, x):
    from attlas.backbones.inspection.capture import look

    (seen,) = look(network, x, logit(1), "stem")
    return seen.activation, seen.gradient


def test_invariances():
    """Another basis of the channels changes no norm; t times a is t times the map."""
    a, g = maps_of()
    basis = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    turned = [torch.einsum("dc,bchw->bdhw", basis, x) for x in (a, g)]
    for extraction in ("conv1x1", "conv3x3", "bias"):
        torch.testing.assert_close(contributions(*turned, extraction), contributions(a, g, extraction))
        factor = 1 if extraction == "bias" else 3
        torch.testing.assert_close(contributions(3 * a, g, extraction), factor * contributions(a, g, extraction))


@pytest.mark.parametrize("extraction", EXTRACTIONS)
def test_memory_grows_with_the_channels(extraction):
    """Not with their square: counted by the largest tensor that is made."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            self.found = max(self.found, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    for aggregation in AGGREGATIONS:
        a, g = maps_of(64, 4, 5)
        with Largest() as largest:
            contributions(a, g, extraction, aggregation)
        assert largest.found <= 64 * 2 * 6 * 7  # the map with its border of zeros


def test_half_precision_is_taken_in_float32():
    a, g = (1e-3 * x for x in maps_of())
    found = contributions(a.half(), g.half())  # squares of 1e-3 underflow in float16
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, contributions(a, g).float(), rtol=1e-2, atol=1e-7)


# --- real convolutions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(stride=2, padding=1),
        dict(kernel_size=(3, 2), dilation=(1, 2), padding="same"),
        dict(padding=2, padding_mode="reflect", stride=(1, 2)),
        dict(padding=1, padding_mode="circular"),
        dict(groups=2, padding=(0, 2)),
        dict(groups=4),
    ],
    ids=str,
)
def test_proper_against_the_weights_gradient_place_by_place(options):
    """The norm of what a place adds to the gradient of the convolution's own weights."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, **{"kernel_size": 3, **options}).double()
    network = nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.randn(1, 4, 7, 9, dtype=torch.float64)
    (found,) = proper_normgrad(network, x, logit(2), "0")
    y = conv(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(network[1:](y)[:, 2].sum(), y)
    for row, column in ((0, 0), (1, 2), (g.shape[2] - 1, g.shape[3] - 1)):
        only = torch.zeros_like(g)
        only[:, :, row, column] = g[:, :, row, column]
        (slope,) = torch.autograd.grad(conv(x), conv.weight, only)
        torch.testing.assert_close(found[0, row, column], slope.norm())


def test_proper_takes_convolutions():
    network = SmallCNN().eval()
    with pytest.raises(ValueError, match=r"features\.3 is a MaxPool2d; .*nn\.Conv2d"):
        proper_normgrad(network, torch.randn(1, 3, 8, 8), logit(0), ["features.4", "features.3"])
    with pytest.raises(ValueError, match="takes no grid"):
        proper_normgrad(network, torch.randn(1, 3, 8, 8), logit(0), "features.4", grid=lambda x: x)


# --- maps ------------------------------------------------------------------------------------------------------------


def test_scaled_image_by_image():
    maps = torch.tensor([[[1.0, 3.0]], [[-2.0, 6.0]], [[5.0, 5.0]]])
    assert scaled(maps).tolist() == [[[0, 1]], [[0, 1]], [[0, 0]]]  # a constant map: zeros
    assert not scaled(torch.zeros(1, 2, 2)).any()


def test_smoothed_keeps_constants_and_sums_inside():
    maps = torch.zeros(1, 21, 25, dtype=torch.float64)
    maps[0, 10, 12] = 1
    soft = smoothed(maps, 1.5)
    assert soft.sum() == pytest.approx(1)
    assert soft[0, 10, 12] == soft.max() < 0.1
    torch.testing.assert_close(smoothed(torch.ones(2, 3, 2), 2.0), torch.ones(2, 3, 2))
    with pytest.raises(ValueError, match="sigma is 0"):
        smoothed(maps, 0)


def test_combined_weights():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, n, n + 1, generator=generator) for n in (3, 5, 2)]
    size = (6, 9)
    parts = [scaled(resized(x, size)) for x in maps]
    given = combined(maps, size, "sum", [1, 0, 3])
    torch.testing.assert_close(given, 0.25 * parts[0] + 0.75 * parts[2])
    torch.testing.assert_close(combined(maps, size, "sum", "linear"), sum(w / 6 * p for w, p in zip((1, 2, 3), parts)))
    torch.testing.assert_close(combined(maps, size), parts[0] * parts[1] * parts[2])
    torch.testing.assert_close(combined(maps, size, weights=[1, 0, 0]), parts[0])
    alone = [combined([x[i : i + 1] for x in maps], size) for i in range(2)]
    torch.testing.assert_close(combined(maps, size), torch.cat(alone))
    for weights in ([1, 2], [0, 0, 0], [1, -1, 1], [1, float("nan"), 1]):
        with pytest.raises(ValueError, match="weights must be 3 numbers"):
            combined(maps, size, weights=weights)
    for wrong in (dict(how="mean"), dict(weights="unifrom")):
        with pytest.raises(ValueError, match=r"mean|unifrom"):
            combined(maps, size, **wrong)
    with pytest.raises(ValueError, match="got none"):
        combined([], size)


def test_bad_arguments():
    a, g = maps_of()
    with pytest.raises(ValueError, match=r"extraction.*conv2x2"):
        contributions(a, g, "conv2x2")
    with pytest.raises(ValueError, match=r"aggregation.*mean"):
        normgrad(SmallCNN().eval(), torch.randn(1, 3, 8, 8), logit(0), "features.3", aggregation="mean")
    with pytest.raises(ValueError, match=r"must both be \(B, C"):
        contributions(a, g[:, :4])
    with pytest.raises(ValueError, match="takes maps"):
        contributions(a.flatten(2), g.flatten(2), "conv3x3")
    assert contributions(a.flatten(2), g.flatten(2)).shape == (2, 35)


def test_gradient_times_input_is_exact_of_linear_networks():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(4 * 3 * 5, 2, bias=False)).eval()
    x = torch.randn(2, 3, 5, 7)
    (found,) = linear_approximation(network, x, logit([0, 1]), "input")
    assert found.shape == (2, 5, 7)
    torch.testing.assert_close(found.sum((1, 2)), network(x).diagonal(), rtol=1e-4, atol=1e-5)
