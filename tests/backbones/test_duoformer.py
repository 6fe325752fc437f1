"""What characterizes DuoFormer: tokens by regions, attention inside them and over them, maps that come back."""

import copy
import pickle

import pytest
import torch
from agreement import assert_agree
from levels import levels_changed_by
from networks import build, fill
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones, checkpoint
from attlas.backbones.duoformer import (
    ChannelToken,
    DuoFormer,
    PatchStage,
    ScaleStage,
    from_regions,
    scale_tokens,
    to_regions,
)
from attlas.backbones.inspection.attention_maps import mixers_of
from attlas.backbones.layers import Tokens

SMALL = dict(type="ResNet", dims=(16, 16, 24, 32), depths=(1, 1, 1, 1), bottleneck=False)
SIDES = (8, 4, 2, 1)


def small(**options):
    """Of two blocks, on a pyramid of four maps."""
    torch.manual_seed(0)
    return DuoFormer(**{**dict(dim=24, depth=2, heads=4, pyramid=SMALL, img_size=64), **options}).double().eval()


def pixels_of(row, column, side):
    """Places in a map of the pixels of a region, in the order that the authors' tables have."""
    inside = [(i, j) for i in range(side) for j in range(side)]
    if side == 2:
        inside = [(0, 0), (1, 0), (0, 1), (1, 1)]
    return [(side * row + i, side * column + j) for i, j in inside]


@pytest.mark.parametrize("sides", [SIDES[-2:], SIDES[-3:], SIDES, (3, 1)])
def test_regions_by_definition(sides):
    """On maps that are no square; and back."""
    height, width = 3, 2
    maps = [torch.randn(2, 5, height * side, width * side) for side in sides]
    first = torch.randn(2, height, width, 1, 5)
    tokens = to_regions(maps, sides, first)
    assert tokens.shape == (2, height, width, 1 + sum(side**2 for side in sides), 5)
    for row in range(height):
        for column in range(width):
            expected = [first[:, row, column, 0]]
            for x, side in zip(maps[::-1], sides[::-1]):
                expected += [x[:, :, i, j] for i, j in pixels_of(row, column, side)]
            assert torch.equal(tokens[:, row, column], torch.stack(expected, dim=1))
    number = 1
    for x, side in zip(maps[::-1], sides[::-1]):
        assert torch.equal(from_regions(tokens, number, side), x)
        number += side**2


def test_regions_do_not_see_each_other():
    """Scale attention commutes with every permutation of the regions, and costs in proportion to their number."""
    stage = ScaleStage(24, 4, (2, 1), [0.0] * 2, [4.0] * 2, [None] * 2).double()
    tokens = torch.randn(2, 3, 4, 6, 24, dtype=torch.float64)
    order = torch.randperm(12)
    shuffled = tokens.flatten(1, 2)[:, order].unflatten(1, (3, 4))
    assert_agree("tokens", stage(shuffled), stage(tokens).flatten(1, 2)[:, order].unflatten(1, (3, 4)))
    costs = []
    for width in (4, 8, 16):
        with FlopCounterMode(display=False) as counter:
            stage(torch.randn(1, 3, width, 6, 24, dtype=torch.float64))
        costs.append(counter.get_total_flops())
    assert costs == [costs[0], 2 * costs[0], 4 * costs[0]]


def test_regions_meet_in_patch_attention():
    """It commutes with permutations but for the position, and has neither norm nor residual: it is linear in values."""
    stage = PatchStage(24, 2, 4, (3, 4)).double()
    torch.nn.init.normal_(stage.position.weight)
    x, order = torch.randn(2, 24, 3, 4, dtype=torch.float64), torch.randperm(12)
    shuffled = x.flatten(2)[..., order].unflatten(2, (3, 4))
    assert (stage(shuffled)[:, 0] - stage(x)[:, 0]).abs().max() > 1e-3
    torch.nn.init.zeros_(stage.position.weight)
    assert_agree("class token", stage(shuffled)[:, 0], stage(x)[:, 0])
    assert_agree("regions", stage(shuffled)[:, 1:], stage(x)[:, 1:][:, order])
    for attention in stage.blocks:
        torch.nn.init.zeros_(attention.proj.weight)
        torch.nn.init.ones_(attention.proj.bias)
    assert torch.equal(stage(x), torch.ones_like(stage(x)))


