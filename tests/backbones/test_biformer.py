"""What characterises BiFormer: regions read the regions that they choose, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from levels import norms_reach
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones
from attlas.backbones.biformer import AttentionLePE, BiFormer, BiFormerSTL, BiLevelRouting
from attlas.kernels.routed_attention import routed_attention_reference


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full_attention(mixer, x):
    """Every pixel looks at every pixel, by definition."""
    qkv = mixer.qkv(x.permute(0, 2, 3, 1))
    width = (qkv.shape[-1] - x.shape[1]) // 2  # of queries, and of keys
    q, k, v = qkv[..., :width], qkv[..., width : 2 * width], qkv[..., 2 * width :]
    lepe = mixer.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    q, k, v = (part.flatten(1, 2).unflatten(-1, (mixer.heads, -1)).transpose(1, 2) for part in (q, k, v))
    y = ((q @ k.mT * mixer.scale).softmax(-1) @ v).transpose(1, 2).flatten(2).unflatten(1, x.shape[-2:])
    return mixer.proj(y + lepe).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("options", "scale"), [(dict(), 8**-0.5), (dict(key_dim=4, lepe_kernel=3), 4**-0.5), (dict(scale=0.3), 0.3)]
)
@pytest.mark.parametrize(("form", "size"), [("legacy", (6, 9)), ("nchw", (6, 9)), ("nchw", (2, 1))])
def test_all_regions_are_full_attention(form, size, options, scale):
    """Also on a map smaller than the regions, where each pixel is one."""
    mixer, x = BiLevelRouting(8, 2, regions=3, topk=9, form=form, **options).double(), normal(2, 8, *size)
    assert mixer.scale == scale
    torch.testing.assert_close(mixer(x), full_attention(mixer, x))


@pytest.mark.parametrize("form", ["legacy", "nchw"])
def test_what_is_not_chosen_is_not_seen(form):
    mixer, x = BiLevelRouting(8, 2, regions=4, topk=3, form=form).double(), normal(1, 8, 16, 16)
    _, index, _ = mixer._route(x)
    region = int((index.flatten().bincount(minlength=16) - 5).abs().argmin())  # which about five have chosen
    row, column = region // 4 * 4 + 1, region % 4 * 4 + 2
    changed = x.clone()
    changed[0, :, row, column] += 1e-3 * normal(8, seed=1)
    assert torch.equal(mixer._route(changed)[1], index)
    readers = (index[0] == region).any(-1).view(4, 4)
    readers[region // 4, region % 4] = True  # whose own queries change
    assert 1 < readers.sum() < 16
    seen = readers.repeat_interleave(4, 0).repeat_interleave(4, 1)
    seen[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = True  # LePE
    assert torch.equal((mixer(x) != mixer(changed)).any(1)[0], seen)


def test_forms_agree_where_regions_fit():
    legacy, nchw = (BiLevelRouting(8, 2, 4, 3, form=form).double() for form in ("legacy", "nchw"))
    nchw.load_state_dict(legacy.state_dict())
    for size, equal in (((12, 8), True), ((12, 10), False)):
        x = normal(2, 8, *size)
        assert torch.allclose(legacy(x), nchw(x)) == equal


def test_filling():
    """Legacy: zeros in the input. nchw: the filling of keys and values is zero, and means do not count it."""
    mixer, x = BiLevelRouting(8, 2, regions=3, topk=2).double(), normal(2, 8, 7, 5)
    torch.testing.assert_close(mixer(x), mixer(F.pad(x, (0, 1, 0, 2)))[:, :, :7, :5])
    mixer = BiLevelRouting(8, 2, regions=3, topk=2, form="nchw").double()
    qkv, index, grid = mixer._route(x)
    assert grid == (4, 5)  # of 2 x 1 pixels
    assert not qkv[:, 7:].any()
    rows = mixer.qkv(x.permute(0, 2, 3, 1))
    means = torch.stack([rows[:, 2 * i : 2 * i + 2, j].mean(1) for i in range(4) for j in range(5)], 1)
    q, k, _ = means.chunk(3, -1)
    assert torch.equal((q @ k.mT).topk(2).indices, index)


@pytest.mark.parametrize(("form", "size"), [("legacy", (8, 4)), ("legacy", (7, 3)), ("nchw", (7, 4))])
def test_attention_maps(form, size):
    """The weights of one pixel, against its output recomputed from them (filling adds a term of its own)."""
    mixer, x = BiLevelRouting(8, 2, regions=2, topk=2, form=form).double(), normal(2, 8, *size)
    maps = mixer.attention_maps(x, (5, 2))
    assert maps.shape == (2, 2, *size)
    total = maps.sum((2, 3))
    if size == (8, 4):
        torch.testing.assert_close(total, torch.ones_like(total))
        assert (maps.count_nonzero((2, 3)) == 16).all()
    else:
        assert (total <= 1 + 1e-12).all()
        assert (total < 1 - 1e-6).any()
    if form == "legacy" and size != (8, 4):
        return
    v = mixer.qkv(x.permute(0, 2, 3, 1))[..., 16:]
    y = torch.einsum("bhyx,byxhd->bhd", maps, v.unflatten(-1, (2, 4))).flatten(1)
    y = mixer.proj(y + mixer.lepe(v.permute(0, 3, 1, 2))[:, :, 5, 2])
    torch.testing.assert_close(y, mixer(x)[:, :, 5, 2])


def test_cost():
    """With the regions doubled with the map, the cost of the attention is linear in pixels."""
    costs = []
    for side, regions in ((56, 7), (112, 14)):
        q = torch.empty(1, side, side, 2, 32, device="meta")
        index = torch.empty(1, regions**2, 4, dtype=torch.int64, device="meta")
        with FlopCounterMode(display=False) as counter:
            routed_attention_reference(q, q, q, index, regions, regions, 1.0)
        costs.append(counter.get_total_flops())
    assert costs == [2 * 2 * 56**4 * 64 * 4 // 49, 4 * costs[0]]


def test_the_choice_passes_no_gradient():
    mixer = BiLevelRouting(8, 2, regions=2, topk=1).double()
    mixer._route(normal(1, 8, 4, 4).requires_grad_())
    x = normal(1, 8, 4, 4).requires_grad_()
    assert not mixer._route(x)[1].requires_grad
    mixer(x).sum().backward()
    assert x.grad.isfinite().all()


def test_lepe_of_input_and_value():
    for lepe_of in ("input", "value"):
        mixer, x = AttentionLePE(16, lepe_of=lepe_of).double(), normal(2, 16, 5, 4)
        rows = x.permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = mixer.qkv(rows).unflatten(-1, (3, 8, 2)).permute(2, 0, 3, 1, 4)
        y = ((q @ k.mT * 2**-0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        read = rows if lepe_of == "input" else mixer.qkv(rows)[..., 32:]
        y = y + mixer.lepe(read.mT.unflatten(2, (5, 4))).flatten(2).mT
        torch.testing.assert_close(mixer(x), mixer.proj(y).mT.unflatten(2, (5, 4)))
    with pytest.raises(ValueError, match="lepe_of='output' must be 'input' or 'value'"):
        AttentionLePE(16, lepe_of="output")


STEM = {"stem.0.conv": "0", "stem.0.norm": "1", "stem.2.conv": "3", "stem.2.norm": "4", "stem.0": "0", "stem.1": "1"}
SHARED = {
    "norm1": "norm1",
    "norm2": "norm2",
    "position": "pos_embed",
    "mixer.lepe": "attn.lepe",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
}
ROUTED = {"mixer.qkv": "attn.qkv.qkv", "mixer.proj": "attn.wo"}
FULL = {"mixer.qkv": "attn.qkv", "mixer.proj": "attn.proj"}
STACK = {"mixer.0": "attn.1", "mixer.1": "attn.2", "mixer.2": "attn.3"}
NCHW = {"mixer.qkv": "attn.qkv_linear", "mixer.proj": "attn.output_linear", "mlp.fc2": "mlp.2"}


def official(name, network):
    """The authors' name of one of our tensors."""
    module, end = name.rsplit(".", 1)
    if module.startswith("stem"):
        return f"downsample_layers.0.{STEM[module]}.{end}"
    if module.startswith("head"):
        return {"head.before": "norm", "head.fc": "head"}[module] + f".{end}"
    _, stage, kind, rest = module.split(".", 3)
    if kind == "downsample":
        places = {"conv": 0, "norm": 1, "0": 0, "1": 1}
        return f"downsample_layers.{stage}.{places[rest]}.{end}"
    block, rest = rest.split(".", 1)
    topk = network.topks[int(stage)]
    own = FULL if topk < 0 else STACK if topk == 0 else NCHW if network.form == "nchw" else ROUTED
    blocks = "blocks." if isinstance(network, BiFormerSTL) else ""
    return f"stages.{stage}.{blocks}{block}.{ {**SHARED, **own}[rest] }.{end}"


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (BiFormer, dict(topks=(0, 2, -1, -2))),
        (BiFormerSTL, dict()),
        (BiFormerSTL, dict(form="nchw", topks=(1, 4, 16, -1))),
    ],
)
def test_official_names(network, options):
    network = network(dims=(32, 32, 64, 64), depths=(1, 1, 1, 1), num_classes=3, **options).eval()
    state = {official(name, network): value for name, value in network.state_dict().items()}
    again = type(network)(dims=(32, 32, 64, 64), depths=(1, 1, 1, 1), num_classes=3, **options).eval()
    account = backbones.load(again, {"model": state})
    assert account.complete, str(account)
    x = normal(1, 3, 50, 70).float()
    assert torch.equal(again(x), network(x))


