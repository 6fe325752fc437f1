"""Relevance against records and by hand; that its sum is the score; what is refused."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden_records import Record
from networks import SYSTEMS, build, image
from torch import nn

from attlas import backbones
from attlas.backbones.inspection.relevance import PAPER, NoRule, Rules, operations, propagate

LAYERS = dict(conv=nn.Conv2d, relu=nn.ReLU, pool=nn.MaxPool2d, reshape=lambda *size: nn.Flatten(), linear=nn.Linear)


def chain(record):
    parts = []
    for kind, *rest in record.config["spec"]:
        args, options = (rest + [[], {}][len(rest) :])[:2]
        parts.append(LAYERS[kind](*args, **options))
    network = nn.Sequential(*parts).eval()
    network.load_state_dict({name.removeprefix("layers."): value for name, value in record.state_dict().items()})
    return network, [str(i) for i, part in enumerate(parts) if isinstance(part, nn.MaxPool2d)][-1]


@pytest.mark.parametrize("name", ["relprop_vgg_like", "relprop_operator_overlap_pool"])
def test_equals_the_authors(name):
    record = Record(f"salient-relevance/{name}")
    network, pool = chain(record)
    x = record.input("x", torch.float32)
    found = propagate(network, x, lambda y: y.amax(1), replace(PAPER, overlap="overwrite"), layers=[pool])
    for number, got in enumerate((network(x), found.inputs[0], found.layers[pool][0])):
        expected = record.output(number)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def first(y):
    return y[:, 1]


def plain(network):
    """Without what keeps relevance: biases, means, tables of positions, class tokens."""
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith(("bias", "running_mean")) or "pos" in name or "token" in name:
                value.zero_()
    return network.eval()


def conserves(network, inputs, tolerance=1e-4, score=first, **options):
    found = propagate(network, inputs, score, **options)
    assert (found.kept.abs() <= tolerance * found.inputs[0].abs().flatten(1).sum(1)).all(), str(found)
    return found


def test_a_pool_whose_windows_overlap():
    """20 pixels are no multiple of the windows; the sum conserves, overwriting does not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(2, 2, 20, 23)
    network(x)
    plain(network)
    sums = conserves(network, x).sums
    lost = propagate(network, x, first, Rules(overlap="overwrite")).sums
    assert (sums - lost).abs().min() > 1e-3


