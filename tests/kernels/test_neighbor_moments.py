import pytest
import torch
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels import neighbor_moments
from attlas.kernels.neighbor_moments import neighbor_moments_backward_op, neighbor_moments_op


def by_definition(local, index=None, features=None):
    z = local
    if features is not None:
        z = torch.cat([z, torch.stack([cloud[rows] for cloud, rows in zip(features, index)])], dim=-1)
    return z.sum((1, 2)), torch.einsum("bski,bskj->bij", z, z)


def tensors(batch=3, queries=5, k=7, depth=4, size=6, channels=3, dtype=torch.float64, device="cpu"):
    local = torch.randn(batch, queries, k, depth, dtype=dtype, device=device, requires_grad=True)
    features = torch.randn(batch, size + 2, channels, dtype=dtype, device=device, requires_grad=True)
    return local, torch.randint(0, size, (batch, queries, k), device=device), features  # two points are nobody's


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [{}, {"queries": 1, "k": 1}, {"depth": 17, "channels": 1, "size": 40}])
def test_equals_definition(path, device, sizes, dtype):
    local, index, features = tensors(**sizes, dtype=dtype, device=device)
    assert_gradients_agree(neighbor_moments, by_definition, [local, index, features], dtype)
    assert_gradients_agree(neighbor_moments, by_definition, [local], dtype)


def test_strided(path, device):
    local, index, features = tensors(device=device)
    turned = local.detach().transpose(1, 2), index.transpose(1, 2), features.detach().mT.contiguous().mT
    for got, expected in zip(neighbor_moments(*turned), by_definition(*turned)):
        assert_agree("moments", got, expected)


def test_gradcheck(path, device):
    local, index, features = tensors(batch=2, queries=2, k=2, depth=2, size=3, channels=2, device=device)
    assert torch.autograd.gradcheck(lambda x, f: neighbor_moments(x, index, f), (local, features), nondet_tol=1e-10)
    assert torch.autograd.gradcheck(neighbor_moments, local)


def test_operators(path, device):
    local, index, features = tensors(device=device)
    torch.library.opcheck(neighbor_moments_op, (local, index, features))
    torch.library.opcheck(neighbor_moments_op, (local, None, None))
    first, second, around = (x.detach() for x in neighbor_moments_op(local, index, features))
    torch.library.opcheck(
        neighbor_moments_backward_op, (first, second, local.detach(), index, features.detach(), around)
    )


def test_bad_arguments():
    local, index, features = tensors()
    with pytest.raises(ValueError, match=r"local must be \(B, S, K, D\), float32 or float64, got .* torch.bfloat16"):
        neighbor_moments(local.bfloat16())
    with pytest.raises(ValueError, match="index must have the shape of local without D"):
        neighbor_moments(local, index[:, :2], features)
    with pytest.raises(ValueError, match="index and features must be given together"):
        neighbor_moments(local, None, features)
    with pytest.raises(ValueError, match="index and features must be given together"):
        neighbor_moments(local, index)
    with pytest.raises(IndexError, match=r"index must lie in 0..7"):
        neighbor_moments(local, index + 6, features)
