"""What characterizes FFNet: kernels that merge into one, a slot for any mixer, and the authors' parameter counts."""

import re
from pathlib import Path

import pytest
import torch
from golden_records import Record
from levels import norms_reach
from networks import close, fill, image
from torch import nn

from attlas import backbones
from attlas.backbones.ffnet import FFNet, FFNetBlock, FFNetSeg, NormedPointwise, ffnified
from attlas.backbones.layers import DepthwiseMlp, FFNifiedAttention, RepDepthwise
from attlas.config import load_config
from attlas.optim import layer_groups

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = dict(dims=(8, 16, 32, 64), depths=(1, 2, 1, 1), stem_dim=8)


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("ffnet_1", 13_660_152),
        ("ffnet_2", 26_908_440),
        ("ffnet_3", 48_330_632),
        ("ffnet_4", 79_200_360),
    ],
)
def test_parameters_fused(name, fused):
    """To the digit; the batch norm before the mean of the pixels stays, as the authors have it."""
    with torch.device("meta"):
        network = backbones.create(name).eval().fuse()
    assert count(network) == fused
    assert [name for name, part in network.named_modules() if "Norm" in type(part).__name__] == ["head.before"]


def test_parameters_of_the_segmentor():
    """Those of the authors' backbone without the head; fused, nothing but the layer norm of the head is a norm."""
    with torch.device("meta"):
        assert count(FFNetSeg(out_indices=(1, 2, 3))) == 63_826_048
        network = backbones.create("ffnet_seg").eval().fuse()
    assert [name for name, part in network.named_modules() if "Norm" in type(part).__name__] == ["head.after.1"]


@pytest.mark.parametrize("squeeze", [False, (False, True, False, False)])
def test_the_maps_before_any_norm(squeeze):
    """Sizes round up, and the norms of the dense form stand on the outputs alone."""
    network = fill(FFNet(**SMALL, squeeze=squeeze, mlp_kernel_sizes=(3, 3, 7, 7), layer_scale=1.0))
    x = image(100, 75, batch=1)
    assert [tuple(y.shape[2:]) for y in network(x)] == [(25, 19), (13, 10), (7, 5), (4, 3)]
    assert norms_reach(network, x) == {0: [0], 1: [1], 2: [2], 3: [3]}
    assert {norm.eps for norm in network.norms.values()} == {1e-6}
    assert [tuple(y.shape[2:]) for y in network(image(64, 96))] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    gates = [name for name, _ in network.named_modules() if name.endswith("se.fc1")]
    assert gates == ([] if squeeze is False else ["stages.1.blocks.0.se.fc1"])


@pytest.mark.parametrize("kind", [FFNet, FFNetSeg])
def test_fused(kind):
    """In double precision the merged network is the same to fourteen digits, dense form and classifier."""
    for options in (dict(), dict(num_classes=5)):
        network = fill(kind(**SMALL, **options, layer_scale=0.5)).double()
        x = image(70, 45).double()
        before, expected = count(network), network(x)
        got = network.fuse()(x)
        assert count(network) < before
        merged = nn.BatchNorm2d | RepDepthwise | NormedPointwise
        assert {name for name, part in network.named_modules() if isinstance(part, merged)} <= {"head.before"}
        for y, z in zip(got, expected):
            torch.testing.assert_close(y, z, rtol=1e-9, atol=1e-9)


def test_a_transition_is_one_convolution_with_an_identity():
    layer, x = fill(NormedPointwise(6)).double(), image(4, 5).double().repeat(1, 2, 1, 1)
    expected = x + layer.conv(layer.norm(x))
    merged = layer.fused()
    assert merged.kernel_size == (1, 1)
    torch.testing.assert_close(merged(x), expected)


