import pytest
import torch
from agreement import assert_agree, assert_gradients_agree
from geometry import random_cloud

from attlas.kernels import gather_neighbors, scatter_neighbors
from attlas.kernels.gather import gather_neighbors_op, gather_neighbors_reference, scatter_neighbors_op

# (B, N, C), shape of the index after B: coordinates, rows wider than a tile, one point, as many rows as points
SHAPES = [((2, 9, 3), (5, 4)), ((3, 7, 130), (37,)), ((2, 1, 5), (3, 2)), ((1, 40, 17), (40, 1)), ((2, 5, 1), (5,))]


def by_definition(features, index):
    return torch.stack([cloud[rows] for cloud, rows in zip(features, index)])


@pytest.mark.parametrize(("shape", "rows"), SHAPES)
def test_rows_and_gradient(path, device, shape, rows):
    features = torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
    index = torch.randint(0, shape[1], (shape[0], *rows), device=device)
    assert torch.equal(gather_neighbors(features, index), by_definition(features, index))
    assert_gradients_agree(gather_neighbors, by_definition, (features, index))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_dtypes(path, device, dtype):
    features = torch.randint(0, 2 if dtype == torch.bool else 100, (2, 9, 6), device=device).to(dtype)
    index = torch.randint(0, 9, (2, 5, 4), device=device)
    assert torch.equal(gather_neighbors(features, index), by_definition(features, index))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_add_up_in_float32(path, device, dtype):
    features = torch.zeros(1, 3, 2, dtype=dtype, device=device, requires_grad=True)
    copies = torch.tensor([[0] * 1000 + [2]], device=device)
    gather_neighbors(features, copies).sum().backward()  # in bfloat16 a sum of ones ends at 256
    assert_agree("gradient", features.grad, torch.tensor([[[1000.0] * 2, [0] * 2, [1] * 2]], device=device).to(dtype))


def test_deterministic_gradient(path, device):
    features = torch.randn(2, 11, 5, device=device, requires_grad=True)
    index = torch.randint(0, 11, (2, 30, 7), device=device)
    index[1] = 4  # all rows of a cloud are copies of one point; the others have none
    torch.use_deterministic_algorithms(True)
    try:
        assert_gradients_agree(gather_neighbors, by_definition, (features, index))
        gradients = [torch.autograd.grad(gather_neighbors(features, index).sin().sum(), features) for _ in range(2)]
        assert torch.equal(*gradients[0], *gradients[1])
    finally:
        torch.use_deterministic_algorithms(False)


def test_strided_inputs(path, device):
    features = torch.randn(6, 9, 2, device=device).transpose(0, 2).requires_grad_()
    index = torch.randint(0, 9, (4, 5, 2), device=device).transpose(0, 2)
    assert_gradients_agree(gather_neighbors, by_definition, (features, index))
    gradient = torch.ones((), device=device).expand(2, 5, 4, 6)
    (got,) = torch.autograd.grad(gather_neighbors(features, index), features, gradient)
    assert torch.equal(got[..., 0], torch.stack([rows.flatten().bincount(minlength=9) for rows in index]).float())


def test_nothing_to_gather(path, device):
    features = torch.randn(2, 9, 3, device=device, requires_grad=True)
    gathered = gather_neighbors(features, torch.zeros(2, 0, 4, dtype=torch.int64, device=device))
    assert gathered.shape == (2, 0, 4, 3)
    gathered.sum().backward()
    assert torch.equal(features.grad, torch.zeros(2, 9, 3, device=device))
    no_index = torch.zeros(2, 5, dtype=torch.int64, device=device)
    assert gather_neighbors(features[..., :0], no_index).shape == (2, 5, 0)
    assert gather_neighbors(features[:0], no_index[:0]).shape == (0, 5, 3)


