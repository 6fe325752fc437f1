"""What characterises AFFNet: a mask over frequencies that depends on the map, which makes a circular convolution."""

import re

import pytest
import torch
from torch import nn

from attlas import backbones
from attlas.backbones.affnet import (
    ACTIVATIONS,
    AdaptiveFrequencyFilter,
    AFFNet,
    FilterBlock,
    FilterStage,
    InvertedResidual,
    PixelNorm,
)
from attlas.backbones.inspection.costs import PeakMemory, analyze
from attlas.backbones.layers import from_spectrum, to_spectrum

SMALL = dict(dims=(12, 16, 24, 40), depths=(2, 1, 2, 1))
SIZES = [(6, 6), (5, 8), (9, 7), (1, 4), (3, 1)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixer(dim=16, weights=0.5, **options):
    """A mixer whose weights are large enough for a mask of some effect."""
    built = AdaptiveFrequencyFilter(dim, **options).double().requires_grad_(False)
    for seed, p in enumerate(built.parameters(), 1):
        p.copy_(weights * normal(*p.shape, seed=seed))
    return built


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("size", SIZES)
def test_by_complex_numbers(size, activation):
    built, x = mixer(groups=4, activation=activation), normal(2, 16, *size)
    w1, w2, b1, b2 = (torch.complex(*p) for p in (built.w1, built.w2, built.b1, built.b2))
    spectrum = torch.fft.rfft2(x, norm="ortho").unflatten(1, (4, 4))
    linear = lambda z, w, b: torch.einsum("bgihw,gio->bgohw", z, w) + b[..., None, None]  # noqa: E731
    of_real, of_imaginary = built.activations
    hidden = linear(spectrum, w1, b1)
    mask = linear(torch.complex(of_real(hidden.real), of_imaginary(hidden.imag)), w2, b2)
    shrink = lambda v: v.sign() * (v.abs() - 0.01).clamp(min=0)  # noqa: E731
    mask = torch.complex(shrink(mask.real), shrink(mask.imag)).flatten(1, 2)
    torch.testing.assert_close(built.mask(to_spectrum(x)), mask)
    expected = x + torch.fft.irfft2(mask * spectrum.flatten(1, 2), s=size, norm="ortho")
    torch.testing.assert_close(built(x), expected)


@pytest.mark.parametrize("size", SIZES)
def test_a_mask_of_ones(size):
    """Shrinking takes 0.01 of it."""
    built, x = mixer(weights=0.0), normal(2, 16, *size)
    built.b2[0] = 1
    torch.testing.assert_close(built(x), 1.99 * x)
    built.b2[0] = -1
    torch.testing.assert_close(built(x), 0.01 * x)


@pytest.mark.parametrize("size", SIZES)
def test_a_large_threshold_leaves_the_map(size):
    x = normal(2, 16, *size)
    assert torch.equal(mixer(threshold=1e6)(x), x)


@pytest.mark.parametrize("size", [(6, 6), (5, 8)])
def test_shifts(size):
    """Where the mask is constant, a circular shift of the map shifts the output; where it depends on phases, not."""
    x, shift = normal(2, 16, *size), dict(shifts=(2, 3), dims=(2, 3))
    built = mixer()
    assert (built(x.roll(**shift)) - built(x).roll(**shift)).norm() > 0.1 * (built(x) - x).norm()
    built.w1.zero_()
    torch.testing.assert_close(built(x.roll(**shift)), built(x).roll(**shift))
    assert not torch.allclose(built(x), x)


@pytest.mark.parametrize("size", SIZES)
def test_a_convolution_with_a_kernel_of_the_map(size):
    """Every pixel of the output, as a sum over all pixels of its channel."""
    built, x = mixer(activation="silu"), normal(2, 16, *size)
    y = built(x)
    for row, column in ((0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, 0)):
        maps = built.attention_maps(x, (row, column))
        torch.testing.assert_close((maps * x).sum((2, 3)), y[..., row, column])
    first, other = (built.attention_maps(z, (0, 0)) for z in (x, x.flip(1)))
    assert not torch.allclose(first, other)


@pytest.mark.parametrize(("weights", "mean"), [(0.3, 0), (1e-3, 2000)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, weights, mean):
    """In networks of that dtype and under autocast; also where the mean frequency is more than float16 holds."""
    built, x = mixer(weights=weights, activation="silu").float(), (mean + normal(2, 16, 40, 36)).to(dtype)
    assert not mean or to_spectrum(x.float()).abs().max() > torch.finfo(torch.float16).max
    exact = built(x.float())
    assert (exact - x.float()).norm() > 0.05 * exact.norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(built(x.float()), exact)
        mixed = built(x)
    assert mixed.dtype == dtype
    expected = x + from_spectrum(built.mask(to_spectrum(x.float())) * to_spectrum(x.float()), 36).to(dtype)
    assert torch.equal(mixed, expected)
    half = built.to(dtype)(x)
    assert half.dtype == dtype
    assert (half.float() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.int32])
def test_a_dtype_without_transforms(dtype):
    message = f"AdaptiveFrequencyFilter: x must be of one of float16, bfloat16, float32, float64, got {dtype}"
    for call in (AdaptiveFrequencyFilter(8), lambda x: AdaptiveFrequencyFilter(8).attention_maps(x, (0, 0))):
        with pytest.raises(TypeError, match=message):
            call(torch.ones(1, 8, 4, 4).to(dtype))


def test_cost_grows_with_frequencies():
    """Products and memory are linear in them; the transforms are O(N log N)."""
    built = mixer(32).float()
    costs, peaks = [], []
    for columns in (62, 126, 254):  # 32, 64, 128 frequencies
        x = torch.randn(1, 32, 64, columns)
        costs.append(analyze(built, x, repeats=0)[-1].macs)
        with PeakMemory([x, *built.parameters()]) as memory:
            built(x)
        peaks.append(memory.peak)
    assert costs == [costs[0], 2 * costs[0], 4 * costs[0]]
    assert costs[0] == 64 * 32 * 8 * 32**2 / 8  # two maps of C² / 8 complex products each, which are four real ones
    assert 1.9 < peaks[1] / peaks[0] < 2.1
    assert 1.9 < peaks[2] / peaks[1] < 2.1


def test_traced_products_are_of_real_numbers():
    """They give the same."""
    built, x = mixer(activation="silu"), normal(2, 16, 5, 8)
    program = torch.export.export(built, (x,))
    torch.testing.assert_close(program.module()(x), built(x))
    nodes = [node for part in program.graph_module.modules() for node in part.graph.nodes]
    products = [node for node in nodes if "matmul" in str(node.target)]
    assert len(products) == 8
    assert not any(node.meta["val"].is_complex() for node in products)


def test_a_block_has_one_residual_around_both():
    block = FilterBlock(16, InvertedResidual(16, 16, 2, ACTIVATIONS["silu"]), mixer(), PixelNorm).double().eval()
    x = normal(2, 16, 5, 6)
    inner = block.norm1(x)
    inner = block.norm2(inner + block.mlp.reduce(block.mlp.depthwise(block.mlp.expand(inner))))
    torch.testing.assert_close(block(x), x + block.mixer(inner))


def test_inverted_residuals():
    silu = ACTIVATIONS["silu"]
    for parts, adds in (((16, 16, 2, silu), True), ((16, 24, 2, silu), False), ((16, 16, 2, silu, 2), False)):
        built = InvertedResidual(*parts).eval()
        assert built.adds == adds
        assert built.depthwise[0].conv.groups == 32
    assert isinstance(InvertedResidual(16, 16, 1, silu).expand, nn.Identity)
    assert InvertedResidual(20, 16, 1.5, silu).reduce.conv.in_channels == 32  # a multiple of 8


def test_a_norm_that_adds_eps_to_the_deviation():
    norm, x = PixelNorm(8, eps=0.3).double(), normal(2, 8, 3, 4)
    norm.weight.data, norm.bias.data = normal(8, seed=1), normal(8, seed=2)
    centered = x - x.mean(1, keepdim=True)
    expected = centered / (centered.square().mean(1, keepdim=True).sqrt() + 0.3)
    torch.testing.assert_close(norm(x), expected * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1))
    flat = torch.ones(1, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    norm(flat).square().sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_the_dense_form():
    """Maps as they are, at strides 4 to 32, rounded up."""
    network = AFFNet(**SMALL).double().eval()
    x = normal(1, 3, 75, 62)
    for got, expected in zip(network(x), network.forward_intermediates(x, norm=False)[1]):
        assert torch.equal(got, expected)
    assert [tuple(y.shape[1:]) for y in network(x)] == [(12, 19, 16), (16, 10, 8), (24, 5, 4), (40, 3, 2)]
    assert [y.shape[-1] for y in network(normal(1, 3, 64, 64))] == [16, 8, 4, 2]


@pytest.mark.parametrize(("stride", "ratios", "dilations"), [(16, [2, 2, 1], [1, 1, 1]), (8, [2, 1, 1], [1, 1, 2])])
def test_finer_last_maps(stride, ratios, dilations):
    """The weights are the same; what follows a stage that keeps its size has holes."""
    network, plain = AFFNet(**SMALL, output_stride=stride).eval(), AFFNet(**SMALL).eval()
    convs = [stage.downsample.depthwise[0].conv for stage in network.stages[1:]]
    assert [conv.stride[0] for conv in convs] == ratios
    assert [conv.dilation[0] for conv in convs] == dilations
    assert {name: p.shape for name, p in network.state_dict().items()} == {
        name: p.shape for name, p in plain.state_dict().items()
    }
    x = torch.randn(1, 3, 70, 60)
    assert [y.shape[2:] for y in network(x)] == [torch.Size(size) for size in network.map_sizes(70, 60)]
    assert network.out_strides == tuple(min(full, stride) for full in (4, 8, 16, 32))


def test_a_stage_of_the_same_channels_keeps_its_transition():
    network = AFFNet(dims=(16, 16, 16, 16), depths=(1, 1, 1, 1), output_stride=8)
    assert all(isinstance(stage.downsample, InvertedResidual) for stage in network.stages)


def test_the_classifier():
    network = AFFNet(**SMALL, num_classes=5, dropout=0.5).double().eval()
    features = network.forward_features(normal(2, 3, 64, 64))
    conv, activation = network.head.before
    rows = activation(conv(features)).mean((2, 3))
    assert rows.shape == (2, 160)
    torch.testing.assert_close(network.forward_head(features), network.head.fc(rows))
    network.train().head.before.eval()
    torch.manual_seed(0)
    vector = network.forward_head(features, pre_logits=True)
    assert 0.3 < (vector == 0).double().mean() < 0.7
    with torch.device("meta"):
        assert backbones.create("affnet").num_features == 960


def test_which_stages_fuse():
    with torch.device("meta"):
        found = {name: backbones.create(name).stages for name in backbones.list("affnet*")}
    for name, stages in found.items():
        fused = [stage.fusion is not None for stage in stages[1:]]
        assert fused == ([True, False, False] if name in ("affnet_base", "affnet_large") else [True] * 3)
    stage = FilterStage(8, nn.Identity(), [], nn.Identity(), None).double().eval()
    x = normal(1, 8, 3, 4)
    torch.testing.assert_close(stage(x, {}), stage.project(x))


def authors_name(name):
    """The authors' name of one of our tensors."""
    for ours, theirs in (
        (r"^stem\.0\.0\.", "conv_1.block."),
        (r"^stem\.0\.1\.", "conv_1.block.act."),
        (r"^stem\.(\d)\.", lambda m: f"layer_1.{int(m[1]) - 1}."),
        (r"^stages\.0\.downsample\.", "layer_2.0."),
        (r"^stages\.0\.blocks\.(\d)\.", lambda m: f"layer_2.{int(m[1]) + 1}."),
        (r"^stages\.(\d)\.downsample\.", lambda m: f"layer_{int(m[1]) + 2}.0."),
        (r"^stages\.(\d)\.", lambda m: f"layer_{int(m[1]) + 2}.1."),
        (r"\.blocks\.", ".global_rep."),
        (r"\.1\.norm\.(weight|bias)$", r".1.global_rep.9.\1"),
        (r"\.project\.", ".conv_proj.block."),
        (r"\.fusion\.0\.", ".fusion.block."),
        (r"\.fusion\.1\.", ".fusion.block.act."),
        (r"\.mixer\.activations\.0\.", ".filter.act."),
        (r"\.mixer\.activations\.1\.", ".filter.act2."),
        (r"\.mixer\.", ".filter."),
        (r"\.expand\.0\.", ".block.exp_1x1.block."),
        (r"\.expand\.1\.", ".block.exp_1x1.block.act."),
        (r"\.depthwise\.0\.", ".block.conv_3x3.block."),
        (r"\.depthwise\.1\.", ".block.conv_3x3.block.act."),
        (r"\.reduce\.", ".block.red_1x1.block."),
        (r"^head\.before\.0\.", "conv_1x1_exp.block."),
        (r"^head\.before\.1\.", "conv_1x1_exp.block.act."),
        (r"^head\.", "classifier."),
    ):
        name = re.sub(ours, theirs, name)
    return name


@pytest.mark.parametrize("activation", ["silu", "prelu"])
def test_names_of_the_authors(activation):
    options = dict(SMALL, num_classes=5, activation=activation, norm="pixel", stem_depth=2)
    network, again = AFFNet(**options).eval(), AFFNet(**options).eval()
    state = {authors_name(name): value for name, value in network.state_dict().items()}
    expected = {
        "conv_1.block.conv.weight",
        "layer_1.1.block.conv_3x3.block.norm.running_var",
        "layer_2.2.block.exp_1x1.block.conv.weight",
        "layer_3.1.global_rep.9.weight",
        "layer_4.1.global_rep.1.filter.w1",
        "layer_5.1.conv_proj.block.norm.bias",
        "layer_5.1.fusion.block.conv.weight",
        "conv_1x1_exp.block.norm.weight",
        "classifier.fc.bias",
    }
    if activation == "prelu":
        expected |= {"conv_1.block.act.weight", "layer_5.1.fusion.block.act.weight"}
        expected |= {
            "layer_4.1.global_rep.1.filter.act2.weight",
            "layer_4.1.global_rep.1.mlp.block.exp_1x1.block.act.weight",
        }
    assert expected <= state.keys()
    account = backbones.load(again, state)
    assert account.complete, str(account)
    assert {*account.renamed} == {*state}
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(x), network(x))


