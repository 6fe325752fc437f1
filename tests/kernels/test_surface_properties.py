import pytest
import torch
from agreement import assert_agree
from geometry import random_cloud, random_rotation
from golden_records import Record

from attlas.kernels import gather_neighbors, knn, principal_axis, surface_properties
from attlas.kernels.surface_properties import ordered_properties, surface_properties_op


def neighborhoods(batch=2, size=120, count=30, k=9, seed=0, dtype=torch.float64, device=None):
    points, normals = (x.to(device) for x in random_cloud(batch, size, seed, dtype))
    queries, query_normals = points[:, :count], normals[:, :count]
    return points, normals, queries, query_normals, knn(queries, points, k)


def by_definition(points, normals, queries, query_normals, index, step):
    """The fourteen formulas as the paper's code lists them, for neighbors that are in order already."""

    def unit(v):
        return v / (v.norm(dim=-1, keepdim=True) + 1e-7)

    def dot(v, w):
        return (v * w).sum(-1)

    a = gather_neighbors(points, index) - queries[:, :, None]
    n_a = gather_neighbors(normals, index)
    b, c, n_b, n_c = a.roll(step, 2), a.roll(-step, 2), n_a.roll(step, 2), n_a.roll(-step, 2)
    p, n_p = torch.zeros_like(a), query_normals[:, :, None].expand_as(a)
    around_b, around_c = (torch.linalg.cross(unit(v - p), unit(a - p), dim=-1) for v in (b, c))
    return torch.stack(
        [
            a.norm(dim=-1),
            dot(unit(p - a), -n_p),
            dot(unit(p - a), n_a),
            dot(unit(p - a), unit(p - b)),
            dot(unit(p - b), -n_p),
            dot(unit(p - b), n_b),
            dot(unit(b - p), unit(b - a)),
            -dot(unit(a - b), n_a),
            dot(unit(a - b), n_b),
            dot(unit(c - p), unit(a - p)),
            dot(unit(c - p), unit(c - a)),
            dot(unit(c - a), n_c),
            dot(unit(a - p), n_c),
            dot(around_c, around_b),
        ],
        dim=-1,
    )


def test_record(path, device):
    record = Record("risurconv/op-properties")
    points, normals = record.input("points").to(device).split(3, dim=-1)
    queries, query_normals = (gather_neighbors(x, record.input("fps").to(device)) for x in (points, normals))
    properties, order = surface_properties(points, normals, queries, query_normals, record.input("idx").to(device))
    assert torch.equal(order.cpu(), record.output(1).long())
    torch.testing.assert_close(properties.float().cpu(), record.output(0), atol=1e-6, rtol=1e-5)


def test_record_of_the_whole_cloud(path, device):
    record = Record("risurconv/op-group-all")
    points, normals = record.input("points").to(device).split(3, dim=-1)
    axis = principal_axis(points - points.mean(1, keepdim=True))
    properties, order = ordered_properties(points, normals, axis)
    torch.testing.assert_close(axis.float().cpu(), record.output(1).view(-1, 3), atol=1e-6, rtol=1e-5)
    assert torch.equal(order.cpu(), record.output(2).long().view_as(order))
    torch.testing.assert_close(properties.float().cpu(), record.output(0), atol=1e-6, rtol=1e-5)


def order_by_definition(points, normals, queries, query_normals, index):
    """The order of every list from angles, without keys."""
    offsets = gather_neighbors(points, index) - queries[:, :, None]
    up = query_normals[:, :, None]
    flat = offsets - (offsets * up).sum(-1, keepdim=True) * up
    longest = flat.norm(dim=-1).argmax(-1)[..., None, None].expand(-1, -1, -1, 3)
    x_axis = flat.gather(2, longest)
    y_axis = torch.linalg.cross(x_axis, up, dim=-1)
    angle = torch.atan2((flat * y_axis).sum(-1), (flat * x_axis).sum(-1))
    angle = torch.where(angle.abs() < 1e-9, 0, angle)
    angle = torch.where(flat.norm(dim=-1) > 0, angle, torch.pi)  # the query itself: key -1, or 0 in slot 0
    angle[..., 0] = torch.where(flat[..., 0, :].norm(dim=-1) > 0, angle[..., 0].abs(), torch.pi / 2)
    return index.gather(-1, angle.remainder(2 * torch.pi).argsort(dim=-1, stable=True))


