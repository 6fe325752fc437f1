import math

import pytest
import torch

from attlas.kernels import ragged


def ragged_cloud(sizes, dimensions=3, seed=0, dtype=torch.float64):
    """Points (N, D) of clouds of these sizes and the number of everyone's cloud."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(sum(sizes), dimensions, generator=generator, dtype=torch.float64).to(dtype)
    return points, torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def defined_edges(x, y, batch_x, batch_y, choose):
    """choose(distances to the points of the cloud) -> places among them, query by query."""
    edges = []
    for q in range(len(y)):
        cloud = (batch_x == batch_y[q]).nonzero().flatten()
        if len(cloud):
            edges += [(q, int(cloud[i])) for i in choose((x[cloud] - y[q]).square().sum(-1).sqrt())]
    return torch.tensor(edges, dtype=torch.int64).view(-1, 2).T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dimensions", [1, 3, 6])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_knn(device, dtype, dimensions, k):
    # a cloud without points, one without queries, and fewer points than neighbors
    x, batch_x = ragged_cloud([20, 0, 3, 11], dimensions, dtype=dtype)
    y, batch_y = ragged_cloud([7, 2, 5, 0, 0], dimensions, seed=1, dtype=dtype)
    expected = defined_edges(x, y, batch_x, batch_y, lambda d: d.argsort(stable=True)[:k].tolist())
    assert torch.equal(
        ragged.knn(*(t.to(device) for t in (x, y)), k, batch_x.to(device), batch_y.to(device)).cpu(), expected
    )


def test_knn_by_angle(device):
    x, batch = ragged_cloud([9, 15])
    angles = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1).masked_fill(batch[:, None] != batch, -2)
    edges = ragged.knn(x.to(device), x.to(device), 4, batch.to(device), batch.to(device), cosine=True).cpu()
    assert torch.equal(edges[1].view(-1, 4), angles.topk(4).indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(("r", "most"), [(0.05, 32), (0.7, 2), (0.7, 100), (9.0, 4)])
def test_radius(device, dtype, dimensions, r, most):
    x, batch_x = ragged_cloud([20, 0, 3, 11], dimensions, dtype=dtype)
    y, batch_y = ragged_cloud([17, 2, 5, 1], dimensions, seed=1, dtype=dtype)
    expected = defined_edges(x, y, batch_x, batch_y, lambda d: (d < r).nonzero().flatten()[:most].tolist())
    edges = ragged.radius(x.to(device), y.to(device), r, batch_x.to(device), batch_y.to(device), most)
    assert torch.equal(edges.cpu(), expected)


def test_graphs(device):
    x = torch.tensor([[0.0], [1.0], [3.0], [10.0], [10.5]], device=device)
    batch = torch.tensor([0, 0, 0, 1, 1], device=device)
    assert ragged.knn_graph(x, 1, batch).tolist() == [[1, 0, 1, 4, 3], [0, 1, 2, 3, 4]]
    assert ragged.knn_graph(x, 1, batch, loop=True).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert ragged.knn_graph(x, 1, batch, flow="target_to_source").tolist() == [[0, 1, 2, 3, 4], [1, 0, 1, 4, 3]]
    assert ragged.knn_graph(x, 2)[0].view(-1, 2).tolist() == [[1, 2], [0, 2], [1, 0], [4, 2], [3, 2]]
    # 2 apart is not closer than 2
    assert ragged.radius_graph(x, 2.0, batch).tolist() == [[1, 0, 4, 3], [0, 1, 3, 4]]
    assert ragged.radius_graph(x, 2.0, batch, True).tolist() == [
        [0, 1, 0, 1, 2, 3, 4, 3, 4],
        [0, 0, 1, 1, 2, 3, 3, 4, 4],
    ]
    assert ragged.radius_graph(x, 2.0, batch, flow="target_to_source").tolist() == [[0, 1, 3, 4], [1, 0, 4, 3]]
    assert ragged.radius_graph(x, 99.0, max_num_neighbors=1).tolist() == [[1, 0, 0, 0, 0], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("k", [1, 2, 16, 40])
def test_graphs_of_points_in_one_place(device, k):
    """Without loops a point has min(k, n - 1) neighbors and is none of them, wherever it stands among its copies."""
    x, batch = ragged_cloud([30, 6, 1, 17], dtype=torch.float32)
    x[10:30], x[30:36], x[40:] = x[3], 0, x[37]  # padded with copies; coincident; in several places
    n = torch.tensor([30, 6, 1, 17])[batch]
    for edges in (
        ragged.knn_graph(x.to(device), k, batch.to(device)).cpu(),
        ragged.radius_graph(x.to(device), 99.0, batch.to(device), max_num_neighbors=k).cpu(),
    ):
        assert (edges[0] != edges[1]).all()
        assert torch.equal(edges[1].bincount(minlength=len(x)), (n - 1).clamp(max=k))
        assert torch.equal(batch[edges[0]], batch[edges[1]])
    distance = torch.cdist(x.double(), x.double()).masked_fill(batch[:, None] != batch, torch.inf)
    nearest = distance.fill_diagonal_(torch.inf).sort(stable=True)
    for point, expected in enumerate(nearest.indices):
        found = ragged.knn_graph(x, k, batch, flow="target_to_source")
        assert found[1][found[0] == point].tolist() == expected[: min(k, int(n[point]) - 1)].tolist()


def test_one_large_cloud_among_small_ones_costs_what_its_points_cost(device, monkeypatch):
    sizes = [3, 100, 2000, 1, 64, 0, 5, 128, 100, 31]
    x, batch = (t.to(device) for t in ragged_cloud(sizes, dtype=torch.float32))
    y, batch_y = (t.to(device) for t in ragged_cloud(sizes[::-1], seed=1, dtype=torch.float32))
    padded = []
    places = ragged._places

    def counted(sizes_B, ends_B):
        place_BN = places(sizes_B, ends_B)
        padded.append((place_BN.numel(), int(sizes_B.sum())))
        return place_BN

    monkeypatch.setattr(ragged, "_places", counted)
    for call, first_row in (
        (lambda x, y, *b: ragged.knn(x, y, 7, *b), batch_y),
        (lambda x, y, *b: ragged.radius(x, y, 0.5, *b), batch_y),
        (lambda x, _, *b: ragged.knn_graph(x, 4, *b[:1]), batch),
        (lambda x, _, *b: ragged.fps(x, *b[:1], ratio=0.3, random_start=False).expand(2, -1), batch),
    ):
        found = call(x, y, batch, batch_y)
        alone = []
        for cloud in range(len(sizes)):
            before = torch.stack([(first_row < cloud).sum(), (batch < cloud).sum()])
            alone.append(call(x[batch == cloud], y[batch_y == cloud]) + before[:, None])
        assert torch.equal(found, torch.cat(alone, 1))
    assert all(cells < 2 * points for cells, points in padded)
    assert len(padded) > 8


@pytest.mark.parametrize("ratio", [0.5, 0.1, 1.0, torch.tensor(0.3), torch.tensor([0.2, 0.5, 1.0, 0.9])])
def test_fps(device, ratio):
    x, batch = ragged_cloud([20, 0, 3, 11], 2, dtype=torch.float32)
    index = ragged.fps(x.to(device), batch.to(device), ratio, random_start=False).cpu()
    expected = []
    for cloud in range(4):
        places = (batch == cloud).nonzero().flatten().tolist()
        share = float(ratio[cloud] if torch.is_tensor(ratio) and ratio.ndim else ratio)
        taken = places[:1]
        while places and len(taken) < math.ceil(len(places) * share - 1e-6):
            taken.append(max(places, key=lambda p: min(float((x[p] - x[t]).square().sum()) for t in taken)))
        expected += taken
    assert index.tolist() == expected


def test_fps_starts_anywhere(device):
    x, batch = ragged_cloud([8, 5])
    x, batch = x.to(device), batch.to(device)
    starts = torch.stack([ragged.fps(x, batch, 0.1) for _ in range(60)])
    assert starts[:, 0].unique().tolist() == list(range(8))
    assert starts[:, 1].unique().tolist() == list(range(8, 13))
    assert ragged.fps(x).unique().numel() == 7
    # a little more than 3 in float64
    assert len(ragged.fps(torch.rand(30, 3, device=device), ratio=0.1)) == 3


def test_numbers_of_clouds_that_are_far_apart(device):
    """Nothing of the size of the largest number is made."""
    x, batch = (t.to(device) for t in ragged_cloud([9, 4, 6]))
    far = torch.tensor([3, 1 << 40, (1 << 62) + 1], device=device)[batch]
    for call in (
        lambda b: ragged.knn_graph(x, 3, b),
        lambda b: ragged.radius_graph(x, 1.0, b),
        lambda b: ragged.fps(x, b, 0.4, random_start=False),
        lambda b: ragged.knn(x, x[:13], 3, b, b[:13]),
    ):
        assert torch.equal(call(far), call(batch))
    assert ragged.knn(x, x, 3, far, batch).shape == (2, 0)
    with pytest.raises(ValueError, match=r"batch must lie in 0\.\.4 for a batch_size of 5, got 46116860184273"):
        ragged.fps(x, far, batch_size=5)


def test_nothing(device):
    empty, x = torch.empty(0, 3, device=device), torch.zeros(2, 3, device=device)
    assert ragged.fps(empty).shape == (0,)
    for edges in (
        ragged.knn(empty, x, 2),
        ragged.radius(x, empty, 2.0),
        ragged.knn_graph(x, 1, torch.tensor([1, 4], device=device)),
        ragged.knn(x, x, 1, torch.tensor([0, 0], device=device), torch.tensor([1, 1], device=device)),
    ):
        assert edges.shape == (2, 0)
        assert edges.dtype == torch.int64


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, b: ragged.fps(x, b.flip(0)), ValueError, "batch must ascend"),
        (lambda x, b: ragged.knn(x, x, 2, b, b - 1), ValueError, "batch_y must ascend from 0"),
        (lambda x, b: ragged.knn(x, x, 2, b[:3], b), ValueError, r"batch_x must be an int64 tensor of shape \(4,\)"),
        (lambda x, b: ragged.knn(x, x, 2, b.int(), b), ValueError, "got torch.int32"),
        (lambda x, b: ragged.knn(x, x, 0, b, b), ValueError, "k must lie in"),
        (lambda x, b: ragged.knn(x, x[:, :2], 1, b, b), ValueError, "same dimension"),
        (lambda x, b: ragged.knn(x, x, 1, b, b, batch_size=1), ValueError, r"batch_x must lie in 0..0 .* got 1"),
        (lambda x, b: ragged.radius(x, x, -1.0, b, b), ValueError, "r must be positive and finite, got -1.0"),
        (lambda x, b: ragged.radius_graph(x, 1.0, b, flow="up"), ValueError, "flow must be"),
        (
            lambda x, b: ragged.fps(x, b, 1.5),
            ValueError,
            r"ratio must lie in \(0, 1\], got 1.5",
        ),
        (
            lambda x, b: ragged.fps(x, b, torch.full((3,), 0.5)),
            ValueError,
            "ratio must be one number or one for each of 2 clouds",
        ),
        (lambda x, b: ragged.fps(x, b, torch.tensor([0.5, math.nan])), ValueError, r"ratio must lie in .*nan\]"),
        (lambda x, b: ragged.fps(x, b, "0.5"), TypeError, "ratio must be a number, got '0.5'"),
        (lambda x, b: ragged.fps(x, b, batch_size=0), ValueError, "batch_size must lie in 1.."),
        (lambda x, b: ragged.fps(x, b.tolist()), TypeError, "batch must be an int64 tensor or None, got list"),
        (lambda x, b: ragged.fps(x, b.double()), ValueError, r"got torch\.float64"),
        (lambda x, b: ragged.knn_graph(x, 2, b.flip(0)), ValueError, "batch must ascend"),
        (lambda x, b: ragged.radius_graph(x, math.nan, b), ValueError, "r must be positive and finite, got nan"),
        (lambda x, b: ragged.radius(x, x, 1.0, b, b, 2.0), TypeError, "max_num_neighbors must be an integer"),
        (lambda x, b: ragged.knn(x, x, 2, b, b, cosine=1), TypeError, "cosine must be True or False, got 1"),
        (lambda x, b: ragged.knn(x / 0, x, 2, b, b), ValueError, "x must be finite: 12 coordinates are not"),
        (lambda x, b: ragged.knn(x.half(), x, 2, b, b), TypeError, "x must be float32 or float64"),
        (lambda x, b: ragged.fps(x.repeat(1, 2), b), ValueError, "x must have at most 3 dimensions"),
        (lambda x, b: ragged.fps(x[None], b), ValueError, r"x must have shape \(N, D\)"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(*ragged_cloud([3, 1]))
