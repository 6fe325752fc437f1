"""Surface attention: offset attention among the K neighbours of each query, or among the S points of a cloud.

    E_ij = q_i·k_j (no scale);  A = softmax_j E;  A /= 1e-9 + Σ A over `normalise`;  r_j = Σ_i A_ij v_i

`normalise` names the axis of the second normalisation. "queries" is the sum over i, as Point Cloud Transformer has it.
"points" is the sum over axis 1, which for the neighbours' attention (4-D tensors) are the S points of the cloud:
evidently a slip of RISurConv's release, carried over from the 3-D form where axis 1 are the queries, but its
checkpoints were trained with it.

Source: RISurConv, arXiv 2408.06110 (self_attention of cszyzhang/RISurConv@27c48dd); PCT, arXiv 2012.09688.
"""

import torch
from torch import Tensor

NORMALISE = ("points", "queries")


def surface_attention(q: Tensor, k: Tensor, v: Tensor, normalise: str = "points") -> Tensor:
    """Attend among the last-but-one axis.

    Args:
        q, k: (B, S, K, D), or (B, S, D) to attend among the S points.
        v: (B, S, K, C), or (B, S, C).
        normalise: "points" or "queries" (the same thing in the 3-D form).

    Returns:
        (B, S, K, C), or (B, S, C).
    """
    if normalise not in NORMALISE:
        raise ValueError(f"normalise must be one of {NORMALISE}, got {normalise!r}")
    if q.shape != k.shape or q.shape[:-1] != v.shape[:-1] or q.ndim not in (3, 4):
        raise ValueError(
            "q and k must have one shape, (B, S, K, D) or (B, S, D), and v the same but for its last axis, got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    weight = torch.softmax(q @ k.mT, dim=-1)
    weight = weight / (1e-9 + weight.sum(dim=1 if normalise == "points" else -2, keepdim=True))
    return weight.mT @ v
