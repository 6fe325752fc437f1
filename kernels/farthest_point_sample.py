"""Farthest point sampling: spread S points over a cloud, each the farthest from those already taken.

    index[0] = start;  index[s] = argmax_n min_{t < s} |x_n - x_index[t]|²,  the first maximum wins

Greedy, so the first S' of S samples are the samples for S'; a network that samples its own samples again and again may
take prefixes instead. When only duplicates are left (every distance is 0) index 0 repeats.

Source: Eldar et al., "The farthest point strategy for progressive image sampling", IEEE TIP 1997; its place in point
networks: Qi et al., PointNet++, arXiv 1706.02413. The bucket method of the CPU path: Han et al., QuickFPS, TCAD 2023.
"""

import torch
import torch_quickfps
from torch import Tensor

from .checks import check_count, check_points


def farthest_point_sample(points_BN3: Tensor, num_samples: int, start: int = 0) -> Tensor:
    """Indices of `num_samples` points that are spread as far as possible.

    Args:
        points_BN3: (B, N, 3) float32 or float64.
        num_samples: S, in 1..N.
        start: the point to begin with, in 0..N-1.

    Returns:
        (B, S) int64. Exactly equal distances: the lowest index in float64 and off the CPU; the bucket method that
        serves float32 on a CPU may take another of the equally far points.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it may be.
    """
    check_points(points_BN3)
    size = points_BN3.shape[1]
    check_count(num_samples, "num_samples", size, "points")
    check_count(start, "start", size - 1, "the last point", at_least=0)
    points_BN3 = points_BN3.detach()
    if points_BN3.device.type == "cpu" and points_BN3.dtype == torch.float32:
        return torch_quickfps.sample_idx(points_BN3.contiguous(), num_samples, start_idx=start)
    return farthest_point_sample_reference(points_BN3, num_samples, start)


def farthest_point_sample_reference(points_BN3: Tensor, num_samples: int, start: int = 0) -> Tensor:
    """The definition, in S - 1 rounds over three contiguous rows of coordinates."""
    batch, size, _ = points_BN3.shape
    rows_3BN = points_BN3.permute(2, 0, 1).contiguous()
    distance_BN = points_BN3.new_full((batch, size), torch.inf)
    index_BS = torch.full((batch, num_samples), start, dtype=torch.int64, device=points_BN3.device)
    for s in range(1, num_samples):
        last_3B1 = rows_3BN.gather(2, index_BS[:, s - 1].expand(3, batch).unsqueeze(2))
        torch.minimum(distance_BN, (rows_3BN - last_3B1).square_().sum(0), out=distance_BN)
        index_BS[:, s] = distance_BN.argmax(1)
    return index_BS