def test_a_deep_patch_stage_still_sees_its_input():
    """With the initial weights."""
    torch.manual_seed(0)
    stage = PatchStage(96, 12, 3, 7)
    stage.reset_weights()
    one, other = (stage(torch.randn(1, 96, 7, 7))[:, 0] for _ in range(2))
    assert (one - other).norm() > 0.05


@pytest.mark.parametrize("scales", [2, 3, 4])
@pytest.mark.parametrize("scale_token", ["random", "channel"])
def test_sizes(scales, scale_token):
    """An image is filled up to whole regions: the same as if the user had done so."""
    network = small(scales=scales, scale_token=scale_token, num_classes=3)
    for height, width in ((64, 96), (70, 45), (31, 1)):
        x = torch.randn(2, 3, height, width, dtype=torch.float64)
        whole = torch.nn.functional.pad(x, (0, -width % 32, 0, -height % 32))
        assert network(x).shape == (2, 3)
        assert torch.equal(network(x), network(whole))
    assert network.tokens(network.maps(x)).shape[3] == 1 + sum(4**i for i in range(scales))


def test_the_dense_form():
    """The maps of the classifier's own tokens; those that are no scale are the pyramid's."""
    classifier, dense = small(scales=3, num_classes=3), small(scales=3)
    account = backbones.load(dense, classifier.state_dict())
    assert account.missing == [name for name in dense.state_dict() if name.startswith("norms.")]
    x = torch.randn(2, 3, 70, 45, dtype=torch.float64)
    maps = dense(x)
    assert [tuple(y.shape[1:]) for y in maps] == [(16, 18, 12), (24, 9, 6), (24, 5, 3), (24, 3, 2)]
    found = dense.pyramid(torch.nn.functional.pad(x, (0, 19, 0, 26)))
    assert torch.equal(maps[0], found[0][..., :18, :12])
    tokens = classifier.scale_stage(classifier.tokens(found))
    assert_agree("map", dense.forward_intermediates(x)[1][3], tokens[..., 1, :].permute(0, 3, 1, 2))
    assert torch.equal(classifier.forward_features(x), scale_tokens(tokens))
    assert levels_changed_by(dense, x, "norms.2.weight") == [2]
    assert levels_changed_by(dense, x, "scale_token.weight") == [1, 2, 3]
    assert levels_changed_by(dense, x, "pyramid.stem.0.conv.weight") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("pyramid", "strides"),
    [
        ("shvit_s1", (16, 32, 64)),
        (dict(type="Pyramid", dims=(16, 32), depths=(1, 1), mixers="GnConv", strides=(4, 12)), (4, 12)),
        (dict(type="NamedBackbone", name="davit_tiny", dims=(24, 24, 48, 48), heads=(2, 2, 4, 4)), (4, 8, 16, 32)),
        (dict(type="Isotropic", dim=16, depth=2, img_size=64, scales=(2, 1), out_indices=(0, 1)), None),
    ],
)
def test_any_backbone_is_a_pyramid(pyramid, strides):
    if strides is None:
        with pytest.raises(ValueError, match=r"pyramid: out_indices=.* is an option of the network around"):
            small(pyramid=pyramid)
        return
    network = small(pyramid=pyramid, scales=2)
    assert network.out_strides == strides
    x = torch.randn(1, 3, 50, 70, dtype=torch.float64)
    assert [y.shape[2:] for y in network(x)] == network.map_sizes(50, 70)


def test_a_pyramid_keeps_its_weights():
    """Those that it was given, whatever the network around begins with."""
    source = fill(backbones.create("resnet18", num_classes=7))
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    network = DuoFormer(24, 1, 4, dict(type="NamedBackbone", name="resnet18", pretrained=state), img_size=64)
    for name, value in network.pyramid.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


