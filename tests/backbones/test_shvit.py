"""What characterises SHViT: attention on a part of the channels without positions, blocks that begin as nothing."""

import re

import pytest
import torch
import torch.nn.functional as F
from golden_records import Record
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones
from attlas.backbones.shvit import SHSA, SHViT


def small(**options):
    return SHViT((32, 48, 64), (1, 1, 2), (None, 12, 16), **options)


def randomise(module):
    """Norms away from the identity."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm1d)):
            for value, low in (
                (norm.weight, 0.5),
                (norm.bias, -0.5),
                (norm.running_mean, -0.5),
                (norm.running_var, 0.5),
            ):
                value.data.copy_(torch.rand(value.shape, generator=generator) + low)
    return module


def maps(*size):
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def shsa():
    torch.manual_seed(0)
    return randomise(SHSA(28)).double().eval()


@pytest.mark.parametrize(
    ("size", "sides"), [((224, 224), [(14, 14), (7, 7), (4, 4)]), ((96, 80), [(6, 5), (3, 3), (2, 2)])]
)
def test_sizes(size, sides):
    with torch.device("meta"):
        outputs = backbones.create("shvit_s1", out_indices=(0, 1, 2)).eval()(torch.zeros(1, 3, *size))
    assert [tuple(y.shape[1:]) for y in outputs] == [(c, *side) for c, side in zip((128, 224, 320), sides)]
    assert small(key_dim=8).stages[1].blocks[0].mixer.branch.widths == [8, 8, 12]


def test_the_dense_form():
    """The maps of the classifier as they are: no norms, also at odd sizes; a head is named as left out."""
    classifier, dense = randomise(small(num_classes=3)).double().eval(), small().double().eval()
    account = backbones.load(dense, classifier.state_dict())
    assert not account.missing
    assert {name.split(".")[0] for name in account.ignored} == {"head"}
    assert not list(dense.norms.parameters())
    x = maps(1, 3, 75, 130)
    got = dense(x)
    assert [tuple(y.shape[-2:]) for y in got] == [(5, 9), (3, 5), (2, 3)]
    for y, expected in zip(got, classifier.forward_intermediates(x)[1]):
        assert torch.equal(y, expected)


@pytest.mark.parametrize(("options", "params"), [(dict(num_classes=10), (175_278, 172_422)), (dict(), None)])
def test_fused(options, params):
    """The authors' numbers of parameters before and after, and the same outputs."""
    network, image = randomise(small(**options)).double().eval(), maps(2, 3, 80, 96)
    before, expected = sum(p.numel() for p in network.parameters()), network(image)
    network.fuse()
    if params is not None:
        assert (before, sum(p.numel() for p in network.parameters())) == params
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)) for m in network.modules())
    torch.testing.assert_close(network(image), expected, rtol=1e-9, atol=1e-9)


def test_two_heads_fused():
    network, image = randomise(small(num_classes=10, distilled=True)).double().eval(), maps(2, 3, 64, 64)
    features, expected = network.forward_features(image), network(image)
    both = [head.fc(head.after(features.mean((2, 3)))) for head in (network.head, network.head.distilled)]
    torch.testing.assert_close(expected, (both[0] + both[1]) / 2)
    torch.testing.assert_close(network.fuse()(image), expected, rtol=1e-9, atol=1e-9)


def test_blocks_begin_as_the_identity():
    network = small().eval()
    for stage, dim in zip(network.stages, network.dims):
        x = torch.randn(1, dim, 5, 4)
        for block in stage.blocks:
            assert torch.equal(block(x), x)


def test_the_other_channels_pass_through_relu_and_proj_alone(shsa):
    x, other = maps(2, 28, 5, 4), maps(2, 28, 5, 4).flip(0)
    part = shsa.split[0]
    other[:, :part] = x[:, :part]
    change = F.relu(other) - F.relu(x)
    conv, norm = shsa.proj.conv, shsa.proj.norm
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(-1, 1, 1)
    torch.testing.assert_close(shsa(other) - shsa(x), conv(change) * scale)
    assert not torch.equal(shsa(other), shsa(x))


def test_permuting_pixels_commutes(shsa):
    x, order = maps(2, 28, 5, 4), torch.randperm(20, generator=torch.Generator().manual_seed(2))
    permuted = x.flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(shsa(permuted).flatten(2), shsa(x).flatten(2)[..., order])


def test_cost():
    """2 N² (d + P) operations for pixels with pixels: sixteen times as many for four times the pixels."""
    counts = []
    for side in (4, 8):
        with FlopCounterMode(display=False) as counter:
            SHSA(32, partial_dim=8).eval()(torch.zeros(1, 32, side, side))
        counts.append(sum(n for op, n in counter.get_flop_counts()["Global"].items() if "conv" not in str(op)))
    assert counts == [2 * 16**2 * 24, 2 * 64**2 * 24]


def test_attention_map(shsa):
    """It is what the attention multiplies the values by."""
    x, place = maps(1, 28, 5, 4), (3, 2)
    weights = shsa.attention_maps(x, place)
    assert weights.shape == (1, 1, 5, 4)
    q, k, v = shsa._rows(x[:, : shsa.split[0]])
    attended = F.scaled_dot_product_attention(q, k, v)[:, :, place[0] * 4 + place[1]]
    torch.testing.assert_close(torch.einsum("bmn,bmnc->bmc", weights.flatten(2), v), attended)


def test_names_of_timm():
    """timm counts the five parts between two stages, and has the blocks in a list of their own."""

    def timm(name):
        def stage(match):
            number, part, rest = int(match[1]) - 1, int(match[2]), match[3]
            if number == 0 or part > 2:
                return f"stages.{number}.blocks.{part - 3 * (number > 0)}.{rest}"
            if part == 1:
                return f"stages.{number}.downsample.2.{rest}"
            inner, _, rest = rest.partition(".")
            return f"stages.{number}.downsample.{int(inner) + 3 * (part == 2)}.{rest}"

        return re.sub(r"^blocks(\d)\.(\d+)\.(.+)$", stage, name)

    official = Record("shvit/network_small").state_dict()
    renamed = {timm(name): value for name, value in official.items()}
    assert "stages.1.downsample.2.se.fc1.weight" in renamed
    logits = []
    for state in (official, renamed):
        network = small(num_classes=10).eval()
        account = backbones.load(network, state)
        assert account.complete, str(account)
        logits.append(network(torch.ones(1, 3, 64, 64)))
    assert torch.equal(*logits)


def test_bad_width():
    with pytest.raises(ValueError, match="partial_dim=40 must be from 1 to dim=32"):
        SHSA(32, partial_dim=40)
    with pytest.raises(ValueError, match="SHSA: key_dim=0 must be at least 1"):
        SHSA(32, key_dim=0)
    with pytest.raises(ValueError, match="partial_dims must have one entry for each of the 2 stages"):
        SHViT(dims=(32, 64), depths=(1, 1))
