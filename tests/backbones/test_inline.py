from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree
from levels import levels_changed_by, norms_reach
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones, checkpoint
from attlas.backbones import inline
from attlas.backbones.inline import CrossShapedAttention, CSwinBlock, InLine, InLineOfPVT, PatchMerging
from attlas.backbones.layers import Mlp, WindowAttention


def mixer(cls=InLine, dim=16, heads=4, bare=False, dtype=torch.float64, **options):
    """`bare`: without the residual, with the identity as projection, the attention is all there is."""
    torch.manual_seed(0)
    built = cls(dim, heads, **options).to(dtype).requires_grad_(False)
    if bare:
        for part in (built.residual[2], built.proj):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        nn.init.eye_(built.proj.weight)
    return built


def maps(*size, dim=16):
    return torch.randn(2, dim, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def rows_of(x):
    return x.flatten(2).mT


# --- operator --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", inline.KERNELS)
@pytest.mark.parametrize("cls", [InLine, InLineOfPVT])
def test_weights_of_all_pairs(cls, kernel):
    """The output equals the values under N x N weights, which are never built; they sum to 1, and some are negative."""
    built, x = mixer(cls, bare=True, kernel=kernel), 3 * maps(5, 3)
    seen = torch.stack([built.attention_maps(x, (i // 3, i % 3)).flatten(2) for i in range(15)], 2)
    q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in built.project(rows_of(x)))
    phi = inline.KERNELS[kernel]
    weights = 1 / 15 + phi(q) @ (phi(k) - phi(k).mean(2, keepdim=True)).mT / (15 * 2)  # d = 4
    assert_agree("weights", seen, weights)
    assert_agree("sums", seen.sum(-1), torch.ones(2, 4, 15, dtype=torch.float64))
    assert weights.min() < 0
    assert_agree("output", built(x), (weights @ v).transpose(1, 2).flatten(2).mT.unflatten(-1, (5, 3)))


def test_equal_values_stay():
    q, k = torch.randn(2, 2, 3, 30, 8, dtype=torch.float64)
    v = torch.randn(2, 3, 1, 8, dtype=torch.float64).expand(-1, -1, 30, -1)
    assert_agree("values", inline.inline_attention(q, k, v), v)


@pytest.mark.parametrize("size", [(6, 4), (1, 5), (1, 1)])
@pytest.mark.parametrize("residual", [inline.local_residual, inline.sum_of_taps])
def test_residual_is_a_convolution_of_each_image_with_its_own_kernels(size, residual):
    """In traced graphs too."""
    v, kernels = maps(*size), torch.randn(2, 16, 9, dtype=torch.float64)
    expected = [F.conv2d(v[i : i + 1], kernels[i].view(16, 1, 3, 3), padding=1, groups=16) for i in range(2)]
    assert_agree("residual", residual(v, kernels), torch.cat(expected))


def test_residual_of_the_operator():
    """The kernels are made of the mean of all tokens, channel by channel, group by group."""
    built, bare, x = mixer(), mixer(bare=True), maps(4, 5)
    hidden = F.gelu(built.residual[0](x.mean((2, 3))[..., None]))
    weight, bias = built.residual[2].weight[..., 0], built.residual[2].bias
    kernels = torch.stack([weight[i] @ hidden[:, i // 36 * 4 : i // 36 * 4 + 4, 0].mT + bias[i] for i in range(144)], 1)
    values = built.project(rows_of(x))[2].mT.unflatten(2, (4, 5))
    y = bare(x) + inline.local_residual(values, kernels.view(2, 16, 9))
    assert_agree("output", built(x), built.proj(rows_of(y)).mT.unflatten(2, (4, 5)))


def test_a_class_token_is_one_of_the_tokens_and_no_pixel():
    """It counts in N and in the mean that makes the kernels; its values are not in the map, its output has no
    residual."""
    built, x, token = mixer(), maps(3, 4), torch.randn(2, 1, 16, dtype=torch.float64)
    rows = torch.cat([token, rows_of(x)], 1)
    q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in built.project(rows))
    y = (1 / 13 + q @ (k - k.mean(2, keepdim=True)).mT / 26) @ v
    y = y.transpose(1, 2).flatten(2)
    kernels = built.residual(rows.mean(1)[..., None]).view(2, 16, 9)
    values = built.project(rows_of(x))[2].mT.unflatten(2, (3, 4))
    y[:, 1:] += rows_of(inline.local_residual(values, kernels))
    got, got_token = built(x, token)
    assert_agree("token", got_token, built.proj(y[:, :1]))
    assert_agree("pixels", got, built.proj(y[:, 1:]).mT.unflatten(2, (3, 4)))
    seen = built.attention_maps(x, (1, 2), token)
    weights = 1 / 13 + (k - k.mean(2, keepdim=True))[:, :, 1:] @ q[:, :, 7, :, None] / 26
    assert_agree("weights", seen, weights.view(2, 4, 3, 4))


def test_images_do_not_see_each_other():
    built, x = mixer(lepe=True), maps(4, 4)
    assert_agree("second image", built(x)[1:], built(x[1:]))


@pytest.mark.parametrize("stripe", [3, None])
def test_no_images(stripe):
    for built in (mixer(lepe=True), mixer_of_stripes(stripe=stripe)):
        assert built(maps(4, 5)[:0]).shape == (0, 16, 4, 5)


@pytest.mark.parametrize("cls", [InLine, InLineOfPVT, CrossShapedAttention])
def test_projections_without_bias(cls):
    with torch.device("meta"):
        names = [[name for name in cls(16, 4, qkv_bias=bias).state_dict() if "bias" in name] for bias in (True, False)]
    layers = ("q", "kv") if cls is InLineOfPVT else ("qkv",)
    assert set(names[0]) - set(names[1]) == {f"{layer}.bias" for layer in layers}


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operator gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        if isinstance(given, torch.Tensor):
            self.elements = max(self.elements, given.numel())
        return given


def test_cost():
    """Operations and memory grow as the pixels; no tensor has more elements than q, k and v together."""
    built = mixer(dtype=torch.float32)
    counts = []
    for height in (64, 128):
        x = torch.randn(1, 16, height, 64)
        with FlopCounterMode(display=False) as counter, Largest() as largest:
            built(x)
        assert largest.elements == 3 * x.numel()
        counts.append(counter.get_total_flops())
    kernels = 2 * (16 * 16 + 9 * 16 * 16) // 4  # once for an image
    assert counts[1] - kernels == 2 * (counts[0] - kernels) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_pixels_in_half_precision(dtype):
    """Finite and right where sums over all pixels exceed what float16 can hold."""
    built = mixer(dim=8, heads=1, dtype=dtype)
    x = torch.randn(1, 8, 256, 256, generator=torch.Generator().manual_seed(1)) + 2
    got = built(x.to(dtype)).float()
    expected = built.double()(x.to(dtype).double()).float()
    assert torch.isfinite(got).all()
    assert (got - expected).norm() < {torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype] * expected.norm()


def test_bad_kernel():
    with pytest.raises(ValueError, match=r"InLine: kernel='elu' must be one of identity, relu, leaky_relu, exp"):
        InLine(16, kernel="elu")


# --- injectivity -----------------------------------------------------------------------------------------------------


def test_lengths_of_queries_count():
    """Linear attention gives q and 2 q the same weights, InLine and softmax attention others."""
    torch.manual_seed(0)
    directions, keys = torch.randn(20, 8, dtype=torch.float64), torch.randn(50, 8, dtype=torch.float64)
    for name, weights in inline.WEIGHTS.items():
        one, two = weights(directions, keys), weights(2 * directions, keys)
        assert ((one - two).abs().amax(1) < 1e-9).all() == (name == "linear")
        assert ((one - two).abs().amax(1) > 1e-4).all() == (name != "linear")
        assert_agree("sums", one.sum(1), torch.ones(20, dtype=torch.float64))


def test_indistinguishable():
    torch.manual_seed(0)
    directions, keys = torch.randn(20, 8, dtype=torch.float64), torch.randn(50, 8, dtype=torch.float64)
    queries = torch.cat([directions, 2 * directions, 4 * directions])
    shares = {name: inline.indistinguishable(name, queries, keys) for name in inline.WEIGHTS}
    assert shares == {"softmax": 0, "linear": pytest.approx(60 / 1770), "inline": 0}  # 3 pairs of each direction
    # centered keys that do not span their space cannot tell all queries apart
    assert inline.indistinguishable("inline", queries, keys[:1].expand(5, -1)) == 1


def test_the_page_of_the_demonstration():
    """Its code gives what its table says."""
    page = (Path(__file__).parents[2] / "docs/demonstrations.md").read_text().split("\n## ")[1]
    scope = {}
    exec(page.split("```python\n")[1].split("```")[0], scope)
    pairs = [round(1770 * scope["shares"][name]) for name in ("softmax", "linear", "inline")]
    _, *rows = (row.split("|") for row in page.splitlines() if row.startswith("| "))
    assert pairs == [int(row[3]) for row in rows]


def test_the_demonstration_is_the_operator():
    """Its weights are those of the mixer."""
    built, x = mixer(heads=1, bare=True), maps(3, 4)[:1]
    q, k, _ = built.project(rows_of(x)[0])
    seen = torch.stack([built.attention_maps(x, (i // 4, i % 4)).flatten() for i in range(12)])
    assert_agree("weights", inline.WEIGHTS["inline"](q, k), seen)


def test_bad_arguments_of_the_demonstration():
    q, k = torch.randn(4, 8), torch.randn(5, 8)
    with pytest.raises(ValueError, match=r"attention='cosine' must be one of softmax, linear, inline"):
        inline.indistinguishable("cosine", q, k)
    for queries, keys in ((q[:1], k), (q, k[:, :4]), (q, k[:0]), (q[0], k)):
        with pytest.raises(ValueError, match=r"queries must have shape \(M, d\)"):
            inline.indistinguishable("inline", queries, keys)
    with pytest.raises(TypeError, match=r"queries must be of floating point, got torch.int64"):
        inline.indistinguishable("inline", q.long(), k.long())
    with pytest.raises(TypeError, match=r"keys must be of the dtype of queries, torch.float32, got torch.float64"):
        inline.indistinguishable("inline", q, k.double())


def test_the_demonstration_of_many_queries():
    """No tensor is of all pairs of queries and all keys."""
    torch.manual_seed(0)
    queries, keys = torch.randn(100, 4), torch.randn(50, 4)
    with Largest() as largest:
        inline.indistinguishable("inline", queries, keys)
    assert largest.elements == 100 * 50


# --- parts -----------------------------------------------------------------------------------------------------------


def by_stripes(built, x, axis):
    """One branch of cross-shaped attention, stripe by stripe: rows for axis 1, columns for axis 0."""
    dim, parts = x.shape[1] // 2, []
    for stripe in x.split(built.stripe, dim=3 - axis):
        qkv = built.qkv(rows_of(stripe)).unflatten(-1, (3, 2, dim))[:, :, :, axis]
        q, k, v = (part.unflatten(-1, (built.heads, -1)).transpose(1, 2) for part in qkv.unbind(2))
        y = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        y = y.transpose(1, 2).flatten(2).mT.unflatten(2, stripe.shape[2:])
        parts.append(y + built.lepe[axis](qkv[:, :, 2].mT.unflatten(2, stripe.shape[2:])))
    return torch.cat(parts, 3 - axis)


def test_cross_shaped_attention_by_definition():
    built, x = mixer_of_stripes(), maps(6, 9)
    y = torch.cat([by_stripes(built, x, axis) for axis in (0, 1)], 1)
    assert_agree("output", built(x), built.proj(rows_of(y)).mT.unflatten(2, (6, 9)))
    part = x[:, :, :4, :8]
    assert_agree("filled up with zeros", built(part), built(F.pad(part, (0, 1, 0, 2)))[:, :, :4, :8])


def mixer_of_stripes(**options):
    torch.manual_seed(0)
    return CrossShapedAttention(16, 4, **{"stripe": 3, **options}).double().requires_grad_(False)


def test_cross_shaped_attention_to_the_whole_map():
    built, x = mixer_of_stripes(stripe=None), maps(4, 5)
    q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in built.qkv(rows_of(x)).chunk(3, -1))
    y = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2).mT
    y = y.unflatten(2, (4, 5)) + built.lepe[0](built.qkv(rows_of(x))[..., 32:].mT.unflatten(2, (4, 5)))
    assert_agree("output", built(x), built.proj(rows_of(y)).mT.unflatten(2, (4, 5)))


def test_bad_stripes():
    for options, message in (
        (dict(dim=16, heads=3), r"dim=16 and heads=3 must be even"),
        (dict(dim=15), r"dim=15 and heads=None must be even"),
        (dict(dim=16, stripe=0), r"stripe=0 must be at least 1"),
        (dict(dim=16, heads=6), r"dim=8 is not divisible by heads=3"),
    ):
        with pytest.raises(ValueError, match=f"CrossShapedAttention: .*{message}"):
            CrossShapedAttention(**options)


def test_order_of_merged_pixels():
    merging, x = PatchMerging(16, 24).double(), maps(4, 6)
    slices = [x[..., 0::2, 0::2], x[..., 1::2, 0::2], x[..., 0::2, 1::2], x[..., 1::2, 1::2]]
    expected = merging.reduction(merging.norm(torch.cat(slices, 1).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    assert_agree("output", merging(x), expected)
    assert_agree("odd", merging(x[..., :3, :5]), merging(F.pad(x[..., :3, :5], (0, 1, 0, 1))))


def test_a_block_of_cswin_makes_kernels_of_what_its_norm_reads():
    torch.manual_seed(0)
    block, x = CSwinBlock(16, InLine(16, 4, lepe=True), Mlp(16)).double(), maps(4, 5) + 1
    y = x + block.mixer(block.norm1(x), context=x.mean((2, 3)))
    assert_agree("output", block(x), y + block.mlp(block.norm2(y)))
    other = x + block.mixer(block.norm1(x))
    assert (other - y).abs().max() > 1e-3


def test_types():
    assert inline.inline_blocks(("I", "S", "M2", "M12"), (3, 2, 18, 12)) == [3, 0, 2, 12]
    with pytest.raises(ValueError, match=r"types=\('I', 'M9'\): 'M9' is of a stage that has 2 blocks"):
        inline.inline_blocks(("I", "M9"), (2, 2))
    for bad in ("X", "II", "M", "", "i"):
        with pytest.raises(ValueError, match=r"types=.*a stage takes 'I', 'S', or 'M' and a number"):
            backbones.inline.InLineSwin(types=("I", bad, "S", "S"))
    with torch.device("meta"):
        stages = backbones.create("inline_swin_b", num_classes=5).stages
    kinds = [[type(block.mixer) for block in stage.blocks] for stage in stages]
    assert kinds == [[InLine] * 2] * 2 + [[InLine] * 2 + [WindowAttention] * 16, [WindowAttention] * 2]


@pytest.mark.parametrize(
    ("options", "windows"),
    [
        (dict(num_classes=5), [(7, 0), (7, 0)]),  # the map of 224 pixels has 7
        (dict(num_classes=5, img_size=448), [(7, 0), (7, 3)]),
        (dict(num_classes=5, img_size=64), [(2, 0), (2, 0)]),
        (dict(), [(7, 0), (7, 3)]),  # maps of any size
    ],
)
def test_windows_of_swin(options, windows):
    with torch.device("meta"):
        last = backbones.inline.InLineSwin(**options).stages[3].blocks
    assert [(block.mixer.window, block.mixer.shift) for block in last] == windows


@pytest.mark.parametrize(
    ("options", "stripes"),
    [
        (dict(), [7, None]),  # maps of 14 and 7
        (dict(img_size=112), [None, None]),
        (dict(img_size=(112, 224)), [7, None]),
        (dict(stripe=14, num_classes=5), [None, None]),
    ],
)
def test_stripes_of_cswin(options, stripes):
    """A map no wider than a stripe is seen whole."""
    with torch.device("meta"):
        stages = backbones.inline.InLineCSwin(depths=(1, 1, 1, 1), **options).stages[2:]
    assert [stage.blocks[0].mixer.stripe for stage in stages] == stripes


@pytest.mark.parametrize("name", ["InLineDeiT", "InLinePVT", "InLineSwin", "InLineCSwin"])
def test_initial_weights_of_convolutions(name):
    """PyTorch's; those of linear layers are smaller."""
    torch.manual_seed(0)
    options = dict(depth=1) if name == "InLineDeiT" else SMALL
    network = backbones.systems()[name](**options)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            assert 0.8 * bound < layer.weight.abs().max() <= bound
            assert layer.bias.abs().max() > 0
        if isinstance(layer, nn.Linear):
            assert layer.weight.std() < 0.022


@pytest.mark.parametrize("name", ["InLineDeiT", "InLinePVT", "InLineSwin", "InLineCSwin"])
def test_sides_of_the_image(name):
    network = backbones.systems()[name]
    for side in (0, -224, (224, 0), 224.0):
        with pytest.raises(ValueError, match=r"img_size=.* must be a number of pixels, at least 1"):
            network(img_size=side)


# --- dense forms -----------------------------------------------------------------------------------------------------

SMALL = dict(dims=(16, 24, 32, 40), depths=(1, 1, 1, 1), heads=(2, 2, 4, 4))


@pytest.mark.parametrize("name", ["InLinePVT", "InLineSwin", "InLineCSwin"])
def test_the_dense_form(name):
    """Norms are of the outputs alone. Strides round up, but not those of PVT."""
    torch.manual_seed(0)
    network = backbones.systems()[name](**SMALL).double().eval()
    image = torch.randn(1, 3, 75, 50, dtype=torch.float64)
    assert norms_reach(network, image) == {0: [0], 1: [1], 2: [2], 3: [3]}
    up, down = [(19, 13), (10, 7), (5, 4), (3, 2)], [(18, 12), (9, 6), (4, 3), (2, 1)]
    assert [tuple(y.shape[-2:]) for y in network(image)] == (down if name == "InLinePVT" else up)
    assert {norm.eps for norm in network.norms.values()} == {1e-6 if name == "InLinePVT" else 1e-5}


def test_the_dense_form_of_deit():
    """The class token and its position take part, as a token of every attention."""
    torch.manual_seed(0)
    network = backbones.inline.InLineDeiT(16, 2, 2, img_size=32, out_indices=(0, 1)).double().eval()
    image = torch.randn(1, 3, 40, 70, dtype=torch.float64)
    assert levels_changed_by(network, image, "cls_token.weight") == [0, 1]
    assert [tuple(x.shape[-2:]) for x in network(image)] == [(3, 5), (3, 5)]


def test_tables_of_pvt_are_resized_by_their_own_grid():
    """Not as in the authors' code, which compares the number of pixels of every stage with that of the first one."""
    network = backbones.inline.InLinePVT(**SMALL, img_size=64, num_classes=3)
    tables = [network.stem.position, *(stage.downsample.position for stage in network.stages[1:])]
    assert [tuple(table.weight.shape[2:]) for table in tables] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    x = torch.zeros(1, 24, 16, 16)  # as many as in the table of the first stage
    expected = F.interpolate(tables[1].weight, (16, 16), mode="bilinear")
    assert_agree("table", tables[1](x), expected)


@pytest.mark.parametrize(
    ("size", "sides"), [((70, 90), [(17, 22), (8, 11), (4, 5), (2, 2)]), ((1, 33), [(8, 8), (4, 4), (2, 2), (1, 1)])]
)
def test_what_pvt_loses_beside_whole_patches(size, sides):
    """Tables are of the same size. Small images are filled up."""
    network = backbones.inline.InLinePVT(**SMALL, img_size=size).eval()
    tables = [network.stem.position, *(stage.downsample.position for stage in network.stages[1:])]
    assert [tuple(table.weight.shape[2:]) for table in tables] == sides
    assert [tuple(y.shape[-2:]) for y in network(torch.zeros(1, 3, *size))] == network.map_sizes(*size) == sides


# --- the authors' files ----------------------------------------------------------------------------------------------


def of_block(ours, theirs, names):
    norms = [f"{part}.{kind}" for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")]
    pairs = {name: name for name in norms}
    for one, other in names.items():
        pairs |= {f"mixer.{one}.{kind}": f"{other}.{kind}" for kind in ("weight", "bias")}
    return {f"{ours}.{one}": f"{theirs}.{other}" for one, other in pairs.items()}


def both(names):
    return {f"{one}.{kind}": f"{other}.{kind}" for one, other in names.items() for kind in ("weight", "bias")}


def test_names_of_deit():
    network = backbones.inline.InLineDeiT(16, 1, 2, img_size=32, num_classes=3)
    pairs = {"cls_token.weight": "cls_token", "position.weight": "pos_embed"}
    pairs |= both({"stem": "patch_embed.proj", "norm": "norm", "head.fc": "head"})
    pairs |= of_block(
        "blocks.0",
        "blocks.0",
        {name: f"attn.{name}" for name in ("qkv", "proj", "residual.0", "residual.2")},
    )
    _all_names(network, pairs)
    state = {pairs[name]: value for name, value in network.state_dict().items()}
    larger = backbones.inline.InLineDeiT(16, 1, 2, img_size=64, num_classes=3)
    account = checkpoint.load(larger, state)
    assert account.complete, str(account)
    assert list(account.resized) == ["position.weight"]


def test_names_of_cswin():
    network = backbones.inline.InLineCSwin(**SMALL, num_classes=3)
    pairs = both({"stem.conv": "stage1_conv_embed.0", "stem.norm": "stage1_conv_embed.2"})
    pairs |= both({"head.before": "norm", "head.fc": "head"})
    for i in (1, 2, 3):
        pairs |= both({f"stages.{i}.downsample.{part}": f"merge{i}.{part}" for part in ("conv", "norm")})
    for i in range(4):
        names = {"qkv": "qkv", "proj": "proj", "lepe.0": "attns.0.get_v"}
        if i < 2:
            names |= {f"residual.{n}": f"attns.0.residual.{n}" for n in (0, 2)}
        if i == 2:
            names["lepe.1"] = "attns.1.get_v"
        pairs |= of_block(f"stages.{i}.blocks.0", f"stage{i + 1}.0", names)
    _all_names(network, pairs)


def _all_names(network, pairs):
    """`pairs` are all of our names and theirs."""
    state = network.state_dict()
    assert set(pairs) == set(state)
    account = checkpoint.load(network, {pairs[name]: value for name, value in state.items()})
    assert account.complete, str(account)
    assert not account.unexpected
