import numpy as np
import pytest
import torch
from geometry import random_cloud, random_rotation
from golden_records import Record

from attlas.kernels import farthest_point_sample, gather_neighbors
from attlas.kernels.farthest_point_sample import (
    LEAF,
    build_tree,
    farthest_point_sample_op,
    farthest_point_sample_reference,
)

DTYPES = [torch.float32, torch.float64]


def by_definition(points, count, starts=None, lengths=None):
    """Straight from the definition, one cloud and one sample at a time."""
    picked = []
    for b, cloud in enumerate(points.cpu().numpy()):
        cloud = cloud[: None if lengths is None else lengths[b]]
        index = [0 if starts is None else starts[b]]
        distance = np.full(len(cloud), np.inf, cloud.dtype)
        for _ in range(count - 1):
            dx, dy, dz = (cloud - cloud[index[-1]]).T
            distance = np.minimum(distance, (dx * dx + dy * dy) + dz * dz)
            index.append(int(distance.argmax()))
        picked.append(index)
    return torch.tensor(picked)


def assert_is_definition(points, count, starts=None, lengths=None):
    """Every index equal, in every path: all of them round alike."""
    device = points.device
    got = farthest_point_sample(
        points,
        count,
        0 if starts is None else torch.tensor(starts, device=device),
        None if lengths is None else torch.tensor(lengths, device=device),
    )
    assert got.dtype == torch.int64
    assert got.device == device
    assert torch.equal(got.cpu(), by_definition(points, count, starts, lengths))


def test_record(path, device):
    record = Record("risurconv/op-properties")
    points = record.input("points")[..., :3].to(device)
    assert torch.equal(farthest_point_sample(points, record.config["npoint"]).cpu(), record.input("fps"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "count", "starts"), [(1, 1, [0, 0]), (7, 7, [3, 6]), (97, 40, [0, 96]), (300, 50, [299, 0])]
)
def test_equals_definition(path, device, dtype, size, count, starts):
    points, _ = random_cloud(2, size, dtype=dtype)
    assert_is_definition(points.to(device), count, starts)


