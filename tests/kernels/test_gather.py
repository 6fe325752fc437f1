import pytest
import torch
from geometry import random_cloud

from attlas.kernels import gather_neighbors


def test_rows_and_gradient():
    features, _ = random_cloud(2, 9)
    features.requires_grad_()
    index = torch.randint(0, 9, (2, 5, 4))
    gathered = gather_neighbors(features, index)
    expected = torch.stack([cloud[rows] for cloud, rows in zip(features, index)])
    assert torch.equal(gathered, expected)
    assert torch.equal(gather_neighbors(features, index[..., 0]), expected[:, :, 0])
    assert torch.autograd.gradcheck(lambda f: gather_neighbors(f, index), features)


def test_bad_arguments():
    features, index = torch.zeros(2, 9, 3), torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="with the same B"):
        gather_neighbors(features[:1], index)
    with pytest.raises(IndexError, match=r"index must lie in 0..8, got values from 0 to 9"):
        gather_neighbors(features, index + torch.tensor([[9], [0]]))
    with pytest.raises(TypeError, match=r"index must be int64, got torch.int32"):
        gather_neighbors(features, index.int())
