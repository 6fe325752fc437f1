"""DGCNN: convolution on graphs that are drawn anew, in feature space, before every layer. Not rotation invariant.

Paper: "Dynamic Graph CNN for Learning on Point Clouds", ACM TOG 2019, arXiv 1801.07829.
Reference for the sizes: WangYueFt/dgcnn (MIT), model DGCNN.

    EdgeConv:  y_i = max over the K nearest j of LeakyReLU(BN(W [f_j - f_i; f_i]))
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import gather_neighbors, knn
from ..registry import MODELS
from .layers import BatchNorm, Head, check_input


def _leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


class EdgeConv(nn.Module):
    """Features (B, N, C) and neighbors (B, N, K) -> features (B, N, C')."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.linear = nn.Linear(2 * in_channels, out_channels, bias=False)
        self.norm = BatchNorm(out_channels)

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        # W [f_j - f_i; f_i] = W₁ f_j + (W₂ - W₁) f_i: products on N rows instead of N K
        neighbor, center = self.linear.weight.chunk(2, dim=1)
        edges = gather_neighbors(F.linear(features, neighbor), index)
        edges = edges + F.linear(features, center - neighbor).unsqueeze(2)
        return _leaky_relu(self.norm(edges).max(2).values)


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


def _nearest_features(features: Tensor, k: int) -> Tensor:
    """The k nearest rows of every row, (B, N, C) -> (B, N, k), in blocks of rows.

    In 64 dimensions trees do not help, and differences of coordinates take ten times as long as products; these are
    made harmless by centering first, so that no large common part eats the digits.
    """
    centered = features - features.mean(1, keepdim=True)
    blocks = centered.split(max(1, (1 << 24) // (len(features) * features.shape[1])), dim=1)
    return torch.cat([torch.cdist(block, centered).topk(k, dim=-1, largest=False).indices for block in blocks], dim=1)
