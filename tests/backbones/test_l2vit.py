"""What characterises L2ViT: weights of linear attention that sum to t above a floor; concentration that sees places."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from levels import norms_reach
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones
from attlas.backbones.inspection.costs import PeakMemory
from attlas.backbones.l2vit import L2ViT, LinearGlobalAttention, LocalConcentration, Stem
from attlas.backbones.layers import DualBlock, LocalBlock
from attlas.config import load_config

SMALL = dict(dims=(16, 24, 32, 48), depths=(2, 1, 3, 2), heads=(2, 3, 4, 6))


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mixer(dim=12, heads=3):
    torch.manual_seed(0)
    return LinearGlobalAttention(dim, heads).double().requires_grad_(False)


def concentration(dim=12):
    torch.manual_seed(0)
    return LocalConcentration(dim).double().eval().requires_grad_(False)


def test_linear_attention_by_definition():
    """All pairs of pixels, with the floor under their sums; rows lie on both sides of it."""
    built, x = mixer(), 3 * normal(2, 12, 9, 8)
    built.temperature.copy_(torch.tensor([0.3, 0.5, 2.0]).view(3, 1, 1))
    q, k, v = built.qkv(x.flatten(2).mT).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
    weights = F.relu(q) @ F.relu(k).mT  # (B, heads, N, N)
    sums = weights.sum(-1, keepdim=True)
    assert 0.1 < (sums < 100).double().mean() < 0.9
    weights = weights / sums.clamp(min=100) * built.temperature
    expected = built.proj((weights @ v).transpose(1, 2).flatten(2)).mT.unflatten(2, (9, 8))
    torch.testing.assert_close(built(x), expected)
    for row, column in ((0, 0), (4, 7), (8, 3)):
        maps = built.attention_maps(x, (row, column))
        torch.testing.assert_close(maps.flatten(2), weights[:, :, 8 * row + column])


def test_projections_without_bias():
    with torch.device("meta"):
        names = [set(L2ViT(**SMALL, qkv_bias=bias).state_dict()) for bias in (True, False)]
    assert names[0] - names[1] == {name for name in names[0] if name.endswith("qkv.bias")}
    assert len(names[0] - names[1]) == sum(SMALL["depths"])


def test_values_that_are_the_same():
    """Above the floor a row's weights sum to the factor of its head; below it, to less."""
    built, q, k = mixer(), normal(2, 3, 90, 4).abs(), normal(2, 3, 90, 4).abs()
    built.temperature.copy_(torch.tensor([0.3, 0.5, 2.0]).view(3, 1, 1))
    v = normal(2, 3, 1, 4).expand(2, 3, 90, 4)
    strong = 10 * (q + 0.1), 10 * (k + 0.1)
    assert (strong[0] @ strong[1].sum(2).unsqueeze(-1) > 100).all()
    torch.testing.assert_close(built.attend(*strong, v), built.temperature * v)
    weak = 0.1 * q, 0.1 * k
    sums = weak[0] @ weak[1].sum(2).unsqueeze(-1)
    assert (sums < 100).all()
    torch.testing.assert_close(built.attend(*weak, v), built.temperature * v * sums / 100)


def test_which_operator_sees_places():
    """Linear attention commutes with permutations of the pixels, local concentration does not."""
    x, order = 5 * normal(2, 12, 5, 7), torch.randperm(35, generator=torch.Generator().manual_seed(1))
    permuted = x.flatten(2)[..., order].unflatten(2, (5, 7))
    built = mixer()
    torch.testing.assert_close(built(permuted).flatten(2), built(x).flatten(2)[..., order])
    local = concentration()
    difference = local(permuted).flatten(2) - local(x).flatten(2)[..., order]
    assert difference.norm() > 0.1 * local(x).norm()


def test_reach_of_local_concentration():
    """Six pixels to either side, and the channel alone."""
    local, x = concentration(), normal(1, 12, 20, 20)
    changed = x.clone()
    changed[:, 3, 10, 9] += 1
    same = local(x) == local(changed)
    assert not same[:, 3, 4:17, 3:16].any()
    same[:, 3, 4:17, 3:16] = True
    assert same.all()


def test_cost_is_linear_in_pixels():
    built = mixer(32, 4).float()
    costs, peaks = [], []
    for rows in (64, 128, 256):
        x = torch.randn(1, 32, rows, 64)
        with FlopCounterMode(display=False) as counter:
            built(x)
        with PeakMemory([x, *built.parameters()]) as memory:
            built(x)
        costs.append(counter.get_total_flops())
        peaks.append(memory.peak)
    assert costs == [costs[0], 2 * costs[0], 4 * costs[0]]
    pixels, dim, head = 64 * 64, 32, 8
    # the denominators read the sum of the keys, one number for a channel
    assert costs[0] == 2 * (4 * pixels * dim**2 + 2 * pixels * dim * head + pixels * dim)
    assert 1.9 < peaks[1] / peaks[0] < 2.1
    assert 1.9 < peaks[2] / peaks[1] < 2.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_pixels_in_half_precision(dtype):
    """Sums over 10,000 pixels that float16 cannot hold are finite and right."""
    built, x = mixer(16, 2).to(dtype), 8 * normal(1, 16, 100, 100).to(dtype)
    got = built(x).double()
    assert torch.isfinite(got).all()
    expected = built.float()(x.float()).double()
    q, k, _ = built._split(x.float())
    assert (F.relu(q) @ F.relu(k).sum(2).unsqueeze(-1)).max() > torch.finfo(torch.float16).max
    assert (got - expected).norm() < {torch.float16: 1e-2, torch.bfloat16: 3e-2}[dtype] * expected.norm()