# queries that fill no tile, and lists; 128 neighbors are the most that kernels order
@pytest.mark.parametrize(
    ("k", "count", "step"), [(1, 11, 1), (2, 11, 2), (9, 11, 1), (9, 11, 2), (64, 5, 1), (128, 1, 2), (130, 1, 1)]
)
def test_equals_definition(k, count, step, path, device):
    arguments = neighborhoods(size=130, k=k, count=count, device=device)
    properties, order = surface_properties(*arguments, step)
    if k > 2:  # the farthest of two is no neighbor of the query itself
        assert torch.equal(order, order_by_definition(*arguments))
    torch.testing.assert_close(properties, by_definition(*arguments[:4], order, step), atol=1e-7, rtol=0)


@pytest.mark.parametrize("reference_sign", ["fixed", "rounding"])
def test_float32_agrees_with_float64(reference_sign, path, device):
    exact = neighborhoods(k=16, device=device)
    arguments = [x.float() if x.is_floating_point() else x for x in exact]
    properties, order = surface_properties(*arguments, reference_sign=reference_sign)
    assert_agree("properties", properties, by_definition(*exact[:4], order, 1).float())
    if reference_sign == "fixed":  # near ties may fall either way
        assert (order != surface_properties(*exact)[1]).double().mean() < 0.01


def test_threads_share_the_queries(device):
    arguments = neighborhoods(batch=3, k=5, device=device)
    expected = surface_properties(*arguments)
    torch.set_num_threads(3)
    try:
        got = surface_properties(*arguments)
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, got, expected))


def test_equal_keys_keep_the_order_of_the_list(path, device):
    points, normals, queries, query_normals, _ = neighborhoods(size=6, count=6, k=1, device=device)
    copies = points.repeat(1, 4, 1), normals.repeat(1, 4, 1)
    every = torch.arange(24, device=device).expand(2, 6, 24).contiguous()
    properties, order = surface_properties(*copies, queries, query_normals, every)
    properties_once, once = surface_properties(points, normals, queries, query_normals, every[:, :, :6])
    # slot 0 has a sign of its own, and its copies have not
    lists = order.view(12, 24).tolist()
    for got, of_once in zip(lists, once.view(12, 6).tolist()):
        rest = [i for i in got if i % 6]
        assert rest == [i + 6 * copy for i in of_once if i for copy in range(4)]
    assert properties.isfinite().all()
    assert properties_once.isfinite().all()


def test_inputs_may_be_strided(path, device):
    points, normals, queries, query_normals, index = neighborhoods(k=7, device=device)
    expected = surface_properties(points, normals, queries.contiguous(), query_normals.contiguous(), index)
    both = torch.cat([points, normals], dim=-1)
    got = surface_properties(*both.split(3, -1), queries, query_normals.mT.contiguous().mT, index.mT.contiguous().mT)
    assert all(map(torch.equal, got, expected))
    assert all(x.is_contiguous() for x in got)


@pytest.mark.parametrize("size", [1, 2, 37, 140])
def test_whole_cloud_is_one_neighborhood(size, path, device):
    points, normals = (x.to(device) for x in random_cloud(3, size))
    points = points + 0.1  # the origin is not the centroid
    properties, order = ordered_properties(points, normals, normals[:, 0])
    centered, axis = points - points.mean(1, keepdim=True), normals[:, :1]
    every = torch.arange(size, device=device).expand(3, 1, size)
    if size > 2:
        assert torch.equal(order, order_by_definition(centered, normals, torch.zeros_like(axis), axis, every))
    expected = by_definition(points, normals, torch.zeros_like(axis), axis, order, 1)
    torch.testing.assert_close(properties, expected, atol=1e-7, rtol=0)


def test_operator(path, device):
    points, normals, queries, query_normals, index = neighborhoods(size=20, count=5, k=4, device=device)
    centers = queries + 0.1
    torch.library.opcheck(surface_properties_op, (points, normals, queries, query_normals, centers, index, 1, False))
    with_gradient = points.clone().requires_grad_()
    properties, _ = surface_properties(with_gradient, normals, queries, query_normals, index)
    assert not properties.requires_grad


def test_compiles_to_one_operator():
    arguments = neighborhoods(size=20, count=5, k=4)
    function = torch.compile(surface_properties, backend="eager", fullgraph=True)
    assert all(map(torch.equal, function(*arguments), surface_properties(*arguments)))