def test_names_of_the_pyramid_in_files():
    """The authors list the children of torchvision's ResNet; Lunit's and SwAV's has its names there."""
    network = small(num_classes=3)
    state = network.state_dict()
    own = {name: value for name, value in state.items() if not name.startswith("pyramid.")}
    for stem, norm, stage in (("0", "1", "{}"), ("conv1", "bn1", "layer{}")):
        theirs = {}
        for name, value in state.items():
            if name.startswith("pyramid."):
                name = name.removeprefix("pyramid.").replace("stem.0.conv", stem).replace("stem.0.norm", norm)
                for i in range(4):
                    number = i + 4 if stem == "0" else i + 1
                    name = name.replace(f"stages.{i}.blocks.", f"{stage.format(number)}.")
                name = name.replace("shortcut.conv", "downsample.0").replace("shortcut.norm", "downsample.1")
                for k in (1, 2):
                    name = name.replace(f"conv{k}.conv", f"conv{k}").replace(f"conv{k}.norm", f"bn{k}")
                theirs[f"resnet_projector.{name}"] = value
        assert f"resnet_projector.{stage.format(7 if stem == '0' else 4)}.0.bn2.running_mean" in theirs
        account = backbones.load(small(num_classes=3), {**own, **theirs})
        assert account.complete, str(account)


def test_names_of_the_channel_token():
    token = ChannelToken((16, 16, 24, 32), SIDES, 8)
    assert sum(p.numel() for p in token.parameters()) == 3 * (16 * 16 * 9 + 16) + 9 * (88 + 24) * 8 + 4 * 24
    network = small(scale_token="channel", scales=4, num_classes=3)
    renamed = {}
    for name, value in network.state_dict().items():
        for i, k in ((0, 0), (0, 1), (1, 0)):
            name = name.replace(f"scale_token.shrink.{i}.{k}.", f"chann_proj{i + 1}.conv{k + 1}.")
        for k in range(4):
            name = name.replace(f"scale_token.mix.{2 * k}.", f"chann_proj_all.nConvs.{k}.")
        renamed[name.replace("projections.", "projection.proj_heads")] = value
    assert {"chann_proj1.conv2.bias", "chann_proj_all.nConvs.3.norm.weight", "projection.proj_heads0.bias"} <= set(
        renamed
    )
    assert backbones.load(small(scale_token="channel", scales=4, num_classes=3), renamed).complete


def test_the_norm_that_nobody_reads():
    """Its vectors have a place and no effect; training leaves them out, so that nobody waits for their gradients."""
    network, x = small(num_classes=3), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = network(x)
    torch.nn.init.constant_(network.head.after.weight, 5.0)
    torch.nn.init.constant_(network.head.after.bias, 5.0)
    assert torch.equal(network(x), expected)
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == [
        "head.after.weight",
        "head.after.bias",
    ]


def test_without_patch_attention():
    network, x = small(num_classes=3, patch_attention=False), torch.randn(1, 3, 64, 96, dtype=torch.float64)
    vector = network.head.after(network.forward_features(x).mean((2, 3)))
    assert_agree("logits", network(x), network.head.fc(vector))


def test_counts_of_the_sheet():
    """At 3 scales of a ResNet-18 the authors' projections are of the first three maps, so that their network does not
    run; ours has 768 · 448 parameters more. The transformer alone has the published counts."""
    with torch.device("meta"):
        three, four = (backbones.create(f"duoformer_resnet18_{n}") for n in (3, 4))
    projections = sum(p.numel() for p in three.projections.parameters())
    assert sum(p.numel() for p in three.parameters()) - projections + 768 * (64 + 128 + 256 + 3) == 124_985_666
    for network, expected in ((three, 113_462_018), (four, 113_511_170)):
        assert sum(p.numel() for part in (network.scale_stage, network.head) for p in part.parameters()) == expected


def test_frozen_pyramid():
    """`frozen_stages` counts those of the pyramid, also where there are fewer scales; its batch norms rest, too."""
    network = small(scales=2, num_classes=3, frozen_stages=4).train()
    learning = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert learning == {"projections", "scale_token", "scale_stage", "head"}
    assert not any(part.training for part in network.pyramid.modules() if isinstance(part, torch.nn.BatchNorm2d))
    assert network.head.training
    network.freeze(-1)
    assert all(p.requires_grad for p in network.pyramid.parameters())
    with pytest.raises(ValueError, match=r"frozen_stages=5 must be from -1 .* to 4"):
        network.freeze(5)


def test_what_the_tokens_look_at():
    network, x = small(scales=3, num_classes=3), torch.randn(2, 3, 64, 96, dtype=torch.float64)
    tokens = network.tokens(network.maps(x))
    inside = network.scale_stage.attention_maps(tokens, (0, 0))
    assert inside.shape == (2, 4, 8, 12)
    of_regions = torch.nn.functional.avg_pool2d(inside, 4) * 16
    assert 0 < of_regions.min() <= of_regions.max() < 1
    over = network.head.patch_stage.attention_maps(network.forward_features(x), (0, 0))
    assert over.shape == (2, 4, 2, 3)
    assert 0 < over.min() <= over.sum((2, 3)).max() < 1
    names = [*mixers_of(network)]
    assert names == ["scale_stage", "head.patch_stage"]


