import numpy as np
import pytest
import torch
from scipy import stats
from torch_geometric.data import Data

from attlas.data import seeded
from attlas.pointnets import transforms as T
from attlas.registry import TRANSFORMS


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def cloud(size=200, **attributes) -> Data:
    """Points on the unit sphere, whose normals are the points themselves."""
    pos = torch.nn.functional.normalize(torch.randn(size, 3), dim=1)
    return Data(pos=pos, normal=pos.clone(), y=torch.tensor(3), **attributes)


def two_triangles() -> Data:
    """A triangle of area 3 in the plane z = 0 and one of area 1 in the plane x = 5."""
    pos = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 2, 0], [5, 0, 0], [5, 2, 0], [5, 0, 1]])
    return Data(pos=pos, face=torch.tensor([[0, 3], [1, 4], [2, 5]]), y=torch.tensor(0))


def test_SO3_is_Haar_uniform():
    R = torch.stack([T.random_rotation("SO3") for _ in range(4000)])
    assert torch.allclose(R @ R.mT, torch.eye(3, dtype=R.dtype).expand_as(R), atol=1e-12)
    assert torch.allclose(torch.linalg.det(R), torch.ones(len(R), dtype=R.dtype))
    assert R.mean(0).abs().max() < 0.04  # standard error 0.577 / sqrt(4000) = 0.009
    angle = torch.acos(((R.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)).numpy()
    assert stats.kstest(angle, lambda t: (t - np.sin(t)) / np.pi).pvalue > 0.01  # density (1 - cos t) / pi
    for column in range(3):  # an image of an axis is uniform on the sphere: its coordinates are uniform in [-1, 1]
        assert stats.kstest(R[:, 0, column].numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize("up", ["x", "y", "z"])
def test_z_is_uniform_about_the_up_axis(up):
    axis = torch.tensor(T.UP_AXES[up], dtype=torch.float64)
    R = torch.stack([T.random_rotation("z", up) for _ in range(1000)])
    assert torch.allclose(R @ axis, axis.expand(1000, 3), atol=1e-12)
    side = axis.roll(1)
    angle = torch.atan2((R @ side) @ torch.linalg.cross(axis, side), (R @ side) @ side).numpy()
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 0.01


def test_rotation_turns_points_and_normals_alike():
    data = cloud()
    turned = T.RandomRotation("SO3")(data)
    assert torch.allclose(turned.pos, turned.normal)
    assert torch.allclose(turned.pos @ turned.pos.T, data.pos @ data.pos.T, atol=1e-5)
    assert not torch.allclose(turned.pos, data.pos, atol=0.1)
    assert torch.equal(T.RandomRotation("none")(data).pos, data.pos)
    assert "normal" not in T.RandomRotation()(Data(pos=data.pos))


def test_anisotropic_scale_gives_the_normals_of_the_ellipsoid():
    scaled = T.RandomScale(0.5, 2, anisotropic=True)(cloud())
    # the axes follow from the points: each satisfies sum (x / a)^2 = 1, and the gradient x / a^2 is the normal
    inverse_square = torch.linalg.lstsq(scaled.pos.double() ** 2, torch.ones(200, 1, dtype=torch.float64)).solution.T
    assert inverse_square.sqrt().reciprocal().std() > 0.1
    gradient = torch.nn.functional.normalize(scaled.pos * inverse_square, dim=1)
    assert torch.allclose(scaled.normal.double(), gradient, atol=1e-4)
    uniform = T.RandomScale(0.5, 0.5)(cloud())
    assert torch.allclose(uniform.pos.norm(dim=1), torch.full((200,), 0.5))
    assert torch.allclose(uniform.normal.norm(dim=1), torch.ones(200))


@pytest.mark.parametrize("name", ["SamplePoints", "RandomPoints"])
def test_a_mesh_is_sampled_uniformly_by_area_with_unit_normals(name):
    options = dict(include_normals=True) if name == "SamplePoints" else {}
    data = TRANSFORMS.build(dict(type=name, num=4000, **options))(two_triangles())
    assert data.face is None
    assert data.pos.shape == data.normal.shape == (4000, 3)
    large = data.pos[:, 2] == 0
    large &= data.pos[:, 0] < 4
    assert stats.binomtest(int(large.sum()), 4000, 0.75).pvalue > 0.01
    expected = torch.where(large[:, None], torch.tensor([0.0, 0, 1]), torch.tensor([1.0, 0, 0]))
    assert torch.allclose(data.normal, expected, atol=1e-6)
    # inside the triangle both barycentric coordinates are those of a uniform point: density 2 (1 - u)
    for u in (data.pos[large, 0] / 3, data.pos[large, 1] / 2):
        assert stats.kstest(u.numpy(), lambda u: 1 - (1 - u) ** 2).pvalue > 0.01


def test_poisson_points_are_spread_evenly_and_repeat_under_a_seed():
    def draw(transform, seed):
        with seeded(seed):
            return transform(two_triangles())

    def nearest(pos):
        return torch.cdist(pos, pos).fill_diagonal_(9).min(1).values.min()

    poisson = draw(T.PoissonPoints(100), 1)
    assert poisson.pos.shape == (100, 3)
    assert poisson.face is None
    assert torch.allclose(poisson.normal.norm(dim=1), torch.ones(100))
    assert nearest(poisson.pos) > 5 * nearest(draw(T.RandomPoints(100), 1).pos)
    assert torch.equal(draw(T.PoissonPoints(100), 1).pos, poisson.pos)
    assert not torch.equal(draw(T.PoissonPoints(100), 2).pos, poisson.pos)


def test_choosing_points_takes_their_normals_along():
    data = cloud()
    data.normal = 2 * data.pos
    for transform in (T.RandomPoints(50), T.FarthestPoints(50), T.FarthestPoints(50, "random"), T.Shuffle()):
        chosen = transform(data)
        assert torch.equal(chosen.normal, 2 * chosen.pos)
        assert len(chosen.pos.unique(dim=0)) == len(chosen.pos) == (200 if isinstance(transform, T.Shuffle) else 50)
        assert chosen.y == 3
    assert len(data.pos) == 200  # the input is left alone
    assert torch.equal(T.FarthestPoints(9)(data).pos[0], data.pos[0])
    starts = {tuple(T.FarthestPoints(2, "random")(data).pos[0].tolist()) for _ in range(8)}
    assert len(starts) > 3
    assert torch.equal(T.Shuffle()(data).pos.sort(0).values, data.pos.sort(0).values)
    few = T.RandomPoints(500)(data).pos.unique(dim=0, return_counts=True)[1]
    assert len(few) == 200
    assert few.min() == 2


def test_dropout_replaces_points_by_the_first():
    data, shares = cloud(2000), []
    for _ in range(200):
        dropped = T.RandomDropout(0.8)(data)
        assert torch.equal(dropped.pos, dropped.normal)
        gone = (dropped.pos != data.pos).any(1)
        assert torch.equal(dropped.pos[gone], data.pos[:1].expand(int(gone.sum()), 3))
        shares.append(gone.float().mean().item())
    assert stats.kstest(shares, stats.uniform(0, 0.8).cdf).pvalue > 0.01


def test_unit_sphere_shift_and_jitter():
    data = cloud()
    unit = T.UnitSphere()(Data(pos=7 * data.pos[:20] + 5))
    assert unit.pos.mean(0).abs().max() < 1e-6
    assert unit.pos.norm(dim=1).max() == pytest.approx(1)
    assert torch.equal(T.UnitSphere()(Data(pos=torch.ones(4, 3))).pos, torch.zeros(4, 3))
    huge = T.UnitSphere()(Data(pos=3e19 * data.pos[:20]))  # whose squares are infinite in float32
    assert torch.allclose(huge.pos, T.UnitSphere()(Data(pos=data.pos[:20])).pos, atol=1e-6)
    shift = T.RandomShift(0.1)(data).pos - data.pos
    assert torch.allclose(shift, shift[:1], atol=1e-6)
    assert 0 < shift.abs().max() <= 0.1 + 1e-6
    jitter = T.RandomJitter(sigma=0.02, clip=0.03)(data).pos - data.pos
    assert jitter.abs().max() == pytest.approx(0.03, abs=1e-6)
    assert jitter.std() == pytest.approx(0.0166, abs=0.002)  # of N(0, 0.02) clipped at 1.5 sigma


def test_estimated_normals_follow_the_surface():
    plane = torch.rand(300, 3) * torch.tensor([1.0, 1, 0])
    assert torch.allclose(T.EstimateNormals(k=8)(Data(pos=plane)).normal[:, 2].abs(), torch.ones(300))
    given = cloud()
    assert torch.equal(T.EstimateNormals(only_missing=True)(given).normal, given.normal)
    assert not torch.equal(T.EstimateNormals()(given).normal, given.normal)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(type="RandomRotation", group="so3"), r"group is 'so3'; it may be 'none', 'z', 'SO3'. Did you mean 'SO3'"),
        (dict(type="RandomRotation", up="w"), "up is 'w'"),
        (dict(type="FarthestPoints", num=8, start="frist"), "start is 'frist'.* Did you mean 'first'"),
        (dict(type="FarthestPoints", num=0), "num is 0; it must be a positive integer"),
        (dict(type="RandomPoints", num=2.5), "num is 2.5"),
        (dict(type="PoissonPoints", num=8, init_factor=0.5), "init_factor is 0.5"),
        (dict(type="RandomScale", low=2, high=1), "0 < low <= high"),
        (dict(type="RandomShift", distance=-1), "distance is -1"),
        (dict(type="RandomJitter", sigma=-1), "sigma and .clip are -1"),
        (dict(type="RandomDropout", max_ratio=2), r"max_ratio is 2; it must lie in \[0, 1\]"),
    ],
)
def test_bad_options_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(config)


