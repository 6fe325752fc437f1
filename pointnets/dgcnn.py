"""DGCNN: convolution on graphs that are drawn anew, in feature space, before every layer. Not rotation invariant.

Paper: "Dynamic Graph CNN for Learning on Point Clouds", ACM TOG 2019, arXiv 1801.07829.
Reference for the sizes: WangYueFt/dgcnn (MIT), model DGCNN and the part segmentation.

    EdgeConv:  y_i = max over the K nearest j of LeakyReLU(BN(W [f_j - f_i; f_i]))
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import gather_neighbors, knn
from ..registry import MODELS
from .layers import BatchNorm, Head, check_input, one_hot_category


def _leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


class EdgeConv(nn.Module):
    """Features (B, N, C) and neighbors (B, N, K) -> features (B, N, C'). A further width adds a linear layer, BN and
    LeakyReLU on the edges, before the maximum."""

    def __init__(self, in_channels: int, out_channels: int, *further: int):
        super().__init__()
        self.linear = nn.Linear(2 * in_channels, out_channels, bias=False)
        self.norm = BatchNorm(out_channels)
        self.further = nn.ModuleList(
            nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(c_in, c_out, bias=False), BatchNorm(c_out))
            for c_in, c_out in zip([out_channels, *further], further)
        )

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        # W [f_j - f_i; f_i] = W₁ f_j + (W₂ - W₁) f_i: products on N rows instead of N K
        neighbor, center = self.linear.weight.chunk(2, dim=1)
        edges = gather_neighbors(F.linear(features, neighbor), index)
        edges = self.norm(edges + F.linear(features, center - neighbor).unsqueeze(2))
        for layer in self.further:
            edges = layer(edges)
        return _leaky_relu(edges.max(2).values)


@MODELS.register_module()
class DGCNNClassifier(nn.Module):
    """Points (B, N, 3), N >= k -> logits (B, classes). Normals are not used.

    Args:
        num_classes: size of the output.
        k: neighbors of the graphs.
        channels: of the edge convolutions.
        embedding: channels before pooling.
        dropout: of the head.
    """

    def __init__(
        self,
        num_classes: int,
        k: int = 20,
        channels: tuple[int, ...] = (64, 64, 128, 256),
        embedding: int = 1024,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.k = k
        self.layers = nn.ModuleList(EdgeConv(c_in, c_out) for c_in, c_out in zip([3, *channels], channels))
        self.embedding = nn.Linear(sum(channels), embedding, bias=False)
        self.norm = BatchNorm(embedding)
        self.head = Head(2 * embedding, [512, 256], num_classes, dropout, _leaky_relu)

    def forward(self, points: Tensor, normals: Tensor | None = None) -> Tensor:
        return self.head(self.forward_features(points))

    def forward_features(self, points: Tensor, normals: Tensor | None = None) -> Tensor:
        """The pooled feature (B, 2 x embedding): maximum and mean over the points."""
        check_input(points, self)
        features, index = points, knn(points, points, self.k)
        outputs: list[Tensor] = []
        for layer in self.layers:
            if outputs:
                index = _nearest_features(features.detach(), self.k)
            features = layer(features, index)
            outputs.append(features)
        embedded = _leaky_relu(self.norm(self.embedding(torch.cat(outputs, dim=-1))))
        return torch.cat([embedded.max(1).values, embedded.mean(1)], dim=-1)


class SpatialTransform(nn.Module):
    """Points (B, N, 3) and neighbors (B, N, K) -> a matrix (B, 3, 3) for each cloud, the identity in the beginning."""

    def __init__(self):
        super().__init__()
        self.edges = EdgeConv(3, 64, 128)
        self.embedding = nn.Linear(128, 1024, bias=False)
        self.norm = BatchNorm(1024)
        self.head = Head(1024, [512, 256], 9, 0.0, _leaky_relu)
        nn.init.zeros_(self.head.linear3.weight)
        self.head.linear3.bias.data.copy_(torch.eye(3).flatten())

    def forward(self, points: Tensor, index: Tensor) -> Tensor:
        embedded = _leaky_relu(self.norm(self.embedding(self.edges(points, index))).max(1).values)
        return self.head(embedded).view(-1, 3, 3)


@MODELS.register_module()
class DGCNNSegmenter(nn.Module):
    """Points (B, N, 3), N >= k, category (B,) int64 -> logits (B, N, classes). Normals are not used.

    A matrix of the whole cloud turns its points; three edge convolutions follow, of which the first takes the graph of
    the turned points. The head sees what all three gave, the maximum over the cloud, and the category.

    Args:
        num_classes: classes of points (ShapeNetPart: 50 parts of all categories together).
        num_categories: size of the one-hot category (ShapeNetPart: 16); 0 for a network that knows none.
        k: neighbors of the graphs.
        embedding: channels before pooling.
        dropout: behind the first two layers of the head.
    """

    def __init__(
        self,
        num_classes: int = 50,
        num_categories: int = 16,
        k: int = 40,
        embedding: int = 1024,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.k, self.num_categories = k, num_categories
        self.transform = SpatialTransform()
        self.layers = nn.ModuleList([EdgeConv(3, 64, 64), EdgeConv(64, 64, 64), EdgeConv(64, 64)])
        self.embedding = nn.Linear(3 * 64, embedding, bias=False)
        self.norm = BatchNorm(embedding)
        self.category = None
        if num_categories:
            self.category = nn.Sequential(nn.Linear(num_categories, 64, bias=False), BatchNorm(64), nn.LeakyReLU(0.2))
        width = embedding + (64 if num_categories else 0) + 3 * 64
        self.head = Head(width, [256, 256, 128], num_classes, dropout, _leaky_relu, dropped=2)

    def forward(self, points: Tensor, normals: Tensor | None = None, category: Tensor | None = None) -> Tensor:
        check_input(points, self)
        one_hot = one_hot_category(points, category, self.num_categories)
        features = points @ self.transform(points, knn(points, points, self.k))
        outputs: list[Tensor] = []
        for layer in self.layers:
            index = _nearest_features(features.detach(), self.k) if outputs else knn(features, features, self.k)
            features = layer(features, index)
            outputs.append(features)
        local = torch.cat(outputs, dim=-1)
        whole = _leaky_relu(self.norm(self.embedding(local)).max(1).values)
        if self.category is not None:
            whole = torch.cat([whole, self.category(one_hot)], dim=-1)
        return self.head(torch.cat([whole.unsqueeze(1).expand(-1, points.shape[1], -1), local], dim=-1))


def _nearest_features(features: Tensor, k: int) -> Tensor:
    """The k nearest rows of every row, (B, N, C) -> (B, N, k), in blocks of rows.

    In 64 dimensions trees do not help, and differences of coordinates take ten times as long as products; these are
    made harmless by centering first, so that no large common part eats the digits.
    """
    centered = features - features.mean(1, keepdim=True)
    blocks = centered.split(max(1, (1 << 24) // (len(features) * features.shape[1])), dim=1)
    return torch.cat([torch.cdist(block, centered).topk(k, dim=-1, largest=False).indices for block in blocks], dim=1)
