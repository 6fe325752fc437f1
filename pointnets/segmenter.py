"""Segmentation of point clouds as an MMEngine model: any network that maps points, normals and the category of their
cloud to logits of every point."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor

from .. import checkpoint  # noqa: F401  by which `init_cfg` loads weights
from ..data import UP_AXES, check_seed, one_of, positive
from ..registry import MODELS
from .datasets import category_parts
from .inference import PointSegmentation
from .scenes import SHAPES, balls
from .scenes import blocks as columns


@MODELS.register_module()
class PointSegmenter(BaseModel):
    """Cross-entropy training, point by point, and prediction of whole clouds of any size.

    A prediction covers a cloud by random draws of `num_points`, so that each of its points is in at least one; what a
    point gets in several is averaged. Points that are drawn twice fill up the last draw, and a smaller cloud. With
    `block`, it is each block of a scene that is covered so (see `scenes.blocks`, `scenes.balls`).

    Args:
        network: config of a module `network(points (B, N, 3), normals (B, N, 3) or None, category (B,) or None) ->
            logits (B, N, classes)`, whose `num_categories` says whether it takes a category.
        num_points: points of a draw.
        votes: covers of a cloud by draws, over which probabilities are averaged.
        seed: chooses the draws, which depend on nothing else but the size of the cloud.
        draws: draws that the network is given at a time.
        label_smoothing: share of the target spread over all classes.
        category: number of the category of clouds that come without one (see `PointSegmentation`).
        block: side of the blocks of a scene, in the unit of the points; None for clouds that are seen as a whole.
        overlap: blocks that lie over a point along an axis.
        up: the axis along which columns have no end, and that points up in pictures.
        block_shape: "column", or "ball" of the diameter `block`, which turns with the scene (see `scenes.balls`).

    `mode="loss"` gives {"loss", "accuracy"} (of points, in percent, with all classes competing); `mode="tensor"` the
    logits; and `mode="predict"` for each cloud {"log_probs" (M, classes), "point_labels" (M,) or None, "category" (that
    of the data, also where the network takes none), "num_categories" (of the network), "up", "cloud", "protocol",
    "votes", "seed"}, in the order of its points.
    """

    task = PointSegmentation

    def __init__(
        self,
        network: dict,
        num_points: int = 2048,
        votes: int = 1,
        seed: int = 0,
        draws: int = 16,
        label_smoothing: float = 0.0,
        category: int | None = None,
        block: float | None = None,
        overlap: int = 2,
        up: str = "z",
        block_shape: str = "column",
        data_preprocessor=None,
        init_cfg=None,
    ):
        super().__init__(data_preprocessor or dict(type="PointPreprocessor", of_points=True), init_cfg)
        self.network = MODELS.build(network)
        self.num_points, self.votes = positive("num_points", num_points), positive("votes", votes)
        self.seed, self.draws = check_seed(seed), positive("draws", draws)
        self.label_smoothing, self.category = label_smoothing, category
        if block is not None and not block > 0:
            raise ValueError(f"block is {block!r}; it must be positive, or None.")
        self.block, self.overlap = block, positive("overlap", overlap)
        self.up, self.block_shape = one_of("up", up, tuple(UP_AXES)), one_of("block_shape", block_shape, SHAPES)

    @property
    def checkpoint_rules(self) -> list:
        """The rules for the authors' files, which hold a network and no more."""
        return [*getattr(self.network, "checkpoint_rules", ()), (r"^(?!network\.)", "network.")]

    def forward(self, points, normals=None, labels=None, point_labels=None, identities=None, mode="tensor"):
        """Clouds of one size, stacked, for "loss" and "tensor"; lists of clouds for "predict"."""
        if mode == "predict":
            return [
                dict(
                    log_probs=self.predict(cloud, normals and normals[i], self._told(int(labels[i]))),
                    point_labels=point_labels and point_labels[i],
                    category=self._category(int(labels[i])),
                    num_categories=self.network.num_categories,
                    up=self.up if self.block else "y",  # shapes that are seen whole stand on y
                    cloud=identities[i][0],
                    protocol=identities[i][1],
                    votes=self.votes,
                    seed=self.seed,
                )
                for i, cloud in enumerate(points)
            ]
        logits = self.network(points, normals, labels if self.network.num_categories else None)
        if mode == "tensor":
            return logits
        if mode == "loss":
            rows, targets = logits.flatten(0, 1), point_labels.flatten()
            return dict(
                loss=F.cross_entropy(rows, targets, label_smoothing=self.label_smoothing),
                accuracy=(rows.detach().argmax(-1) == targets).float().mean() * 100,
            )
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    def _category(self, given: int) -> int | None:
        """The category of a cloud; a negative number is that of one that came without."""
        return self.category if given < 0 else given

    def _told(self, given: int) -> int | None:
        """The category for the network, which may take none."""
        count = self.network.num_categories
        if not count:
            return None
        found = self._category(given)
        if found is None or not 0 <= found < count:
            names = ", ".join(f"{i} {name}" for i, name in enumerate(category_parts(getattr(self, "classes", ()))))
            raise ValueError(
                f"the network must know the category of the cloud, 0 to {count - 1} ({names or 'of its data set'}), "
                f"and got {found}: give dict(pos=..., category=...), or model.category in the config"
            )
        return found

    def predict(self, points: Tensor, normals: Tensor | None = None, category: int | None = None) -> Tensor:
        """Points, normals (M, 3) and the category of one cloud -> log-probabilities (M, classes)."""
        order, origins = self._draws(points)
        total = None
        for rows, origin in zip(order.split(self.draws), origins.split(self.draws)):
            known = None if category is None else rows.new_full((len(rows),), category)
            placed = points[rows] - origin.unsqueeze(1)
            logits = self.network(placed, None if normals is None else normals[rows], known)
            probabilities = logits.float().softmax(-1).flatten(0, 1)
            if total is None:
                total = probabilities.new_zeros(len(points), probabilities.shape[1])
            total.index_add_(0, rows.flatten(), probabilities)
        assert total is not None
        mean = total / order.flatten().bincount(minlength=len(points)).unsqueeze(1)
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()

    def _draws(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers of the points of all draws (D, num_points), and the origins of the draws (D, 3)."""
        if self.block is None:
            order = cover(len(points), self.num_points, self.votes, self.seed).to(points.device)
            return order, points.new_zeros(len(order), 3)
        orders, origins, scene = [], [], points.cpu()
        if self.block_shape == "ball":
            found = balls(scene, self.block, self.overlap, self.num_points)
        else:
            found = columns(scene, self.block, self.overlap, self.up, self.num_points)
        for numbers, origin in found:
            orders.append(numbers[cover(len(numbers), self.num_points, self.votes, self.seed)])
            origins += [origin] * len(orders[-1])
        return torch.cat(orders).to(points.device), torch.stack(origins).to(points)


def cover(size: int, num_points: int, votes: int = 1, seed: int = 0) -> Tensor:
    """Draws (D, num_points) of the numbers 0..size-1, of which each vote holds every number: in random order, cut into
    draws, and from the beginning again to fill the last."""
    generator = torch.Generator().manual_seed(seed)
    draws = -(-size // num_points)
    orders = [torch.randperm(size, generator=generator) for _ in range(votes)]
    repeats = -(-draws * num_points // size)
    return torch.cat([order.repeat(repeats)[: draws * num_points].view(draws, num_points) for order in orders])
