import pytest
import torch
from agreement import assert_agree
from golden_records import Record
from networks import build, close, fill, image

from attlas import backbones, checkpoint
from attlas.backbones.fan import FAN, ChannelProcessing, FANAttention, FANHybrid, FourierPosition
from attlas.backbones.layers import diversification_loss, diversify, mean_loss, noted


def maps_of(network, x):
    """The attention maps (B, heads, N, N) of all blocks that `diversify` knows."""
    inputs = []
    blocks = [part for part in network.modules() if isinstance(part, FANAttention)]
    handles = [part.register_forward_pre_hook(lambda part, args: inputs.append((part, *args))) for part in blocks]
    network(x)
    for handle in handles:
        handle.remove()
    pairs = [(*part._split(y.flatten(2).mT)[:2], part) for part, y in inputs]
    return [(q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) for q, k, _ in pairs]


def test_maps_of_the_authors():
    """Of every block, the head mean that their loss reads."""
    record = Record("fan/network")
    network = FAN((64,), (2,), heads=4, patch_size=8, num_classes=10).double().eval()
    assert checkpoint.load(network, record.state_dict()).complete
    for number, maps in enumerate(maps_of(network, record.input("x")), 1):
        close(maps.mean(1), record.output(number), 1e-5)


@pytest.mark.parametrize("system", ["FAN", "FANHybrid"])
def test_without_tap(system):
    """One scale changes nothing; without scales, the parameters are not there either."""
    x = image(40, 64)
    full, one, none = (build(system, num_classes=5, num_scales=scales) for scales in (4, 1, None))
    assert torch.equal(one(x), none(x))
    assert (full(x) - none(x)).abs().max() > 1e-4
    counts = [sum(p.numel() for p in network.parameters()) for network in (full, one, none)]
    dim, depth = full.dims[-1], full.depths[-2]
    assert counts[0] - counts[1] == depth * (3 * 9 * dim + 9 * 15 + 6)
    assert counts[1] - counts[2] == depth * (9 * dim + 9 + 2)


@pytest.mark.parametrize("system", ["FAN", "FANHybrid"])
def test_the_loss_is_of_the_blocks(system):
    """Of every block of FAN, and of no class attention, for a batch of one rectangular image, too."""
    network, x = build(system, num_classes=5).train(), image(48, 64, batch=1)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
    diversify(network, 1.0)
    with noted(network) as losses:
        network(x)
    assert len(losses) == network.depths[-2]
    expected = [diversification_loss(maps, 1.0) for maps in maps_of(network, x)]
    torch.testing.assert_close(mean_loss(losses), mean_loss(expected))


def test_the_dense_form_of_the_hybrid():
    """Four maps: of ConvNeXt, behind the blocks, and behind class attention, which are norms of single pixels."""
    network, x = build("FANHybrid"), image(75, 101)
    maps = network(x)
    assert [tuple(y.shape[1:]) for y in maps] == [(32, 18, 25), (64, 9, 12), (48, 4, 6), (48, 4, 6)]
    y = maps[2]
    for block in network.stages[3].blocks:
        y = 2 * block.norm2(y + block.scale1.gamma.view(-1, 1, 1) * block.norm1(y))
    torch.testing.assert_close(maps[3], y)
    classifier = build("FANHybrid", num_classes=5)
    for got, expected in zip(maps, classifier.forward_intermediates(x, intermediates_only=True)):
        torch.testing.assert_close(got, expected)
    assert not any("token" in name or "mixer" in name for name in dict(network.stages[3].named_parameters()))


def test_released_dense_form():
    with torch.device("meta"):
        network = backbones.create("tap_fan_base_16_hybrid", out_indices=None)
        assert network.out_channels == (128, 256, 448, 448)
        assert network.out_strides == (4, 8, 16, 16)
        assert [y.shape[-1] for y in network(torch.zeros(1, 3, 512, 1024))] == [256, 128, 64, 64]


@pytest.mark.parametrize("norms_pixels", [True, False])
def test_pixels_that_are_not_normed(norms_pixels):
    """The authors' tokens_norm: without it, the dense form has no second norm, and a classifier's file still fits."""
    dense, classifier = (build("FAN", norms_pixels=norms_pixels, **options) for options in ({}, dict(num_classes=5)))
    assert any("norm2" in name for name, _ in dense.stages[1].named_parameters()) == norms_pixels
    account = backbones.load(build("FAN", norms_pixels=norms_pixels, filled=False), classifier.state_dict())
    assert account.complete
    assert not account.unexpected
    maps = dense(image(32, 48))
    if not norms_pixels:
        y = maps[0]
        for block in dense.stages[1].blocks:
            y = 2 * (y + block.scale1.gamma.view(-1, 1, 1) * block.norm1(y))
        torch.testing.assert_close(maps[1], y)


