"""NAFNet: the paper's formula under the authors' names, sizes, counts, weighted convolutions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from attlas import checkpoint
from attlas.dense.restoration import NAFNet, WeightedConv2d, convert, fold, nafnet
from attlas.registry import MODELS

SMALL = dict(in_channels=3, width=4, encoders=(1, 2), middle=1, decoders=(1, 1))


def small(**options):
    """A network whose blocks take part."""
    network = NAFNet(**{**SMALL, **options})
    for name, p in network.named_parameters():
        if name.endswith(("beta", "gamma")):
            nn.init.normal_(p)
    return network.eval()


def authors_names(state):
    """A state dict of ours as the authors' file has it."""
    return {
        name.replace(".sca.", ".sca.1.").replace("middle.", "middle_blks.", name.startswith("middle.")): value
        for name, value in state.items()
    }


def block(x, p):
    """The formula, on the authors' names."""

    def norm(x, n):
        mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        weight, bias = (p[f"norm{n}.{kind}"].view(1, -1, 1, 1) for kind in ("weight", "bias"))
        return (x - mean) / (var + 1e-6).sqrt() * weight + bias

    def conv(x, name, **options):
        return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], **options)

    c = x.shape[1]
    u = conv(conv(norm(x, 1), "conv1"), "conv2", padding=1, groups=2 * c)
    u = u[:, :c] * u[:, c:]
    x = x + conv(u * conv(F.adaptive_avg_pool2d(u, 1), "sca.1"), "conv3") * p["beta"]
    v = conv(norm(x, 2), "conv4")
    return x + conv(v[:, :c] * v[:, c:], "conv5") * p["gamma"]


def reference(x, state, encoders, middle, decoders, **_):
    def blocks(x, name, count):
        for i in range(count):
            start = f"{name}.{i}."
            x = block(x, {n.removeprefix(start): value for n, value in state.items() if n.startswith(start)})
        return x

    def conv(x, name, **options):
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    y, kept = conv(x, "intro", padding=1), []
    for level, count in enumerate(encoders):
        y = blocks(y, f"encoders.{level}", count)
        kept.append(y)
        y = conv(y, f"downs.{level}", stride=2)
    y = blocks(y, "middle_blks", middle)
    for level, count in enumerate(decoders):
        y = blocks(F.pixel_shuffle(conv(y, f"ups.{level}.0"), 2) + kept.pop(), f"decoders.{level}", count)
    return conv(y, "ending", padding=1) + x


@torch.no_grad()
def test_reads_the_authors_names_and_equals_the_formula():
    state = authors_names(small().state_dict())
    network = NAFNet.from_file(dict(params=state))
    assert NAFNet.options_of(state) == NAFNet.options_of(network.state_dict()) == SMALL
    x = torch.rand(2, 3, 12, 8)
    assert_close(network(x), reference(x, state, **SMALL), rtol=1e-4, atol=1e-5)
    for size in ((1, 1), (5, 10), (7, 4)):  # filled up with zeros
        x = torch.rand(1, 3, *size)
        filled = F.pad(x, (0, -size[1] % 4, 0, -size[0] % 4))
        expected = reference(filled, state, **SMALL)[..., : size[0], : size[1]]
        assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", nafnet.VARIANTS)
def test_parameters(name):
    options, params = nafnet.VARIANTS[name]
    with torch.device("meta"):
        network = MODELS.build(dict(type="NAFNet", **options))
    w = options["width"]
    counts = [*options["encoders"], options["middle"], *options["decoders"][::-1]]
    dims = [w, 2 * w, 4 * w, 8 * w, 16 * w, w, 2 * w, 4 * w, 8 * w]
    by_hand = sum(n * (7 * c * c + 33 * c) for n, c in zip(counts, dims))  # blocks
    by_hand += sum(8 * c * c + 2 * c + 2 * (2 * c) ** 2 for c in dims[:4])  # between the levels
    by_hand += 2 * 27 * w + w + 3
    assert sum(p.numel() for p in network.parameters()) == params == by_hand
    assert dict(options, **NAFNet.options_of(network.state_dict())) == dict(in_channels=3, **options)
    assert (network.scale, network.multiple) == (1, 16)


