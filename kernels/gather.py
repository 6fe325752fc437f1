"""Gathering rows of a cloud by index: features (B, N, C) and index (B, S) or (B, S, K) -> (B, S[, K], C).

The backward adds the gradients of a point's copies; on a CPU in a fixed order.
"""

import torch
from torch import Tensor


def gather_neighbors(features_BNC: Tensor, index_BSK: Tensor) -> Tensor:
    """Rows of `features_BNC` at `index_BSK`, cloud by cloud.

    Args:
        features_BNC: (B, N, C), any dtype.
        index_BSK: (B, S) or (B, S, K) int64 in 0..N-1.

    Returns:
        (B, S, C) or (B, S, K, C).
    """
    if features_BNC.ndim != 3 or index_BSK.ndim not in (2, 3) or len(features_BNC) != len(index_BSK):
        raise ValueError(
            "features must have shape (B, N, C) and index (B, S) or (B, S, K) with the same B, got "
            f"{tuple(features_BNC.shape)} and {tuple(index_BSK.shape)}"
        )
    if index_BSK.dtype != torch.int64:
        raise TypeError(f"index must be int64, got {index_BSK.dtype}")
    batch, size, channels = features_BNC.shape
    if index_BSK.device.type == "cpu" and index_BSK.numel():  # elsewhere a look at the values would wait for the device
        lowest, highest = index_BSK.aminmax()
        if lowest < 0 or highest >= size:
            raise IndexError(f"index must lie in 0..{size - 1}, got values from {lowest} to {highest}")
    first_row = torch.arange(batch, device=index_BSK.device).view(-1, *[1] * (index_BSK.ndim - 1)) * size
    rows = (index_BSK + first_row).flatten()
    return features_BNC.reshape(batch * size, channels).index_select(0, rows).view(*index_BSK.shape, channels)