def test_initial_tokens():
    network = DuoFormer(192, 1, 4, SMALL, img_size=224, num_classes=2)
    assert isinstance(network.scale_token, Tokens)
    stage = network.head.patch_stage
    for weight in (network.scale_token.weight, network.scale_stage.position.weight, stage.position.weight):
        assert 0.030 < weight.std() < 0.042
    assert network.projections["3"].bias.abs().max() < 1e-5
    assert 0.8 < stage.blocks[0].proj.weight.std() * 192**0.5 < 1.2


def test_exempt_from_decay():
    names = build("DuoFormer", num_classes=5).no_weight_decay()
    assert names == {
        "scale_token.weight",
        "scale_stage.position.weight",
        "head.patch_stage.cls_token.weight",
        "head.patch_stage.position.weight",
    }
    within = small(pyramid=dict(type="InLineDeiT", dim=24, depth=2, heads=2), scales=2).no_weight_decay()
    assert "pyramid.position.weight" in within


def test_a_scale_mixer_stays_in_its_regions():
    mixer = backbones.duoformer.ScaleAttention(8, 2, scales=3).double()
    x = torch.randn(1, 8, 9, 6, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(mixer(x)[0, :, 5, 4].sum(), x)
    seen = grad.abs().sum((0, 1)) > 0
    assert seen[4:8, 4:].all()
    assert seen.sum() == 8


def test_an_image_drops_a_branch_in_all_of_its_regions():
    stage = small(drop_path_rate=0.9).scale_stage.train()
    torch.manual_seed(0)
    tokens = torch.randn(1, 1, 1, stage.position.weight.shape[1], stage.position.weight.shape[2]).double()
    out = stage(tokens.expand(8, 3, 3, -1, -1))
    torch.testing.assert_close(out, out[:, :1, :1].expand_as(out))
    assert any(not torch.allclose(image, out[0]) for image in out)


@pytest.mark.parametrize("scale_token", ["random", "channel"])
def test_copies_and_files(scale_token):
    network = small(scale_token=scale_token, num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64).double()
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(x), network(x))
        for name in ("resnet_projector.4.0.conv1.weight", "chann_proj2.conv1.weight"):
            assert checkpoint.rename(name, other.checkpoint_rules) == checkpoint.rename(name, network.checkpoint_rules)


def test_bad_options():
    for options, message in (
        (dict(scale_token="chanel"), r"scale_token='chanel' must be one of \('random', 'channel'\)"),
        (dict(scales=5), "scales=5 must be from 2 to 4, the maps of the pyramid"),
        (dict(scales=1), "scales must be whole, at least 2, got 1"),
        (dict(heads=5), r"Attention: dim=24 is not divisible by heads=5"),
        (dict(depth=0), "depth must be whole, at least 1"),
        (dict(pyramid="resnet51"), "'resnet51' is no variant of a backbone. Near it: resnet50"),
        (dict(pyramid=dict(dims=(8, 8))), "does not say its type"),
        (dict(pyramid=dict(type="ResNet", num_classes=3)), "num_classes=3 is an option of the network around"),
        (dict(pyramid=dict(type="ImageClassifier", backbone=SMALL)), "out_indices"),
        (dict(out_indices=(0,)), r"out_indices=\(0,\) with scales=3 are maps of the pyramid alone"),
        (dict(num_heads=3), "has no option 'num_heads'. Near it: heads"),
        (
            dict(
                scale_token="channel",
                scales=2,
                pyramid=dict(type="Pyramid", dims=(8, 8), depths=(1, 1), strides=(4, 12)),
            ),
            "one of them has 3 pixels along a side of a region",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            small(**options)


@pytest.mark.slow
def test_a_pyramid_in_the_scope_of_mm():
    """A bare name of the pyramid is Attlas's, whatever library the config speaks for."""
    mmengine = pytest.importorskip("mmengine")
    pytest.importorskip("mmdet")
    with mmengine.registry.DefaultScope.overwrite_default_scope("mmdet"):
        network = small()
    assert type(network.pyramid).__module__ == "attlas.backbones.resnet"