def test_parameters_with_learned_slopes():
    with torch.device("meta"):
        for name, count in (("affnet_et", 1_442_530), ("affnet_t", 2_664_698), ("affnet", 5_584_346)):
            network = backbones.create(name, activation="prelu")
            assert sum(p.numel() for p in network.parameters()) == count


def test_initial_weights():
    torch.manual_seed(0)
    built = AdaptiveFrequencyFilter(64)
    for p in (built.w1, built.w2):
        assert 0.018 < p.std() < 0.022
    assert 0.015 < torch.cat([built.b1, built.b2]).std() < 0.025


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdaptiveFrequencyFilter(26), "dim=26 must be divisible by groups=8"),
        (lambda: AdaptiveFrequencyFilter(8, threshold=-0.1), "threshold=-0.1 must be at least 0"),
        (
            lambda: AdaptiveFrequencyFilter(8, activation="tanh"),
            ": activation is 'tanh'; it may be 'gelu', 'hard_swish', ",
        ),
        (lambda: AFFNet(activation="swish"), "AFFNet: activation is 'swish'; it may be .* Did you mean 'hard_swish'"),
        (lambda: AFFNet(norm="layer"), "AFFNet: norm is 'layer'; it may be 'map', 'pixel'"),
        (lambda: AFFNet(output_stride=2), r"output_stride=2 must be one of \[4, 8, 16, 32\]"),
        (lambda: AFFNet(fusion=(True, False)), "fusion must have one entry for each of the 4 stages"),
        (lambda: AFFNet(stem_dims=(16,)), r"stem_dims=\(16,\) must be two"),
        (lambda: AFFNet(stem_depth=0), "stem_depth=0 at least 1"),
        (lambda: AFFNet(strides=(4, 8, 16, 32)), "AFFNet does not use the option 'strides'"),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(ValueError, match=message):
        build()
