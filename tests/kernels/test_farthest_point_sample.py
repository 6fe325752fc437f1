import pytest
import torch
from geometry import random_cloud, random_rotation
from golden_records import Record

from attlas.kernels import farthest_point_sample, gather_neighbors
from attlas.kernels.farthest_point_sample import farthest_point_sample_reference


def by_definition(points, count, start=0):
    """Straight from the definition, one cloud at a time."""
    picked = []
    for cloud in points:
        index = [start]
        for _ in range(count - 1):
            index.append(((cloud[:, None] - cloud[index]) ** 2).sum(-1).amin(1).argmax().item())
        picked.append(index)
    return torch.tensor(picked)


def test_record():
    record = Record("risurconv/op-properties")
    points = record.input("points")[..., :3]
    assert torch.equal(farthest_point_sample(points, record.config["npoint"]), record.input("fps"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "count", "start"), [(1, 1, 0), (7, 7, 3), (97, 40, 0), (513, 100, 512)])
def test_equals_definition(dtype, size, count, start):
    points, _ = random_cloud(3, size, dtype=dtype)
    assert torch.equal(farthest_point_sample(points, count, start), by_definition(points, count, start))


def test_bucket_method_equals_rounds():
    points, _ = random_cloud(4, 3000, dtype=torch.float32)
    assert torch.equal(farthest_point_sample(points, 700), farthest_point_sample_reference(points, 700))


def test_fewer_samples_are_a_prefix_and_so_are_samples_of_samples():
    points, _ = random_cloud(2, 300)
    index = farthest_point_sample(points, 120)
    assert torch.equal(farthest_point_sample(points, 50), index[:, :50])
    again = farthest_point_sample(gather_neighbors(points, index), 60)
    assert torch.equal(again, torch.arange(60).expand(2, 60))


@pytest.mark.parametrize("seed", range(5))
def test_rotation_changes_nothing(seed):
    points, _ = random_cloud(2, 300)
    assert torch.equal(farthest_point_sample(points @ random_rotation(seed), 150), farthest_point_sample(points, 150))


def test_first_maximum_wins_on_a_grid():
    axis = torch.arange(5, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis, axis)[None]
    assert torch.equal(farthest_point_sample(points, 30), by_definition(points, 30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicates(dtype):
    points, _ = random_cloud(1, 10, dtype=dtype)
    points = points.repeat(1, 5, 1)  # 10 different points, 5 times each
    index = farthest_point_sample(points, 50)
    assert sorted(index[0, :10].remainder(10).tolist()) == list(range(10))
    if dtype == torch.float64:  # nothing is left but distance 0
        assert index[0, 10:].eq(0).all()


@pytest.mark.parametrize(
    ("points", "count", "message"),
    [
        (torch.zeros(0, 4, 3), 1, "points must hold clouds, and these points"),
        (torch.zeros(1, 0, 3), 1, "points must hold clouds, and these points"),
        (torch.zeros(1, 4, 3), 5, r"num_samples must lie in 1..4 \(the number of points\), got 5"),
        (torch.zeros(4, 3), 2, r"shape \(B, N, 3\), got \(4, 3\)"),
        (torch.full((1, 4, 3), torch.nan), 2, "4 points hold NaN or infinity, the first is point 0 of cloud 0"),
        (torch.tensor([[[0.0, 0, 0], [0, torch.inf, 0]]]), 2, "point 1 of cloud 0"),
    ],
)
def test_bad_values(points, count, message):
    with pytest.raises(ValueError, match=message):
        farthest_point_sample(points, count)


def test_bad_types():
    with pytest.raises(TypeError, match="float32 or float64"):
        farthest_point_sample(torch.zeros(1, 4, 3, dtype=torch.int64), 2)
    with pytest.raises(TypeError, match=r"tensor of shape \(B, N, 3\), got list"):
        farthest_point_sample([[0, 0, 0]], 1)
    with pytest.raises(ValueError, match=r"start must lie in 0..3 \(the number of the last point\), got 4"):
        farthest_point_sample(torch.zeros(1, 4, 3), 2, start=4)
