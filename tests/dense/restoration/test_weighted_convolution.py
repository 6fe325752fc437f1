"""Weighted convolution: the authors' results, the density, conversion and folding, and the mm libraries' conv_cfg."""

import pytest
import torch
import torch.nn.functional as F
from golden_records import Record
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn
from torch.testing import assert_close

from attlas import checkpoint
from attlas.backbones.layers import ConvNorm, fuse
from attlas.dense.restoration import WeightedConv1d, WeightedConv2d, WeightedConv3d, convert, fold
from attlas.registry import MODELS

TOLERANCE = dict(rtol=0, atol=1e-5)
KINDS = {1: WeightedConv1d, 2: WeightedConv2d, 3: WeightedConv3d}


def params(module):
    return sum(p.numel() for p in module.parameters())


# --- records of the authors' code ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"), [("fixed_k5", {}), ("trainable_k7", dict(den=[0.27, 0.17, 0.54], learned=True))]
)
def test_equals_the_authors(name, options):
    record = Record(f"weighted-convolution/wconv2d_{name}")
    conv = WeightedConv2d(**{**record.config, **options})
    conv.load_state_dict(record.state_dict(), strict=bool(options))  # a record has no buffers
    assert params(conv) == record.params
    x = record.input("x", torch.float32)
    assert_close(conv(x), record.output(), **TOLERANCE)
    assert_close(fold(conv)(x), record.output(), **TOLERANCE)


class Learning2D(nn.Module):
    def __init__(self, conv1, conv2):
        super().__init__()
        self.conv1, self.conv2, self.fc = conv1, conv2, nn.Linear(4096, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1))


def plain_network():
    return Learning2D(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 5, padding=2))


def test_network_equals_the_authors():
    record = Record("weighted-convolution/learning_2d_net")
    network = plain_network()
    account = checkpoint.load(network, record.state_dict())
    assert account.complete, str(account)
    convert(network, {3: [0.75], 5: [1.5, 0.75]}, keep="weights")
    assert params(network) == record.params == 44_266
    x = record.input("img", torch.float32)
    assert_close(network(x), record.output(), **TOLERANCE)


def test_reads_the_authors_buffers():
    """Their modules save α and Φ; here the file's density counts, not the one that was configured."""
    conv = WeightedConv2d(2, 3, 5, den=[0.2, 0.8])
    state = {
        "0.weight": conv.weight,
        "0.bias": conv.bias,
        "1.weight": torch.randn(2, 3, 1, 1),
        "1.bias": torch.zeros(2),
    }
    state["0.alfa"] = torch.tensor([0.2, 0.8, 1, 0.8, 0.2])
    state["0.Phi"] = torch.outer(state["0.alfa"], state["0.alfa"])
    state["1.alfa"], state["1.Phi"] = torch.ones(1), torch.ones(1, 1)
    other = nn.Sequential(WeightedConv2d(2, 3, 5), WeightedConv2d(3, 2, 1))
    account = checkpoint.load(other, state)
    assert account.complete, str(account)
    assert torch.equal(other[0].density(), state["0.Phi"])


# --- the density -----------------------------------------------------------------------------------------------------


def test_worked_example():
    phi = WeightedConv2d(1, 1, 3, den=[0.7]).density()
    assert_close(phi, torch.tensor([[0.49, 0.7, 0.49], [0.7, 1, 0.7], [0.49, 0.7, 0.49]]))
    by_hand = [[0.2 * 0.5, 0.5, 0.2 * 0.5], [0.8 * 0.5, 0.5, 0.8 * 0.5], [0.5, 1, 0.5]]
    by_hand = torch.tensor([by_hand[0], by_hand[1], by_hand[2], by_hand[1], by_hand[0]])
    by_hand[0, 1], by_hand[1, 1], by_hand[3, 1], by_hand[4, 1] = 0.2, 0.8, 0.8, 0.2
    assert_close(WeightedConv2d(1, 1, (5, 3), den=[[0.2, 0.8], [0.5]]).density(), by_hand)
    assert_close(WeightedConv2d(1, 1, (5, 3), den={3: [0.5], 5: [0.2, 0.8]}).density(), by_hand)
    assert_close(WeightedConv2d(1, 1, (5, 1), den=[0.2, 0.8]).density(), torch.tensor([[0.2, 0.8, 1, 0.8, 0.2]]).T)


@pytest.mark.parametrize("dims", KINDS)
def test_is_symmetric_with_a_center_of_one(dims):
    phi = KINDS[dims](1, 1, 7, den=[0.25, 0.15, 0.55]).density()
    assert phi.shape == (7,) * dims
    assert phi[(3,) * dims] == 1
    assert (phi > 0).all()
    for axis in range(dims):
        assert torch.equal(phi, phi.flip(axis))
        assert_close(phi, phi.transpose(0, axis))


