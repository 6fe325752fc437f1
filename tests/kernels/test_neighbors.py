import pytest
import torch
from geometry import random_cloud, random_rotation
from golden_records import Record

from attlas.kernels import ball_query, gather_neighbors, knn, ragged
from attlas.kernels import neighbors as module
from attlas.kernels.neighbors import knn_op


@pytest.fixture(autouse=True)
def _more_than_one_block(monkeypatch):
    """The reference takes several blocks even of the small clouds here."""
    monkeypatch.setattr(module, "BLOCK", 40_000)


def squared_distances(queries, points):
    x, y, z = (queries[:, :, None] - points[:, None]).unbind(-1)
    return x * x + y * y + z * z


def defined_knn(queries, points, k, lengths=None):
    """Every distance, sorted; a cloud of fewer than K points repeats the first entry."""
    rows = []
    for b, distances in enumerate(squared_distances(queries, points).cpu()):
        size = points.shape[1] if lengths is None else int(lengths[b])
        index = distances[:, :size].sort(dim=-1, stable=True).indices[:, :k]
        rows.append(torch.cat([index, index[:, :1].expand(-1, k - index.shape[1])], dim=1))
    return torch.stack(rows).to(points.device)


def defined_ball(queries, points, radius, k, lengths=None):
    distances = squared_distances(queries, points).cpu()
    rows = []
    for b, s in torch.cartesian_prod(*(torch.arange(n) for n in distances.shape[:2])).tolist():
        row = distances[b, s, : points.shape[1] if lengths is None else int(lengths[b])]
        inside = (row < radius**2).nonzero().flatten().tolist() or [row.argmin().item()]
        rows.append((inside + inside[:1] * k)[:k])
    return torch.tensor(rows).view(*distances.shape[:2], k).to(points.device)


def test_record(path, device):
    record = Record("risurconv/op-properties")
    points = record.input("points")[..., :3].contiguous().to(device)
    queries = gather_neighbors(points, record.input("fps").to(device))
    index = knn(queries, points, record.config["nsample"]).cpu()
    # the record lists neighbors by ascending index but for the farthest
    assert torch.equal(torch.cat([index[..., :-1].sort(-1).values, index[..., -1:]], -1), record.input("idx"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("queries", "size", "k"), [(1, 1, 1), (5, 7, 7), (33, 130, 16), (17, 131, 130)])
def test_knn_equals_definition(path, device, dtype, queries, size, k):
    points = random_cloud(2, size, dtype=dtype)[0].to(device)
    centers = random_cloud(2, queries, seed=1, dtype=dtype)[0].to(device)
    assert torch.equal(knn(centers, points, k), defined_knn(centers, points, k))


def test_longest_lists_of_the_kernel(path, device):
    points = random_cloud(1, 140, dtype=torch.float32)[0].to(device)
    assert torch.equal(knn(points[:, :20], points, 128), defined_knn(points[:, :20], points, 128))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 16, 60])
def test_tree_on_clouds_of_every_kind(dtype, k):
    """Against the definition: scattered, clustered, flat, in a line, on a grid, with an outlier, all in one place."""
    generator = torch.Generator().manual_seed(0)
    scattered = torch.randn(600, 3, generator=generator, dtype=torch.float64)
    cloud = torch.stack(
        [
            scattered,
            scattered * torch.logspace(-6, 2, 600).unsqueeze(1),
            scattered * torch.tensor([1, 1, 0]),
            scattered * torch.tensor([0, 1, 0]),
            (2 * scattered).round(),
            torch.cat([scattered[:-1] * 1e-3, torch.full((1, 3), 1e6)]),
            torch.zeros(600, 3),
        ]
    ).to(dtype)
    queries = torch.cat([cloud[:, ::3], 3 * cloud[:, :50] + 1], dim=1)
    assert torch.equal(knn(cloud, cloud, k), defined_knn(cloud, cloud, k))
    assert torch.equal(knn(queries, cloud, k), defined_knn(queries, cloud, k))
    assert torch.equal(ball_query(queries, cloud, 0.4, k), defined_ball(queries, cloud, 0.4, k))


def test_many_points_in_one_place_or_in_order():
    # a careless choice of pivots takes minutes here, and so does pruning by distance alone
    place = torch.ones(1, 40_000, 3)
    assert torch.equal(knn(place, place, 3), torch.arange(3).expand(1, 40_000, 3))
    line = torch.arange(40_000.0)[None, :, None] * torch.tensor([1.0, 0, 0])
    assert torch.equal(knn(line, line, 3)[0, 1:-1, 1:], torch.arange(1, 39_999)[:, None] + torch.tensor([-1, 1]))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_a_cloud(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        points, _ = random_cloud(1, 700)
        assert torch.equal(knn(points, points, 5), defined_knn(points, points, 5))
    finally:
        torch.set_num_threads(before)


def test_equal_distances_are_listed_by_index(path, device):
    points = random_cloud(1, 20)[0].repeat(1, 3, 1).to(device)
    assert torch.equal(knn(points, points, 6), defined_knn(points, points, 6))
    # all eight corners are equally far from the center: the K-th place is shared
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).repeat(3, 1)[None].to(device)
    centers = torch.zeros(1, 16, 3, device=device)
    for k in (1, 5, 13):
        assert torch.equal(knn(centers, corners, k)[0, 0].cpu(), torch.arange(k))
        assert torch.equal(knn(corners, corners, k), defined_knn(corners, corners, k))
    assert (ball_query(centers, corners, 0.5, 3) == 0).all()


