"""RISurConv: rotation-invariant surface attention-augmented convolutions for point clouds.

Paper: "RISurConv: Rotation Invariant Surface Attention-Augmented Convolutions for 3D Point Cloud Classification and
Segmentation", ECCV 2024, arXiv 2408.06110. Reference: cszyzhang/RISurConv@27c48dd (MIT).

A layer samples S points, takes the K nearest neighbors of each in order around its normal, describes the surface
between them by fourteen lengths and angles, and turns these into features:

    e = ReLU(BN(W₂ BN(W₁ properties)))                           (B, S, K, 64)   SurfaceEmbedding
    r = e + ReLU(BN(W (e - attention among the K neighbors)))   (B, S, K, 64)   OffsetAttention
    f = max_k ReLU(BN(W [r; features of the neighbors]))        (B, S, C)
    y = f + ReLU(BN(W (f - attention among the S points)))       (B, S, C)       OffsetAttention

Only rotation-invariant quantities enter, so the outputs are invariant too: exactly, up to rounding, and to ties between
points. Three things of the release would break that or make a cloud's answer depend on its batch; the defaults here do
not follow them, and options bring them back:

    reference_sign      "fixed" to +1 here; "rounding" leaves it to a rounding error
    axis_sign           "projection" here; "solver" leaves the group-all axis's sign to the eigen-solver
    encoder_scope       "cloud" here; "batch" lets the transformer attend across the batch

Followed: attention is normalized over the points of the cloud (`normalize="points"`), and the slot-0 neighbor, whose
side is fixed, is the one of lowest index (`neighbor_order="index"`; "distance" makes it the query itself, as the
authors' comment intends). The last layer takes its properties about the origin: clouds must be centered.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import (
    farthest_point_sample,
    gather_max,
    gather_neighbors,
    knn,
    local_reference_axis,
    neighbor_moments,
    principal_axis,
    residual_norm,
    surface_attention,
    surface_properties,
)
from ..kernels.checks import check_normals
from ..kernels.surface_properties import ordered_properties
from ..registry import MODELS
from .layers import BatchNorm, Head, Moments, check_input, one_hot_category

# The authors' names -> ours. `encoder_layer` is a copy that the release registers and never uses.
CHECKPOINT_RULES = [
    (r"^encoder_layer\..*", None),
    (r"^sc4\.", "group_all."),
    (r"^sc(\d)\.", r"layers.\1."),
    (r"^sa(\d)\.", r"layers.\1."),
    (r"^fp(\d)\.", r"propagations.\1."),
    (r"embedding\.0\.", "embedding.linear1."),
    (r"embedding\.1\.", "embedding.norm1."),
    (r"embedding\.2\.", "embedding.linear2."),
    (r"embedding\.3\.", "embedding.norm2."),
    (r"self_attention_0\.", "neighbor_attention."),
    (r"self_attention_1\.", "point_attention."),
    (r"(q|k|v|trans)_conv\.", r"\1."),
    (r"after_norm\.", "norm."),
    (r"risurconv\.0\.", "linear."),
    (r"risurconv\.1\.", "norm."),
    (r"mlp_convs\.(\d+)\.", r"mlp.\1.0."),
    (r"mlp_bns\.(\d+)\.", r"mlp.\1.1."),
    (r"^transformer_encoder\.", "encoder."),
    (r"^fc(\d)\.", r"head.linear\1."),
    (r"^conv(\d)\.", r"head.linear\1."),
    (r"^bn(\d)\.", r"head.norm\1."),
]

VARIANTS = {
    # num_points: S of the first layer; each next layer halves it
    "modelnet40": dict(num_classes=40, num_points=1024),
    "scanobjectnn": dict(num_classes=15, num_points=512),
    "fg3d_airplane": dict(num_classes=13, num_points=1024),
    "fg3d_car": dict(num_classes=20, num_points=1024),
    "fg3d_chair": dict(num_classes=33, num_points=1024),
}


class SurfaceEmbedding(nn.Module):
    """The fourteen properties (..., 14) -> (..., channels): linear, BN, linear, BN, then one ReLU.

    Nothing bends between the four, so they are one affine map, whose batch statistics follow from the mean and the
    covariance of the properties: in training, too, the hidden tensors never exist. No gradient reaches the properties.
    """

    def __init__(self, channels: int = 64, hidden: int = 32, properties: int = 14):
        super().__init__()
        self.linear1 = nn.Linear(properties, hidden, bias=False)
        self.norm1 = BatchNorm(hidden)
        self.linear2 = nn.Linear(hidden, channels, bias=False)
        self.norm2 = BatchNorm(channels)

    def forward(self, properties: Tensor) -> Tensor:
        with torch.autocast(properties.device.type, enabled=False):  # statistics need the digits
            moments = None
            if self.norm1.takes_batch:
                rows = properties.reshape(-1, properties.shape[-1])
                mean = rows.mean(0)
                centered = rows - mean
                moments = Moments(mean, centered.mT @ centered / len(rows), len(rows))
            weight = self.linear1.weight
            weight, bias = self.norm1.fold(weight, weight.new_zeros(len(weight)), moments)
            weight, bias = self.norm2.fold(self.linear2.weight @ weight, self.linear2.weight @ bias, moments)
        return F.relu(F.linear(properties, weight, bias))


class OffsetAttention(nn.Module):
    """x + ReLU(BN(W (x - attention(x)))) for x (B, S, K, C) among the neighbors, or (B, S, C) among the points."""

    def __init__(self, channels: int, normalize: str = "points"):
        super().__init__()
        self.q = nn.Linear(channels, channels // 4, bias=False)
        self.k = nn.Linear(channels, channels // 4, bias=False)
        self.v = nn.Linear(channels, channels)
        self.trans = nn.Linear(channels, channels)
        self.norm = BatchNorm(channels)
        self.normalize = normalize

    def forward(self, x: Tensor) -> Tensor:
        # W (x - A V x) = W x + A (-W V x): one product gives all four factors, and x - A V x is never written out
        norm = self.norm
        trans: Tensor = self.trans.weight
        bias: Tensor = self.trans.bias
        if not norm.takes_batch:
            trans, bias = norm.fold(trans, bias)
        q, k, v = self.q.weight, self.k.weight, -trans @ self.v.weight
        weight = torch.cat([trans, v, q, k])
        bias = torch.cat([bias, -trans @ self.v.bias, trans.new_zeros(len(q) + len(k))])
        x_trans, x_v, x_q, x_k = F.linear(x, weight, bias).split([len(trans), len(v), len(q), len(k)], dim=-1)
        t = x_trans + surface_attention(x_q, x_k, x_v, self.normalize)
        if not norm.takes_batch:
            return x + F.relu(t)
        y, mean, variance = residual_norm(x, t, norm.weight, norm.bias, norm.eps)
        norm.track(mean, variance, t.numel() // t.shape[-1])
        return y


class RISurConv(nn.Module):
    """One layer: features of S query points from their K neighbors in a source cloud.

    Args:
        in_channels: channels of the source features; 0 for none.
        out_channels: channels of the result.
        k: neighbors, at most the points of the source.
        normalize: "points" (the release) or "queries": second normalization of the neighbors' attention.
        neighbor_order: "index" (the release) or "distance": which neighbor stands in slot 0.
        reference_sign: "fixed" or "rounding" (the release), see `surface_properties`.
        width: channels of the surface embedding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        k: int,
        normalize: str = "points",
        neighbor_order: str = "index",
        reference_sign: str = "fixed",
        width: int = 64,
    ):
        super().__init__()
        if neighbor_order not in ("index", "distance"):
            raise ValueError(f"neighbor_order must be 'index' or 'distance', got {neighbor_order!r}")
        self.k, self.neighbor_order, self.reference_sign = k, neighbor_order, reference_sign
        self.embedding = SurfaceEmbedding(width)
        self.neighbor_attention = OffsetAttention(width, normalize)
        self.linear = nn.Linear(width + in_channels, out_channels)
        self.norm = BatchNorm(out_channels)
        self.point_attention = OffsetAttention(out_channels)

    def neighbors(
        self, points: Tensor, normals: Tensor, queries: Tensor, query_normals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Properties (B, S, K, 14) and index (B, S, K) of every query's neighbors, in order around its normal."""
        index = knn(queries, points, self.k)
        if self.neighbor_order == "index":
            # what topk yields on the GPUs that the release ran on: ascending, but for the farthest, which is last
            index = torch.cat([index[..., :-1].sort(-1).values, index[..., -1:]], dim=-1)
        step = 2 if queries.shape[1] >= 1024 else 1
        return surface_properties(points, normals, queries, query_normals, index, step, self.reference_sign)

    def forward(self, points, normals, features, queries, query_normals) -> Tensor:
        """points, normals (B, N, 3), features (B, N, C) or None, queries, query_normals (B, S, 3) -> (B, S, C')."""
        return self.convolve(*self.neighbors(points, normals, queries, query_normals), features)

    def convolve(self, properties: Tensor, index: Tensor, features: Tensor | None) -> Tensor:
        """Properties (B, S, K, 14), index (B, S, K), features (B, N, C) or None -> (B, S, C')."""
        surface = self.neighbor_attention(self.embedding(properties))
        if self.norm.takes_batch and features is None and len(self.linear.weight) < surface.shape[-1]:
            # the moments of r would be more than W r
            return self.point_attention(F.relu(self.norm(self.linear(surface)).max(2).values))
        # W [r; f] = W₁ r + W₂ f, and W₂ f before the gather: N products instead of S K. The batch's statistics follow
        # from the moments of [r; f], so that neither [r; f] nor W [r; f] exists: (B, S, K, C) is never in memory.
        with torch.autocast(surface.device.type, enabled=False):
            moments = None
            if self.norm.takes_batch:
                moments = _moments(surface, index, features)
            weight, bias = self.norm.fold(self.linear.weight, self.linear.bias, moments)
        of_surface, of_features = weight.split([surface.shape[-1], weight.shape[1] - surface.shape[-1]], dim=1)
        gathered, of = (None, None) if features is None else (F.linear(features, of_features), index)
        shift = bias.to(surface.dtype).expand(*surface.shape[:2], -1)
        return self.point_attention(gather_max(gathered, of, shift, surface, of_surface.to(surface.dtype)))


def _moments(surface: Tensor, index: Tensor, features: Tensor | None) -> Moments:
    """Of [surface; features at the index] over all neighbors."""
    wide = torch.promote_types(surface.dtype, torch.float32)  # sums over all neighbors need the digits
    shift = surface.new_zeros(surface.shape[-1], dtype=torch.float64)
    if features is not None:
        center = features.detach().mean((0, 1), dtype=torch.float64)
        features, shift = features.to(wide) - center.to(wide), torch.cat([shift, center])
    sums = neighbor_moments(surface.to(wide), None if features is None else index, features)
    return Moments.of_sums(*sums, index.numel(), shift)


class GroupAll(RISurConv):
    """The last encoder layer: the whole cloud is the neighborhood of one query. Clouds must be centered.

    `axis_sign`: "projection" or "solver", the sign of the axis that stands in for the normal.
    """

    def __init__(self, in_channels: int, out_channels: int, axis_sign: str = "projection", **options):
        super().__init__(in_channels, out_channels, k=0, **options)
        self.axis_sign = axis_sign

    def forward(self, points, normals, features) -> Tensor:  # type: ignore[override]  # of a layer without queries
        axis = principal_axis(points - points.mean(1, keepdim=True), self.axis_sign)
        return self.convolve(*ordered_properties(points, normals, axis, reference_sign=self.reference_sign), features)


class Propagation(RISurConv):
    """A decoder layer: from coarse points to dense ones, then the dense features beside it and linear, BN, ReLU."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, mlp, k: int, **options):
        super().__init__(in_channels, out_channels, k, **options)
        widths = [out_channels + skip_channels, *mlp]
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), BatchNorm(b), nn.ReLU()) for a, b in zip(widths, widths[1:])
        )

    def forward(  # type: ignore[override]  # of a layer with features beside the queries
        self, points, normals, features, queries, query_normals, skip
    ) -> Tensor:
        """Coarse points and features (B, M, ...), dense queries and skip features (B, S, ...) -> (B, S, C')."""
        features = torch.cat([super().forward(points, normals, features, queries, query_normals), skip], dim=-1)
        for layer in self.mlp:
            features = layer(features)
        return features


class Pyramid(nn.Module):
    """The encoder that both networks share: layers on ever fewer points, each half of those before.

    Farthest point sampling is greedy, so samples of samples are a prefix of them: one run serves all layers.
    """

    def __init__(self, num_points: int, channels, neighbors, normal_neighbors: int, **options):
        super().__init__()
        if len(channels) != len(neighbors):
            raise ValueError(f"channels {tuple(channels)} and neighbors {tuple(neighbors)} must be of one length")
        self.num_points = [num_points >> level for level in range(len(channels))]
        self.normal_neighbors = normal_neighbors
        self.layers = nn.ModuleList(
            RISurConv(c_in, c_out, k, **options) for c_in, c_out, k in zip([0, *channels], channels, neighbors)
        )

    def encode(self, points: Tensor, normals: Tensor | None = None) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """(points (B, S, 3), normals (B, S, 3), features (B, S, C)) of the input (without features) and every layer."""
        check_input(points, self)
        if points.shape[1] < self.num_points[0]:
            raise ValueError(
                f"points must hold at least {self.num_points[0]} points a cloud (num_points of the network), "
                f"got {points.shape[1]}"
            )
        if normals is None:
            normals = local_reference_axis(points, self.normal_neighbors)
        check_normals(normals, points)
        sampled = farthest_point_sample(points, self.num_points[0])
        queries, query_normals = gather_neighbors(points, sampled), gather_neighbors(normals, sampled)
        levels: list[tuple[Tensor, Tensor, Tensor | None]] = [(points, normals, None)]
        for layer, count in zip(self.layers, self.num_points):
            queries, query_normals = queries[:, :count], query_normals[:, :count]
            levels.append((queries, query_normals, layer(*levels[-1], queries, query_normals)))
        return levels


@MODELS.register_module()
class RISurConvClassifier(Pyramid):
    """Point-cloud classification: points (B, N, 3) and unit normals (B, N, 3) or None -> logits (B, classes).

    Args:
        num_classes: size of the output.
        num_points: S of the first layer, at most N (512 n in the release's terms).
        channels: of the layers, then of the group-all layer.
        neighbors: K of the layers.
        encoder_layers: transformer encoder layers on the pooled feature; 0 for none.
        encoder_scope: "cloud" (a sequence of one), or "batch": the clouds of a batch attend to each other, as released.
        axis_sign: "projection" or "solver", see `GroupAll`.
        dropout: of the head.
        normal_neighbors: K of the local reference axes that stand in where no normals are given.
        options: normalize, neighbor_order, reference_sign, width, see `RISurConv`.
    """

    checkpoint_rules = CHECKPOINT_RULES

    def __init__(
        self,
        num_classes: int,
        num_points: int = 512,
        channels: tuple[int, ...] = (32, 64, 128, 256, 512),
        neighbors: tuple[int, ...] = (8, 16, 32, 64),
        encoder_layers: int = 3,
        encoder_scope: str = "cloud",
        axis_sign: str = "projection",
        dropout: float = 0.4,
        normal_neighbors: int = 32,
        **options,
    ):
        if encoder_scope not in ("cloud", "batch"):
            raise ValueError(f"encoder_scope must be 'cloud' or 'batch', got {encoder_scope!r}")
        *sampled, pooled = channels
        super().__init__(num_points, sampled, neighbors, normal_neighbors, **options)
        self.group_all = GroupAll(sampled[-1], pooled, axis_sign, **options)
        self.encoder_scope = encoder_scope
        self.encoder = None
        if encoder_layers:
            layer = nn.TransformerEncoderLayer(
                pooled, nhead=8, dim_feedforward=4 * pooled, dropout=0.05, batch_first=True
            )
            self.encoder = nn.TransformerEncoder(layer, encoder_layers, enable_nested_tensor=False)
        self.head = Head(pooled, [256, 128], num_classes, dropout)

    def forward(self, points: Tensor, normals: Tensor | None = None) -> Tensor:
        pooled = self.forward_features(points, normals)
        if self.encoder is not None:
            sequence_axis = 1 if self.encoder_scope == "cloud" else 0
            pooled = self.encoder(pooled.unsqueeze(sequence_axis)).squeeze(sequence_axis)
        return self.head(pooled)

    def forward_features(self, points: Tensor, normals: Tensor | None = None) -> Tensor:
        """The pooled, rotation-invariant feature (B, C) of each cloud."""
        return self.group_all(*self.encode(points, normals)[-1]).squeeze(1)


@MODELS.register_module()
class RISurConvSegmenter(Pyramid):
    """Segmentation: points, normals (B, N, 3), category (B,) int64 -> logits (B, N, classes). N >= `num_points`.

    Args:
        num_classes: classes of points (ShapeNetPart: 50 parts of all categories together).
        num_categories: size of the one-hot category (ShapeNetPart: 16); 0 for a network that knows none.
        num_points, channels, neighbors: of the encoder.
        decoder: channels of the propagation layers, from the coarsest: of the layer, and of the linear layer after it.
        decoder_neighbors: K of the propagation layers.
        dropout, normal_neighbors, options: see `RISurConvClassifier`.
    """

    checkpoint_rules = CHECKPOINT_RULES

    def __init__(
        self,
        num_classes: int = 50,
        num_categories: int = 16,
        num_points: int = 512,
        channels: tuple[int, ...] = (64, 128, 256, 512),
        neighbors: tuple[int, ...] = (8, 16, 32, 64),
        decoder: tuple[tuple[int, ...], ...] = ((512, 512), (512, 256), (256, 128), (128,)),
        decoder_neighbors: tuple[int, ...] = (64, 32, 32, 32),
        dropout: float = 0.4,
        normal_neighbors: int = 32,
        **options,
    ):
        super().__init__(num_points, channels, neighbors, normal_neighbors, **options)
        self.num_categories = num_categories
        coarse, propagations = channels[-1], list[Propagation]()
        for (out, *mlp), k, skip in zip(decoder, decoder_neighbors, [*channels[-2::-1], num_categories]):
            propagations.insert(0, Propagation(coarse, skip, out, mlp, k, **options))
            coarse = mlp[-1] if mlp else out + skip
        self.propagations = nn.ModuleList(propagations)
        self.head = Head(coarse, [128], num_classes, dropout)

    def forward(self, points: Tensor, normals: Tensor | None = None, category: Tensor | None = None) -> Tensor:
        one_hot = one_hot_category(points, category, self.num_categories)
        levels = self.encode(points, normals)
        levels[0] = (*levels[0][:2], one_hot.unsqueeze(1).expand(-1, points.shape[1], -1))
        coarse_points, coarse_normals, features = levels.pop()
        for propagation in reversed(self.propagations):
            dense_points, dense_normals, skip = levels.pop()
            features = propagation(coarse_points, coarse_normals, features, dense_points, dense_normals, skip)
            coarse_points, coarse_normals = dense_points, dense_normals
        return self.head(features)


def create(variant: str, **options) -> RISurConvClassifier:
    """The classifier of a variant: "modelnet40", "scanobjectnn", "fg3d_airplane", "fg3d_car" or "fg3d_chair"."""
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    return RISurConvClassifier(**{**VARIANTS[variant], **options})
