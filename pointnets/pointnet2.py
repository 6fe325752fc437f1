"""PointNet++: the baseline that everyone knows. Not rotation invariant.

Paper: "PointNet++: Deep Hierarchical Feature Learning on Point Sets in a Metric Space", NeurIPS 2017, arXiv 1706.02413.
Reference for the sizes: charlesq34/pointnet2 (MIT), pointnet2_cls_ssg, pointnet2_part_seg and its form msg_one_hot.

A set-abstraction layer samples S points, groups K neighbors inside a ball, and gives [x_j - q; f_j] to a shared MLP
and a maximum over the ball. Feature propagation brings features back to denser points.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import ball_query, farthest_point_sample, gather_neighbors, three_interpolate, three_nn
from ..registry import MODELS
from .layers import BatchNorm, Head, check_input, one_hot_category


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
        if self.num_points is None:
            queries = points.new_zeros(len(points), 1, 3)
        else:
            queries = gather_neighbors(points, farthest_point_sample(points, self.num_points))
        return queries, self.pool(points, features, queries)

    def pool(self, points: Tensor, features: Tensor | None, queries: Tensor) -> Tensor:
        """The features (B, S, C') of given queries (B, S, 3)."""
        inputs = points if features is None else torch.cat([points, features], dim=-1)
        convolved = self.linears[0](inputs)
        if self.num_points is None:
            convolved = convolved.unsqueeze(1)
        else:
            # W [x_j - q; f_j] = W [x_j; f_j] - W₁ q: the first product before the gather, on N rows instead of S K
            index = ball_query(queries, points, self.radius, self.k)
            shift = F.linear(queries, cast(nn.Linear, self.linears[0]).weight[:, :3])
            convolved = gather_neighbors(convolved, index) - shift.unsqueeze(2)
        convolved = self.norms[0](convolved)
        for linear, norm in zip(self.linears[1:], self.norms[1:]):
            convolved = norm(linear(F.relu(convolved)))
        return F.relu(convolved.max(2).values)


class MultiScaleAbstraction(nn.Module):
    """Set abstractions of several radii around the same S points, whose features stand beside each other."""

    def __init__(self, in_channels: int, scales: Sequence[tuple[float, int, list[int]]], num_points: int):
        """`scales`: radius, neighbors and widths of each."""
        super().__init__()
        self.scales = nn.ModuleList(SetAbstraction(in_channels, mlp, num_points, r, k) for r, k, mlp in scales)
        self.num_points = num_points

    def forward(self, points: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        queries = gather_neighbors(points, farthest_point_sample(points, self.num_points))
        scales = cast(Sequence[SetAbstraction], self.scales)
        return queries, torch.cat([scale.pool(points, features, queries) for scale in scales], dim=-1)


class FeaturePropagation(nn.Module):
    """Coarse features at dense points, by the three nearest coarse points, beside the features there; then linear, BN
    and ReLU for every width."""

    def __init__(self, in_channels: int, skip_channels: int, mlp: list[int]):
        super().__init__()
        widths = [in_channels + skip_channels, *mlp]
        self.linears = nn.ModuleList(nn.Linear(before, after) for before, after in zip(widths, mlp))
        self.norms = nn.ModuleList(BatchNorm(width) for width in mlp)

    def forward(self, dense: Tensor, skip: Tensor | None, coarse: Tensor, features: Tensor) -> Tensor:
        """Dense points (B, N, 3), their features (B, N, C) or None; coarse points (B, M, 3), features -> (B, N, C')."""
        first = cast(nn.Linear, self.linears[0])
        # W [interpolated; skip] = interpolated W₁ f + W₂ skip: the first product on M rows; the weights sum to 1
        of_coarse, of_skip = first.weight.split([features.shape[-1], first.in_features - features.shape[-1]], dim=1)
        x = three_interpolate(F.linear(features, of_coarse, first.bias), *three_nn(dense, coarse))
        x = x if skip is None else x + F.linear(skip, of_skip)
        x = F.relu(self.norms[0](x))
        for linear, norm in zip(self.linears[1:], self.norms[1:]):
            x = F.relu(norm(linear(x)))
        return x


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


# Of the part segmentation, radius, neighbors and widths of the balls around 512 and then 128 points; the widths of the
# feature propagation, from the coarsest.
GROUPINGS = {
    "single": (
        [[(0.2, 64, [64, 64, 128])], [(0.4, 64, [128, 128, 256])]],
        [[256, 256], [256, 128], [128, 128, 128]],
    ),
    "multi": (
        [
            [(0.1, 32, [32, 32, 64]), (0.2, 64, [64, 64, 128]), (0.4, 128, [64, 96, 128])],
            [(0.4, 64, [128, 128, 256]), (0.8, 128, [128, 196, 256])],
        ],
        [[256, 256], [256, 128], [128, 128]],
    ),
}


@MODELS.register_module()
class PointNet2Segmenter(nn.Module):
    """Points (B, N, 3), N >= `num_points[0]`, category (B,) int64 -> logits (B, N, classes).

    Args:
        num_classes: classes of points (ShapeNetPart: 50 parts of all categories together).
        num_categories: size of the one-hot category (ShapeNetPart: 16), which joins the points at the last propagation,
            in both groupings (in the release in "multi" alone); 0 for a network that knows none.
        use_normals: normals (B, N, 3) enter as features of the points.
        grouping: 'single' (pointnet2_part_seg) or 'multi' (pointnet2_part_seg_msg_one_hot): balls of one or of several
            radii. Clouds are expected in the unit sphere.
        num_points: points of the two levels.
        dropout: of the head.
    """

    def __init__(
        self,
        num_classes: int = 50,
        num_categories: int = 16,
        use_normals: bool = True,
        grouping: str = "single",
        num_points: tuple[int, int] = (512, 128),
        dropout: float = 0.5,
    ):
        super().__init__()
        if grouping not in GROUPINGS:
            raise ValueError(f"grouping must be 'single' or 'multi', got {grouping!r}")
        self.num_categories, self.use_normals = num_categories, use_normals
        scales, mlps = GROUPINGS[grouping]
        layers, channels = nn.ModuleList(), [3 if use_normals else 0]
        for count, level in zip(num_points, scales):
            layers.append(MultiScaleAbstraction(channels[-1], level, count))
            channels.append(sum(mlp[-1] for *_, mlp in level))
        layers.append(SetAbstraction(channels[-1], [256, 512, 1024]))
        self.layers = layers
        channels[0] += 3 + num_categories  # the coordinates, as features of the points, and the category
        coarse, propagations = 1024, list[FeaturePropagation]()
        for skip, mlp in zip(reversed(channels), mlps):
            propagations.append(FeaturePropagation(coarse, skip, mlp))
            coarse = mlp[-1]
        self.propagations = nn.ModuleList(propagations)
        self.head = Head(coarse, [128], num_classes, dropout)

    def forward(self, points: Tensor, normals: Tensor | None = None, category: Tensor | None = None) -> Tensor:
        check_input(points, self)
        if self.use_normals and normals is None:
            raise ValueError("normals are needed by a PointNet2Segmenter(use_normals=True), got None")
        one_hot = one_hot_category(points, category, self.num_categories).unsqueeze(1).expand(-1, points.shape[1], -1)
        features = normals if self.use_normals else None
        levels = [(points, features)]
        for layer in self.layers:
            levels.append(layer(*levels[-1]))
        levels[0] = points, torch.cat([one_hot, points] if features is None else [one_hot, points, features], dim=-1)
        coarse, deep = levels.pop()
        assert deep is not None
        for propagation in self.propagations:
            dense, skip = levels.pop()
            deep = propagation(dense, skip, coarse, deep)
            coarse = dense
        return self.head(deep)
