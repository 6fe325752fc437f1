"""Clouds and rotations that the tests of operators and networks share."""

import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation


def random_cloud(batch=2, size=200, seed=0, dtype=torch.float64):
    """Centred points (B, N, 3) and unit normals (B, N, 3)."""
    generator = torch.Generator().manual_seed(seed)
    points, normals = torch.randn(2, batch, size, 3, generator=generator, dtype=torch.float64)
    return (points - points.mean(1, keepdim=True)).to(dtype), F.normalize(normals, dim=-1).to(dtype)


def random_rotation(seed):
    """A Haar-uniform rotation (3, 3), float64, to be applied as `points @ rotation`."""
    return torch.from_numpy(Rotation.random(rng=seed).as_matrix())