@pytest.mark.parametrize("dims", KINDS)
@pytest.mark.parametrize("den", [None, [1, 1.0]])
def test_a_density_of_ones_is_the_plain_convolution(dims, den):
    conv = KINDS[dims](4, 6, 5, stride=2, padding=2, groups=2, den=den, padding_mode="replicate")
    x = torch.randn(2, 4, *(9, 8, 7)[:dims])
    plain = conv.plain(4, 6, 5, stride=2, padding=2, groups=2, padding_mode="replicate")
    plain.weight, plain.bias = conv.weight, conv.bias
    assert torch.equal(conv(x), plain(x))


@pytest.mark.parametrize("dims", KINDS)
@pytest.mark.parametrize("learned", [False, True])
def test_gradients(dims, learned):
    size = (5, 3, 1)[:dims]
    options = dict(stride=1, padding=2, dilation=2, groups=2, bias=True)
    conv = KINDS[dims](2, 2, size, **options, den={3: [0.6], 5: [0.3, 1.2]}, learned=learned).double()
    x = torch.randn(1, 2, *(6, 5, 3)[:dims], dtype=torch.float64, requires_grad=True)
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]

    def call(x, weight, den):
        return torch.func.functional_call(conv, {"weight": weight, "den": den}, (x,))

    phi = torch.tensor([0.3, 1.2, 1, 1.2, 0.3], dtype=torch.float64).view(5, *[1] * (dims - 1))
    if dims > 1:
        phi = phi * torch.tensor([0.6, 1, 0.6], dtype=torch.float64).view(3, *[1] * (dims - 2))
    options.pop("bias")
    assert_close(conv(x), function(x, conv.weight * phi, conv.bias, **options))
    assert isinstance(conv.den, nn.Parameter) == learned
    den = conv.den.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(call, (x, conv.weight.detach().requires_grad_(), den), fast_mode=True)


def test_count_of_parameters():
    plain = nn.Conv2d(4, 4, 7)
    assert params(WeightedConv2d(4, 4, 7, den=[0.27, 0.17, 0.54])) == params(plain)
    assert params(WeightedConv2d(4, 4, 7, learned=True)) == params(plain) + 3
    assert params(WeightedConv2d(4, 4, (7, 3), learned=True)) == params(nn.Conv2d(4, 4, (7, 3))) + 4
    assert params(WeightedConv2d(4, 4, 3, den=[[0.7], [0.8]], learned=True)) == params(nn.Conv2d(4, 4, 3)) + 2
    one = WeightedConv2d(4, 4, 1, den=[0.7], learned=True)
    assert set(one.state_dict()) == {"weight", "bias"}
    assert "den=[0.7], learned=True" in repr(WeightedConv2d(1, 1, 3, den=[0.7], learned=True))


@pytest.mark.parametrize(
    ("size", "den", "message"),
    [
        (5, [0.7], r"den=\[0.7\] of kernel_size=\(5, 5\): an axis of 5 taps takes 2 values.*got \[0.7\]"),
        ((3, 5), [0.7], "an axis of 5 taps takes 2 values"),
        (4, None, r"kernel_size=\(4, 4\).*odd number of taps, with one in the center, not 4.*den=\{3: \[0.7\]\}"),
        (3, {4: [0.7, 0.7]}, "odd number of taps"),
        (3, {"3": [0.7]}, "not '3'"),
        (3, [[0.7]], "has 1 lists, and the kernel 2 axes"),
        (3, [[0.7], [0.7, 0.8]], "takes 1 values"),
        (3, 0.7, "must be a list of values, a list for each axis, or lists by sizes"),
        (3, "0.7", "must be a list of values"),
        (3, [float("nan")], "nan must be a finite number"),
        (3, [True], "True must be a finite number"),
        (3, [None], "None must be a finite number"),
    ],
)
def test_bad_densities(size, den, message):
    with pytest.raises(ValueError, match=message):
        WeightedConv2d(2, 2, size, den=den)


# --- conversion and folding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
def test_converts_and_folds_back(learned):
    network, x = plain_network().eval(), torch.randn(2, 1, 64, 64)
    before, conv = network(x), network.conv1
    weights = conv.weight.clone()
    assert convert(network, {3: [0.5], 5: [0.2, 0.8]}, learned) is network
    assert network.conv1 is conv
    assert isinstance(conv, WeightedConv2d)
    assert not conv.training
    assert params(network) == 44_266 + 3 * learned
    assert_close(network(x), before)
    assert_close(conv.weight[..., 0, 0], weights[..., 0, 0] / 0.25)
    after = network(x)
    assert fold(network) is network
    assert type(network.conv1) is type(network.conv2) is nn.Conv2d
    assert torch.equal(network(x), after)
    assert set(network.state_dict()) == set(plain_network().state_dict())


