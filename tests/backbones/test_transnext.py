"""What characterises TransNeXt: one softmax over window and pooled map, cosine logits, biases for any size."""

import math

import pytest
import torch
import torch.nn.functional as F
from golden_records import Record
from levels import levels_changed_by
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones
from attlas.backbones.transnext import (
    AggregatedAttention,
    LengthScaledCosineAttention,
    PositionBias,
    TransNeXt,
    _log_differences,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(mixer):
    """In float64, no parameter at its start."""
    mixer = mixer.double()
    with torch.no_grad():
        for seed, parameter in enumerate(mixer.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed) / max(1, parameter.shape[-1]) ** 0.5)
    return mixer


def bias_by_definition(cpb, height, width, rows, columns):
    """All pairs, one after the other: (h, N, P)."""
    pixels = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    centres = torch.cartesian_prod(
        *(F.adaptive_avg_pool1d(torch.arange(n).double()[None], c)[0] for n, c in ((height, rows), (width, columns)))
    )
    z = (pixels[:, None] - centres) / (cpb.pretrain_size - 1) * 8
    z = z.sign() * torch.log2(z.abs() + 1) / math.log2(8)
    return cpb.fc2(cpb.fc1(z).relu()).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(8, 8), (9, 6), (7, 13), (3, 20), (1, 1)])
@pytest.mark.parametrize("options", [dict(sr_ratio=4), dict(sr_ratio=1), dict(sr_ratio=2, pool_size=3)])
def test_position_bias_of_any_size(size, options):
    cpb = PositionBias(3, **{"pool_size": None, **options}, pretrain_size=7, grid_size=None).double()
    torch.testing.assert_close(cpb(*size), bias_by_definition(cpb, *size, *cpb.cells(*size)))


@pytest.mark.parametrize("window", [3, 5])
@pytest.mark.parametrize("size", [(5, 7), (4, 4), (1, 2)])
def test_aggregated_attention_by_definition(window, size):
    """Pixel by pixel, over the neighbours that exist."""
    mixer, (height, width) = filled(AggregatedAttention(12, 2, sr_ratio=2, window=window, pretrain_size=6)), size
    x, half = normal(1, 12, height, width), window // 2
    rows = x[0].permute(1, 2, 0)
    cells = max(1, height // 2), max(1, width // 2)
    pooled = F.adaptive_avg_pool2d(F.gelu(mixer.sr(x)), cells)[0].flatten(1).mT
    bias = bias_by_definition(mixer.cpb, height, width, *cells)

    def keys_and_values(tokens):
        k, v = mixer.kv(tokens).unflatten(-1, (2, 2, 6)).unbind(-3)
        return k / k.norm(dim=-1, keepdim=True), v

    (k, v), (pooled_k, pooled_v) = keys_and_values(rows), keys_and_values(mixer.norm(pooled))
    y = torch.empty(height, width, 2, 6, dtype=torch.float64)
    for i, j, head in ((i, j, head) for i in range(height) for j in range(width) for head in range(2)):
        q = mixer.q(rows[i, j]).unflatten(0, (2, 6))[head]
        q = q / q.norm()
        near = [
            (a, b, (a - i + half) * window + b - j + half)
            for a in range(max(0, i - half), min(height, i + half + 1))
            for b in range(max(0, j - half), min(width, j + half + 1))
        ]
        length = len(near) + len(pooled)
        scaled = (q + mixer.query_embedding[head, 0]) * F.softplus(mixer.temperature[head, 0, 0]) * math.log(length)
        logits = [scaled @ k[a, b, head] + mixer.relative_pos_bias_local[head, m] for a, b, m in near]
        logits += [scaled @ pooled_k[p, head] + bias[head, i * width + j, p] for p in range(len(pooled))]
        weights = torch.stack(logits).softmax(0)
        extra = q @ mixer.learnable_tokens[head] + mixer.learnable_bias[head, 0]
        y[i, j, head] = weights[len(near) :] @ pooled_v[:, head]
        for weight, (a, b, m) in zip(weights, near):
            y[i, j, head] += (weight + extra[m]) * v[a, b, head]
    torch.testing.assert_close(mixer(x)[0].permute(1, 2, 0), mixer.proj(y.flatten(2)))


@pytest.mark.parametrize("mixer", [AggregatedAttention, LengthScaledCosineAttention])
def test_cosine(mixer):
    """Keys count by their direction alone."""
    mixer, x = filled(mixer(24, 2)), normal(2, 24, 6, 9)
    expected = mixer(x)
    linear, keys = (mixer.kv, slice(0, 24)) if hasattr(mixer, "kv") else (mixer.qkv, slice(24, 48))
    with torch.no_grad():
        linear.weight[keys] *= 3
        linear.bias[keys] *= 3
    torch.testing.assert_close(mixer(x), expected)


def test_convex():
    """Without T and c, an output is a mean of values, in the corners too."""
    mixer, x = filled(AggregatedAttention(24, 2, sr_ratio=3)), normal(2, 24, 6, 9)
    with torch.no_grad():
        mixer.learnable_tokens.zero_()
        mixer.learnable_bias.zero_()
        mixer.proj.weight.copy_(torch.eye(24))
        mixer.proj.bias.zero_()
        weights, _, v, pooled_v = mixer._weights(x)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 54, dtype=torch.float64))
        torch.testing.assert_close(
            weights[:, :, 0, [0, 1, 2, 3, 6]].abs().max(), weights.new_zeros(())
        )  # beyond a corner
        values = torch.cat([v, pooled_v], dim=2).transpose(2, 3).flatten(1, 2)  # (B, C, N + P)
        y = mixer(x).flatten(2)
        assert (y <= values.amax(2, keepdim=True)).all()
        assert (y >= values.amin(2, keepdim=True)).all()
        mixer.kv.weight[24:] = 0  # all values are one
        torch.testing.assert_close(mixer(x), mixer.kv.bias[24:, None, None].expand(2, 24, 6, 9))


