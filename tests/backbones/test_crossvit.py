import re

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree
from golden_records import Record
from levels import levels_changed_by
from networks import fill
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones, checkpoint
from attlas.backbones.crossvit import BRANCHES, Aligned, CrossAttention, CrossViT, MultiScaleBlock, conv_patches
from attlas.backbones.inspection.attention_maps import look
from attlas.backbones.layers import DropPath

SMALL = dict(dims=(16, 32), depths=((1, 2), (1, 1)), heads=2, img_size=(60, 48))


def mixer(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return CrossAttention(16, 4, **options).to(dtype).requires_grad_(False)


def maps(*size, dim=16):
    return torch.randn(2, dim, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tokens(count=1, dim=16):
    return torch.randn(2, count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def network(**options):
    torch.manual_seed(0)
    return fill(CrossViT(**{**SMALL, **options})).double()


def image(*size):
    return torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


# --- operator --------------------------------------------------------------------------------------------------------


def by_definition(built, rows, count=1):
    """The weights and the output of the first tokens among rows (B, T + N, C), with keys and values."""
    q, k, v = (
        layer(part).unflatten(-1, (built.heads, -1)).transpose(1, 2)
        for layer, part in ((built.q, rows[:, :count]), (built.k, rows), (built.v, rows))
    )
    weights = (q @ k.mT * built.scale).softmax(-1)
    return weights, built.proj((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("options", [dict(), dict(qkv_bias=False), dict(scale=0.1)])
@pytest.mark.parametrize("count", [1, 3])
def test_cross_attention_by_definition(count, options):
    """Without keys and values, the output is the one that they give."""
    built, x, read = mixer(**options), 3 * maps(5, 3), tokens(count)
    weights, expected = by_definition(built, torch.cat([read, x.flatten(2).mT], 1), count)
    zeros, y = built(x, read)
    assert_agree("tokens", y, expected)
    assert torch.equal(zeros, torch.zeros_like(x))
    assert_agree("weights", built.attention_maps(x, (1, 2), read), weights[:, :, 0, count:].unflatten(-1, (5, 3)))


def test_without_tokens_the_mean_reads():
    """Every pixel gets the same vector, in whatever order the pixels are."""
    built, x = mixer(), maps(4, 5)
    rows = x.flatten(2).mT
    _, expected = by_definition(built, torch.cat([rows.mean(1, keepdim=True), rows], 1))
    assert_agree("output", built(x), expected.mT.unsqueeze(-1).expand_as(x))
    assert_agree("permuted", built(x.flip(2, 3)), built(x))
    assert (built.attention_maps(x, (0, 0)).sum((2, 3)) < 1).all()


def test_cost():
    """Twice the pixels, twice the operations, but for those of the token itself; fewer than keys and values take."""
    built, counts = mixer(torch.float32), []
    for height in (32, 64):
        with FlopCounterMode(display=False) as counter:
            built(torch.randn(1, 16, height, 32), torch.randn(1, 1, 16))
        counts.append(counter.get_total_flops() // 2)
    of_token = 4 * 16 * 16 + 2 * 4 * 16 + 16  # q, Wᵀ q, W of the sum and proj; its own key and value; q · bias
    assert counts[1] - of_token == 2 * (counts[0] - of_token) == 2 * 64 * 32 * 16 * 4
    assert counts[1] < 2 * 64 * 32 * 16 * 16


def test_the_bias_of_keys_changes_nothing():
    built, x, read = mixer(), maps(4, 4), tokens()
    expected = built(x, read)[1]
    built.k.bias += 7.0
    assert_agree("output", built(x, read)[1], expected)


@pytest.mark.parametrize("class_token", [0, None])
def test_as_the_mixer_of_a_plain_vit(class_token):
    """With a class token or without, at odd sizes."""
    built = backbones.Isotropic(16, 2, "CrossAttention", class_token, patch_size=8, img_size=32, num_classes=3)
    for height, width in ((32, 32), (41, 9)):
        built(image(height, width).float()).logsumexp(1).sum().backward()
    assert all(p.grad is not None for p in built.parameters())


# --- multi-scale block -----------------------------------------------------------------------------------------------


def multi_scale_block(**options):
    torch.manual_seed(0)
    return fill(MultiScaleBlock((16, 32), (2, 1), (2, 4), (3, 2), **options)).double().requires_grad_(False)


def both_maps():
    return [maps(3, 3), maps(2, 2, dim=32)], [tokens(), tokens(dim=32)]


def plain(block, rows):
    """A pre-norm transformer block on rows (B, T + N, C)."""
    q, k, v = block.mixer.qkv(block.norm1(rows)).unflatten(-1, (3, block.mixer.heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    rows = rows + block.mixer.proj((weights @ v).transpose(1, 2).flatten(2))
    return rows + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(rows))))


def test_patches_are_those_of_two_transformers():
    """The exchange changes the class tokens alone."""
    block, (x, token) = multi_scale_block(), both_maps()
    new_x, new_token = block(x, token)
    for i, branch in enumerate(BRANCHES):
        rows = torch.cat([token[i], x[i].flatten(2).mT], 1)
        for layer in block.branches[branch]:
            rows = plain(layer, rows)
        assert_agree("patches", new_x[i].flatten(2).mT, rows[:, 1:])
        assert (new_token[i] - rows[:, :1]).abs().max() > 0.1


def test_the_order_of_the_other_patches_does_not_count():
    """But the patches do; and a token does not read those of its own branch."""
    block, (x, token) = multi_scale_block(), both_maps()
    x, token = dict(zip(BRANCHES, x)), dict(zip(BRANCHES, token))
    expected = block.fuse(x, token)
    for branch, other in (("0", "1"), ("1", "0")):
        for change, is_the_same in ((lambda y: y.flip(2, 3), True), (lambda y: y.flip(1), False)):
            got = block.fuse({**x, other: change(x[other])}, token)
            assert torch.allclose(got[branch], expected[branch], atol=1e-12) == is_the_same
            assert torch.equal(got[other], expected[other])


def test_exchange_by_definition():
    """The residual of the exchange is in the width of the other branch; further fusions read the token alone."""
    for count in (1, 2):
        block, (x, token) = multi_scale_block(fusions=count), both_maps()
        x, token = dict(zip(BRANCHES, x)), dict(zip(BRANCHES, token))
        got = block.fuse(x, token)
        for branch, other in (("0", "1"), ("1", "0")):
            (norm, _, linear), (back_norm, _, back) = block.projs[branch], block.revert_projs[branch]
            t, rows = linear(F.gelu(norm(token[branch]))), x[other].flatten(2).mT
            for fusion in block.fusion[branch]:
                normed = fusion.norm1(torch.cat([t, rows], 1))
                t, rows = t + by_definition(fusion.mixer, normed)[1], rows[:, :0]
            assert_agree("token", got[branch], back(F.gelu(back_norm(t))))


def test_a_step_trains_every_exchange():
    built = CrossViT(**SMALL, num_classes=5)
    before = {name: p.clone() for name, p in built.named_parameters()}
    optimizer = torch.optim.SGD(built.parameters(), lr=1.0)
    F.cross_entropy(built(image(60, 60).float()), torch.tensor([1, 3])).backward()
    optimizer.step()
    parts = [f"blocks.{k}.{part}.{b}." for k in (0, 1) for part in ("projs", "fusion", "revert_projs") for b in (0, 1)]
    for part in parts:
        changed = [n for n, p in built.named_parameters() if n.startswith(part) and not torch.equal(p, before[n])]
        assert len(changed) > 2, part


# --- network ---------------------------------------------------------------------------------------------------------


def test_the_classifier_sees_squares():
    """Images of any shape are resized inside, and for each branch from the original."""
    built = network(num_classes=5)
    seen = {}
    for branch, stem in built.stem.items():
        stem.register_forward_pre_hook(lambda _, args, branch=branch: seen.update({branch: args[0]}))
    for size in ((60, 60), (50, 77), (48, 48)):
        x = image(*size)
        built(x)
        for branch, side in zip(BRANCHES, (60, 48)):
            expected = x if size == (side, side) else F.interpolate(x, (side, side), mode="bicubic")
            assert_agree("image", seen[branch], expected)
    x = image(50, 77)
    program = torch.export.export(built.float(), (x.float(),))
    assert sum(node.target == torch.ops.aten.upsample_bicubic2d.vec for node in program.graph.nodes) == 2
    assert_agree("exported", program.module()(x.float()), built(x.float()))


def test_logits_are_the_mean_of_both_branches():
    built, x = network(num_classes=5), image(60, 60)
    features = built.forward_features(x)
    assert features.shape == (2, 16 + 32)
    logits = [layer(part) for layer, part in zip(built.head.fc, features.split((16, 32), 1))]
    assert_agree("logits", built(x), (logits[0] + logits[1]) / 2)
    built.reset_classifier(3)
    assert [layer.weight.shape for layer in built.get_classifier()] == [(3, 16), (3, 32)]
    assert built.get_classifier()[1].weight.dtype == torch.float64
    assert built.classifier_names() == ["head.fc"]


def test_the_dense_form_has_the_patches_of_the_classifier():
    """At its size, and where the strides are those of the patches: 60 / 12 and 60 / 20 = 48 / 16."""
    classifier, dense = network(num_classes=5), network(strides=(12, 20), out_indices=(0, 1, 2, 3))
    x = image(60, 60)
    _, expected = classifier.forward_intermediates(x, norm=True)
    got = dense(x)
    assert [y.shape[1:] for y in got] == [(16, 5, 5), (32, 3, 3)] * 2
    for y, z in zip(got, expected):
        assert_agree("map", y, z)
    assert classifier.feature_info.reduction() == [12, 20] * 2


def test_the_dense_form_keeps_shapes_and_the_ratio_of_the_branches():
    built, seen = network(), {}
    for branch, stem in built.stem.items():
        stem.register_forward_pre_hook(lambda _, args, branch=branch: seen.update({branch: args[0].shape[2:]}))
    built(image(128, 80))
    assert {branch: tuple(size) for branch, size in seen.items()} == {"0": (132, 84), "1": (112, 64)}


@pytest.mark.parametrize(("patch", "side", "stride"), [(12, 96, 8), (16, 112, 16), (12, 96, 4)])
def test_maps_lie_where_the_image_is(patch, side, stride):
    """A map of patches that holds the place of their centers in the image becomes one of the centers of its own pixels,
    but at the border, beyond the outer centers."""
    count, image_side = side // patch, 96
    centers = (torch.arange(count, dtype=torch.float64) + 0.5) * image_side / count
    x = centers.expand(1, 1, count, count)
    y = Aligned(stride)(x, (96, 96), (90, 93))
    assert y.shape[2:] == (-(-90 // stride), -(-93 // stride))
    own = (torch.arange(y.shape[3], dtype=torch.float64) + 0.5) * stride
    inner = (own >= centers[0]) & (own <= centers[-1])
    assert_agree("places", y[0, 0, 0][inner], own[inner])


def test_what_an_image_is_filled_up_with_does_not_move_its_maps():
    """An image is as one with zeros below and on the right, up to whole pixels of the coarsest map."""
    built, x = network(), image(43, 50)
    whole = built(F.pad(x, (0, 14, 0, 5)))
    for y, z, (height, width) in zip(built(x), whole, built.map_sizes(43, 50)):
        assert torch.equal(y, z[..., :height, :width])


@pytest.mark.parametrize("out_indices", [(0,), (1,), (2,), (3,), (0, 1), (0, 3), (1, 2), (2, 3), (0, 1, 2, 3)])
def test_only_what_the_maps_need_is_built(out_indices):
    """Every parameter learns, the maps are those of the whole, and files of the whole are no surprise."""
    whole, built = network(out_indices=(0, 1, 2, 3)), CrossViT(**SMALL, out_indices=out_indices).double().eval()
    account = backbones.load(built, network(num_classes=5).state_dict())
    assert account.complete, str(account)
    x = image(40, 55)
    expected, got = whole(x), built(x)
    for i, y in zip(out_indices, got):
        assert_agree("map", y, expected[i])
    sum((y * torch.randn_like(y)).sum() for y in got).backward()
    assert [name for name, p in built.named_parameters() if p.grad is None] == []
    assert len(built.forward_intermediates(x, intermediates_only=True)) == 2 * (out_indices[-1] // 2 + 1)


def test_an_exchange_reaches_the_next_block():
    built, x = network(out_indices=(0, 1, 2, 3)), image(64, 64)
    assert levels_changed_by(built, x, "blocks.0.fusion.0.0.mixer.v.weight") == [2]
    assert levels_changed_by(built, x, "blocks.0.fusion.1.0.mixer.v.weight") == [3]
    assert levels_changed_by(built, x, "norm.0.weight") == [0, 2]
    assert levels_changed_by(built, x, "stem.1.weight") == [1, 2, 3]
    assert not [name for name in built.state_dict() if name.startswith(("blocks.1.fusion", "blocks.1.projs"))]


@pytest.mark.parametrize(("patch", "strides"), [(12, (4, 3, 1)), (16, (4, 2, 2))])
def test_three_convolutions_make_patches(patch, strides):
    """ReLU stands between them; 12 is reached without a margin in the middle."""
    stem, x = conv_patches(3, 16, patch).double(), image(96, 48)
    expected, between = x, (3, 0 if patch == 12 else 1, 1)
    for i, (conv, stride, padding) in enumerate(zip(stem[::2], strides, between)):
        expected = F.conv2d(F.relu(expected) if i else expected, conv.weight, conv.bias, stride, padding)
    assert expected.shape == (2, 16, 96 // patch, 48 // patch)
    assert_agree("patches", stem(x), expected)


def test_where_it_looks():
    """Both kinds of attention show maps of the patches: 5 x 5 and 3 x 3."""
    seen = look(network(num_classes=5), image(60, 60)[:1], (0.5, 0.5))
    found = sorted((one.mixer, one.maps.shape) for one in seen)
    assert found == [(name, (2, side, side)) for name in ("Attention", "CrossAttention") for side in (3, 5)]


def test_frozen_stages_are_the_branches_of_the_blocks():
    for count, expected in ((0, []), (1, ["0.branches.0."]), (2, ["0."]), (3, ["0.", "1.branches.0."])):
        built = CrossViT(**SMALL, frozen_stages=count)
        frozen = {name for name, p in built.named_parameters() if not p.requires_grad}
        parts = ("stem.", "position.", "cls_token.", *(f"blocks.{part}" for part in expected))
        assert frozen == {name for name, _ in built.named_parameters() if name.startswith(parts)}


def test_rates_of_stochastic_depth():
    """Both branches count from the beginning of their block; the fusions have the rate of its last."""
    built = CrossViT(**{**SMALL, "depths": ((1, 3), (2, 1))}, drop_path_rate=0.4, num_classes=5)
    rates = [
        [{n: [m.rate for m in part.modules() if isinstance(m, DropPath)] for n, part in kind.items()} for kind in kinds]
        for kinds in ((block.branches, block.fusion) for block in built.blocks)
    ]
    for got, (small, large, fusion) in zip(rates, (([0.0], [0.0, 0.1, 0.2], [0.2]), ([0.3, 0.4], [0.3], [0.4]))):
        assert got == [
            {"0": pytest.approx(small), "1": pytest.approx(large)},
            {"0": pytest.approx(fusion), "1": pytest.approx(fusion)},
        ]


def test_fusions_that_count_as_blocks():
    """As the authors' do from one on: the rates of all blocks rise over more steps, and those of fusions are last."""
    for fusions, expected in ((0, [0.0, 0.1, 0.1, 0.2, 0.3, 0.3]), (2, [0.0, 0.1, 0.3, 0.4, 0.5, 0.7])):
        step = 0.1 * (7 if fusions else 3)
        built = CrossViT(**{**SMALL, "depths": ((1, 2), (1, 2))}, fusions=fusions, drop_path_rate=step, num_classes=5)
        kinds = [part for block in built.blocks for part in (block.branches["1"], block.fusion["1"])]
        assert [len(part) for part in kinds] == [2, max(1, fusions)] * 2
        rates = [[m.rate for m in part.modules() if isinstance(m, DropPath)] for part in kinds]
        assert [rate for part in rates for rate in sorted({*part})] == pytest.approx(expected)


def test_no_decay():
    """The authors' list has names that their parameters do not have."""
    assert CrossViT(**SMALL, num_classes=5).no_weight_decay() == {
        f"{part}.{branch}.weight" for part in ("position", "cls_token") for branch in BRANCHES
    }


# --- files -----------------------------------------------------------------------------------------------------------


def test_other_names_of_files():
    """timm's; and those of fusions in a sequence, which the authors' code can have, too."""
    state = Record("crossvit/network_small").state_dict()
    options = dict(SMALL, depths=((1, 2), (1, 2)), mlp_ratio=3, num_classes=10)
    expected, built = CrossViT(**options), CrossViT(**options)
    assert backbones.load(expected, state).complete
    for pattern, replacement in ((r"^(pos_embed|cls_token)\.", r"\1_"), (r"\.fusion\.(\d)\.", r".fusion.\1.0.")):
        renamed = {re.sub(pattern, replacement, name): value for name, value in state.items()}
        assert renamed.keys() != state.keys()
        assert backbones.load(built, renamed).complete
        assert all(torch.equal(value, expected.state_dict()[name]) for name, value in built.state_dict().items())


def test_files_of_another_size():
    state = CrossViT(**SMALL, num_classes=5).state_dict()
    account = checkpoint.load(CrossViT(**{**SMALL, "img_size": (84, 64)}, num_classes=5), state)
    assert sorted(account.resized) == ["position.0.weight", "position.1.weight"]
    assert account.complete


# --- bad options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(img_size=(240, 230)), r"img_size=\(240, 230\) must be .* of patch_size=\(12, 16\).*224 and 240 are"),
        (dict(img_size=224), r"224 is none of 12, but 216 and 228 are"),
        (dict(img_size=(240, 224, 208)), "img_size must have one entry for each of the 2 branches"),
        (dict(patch_size=(0, 16)), "patch_size must be whole, at least 1, got 0"),
        (dict(depths=(1, 4, 0)), r"depths must have the numbers of blocks of both branches"),
        (dict(depths=((1, 4, 0),)), r"depths must have .*, got \(\(1, 4, 0\),\)"),
        (dict(depths=((0, 4),)), "depths must be whole, at least 1, got 0"),
        (dict(depths=3), "depths must have .*, got 3"),
        (dict(depths=()), "depths must have"),
        (dict(heads=(3, 5)), "Attention: dim=192 is not divisible by heads=5"),
        (dict(strides=(8, 0)), "strides must be whole, at least 1, got 0"),
        (dict(strides=2.5), "strides must be whole, at least 1, got 2.5"),
        (dict(strides=8, num_classes=5), "strides=8 are of the maps, and num_classes makes a classifier: give one"),
        (dict(img_size=240.0), "img_size must be whole, at least 1, got 240.0"),
        (dict(patch_size=12.5), "patch_size must be whole, at least 1, got 12.5"),
        (dict(qk_scale="a"), "qk_scale must be a number or None, got 'a'"),
        (dict(fusions=(1, -1, 1)), "fusions must be whole, at least 0, got -1"),
        (dict(fusions=(1, 1)), "fusions must have one entry for each of the 3 multi-scale blocks"),
        (dict(conv_stem=True, patch_size=(8, 16)), "conv_stem=True has patches of 12 or 16 pixels, got patch_size=8"),
        (dict(conv_stem=True, dims=(90, 192)), "conv_stem=True takes dims that are multiples of 4, got 90"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        CrossViT(**options)
