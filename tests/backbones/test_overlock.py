"""What characterises OverLoCK: clamped windows, kernels that merge, an overview that speaks in training and output."""

import copy

import pytest
import torch
import torch.nn.functional as F
from golden_records import Record, parameter
from levels import norms_reach
from torch import nn

from attlas import backbones
from attlas.backbones.layers import fuse
from attlas.backbones.overlock import (
    BRANCHES,
    ContMix,
    ContMixBlock,
    DilatedReparam,
    GlobalResponseNorm,
    OverLoCK,
)
from attlas.optim import layer_groups
from attlas.registry import MODELS

SMALL = dict(
    dims=(16, 24, 32, 64),
    depths=(1, 1, 1, 1),
    focus_depths=(2, 2),
    kernel_sizes=(9, 7, 7, 5),
    heads=(2, 4),
    features=96,
)


def small(**options):
    return OverLoCK(**{**SMALL, **options})


def filled(module):
    """The module with weights that follow from their names."""
    state = module.state_dict()
    module.load_state_dict({n: parameter(n, v.shape) if v.is_floating_point() else v for n, v in state.items()})
    return module.double().eval()


def normal(*size):
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def count(module):
    return sum(p.numel() for p in module.parameters())


def merged_file(state):
    """What the authors' merging makes of their state dict: one convolution with bias for the parallel kernels. They
    keep the norm behind it."""
    merged = {name: value for name, value in state.items() if "origin_bn" not in name and ".dil_" not in name}
    for name in [name for name in state if name.endswith("lk_origin.weight")]:
        prefix = name.removesuffix("lk_origin.weight")
        kernels, bias = torch.zeros_like(state[name]), 0
        side = kernels.shape[-1]
        branches = [("lk_origin", "origin_bn", side, 1)]
        branches += [(f"dil_conv_k{k}_{d}", f"dil_bn_k{k}_{d}", k, d) for k, d in BRANCHES[side]]
        for conv, norm, k, dilation in branches:
            gamma, beta, mean, variance = (
                state[f"{prefix}{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale, first = gamma / (variance + 1e-5).sqrt(), (side - dilation * (k - 1)) // 2
            taps = slice(first, side - first, dilation)
            kernels[..., taps, taps] += state[f"{prefix}{conv}.weight"] * scale[:, None, None, None]
            bias = bias + beta - mean * scale
        merged |= {name: kernels, f"{prefix}lk_origin.bias": bias}
    return merged


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "single", "merged", "segmentation", "detection"),
    [
        ("overlock_xt", 16_969_600, 16_453_712, 15_514_328, 15_657_380),
        pytest.param("overlock_t", 34_476_448, 33_467_040, 32_796_472, 33_127_096, marks=pytest.mark.slow),
        pytest.param("overlock_s", 57_795_748, 56_156_452, 56_115_900, 56_446_524, marks=pytest.mark.slow),
        pytest.param("overlock_b", 97_434_816, 94_942_528, 95_673_464, 96_091_496, marks=pytest.mark.slow),
    ],
)
def test_parameters_of_the_other_forms(name, single, merged, segmentation, detection):
    dense = dict(out_indices=(0, 1, 2, 3))
    with torch.device("meta"):
        assert count(backbones.create(name, auxiliary=False)) == single
        assert count(backbones.create(name, merged=True)) == merged
        assert count(backbones.create(name, **dense)) == segmentation
        assert count(backbones.create(name, overview_output=True, **dense)) == detection


@pytest.mark.parametrize("overview_output", [False, True])
def test_sizes(overview_output):
    with torch.device("meta"):
        network = backbones.create("overlock_xt", out_indices=(0, 1, 2, 3), overview_output=overview_output).eval()
        maps = network(torch.zeros(1, 3, 224, 224))
    expected = [(56, 56, 56), (112, 28, 28), (340, 14, 14), (420, 7, 7)]
    assert [tuple(x.shape[1:]) for x in maps] == expected