@pytest.mark.parametrize("mixer", ["Attention", "GnConv", dict(type="SHSA", partial_dim=4), "FFNifiedAttention"])
def test_any_mixer_takes_the_slot(mixer):
    """MetaMixer: what stands in the slot is free; behind a norm where it is not the paper's own."""
    own = mixer == "FFNifiedAttention"
    mixers = [*ffnified(3, 3, 7), mixer]
    network = FFNet(**SMALL | dict(dims=(8, 16, 32, 64)), mixers=mixers, num_classes=3)
    blocks = [stage.blocks[0] for stage in network.stages]
    assert [isinstance(block.norm, nn.Identity) for block in blocks] == [True, True, True, own]
    assert [type(block.mixer) is FFNifiedAttention for block in blocks] == [True, True, True, own]
    network(image(64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    expected = fill(network)(image(50, 70))
    close(network.fuse()(image(50, 70)), expected, 1e-3)


def test_a_mixer_of_zeros_leaves_the_channel_mixer():
    """The two halves of a block, apart from each other."""

    class Zeros(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x)

    mlp, x = DepthwiseMlp(8, 2.0, 3).eval(), torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(FFNetBlock(8, Zeros(), mlp)(x), x + mlp(x))
    attention = FFNifiedAttention(8, (3, 3)).eval()
    torch.testing.assert_close(FFNetBlock(8, attention, Zeros())(x), x + attention(x))
    torch.testing.assert_close(FFNetBlock(8, attention, Zeros(), layer_scale=2.0)(x), x + 2 * attention(x))


def authors_name(name):
    """The name that the authors' segmentor has for one of ours; their strips are not in a record."""
    name = re.sub(r"^stem\.", "patch_embed.", name)
    name = re.sub(r"^stages\.(\d)\.downsample\.", r"stages.\1.0.proj.", name)
    name = re.sub(r"^stages\.(\d)\.blocks\.(\d+)\.", lambda m: f"stages.{m[1]}.{int(m[2]) + (m[1] != '0')}.", name)
    name = name.replace(".scale1.gamma", ".token_mixer.0.layer_scale").replace(
        ".scale2.gamma", ".channel_mixer.layer_scale"
    )
    name = name.replace(".mixer.query.", ".token_mixer.0.main.fc.").replace(".mlp.", ".channel_mixer.main.")
    kernels = dict(zip("0123", ("conv1", "strip_conv1", "strip_conv2", "conv2")))
    name = re.sub(
        r"\.mixer\.(key|value)\.branches\.(\d)\.",
        lambda m: f".token_mixer.0.main.conv{1 if m[1] == 'key' else 2}.{kernels[m[2]]}.",
        name,
    )
    name = name.replace("head.before.", "head1.").replace("head.after.", "head2.").replace("head.fc.", "head2.3.")
    if name.startswith("head2."):
        return name
    name = re.sub(r"\.norm\.(?=[^.]+$)", ".bn.", name)
    if re.search(r"\.fc[12]\.", name):
        return name
    return re.sub(r"\.conv\.(?=[^.]+$)", ".c.", name)


def test_the_segmentor_reads_the_authors_names():
    source = fill(FFNetSeg(**SMALL, num_classes=5))
    state = {authors_name(name): value for name, value in source.state_dict().items()}
    assert {
        "patch_embed.5.c.weight",
        "stages.1.0.proj.2.bn.weight",
        "stages.2.1.token_mixer.0.main.conv2.strip_conv2.bn.bias",
        "stages.0.0.token_mixer.0.main.conv1.strip_conv1.c.weight",
        "stages.2.1.token_mixer.0.main.fc.c.weight",
        "stages.3.1.token_mixer.0.main.conv1.conv2.c.weight",
        "stages.3.1.channel_mixer.main.conv.c.weight",
        "stages.3.1.channel_mixer.main.fc1.bias",
        "stages.3.1.channel_mixer.layer_scale",
        "head1.0.c.weight",
        "head2.1.weight",
        "head2.3.bias",
    } <= state.keys()
    network = FFNetSeg(**SMALL, num_classes=5).eval()
    account = backbones.load(network, state)
    assert account.complete, str(account)
    assert torch.equal(network(image(64, 64)), source(image(64, 64)))


def test_files_of_the_dense_form():
    """The norms of the authors' dense form, and layer scales that they keep as maps of one pixel."""
    state = Record("ffnet/ffnet_small").state_dict()
    for name in ("norm.weight", "norm.bias", "head.weight", "head.bias"):
        del state[name]
    state |= {f"norm{i}.{part}": torch.full((16 * 2**i,), i + 1.0) for i in range(4) for part in ("weight", "bias")}
    options = dict(dims=(16, 32, 64, 128), depths=(1, 2, 3, 1), stem_dim=16)
    network = FFNet(**options, mlp_kernel_sizes=(3, 3, 7, 7), squeeze=(False, True, False, False), layer_scale=1.0)
    account = backbones.load(network, {f"backbone.{name}": value for name, value in state.items()})
    assert account.complete, str(account)
    assert all((network.norms[str(i)].weight == i + 1).all() for i in range(4))


def test_the_norm_of_the_head():
    """Over the channels of every pixel in place of the batch; fusing leaves it."""
    torch.manual_seed(0)
    network, x = FFNet(**SMALL, num_classes=5, head_norm="layer").eval(), image(64, 64)
    features = network.forward_features(x)
    vector = nn.functional.layer_norm(features.movedim(1, -1), (64,), eps=1e-6).mean((1, 2))
    torch.testing.assert_close(network(x), network.head.fc(vector))
    expected = network(x)
    close(network.fuse()(x), expected, 1e-4)
    with pytest.raises(ValueError, match="FFNet: head_norm is 'group'; it may be 'batch', 'layer'"):
        FFNet(**SMALL, head_norm="group")
    with pytest.raises(ValueError, match="FFNetSeg does not use the option 'head_norm'"):
        FFNetSeg(**SMALL, head_norm="layer")


def test_bad_options():
    with pytest.raises(ValueError, match="RepDepthwise: dim=20 must be a multiple of in_dim=8"):
        FFNet(dims=(8, 20), depths=(1, 1), mixers="FFNifiedAttention")
    with pytest.raises(ValueError, match="mlp_kernel_sizes must have one entry for each of the 4 stages"):
        FFNet(**SMALL, mlp_kernel_sizes=(3, 3))
    with pytest.raises(ValueError, match=r"DepthwiseMlp: kernel_size=\(4,\) must be 1 odd number"):
        FFNet(**SMALL, mlp_kernel_sizes=4)
    with pytest.raises(ValueError, match="mixers must have one entry for each of the 2 stages"):
        FFNet(dims=(8, 16), depths=(1, 1))
    with pytest.raises(ValueError, match=r"FFNet has no option 'kernel_sizes'. Near it: mlp_kernel_sizes"):
        FFNet(**SMALL, kernel_sizes=(3, 3, 7, 7))


@pytest.mark.parametrize("name", ["ffnet_1", "ffnet_2", "ffnet_3", "ffnet_4_img384"])
def test_the_rates_of_detectors(name):
    """The stem learns as with the authors' decay of 0.8 over 12 layers, and batch norms learn, too."""
    with torch.device("meta"):
        network = backbones.create(name, out_indices=None)
    depths = layer_groups([n for n, _ in network.named_parameters()], network.group_matcher(coarse=False))
    for detector in ("mask_rcnn", "retinanet"):
        config = load_config(CONFIGS / detector / f"{detector}_ffnet_coco.py", dict(name=name, pretrained="None"))
        assert config.optim_wrapper.constructor == "attlas.LayerDecayConstructor"
        decay = config.optim_wrapper.paramwise_cfg.layer_decay
        assert decay ** (1 + max(depths.values())) == pytest.approx(0.8**13, rel=0.2)
        assert not config.model.backbone.norm_eval
        assert config.sync_bn == "torch"


def test_the_files_of_larger_images():
    path = CONFIGS / "ffnet/ffnet_img384_imagenet.py"
    assert load_config(path, dict(name="ffnet_4_img384")).load_from == "ffnet_4.pth.tar"
    with pytest.raises(ValueError, match="name is 'ffnet_1'; it may be 'ffnet_3_img384', 'ffnet_4_img384'"):
        load_config(path, dict(name="ffnet_1"))