def test_lengths(path, device):
    points, _ = random_cloud(3, 90, dtype=torch.float32)
    points, queries = points.to(device), (points[:, :20] * 0.9).to(device)
    points[1, 5:] = queries[1, :1]  # padding lies nearer than any point
    points[2, 37:] = queries[2, :1]
    lengths = torch.tensor([90, 5, 37], device=device)
    for k in (4, 40):
        assert torch.equal(knn(queries, points, k, lengths), defined_knn(queries, points, k, lengths))
        for radius in (1e-9, 0.9, 10.0):
            expected = defined_ball(queries, points, radius, k, lengths)
            assert torch.equal(ball_query(queries, points, radius, k, lengths), expected)


def test_rotation_changes_nothing(path, device):
    points, _ = random_cloud(1, 60)
    turned = (points @ random_rotation(0)).to(device)
    points = points.to(device)
    assert torch.equal(knn(turned, turned, 8), knn(points, points, 8))
    assert torch.equal(ball_query(turned, turned, 0.5, 8), ball_query(points, points, 0.5, 8))


def test_small_differences_far_from_the_origin(path, device):
    # the expanded form of the distance has no digit left here
    points = torch.tensor([[[1000.0, 0, 0], [1000.01, 0, 0], [1000.03, 0, 0], [999.95, 0, 0]]], device=device)
    assert knn(points[:, :1], points, 4).tolist() == [[[0, 1, 2, 3]]]
    assert knn(points[:, :1].expand(1, 20, 3), points, 4).tolist() == [[[0, 1, 2, 3]] * 20]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("radius", "k"), [(0.3, 8), (0.8, 32), (10.0, 64), (1e-9, 4), (10.0, 130)])
def test_ball_query_equals_definition(path, device, dtype, radius, k):
    points = random_cloud(2, 120, dtype=dtype)[0].to(device)
    centers = random_cloud(2, 37, seed=1, dtype=dtype)[0].to(device)
    assert torch.equal(ball_query(centers, points, radius, k), defined_ball(centers, points, radius, k))