@pytest.mark.parametrize(("size", "dtype"), [(8300, torch.float32), (4200, torch.float64)])
def test_clouds_beyond_the_registers_of_a_gpu(triton_path, device, size, dtype):
    points, _ = random_cloud(3, size, dtype=dtype)
    points[1, size // 2 :] = 100  # padding that would be the farthest
    points[2] = points[2, :5].repeat(size // 5, 1)
    assert_is_definition(points.to(device), 9, [0, 1, 2], [size, size // 2, size])


def clustered(size):
    """Dense clusters of very different sizes, and a few points far away."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(1, size, 3, generator=generator, dtype=torch.float64)
    return points * 10.0 ** -(torch.arange(size) % 7)[:, None] + (torch.arange(size) % 5)[:, None]


def on_a_line(size):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(1, size, 1, generator=generator, dtype=torch.float64) * torch.tensor([0.0, 1.0, 0.0]).double()


def grid(size):
    """Many equal distances."""
    axis = torch.arange(round(size ** (1 / 3)) + 1, dtype=torch.float64)
    shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(3))
    return torch.cartesian_prod(axis, axis, axis)[:size][shuffled][None]


def repeated(size):
    """Leaves of duplicates that cannot be halved."""
    return random_cloud(1, 11)[0].repeat(1, size // 11, 1)


def neighboring_numbers(size):
    """No float32 lies between the two that occur, and their mean is rounded to the higher."""
    bits = torch.randint(0, 2, (1, size, 3), generator=torch.Generator().manual_seed(4))
    return 1 + (1 + bits.double()) * torch.finfo(torch.float32).eps


def far_and_near(size):
    """Squares near the largest float32 and squares that are zero."""
    points = random_cloud(1, size)[0]
    return torch.cat([points[:, ::2] * 1e18, points[:, 1::2] * 1e-30], 1)


CLOUDS = [clustered, on_a_line, grid, repeated, neighboring_numbers, far_and_near]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cloud", CLOUDS)
def test_tree_equals_definition_on_awkward_clouds(device, cloud, dtype):
    assert_is_definition(cloud(1100).to(device, dtype), 400)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_path_on_awkward_clouds(path, device, cloud):
    assert_is_definition(cloud(132).to(device, torch.float32), 40)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_tree(cloud):
    points = cloud(1100)[0].numpy()
    x, y, z, index, boxes, links = build_tree(points)
    assert np.array_equal(np.sort(index), np.arange(len(points)))
    sorted_points = np.stack([x, y, z], 1)
    assert np.array_equal(sorted_points, points[index])
    leaves = 0
    for node, (begin, end, right, skip, _) in enumerate(links):
        assert np.array_equal(boxes[node, :3], sorted_points[begin:end].min(0))
        assert np.array_equal(boxes[node, 3:6], sorted_points[begin:end].max(0))
        if right:  # two children share the points, and the branch ends with the right one
            assert [*links[node + 1, :2], *links[right, :2]] == [begin, links[right, 0], links[right, 0], end]
            assert (links[node + 1, 3], links[right, 3]) == (right, skip)
        else:
            leaves += end - begin
            assert end - begin <= LEAF or np.ptp(sorted_points[begin:end], 0).max() == 0
            assert skip == node + 1
    assert leaves == len(points)


def test_fewer_samples_are_a_prefix_and_so_are_samples_of_samples(device):
    points = random_cloud(2, 300)[0].to(device)
    index = farthest_point_sample(points, 120)
    assert torch.equal(farthest_point_sample(points, 50), index[:, :50])
    again = farthest_point_sample(gather_neighbors(points, index), 60)
    assert torch.equal(again.cpu(), torch.arange(60).expand(2, 60))


@pytest.mark.parametrize("seed", range(5))
def test_rotation_changes_nothing(device, seed):
    points, _ = random_cloud(2, 300)
    rotated = (points @ random_rotation(seed)).to(device)
    assert torch.equal(farthest_point_sample(rotated, 150), farthest_point_sample(points.to(device), 150))


@pytest.mark.parametrize("dtype", DTYPES)
def test_index_0_repeats_when_only_duplicates_are_left(path, device, dtype):
    points, _ = random_cloud(1, 10, dtype=dtype)
    points = points.repeat(1, 5, 1)  # 10 different points, 5 times each
    index = farthest_point_sample(points.to(device), 50, start=13)
    assert sorted(index[0, :10].remainder(10).tolist()) == list(range(10))
    assert index[0, 0] == 13
    assert index[0, 10:].eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_lengths(path, device, dtype):
    points, _ = random_cloud(4, 60, dtype=dtype)
    lengths, starts = [60, 37, 1, 20], [0, 36, 0, 5]
    for cloud, length in zip(points, lengths):
        cloud[length:] = 1000  # padding would be the farthest
    assert_is_definition(points.to(device), 30, starts, lengths)
    index = farthest_point_sample(points.to(device), 30, lengths=torch.tensor(lengths, device=device))
    assert index[2].eq(0).all()
    assert sorted(index[3, :20].tolist()) == list(range(20))
    assert index[3, 20:].eq(0).all()


def test_strided_points(path, device):
    points, _ = random_cloud(2, 80)
    expected = by_definition(points[:, ::2], 20)
    features = torch.cat([points, points + 1], 2).to(device)
    assert torch.equal(farthest_point_sample(features[:, ::2, :3], 20).cpu(), expected)
    channels_first = points.transpose(1, 2).contiguous().to(device)
    assert torch.equal(farthest_point_sample(channels_first.transpose(1, 2)[:, ::2], 20).cpu(), expected)


def test_random_start(device):
    points = random_cloud(200, 9)[0].to(device)
    lengths = torch.arange(200, device=device) % 9 + 1
    torch.manual_seed(5)
    index = farthest_point_sample(points, 4, "random", lengths)
    assert (index < lengths[:, None]).all()
    assert torch.equal(index, farthest_point_sample(points, 4, index[:, 0], lengths))
    assert len(index[lengths == 9, 0].unique()) > 4
    torch.manual_seed(5)
    assert torch.equal(farthest_point_sample(points, 4, "random", lengths), index)
    assert not torch.equal(farthest_point_sample(points, 4, "random", lengths), index)
    assert farthest_point_sample(points, 1, "random").unique().tolist() == list(range(9))


def test_no_gradient(device):
    points = random_cloud(1, 20)[0].to(device).requires_grad_()
    assert not farthest_point_sample(points, 5).requires_grad


def test_opcheck(path, device):
    points = random_cloud(2, 20, dtype=torch.float32)[0].to(device)
    start, lengths = torch.tensor([3, 0], device=device), torch.tensor([20, 11], device=device)
    torch.library.opcheck(farthest_point_sample_op, (points, 5, start, lengths))
    torch.library.opcheck(farthest_point_sample_op, (points, 5, start, None))


def test_compiles_to_one_graph(device):
    points = random_cloud(2, 40)[0].to(device)
    lengths = torch.tensor([40, 21], device=device)
    graph = torch.compile(lambda x, n: farthest_point_sample(x, 10, 2, n), fullgraph=True, backend="aot_eager")
    assert torch.equal(graph(points, lengths), farthest_point_sample(points, 10, 2, lengths))


def test_what_no_check_has_seen_does_no_harm(path, device):
    """In a traced graph, and on a GPU, values are not looked at: NaN must neither hang nor lead out of the cloud."""
    points, _ = random_cloud(2, 250)
    points[0, 3::7] = torch.nan
    points[1] = torch.nan
    points, start = points.to(device), torch.tensor([3, 0], device=device)
    index = farthest_point_sample_op(points, 30, start, None)
    assert ((index >= 0) & (index < 250)).all()
    if path == "auto" and device.type == "cpu":
        with pytest.raises(IndexError, match=r"start must lie in 0..length-1 and lengths in 1..250, got 250 and 250"):
            farthest_point_sample_op(points, 30, start + 247, None)


@pytest.mark.parametrize(
    ("points", "count", "message"),
    [
        (torch.zeros(0, 4, 3), 1, "points must hold at least one cloud of at least one point"),
        (torch.zeros(1, 0, 3), 1, "points must hold at least one cloud of at least one point"),
        (torch.zeros(1, 4, 3), 5, r"num_samples must lie in 1..4 \(the number of points\), got 5"),
        (torch.zeros(4, 3), 2, r"shape \(B, N, 3\), got \(4, 3\)"),
        (torch.full((1, 4, 3), torch.nan), 2, "4 points hold NaN or infinity, the first is point 0 of cloud 0"),
        (torch.tensor([[[0.0, 0, 0], [0, torch.inf, 0]]]), 2, "point 1 of cloud 0"),
    ],
)
def test_bad_points(points, count, message):
    with pytest.raises(ValueError, match=message):
        farthest_point_sample(points, count)


@pytest.mark.parametrize(
    ("start", "lengths", "message"),
    [
        (4, None, r"start must lie in 0..3 \(the number of the last point\), got 4"),
        (-1, None, "start must lie in 0..3"),
        (2, [4, 2], "start must lie in 0..1 in cloud 1, got 2"),
        (torch.tensor([0, -1]), None, "start must lie in 0..3 in cloud 1, got -1"),
        (torch.tensor([0, 0, 0]), None, r"start must be int64 of shape \(2,\), one per cloud, got torch.int64 \(3,\)"),
        (torch.tensor([0.0, 0.0]), None, r"start must be int64 of shape \(2,\), one per cloud, got torch.float32"),
        ("first", None, "start must be an index, a tensor of them or \"random\", got 'first'"),
        (0, [4, 5], "lengths must lie in 1..4, got values from 4 to 5"),
        (0, [4], r"lengths must be an int64 tensor of shape \(2,\), one per cloud, got torch.int64 \(1,\)"),
    ],
)
def test_bad_start_and_lengths(start, lengths, message):
    with pytest.raises(ValueError, match=message):
        farthest_point_sample(torch.zeros(2, 4, 3), 2, start, lengths if lengths is None else torch.tensor(lengths))


def test_bad_types():
    with pytest.raises(TypeError, match="float32 or float64"):
        farthest_point_sample(torch.zeros(1, 4, 3, dtype=torch.int64), 2)
    with pytest.raises(TypeError, match=r"tensor of shape \(B, N, 3\), got list"):
        farthest_point_sample([[0, 0, 0]], 1)
    with pytest.raises(TypeError, match="start must be an integer, got"):
        farthest_point_sample(torch.zeros(1, 4, 3), 2, start=1.5)


def test_reference_without_lengths():
    points, _ = random_cloud(2, 50)
    assert torch.equal(farthest_point_sample_reference(points, 9, torch.tensor([0, 0])), by_definition(points, 9))
