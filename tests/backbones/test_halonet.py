"""What characterises HaloNet: a block sees its window, and nothing beyond; what lies off the map takes its share."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones
from attlas.backbones.halonet import EfficientChannelAttention, HaloAttention, HaloNet
from attlas.kernels.halo_attention import halo_attention_reference


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(convolution, pixel):
    y = convolution.weight[:, :, 0, 0] @ pixel
    return y if convolution.bias is None else y + convolution.bias


def weights_of(mixer, x, row, column):
    """The weights of one query, by definition: over all places (u, w) of its window, with their keys and values."""
    height, width = x.shape[-2:]
    b, r, win, d = mixer.block_size, mixer.halo_size, mixer.window, mixer.key_dim
    side = b // mixer.stride
    q = linear(mixer.q, x[0, :, row * mixer.stride, column * mixer.stride])
    q = q.unflatten(0, (mixer.heads, d))
    logits, values, places = [], [], []
    for u in range(win):
        for w in range(win):
            i, j = row // side * b - r + u, column // side * b - r + w
            inside = 0 <= i < height and 0 <= j < width
            kv = linear(mixer.kv, x[0, :, i, j]) if inside else torch.zeros_like(mixer.kv.weight[:, 0, 0, 0])
            kv = kv.unflatten(0, (mixer.heads, -1))
            position = mixer.height_rel[u - row % side + win - 1] + mixer.width_rel[w - column % side + win - 1]
            scale = d**-0.5 if mixer.scale_position else 1.0
            logits.append((q * kv[:, :d]).sum(1) * d**-0.5 + q @ position * scale)
            values.append(kv[:, d:])
            places.append((i, j))
    return torch.stack(logits).softmax(0), torch.stack(values), places


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (dict(block_size=4, halo_size=0), (8, 4)),  # attention in blocks
        (dict(block_size=5, halo_size=0), (5, 5)),  # global attention
        (dict(block_size=3, halo_size=2), (7, 5)),  # filled up
        (dict(block_size=4, halo_size=1, stride=2), (7, 9)),
        (dict(block_size=2, halo_size=1, scale_position=True), (4, 3)),
        (dict(dim_out=12, key_dim=3, block_size=2, halo_size=3), (3, 4)),
        (dict(block_size=3, halo_size=2, qkv_bias=True), (7, 5)),  # beyond the map keys and values have no bias
    ],
)
def test_by_definition(options, size):
    mixer, x = HaloAttention(8, heads=2, **options).double(), normal(1, 8, *size)
    if mixer.q.bias is not None:
        torch.nn.init.normal_(mixer.q.bias)
        torch.nn.init.normal_(mixer.kv.bias)
    y = mixer(x)
    assert y.shape[2:] == tuple(-(-n // mixer.stride) for n in size)
    assert y.is_contiguous(memory_format=torch.channels_last)
    for row in range(y.shape[2]):
        for column in range(0, y.shape[3], 3):
            weights, values, places = weights_of(mixer, x, row, column)
            torch.testing.assert_close((weights.unsqueeze(-1) * values).sum(0).flatten(), y[0, :, row, column])
            maps = mixer.attention_maps(x, (row * mixer.stride, column * mixer.stride))
            expected = torch.zeros_like(maps)
            for weight, (i, j) in zip(weights, places):
                if 0 <= i < size[0] and 0 <= j < size[1]:
                    expected[0, :, i, j] = weight
            torch.testing.assert_close(maps, expected)


def test_attention_maps_are_by_pixels_of_the_input():
    """The four pixels of a coarser query share it, the last ones too."""
    mixer, x = HaloAttention(8, heads=2, block_size=4, halo_size=1, stride=2).double(), normal(1, 8, 6, 5)
    maps = mixer.attention_maps(x, (4, 2))
    for place in ((4, 3), (5, 2), (5, 3)):
        assert torch.equal(mixer.attention_maps(x, place), maps)
    assert not torch.allclose(mixer.attention_maps(x, (5, 4)), maps)


def test_odd_blocks_average():
    """A block of odd side has no coarser queries: all attend, and 2x2 pixels are averaged."""
    strided, dense = (HaloAttention(8, heads=2, block_size=3, halo_size=1, stride=s).double() for s in (2, 1))
    dense.load_state_dict(strided.state_dict())
    x = normal(1, 8, 6, 7)
    y = dense(x)
    expected = torch.cat([F.avg_pool2d(y, 2), F.avg_pool2d(y[..., 6:], (2, 1))], -1)
    torch.testing.assert_close(strided(x), expected)


@pytest.mark.parametrize("block_size", [3, 4])
def test_averages_of_timm(block_size):
    """With avg_down, even blocks average, too, and an odd last row or column is left out."""
    options = dict(heads=2, block_size=block_size, halo_size=1)
    strided, dense = HaloAttention(8, stride=2, avg_down=True, **options), HaloAttention(8, **options)
    strided.load_state_dict(dense.state_dict())
    x = normal(1, 8, 6, 7).float()
    torch.testing.assert_close(strided(x), F.avg_pool2d(dense(x), 2))
    assert strided(x).shape == (1, 8, 3, 3)


def test_shifts():
    """By a block, the output shifts with the input, away from the border; by a pixel, it does not."""
    mixer, x = HaloAttention(8, heads=2, block_size=4, halo_size=2).double(), normal(1, 8, 16, 16)
    inner = mixer(x)[:, :, 4:8, 4:8]
    for step, equal in ((4, True), (1, False)):
        shifted = mixer(x.roll((step, step), (2, 3)))[:, :, 4 + step : 8 + step, 4 + step : 8 + step]
        assert torch.allclose(inner, shifted) == equal


def test_reach():
    mixer, x = HaloAttention(8, heads=2, block_size=4, halo_size=1).double(), normal(1, 8, 12, 12)
    changed = x.clone()
    changed[0, :, 5, 7] += normal(8, seed=1)  # in the middle block, at the border of the one to the right
    seen = torch.zeros(12, 12, dtype=torch.bool)
    seen[4:8, 4:12] = True
    assert torch.equal((mixer(x) != mixer(changed)).any(1)[0], seen)


def test_cost_is_linear_in_pixels():
    costs = []
    for side in (16, 32):
        q, position = torch.empty(1, side, side, 2, 8, device="meta"), torch.empty(1, side, side, 2, 28, device="meta")
        no_bias = torch.empty(2, 0, 0, device="meta")
        with FlopCounterMode(display=False) as counter:
            halo_attention_reference(q, q, q, position, no_bias, 8, 3, 0, 1.0)
        costs.append(counter.get_total_flops())
    assert costs == [2 * 16**2 * 14**2 * 2 * (8 + 8), 4 * costs[0]]


def test_efficient_channel_attention():
    gate, x = EfficientChannelAttention(64).double(), normal(2, 64, 3, 4)
    assert [EfficientChannelAttention(dim).conv.kernel_size[0] for dim in (64, 128, 256, 512)] == [3, 5, 5, 5]
    means = F.pad(x.mean((2, 3)), (1, 1))
    expected = sum(means[:, i : i + 64] * gate.conv.weight[0, 0, i] for i in range(3))
    torch.testing.assert_close(gate(x), x * expected.sigmoid()[..., None, None])


def test_our_reading_of_the_table():
    published = dict(h0=5.5, h1=8.1, h2=9.4, h3=11.8, h4=19.1, h5=30.7, h6=43.4, h7=67.4)
    counted = dict(h0=5.502, h1=8.106, h2=9.406, h3=11.843, h4=19.103, h5=30.719, h6=43.458, h7=67.435)
    for name, millions in published.items():
        params = backbones.variant(f"halonet_{name}")[1].params / 1e6
        assert abs(params - millions) < 0.06
        assert round(params, 3) == counted[name]


def test_which_blocks_attend():
    with torch.device("meta"):
        network = backbones.create("halonet50ts")
    attending = [[isinstance(block.mixer, HaloAttention) for block in stage.blocks] for stage in network.stages]
    assert [[i for i, attends in enumerate(stage) if attends] for stage in attending] == [[], [3], [1, 3, 5], [1]]


BLOCK = {"conv1": "conv1_1x1", "conv3": "conv3_1x1", "norm": "post_attn", "gate": "attn", "shortcut": "shortcut"}


def timm_name(name, network):
    """timm's name of one of our tensors."""
    parts = name.split(".")
    if parts[0] == "stem":
        return ".".join(["stem", *([] if network.inverted else [f"conv{int(parts[1]) // 2 + 1}"]), *_norms(parts[2:])])
    if parts[:2] == ["head", "before"]:
        return ".".join(["final_conv", *_norms(parts[3:])])
    if parts[0] == "head":
        return name
    _, stage, _, block, part, *rest = parts
    if part == "mixer":
        attends = int(block) in network.attends[int(stage)]
        part = "self_attn" if attends else "conv2_kxk"
        rest = ["pos_embed", *rest] if rest[0].endswith("_rel") else rest
    return ".".join(["stages", stage, block, BLOCK.get(part, part), *_norms(rest)])