def test_order_goes_once_round():
    angles = torch.tensor([2.0, 0.3, 5.0, 4.0, 1.0, 3.3], dtype=torch.float64)
    reach = torch.tensor([1.0, 1, 1, 1, 2, 1], dtype=torch.float64)  # the longest projection is the one at angle 1
    points = torch.stack([reach * angles.cos(), reach * angles.sin(), torch.full_like(angles, 0.7)], -1)[None]
    query, up = torch.zeros(1, 1, 3, dtype=torch.float64), torch.tensor([[[0.0, 0, 1]]], dtype=torch.float64)
    every = torch.arange(6).view(1, 1, 6)
    order = surface_properties(points, up.expand_as(points), query, up, every)[1][0, 0]
    # from the longest on; the sense of turning is that of the half-plane with (u × r)·n > 0, which is walked first
    walked = (1.0 - angles[order]).remainder(2 * torch.pi)
    slot0 = (order == 0).nonzero().item()  # slot 0 is mirrored to the first half-plane by its forced sign
    expected = walked.clone()
    expected[slot0] = (angles[0] - 1.0).remainder(2 * torch.pi)
    assert order[0] == 4
    assert expected.diff().gt(0).all()


def rounded(vectors, seed, units=4):
    """`vectors` (..., 3) as one more rotation rounds them: a few units of eps times their length away."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(vectors.shape, generator=generator, dtype=vectors.dtype).mul_(2).sub_(1).to(vectors.device)
    return vectors + units * torch.finfo(vectors.dtype).eps * noise * vectors.norm(dim=-1, keepdim=True)


def assert_rounding_changes_nothing(arguments, tolerance, copies=1):
    """Neither of the queries nor of the points, each for itself; copies of a point may change places."""
    points, normals, queries, query_normals, index = arguments
    expected, order = surface_properties(*arguments)
    for seed in range(2):
        for moved in (points, rounded(points, seed)):
            properties, moved_order = surface_properties(
                moved, normals, rounded(queries, seed + 10), rounded(query_normals, seed + 20), index
            )
            size = points.shape[1] // copies
            assert torch.equal(moved_order % size, order % size)
            torch.testing.assert_close(properties, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-12)])
def test_rounding_of_coordinates_changes_nothing(dtype, tolerance, path, device):
    """As when somebody rotates queries and points in two products."""
    # of this cloud, any two keys of a list differ by more than 2e-4
    points, normals, queries, query_normals, index = neighborhoods(seed=24, count=8, dtype=dtype, device=device)
    assert_rounding_changes_nothing((points, normals, queries, query_normals, index), tolerance)
    # neighbors on the normal of their query, above and below
    above = torch.cat([points, queries + 0.3 * query_normals, queries - 0.2 * query_normals], 1)
    up = torch.cat([normals, query_normals, query_normals], 1)
    place = torch.arange(8, device=device).expand(2, 8)
    index = torch.cat([index, (place + 120).unsqueeze(2), (place + 128).unsqueeze(2)], 2)
    assert_rounding_changes_nothing((above, up, queries, query_normals, index), tolerance)
    # copies of all points, in one neighborhood and behind each other in the list
    copies = torch.stack([index, index + 136], -1).flatten(2)
    doubled = above.repeat(1, 2, 1), up.repeat(1, 2, 1), queries, query_normals, copies
    assert_rounding_changes_nothing(doubled, tolerance, copies=2)


@pytest.mark.parametrize("scale", [1, 1e3])
def test_small_distances_are_no_rounding(scale, path, device):
    """float32 keeps the place of a neighbor that is a thousand times nearer than the farthest."""
    angles = torch.tensor([0.0, 2.5, 5.4, 1.1, 4.0, 3.1, 0.6], dtype=torch.float64)
    reach = torch.logspace(-1, -4, 7, dtype=torch.float64)
    up = torch.tensor([[[0.0, 0, 1]]], dtype=torch.float64)
    points = torch.stack([reach * angles.cos(), reach * angles.sin(), reach / 5], -1)[None]
    normals, query = up.expand_as(points).contiguous(), torch.tensor([[[0.6, 0.0, 0.0]]], dtype=torch.float64)
    exact = [x.to(device) for x in (scale * (query + points), normals, scale * query, up, torch.arange(7)[None, None])]
    properties, order = surface_properties(*(x.float() if x.is_floating_point() else x for x in exact))
    assert torch.equal(order, order_by_definition(*exact))
    torch.testing.assert_close(
        properties[..., 1:], by_definition(*exact[:4], order, 1)[..., 1:].float(), atol=2e-2, rtol=0
    )


@pytest.mark.parametrize("seed", range(2))
def test_rotation_and_translation_change_nothing(seed, path, device):
    """Queries are rotated for themselves: they may round differently from the points that they are."""
    points, normals, queries, query_normals, index = neighborhoods(size=200, count=10, k=20, seed=seed, device=device)
    expected, order = surface_properties(points, normals, queries, query_normals, index)
    turn, shift = random_rotation(seed).to(device), torch.tensor([3.0, -1.0, 2.0]).to(points)
    turned, turned_order = surface_properties(
        points @ turn + shift, normals @ turn, rounded(queries @ turn, seed) + shift, query_normals @ turn, index
    )
    assert torch.equal(turned_order, order)
    torch.testing.assert_close(turned, expected, atol=1e-9, rtol=0)


def test_a_reflection_is_seen(path, device):
    points, normals, queries, query_normals, index = neighborhoods(device=device)
    mirror = torch.diag(torch.tensor([1.0, 1, -1])).to(points)
    expected, _ = surface_properties(points, normals, queries, query_normals, index)
    mirrored, _ = surface_properties(points @ mirror, normals @ mirror, queries @ mirror, query_normals @ mirror, index)
    assert not mirrored.allclose(expected)


def test_degenerate_neighborhoods_are_finite(path, device):
    points, normals = (x.to(device) for x in random_cloud(1, 20))
    line = torch.linspace(0, 1, 20).to(points)[None, :, None].repeat(1, 1, 3)
    for degenerate in (points[:, :1].expand(1, 20, 3).contiguous(), line):
        index = knn(degenerate, degenerate, 8)
        properties, order = surface_properties(degenerate, normals, degenerate, normals, index)
        assert properties.isfinite().all()
        assert torch.equal(order.sort(-1).values, index.sort(-1).values)


def test_rounding_reproduces_the_coin_flip_of_the_release(path, device):
    arguments = neighborhoods(size=500, count=20, k=16, device=device)
    _, fixed = surface_properties(*arguments)
    _, released = surface_properties(*arguments, reference_sign="rounding")
    moved = (fixed != released).any(-1).float().mean()
    assert 0.2 < moved <= 1


def test_bad_arguments():
    points, normals, queries, query_normals, index = neighborhoods()
    zero = normals.clone()
    zero[1, 3] = 0
    with pytest.raises(ValueError, match="normals must be unit vectors: 1 are not, the first is of point 3 of cloud 1"):
        surface_properties(points, zero, queries, query_normals, index)
    with pytest.raises(ValueError, match=r"query_normals must have the shape of the points, \(2, 30, 3\)"):
        surface_properties(points, normals, queries, normals, index)
    with pytest.raises(TypeError, match="normals must have the dtype"):
        surface_properties(points, normals.float(), queries, query_normals, index)
    with pytest.raises(ValueError, match="reference_sign must be one of"):
        surface_properties(points, normals, queries, query_normals, index, reference_sign="plus")
    with pytest.raises(ValueError, match=r"index must have shape \(2, 30, K\) with K >= 1, got \(2, 29, 9\)"):
        surface_properties(points, normals, queries, query_normals, index[:, 1:])
    with pytest.raises(TypeError, match=r"index must be int64, got torch\.int32"):
        surface_properties(points, normals, queries, query_normals, index.int())
    with pytest.raises(IndexError, match=r"index must lie in 0..119, got values from 1 to 120"):
        surface_properties(
            points, normals, queries, query_normals, index.clamp(1, 119).index_fill(2, index.new_tensor([3]), 120)
        )
    with pytest.raises(ValueError, match=r"step must lie in 1\.\.2147483647, got 0"):
        surface_properties(points, normals, queries, query_normals, index, step=0)
    with pytest.raises(ValueError, match=r"axis must be a tensor of shape \(2, 3\), got \(2, 2\)"):
        ordered_properties(points, normals, normals[:, 0, :2])
