"""FFNet-seg's head: the authors' parameters and names, any size, folding, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from networks import close, fill
from torch import nn

from attlas import checkpoint
from attlas.backbones.ffnet import FFNetSeg
from attlas.backbones.layers import fuse
from attlas.dense.segmentation import FFNetSegHead

SMALL = dict(in_channels=[6, 10, 14], channels=12, num_classes=5, width=8, depth=2, mlp_ratio=2.0)


def maps(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, width, *size, generator=generator) for width, size in zip((6, 10, 14), sizes)]


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters():
    """Of the head for ADE20K; the figure is a count of the authors' module. Both together are the published 68 M."""
    with torch.device("meta"):
        head = FFNetSegHead([192, 384, 768], num_classes=150)
        assert count(head) == 4_650_518
        assert round((count(head) + count(FFNetSeg(out_indices=(1, 2, 3)))) / 1e6) == 68


def test_what_it_computes():
    head = fill(FFNetSegHead(**SMALL))
    found = head(inputs := maps((8, 12), (4, 6), (2, 3)))
    scaled = [F.interpolate(x, scale_factor=2**i, mode="bicubic") if i else x for i, x in enumerate(inputs)]
    x = head.reduce(torch.cat(scaled, 1))
    for block in head.blocks:
        x = F.gelu(x + block.mixer(x))
        x = F.gelu(x + block.mlp(x))
    torch.testing.assert_close(found, head.conv_seg(F.gelu(head.expand[0](x))))


def test_sizes_that_do_not_halve():
    head = FFNetSegHead(**SMALL).eval()
    assert head(maps((7, 13), (4, 7), (2, 4))).shape == (2, 5, 7, 13)
    assert head(maps((1, 1), (1, 1), (1, 1))).shape == (2, 5, 1, 1)


def test_fused():
    head, inputs = fill(FFNetSegHead(**SMALL)), maps((8, 12), (4, 6), (2, 3))
    expected, before = head(inputs), count(head)
    close(fuse(head)(inputs), expected, 1e-4)
    assert count(head) < before
    assert not any(isinstance(part, nn.BatchNorm2d) for part in head.modules())


def test_every_parameter_learns():
    torch.manual_seed(0)
    head = FFNetSegHead(**SMALL, drop_path_rate=0.5)
    assert [block.drop_path.rate for block in head.blocks] == [0.0, 0.5]
    head.init_weights()
    head(maps((8, 12), (4, 6), (2, 3))).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def authors_name(name):
    """What the authors call a tensor of ours."""
    name = name.replace("reduce.", "squeeze.").replace("expand.", "align.").replace("blocks.", "head_blocks.")
    for number, kernel in enumerate(("conv1", "strip_conv1", "strip_conv2", "conv2")):
        name = name.replace(f".branches.{number}.", f".{kernel}.")
    for own, theirs in (("query", "fc"), ("key", "conv1"), ("value", "conv2")):
        name = name.replace(f".mixer.{own}.", f".token_mixer.main.{theirs}.")
    name = name.replace(".mlp.", ".channel_mixer.main.")
    return name.replace(".conv.weight", ".c.weight").replace(".norm.", ".bn.")


def test_names_of_the_authors():
    source = fill(FFNetSegHead(**SMALL))
    state = {authors_name(name): value for name, value in source.state_dict().items()}
    assert {
        "squeeze.2.bn.running_var",
        "head_blocks.1.token_mixer.main.fc.c.weight",
        "head_blocks.0.token_mixer.main.conv2.strip_conv1.c.weight",
        "head_blocks.0.token_mixer.main.conv1.conv2.bn.weight",
        "head_blocks.0.channel_mixer.main.conv.strip_conv2.c.weight",
        "head_blocks.0.channel_mixer.main.conv.conv1.bn.bias",
        "head_blocks.0.channel_mixer.main.fc2.bias",
        "align.0.c.weight",
        "conv_seg.weight",
    } <= state.keys()
    head, inputs = FFNetSegHead(**SMALL).eval(), maps((8, 12), (4, 6), (2, 3))
    account = checkpoint.load(head, state)
    assert account.complete, str(account)
    assert torch.equal(head(inputs), source(inputs))


def test_bad_options():
    with pytest.raises(ValueError, match="FFNetSegHead does not use the option 'norm_cfg'"):
        FFNetSegHead(**SMALL, norm_cfg=dict(type="BN"))
    with pytest.raises(ValueError, match=r"kernel_sizes=\(4, 4\) must be 2 odd numbers"):
        FFNetSegHead(**SMALL, kernel_size=4)
    with pytest.raises(ValueError, match=r"drop_path_rate=1.0 must be in \[0, 1\)"):
        FFNetSegHead(**SMALL, drop_path_rate=1.0)
    for options, message in (
        (dict(depth=-1), "FFNetSegHead: depth is -1; it must be a positive integer"),
        (dict(width=0), "FFNetSegHead: width is 0; it must be a positive integer"),
        (dict(channels=0), "FFNetSegHead: channels is 0; it must be a positive integer"),
        (dict(mlp_ratio=0), "FFNetSegHead: mlp_ratio=0 must give a channel or more of width=8"),
        (dict(in_index=(0, 1)), r"in_index=\(0, 1\) must name a map for each of in_channels=\[6, 10, 14\]"),
        (dict(in_index=0), r"in_index=0 must name a map for each of in_channels=\[6, 10, 14\]"),
    ):
        with pytest.raises(ValueError, match=message):
            FFNetSegHead(**SMALL | options)
    for features in ((3,), (3, 0), 3):
        with pytest.raises(ValueError, match=r"FFNetSeg: features=.* must be two positive integers"):
            FFNetSeg(dims=(8, 16), depths=(1, 1), mixers="FFNifiedAttention", features=features)
