import pytest
import torch
from agreement import assert_agree
from golden_records import Record
from networks import build, close, fill, image

from attlas import backbones, checkpoint
from attlas.backbones.layers import Attention, diversification_loss, diversify, mean_loss, noted
from attlas.backbones.rvt import RVT, MaskedAttention


def maps_of(network, x):
    """The attention maps (B, heads, N, N) of all blocks."""
    inputs, found = [], []
    for part in network.modules():
        if isinstance(part, Attention):
            part.register_forward_pre_hook(lambda part, args: inputs.append((part, *args)))
    network(x)
    for part, y in inputs:
        q, k, _ = part._split(y.flatten(2).mT)
        logits = q @ k.mT * q.shape[-1] ** -0.5
        if isinstance(part, MaskedAttention):
            logits = logits * part.mask[:, : k.shape[2], : k.shape[2]].sigmoid()
        found.append(logits.softmax(-1))
    return found


def test_maps_of_the_authors():
    """Of every block, the head mean that their loss reads."""
    record = Record("rvt/network")
    network = RVT((24, 48), (2, 1), heads=(3, 6), num_classes=10).double().eval()
    assert checkpoint.load(network, record.state_dict()).complete
    maps = maps_of(network, record.input("x"))
    assert len(maps) == 3
    for number, one in enumerate(maps, 1):
        close(one.mean(1), record.output(number), 1e-5)


def test_without_tap():
    x = image(40, 64)
    full, one, none = (build("RVT", num_classes=5, num_scales=scales) for scales in (4, 1, None))
    assert torch.equal(one(x), none(x))
    assert (full(x) - none(x)).abs().max() > 1e-4
    counts = [sum(p.numel() for p in network.parameters()) for network in (full, one)]
    blocks = [dim for dim, depth in zip(full.dims, full.depths) for _ in range(depth)]
    assert counts[0] - counts[1] == sum(3 * 9 * dim + 9 * 15 + 6 for dim in blocks)


def test_the_loss_is_of_all_blocks():
    network, x = build("RVT", num_classes=5, masked_blocks=1).train(), image(48, 96, batch=1)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
    diversify(network, 1.0)
    with noted(network) as losses:
        network(x)
    assert len(losses) == sum(network.depths)
    torch.testing.assert_close(
        mean_loss(losses), mean_loss([diversification_loss(m, 1.0) for m in maps_of(network, x)])
    )


@pytest.mark.parametrize("size", [(14, 14), (4, 4), (3, 9), (1, 1), (10, 20), (15, 14), (28, 7)])
def test_masked_attention(size):
    """The first rows and columns of the table where the map is small; resized as pairs of places where it is large."""
    mixer = fill(MaskedAttention(16, 2, side=14)).double()
    torch.nn.init.normal_(mixer.mask, std=3.0)
    x = torch.randn(2, 16, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pixels = size[0] * size[1]
    gates = mixer.gates(*size)
    if pixels <= 196:
        assert torch.equal(gates, mixer.mask[:, :pixels, :pixels].sigmoid())
    else:  # a pair of places at a time
        table = mixer.mask.view(2, 14, 14, 14, 14)

        def near(i, n):
            place = min(max((i + 0.5) * 14 / n - 0.5, 0), 13)
            low = min(int(place), 12)
            return [(low, 1 - place + low), (low + 1, place - low)]

        for query, key in ((0, 0), (pixels - 1, 3), (pixels // 2 + 3, pixels - 5)):
            axes = [near(i, n) for pixel in (query, key) for i, n in zip(divmod(pixel, size[1]), size)]
            value = sum(
                a[1] * b[1] * c[1] * d[1] * table[:, a[0], b[0], c[0], d[0]]
                for a in axes[0]
                for b in axes[1]
                for c in axes[2]
                for d in axes[3]
            )
            assert_agree("pair", gates[:, query, key], value.sigmoid())
    q, k, v = mixer._split(x.flatten(2).mT)
    maps = (q @ k.mT / 8**0.5 * gates).softmax(-1)
    assert_agree("output", mixer(x), mixer.proj((maps @ v).transpose(1, 2).flatten(2)).mT.unflatten(2, size))
    assert_agree("maps", mixer.attention_maps(x, (0, size[1] - 1)), maps[:, :, size[1] - 1].unflatten(-1, size))


def test_a_table_of_ones_is_plain_attention():
    mixer, plain = fill(MaskedAttention(16, 2)).double(), fill(Attention(16, 2)).double()
    torch.nn.init.constant_(mixer.mask, 50.0)
    for size in ((5, 6), (20, 12)):
        x = torch.randn(2, 16, *size, dtype=torch.float64)
        assert_agree("output", mixer(x), plain(x))


def test_the_plus_model():
    """It has masks in the first blocks, and takes images whose maps are larger than their tables."""
    network = build("RVT", masked_blocks=1, num_classes=5)
    masked = [isinstance(block.mixer, MaskedAttention) for stage in network.stages for block in stage.blocks]
    assert masked == [True, False, False, False]
    for size in ((64, 64), (240, 300)):
        assert torch.isfinite(network(image(*size))).all()
    assert set(network.fixed_sizes) == {".onnx", ".pt2"}
    assert not build("RVT").fixed_sizes
    theirs = {}
    for name, value in network.state_dict().items():
        for ours, authors in (
            ("stem.", "patch_embed.proj."),
            ("stages.1.downsample.", "pools.0.conv."),
            ("stages.", "transformers."),
            ("head.after.", "norm."),
            ("head.fc.", "head."),
        ):
            if name.startswith(ours):
                name = authors + name.removeprefix(ours)
                break
        name = name.replace("mixer.mask", "attn.att_mask").replace("mixer.", "attn.")
        for number, part in enumerate(("fc1", "dwconv", "fc2"), 1):
            name = name.replace(f"mlp.{part}.conv.", f"mlp.{part}.").replace(f"mlp.{part}.norm.", f"mlp.bn{number}.")
        name = name.replace("before.predict.conv.", "dilation_predictor.proj.0.")
        name = name.replace("before.predict.norm.", "dilation_predictor.proj.1.").replace(
            "before.mix.", "dilation_predictor.proj.2."
        )
        theirs[name] = value
    again = build("RVT", filled=False, masked_blocks=1, num_classes=5)
    assert backbones.load(again, dict(model=theirs)).complete
    assert torch.equal(again(image(64, 64)), network(image(64, 64)))


def test_the_dense_form():
    """Every map has a norm of its own, off the path; the classifier norms the mean."""
    network, x = build("RVT"), image(75, 101)
    first, second = network(x)
    assert (first.shape[-2:], second.shape[-2:]) == ((4, 6), (2, 3))
    plain, last = network.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(first, network.norms["0"](plain))
    torch.testing.assert_close(last, network.stages[1](plain, {}))


def test_errors():
    with pytest.raises(ValueError, match=r"masked_blocks=3 must be from 0 to the first of depths=\(2, 2\)"):
        build("RVT", masked_blocks=3)
    for blocks in (-1, 1.5):
        with pytest.raises(ValueError, match=f"masked_blocks must be whole, at least 0, got {blocks}"):
            build("RVT", masked_blocks=blocks)
    with pytest.raises(ValueError, match=r"dims=\(48, 64\): 64 must be a multiple of 48"):
        RVT((48, 64), (1, 1), heads=4)