def test_the_auxiliary_head_in_training():
    classifier = MODELS.build(
        dict(
            type="ImageClassifier",
            backbone=dict(type="OverLoCK", num_classes=5, **SMALL),
            auxiliary_weight=0.4,
            data_preprocessor=dict(type="ImagePreprocessor"),
        )
    )
    network, x, labels = classifier.backbone.train(), normal(2, 3, 64, 64).float(), torch.tensor([1, 3])
    logits, auxiliary = network(x)
    assert logits.shape == auxiliary.shape == (2, 5)
    network.forward_features(x, notes := {})
    torch.testing.assert_close(auxiliary, network.head.auxiliary(notes["overview"]))
    found = classifier(x, labels, mode="loss")
    expected = F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(auxiliary, labels)
    torch.testing.assert_close(found["loss"], expected)

    network.reset_classifier(7)
    assert [y.shape for y in network(x)] == [(2, 7), (2, 7)]
    assert network.eval()(x).shape == (2, 7)
    network.train().reset_classifier(0)
    assert network(x).shape == (2, 96)
    network.reset_classifier(3)
    assert [y.shape for y in network(x)] == [(2, 3), (2, 3)]
    assert small(num_classes=5, auxiliary=False).train()(x).shape == (2, 5)
    assert network.eval().fuse().head.auxiliary is None


def test_the_norm_of_level_1_is_on_the_path():
    """The third base stage reads level 1 as it is given out, also where it is not given; no other norm is there."""
    shallow = dict(focus_depths=(1, 1))
    dense, x = filled(small(**shallow)), normal(1, 3, 43, 50)
    assert norms_reach(dense, x) == {0: [0], 1: [1, 2, 3], 2: [2], 3: [3]}
    read = []
    dense.stages[2].downsample.register_forward_pre_hook(lambda module, inputs: read.extend(inputs))
    maps = dense(x)
    assert torch.equal(read[0], maps[1])
    for indices in ((0, 2, 3), (3,), (0, 1), (0,)):
        part = small(out_indices=indices, **shallow).double().eval()
        names = {name for name, _ in part.named_parameters()}
        assert ("norms.1.weight" in names) == (max(indices) > 0)
        account = backbones.load(part, dense.state_dict())
        assert account.complete, str(account)
        for i, got in zip(indices, part(x)):
            assert torch.equal(got, maps[i])
    classifier = small(num_classes=5, **shallow)
    assert not classifier.norms
    account = backbones.load(classifier, dense.state_dict())
    assert {"norms.1.weight", "norms.0.bias"} <= set(account.unexpected)


def test_files_of_other_forms():
    """The authors' classifiers and detectors, in the dense form and in parts of it."""
    record = Record("overlock/overlock_small").state_dict()
    shapes = {f"extra_norm.{i}": [(c,), (c,)] for i, c in enumerate((16, 24, 48, 80, 64))}
    shapes |= {"h_proj.0": [(80, 64, 1, 1), (80,)], "h_proj.1": [(80, 1, 1, 1), (80,)]}
    extra = {
        f"{name}.{which}": parameter(f"{name}.{which}", shape)
        for name, both in shapes.items()
        for which, shape in zip(("weight", "bias"), both)
    }
    dense = {name: value for name, value in record.items() if not name.startswith(("head", "aux_head"))}
    detection = small(overview_output=True).double().eval()
    account = backbones.load(detection, dense | extra)
    assert account.complete, str(account)
    segmentation = small().double().eval()
    account = backbones.load(
        segmentation, dense | {n: v for n, v in extra.items() if not n.startswith(("extra_norm.4", "h_proj"))}
    )
    assert account.complete, str(account)

    x = normal(1, 3, 64, 96)
    *first, with_overview = detection(x)
    *others, without = segmentation(x)
    for one, other in zip(first, others):
        torch.testing.assert_close(one, other)
    segmentation.forward_features(x, notes := {})
    o = notes["overview"].permute(0, 2, 3, 1)
    weights = {name: value.double().squeeze() for name, value in extra.items()}
    o = F.layer_norm(o, (64,), weights["extra_norm.4.weight"], weights["extra_norm.4.bias"], 1e-6)
    o = F.linear(o, weights["h_proj.0.weight"], weights["h_proj.0.bias"])
    o = o * weights["h_proj.1.weight"] + weights["h_proj.1.bias"]
    torch.testing.assert_close(with_overview - without, o.permute(0, 3, 1, 2))

    for indices, missing in (((0, 1), "stages.2"), ((0, 2), "stages.3")):
        part = small(out_indices=indices)
        account = backbones.load(part, record)
        assert not account.unexpected
        assert all(name.startswith("norms") for name in account.missing)
        assert not any(name.startswith(missing) for name, _ in part.named_modules())