def test_meshes_and_clouds_are_told_apart():
    for transform in (T.SamplePoints(8), T.PoissonPoints(8)):
        with pytest.raises(ValueError, match="needs a mesh, and got a cloud"):
            transform(cloud())
    for transform in (T.Shuffle(), T.RandomDropout(), T.FarthestPoints(4)):
        with pytest.raises(ValueError, match="got a mesh; sample it first"):
            transform(two_triangles())
    with pytest.raises(ValueError, match=r"num=201\) got a cloud of 200 points"):
        T.FarthestPoints(201)(cloud())


def test_normals_of_small_clouds():
    plane = torch.rand(9, 3) * torch.tensor([1.0, 1, 0])
    for size in (5, 9):
        normal = T.EstimateNormals()(Data(pos=plane[:size])).normal
        assert torch.allclose(normal[:, 2].abs(), torch.ones(size), atol=1e-5)
    for size, message in ((1, "a cloud of 1 point is too small"), (4, "4 points is too small .*; 5 are needed")):
        with pytest.raises(ValueError, match=message):
            T.EstimateNormals(k=8)(Data(pos=plane[:size]))
    with pytest.raises(ValueError, match=r"k must lie in 5\.\.9 .*got 4"):
        T.EstimateNormals(k=4)(Data(pos=plane))