def test_the_dense_form():
    """Norms are of the outputs alone. Odd sizes are rounded up by the strides, and filled up in the attentions."""
    network = BiFormer((32, 32, 64, 64), (1, 1, 1, 1), topks=(1, 2, 4, -2), regions=3).double().eval()
    x = normal(1, 3, 75, 50)
    assert norms_reach(network, x) == {0: [0], 1: [1], 2: [2], 3: [3]}
    assert [tuple(y.shape[-2:]) for y in network(x)] == [(19, 13), (10, 7), (5, 4), (3, 2)]
    assert {norm.eps for norm in network.norms.values()} == {1e-6}


def test_swin_layout():
    """As the authors' class: the patches lose what does not fill one, and only the blocks have layer norms."""
    network = BiFormerSTL((32, 32, 64, 64), (1, 1, 1, 1), form="nchw", topks=(1, 2, 4, -1), regions=(7, 7, 3, 3))
    network, x = network.double().eval(), normal(1, 3, 107, 78)
    maps = network(x)
    assert [tuple(y.shape[-2:]) for y in maps] == [(26, 19), (13, 9), (6, 4), (3, 2)]
    for got, expected in zip(network(x[..., :104, :76]), maps[:2]):
        assert torch.equal(got, expected)
    assert norms_reach(network, x) == {0: [0], 1: [1], 2: [2], 3: [3]}
    batch_norms = {name for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert batch_norms == {"stem.1", *(f"stages.{i}.downsample.0" for i in (1, 2, 3))}
    assert [stage.blocks[0].mixer.regions for stage in network.stages[:3]] == [7, 7, 3]


def test_heads_are_of_whole_widths():
    """dim // head_dim of them, as the authors count."""
    network = BiFormer((32, 48, 64, 96), (1, 1, 1, 1), key_dims=(32, 48, 64, 48), topks=(1, 1, 1, 1))
    assert [stage.blocks[0].mixer.heads for stage in network.stages] == [1, 1, 2, 1]
    assert network.stages[3].blocks[0].mixer.qkv.out_features == 2 * 48 + 96
    with pytest.raises(ValueError, match="key_dims must have one entry for each of the 4 stages"):
        BiFormer(key_dims=(32, 32))
    with pytest.raises(ValueError, match="regions must have one entry for each of the 4 stages"):
        BiFormer(regions=(7, 7))


def test_dense_parameters():
    for width, depths, params in (
        (64, (2, 2, 8, 2), 12_630_656),
        (64, (4, 4, 18, 4), 25_024_128),
        (96, (4, 4, 18, 4), 56_037_312),
    ):
        with torch.device("meta"):
            network = BiFormer((width, 2 * width, 4 * width, 8 * width), depths)
        assert sum(p.numel() for p in network.parameters()) == params


def test_bad_options():
    with pytest.raises(ValueError, match=r"form='nhwc' must be one of \('legacy', 'nchw'\)"):
        BiLevelRouting(32, form="nhwc")
    with pytest.raises(ValueError, match="regions=0 and topk=4 must be at least 1"):
        BiLevelRouting(32, regions=0)
    with pytest.raises(ValueError, match="topks must have one entry for each of the 4 stages"):
        BiFormer(topks=(1, 4, 16))
    with pytest.raises(ValueError, match=r"topks=\(1, 4, 16, -3\) must be at least -2"):
        BiFormer(topks=(1, 4, 16, -3))
    with pytest.raises(ValueError, match="dim=30 is not divisible by heads=4"):
        BiLevelRouting(30, heads=4)
    with pytest.raises(ValueError, match="key_dim=30 is not divisible by heads=4"):
        BiLevelRouting(32, heads=4, key_dim=30)
    for mixer in (BiLevelRouting, AttentionLePE):
        with pytest.raises(ValueError, match="lepe_kernel=4 must be odd"):
            mixer(32, lepe_kernel=4)