def test_merged_files():
    """The authors' files of merged kernels load into that form alone, and the others into the other form alone."""
    record = Record("overlock/overlock_small").state_dict()
    single = {name: value for name, value in record.items() if not name.startswith("aux_head")}
    file = merged_file({name: value.double() for name, value in single.items()})
    assert "blocks1.0.proj.1.lk_origin.bias" in file
    plain, merged = (small(num_classes=50, auxiliary=False, merged=m).double().eval() for m in (False, True))
    assert backbones.load(plain, single).complete
    account = backbones.load(merged, file)
    assert account.complete, str(account)
    x = normal(1, 3, 64, 96)
    torch.testing.assert_close(merged(x), plain(x))

    for one, other, match in (
        (plain, merged, "have merged kernels at .*: build the network with merged=True"),
        (merged, plain, "have parallel kernels at .*: build the network without merged=True"),
    ):
        for state in (file if one is plain else record, other.state_dict()):
            with pytest.raises(ValueError, match=match):
                backbones.load(one, state)
        again = small(num_classes=50, auxiliary=False, merged=one is merged).double().eval()
        assert backbones.load(again, one.state_dict()).complete  # our own files
        assert torch.equal(copy.deepcopy(again)(x), one(x))
    torch.testing.assert_close(merged.fuse()(x), plain(x))


def test_the_smaller_kernel():
    """Its size is that of the taps and of the table of offsets."""
    mixers = [stage.blocks[0].mixer for stage in small(small_kernel=3).stages[2:]]
    assert [[tuple(bias.shape) for bias in mixer.biases] for mixer in mixers] == [
        [(4, 5, 5), (4, 13, 13)],
        [(8, 5, 5), (8, 9, 9)],
    ]
    assert [mixer.taps.out_features for mixer in mixers] == [3**2 + 7**2, 3**2 + 5**2]


def test_order_of_depths():
    network = small(num_classes=5)
    depth = layer_groups([name for name, _ in network.named_parameters()], network.group_matcher())
    first, base, overview, focus, last = (
        depth[f"{name}.weight"]
        for name in (
            "stem.0.conv",
            "stages.2.base.0.norm",
            "stages.2.overview.blocks.0.norm",
            "stages.2.blocks.0.norm1",
            "stages.3.blocks.1.norm1",
        )
    )
    assert (first, base, overview, focus, last) == (0, 3, 4, 5, 8)
    assert depth["stages.2.overview_proj.weight"] == overview
    dense = small()
    depth = layer_groups([name for name, _ in dense.named_parameters()], dense.group_matcher())
    assert depth["norms.1.weight"] == depth["stages.1.blocks.0.norm.weight"]
    frozen = small(frozen_stages=3)
    learning = {name for name, p in frozen.named_parameters() if p.requires_grad}
    assert all(name.startswith(("stages.3", "norms")) for name in learning)


# --- the operator ----------------------------------------------------------------------------------------------------


def uniform(mixer):
    """All taps equal: the biases and what makes the logits are zero."""
    for p in (*mixer.taps.parameters(), *mixer.biases):
        nn.init.zeros_(p)
    return mixer


