"""The multi-scale deformable attention of mmcv on the operator of `attlas.kernels`."""

from typing import Any

import mmcv.ops
from torch import Tensor, nn

from ...kernels import deformable_attention
from ...registry import MODELS


@MODELS.register_module()
class MultiScaleDeformableAttention(mmcv.ops.MultiScaleDeformableAttention):
    """Every query reads a few places of several maps, and adds their weighted sum to itself.

    mmcv's module, with its arguments, names and initial values; it computes the same. mmcv writes out what every place
    reads, on a CPU, and in bfloat16 on a GPU, too.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        reference_points: Tensor,
        spatial_shapes: Tensor,
        **kwargs,
    ) -> Tensor:
        """(B, Q, C), or (Q, B, C) without `batch_first`.

        Args:
            query: queries (B, Q, C), or (Q, B, C) without `batch_first`, as all of these.
            key: None; mmcv has it and does not read it, either.
            value: maps (B, S, C), flattened, one level after the other; the query by default.
            identity: what the result is added to; the query by default.
            query_pos: position code, which is added to the query.
            key_padding_mask: pixels (B, S) that are padding, bool.
            reference_points: points (B, Q, levels, 2) or boxes (B, Q, levels, 4) in [0, 1], x before y, around which a
                query reads; of a box, within its size.
            spatial_shapes: height and width (levels, 2) of each level.
        """
        identity = query if identity is None else identity
        value = query if value is None else value
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask.unsqueeze(-1), 0)
        places = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(query).unflatten(-1, (*places, 2))
        weights = (
            self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1).unflatten(-1, places[1:])
        )
        reference = reference_points[:, :, None, :, None]  # B, Q, 1, levels, 1, 2 or 4
        if reference.shape[-1] == 2:
            offsets = offsets / spatial_shapes.flip(-1).unsqueeze(1)
        else:
            offsets = offsets / self.num_points * reference[..., 2:] * 0.5
        value = value.unflatten(-1, (self.num_heads, -1))
        out = self.output_proj(deformable_attention(value, spatial_shapes, reference[..., :2] + offsets, weights))
        return self.dropout(out if self.batch_first else out.transpose(0, 1)) + identity


def use_kernel(network: nn.Module) -> None:
    """Replace every deformable attention of mmcv in a network by ours, with its weights."""
    child: Any  # type() does not tell mypy more
    for part in list(network.modules()):
        for name, child in part.named_children():
            if type(child) is mmcv.ops.MultiScaleDeformableAttention:
                ours = MultiScaleDeformableAttention(
                    child.embed_dims,
                    child.num_heads,
                    child.num_levels,
                    child.num_points,
                    dropout=child.dropout.p,
                    batch_first=child.batch_first,
                    value_proj_ratio=(child.value_proj.out_features + 0.5) / child.embed_dims,  # rounded down there
                )
                ours.load_state_dict(child.state_dict())
                setattr(part, name, ours)