def test_differences_are_those_to_the_centres_of_pooling():
    for side in range(1, 13):
        for cells in range(1, side + 1):
            centres = F.adaptive_avg_pool1d(torch.arange(side).double()[None], cells)
            z = 8 * (torch.arange(side).unsqueeze(1) - centres) / 55
            values, index = _log_differences(side, cells, 56, z)
            torch.testing.assert_close(values[index], z.sign() * (z.abs() + 1).log2() / 3)


@pytest.mark.parametrize("size", [(6, 9), (7, 5)])
def test_attention_maps(size):
    x, place = normal(2, 24, *size), (2, 4)
    aggregated = filled(AggregatedAttention(24, 2, sr_ratio=3))
    weights, *_ = aggregated._weights(x)
    weights = weights[:, :, 2 * size[1] + 4]
    maps = aggregated.attention_maps(x, place)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 2, dtype=torch.float64))
    with torch.no_grad():
        weights = weights.clone()
        cells = F.adaptive_avg_pool2d(
            torch.eye(x[0, 0].numel()).unflatten(1, size)[None].double(), (size[0] // 3, size[1] // 3)
        )
    expected = torch.einsum("bhp,np->bhn", weights[..., 9:], cells[0].flatten(1)).unflatten(2, size)
    for m in range(9):
        row, column = 2 + m // 3 - 1, 4 + m % 3 - 1
        if column < size[1]:
            expected[:, :, row, column] += weights[..., m]
    torch.testing.assert_close(maps, expected)

    full = filled(LengthScaledCosineAttention(24, 2))
    maps = full.attention_maps(x, place)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 2, dtype=torch.float64))
    values = full.qkv(x.permute(0, 2, 3, 1))[..., 48:].unflatten(-1, (2, 12))
    y = full.proj(torch.einsum("bhyx,byxhd->bhd", maps, values).flatten(1))
    torch.testing.assert_close(y, full(x)[:, :, 2, 4])


@pytest.mark.parametrize("size", [(7, 10), (6, 5), (3, 4), (12, 12)])
@pytest.mark.parametrize("sr_ratio", [1, 4])
def test_position_bias_of_a_grid_is_resized_twice(sr_ratio, size):
    """Over the cells for every pixel of the grid, then over the pixels for every cell; corners are not aligned."""
    cpb = PositionBias(3, sr_ratio, None, pretrain_size=7, grid_size=10).double()
    of_grid = bias_by_definition(cpb, 10, 10, *cpb.cells(10, 10)).unflatten(2, cpb.cells(10, 10))
    for head, got in zip(of_grid, cpb(*size)):
        cells = torch.stack(
            [F.interpolate(of_pixel[None, None], cpb.cells(*size), mode="bilinear") for of_pixel in head]
        )
        pixels = [F.interpolate(one.view(1, 1, 10, 10), size, mode="bilinear") for one in cells.flatten(1).T]
        torch.testing.assert_close(got, torch.stack(pixels, -1).view(-1, len(pixels)))


def test_the_dense_form():
    """The norm of every stage is on the path, there are no others, and odd sizes are rounded up."""
    network = TransNeXt((24, 24, 48, 48), (1, 1, 1, 1), pretrain_size=64, img_size=96).double().eval()
    x = normal(1, 3, 75, 50)
    reach = [levels_changed_by(network, x, f"stages.{i}.norm.weight") for i in range(4)]
    assert reach == [[0, 1, 2, 3], [1, 2, 3], [2, 3], [3]]
    assert not list(network.norms.parameters())
    assert [tuple(y.shape[-2:]) for y in network(x)] == [(19, 13), (10, 7), (5, 4), (3, 2)]
    coarse = {name for name, m in network.named_modules() if isinstance(m, torch.nn.LayerNorm) and m.eps == 1e-5}
    patches = ["stem", *(f"stages.{i}.downsample" for i in (1, 2, 3))]
    assert coarse == {f"{name}.norm" for name in (*patches, *(f"stages.{i}.blocks.0.mixer" for i in range(3)))}


