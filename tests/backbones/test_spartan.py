"""What characterizes SpaRTAN: waves that a complex product rotates, one of them in all others, and two reaches."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones
from attlas.backbones.inspection.costs import PeakMemory
from attlas.backbones.layers import Block
from attlas.backbones.spartan import CMixer, SMixer, SpaRTAN

SMALL = dict(dims=(16, 32, 48, 64), depths=(1, 1, 2, 1))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module):
    """The module in float64 and inference, its norms and scales away from the identity."""
    torch.manual_seed(0)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith(("norm.weight", "running_var")):
            value.data.uniform_(0.5, 1.5)
        elif name.endswith(("norm.bias", "running_mean", "gamma")):
            value.data.normal_()
    return module.double().eval().requires_grad_(False)


def waves_by_definition(mixer, x):
    """One pixel after the other."""
    f = x.new_empty(len(x), len(mixer.theta.weight), *x.shape[2:])
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in (len(x), *x.shape[2:]))):
        pixel = x[b, :, i, j]
        theta, w = (layer.weight.flatten(1) @ pixel + layer.bias for layer in (mixer.theta, mixer.amplitude))
        theta = theta / 2 * (1 + torch.erf(theta / math.sqrt(2)))
        strongest = max(range(len(pixel)), key=lambda channel: pixel[channel])
        f[b, :, i, j] = w * theta + w[strongest] * theta[strongest]
    return f


# --- the channel mixer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "groups"), [(2, None), (4, 32), (4, None), (2.5, 10), (1, 2)])
def test_channel_mixer_by_definition(ratio, groups):
    mixer, x = filled(CMixer(8, ratio, groups)), normal(2, 8, 4, 5)
    f = waves_by_definition(mixer, x)
    torch.testing.assert_close(mixer.waves(x), f)
    rotated = torch.empty_like(f)
    for k, (re, im) in enumerate(mixer.factor):
        rotated[:, 2 * k] = f[:, 2 * k] * re - f[:, 2 * k + 1] * im
        rotated[:, 2 * k + 1] = f[:, 2 * k] * im + f[:, 2 * k + 1] * re
    torch.testing.assert_close(mixer.rotate(f), rotated)
    y = F.gelu(mixer.conv.norm(F.conv2d(rotated, mixer.conv.conv.weight, padding=1, groups=groups or 8)))
    y = y * torch.sigmoid(mixer.gate.fc2(F.relu(mixer.gate.fc1(y.mean((2, 3), keepdim=True)))))
    torch.testing.assert_close(mixer(x), mixer.proj_out(y))


def test_a_unit_factor_keeps_the_norm_of_each_pair():
    mixer, f = filled(CMixer(8)), normal(2, 16, 5, 3)
    norms = f.unflatten(1, (8, 2)).norm(dim=2)
    mixer.factor.copy_(F.normalize(mixer.factor, dim=1))
    rotated = mixer.rotate(f)
    assert (rotated - f).abs().max() > 0.1
    torch.testing.assert_close(rotated.unflatten(1, (8, 2)).norm(dim=2), norms)
    mixer.factor.copy_(torch.tensor([1.0, 0.0]))
    assert torch.equal(mixer.rotate(f), f)
    mixer.factor.copy_(torch.tensor([0.0, 2.0]))
    quarter = mixer.rotate(f).unflatten(1, (8, 2)) / 2
    torch.testing.assert_close(quarter, torch.stack([-f[:, 1::2], f[:, 0::2]], dim=2))


def test_ties_take_the_first_channel():
    mixer = filled(CMixer(8))
    x = normal(1, 8, 3, 3).clamp(max=0)
    x[:, 5], x[:, 2], x[:, 7] = 1, 1, 1
    first = x.clone()
    first[:, 2] += 1e-12
    torch.testing.assert_close(mixer.waves(x), mixer.waves(first), rtol=1e-9, atol=1e-9)
    other = x.clone()
    other[:, 5] += 1e-12
    assert (mixer.waves(x) - mixer.waves(other)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_complex_product_in_half_precision(dtype):
    """It is that of float32, rounded once, though bfloat16 has no complex numbers; autocast changes nothing."""
    torch.manual_seed(0)
    mixer = CMixer(8, 4).requires_grad_(False)
    mixer.factor.copy_(mixer.factor.to(dtype))
    f = (100 * normal(2, 32, 9, 7)).to(dtype)
    expected = mixer.rotate(f.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixer.rotate(f.float()), expected)
        assert torch.equal(mixer.rotate(f), expected.to(dtype))
    assert torch.equal(mixer.to(dtype).rotate(f), expected.to(dtype))
    re, im = mixer.factor.T[..., None, None]
    rounded_often = f[:, 0::2] * re - f[:, 1::2] * im
    assert not torch.equal(rounded_often, expected[:, 0::2].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Forward and backward, where no two channels are close (a tie would be decided by rounding)."""
    x = normal(2, 16, 6, 5)
    x.scatter_(1, x.argmax(1, keepdim=True), 4)
    x = x.to(dtype)
    for mixer in (SMixer(16), CMixer(16)):
        mixer = filled(mixer).float()
        expected, half = mixer(x.float()), mixer.to(dtype).requires_grad_(True)(x)
        assert half.dtype == dtype
        assert (half.float() - expected).norm() < 0.03 * expected.norm()
        half.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_gradients_of_the_channel_mixer():
    mixer, x = filled(CMixer(4)), normal(1, 4, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(mixer, x)
    mixer.requires_grad_(True)
    names, values = zip(*mixer.named_parameters())

    def of_parameters(*values):
        return torch.func.functional_call(mixer, dict(zip(names, values)), x.detach())

    assert torch.autograd.gradcheck(of_parameters, values)


# --- the spatial mixer -----------------------------------------------------------------------------------------------


def test_recalibration():
    """γ of 0 is the identity, of -1 the mean of all pixels."""
    mixer, x = filled(SMixer(16)), normal(2, 8, 5, 7)
    torch.testing.assert_close(
        mixer.recalibrate(x), x + mixer.gamma.view(-1, 1, 1) * (x - x.mean((2, 3), keepdim=True))
    )
    mixer.gamma.zero_()
    assert torch.equal(mixer.recalibrate(x), x)
    mixer.gamma.fill_(-1)
    torch.testing.assert_close(mixer.recalibrate(x), x.mean((2, 3), keepdim=True).expand_as(x))


@pytest.mark.parametrize(("groups", "channels"), [(1, range(8)), (None, [3]), (4, [2, 3])])
def test_reaches(groups, channels):
    """Near: a pixel to either side. Far: four, of every second pixel. Which channels are read is up to the groups."""
    mixer, x = filled(SMixer(16, groups)), normal(1, 8, 15, 13)
    changed = x.clone()
    changed[:, 3, 7, 6] += 1
    for branch, offsets in ((mixer.near, range(-1, 2)), (lambda x: mixer.far(mixer.widen(x)), range(-4, 5, 2))):
        reached = torch.zeros(8, 15, 13, dtype=torch.bool)
        for channel in channels:
            for row in offsets:
                reached[channel, 7 + row, [6 + column for column in offsets]] = True
        assert torch.equal(branch(changed)[0] != branch(x)[0], reached)


def test_spatial_mixer_by_its_parts():
    mixer, x = filled(SMixer(16, groups=2)), normal(2, 16, 6, 5)
    z = mixer.recalibrate(F.conv2d(x, mixer.proj_in.weight, mixer.proj_in.bias))
    near = F.conv2d(z, mixer.near.conv.weight, padding=1, groups=2)
    far = F.conv2d(z, mixer.widen.weight, padding=2, dilation=2, groups=2)
    far = F.conv2d(far, mixer.far.conv.weight, padding=2, dilation=2, groups=2)
    parts = []
    for y, norm, gate in ((near, mixer.near.norm, mixer.near_gate), (far, mixer.far.norm, mixer.far_gate)):
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-6)
        y = F.gelu(y)
        parts.append(y * torch.sigmoid(gate.fc2(F.relu(gate.fc1(y.mean((2, 3), keepdim=True))))))
    torch.testing.assert_close(mixer(x), mixer.proj_out(torch.cat(parts, dim=1)))