def test_converts_what_the_mapping_names():
    network = convert(plain_network(), {5: [0.2, 0.8]}, keep="weights")
    assert type(network.conv1) is nn.Conv2d
    assert isinstance(network.conv2, WeightedConv2d)
    alone = convert(nn.Conv3d(2, 2, (1, 3, 3)), [0.7])
    assert isinstance(alone, WeightedConv3d)
    assert type(convert(nn.Sequential(nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 3)), [0.7])[0]) is nn.Conv1d
    kept = nn.Conv2d(2, 2, 3).requires_grad_(False)
    assert not convert(kept, [0.7]).weight.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(den=[0.7]), "conv2: den=.*an axis of 5 taps takes 2 values"),
        (dict(den={7: [1, 1, 1]}), "fits no convolution of Learning2D. In it: 3x3, 5x5"),
        (dict(den={3: [0.0]}), "has a zero, so no weights keep the function"),
        (dict(den={3: [0.7]}, keep="all"), "keep='all' must be 'function' or 'weights'"),
    ],
)
def test_bad_conversions_change_nothing(options, message):
    network = plain_network()
    with pytest.raises(ValueError, match=message):
        convert(network, **options)
    assert type(network.conv1) is type(network.conv2) is nn.Conv2d


def test_fuses_with_a_norm():
    layer = convert(ConvNorm(3, 4, 3), [0.6], keep="weights").eval()
    nn.init.normal_(layer.norm.running_mean)
    x = torch.randn(1, 3, 7, 6)
    before = layer(x)
    fused = fuse(layer)
    assert type(fused) is nn.Conv2d
    assert_close(fused(x), before, **TOLERANCE)


@pytest.mark.filterwarnings("ignore")
def test_exports():
    conv = WeightedConv2d(2, 3, 5, padding=2, den=[0.2, 0.8], learned=True).eval()
    x = torch.randn(1, 2, 9, 7)
    before = conv(x)
    for module in (conv, fold(conv)):
        program = torch.export.export(module, (x,))
        assert torch.equal(program.module()(x), before)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names == ["aten.conv2d.default"]  # folded: nothing but the convolution


# --- in the mm libraries ---------------------------------------------------------------------------------------------

CONV = dict(type="attlas.WeightedConv2d", den={3: [0.7], 7: [0.25, 0.15, 0.55]})


@pytest.mark.parametrize("scope", ["mmdet", "mmseg", "attlas"])
def test_stands_in_any_conv_cfg(scope, tmp_path):
    from mmcv.cnn import ConvModule, build_conv_layer

    (tmp_path / "config.py").write_text(f"conv_cfg = {CONV!r}")
    conv_cfg = Config.fromfile(tmp_path / "config.py").conv_cfg
    with DefaultScope.overwrite_default_scope(scope):
        module = ConvModule(4, 6, 3, padding=1, conv_cfg=conv_cfg, norm_cfg=dict(type="BN"))
        bare = build_conv_layer(dict(type="WeightedConv2d"), 4, 6, 1)
    assert isinstance(module.conv, WeightedConv2d)
    assert module.conv.bias is None
    assert module(torch.randn(1, 4, 5, 6)).shape == (1, 6, 5, 6)
    assert isinstance(bare, WeightedConv2d)


def test_stands_in_a_resnet():
    """Its convolutions are of 1, 3 and 7 taps; plain weights load."""
    from mmdet.models.backbones import ResNet

    with DefaultScope.overwrite_default_scope("mmdet"):
        network, plain = ResNet(18, base_channels=4, conv_cfg=CONV), ResNet(18, base_channels=4)
    network.eval()
    plain.eval()
    weighted = [module for module in network.modules() if isinstance(module, WeightedConv2d)]
    assert len(weighted) == sum(type(module) is nn.Conv2d for module in plain.modules())
    assert params(network) == params(plain)
    account = checkpoint.load(network, plain.state_dict())
    assert all(name.endswith(".den") for name in account.missing)
    x = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        assert not torch.allclose(network(x)[-1], plain(x)[-1])
        weighted_maps = network(x)
        for one, other in zip(weighted_maps, convert(plain, CONV["den"], keep="weights")(x)):
            assert_close(one, other)
        assert_close(fold(network)(x)[-1], weighted_maps[-1])


def test_registered():
    assert MODELS.get("WeightedConv1d") is WeightedConv1d
    assert MODELS.get("attlas.WeightedConv3d") is WeightedConv3d
