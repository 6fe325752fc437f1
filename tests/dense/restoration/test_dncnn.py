"""DnCNN: the paper's formula, the authors' files, merged norms, weighted convolutions."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attlas import checkpoint
from attlas.dense.restoration import DnCNN, Restorer, WeightedConv2d, dncnn
from attlas.registry import MODELS

WEIGHTED = dict(type="attlas.WeightedConv2d", den=[0.7])


def moved(network):
    """With statistics as after a training."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.bias, std=0.1)
    return network.eval()


@pytest.mark.parametrize("name", dncnn.VARIANTS)
def test_parameters(name):
    options, params = dncnn.VARIANTS[name]
    with torch.device("meta"):
        network = MODELS.build(dict(type="DnCNN", **options))
        learned = DnCNN(**options, conv_cfg=dict(WEIGHTED, learned=True))
    c, depth = options.get("in_channels", 1), options["depth"]
    assert params == (9 * c * 64 + 64) + (depth - 2) * (9 * 64 * 64 + 2 * 64) + 9 * 64 * c
    assert sum(p.numel() for p in network.parameters()) == params
    assert sum(p.numel() for p in learned.parameters()) == params + depth
    assert DnCNN.options_of(network.state_dict()) == dict(in_channels=c, depth=depth, width=64, norm=True, bias=False)
    assert (network.scale, network.multiple) == (1, 1)


def authors(depth, channels, norm, bias):
    """A stack as the authors' file has it: a network whose output is the noise."""
    layers = [nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 2):
        layers.append(nn.Conv2d(8, 8, 3, padding=1, bias=bias))
        layers += [nn.BatchNorm2d(8, eps=1e-4), nn.ReLU()] if norm else [nn.ReLU()]
    return moved(nn.Sequential(*layers, nn.Conv2d(8, channels, 3, padding=1, bias=bias)))


@pytest.mark.parametrize(
    ("prefix", "norm", "bias"), [("dncnn", True, False), ("model", False, True), ("model", True, True)]
)
def test_reads_the_authors_files(prefix, norm, bias):
    """Their PyTorch training; their released files; a training of KAIR, the same author's."""
    reference = authors(5, 3, norm, bias)
    state = {f"{prefix}.{name}": value for name, value in reference.state_dict().items()}
    network = DnCNN.from_file(state)
    assert not network.training
    assert len([m for m in network.modules() if isinstance(m, nn.Conv2d)]) == 5
    for size in ((9, 7), (1, 1)):
        x = torch.rand(2, 3, *size)
        assert torch.equal(network(x), x - reference(x))
    again = DnCNN.from_file(network.state_dict())
    assert torch.equal(again(x), network(x))


@pytest.mark.parametrize("conv_cfg", [None, WEIGHTED, dict(WEIGHTED, learned=True)])
def test_fuses(conv_cfg):
    network = moved(DnCNN(1, depth=4, width=8, conv_cfg=conv_cfg))
    x = torch.rand(1, 1, 8, 11)
    expected = network(x)
    assert_close(network.fuse()(x), expected, rtol=0, atol=1e-5)
    assert {type(layer) for layer in network.layers} == {nn.Conv2d, nn.ReLU}
    released = network.state_dict() | {"layers.6.bias": torch.zeros(1)}
    assert_close(DnCNN.from_file(released)(x), expected, rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError, match="DnCNN is in training mode"):
        DnCNN(depth=3, width=4).fuse()


@pytest.mark.parametrize("den", [[0.7], [[0.7], [0.4]]])
@pytest.mark.parametrize("prefix", ["layers", "dncnn", "model"])
def test_files_of_weighted_networks(den, prefix, tmp_path):
    """They load from their weights alone, each convolution with its own density."""
    network = moved(DnCNN(depth=4, width=8, conv_cfg=dict(WEIGHTED, den=den, learned=True)))
    nn.init.constant_(network.layers[2].den, 0.3)
    file, x = tmp_path / "weighted.pth", torch.rand(1, 1, 9, 8)
    torch.save({name.replace("layers", prefix): value for name, value in network.state_dict().items()}, file)
    found = DnCNN.from_file(file)
    assert torch.equal(found(x), network(x))
    assert list(Restorer.recognize(checkpoint.read(file))[0]) == ["DnCNN"]
    assert not torch.equal(found.layers[0].den, found.layers[2].den)
    assert [name for name, _ in found.named_parameters() if name.endswith(".den")] == []
    with pytest.raises(ValueError, match=r"looks like DnCNN\(.*conv_cfg={'type': 'attlas.WeightedConv2d'"):
        checkpoint.load(DnCNN(depth=5, width=8), network.state_dict())


def test_with_weighted_convolutions():
    network = DnCNN(depth=4, width=8, conv_cfg=dict(WEIGHTED, learned=True))
    convs = [m for m in network.modules() if isinstance(m, WeightedConv2d)]
    assert len(convs) == 4
    network(torch.rand(2, 1, 9, 8)).square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in network.parameters())
    plain = DnCNN(depth=4, width=8)
    ones = DnCNN(depth=4, width=8, conv_cfg=dict(type="attlas.WeightedConv2d"))
    account = checkpoint.load(ones, plain.state_dict())
    assert all(name.endswith(".den") for name in account.missing)
    x = torch.rand(2, 1, 9, 8)
    assert torch.equal(ones.eval()(x), plain.eval()(x))


def test_learns_the_noise():
    """A short training halves the error of flat images."""
    network = DnCNN(depth=4, width=8)
    clean = torch.rand(4, 1, 1, 1).expand(4, 1, 16, 16)
    noisy = clean + 0.1 * torch.randn(4, 1, 16, 16)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        loss = (network(noisy) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * 0.1**2  # half the error of the input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(depth=1), "DnCNN: depth=1 must be a whole number from 2"),
        (dict(width=0), "DnCNN: width=0 must be a whole number from 1"),
        (dict(in_channels=3.0), "in_channels=3.0"),
        (dict(conv_cfg=dict(type="attlas.WeightedConv2d", den=[0.7, 0.8])), "an axis of 3 taps takes 1 values"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DnCNN(**options)


def test_files_of_others():
    with pytest.raises(ValueError, match="This is no state dict of DnCNN"):
        DnCNN.from_file({"intro.weight": torch.zeros(1)})
    with pytest.raises(
        ValueError, match=r"looks like DnCNN\(in_channels=3, depth=5, width=8, norm=False, bias=False\)"
    ):
        checkpoint.load(DnCNN(width=8, depth=5), DnCNN(3, 5, 8, norm=False).state_dict())