# --- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"), [(SMixer, {}), (SMixer, dict(groups=1)), (CMixer, {}), (CMixer, dict(ratio=4, groups=128))]
)
def test_cost_is_linear_in_pixels(kind, options):
    mixer, costs, peaks = kind(32, **options).eval(), [], []
    for rows in (32, 64, 128):
        x = torch.randn(1, 32, rows, 64).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), FlopCounterMode(display=False) as counter, PeakMemory([x, *mixer.parameters()]) as memory:
            mixer(x)
        costs.append(counter.get_total_flops())
        peaks.append(memory.peak)
    gates = 2 * costs[0] - costs[1]  # which count once for an image
    assert 0 < gates < 0.01 * costs[0]
    assert costs[2] - costs[1] == 2 * (costs[1] - costs[0])
    assert 1.9 < peaks[2] / peaks[1] < 2.1


@pytest.mark.parametrize("name", ["SMixer", "CMixer"])
def test_in_an_isotropic_network(name):
    network = backbones.Isotropic(32, 2, mixers=name, img_size=64, patch_size=8, class_token=None, num_classes=3)
    for height, width in ((64, 64), (40, 72)):
        x = normal(2, 3, height, width).float()
        network(x).logsumexp(1).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


# --- the network -----------------------------------------------------------------------------------------------------