def test_plain_rule_is_input_times_gradient():
    """Of grouped, dilated and strided convolutions, with biases."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=1, groups=2, dilation=(1, 2)),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1, groups=2),
        nn.Flatten(),
    ).eval()
    x = torch.randn(2, 4, 9, 7, requires_grad=True)
    network(x)[:, 5].sum().backward()
    found = propagate(network, x.detach(), lambda y: y[:, 5])
    torch.testing.assert_close(found.inputs[0], x.detach() * x.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("linear", ["positive_weights", "positive_parts"])
def test_positive_rules_conserve_at_every_layer(linear):
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 12)]
    network = nn.Sequential(*parts, nn.ReLU(), nn.Linear(12, 4)).eval()
    found = propagate(network, torch.rand(2, 3, 10, 10), first, Rules(linear=linear), layers=["1", "2", "3", "5"])
    for (relevance,) in found.layers.values():
        torch.testing.assert_close(relevance.flatten(1).sum(1), found.scores, rtol=1e-4, atol=1e-6)


def test_positive_parts_by_hand():
    network = nn.Linear(3, 2).eval()
    x = torch.tensor([[1.0, -2.0, 0.5]])
    y = network(x)[0, 1]
    shares = (x[0] * network.weight[1]).clamp(min=0)
    found = propagate(network, x, first, Rules(linear="positive_parts"))
    torch.testing.assert_close(found.inputs[0][0], (shares / shares.sum() * y).detach())


def test_epsilon_by_hand():
    network = nn.Linear(3, 2).eval()
    x = torch.randn(1, 3)
    y = network(x)[0, 1]
    expected = x[0] * network.weight[1] / (y + 0.5 * y.sign()) * y
    torch.testing.assert_close(propagate(network, x, first, Rules(epsilon=0.5)).inputs[0][0], expected.detach())


@pytest.mark.parametrize("rules", [Rules(convolution="positive_parts"), Rules(epsilon=0.3)])
def test_batch_norm_merges_by_the_trace(rules):
    """Registered before the convolution that it follows, with an eps that counts: as the merged convolution has it."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4, eps=0.3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.norm(self.conv(x)).relu().mean((2, 3))

    torch.manual_seed(0)
    block = Block().eval()
    for value in (block.norm.running_mean, block.norm.weight, block.norm.bias):
        nn.init.normal_(value)
    x = torch.randn(2, 3, 6, 5)
    merged = nn.utils.fuse_conv_bn_eval(block.conv, block.norm)
    block_found = propagate(block, x, first, rules)
    torch.testing.assert_close(block_found.scores, block(x)[:, 1].detach(), rtol=1e-5, atol=1e-6)
    alone = nn.Sequential(merged, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    torch.testing.assert_close(block_found.inputs[0], propagate(alone, x, first, rules).inputs[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["ResNet", "ViT", "DaViT", "BiFormer", "HorNet"])
def test_the_sum_is_the_logit(name):
    """By operation, through attention, GELU and layer norms; and a batch of two equals two singles."""
    network = plain(build(name, num_classes=5))
    x = image(64, 48)
    found = conserves(network, x)
    torch.testing.assert_close(found.scores, network(x)[:, 1].detach(), rtol=1e-4, atol=1e-5)
    for i in range(2):
        single = propagate(network, x[i : i + 1], first).inputs[0]
        assert (found.inputs[0][i : i + 1] - single).abs().max() <= 1e-3 * single.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_operation_of_every_system_has_a_rule(name):
    network = build(name, num_classes=5)
    found = propagate(network, image(64, 64), first)
    assert torch.isfinite(found.inputs[0]).all()
    assert found.inputs[0].abs().sum() > 0


def test_biases_keep_their_share():
    """What is kept is the sum of bias times gradient, over all of them."""
    network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(1, 5)
    network(x)[0, 1].backward()
    share = sum((p * p.grad).sum() for name, p in network.named_parameters() if name.endswith("bias"))
    found = propagate(network, x, first)
    torch.testing.assert_close(found.kept[0], share.detach())
    assert "score" in str(found)
    assert "kept" in str(found)


def test_attention_both_ways():
    torch.manual_seed(0)
    layer = plain(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu"))
    x = torch.randn(2, 5, 16)
    constant = conserves(layer, x, score=lambda y: y[:, 1, 2]).inputs[0]
    gradient = propagate(layer, x, lambda y: y[:, 1, 2], Rules(weights="gradient")).inputs[0]
    assert torch.isfinite(gradient).all()
    assert (constant - gradient).abs().max() > 1e-4


class Twice(nn.Module):
    """A layer that runs twice, in-place operations on what others read, a product, and writing into a buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.relu = nn.Linear(4, 4, bias=False), nn.ReLU(inplace=True)

    def forward(self, x):
        a = self.layer(x)
        b = self.layer(self.relu(a))
        c = a * b
        a.mul_(2)
        buffer = x.new_zeros(len(x), 3, 4)
        buffer[:, 1] = c
        buffer[:, 2].copy_(F.silu(a, inplace=True))
        return (buffer + F.glu(torch.cat([buffer, buffer], -1))).sum(1)


def test_called_twice_and_in_place():
    torch.manual_seed(0)
    network, x = Twice().eval(), torch.randn(2, 4)
    given = x.clone()
    found = conserves(network, x, layers=["layer", "relu"])
    torch.testing.assert_close(found.scores, network(x)[:, 1].detach())
    assert torch.equal(x, given)
    assert [len(calls) for calls in found.layers.values()] == [2, 1]
    calls = {row.name: row.calls for row in operations(network, x)}
    assert calls["aten::mm"] == 2


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.GroupNorm(2, 6), nn.InstanceNorm2d(6), nn.Conv2d(6, 3, 3, bias=False), nn.Flatten()),
        nn.Sequential(nn.Upsample(scale_factor=1.5, mode="bilinear"), nn.Identity(), nn.Hardswish(), nn.Flatten()),
        nn.Sequential(nn.RMSNorm(5), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Flatten()),
        nn.Sequential(nn.PixelShuffle(1), nn.AvgPool2d(2, 1), nn.ReLU6(inplace=True), nn.Mish(), nn.Flatten()),
    ],
    ids=lambda network: type(network[0]).__name__,
)
def test_modules(network):
    torch.manual_seed(0)
    conserves(network.eval(), torch.randn(2, 6, 4, 5))


@pytest.mark.slow
def test_points():
    from attlas.pointnets.dgcnn import DGCNNClassifier

    torch.manual_seed(0)
    network = plain(DGCNNClassifier(num_classes=5))
    conserves(network, torch.randn(2, 64, 3), 1e-3)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 3)

    def forward(self, x):
        return self.outer(torch.atan2(self.inner(x), x))


def test_what_has_no_rule_is_listed():
    network, x = Odd().eval(), torch.randn(2, 4)
    with pytest.raises(NoRule, match=r"aten::atan2: 1 calls, in Odd"):
        propagate(network, x, first)
    assert [row.name for row in operations(network, x) if not row.rule] == ["aten::atan2"]
    found = propagate(network, x, first, layers=["outer"], at_inputs=False)
    assert found.inputs == [None]
    torch.testing.assert_close(found.layers["outer"][0].sum(1), found.scores)


def test_nothing_changes():
    network = backbones.create("resnet18", num_classes=3).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    propagate(network, image(32, 32), first)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_random_weights_give_another_map():
    """A map of what the network has learned is not one of the image."""
    x = image(64, 64, batch=1)
    maps = []
    for seed in (0, 1):
        network = build("ResNet", filled=False, num_classes=5)
        torch.manual_seed(seed)
        network.apply(network.initialize)
        maps.append(propagate(network, x, first).inputs[0].sum(1).flatten())
    assert torch.corrcoef(torch.stack(maps))[0, 1].abs() < 0.5


def test_bad_input():
    network, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(2, 4)
    for change, message in (
        (dict(layers=["2"]), "'2' is no module of Sequential"),
        (dict(layers="0"), "must be a list"),
        (dict(at_inputs=False), "needs layers"),
        (dict(inputs=torch.full((2, 4), float("nan"))), "NaN or infinite"),
        (dict(inputs=torch.zeros(0, 4)), "at least 1"),
        (dict(inputs=torch.zeros(2, 4, dtype=torch.long)), "no input is of floating point"),
        (dict(score=lambda y: y), r"the score must be \(2,\)"),
        (dict(score=lambda y: y[:, 0] * float("nan")), "sample 0 is NaN"),
    ):
        options = {"inputs": x, "score": first, **change}
        with pytest.raises(ValueError, match=message):
            propagate(network, **options)
    with pytest.raises(ValueError, match="take the logits before it"):
        propagate(nn.Softmax(1).eval(), x, first)
    with pytest.raises(ValueError, match="call eval"):
        propagate(network.train(), x, first)
    with pytest.raises(ValueError, match=r"linear='z' must be one of"):
        Rules(linear="z")
    with pytest.raises(ValueError, match="epsilon=-1"):
        Rules(epsilon=-1)
