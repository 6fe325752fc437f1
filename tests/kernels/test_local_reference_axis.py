import sys

import pytest
import torch
from geometry import random_cloud, random_rotation
from golden_records import Record

from attlas.kernels import local_reference_axis, principal_axis


def test_record_up_to_sign():
    record = Record("risurconv/op-lra-normals")
    axes, expected = local_reference_axis(record.input("points")[..., :3].contiguous()), record.output()
    assert (axes * expected).sum(-1).abs().allclose(torch.ones(()).double(), atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_rotates_with_the_points(seed):
    points, _ = random_cloud(2, 300)
    rotation = random_rotation(seed)
    torch.testing.assert_close(
        local_reference_axis(points @ rotation), local_reference_axis(points) @ rotation, atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("seed", range(5))
def test_offsets_of_one_length_weigh_the_same(seed):
    """Their lengths differ by rounding, which must not become their weights."""
    offsets = torch.nn.functional.normalize(torch.randn(4, 12, 3, dtype=torch.float64), dim=-1) * 0.3
    rotation = random_rotation(seed)
    torch.testing.assert_close(
        principal_axis(offsets @ rotation), principal_axis(offsets) @ rotation, atol=1e-9, rtol=0
    )


def test_normal_of_a_plane():
    points, _ = random_cloud(1, 200)
    points[..., 2] = 0
    axes = local_reference_axis(points, 8)
    torch.testing.assert_close(axes.abs(), torch.tensor([0.0, 0, 1]).double().expand_as(axes))


def test_degenerate_clouds_give_unit_vectors():
    point = torch.ones(1, 40, 3, dtype=torch.float64)
    line = torch.arange(40, dtype=torch.float64)[None, :, None] * point
    for points in (point, line):
        assert torch.linalg.vector_norm(local_reference_axis(points), dim=-1).allclose(torch.ones(()).double())


def test_bad_arguments():
    points, _ = random_cloud(1, 10)
    with pytest.raises(ValueError, match=r"k must lie in 5..10 \(the number of points\), got 32"):
        local_reference_axis(points)
    with pytest.raises(ValueError, match=r"k must lie in 5..10 .* got 4"):
        local_reference_axis(points, 4)
    with pytest.raises(ValueError, match="sign must be one of"):
        principal_axis(points, sign="up")
    with pytest.raises(ValueError, match=r"offsets must have shape \(\.\.\., K, 3\) with K >= 1, got \(1, 0, 3\)"):
        principal_axis(points[:, :0])
    with pytest.raises(ValueError, match="offsets must be finite: 30 coordinates are not"):
        principal_axis(points * torch.nan)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 3e38), (torch.float64, 1.7e308)])
def test_any_scale(dtype, largest):
    """Squares of such coordinates are infinite, or zero."""
    points = random_cloud(1, 50, dtype=dtype)[0]
    points /= points.abs().max()
    axis = local_reference_axis(points, 8)
    for scale in (largest, 1e30, 2.0**-100, 0.1 / largest):
        got = local_reference_axis(points * scale, 8)
        torch.testing.assert_close(got, axis, atol=1e-3 if scale < 1e-38 else 1e-5, rtol=0)
        assert torch.isfinite(principal_axis(points * scale)).all()


def test_many_points_in_several_runs(monkeypatch):
    points, _ = random_cloud(2, 50)
    whole = local_reference_axis(points, 8)
    monkeypatch.setattr(sys.modules[local_reference_axis.__module__], "ROWS", 16)
    assert torch.equal(local_reference_axis(points, 8), whole)