def _norms(parts):
    return ["bn" if part == "norm" else part for part in parts]


@pytest.mark.parametrize("name", ["halonet26t", "sehalonet33ts", "eca_halonext26ts", "haloregnetz_b"])
def test_names_of_timm(name):
    options = dict(depths=(1, 1, 1, 1), attends=((), (), (0,), (0,)), num_classes=3)
    network, again = (backbones.create(name, **options).eval() for _ in range(2))
    state = {timm_name(key, network): value for key, value in network.state_dict().items()}
    assert "stages.3.0.self_attn.pos_embed.width_rel" in state
    assert "stages.0.0.conv2_kxk.bn.running_mean" in state
    account = backbones.load(again, state)
    assert account.complete, str(account)
    x = normal(1, 3, 40, 70).float()
    assert torch.equal(again(x), network(x))


def test_dense_maps_are_those_of_the_stages():
    """Without norms, as of a residual network; strides round up, and the attention fills maps to whole blocks."""
    torch.manual_seed(0)
    network = backbones.create("haloregnetz_b", depths=(1, 1, 1, 1), out_indices=(0, 1, 2, 3)).eval()
    assert [x.shape[1:] for x in network(torch.zeros(1, 3, 65, 37))] == [
        (48, 17, 10),
        (96, 9, 5),
        (192, 5, 3),
        (288, 3, 2),
    ]
    assert not list(network.norms.parameters())
    classifier = backbones.create("haloregnetz_b", depths=(1, 1, 1, 1), num_classes=5).eval()
    account = backbones.load(network, classifier.state_dict())
    assert not account.missing
    assert {name.split(".")[0] for name in account.ignored} == {"head"}
    x = normal(1, 3, 65, 37).float()
    for got, expected in zip(network(x), classifier.forward_intermediates(x)[1]):
        assert torch.equal(got, expected)


def test_initial_weights_of_grouped_convolutions():
    torch.manual_seed(0)
    network = HaloNet((64, 64), (1, 1), attends=((), (0,)), heads=(8, 8), group_size=16)
    weight = network.stages[0].blocks[0].mixer.conv.weight
    assert weight.shape == (64, 16, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.05)  # 9 x 16 outputs read one input


def test_bad_options():
    with pytest.raises(ValueError, match="stride=3 must be 1 or 2"):
        HaloAttention(32, stride=3)
    with pytest.raises(ValueError, match="block_size=0 must be at least 1"):
        HaloAttention(32, block_size=0)
    with pytest.raises(ValueError, match="dim=36 is not divisible by heads=8"):
        HaloAttention(32, dim_out=36)
    with pytest.raises(ValueError, match=r"gate='ce' must be one of \(None, 'se', 'eca'\)"):
        HaloNet(gate="ce")
    with pytest.raises(ValueError, match="heads must have one entry for each of the 4 stages"):
        HaloNet(heads=(4, 8))
