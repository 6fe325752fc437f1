"""What the preprocessors of several pipelines do with a batch: its parts become one tensor, or are refused."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..files import printable


def stacked(
    key: str, parts: Tensor | Sequence[Tensor], names: Sequence[str] | None, axes: str, advice: str, packer: str
) -> Tensor:
    """The parts of a batch as one tensor. Numbers are looked at before they leave the CPU, where that costs nothing.

    Args:
        key: what a part is, for errors, such as 'clip'.
        parts: floats of one shape, stacked (`default_collate`) or a list (`pseudo_collate`).
        names: those of their files.
        axes: those of the tensor, such as 'B, C, H, W'.
        advice: how parts get one shape, for errors.
        packer: name of the transform that gives such parts, for errors.

    Raises:
        ValueError: there are no parts, they are of several shapes or no floats, or hold NaN (names the file).
    """
    if len(parts) == 0:
        raise ValueError(f"the batch is empty: it must hold at least one {key}.")
    if not isinstance(parts, Tensor):
        shapes = sorted({tuple(part.shape) for part in parts})
        if len(shapes) != 1:
            raise ValueError(f"the {key}s of a batch must have one shape, got {shapes}: {advice}, or batch_size=1.")
        parts = parts[0][None] if len(parts) == 1 else torch.stack(list(parts))
    if parts.ndim != axes.count(",") + 1 or not parts.is_floating_point():
        raise ValueError(
            f"{key}s must be floats ({axes}), got {parts.dtype} of {tuple(parts.shape)}: end the transforms by "
            f"dict(type={packer!r})."
        )
    if not parts.is_cuda and not (finite := torch.isfinite(parts).flatten(1).all(1)).all():
        place = int((~finite).nonzero()[0])
        named = f" ({printable(names[place])})" if names else ""
        raise ValueError(f"{key} {place} of the batch{named} holds NaN or infinite numbers.")
    return parts
