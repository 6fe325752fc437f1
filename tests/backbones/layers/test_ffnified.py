"""FFNified attention: the authors' results, and folding."""

import pytest
import torch
from golden_records import Record
from torch import nn
from torch.testing import assert_close

from attlas import checkpoint
from attlas.backbones.layers import DepthwiseMlp, FFNifiedAttention, RepDepthwise, fuse

NAMES = [
    (r"^fc\.", "query."),
    (r"^conv1\.", "key."),
    (r"^conv2\.", "value."),
    (r"\.c\.", ".conv."),
    (r"\.bn\.", ".norm."),
]
BRANCHES = [(r"^(key|value|conv)\.conv\.(conv|norm)", r"\1.large.\2"), (r"^(key|value|conv)\.conv1\.", r"\1.small.")]


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
@pytest.mark.parametrize("sizes", [(7, 3), (9, 5), (5, 1)])
def test_merged_branches(sizes, stride):
    branches = moved(RepDepthwise(4, 8, sizes[0], stride, sizes[1]))
    x = torch.randn(2, 4, 11, 8)
    expected = branches(x)
    merged = branches.fused()
    assert type(merged) is nn.Conv2d
    assert merged.kernel_size == (sizes[0],) * 2
    assert_close(merged(x), expected, rtol=1e-4, atol=1e-5)


def test_kernels_of_three_taps_have_no_branches():
    attention = FFNifiedAttention(4, (3, 3), norm=False)
    assert [name for name, part in attention.named_modules() if type(part) is nn.Conv2d] == ["key", "value"]
    assert sum(p.numel() for p in attention.parameters()) == 4 * 4 + 4 + 2 * (4 * 9 + 4)


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"FFNifiedAttention: kernel_sizes=\(3, 4\) must be 2 odd numbers"):
        FFNifiedAttention(4, (3, 4))
    with pytest.raises(ValueError, match=r"DepthwiseMlp: kernel_size=\(6,\) must be 1 odd number"):
        DepthwiseMlp(4, kernel_size=6)
    with pytest.raises(ValueError, match="kernel_size=3 and small_size=3 must be odd, the second smaller"):
        RepDepthwise(4, 4, 3)