def test_the_dense_form():
    """Norms are of the outputs alone, strides round up; odd sizes are filled up with zeros, behind the norm of a
    transition."""
    network = L2ViT(**SMALL).double().eval()
    x = normal(1, 3, 75, 62)
    assert norms_reach(network, x) == {0: [0], 1: [1], 2: [2], 3: [3]}
    assert [tuple(y.shape[-2:]) for y in network(x)] == [(19, 16), (10, 8), (5, 4), (3, 2)]
    assert {norm.eps for norm in network.norms.values()} == {1e-5}
    norm, conv = network.stages[1].downsample
    given = normal(1, 16, 19, 13)
    filled = F.pad(norm(given), (0, 1, 0, 1))
    torch.testing.assert_close(network.stages[1].downsample(given), F.conv2d(filled, conv.weight, conv.bias, 2))


def test_the_classifier():
    """The norm comes before the mean."""
    network = L2ViT(**SMALL, num_classes=5).double().eval()
    features = network.forward_features(normal(2, 3, 64, 64))
    rows = F.layer_norm(features.flatten(2).mT, (48,), network.head.before.weight, network.head.before.bias, 1e-5)
    torch.testing.assert_close(network.forward_head(features), network.head.fc(rows.mean(1)))


def test_images_are_filled_up():
    """An image is what it is with zeros up to a multiple of 4; without them the last row would be another."""
    stem = Stem(3, 8).double().eval()
    for height, width in ((73, 61), (74, 64), (75, 63), (1, 2)):
        x = normal(1, 3, height, width)
        filled = F.pad(x, (0, -width % 4, 0, -height % 4))
        torch.testing.assert_close(stem(x), stem(filled))
    x, (first, relu, second, norm) = normal(1, 3, 73, 64), stem
    bare = norm(second(relu(first(x))))
    torch.testing.assert_close(bare[:, :, :-1], stem(x)[:, :, :-1])
    assert (bare - stem(x))[:, :, -1].abs().max() > 1e-3


def test_blocks_take_turns():
    """In every stage windows come first."""
    network = L2ViT(**SMALL, window=5)
    kinds = [[type(block) for block in stage.blocks] for stage in network.stages]
    pair = [DualBlock, LocalBlock]
    assert kinds == [pair, pair[:1], [*pair, DualBlock], pair]
    assert network.stages[2].blocks[2].mixer.window == 5
    with torch.device("meta"):
        windows = {name: backbones.create(name).stages[0].blocks[0].mixer.window for name in backbones.list("l2vit*")}
    assert windows == {"l2vit_tiny": 7, "l2vit_small": 7, "l2vit_base": 7, "l2vit_base_384": 12}


def test_initial_weights():
    torch.manual_seed(0)
    network = L2ViT((32, 64), (2, 2), heads=(2, 4))
    block = network.stages[1].blocks[1]
    assert torch.equal(block.mixer.temperature, torch.full((4, 1, 1), 0.25))
    for layer in (block.mlp.fc1, block.local.branch[1].conv1):
        assert 0.018 < layer.weight.std() < 0.022
        assert not layer.bias.any()


def test_parameters_of_the_dense_form():
    counts = dict(l2vit_tiny=27_829_125, l2vit_small=49_431_501, l2vit_base=87_553_980, l2vit_base_384=87_553_980)
    with torch.device("meta"):
        for name, count in counts.items():
            network = backbones.create(name, out_indices=(0, 1, 2, 3))
            assert sum(p.numel() for p in network.parameters()) == count


def test_heads():
    with pytest.raises(ValueError, match=r"heads must have one entry for each of the 4 stages, got \(3, 6\)"):
        L2ViT(heads=(3, 6))
    with pytest.raises(ValueError, match=r"LinearGlobalAttention: dim=12 is not divisible by heads=5"):
        LinearGlobalAttention(12, 5)


def test_configs_of_the_two_trainings():
    """The weights of ImageNet-22k are fine-tuned, not trained from scratch, at a hundredth of the learning rate."""
    scratch, fine = (
        load_config(Path(__file__).parents[2] / f"configs/l2vit/l2vit_{name}.py")
        for name in ("imagenet", "img384_imagenet")
    )
    assert fine.optim_wrapper.optimizer.lr == pytest.approx(0.01 * scratch.optim_wrapper.optimizer.lr)
    assert fine.train_dataloader.dataset.transforms[0].size == 384
    assert fine.param_scheduler[-1]["end"] == fine.train_cfg.max_epochs == 30
    assert fine.load_from
    assert not scratch.get("load_from")
