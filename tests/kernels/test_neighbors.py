import pytest
import torch
from geometry import random_cloud, random_rotation
from golden_records import Record

from attlas.kernels import ball_query, gather_neighbors, knn
from attlas.kernels import neighbors as module


@pytest.fixture(params=["tree", "blocks"])
def path(request, monkeypatch):
    """Both CPU paths, the blocks also with more than one block."""
    monkeypatch.setattr(module, "TREE_FROM", 0 if request.param == "tree" else 1 << 30)
    monkeypatch.setattr(module, "BLOCK", 5000)
    return request.param


def squared_distances(queries, points):
    return (queries[:, :, None] - points[:, None]).square().sum(-1)


def test_record(path):
    record = Record("risurconv/op-properties")
    points = record.input("points")[..., :3].contiguous()
    index = knn(gather_neighbors(points, record.input("fps")), points, record.config["nsample"])
    # the record lists neighbours by ascending index but for the farthest
    assert torch.equal(torch.cat([index[..., :-1].sort(-1).values, index[..., -1:]], -1), record.input("idx"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("queries", "size", "k"), [(1, 1, 1), (5, 7, 7), (33, 130, 16), (64, 1000, 128)])
def test_knn_equals_definition(path, dtype, queries, size, k):
    points, _ = random_cloud(3, size, dtype=dtype)
    centres, _ = random_cloud(3, queries, seed=1, dtype=dtype)
    expected = squared_distances(centres, points).sort(-1).indices[..., :k]
    assert torch.equal(knn(centres, points, k), expected)


def test_equal_distances_are_listed_by_index(path):
    points = random_cloud(1, 20)[0].repeat(1, 3, 1)
    index = knn(points, points, 6)
    expected = squared_distances(points, points).sort(dim=-1, stable=True).indices[..., :6]
    assert torch.equal(index, expected)


@pytest.mark.parametrize("seed", range(5))
def test_rotation_changes_nothing(path, seed):
    points, _ = random_cloud(2, 300)
    turned = points @ random_rotation(seed)
    assert torch.equal(knn(turned, turned, 16), knn(points, points, 16))
    assert torch.equal(ball_query(turned, turned, 0.5, 16), ball_query(points, points, 0.5, 16))


def test_small_differences_far_from_the_origin(path):
    # the expanded form of the distance has no digit left here
    points = torch.tensor([[[1000.0, 0, 0], [1000.01, 0, 0], [1000.03, 0, 0], [999.95, 0, 0]]])
    assert knn(points[:, :1], points, 4).tolist() == [[[0, 1, 2, 3]]]


@pytest.mark.parametrize(("radius", "k"), [(0.3, 8), (0.8, 32), (10.0, 64), (1e-9, 4), (10.0, 500)])
def test_ball_query_equals_definition(path, radius, k):
    points, _ = random_cloud(2, 150)
    centres, _ = random_cloud(2, 40, seed=1)
    distances = squared_distances(centres, points)
    index = ball_query(centres, points, radius, k)
    assert index.shape == (2, 40, k)
    for b, s in torch.cartesian_prod(torch.arange(2), torch.arange(40)):
        inside = (distances[b, s] < radius**2).nonzero().flatten().tolist() or [distances[b, s].argmin().item()]
        expected = (inside + inside[:1] * k)[:k]
        assert index[b, s].tolist() == expected


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: knn(p, p, 11), ValueError, r"k must lie in 1..10 \(the number of points\), got 11"),
        (lambda p: knn(p, p, 0), ValueError, "got 0"),
        (lambda p: knn(p, p, 2.0), TypeError, "k must be an integer, got 2.0"),
        (lambda p: knn(p[:1], p, 2), ValueError, "queries are of 1 clouds, but points of 2"),
        (lambda p: knn(p.float(), p, 2), TypeError, "must agree"),
        (lambda p: knn(p * torch.nan, p, 2), ValueError, "queries must be finite"),
        (lambda p: ball_query(p, p, -1.0, 2), ValueError, "radius must be positive and finite, got -1.0"),
        (lambda p: ball_query(p, p, float("nan"), 2), ValueError, "radius must be positive"),
    ],
)
def test_bad_arguments(call, error, message):
    points, _ = random_cloud(2, 10)
    with pytest.raises(error, match=message):
        call(points)
