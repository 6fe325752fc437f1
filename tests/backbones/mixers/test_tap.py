"""What characterizes token-aware pooling: weights that sum to one, zeros beyond the border, and its place."""

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree
from networks import SYSTEMS, build, fill

from attlas import backbones, checkpoint
from attlas.backbones.layers import Block, Mlp, plug
from attlas.backbones.mixers.tap import TAP, dilated_average, mix_averages


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(x, weights):
    """With all windows written out."""
    out = x * weights[:, :1]
    for i in range(1, weights.shape[1]):
        taps = F.unfold(x, 3, dilation=i, padding=i).unflatten(1, (x.shape[1], 9))
        out = out + taps.mean(2).view_as(x) * weights[:, i : i + 1]
    return out


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(7, 9), (1, 1), (2, 5), (1, 12)])
@pytest.mark.parametrize("scales", [1, 2, 4, 6])
def test_by_definition(scales, size, layout):
    x, weights = normal(2, 5, *size).contiguous(memory_format=layout), normal(2, scales, *size, seed=1).softmax(1)
    results = []
    for function in (by_definition, mix_averages):
        inputs = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
        out = function(*inputs)
        results.append([out, *torch.autograd.grad((out * normal(*out.shape, seed=2)).sum(), inputs)])
    for name, expected, got in zip(("output", "x", "weights"), *results):
        assert_agree(name, got, expected)


def test_zeros_beyond_the_border_count():
    average = dilated_average(torch.ones(1, 1, 7, 7), 2)[0, 0]
    torch.testing.assert_close(average[2:-2, 2:-2], torch.ones(3, 3))
    assert average[0, 0] == pytest.approx(4 / 9)
    assert average[0, 3] == pytest.approx(6 / 9)
    mixer = fill(TAP(8))
    out = mixer(torch.ones(1, 8, 9, 11))
    torch.testing.assert_close(out[..., 3:-3, 3:-3], torch.ones(1, 8, 3, 5))  # dilations up to 3
    assert (out[..., 0, 0] < 1).all()


def test_weights():
    mixer, x = fill(TAP(16)).double(), normal(2, 16, 6, 9)
    weights = mixer.weights(x)
    assert weights.shape == (2, 4, 6, 9)
    assert_agree("sum", weights.sum(1), torch.ones(2, 6, 9, dtype=torch.float64))
    assert weights.std() > 0.01
    cold = fill(TAP(16, temperature=0.01)).double()
    assert cold.weights(x).amax(1).mean() > weights.amax(1).mean()


def test_one_scale_is_the_identity():
    mixer, x = fill(TAP(8, num_scales=1)), torch.randn(2, 8, 5, 6)
    assert torch.equal(mixer(x), x)
    assert torch.equal(mixer.train()(x), x)
    mixer(x).sum().backward()
    assert all(p.grad is not None for p in mixer.parameters())


def test_parameters():
    for dim, scales in ((24, 4), (448, 4), (192, 1)):
        assert sum(p.numel() for p in TAP(dim, scales).parameters()) == 9 * dim * scales + 9 * scales**2 + 2 * scales


def test_maps_are_what_it_does():
    """The pixels that a pixel is made of, weighted, are what comes out of it."""
    mixer, x = fill(TAP(8)).double(), normal(2, 8, 6, 9)
    out = mixer(x)
    for place in ((0, 0), (3, 4), (5, 8)):
        maps = mixer.attention_maps(x, place)
        assert_agree("pixel", (maps * x).sum((2, 3)), out[..., place[0], place[1]])


def test_little_is_kept_for_the_backward_pass():
    saved = {}
    mixer, x = TAP(64).train(), torch.randn(1, 64, 20, 20)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.update({t.data_ptr(): t.numel()}) or t, lambda t: t):
        mixer(x.requires_grad_())
    assert sum(size == x.numel() for size in saved.values()) == 1  # x itself
    assert max(saved.values()) == x.numel()


def test_before_the_norm_of_any_mixer():
    """On the branch of the mixer alone, on the map alone; with one scale the network stays as it is."""
    for mixer, options in (("Attention", {}), ("GnConv", dict(class_token=None))):
        common = dict(
            dim=32, depth=2, mixers=mixer, img_size=32, patch_size=8, num_classes=3, layer_scale=1.0, **options
        )
        plain = fill(backbones.Isotropic(**common))
        image = torch.randn(2, 3, 40, 56)
        for scales, same in ((1, True), (4, False)):
            network = fill(backbones.Isotropic(**common, plugins=dict(type="TAP", num_scales=scales)))
            assert all(isinstance(block.before, TAP) for block in network.blocks)
            assert torch.equal(network(image), plain(image)) == same
    block, x = Block(16, torch.nn.Identity(), Mlp(16)), torch.randn(1, 16, 5, 6)
    mixer = fill(TAP(16))
    plug(block, mixer)
    branch = x + block.norm1(mixer(x))
    torch.testing.assert_close(block(x), branch + block.mlp(block.norm2(branch)))
    with pytest.raises(ValueError, match="TAP stands at the place 'before' of a block, which Linear has not"):
        plug(torch.nn.Linear(3, 3), mixer)


@pytest.mark.slow
@pytest.mark.parametrize("system", [name for name in SYSTEMS if "plugins" in backbones.systems()[name].options()])
def test_in_every_system(system):
    """It counts there, or it is refused: blocks without its place do not leave it out in silence."""
    options = dict(num_scales=None) if "num_scales" in backbones.systems()[system].options() else {}
    plain, image = build(system, num_classes=5, plugins=None, **options), torch.randn(2, 3, 64, 96)
    try:
        network = build(system, num_classes=5, plugins=dict(type="TAP"), **options)
    except ValueError as error:
        if "stands at the place 'before' of a block, which" not in str(error):
            raise
        return
    network.load_state_dict(plain.state_dict(), strict=False)
    pooling = [part for part in network.modules() if isinstance(part, TAP)]
    assert pooling
    expected = plain(image)
    for one in pooling:
        assert (network(image) - expected).abs().max() > 1e-6 * expected.abs().max()
        one.num_scales = 1
    torch.testing.assert_close(network(image), expected)


def test_names_of_the_authors():
    mixer, again = fill(TAP(16)), TAP(16)
    names = {"predict.conv": "proj.0", "predict.norm": "proj.1", "mix": "proj.2"}
    state = {}
    for name, value in mixer.state_dict().items():
        module, _, last = name.rpartition(".")
        state[f"dilation_predictor.{names[module]}.{last}"] = value
    assert checkpoint.load(again, state).complete


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_stay(dtype):
    mixer, x = fill(TAP(32)), torch.randn(2, 32, 14, 9)
    expected = mixer(x)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(mixer(x).float(), expected, atol=0.05, rtol=0.05)
    got = mixer.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0.05)


def test_errors():
    for scales in (0, 1.5, "4"):
        with pytest.raises(ValueError, match=f"TAP.num_scales must be whole, at least 1, got {scales!r}"):
            TAP(8, num_scales=scales)
    for temperature in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"TAP.temperature must be positive and finite, got {temperature}"):
            TAP(8, temperature=temperature)