def box_mean(v, k):
    """Means over k x k windows that are clamped inside the map, by their definition."""
    height, width = v.shape[-2:]
    out = torch.empty_like(v)
    for i in range(height):
        for j in range(width):
            top, left = min(max(i - k // 2, 0), height - k), min(max(j - k // 2, 0), width - k)
            out[:, :, i, j] = v[:, :, top : top + k, left : left + k].mean((2, 3))
    return out


def test_equal_taps_give_box_means():
    mixer = uniform(filled(ContMix(16, heads=2, kernel_size=7)))
    x, v = normal(2, 16, 8, 11), normal(2, 16, 8, 11).flip(0)
    expected = torch.cat([box_mean(v[:, :8], 5), box_mean(v[:, 8:], 7)], dim=1)
    torch.testing.assert_close(mixer.aggregate(x, v), expected)


@pytest.mark.parametrize("size", [(7, 9), (14, 8), (5, 3), (1, 1)])
def test_a_constant_stays_constant(size):
    mixer = filled(ContMix(16, heads=2, kernel_size=7))
    v = normal(1, 16, 1, 1).expand(1, 16, *size)
    torch.testing.assert_close(mixer.aggregate(normal(1, 16, *size), v), v)


def test_a_bias_moves_its_offset_alone():
    """The offset is that from the pixel, also where the window is clamped and the pixel is not in its middle."""
    mixer, place = uniform(ContMix(8, heads=1, kernel_size=7).double()), (0, 4)
    x = normal(1, 8, 9, 9)
    before = mixer.attention_maps(x, place)
    assert before.shape == (1, 4, 9, 9)
    mixer.biases[1].data[1, 3 + 6, -2 + 6] = 2.0  # large kernel, second head, three rows below, two columns left
    change = mixer.attention_maps(x, place) / before.clamp(min=1e-9)
    assert torch.equal(change[:, :3], (before[:, :3] > 0).double())
    moved, rest = change[0, 3, 3, 2], change[0, 3][before[0, 3] > 0]
    assert torch.isclose(moved / rest.min(), torch.tensor(2.0).double().exp())
    assert (rest.sort().values[:-1] - rest.min()).abs().max() < 1e-12


def test_attention_maps_in_inference_mode():
    mixer, x = filled(ContMix(16, heads=2, kernel_size=7)), normal(1, 16, 8, 9)
    expected = mixer.attention_maps(x, (3, 4))
    with torch.inference_mode():
        assert torch.equal(mixer.attention_maps(x * 1, (3, 4)), expected)


@pytest.mark.parametrize("size", [(9, 8), (4, 6)])
def test_attention_maps_are_what_multiplies_the_values(size):
    mixer = filled(ContMix(16, heads=2, kernel_size=7, context_dim=6))
    x, v, place = normal(2, 22, *size), normal(2, 16, *size), (size[0] - 1, 2)
    maps = mixer.attention_maps(x, place)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 8).double())
    expected = (maps.unsqueeze(2) * v.unflatten(1, (8, 2))).sum((3, 4)).flatten(1)
    torch.testing.assert_close(mixer.aggregate(x, v)[..., place[0], place[1]], expected)


def test_small_maps_are_enlarged():
    mixer = filled(ContMix(16, heads=2, kernel_size=7))
    x, v = normal(1, 16, 9, 5), normal(1, 16, 9, 5).flip(1)
    enlarged = mixer.aggregate(*(F.interpolate(y, (12, 7), mode="bilinear") for y in (x, v)))  # 7 / 5 · 9 = 12.6
    torch.testing.assert_close(mixer.aggregate(x, v), F.adaptive_avg_pool2d(enlarged, (9, 5)))


def test_the_block_stands_alone():
    block = ContMixBlock(64)
    x = torch.randn(2, 64, 10, 15, requires_grad=True)
    block(x).square().mean().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in block.parameters())
    assert all(0.01 < bias.std() < 0.03 for bias in block.mixer.biases)
    assert not any(bias.any() for bias in ContMix(64, context_dim=8).biases)


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", BRANCHES)
def test_parallel_kernels_are_one(kernel_size):
    assert all(d * (k - 1) < kernel_size for k, d in BRANCHES[kernel_size])
    module, x = filled(DilatedReparam(3, kernel_size)), normal(2, 3, 9, 20)
    expected = module(x)
    fused = fuse(module)
    assert type(fused) is nn.Conv2d
    assert fused.kernel_size == (kernel_size, kernel_size)
    torch.testing.assert_close(fused(x), expected)


def test_response_norm_in_half_precision():
    """Sums of squares over a map leave float16, which is where the authors' training gives NaN."""
    norm = GlobalResponseNorm(4)
    nn.init.ones_(norm.gamma)
    x = 300 * torch.rand(1, 4, 64, 64)
    torch.testing.assert_close(norm.half()(x.half()).float(), norm.float()(x), rtol=2e-3, atol=0.5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="ContMix: dim=40 is not divisible by 4 · heads = 16"):
        ContMix(40, heads=4)
    with pytest.raises(ValueError, match="small_kernel=5 must be at most kernel_size=3"):
        ContMix(64, kernel_size=3)
    with pytest.raises(ValueError, match="ContMix: kernel_size=12 must be odd"):
        ContMix(64, kernel_size=12)
    with pytest.raises(ValueError, match="ContMix: small_kernel=4 must be odd"):
        ContMix(64, small_kernel=4)
    with pytest.raises(ValueError, match=r"kernel_size=6 has no branches; it may be one of \[5, 7, 9"):
        DilatedReparam(8, 6)
    with pytest.raises(ValueError, match="focus_depths must have 2 entries"):
        small(focus_depths=(1, 1, 1))