def test_modes_agree_at_the_size_of_training():
    options = dict(dims=(24, 24, 48, 48), depths=(1, 1, 1, 1), pretrain_size=64)
    fixed, free = (TransNeXt(**options, img_size=size).eval() for size in (64, None))
    free.load_state_dict(fixed.state_dict())
    for size, agree in (((64, 64), True), ((64, 96), False), ((75, 50), False)):
        image = normal(1, 3, *size).float()
        for one, other in zip(fixed(image), free(image)):
            assert torch.equal(one, other) == agree
            torch.testing.assert_close(one, other, rtol=0, atol=0.1 * other.abs().max().item())


def test_fixed_pool_makes_the_cost_linear():
    def flops(side, **options):
        with torch.device("meta"):
            mixer = AggregatedAttention(48, **options)
            with FlopCounterMode(display=False) as counter:
                mixer(torch.empty(1, 48, side, side))
        return counter.get_total_flops()

    one, two, three = (flops(side, pool_size=7) for side in (28, 56, 112))
    assert three - two == 4 * (two - one) > 0  # pooled keys and values are the same at every size
    one, two, three = (flops(side, sr_ratio=4) for side in (28, 56, 112))
    assert three - two > 5 * (two - one)


def test_official_names_of_a_classifier():
    record = Record("transnext/dense-backbone")
    state = {**record.state_dict(), "head.weight": normal(10, 96), "head.bias": normal(10)}
    options = dict(dims=(24, 48, 72, 96), depths=(1, 1, 2, 1), img_size=64, pretrain_size=64)
    network = TransNeXt(**options, num_classes=10)
    account = backbones.load(network, dict(model=state))
    assert account.complete, str(account)
    dense = TransNeXt(**options)
    account = backbones.load(dense, state)
    assert not account.missing
    assert sorted(account.ignored) == ["head.fc.bias", "head.fc.weight"]


def test_no_weight_decay():
    network = TransNeXt((24, 48), (1, 1), sr_ratios=(8, 1), mlp_ratio=(8, 4))
    free = {name for name, _ in network.named_parameters() if name in network.no_weight_decay()}
    words = ("temperature", "query_embedding", "relative_pos_bias_local", "cpb")
    assert free == {name for name, _ in network.named_parameters() if any(word in name for word in words)}


def test_initialization():
    mixer = TransNeXt((24,), (1,), sr_ratios=(8,), mlp_ratio=(8,)).stages[0].blocks[0].mixer
    torch.testing.assert_close(F.softplus(mixer.temperature), torch.full((1, 1, 1), 1 / 0.24))
    assert mixer.learnable_bias.count_nonzero() == 0
    convolution = TransNeXt().stages[3].downsample.proj
    assert convolution.weight.std().item() == pytest.approx((2 / (9 * 384)) ** 0.5, rel=0.01)


def test_windows_by_stage():
    network = TransNeXt((24, 24, 48, 48), (1, 1, 1, 1), window=(3, 5, 7, None))
    taps = [stage.blocks[0].mixer.relative_pos_bias_local.shape[1] for stage in network.stages[:3]]
    assert taps == [9, 25, 49]
    with pytest.raises(ValueError, match=r"window must have one entry for each of the 4 stages, got \(3, 5\)"):
        TransNeXt(window=(3, 5))


def test_bad_options():
    with pytest.raises(ValueError, match=r"pretrain_size=32 must be at least 64: .* pretrain_size // 32 - 1"):
        TransNeXt(pretrain_size=32)
    with pytest.raises(ValueError, match="img_size=31 must be at least 32"):
        TransNeXt(img_size=31)
    with pytest.raises(ValueError, match=r"sr_ratios must have one entry for each of the 4 stages, got \(8, 4\)"):
        TransNeXt(sr_ratios=(8, 4))
    with pytest.raises(ValueError, match="window=4 must be odd"):
        AggregatedAttention(24, window=4)
    with pytest.raises(ValueError, match="sr_ratio=0 must be at least 1"):
        AggregatedAttention(24, sr_ratio=0)
    with pytest.raises(ValueError, match="pretrain_size=1 must be at least 2"):
        LengthScaledCosineAttention(24, pretrain_size=1)
    with pytest.raises(ValueError, match="AggregatedAttention: dim=24 is not divisible by heads=5"):
        AggregatedAttention(24, 5)
