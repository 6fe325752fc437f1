"""PointNet++ (single-scale grouping): the baseline that everyone knows. Not rotation invariant.

Paper: "PointNet++: Deep Hierarchical Feature Learning on Point Sets in a Metric Space", NeurIPS 2017, arXiv 1706.02413.
Reference for the sizes: charlesq34/pointnet2 (MIT), pointnet2_cls_ssg.

A set-abstraction layer samples S points, groups K neighbors inside a ball, and gives [x_j - q; f_j] to a shared MLP
and a maximum over the ball.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import ball_query, farthest_point_sample, gather_neighbors
from ..registry import MODELS
from .layers import BatchNorm, Head, check_input


class SetAbstraction(nn.Module):
    """Points (B, N, 3), features (B, N, C) or None -> S points and their features (B, S, C').

    `num_points` None groups the whole cloud around the origin; `radius` is in the unit of the coordinates.
    """

    def __init__(
        self, in_channels: int, mlp: list[int], num_points: int | None = None, radius: float = 0.0, k: int = 0
    ):
        super().__init__()
        self.num_points, self.radius, self.k = num_points, radius, k
        widths = [3 + in_channels, *mlp]
        self.linears = nn.ModuleList(nn.Linear(before, after) for before, after in zip(widths, mlp))
        self.norms = nn.ModuleList(BatchNorm(width) for width in mlp)

    def forward(self, points: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        inputs = points if features is None else torch.cat([points, features], dim=-1)
        convolved = self.linears[0](inputs)
        if self.num_points is None:
            queries, convolved = points.new_zeros(len(points), 1, 3), convolved.unsqueeze(1)
        else:
            queries = gather_neighbors(points, farthest_point_sample(points, self.num_points))
            # W [x_j - q; f_j] = W [x_j; f_j] - W₁ q: the first product before the gather, on N rows instead of S K
            index = ball_query(queries, points, self.radius, self.k)
            shift = F.linear(queries, self.linears[0].get_parameter("weight")[:, :3])
            convolved = gather_neighbors(convolved, index) - shift.unsqueeze(2)
        convolved = self.norms[0](convolved)
        for linear, norm in zip(self.linears[1:], self.norms[1:]):
            convolved = norm(linear(F.relu(convolved)))
        return queries, F.relu(convolved.max(2).values)


@MODELS.register_module()
class PointNet2Classifier(nn.Module):
    """Points (B, N, 3), N >= 512 -> logits (B, classes). Clouds are expected in the unit sphere.

    Args:
        num_classes: size of the output.
        use_normals: normals (B, N, 3) enter as features of the points.
        dropout: of the head.
    """

    def __init__(self, num_classes: int, use_normals: bool = False, dropout: float = 0.5):
        super().__init__()
        self.use_normals = use_normals
        self.layers = nn.ModuleList(
            [
                SetAbstraction(3 if use_normals else 0, [64, 64, 128], num_points=512, radius=0.2, k=32),
                SetAbstraction(128, [128, 128, 256], num_points=128, radius=0.4, k=64),
                SetAbstraction(256, [256, 512, 1024]),
            ]
        )
        self.head = Head(1024, [512, 256], num_classes, dropout)

    def forward(self, points: Tensor, normals: Tensor | None = None) -> Tensor:
        return self.head(self.forward_features(points, normals))

    def forward_features(self, points: Tensor, normals: Tensor | None = None) -> Tensor:
        """The pooled feature (B, 1024)."""
        check_input(points, self)
        if self.use_normals and normals is None:
            raise ValueError("normals are needed by a PointNet2Classifier(use_normals=True), got None")
        features = normals if self.use_normals else None
        for layer in self.layers:
            points, features = layer(points, features)
        assert features is not None
        return features.squeeze(1)