def test_begins_with_blocks_that_do_nothing():
    network, x = NAFNet(**SMALL), torch.rand(1, 3, 6, 5)
    nn.init.zeros_(network.ending.weight)
    nn.init.zeros_(network.ending.bias)
    assert torch.equal(network(x), x)
    fresh, y = nafnet.NAFBlock(4), torch.randn(1, 4, 3, 3)
    assert torch.equal(fresh(y), y)


@pytest.mark.parametrize(("window", "size"), [(4, (9, 7)), (5, (6, 20)), (6, (4, 11)), (1, (3, 2))])
def test_local_means(window, size):
    x = torch.rand(2, 3, *size)
    sides = [min(window, length) for length in size]
    means = F.avg_pool2d(x, sides, stride=1)
    rows, columns = (side - 1 for side in sides)
    margins = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    assert_close(nafnet.local_mean(x, window), F.pad(means, margins, mode="replicate"))
    assert_close(nafnet.local_mean(x, 20), x.mean((2, 3), keepdim=True))


@torch.no_grad()
def test_windows_in_inference():
    """A window of the image's size changes nothing, one below makes far pixels independent; training has none."""
    whole, x = small(), torch.rand(1, 3, 64, 16)
    state = whole.state_dict()
    same = NAFNet.from_file(state, window=64)
    assert_close(same(x), whole(x))
    local = NAFNet.from_file(state, window=8)
    other = torch.cat([x[:, :, :56], torch.rand(1, 3, 8, 16)], 2)
    assert torch.equal(local(x)[:, :, :4], local(other)[:, :, :4])
    assert not torch.equal(whole(x)[:, :, :4], whole(other)[:, :, :4])
    assert torch.equal(local.train()(x), whole(x))
    assert [block.window for block in (local.encoders[0][0], local.middle[0], local.decoders[0][0])] == [8, 2, 4]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_exports_at_multiples():
    network = small()
    sizes = {axis: 4 * torch.export.Dim(name, min=1, max=512) for axis, name in ((2, "rows"), (3, "columns"))}
    program = torch.export.export(network, (torch.rand(1, 3, 16, 12),), dynamic_shapes=(sizes,))
    x = torch.rand(1, 3, 8, 20)
    assert_close(program.module()(x), network(x))


@pytest.mark.parametrize("learned", [False, True])
def test_with_weighted_convolutions(learned):
    conv_cfg = dict(type="attlas.WeightedConv2d", den=[0.7], learned=learned)
    network = small(conv_cfg=conv_cfg, dropout=0.1)
    weighted = [m for m in network.modules() if isinstance(m, WeightedConv2d)]
    assert len(weighted) == 2 + 1 + 2 + 1 + 1 + 1
    plain = small()
    extra = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == len(weighted) * learned
    network.train()(torch.rand(2, 3, 9, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    x = torch.rand(1, 3, 9, 8)
    expected = network.eval()(x)
    for state in (network.state_dict(), authors_names(network.state_dict())):
        assert torch.equal(NAFNet.from_file(state)(x), expected)
    assert torch.equal(network.fuse()(x), expected)
    assert not any(isinstance(m, WeightedConv2d) for m in network.modules())
    expected = plain(x)
    assert_close(fold(convert(plain, {3: [0.7]}, learned))(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(width=0), "NAFNet: width=0 must be a whole number from 1"),
        (dict(window=3), "NAFNet: window=3 must be a whole number from 4"),
        (dict(middle=-1), "NAFNet: middle=-1 must be a whole number from 0"),
        (dict(encoders=(1, 1.5)), r"NAFNet: encoders\[1\]=1.5 must"),
        (dict(encoders=(1, 1, 1)), r"encoders=\(1, 1, 1\) and decoders=\(1, 1\) must have as many levels"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        NAFNet(**{**SMALL, **options})


def test_files_of_others():
    with pytest.raises(ValueError, match=r"This is no state dict of NAFNet: it lacks intro\.weight"):
        NAFNet.from_file({"conv_first.weight": torch.zeros(1)})
    deeper = small(middle=2).state_dict()
    with pytest.raises(ValueError, match=r"looks like NAFNet\(in_channels=3, width=4, encoders=\(1, 2\), middle=2"):
        checkpoint.load(small(), deeper)
