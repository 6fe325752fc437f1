import pytest
import torch
from torch import nn

from attlas.dense.layers import FrozenBatchNorm2d


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_batch_normalization_with_fixed_statistics(dtype):
    plain, ours = nn.BatchNorm2d(5, eps=1e-3).eval(), FrozenBatchNorm2d(5, eps=1e-3).train()
    for value in plain.state_dict().values():
        value.copy_(torch.rand_like(value.float()) + 0.5)
    assert ours.load_state_dict(plain.state_dict()).missing_keys == []  # the counter is left out
    x = torch.randn(2, 5, 3, 4)
    expected = plain(x)
    got = ours(x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, **({} if dtype == torch.float32 else dict(rtol=2e-2, atol=3e-2)))


def test_nothing_learns():
    norm = FrozenBatchNorm2d(3)
    assert list(norm.parameters()) == []
    before = norm.state_dict()["running_mean"].clone()
    norm.train()(torch.randn(4, 3, 2, 2) + 5)
    assert torch.equal(norm.running_mean, before)