def test_operators(path, device):
    features, _ = random_cloud(2, 9)
    features = features.to(device).requires_grad_()
    index = torch.randint(0, 9, (2, 5, 4), device=device)
    torch.library.opcheck(gather_neighbors_op, (features, index))
    for dtype in (torch.float32, torch.bfloat16):
        grad = torch.randn(2, 20, 3, dtype=dtype, device=device)
        torch.library.opcheck(scatter_neighbors_op, (grad, index.flatten(1), 9))


def test_gradcheck():
    features, _ = random_cloud(2, 9)
    features.requires_grad_()
    index = torch.randint(0, 9, (2, 5, 4))
    assert torch.autograd.gradcheck(gather_neighbors, (features, index))
    assert torch.autograd.gradcheck(gather_neighbors_reference, (features, index))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scatter_sums_rows(path, device, dtype):
    values = torch.randn(2, 5, 7, 3, device=device, dtype=dtype, requires_grad=True)
    index = torch.randint(0, 6, (2, 5, 7), device=device)
    member = torch.nn.functional.one_hot(index, 9).to(dtype)  # points 6..8 have no rows
    assert_gradients_agree(
        lambda v: scatter_neighbors(v, index, 9), lambda v: torch.einsum("bskn,bskc->bnc", member, v), [values], dtype
    )
    assert torch.equal(scatter_neighbors(values[:, :, 0], index[..., 0], 9)[:, 6:], values.new_zeros(2, 3, 3))


def test_integers_stay_exact(path, device):
    values = torch.tensor([[[1 << 24], [1]]], device=device)
    index = torch.zeros(1, 2, dtype=torch.int64, device=device)
    assert scatter_neighbors(values, index, 1).tolist() == [[[(1 << 24) + 1]]]


def test_a_traced_graph_looks_at_the_index():
    features, index = torch.zeros(1, 4, 3), torch.full((1, 2), 10**11)
    for function in (lambda: gather_neighbors(features, index), lambda: scatter_neighbors(features[:, :2], index, 4)):
        with pytest.raises(IndexError, match=r"index must lie in 0..3, got values from 100000000000"):
            torch.compile(function, backend="eager", fullgraph=True)()


def test_each_is_the_backward_of_the_other():
    features = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 9, (2, 5, 4))
    assert torch.autograd.gradgradcheck(lambda f: gather_neighbors(f, index).square(), features)
    values = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda v: scatter_neighbors(v, index, 9).square(), values)


def test_bad_arguments_of_scatter():
    values, index = torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"values must have shape .* got \(2, 4, 3\) and \(2, 5\)"):
        scatter_neighbors(values[:, :4], index, 9)
    with pytest.raises(IndexError, match=r"index must lie in 0..2, got values from 0 to 3"):
        scatter_neighbors(values, index + torch.tensor([[3], [0]]), 3)
    with pytest.raises(ValueError, match="num_points must lie in"):
        scatter_neighbors(values, index, 0)


def test_one_graph(device):
    features = torch.randn(2, 9, 3, device=device, requires_grad=True)
    index = torch.randint(0, 9, (2, 5, 4), device=device)
    compiled = torch.compile(lambda f, i: gather_neighbors(f, i) * 2, fullgraph=True, backend="aot_eager")
    assert_gradients_agree(compiled, lambda f, i: by_definition(f, i) * 2, (features, index))


def test_bad_arguments():
    features, index = torch.zeros(2, 9, 3), torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="with the same B"):
        gather_neighbors(features[:1], index)
    with pytest.raises(IndexError, match=r"index must lie in 0..8, got values from 0 to 9"):
        gather_neighbors(features, index + torch.tensor([[9], [0]]))
    with pytest.raises(TypeError, match=r"index must be int64, got torch.int32"):
        gather_neighbors(features, index.int())
    with pytest.raises(TypeError, match=r"features must be of a real dtype, got torch.complex64"):
        gather_neighbors(features.to(torch.complex64), index)
    with pytest.raises(ValueError, match=r"index must be on the device of the features, cpu, got meta"):
        gather_neighbors(features, index.to("meta"))