def test_sizes():
    """The stem rounds up, transitions round down; what is too small for them is filled up with zeros."""
    network = filled(SpaRTAN(**SMALL))
    for (height, width), sides in (
        ((64, 64), [(16, 16), (8, 8), (4, 4), (2, 2)]),
        ((75, 62), [(19, 16), (9, 8), (4, 4), (2, 2)]),
        ((29, 61), [(8, 16), (4, 8), (2, 4), (1, 2)]),
    ):
        assert network.map_sizes(height, width) == sides
        assert [tuple(y.shape[2:]) for y in network(normal(1, 3, height, width))] == sides
    x = normal(1, 3, 5, 61)
    for got, expected in zip(network(x), network(F.pad(x, (0, 0, 0, 24)))):
        assert torch.equal(got, expected)


def test_the_last_row_of_an_odd_map_is_lost():
    x = normal(1, 16, 9, 7)
    down = filled(SpaRTAN(**SMALL)).stages[1].downsample
    torch.testing.assert_close(down(x), down(x[:, :, :8, :6]))
    conv, norm = down[0].conv, down[0].norm
    torch.testing.assert_close(down(x), F.silu(norm(F.conv2d(x, conv.weight, stride=2))))
    assert norm.eps == 1e-6


def test_the_two_forms():
    """The classifier takes the mean of the last map; the dense form gives all maps, without norms."""
    x = normal(2, 3, 75, 62)
    classifier, dense = filled(SpaRTAN(**SMALL, num_classes=5)), filled(SpaRTAN(**SMALL))
    assert not list(dense.norms.parameters())
    dense.load_state_dict({k: v for k, v in classifier.state_dict().items() if not k.startswith("head.")})
    maps = dense(x)
    for got, expected in zip(maps, classifier.forward_intermediates(x)[1]):
        assert torch.equal(got, expected)
    torch.testing.assert_close(classifier(x), classifier.head.fc(maps[-1].mean((2, 3))))
    with torch.device("meta"):
        counted = backbones.create("spartan_t", out_indices=(0, 1, 2, 3))
    assert sum(p.numel() for p in counted.parameters()) == 3_563_296


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_groups_of_the_stages(stages):
    """Early stages: dense spatial, depth-wise channel mixers. Late ones: depth-wise and C groups. Of three stages the
    second one is late."""
    network = SpaRTAN((16, 32, 48, 64)[:stages], (1,) * stages, mlp_ratio=(4, 4, 2, 2)[:stages])
    for i, stage in enumerate(network.stages):
        block, dim = stage.blocks[0], network.dims[i]
        early = i < {2: 1, 3: 1, 4: 2}[stages]
        for conv in (block.mixer.near.conv, block.mixer.widen, block.mixer.far.conv):
            assert conv.groups == (1 if early else dim // 2)
        assert block.mlp.conv.conv.groups == (network.mlp_ratio[i] * dim if early else dim)


def test_a_block():
    """Both branches are behind a group norm of one group, and scaled."""
    network, x = filled(SpaRTAN(**SMALL)), normal(2, 16, 6, 5)
    block = network.stages[0].blocks[0]
    assert isinstance(block, Block)
    y = x
    for norm, branch, scale in ((block.norm1, block.mixer, block.scale1), (block.norm2, block.mlp, block.scale2)):
        z = F.layer_norm(y, y.shape[1:], eps=1e-6) * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
        y = y + scale.gamma.view(-1, 1, 1) * branch(z)
    torch.testing.assert_close(block(x), y)


def test_rates_of_stochastic_depth():
    network = SpaRTAN(**SMALL, drop_path_rate=0.5)
    rates = [block.drop_path.rate for stage in network.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_initial_weights():
    torch.manual_seed(0)
    network = SpaRTAN((64, 128), (1, 1), mlp_ratio=(4, 2), num_classes=500)
    early, late = (stage.blocks[0] for stage in network.stages)
    for conv, fan_out in (
        (network.stem[2].conv, 9 * 64),
        (early.mixer.near.conv, 9 * 32),
        (early.mlp.theta, 256),
        (late.mixer.near.conv, 9),  # depth-wise
        (late.mlp.conv.conv, 9 * 2),
    ):
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.07)
        assert conv.bias is None or not conv.bias.any()
    assert early.mlp.factor.std().item() == pytest.approx(1, rel=0.15)
    assert network.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for scale in (early.scale1.gamma, late.scale2.gamma, early.mixer.gamma):
        assert (scale == 1e-5).all()


def test_a_stage_without_blocks():
    """It has no transition behind it, also in the numbers of the authors' files."""
    options = dict(dims=(16, 16, 32, 48), depths=(1, 0, 2, 1))
    with pytest.raises(ValueError, match=r"depths=\(1, 0, 2, 1\): there is no transition behind stage 1 of depth 0"):
        SpaRTAN(**options)
    network = filled(SpaRTAN(**options | dict(dims=(16, 32, 32, 48))))
    assert network.out_strides == (4, 8, 8, 16)
    maps = network(normal(1, 3, 50, 70))
    assert [tuple(y.shape[1:]) for y in maps] == [(16, 13, 18), (32, 6, 9), (32, 6, 9), (48, 3, 4)]
    names = ["stages.0.blocks.0", "stages.1.downsample.0", "stages.2.blocks.0", "stages.2.blocks.1"]
    names += ["stages.3.downsample.0", "stages.3.blocks.0"]
    theirs = {}
    for name, value in network.state_dict().items():
        for number, layer in enumerate(names):
            if name.startswith(f"{layer}."):
                name = f"layers.{number}.{name.removeprefix(f'{layer}.')}"
                break
        theirs[name] = value
    again = SpaRTAN(**options | dict(dims=(16, 32, 32, 48)))
    account = backbones.load(again, theirs)
    assert account.complete, str(account)
    assert len(account.renamed) > 100


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_dtypes_without_a_strongest_channel(dtype):
    with pytest.raises(TypeError, match=f"CMixer: x must be of floating point, got {dtype}"):
        CMixer(8)(torch.ones(1, 8, 2, 2, dtype=dtype))


def test_bad_options():
    for build, message in (
        (lambda: SMixer(12), r"SMixer: dim=12 must be divisible by 8"),
        (lambda: SMixer(16, groups=3), r"SMixer: groups=3 must divide dim / 2 = 8"),
        (lambda: CMixer(2), r"CMixer: dim=2 must be at least 4"),
        (lambda: CMixer(8, 0.5), r"dim \* ratio=4 an even number of at least dim; got ratio=0.5"),
        (lambda: CMixer(9, 1), r"dim \* ratio=9 an even number"),
        (lambda: CMixer(8, 2.5), r"CMixer: groups=8 must divide dim \* ratio=20"),
        (lambda: SpaRTAN(expand_ratio=4), r"SpaRTAN has no option 'expand_ratio'"),
        (lambda: SpaRTAN((32, 60), (1, 1), mlp_ratio=2), r"SMixer: dim=60 must be divisible by 8"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
