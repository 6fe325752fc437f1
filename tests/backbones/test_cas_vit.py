"""What characterizes CAS-ViT: gates and convolutions whose cost is linear, and one way alone across the map."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones
from attlas.backbones.cas_vit import AdditiveTokenMixer, CASViT
from attlas.config import load_config


def small(**options):
    return CASViT((8, 12, 16, 24), (1, 1, 2, 1), **options)


def randomize(module):
    """Norms away from the identity."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for value, low in (
                (norm.weight, 0.5),
                (norm.bias, -0.5),
                (norm.running_mean, -0.5),
                (norm.running_var, 0.5),
            ):
                value.data.copy_(torch.rand(value.shape, generator=generator) + low)
    return module


def maps(*size, seed=1):
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def mixer():
    torch.manual_seed(0)
    return randomize(AdditiveTokenMixer(12)).double().eval()


def parameters(module):
    return sum(p.numel() for p in module.parameters())


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "sides"),
    [((64, 96), [(16, 24), (8, 12), (4, 6), (2, 3)]), ((65, 50), [(17, 13), (9, 7), (5, 4), (3, 2)])],
)
def test_sizes(size, sides):
    with torch.device("meta"):
        outputs = backbones.create("cas_vit_xs", out_indices=(0, 1, 2, 3)).eval()(torch.zeros(1, 3, *size))
    assert [tuple(y.shape[1:]) for y in outputs] == [(c, *side) for c, side in zip((48, 56, 112, 220), sides)]


@pytest.mark.parametrize(
    ("name", "one_head", "headless"),
    [
        ("cas_vit_xs", 2.980, 2.759),
        ("cas_vit_s", 5.507, 5.250),
        ("cas_vit_m", 12.04, 11.65),
        ("cas_vit_t", 21.25, 20.74),
    ],
)
def test_heads(name, one_head, headless):
    """Millions of parameters with one head and with none."""
    with torch.device("meta"):
        for options, millions in ((dict(distilled=False), one_head), (dict(num_classes=0), headless)):
            assert parameters(backbones.create(name, **options)) / 1e6 == pytest.approx(millions, rel=5e-4)


@pytest.mark.parametrize("dim", [1, 16, 48])
def test_parameters_and_cost_of_the_mixer(dim):
    """5C² + 46C parameters; 3C² + 38C multiply-adds for a pixel, whatever the size, and 2C² for an image."""
    assert parameters(AdditiveTokenMixer(dim)) == 5 * dim**2 + 46 * dim
    assert parameters(AdditiveTokenMixer(dim, qkv_bias=True)) == 5 * dim**2 + 49 * dim
    for height, width in ((7, 5), (14, 5), (1, 1)):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            AdditiveTokenMixer(dim).eval()(torch.zeros(3, dim, height, width))
        pixels = height * width
        assert counter.get_total_flops() == 2 * 3 * ((3 * dim**2 + 38 * dim) * pixels + 2 * dim**2)


# --- what sees what --------------------------------------------------------------------------------------------------


def change(module, x, place):
    """Where the output changes (H, W), of the first image, when a pixel does."""
    other = x.clone()
    other[..., place[0], place[1]] += 1
    return (module(other) - module(x))[0].abs().amax(0) > 1e-12


