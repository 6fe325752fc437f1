import pytest
import torch
from agreement import assert_agree, assert_gradients_agree
from geometry import random_cloud, random_rotation

from attlas.kernels.three_interpolate import (
    three_interpolate,
    three_interpolate_backward_op,
    three_interpolate_op,
    three_interpolate_reference,
    three_interpolate_weight_backward_op,
    three_nn,
)

# B, M, C, S, K: no tile divides them; channels wider than a tile; one coarse point; one channel
SHAPES = [(2, 11, 5, 37, 3), (1, 9, 150, 21, 4), (3, 1, 7, 6, 1), (2, 5, 1, 3, 3)]


def by_definition(features, index, weight):
    rows = torch.stack([cloud[i] for cloud, i in zip(features, index)])
    return (rows.to(weight.dtype) * weight.unsqueeze(-1)).sum(2).to(features.dtype)


def make(shape, device, dtype=torch.float64, requires_grad=True):
    batch, size, channels, queries, k = shape
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, size, channels, generator=generator).to(device, dtype)
    index = torch.randint(0, size, (batch, queries, k), generator=generator).to(device)
    weight = torch.rand(batch, queries, k, generator=generator).to(device, torch.promote_types(dtype, torch.float32))
    return features.requires_grad_(requires_grad), index, weight.requires_grad_(requires_grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_definition(path, device, shape, dtype):
    assert_gradients_agree(three_interpolate, by_definition, make(shape, device, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_features(path, device, dtype):
    assert_gradients_agree(three_interpolate, by_definition, make(SHAPES[0], device, dtype), dtype)


def test_one_of_the_gradients(path, device):
    features, index, weight = make(SHAPES[0], device)
    for inputs in ((features, index, weight.detach()), (features.detach(), index, weight)):
        assert_gradients_agree(three_interpolate, by_definition, inputs)


def test_deterministic_gradient(path, device):
    features, index, weight = make((2, 4, 5, 60, 3), device, torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        assert_gradients_agree(three_interpolate, by_definition, (features, index, weight))
        first, second = (torch.autograd.grad(three_interpolate(features, index, weight).sum(), features) for _ in "12")
        assert torch.equal(*first, *second)
    finally:
        torch.use_deterministic_algorithms(False)


def test_strided_inputs(path, device):
    features, index, weight = make(SHAPES[0], device)
    strided = [x.detach().transpose(0, 2).contiguous().transpose(0, 2) for x in (features, index, weight)]
    strided = [strided[0].requires_grad_(), strided[1], strided[2].requires_grad_()]
    assert_gradients_agree(three_interpolate, by_definition, strided)
    ones = torch.ones((), dtype=torch.float64, device=device).expand(2, 37, 5)
    got, expected = (torch.autograd.grad(f(*strided), strided[2], ones) for f in (three_interpolate, by_definition))
    assert_agree("weight", *got, *expected)


def test_nothing_to_interpolate(path, device):
    features, index, weight = make(SHAPES[0], device)
    out = three_interpolate(features, index[:, :0], weight[:, :0])
    assert out.shape == (2, 0, 5)
    gradients = torch.autograd.grad(out.sum(), (features, weight))
    assert all(gradient.eq(0).all() for gradient in gradients)
    assert three_interpolate(features[..., :0], index, weight).shape == (2, 37, 0)


def test_three_nn_is_what_pointnet2_does(device):
    points, _ = random_cloud(2, 12)
    queries, _ = random_cloud(2, 30, seed=1)
    points, queries = points.to(device), queries.to(device)
    index, weight = three_nn(queries, points)
    distance, expected = torch.cdist(queries, points).square().topk(3, largest=False)
    assert torch.equal(index, expected)
    inverse = 1 / (distance + 1e-8)
    assert_agree("weight", weight, inverse / inverse.sum(-1, keepdim=True), torch.float32)


def test_interpolation_passes_through_the_coarse_points(path, device):
    points = random_cloud(2, 12, dtype=torch.float32)[0].to(device)
    features = torch.randn(2, 12, 6, device=device)
    out = three_interpolate(features, *three_nn(points, points))
    torch.testing.assert_close(out, features, rtol=0, atol=1e-5)


def test_interpolation_does_not_see_rotations(device):
    points, _ = random_cloud(1, 40)
    features, rotation = torch.randn(1, 40, 6, dtype=torch.float64), random_rotation(0)
    results = [three_interpolate(features, *three_nn(x[:, 15:], x)) for x in (points, points @ rotation)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2])
def test_fewer_than_three_coarse_points(device, size):
    points, queries = torch.randn(2, size, 3, device=device), torch.randn(2, 5, 3, device=device)
    index, weight = three_nn(queries, points)
    assert index.shape == weight.shape == (2, 5, size)
    out = three_interpolate(torch.ones(2, size, 4, device=device), index, weight)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_operators(path, device):
    features, index, weight = make(SHAPES[0], device, torch.float32)
    torch.library.opcheck(three_interpolate_op, (features, index, weight))
    grad = torch.randn(2, 37, 5, device=device)
    torch.library.opcheck(three_interpolate_backward_op, (grad, index, weight.detach(), 11))
    torch.library.opcheck(three_interpolate_weight_backward_op, (grad, index, features.detach()))


def test_gradcheck():
    features, index, weight = make((2, 5, 3, 4, 3), "cpu")
    assert torch.autograd.gradcheck(three_interpolate, (features, index, weight))
    assert torch.autograd.gradcheck(three_interpolate_reference, (features, index, weight))
    queries, points = random_cloud(1, 4)[0].requires_grad_(), random_cloud(1, 6, seed=1)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda q, p: three_nn(q, p)[1], (queries, points))


def test_bad_arguments():
    features, index, weight = make(SHAPES[0], "cpu", requires_grad=False)
    with pytest.raises(ValueError, match=r"index and weight must both .*got \(2, 37, 3\) and \(2, 37, 2\)"):
        three_interpolate(features, index, weight[..., :2])
    with pytest.raises(ValueError, match=r"index and weight must both .*got \(2, 37\) and \(2, 37\)"):
        three_interpolate(features, index[..., 0], weight[..., 0])
    with pytest.raises(TypeError, match=r"features must be floating point .*, got torch.int64"):
        three_interpolate(features.long(), index, weight)
    with pytest.raises(ValueError, match=r"weight must be on the device of features, cpu, got meta"):
        three_interpolate(features, index, weight.to("meta"))
    with pytest.raises(IndexError, match=r"index must lie in 0..10, got values from 11 to 11"):
        three_interpolate(features, torch.full_like(index, 11), weight)