def authors_name(name):
    """What the authors call a parameter of the hybrid network."""
    for ours, theirs in (
        ("stem.", "patch_embed.backbone.stem."),
        ("stages.2.downsample.0.", "patch_embed.proj."),
        ("stages.2.downsample.1.projection.", "pos_embed.token_projection."),
        ("stages.2.blocks.", "blocks."),
        ("stages.3.blocks.", "cls_attn_blocks."),
        ("stages.3.cls_token.weight", "cls_token"),
        ("stages.", "patch_embed.backbone.stages."),
        ("head.after.", "norm."),
        ("head.fc.", "head."),
    ):
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    if name.startswith("patch_embed.backbone.stages."):
        return name.replace(".mix.", ".conv_dw.").replace(".scale.gamma", ".gamma")
    for ours, theirs in (
        ("mlp.norm.", "mlp.norm_v."),
        ("mlp.mlp.scale.gamma", "mlp.mlp_v.gamma"),
        ("mlp.mlp.local.0.", "mlp.mlp_v.dwconv.conv1."),
        ("mlp.mlp.local.2.", "mlp.mlp_v.dwconv.bn."),
        ("mlp.mlp.local.3.", "mlp.mlp_v.dwconv.conv2."),
        ("mlp.mlp.", "mlp.mlp_v."),
        ("scale1.gamma", "gamma1"),
        ("scale2.gamma", "gamma2"),
        ("mixer.", "attn."),
        ("before.predict.conv.", "dilation_predictor.proj.0."),
        ("before.predict.norm.", "dilation_predictor.proj.1."),
        ("before.mix.", "dilation_predictor.proj.2."),
    ):
        if f".{ours}" in name:
            return name.replace(ours, theirs, 1)
    return name


@pytest.mark.parametrize("container", ["state_dict", "state_dict_ema", "model"])
def test_files_of_the_hybrid(container):
    """By the names of its parts that the authors' loaders have, in the containers of their savers; the layers of
    ConvNeXt's MLP may be 1x1 convolutions."""
    network, x = build("FANHybrid", num_classes=5), image(64, 64)
    state = {authors_name(name): value for name, value in network.state_dict().items()}
    assert not set(state) & set(network.state_dict())
    for name in state:
        if name.startswith("patch_embed.backbone.stages") and ".mlp." in name and name.endswith("weight"):
            state[name] = state[name][..., None, None]
    again = build("FANHybrid", filled=False, num_classes=5)
    assert backbones.load(again, {container: state, "epoch": 3}).complete
    torch.testing.assert_close(again(x), network(x))
    dense = build("FANHybrid", filled=False)
    account = backbones.load(dense, {"state_dict": {f"backbone.{name}": value for name, value in state.items()}})
    assert account.complete
    torch.testing.assert_close(dense(x), build("FANHybrid")(x))


def test_channels_by_definition():
    """The gate of a channel looks at all pixels, wherever they are."""
    mixer = fill(ChannelProcessing(16, heads=4)).double()
    torch.nn.init.normal_(mixer.temperature)
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = x.flatten(2)  # (B, C, N)
    a = (mixer.q.weight @ rows + mixer.q.bias[:, None]).softmax(2)
    k = rows.softmax(2).unflatten(1, (4, 4)).mean(2).repeat_interleave(4, 1)
    gates = torch.sigmoid((a * k).sum(2)) * mixer.temperature.flatten().repeat_interleave(4)
    assert_agree("gates", mixer.gates(x), gates)
    assert_agree("output", mixer(x), mixer.norm(mixer.mlp(x)) * gates[..., None, None])
    order = torch.randperm(15)
    assert_agree("any order", mixer.gates(rows[..., order].view_as(x)), gates)


def test_positions():
    """Sines and cosines of 2π over the side, rows before columns, whatever the size; in half types, too."""
    position = FourierPosition(64, hidden=32)
    torch.nn.init.eye_(position.projection.weight[:, :, 0, 0])
    torch.nn.init.zeros_(position.projection.bias)
    waves = position(torch.zeros(1, 64, 4, 6))[0]
    torch.testing.assert_close(waves[0, :, 0], torch.tensor([1.0, 0, -1, 0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(waves[1, :, 3], torch.tensor([0.0, -1, 0, 1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(waves[33, 2], torch.cos(torch.arange(1, 7) / 3 * torch.pi), atol=1e-4, rtol=0)
    half = position.bfloat16()(torch.zeros(1, 64, 4, 6, dtype=torch.bfloat16))[0]
    torch.testing.assert_close(half.float(), waves, atol=0.01, rtol=0)


def test_errors():
    with pytest.raises(ValueError, match=r"dims and depths must have 3 entries, got \(64,\) and \(1,\)"):
        FANHybrid((64,), (1,))
    with pytest.raises(ValueError, match="patch_size=4 must be 8 or 16"):
        FAN(patch_size=4)
    for blocks in (0, 1.5):
        with pytest.raises(ValueError, match=f"class_blocks must be whole, at least 1, got {blocks}"):
            FAN(class_blocks=blocks)
    with pytest.raises(ValueError, match="dim=192 is not divisible by heads=5"):
        FAN(heads=5)
    with pytest.raises(ValueError, match=r"TAP\.num_scales must be whole, at least 1, got 0"):
        FAN(num_scales=0)
