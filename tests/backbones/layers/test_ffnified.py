"""FFNified attention: the authors' results, and folding."""

import pytest
import torch
from golden_records import Record
from torch import nn
from torch.testing import assert_close

from attlas import checkpoint
from attlas.backbones.layers import ConvNorm, DepthwiseMlp, FFNifiedAttention, RepDepthwise, fuse

NAMES = [
    (r"^fc\.", "query."),
    (r"^conv1\.", "key."),
    (r"^conv2\.", "value."),
    (r"\.c\.", ".conv."),
    (r"\.bn\.", ".norm."),
]
BRANCHES = [
    (r"^(key|value|conv)\.conv\.(conv|norm)", r"\1.branches.0.\2"),
    (r"^(key|value|conv)\.conv1\.", r"\1.branches.1."),
]


def moved(module):
    """With statistics and scales as after a training."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return module.eval()


@pytest.mark.parametrize(
    ("name", "build", "rules"),
    [
        ("token_mixer_k7", lambda: FFNifiedAttention(24, (7, 7)), [*NAMES, *BRANCHES]),
        ("channel_mixer_k7", lambda: DepthwiseMlp(24, 3.0, 7), [*NAMES[3:], *BRANCHES]),
    ],
)
def test_equals_the_authors(name, build, rules):
    record = Record(f"ffnet/{name}")
    module = build().eval()
    account = checkpoint.load(module, record.state_dict(), rules=rules)
    assert account.complete, str(account)
    assert sum(p.numel() for p in module.parameters()) == record.params
    x = record.input("x", torch.float32)
    with torch.no_grad():
        assert_close(module(x), record.output(), rtol=0, atol=1e-5)
        assert_close(fuse(module)(x), record.output(), rtol=0, atol=1e-5)
    assert not any(isinstance(part, (nn.BatchNorm2d, RepDepthwise)) for part in module.modules())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shapes", [[(7, 7), (3, 3)], [(9, 9), (5, 5), (1, 9), (9, 1)], [(5, 3), (1, 1)], [(3, 3)]])
def test_merged_branches(shapes, stride):
    branches = moved(RepDepthwise(4, 8, shapes, stride))
    x = torch.randn(2, 4, 11, 8)
    expected = branches(x)
    merged = branches.fused()
    assert type(merged) is nn.Conv2d
    assert merged.kernel_size == shapes[0]
    assert_close(merged(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("taps", [1, 3, 5, 9, 11])
def test_kernels_of_other_than_seven_taps_have_no_branches(taps):
    attention = FFNifiedAttention(4, (taps, taps), norm=False)
    assert not any(isinstance(part, RepDepthwise) for part in attention.modules())
    assert sum(p.numel() for p in attention.parameters()) == 4 * 4 + 4 + 2 * (4 * taps**2 + 4)
    conv = DepthwiseMlp(4, 2.0, taps).conv
    assert isinstance(conv, ConvNorm)
    assert conv.conv.bias is None
    assert conv.conv.kernel_size == (taps, taps)


@pytest.mark.parametrize(("taps", "shapes"), [(9, [(9, 9), (1, 9), (9, 1), (5, 5)]), (3, [(3, 3), (1, 3), (3, 1)])])
def test_kernels_with_strips(taps, shapes):
    for module in (FFNifiedAttention(4, (taps, 1), strips=True).key, DepthwiseMlp(4, 2.0, taps, strips=True).conv):
        assert [branch.conv.kernel_size for branch in module.branches] == shapes
    attention = moved(FFNifiedAttention(4, (taps, 1), strips=True))
    assert type(attention.value) is nn.Conv2d
    x = torch.randn(2, 4, 6, 7)
    expected = attention(x)
    assert expected.shape == x.shape
    assert_close(fuse(attention)(x), expected, rtol=1e-4, atol=1e-5)


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"FFNifiedAttention: kernel_sizes=\(3, 4\) must be 2 odd numbers"):
        FFNifiedAttention(4, (3, 4))
    with pytest.raises(ValueError, match=r"DepthwiseMlp: kernel_size=\(6,\) must be 1 odd number"):
        DepthwiseMlp(4, kernel_size=6)
    for shapes in ([(3, 3), (5, 1)], [(4, 4)], [(3, 3), (0, 1)]):
        with pytest.raises(ValueError, match=r"RepDepthwise: shapes=.* must be pairs of odd numbers, none above"):
            RepDepthwise(4, 4, shapes)
    with pytest.raises(ValueError, match="RepDepthwise: dim=6 must be a multiple of in_dim=4"):
        RepDepthwise(4, 6)