def test_a_ball_is_open(path, device):
    # 0.1 is a little more in float32 than in float64: the square is rounded as the definition rounds it
    for dtype in (torch.float32, torch.float64):
        points = torch.zeros(1, 4, 3, dtype=dtype, device=device)
        points[0, :, 0] = torch.tensor([0.0, 0.5, 0.25, 0.1])
        queries = points[:, :1].expand(1, 16, 3)
        assert ball_query(queries, points, 0.5, 4)[0, 0].tolist() == [0, 2, 3, 0]
        assert torch.equal(ball_query(queries, points, 0.1, 4), defined_ball(queries, points, 0.1, 4))


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_other_dimensions(path, device, dimensions):
    points = torch.randn(2, 60, dimensions, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    distances = sum((points[:, :, None, d] - points[:, None, :, d]) ** 2 for d in range(dimensions))
    assert torch.equal(knn(points, points, 9), distances.sort(dim=-1, stable=True).indices[..., :9])
    if dimensions < 3:
        number = torch.arange(60, device=device).expand_as(distances)
        lowest = torch.where(distances < 0.04, number, 60).min(-1).values
        assert torch.equal(ball_query(points, points, 0.2, 2)[..., 0], lowest)


def test_strided_inputs(path, device):
    points = random_cloud(2, 24, dtype=torch.float32)[0].to(device)
    strided = points.transpose(1, 2).contiguous().transpose(1, 2)
    every_other = torch.stack([points, -points], dim=2).flatten(1, 2)[:, ::2]
    for other in (strided, every_other):
        assert not other.is_contiguous()
        assert torch.equal(knn(other, other, 5), knn(points, points, 5))
        assert torch.equal(knn(other[:, :17], other, 5), knn(points, points, 5)[:, :17])
        assert torch.equal(ball_query(other, points, 0.5, 5), ball_query(points, points, 0.5, 5))


def test_infinite_distances(path, device):
    # finite points whose squared distance overflows, as does the square of a radius: a traced graph does not look
    points = torch.tensor([0.0, 1e30, 2e30, -1e30])[None, :, None].expand(1, 4, 3).to(device)
    queries = points.repeat(1, 5, 1)
    assert torch.equal(knn_op(queries, points, 4), defined_knn(queries, points, 4))
    assert ball_query(queries * 1e-20, points * 1e-20, 1e30, 4)[0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [4, 64])
def test_coordinates_whose_squares_overflow_are_refused(size):
    points = random_cloud(1, size, dtype=torch.float32)[0]
    points /= points.abs().max()
    largest = points * 5.3e18
    assert torch.equal(knn(largest, largest, 3), knn(points, points, 3))
    message = (
        r"{} must lie within {} of 0, so that squares of distances are finite in {}; got {}: scale the points down"
    )
    refusal = message.format("queries", r"5\.3e\+18", "torch.float32", r"3\.0e\+19") + ", or pass float64"
    with pytest.raises(ValueError, match=refusal):
        knn(points * 3e19, points, 3)
    for call in (lambda x: knn(x, x, 2), lambda x: ball_query(x, x, 1.0, 2), lambda x: ragged.knn_graph(x[0], 2)):
        with pytest.raises(ValueError, match=message.format("(points|x)", ".*", "torch.float32", ".*")):
            call(points * 3e19)
        call(points.double() * 3e19)
        with pytest.raises(ValueError, match=message.format("(points|x)", ".*", "torch.float64", ".*") + "$"):
            call(points.double() * 1e154)


@pytest.mark.parametrize("lengths", [None, torch.tensor([30, 9])])
def test_operators(device, lengths):
    points = random_cloud(2, 30, dtype=torch.float32)[0].to(device)
    lengths = lengths if lengths is None else lengths.to(device)
    torch.library.opcheck(module.knn_op, (points[:, :20], points, 4, lengths))
    torch.library.opcheck(module.ball_query_op, (points[:, :20], points, 0.5, 4, lengths))


def test_compiles_to_one_graph(device):
    points = random_cloud(2, 30)[0].to(device)
    search = torch.compile(lambda p: knn(p, p, 3) + ball_query(p, p, 0.5, 3), backend="eager", fullgraph=True)
    assert torch.equal(search(points), knn(points, points, 3) + ball_query(points, points, 0.5, 3))


def test_no_gradient():
    points = random_cloud(1, 30)[0].requires_grad_()
    assert not knn(points, points, 3).requires_grad
    assert not ball_query(points, points, 0.5, 3).requires_grad


def test_nan_in_a_traced_graph_stays_in_the_cloud(path, device):
    points = random_cloud(1, 40, dtype=torch.float32)[0].to(device)
    points[0, 3] = torch.nan
    if device.type == "cpu":  # nobody looks on a GPU
        with pytest.raises(ValueError, match="points must be finite"):
            knn(points, points, 4)
    for search in (lambda p: knn(p, p, 4), lambda p: ball_query(p, p, 0.5, 4)):
        index = torch.compile(search, backend="eager", fullgraph=True)(points)
        assert index.min() >= 0
        assert index.max() < 40


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: knn(p, p, 11), ValueError, r"k must lie in 1..10 \(the number of points\), got 11"),
        (lambda p: knn(p, p, 0), ValueError, "got 0"),
        (lambda p: knn(p, p, 2.0), TypeError, "k must be an integer, got 2.0"),
        (lambda p: knn(p[:1], p, 2), ValueError, "queries must be of as many clouds as points, 2, got 1"),
        (lambda p: knn(p[..., :2], p, 2), ValueError, "queries must have the 3 dimensions of points, got 2"),
        (lambda p: knn(p.float(), p, 2), TypeError, "must agree"),
        (lambda p: knn(p * torch.nan, p, 2), ValueError, "queries must be finite"),
        (lambda p: knn(p[..., :2], p[..., :2] / 0, 2), ValueError, "points must be finite: 20 points"),
        (lambda p: knn(p[0], p, 2), ValueError, r"queries must have shape \(B, N, D\), got \(10, 3\)"),
        (lambda p: knn(p.int(), p.int(), 2), TypeError, "points must be float32 or float64"),
        (
            lambda p: knn(p, p, 2, torch.tensor([3, 11])),
            ValueError,
            r"lengths must lie in 1..10, got values from 3 to 11",
        ),
        (lambda p: knn(p, p, 2, torch.tensor([3])), ValueError, r"lengths must be an int64 tensor of shape \(2,\)"),
        (lambda p: ball_query(p, p, -1.0, 2), ValueError, "radius must be positive and finite, got -1.0"),
        (lambda p: ball_query(p, p, float("nan"), 2), ValueError, "radius must be positive and finite, got nan"),
        (lambda p: ball_query(p, p, 10**400, 2), ValueError, "radius must be positive and finite, got 1000"),
        (lambda p: ball_query(p, p, "1", 2), TypeError, "radius must be a number, got '1'"),
        (lambda p: ball_query(p, p, True, 2), TypeError, "radius must be a number, got True"),
        (lambda p: ball_query(p, p, 1.0, 2, torch.tensor([0, 3])), ValueError, "got values from 0 to 3"),
        (lambda p: ball_query(p.repeat(1, 1, 2), p.repeat(1, 1, 2), 1.0, 2), ValueError, "at most 3 dimensions"),
    ],
)
def test_bad_arguments(call, error, message):
    points, _ = random_cloud(2, 10)
    with pytest.raises(error, match=message):
        call(points)