@pytest.mark.parametrize(("height", "width"), [(11, 13), (9, 4), (3, 20)])
def test_without_the_gate_of_the_channels_three_pixels_are_seen(mixer, height, width):
    x = maps(1, 12, height, width)
    for place in ((height // 2, width // 2), (0, 0), (height - 1, 1)):
        assert change(mixer, x, place).all()  # the mean knows
        local = randomize(AdditiveTokenMixer(12)).double().eval()
        local.gates_q[1], local.gates_k[1] = nn.Identity(), nn.Identity()
        rows, columns = torch.arange(height) - place[0], torch.arange(width) - place[1]
        near = (rows.abs() <= 3)[:, None] & (columns.abs() <= 3)
        assert torch.equal(change(local, x, place), near)


def test_only_the_mean_crosses_the_map(mixer):
    """What is exchanged far away changes nothing here."""
    x = maps(1, 12, 9, 12)
    other = x.clone()
    other[..., 8:] = x[..., 8:].flip(3)
    # the means of t' have to agree, and these hang on 3x3 pixels: without gates of pixels they do
    for gates in (mixer.gates_q, mixer.gates_k):
        gates[0] = nn.Identity()
    torch.testing.assert_close(mixer(other)[..., :6], mixer(x)[..., :6])
    assert not torch.allclose(mixer(other)[..., 6:], mixer(x)[..., 6:])


def test_a_product_of_two_linear_maps(mixer):
    """With open gates, and without the biases, the output grows with the square of the input."""
    mixer.gates_q, mixer.gates_k = nn.Identity(), nn.Identity()
    for conv in (mixer.dwc, mixer.proj):
        nn.init.zeros_(conv.bias)
    x = maps(2, 12, 5, 6)
    torch.testing.assert_close(mixer(3 * x), 9 * mixer(x))


def test_images_do_not_mix(mixer):
    x = maps(3, 12, 6, 5)
    torch.testing.assert_close(mixer(x)[1:2], mixer(x[1:2]))


def test_gates(mixer):
    """They are what the mixer multiplies queries and keys by."""
    x = maps(2, 12, 6, 5)
    gates = mixer.attention_maps(x, (3, 2))
    assert gates.shape == (2, 2, 6, 5)
    q, k, _ = mixer.qkv(x).chunk(3, dim=1)
    torch.testing.assert_close(q * gates[:, :1], mixer.gates_q[0](q))
    torch.testing.assert_close(k * gates[:, 1:], mixer.gates_k[0](k))


# --- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True])
def test_a_product_beyond_float16(mixer, autocast):
    """It is projected in float32; the output is that of float64 where it fits, and the largest number elsewhere."""
    x, largest = 3000 * maps(2, 12, 6, 5), torch.finfo(torch.float16).max
    with torch.no_grad():
        mixer.proj.weight *= 0.005
        expected = mixer(x)
        q, k, v = mixer.qkv(x).chunk(3, dim=1)
        product = mixer.dwc(mixer.gates_q(q) + mixer.gates_k(k)) * v
        assert product.abs().max() > 4 * largest
        assert expected.abs().max() < largest
        half = mixer.float() if autocast else mixer.half()
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            got = half(x.float() if autocast else x.half())
        assert got.dtype == torch.float16
        assert (got.double() - expected).abs().max() < 1e-2 * expected.abs().max()
        half.proj.weight *= 1000
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            got = half(x.float() if autocast else x.half())
        assert got.abs().max() == largest
        assert got.isfinite().all()


def test_gradients_in_float16():
    torch.manual_seed(0)
    mixer, x = randomize(AdditiveTokenMixer(12)).train(), maps(2, 12, 6, 5).float().requires_grad_()
    weights = maps(2, 12, 6, 5, seed=2).float()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            y = mixer(x)
        found.append(torch.autograd.grad((y.float() * weights).sum(), [x, *mixer.parameters()]))
    largest = max(grad.abs().max() for grad in found[0])
    for exact, half in zip(*found):
        assert half.dtype == torch.float32
        assert (half - exact).abs().max() < 1e-2 * largest


@pytest.mark.parametrize("fused", [False, True])
def test_a_network_in_float16(fused):
    """As it is and with its norms merged, after batches that gave them their statistics."""
    torch.manual_seed(0)
    network, x = small(num_classes=10), maps(4, 3, 64, 64).float()
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = None
        for _ in range(2):
            network(x)
        exact = network.eval()(x)
        network = network.fuse() if fused else network
        half = network.half()(x.half())
    assert half.dtype == torch.float16
    assert (half.float() - exact).abs().max() < 2e-2 * exact.abs().max()


# --- forms -----------------------------------------------------------------------------------------------------------


def test_the_dense_form():
    """The maps of the classifier, each behind a batch norm of its own, which the next stage does not read."""
    torch.manual_seed(0)
    classifier, dense = randomize(small(num_classes=3)).double().eval(), randomize(small()).double().eval()
    account = backbones.load(dense, classifier.state_dict())
    assert {name.split(".")[0] for name in account.ignored} == {"head"}
    assert {name.split(".")[0] for name in account.missing} == {"norms"}
    x = maps(1, 3, 65, 50)
    for i, (y, expected) in enumerate(zip(dense(x), classifier.forward_intermediates(x)[1])):
        norm = dense.norms[str(i)]
        assert isinstance(norm, nn.BatchNorm2d)
        torch.testing.assert_close(y, norm(expected))
        assert not torch.allclose(y, expected)


def test_two_heads():
    """Their logits are averaged; they share the norm."""
    torch.manual_seed(0)
    network, x = randomize(small(num_classes=4)).double().eval(), maps(2, 3, 64, 64)
    vector = network.forward_head(network.forward_features(x), pre_logits=True)
    both = network.head.fc(vector), network.head.distilled.fc(vector)
    torch.testing.assert_close(network(x), (both[0] + both[1]) / 2)


@pytest.mark.parametrize("names", ["fc", "head"])
def test_files_of_one_head_and_of_two(names):
    """One head is exact in networks of both kinds; a second one is not left out in silence."""
    torch.manual_seed(0)
    x = maps(2, 3, 64, 64)
    one = randomize(small(num_classes=4, distilled=False)).double().eval()
    two = randomize(small(num_classes=4)).double().eval()

    def file(network):
        if names == "fc":
            return network.state_dict()
        authors = {"head.fc": "head", "head.distilled.fc": "dist_head", "head.before": "norm"}
        found = network.state_dict()
        for name in [name for name in found if name.startswith("head.")]:
            layer, _, part = name.rpartition(".")
            found[f"{authors[layer]}.{part}"] = found.pop(name)
        return found

    for distilled in (False, True):
        network = small(num_classes=4, distilled=distilled).double().eval()
        assert backbones.load(network, file(one)).complete
        assert torch.equal(network(x), one(x))
    with pytest.raises(ValueError, match="the weights have two last layers at head: build the network with"):
        backbones.load(small(num_classes=4, distilled=False), file(two))
    for options in (dict(num_classes=4), dict(num_classes=0, distilled=False), dict(num_classes=7), dict()):
        backbones.load(small(**options), file(two))
    other = small(num_classes=7, distilled=False)  # whose new last layer is to be trained
    assert backbones.load(other, file(two)).unexpected == ["head.distilled.fc.weight", "head.distilled.fc.bias"]


@pytest.mark.parametrize("options", [dict(num_classes=4), dict(num_classes=4, qkv_bias=True, distilled=False), dict()])
def test_fused(options):
    """No norm is left inside, and the outputs are the same."""
    torch.manual_seed(0)
    network, x = randomize(small(**options)).double().eval(), maps(1, 3, 65, 50)
    expected = network(x)
    for _ in range(2):  # the second time changes nothing
        torch.testing.assert_close(network.fuse()(x), expected, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(m, nn.BatchNorm2d) for part in (network.stem, network.stages) for m in part.modules())


def test_initial_weights():
    """Convolutions have PyTorch's, also those that are linear layers here; the last layers have a deviation of 0.02."""
    torch.manual_seed(0)
    network = CASViT((64, 96), (1, 1), num_classes=500)
    mlp = network.stages[1].blocks[0].mlp.fc1
    assert mlp.weight.abs().max().item() == pytest.approx(96**-0.5, rel=1e-2)
    for layer in (network.head.fc, network.head.distilled.fc):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=5e-2)
        assert not layer.bias.any()


def test_the_average_follows_the_steps():
    config = load_config(Path(__file__).parents[2] / "configs/cas_vit/cas_vit_imagenet.py")
    assert config.custom_hooks[0].interval == config.optim_wrapper.accumulative_counts == 2
