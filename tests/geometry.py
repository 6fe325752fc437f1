"""Clouds and rotations that the tests of operators and networks share."""

import torch
import torch.nn.functional as F


def random_cloud(batch=2, size=200, seed=0, dtype=torch.float64):
    """Centred points (B, N, 3) and unit normals (B, N, 3)."""
    generator = torch.Generator().manual_seed(seed)
    points, normals = torch.randn(2, batch, size, 3, generator=generator, dtype=torch.float64)
    return (points - points.mean(1, keepdim=True)).to(dtype), F.normalize(normals, dim=-1).to(dtype)


def random_rotation(seed):
    """A Haar-uniform rotation (3, 3), float64, to be applied as `points @ rotation`. Of a random quaternion, without
    SciPy, which a machine for `make gpu` may lack."""
    w, x, y, z = F.normalize(torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=0)
    return torch.stack(
        [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)]),
            torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)]),
            torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]),
        ]
    )
