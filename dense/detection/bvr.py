"""RelationNet++ (BVR): boxes in other representations, as key points that every pixel of a detector's head attends to.

A side head finds the centers and the corners of objects on the levels of the pyramid. The best of them are the keys:
every pixel of the classification tower attends to centers, every pixel of the regression tower to corners, with a bias
by where a key lies as seen from the pixel (`attlas.kernels.bridging_attention`). The refined maps go to the predictors
of the stock head, whose targets, losses and decoding are unchanged. `BVRRetinaHead`, `BVRFCOSHead` and `BVRATSSHead`
take all options of mmdet's RetinaHead, FCOSHead and ATSSHead, and two of their own: `keypoint_head`, a dict of options
of `KeypointHead`, and `bridging`, one of options of `BVRMixin`.

`BVRRoIHead` does the same for Faster R-CNN. The paper reports such a detector, but no code or weights of it were
released. Which features of a proposal attend, from where and to what, is our inference.

Source: "RelationNet++: Bridging Visual Representations for Object Detection via Transformer Decoder", arXiv 2010.15831
(microsoft/RelationNet2@0930752).

Legend: B images, C channels of a map, L levels, P points of all levels (pixels of the first, row by row, then those of
the next), N queries, K keys, G ground-truth boxes of an image. Positions and boxes are in pixels, x before y.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.models.dense_heads import ATSSHead, FCOSHead, RetinaHead
from mmdet.models.roi_heads import Shared2FCBBoxHead, StandardRoIHead
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures.bbox import get_box_tensor
from mmdet.utils import reduce_mean
from mmengine.model import BaseModule, bias_init_with_prob
from torch import Tensor, nn

from ...checkpoint import Rules
from ...kernels import bridging_attention
from ...kernels.bridging_attention import location_bias
from ...kernels.dispatch import without_autocast
from ...registry import MODELS

# Where a box has its key point of a type: weights of (x1, x2) and of (y1, y2).
POINTS = {"top_left_corner": (1.0, 0.0), "bottom_right_corner": (0.0, 1.0), "center": (0.5, 0.5)}


def points_of(boxes: Tensor, kind: str) -> Tensor:
    """The key points (..., 2) of a type in boxes (..., 4)."""
    first, last = POINTS[kind]
    return boxes[..., :2] * first + boxes[..., 2:] * last


def grid(size: Sequence[int], stride: int, like: Tensor) -> Tensor:
    """Positions (H W, 2) of the pixels of a level of size (H, W), on the device of `like`, in its dtype or float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    y, x = (torch.arange(n, device=like.device, dtype=dtype) * stride + stride // 2 for n in size)
    return torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))], -1)


# --- key points ------------------------------------------------------------------------------------------------------


class Keys(NamedTuple):
    """The best key points of a type, by descending score."""

    scores: Tensor  # (B, K)
    positions: Tensor  # (B, K, 2)
    place: Tensor  # (B, K), the points where they were found


Levels = list[tuple[Tensor, Tensor]]  # logits (B, classes, H, W) and offsets (B, 2, H, W), in strides


@MODELS.register_module()
class KeypointHead(BaseModule):
    """Scores of every class and an offset for every type of key point, at every pixel of every level.

    All levels share the weights. The heads that use it fill in `num_classes`, `in_channels`, `strides` and `types`.

    Args:
        num_classes: number of classes.
        in_channels: number of channels of the maps.
        strides: stride of each level, in pixels.
        types: types of key points, of "top_left_corner", "bottom_right_corner" and "center".
        feat_channels: number of channels inside.
        stacked_convs: number of 3x3 convolutions of each type.
        shared_convs: number of 3x3 convolutions before them, which all types share.
        logits_convs: number of 3x3 convolutions before the scores, and before the offsets.
        norm_cfg: normalization of the convolutions; None for none.
        per_level: number of key points of a type that a level gives, at most.
        num_keys: number of key points of a type that all levels give, at most.
        iou: overlap with the box that a box with its corner within the radius of the target still has.
        loss_score: loss of the scores.
        loss_offset: loss of the offsets at positive points.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        strides: Sequence[int],
        types: Sequence[str] = tuple(POINTS),
        feat_channels: int = 256,
        stacked_convs: int = 2,
        shared_convs: int = 0,
        logits_convs: int = 1,
        norm_cfg: dict | None = None,
        per_level: int = 20,
        num_keys: int = 50,
        iou: float = 0.7,
        loss_score: Mapping[str, Any] = dict(type="mmdet.GaussianFocalLoss", alpha=2.0, gamma=4.0, loss_weight=0.25),
        loss_offset: Mapping[str, Any] = dict(type="mmdet.SmoothL1Loss", beta=1.0, loss_weight=1.0),
    ):
        super().__init__(dict(type="Normal", layer="Conv2d", std=0.01))
        for kind in types:
            if kind not in POINTS:
                raise ValueError(f"types must be of {', '.join(POINTS)}, got {kind!r}")
        self.num_classes, self.strides, self.iou = num_classes, tuple(strides), iou
        self.per_level, self.num_keys = per_level, num_keys
        self.loss_score, self.loss_offset = MMDET_MODELS.build(loss_score), MMDET_MODELS.build(loss_offset)

        def convolutions(channels: int, count: int, out_channels: int | None = None) -> nn.Sequential:
            inputs = [channels, *[feat_channels] * count]
            layers: list[nn.Module] = [
                ConvModule(inputs[i], feat_channels, 3, padding=1, norm_cfg=norm_cfg) for i in range(count)
            ]
            if out_channels is not None:
                layers.append(nn.Conv2d(inputs[count], out_channels, 3, padding=1))
            return nn.Sequential(*layers)

        own = feat_channels if shared_convs else in_channels
        last = feat_channels if stacked_convs else own
        self.shared = convolutions(in_channels, shared_convs)
        self.towers = nn.ModuleDict({kind: convolutions(own, stacked_convs) for kind in types})
        self.scores = nn.ModuleDict({kind: convolutions(last, logits_convs, num_classes) for kind in types})
        self.offsets = nn.ModuleDict({kind: convolutions(last, logits_convs, 2) for kind in types})

    def init_weights(self) -> None:
        super().init_weights()
        for head in self.scores.values():
            nn.init.constant_(head[-1].bias, bias_init_with_prob(0.01))  # type: ignore[index]

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Levels]:
        """Logits and offsets of every level, by type, of maps (B, C, H, W)."""
        found: dict[str, Levels] = {kind: [] for kind in self.towers}
        for x in maps:
            x = self.shared(x)
            for kind, tower in self.towers.items():
                features = tower(x)
                found[kind].append((self.scores[kind](features), self.offsets[kind](features)))
        return found

    def candidates(self, logits: Tensor, offsets: Tensor, stride: int) -> Keys:
        """The best `per_level` key points of a level: pixels whose score is the largest among their neighbors.

        Where there are fewer such pixels, others are among them, with a score of 0. Gradients reach the offsets, not
        the scores. A pixel may be there several times, for several classes.
        """
        height, width = logits.shape[2:]
        with torch.no_grad():
            scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
            peaks = scores * (F.max_pool2d(scores, 3, stride=1, padding=1) == scores)
            top, place = peaks.flatten(1).topk(min(height * width, self.per_level))
            place = place % (height * width)
            where = grid((height, width), stride, scores)[place]
        moved = offsets.flatten(2).gather(2, place.unsqueeze(1).expand(-1, 2, -1)).mT
        return Keys(top, where + moved.to(where.dtype) * stride, place)

    def keys(self, levels: Levels) -> Keys:
        """The best `num_keys` key points of all levels, or all that there are."""
        found, first = [], 0
        for (logits, offsets), stride in zip(levels, self.strides):
            keys = self.candidates(logits, offsets, stride)
            found.append(keys._replace(place=keys.place + first))
            first += logits[0, 0].numel()
        scores, positions, place = (torch.cat(parts, 1) for parts in zip(*found))
        scores, best = scores.topk(min(self.num_keys, scores.shape[1]))
        return Keys(scores, positions.gather(1, best.unsqueeze(2).expand(-1, -1, 2)), place.gather(1, best))

    def targets(self, boxes: Tensor, labels: Tensor, kind: str, sizes: Sequence[Sequence[int]]):
        """What the points of an image should say.

        On every level the pixel nearest to the key point of a box is positive. Around it the score falls as a Gaussian,
        as wide as the box is large. Of several boxes the one with the highest score at a point counts there.

        Args:
            boxes: boxes (G, 4) as (x1, y1, x2, y2).
            labels: classes (G,), int64.
            kind: type of key point.
            sizes: height and width of each level.

        Returns:
            offsets (P, 2) in strides, scores (P, classes), and which points are positive (P,).
        """
        points = torch.cat([grid(size, stride, boxes) for size, stride in zip(sizes, self.strides)])
        counts = torch.tensor([h * w for h, w in sizes], device=boxes.device)
        level = torch.arange(len(counts), device=boxes.device).repeat_interleave(counts)
        strides, last = (
            torch.tensor(numbers, device=boxes.device, dtype=points.dtype)
            for numbers in (self.strides, [[w - 1, h - 1] for h, w in sizes])
        )
        half = (strides / 2).floor()
        best, who = points.new_full((len(points),), -1.0), torch.zeros_like(level)
        targets = points_of(boxes.to(points.dtype), kind)
        width, height = (boxes[:, 2:] - boxes[:, :2]).to(points.dtype).clamp(min=0).unbind(1)
        deviation = (2 * gaussian_radius(height, width, self.iou) + 1) / 6
        for first in range(0, len(boxes), BOXES):  # so that memory does not grow with the number of boxes
            part = slice(first, first + BOXES)
            # the nearest pixel of each level, the first of two: (G, L, 2)
            pixel = ((targets[part, None] - half[:, None]) / strides[:, None] - 0.5).ceil()
            pixel = torch.minimum(pixel.clamp(min=0), last) * strides[:, None] + half[:, None]
            squared = (points - pixel[:, level]).square().sum(-1)
            score, strongest = torch.exp(-squared / (2 * deviation[part, None].square())).max(0)
            better = score > best
            best, who = torch.where(better, score, best), torch.where(better, strongest + first, who)
        positive = best == 1
        scores = points.new_zeros(len(points), self.num_classes)
        offsets = torch.zeros_like(points)
        if len(boxes):
            scores[torch.arange(len(points), device=boxes.device), labels[who]] = best
            moved = (targets[who] - points) / strides[level].unsqueeze(1)
            offsets = torch.where(positive.unsqueeze(1), moved, offsets)
        return offsets, scores, positive

    def loss(self, found: Mapping[str, Levels], batch_gt_instances: Sequence[Any]) -> dict[str, Tensor]:
        """The two losses, divided by the number of positive points of all types, images and processes, 1 at least.

        Args:
            found: what `forward` gave.
            batch_gt_instances: mmdet's instances of every image, with `bboxes` and `labels`.
        """
        logits, offsets, wanted = [], [], []
        for kind, levels in found.items():
            sizes = [scores.shape[2:] for scores, _ in levels]
            for image, gt in enumerate(batch_gt_instances):
                wanted.append(self.targets(get_box_tensor(gt.bboxes), gt.labels, kind, sizes))
                logits += [scores[image].flatten(1).mT for scores, _ in levels]
                offsets += [moved[image].flatten(1).mT for _, moved in levels]
        wanted_offsets, wanted_scores, positive = (torch.cat(parts) for parts in zip(*wanted))
        count = reduce_mean(positive.sum().to(wanted_scores.dtype)).clamp(min=1)
        scores = torch.cat(logits).to(wanted_scores.dtype).sigmoid()
        moved = torch.cat(offsets)[positive].to(wanted_offsets.dtype)
        return dict(
            loss_keypoint_score=self.loss_score(scores, wanted_scores, avg_factor=count),
            loss_keypoint_offset=self.loss_offset(moved, wanted_offsets[positive], avg_factor=count),
        )


# Boxes whose scores at all points are held in memory at a time.
BOXES = 64


def gaussian_radius(height: Tensor, width: Tensor, iou: float) -> Tensor:
    """CornerNet's radius: a box whose corners each lie within it of those of the box still overlaps by `iou`."""
    around, area = height + width, height * width
    # both corners move the same way; both inward; both outward
    shifted = (around - (around.square() - 4 * area * (1 - iou) / (1 + iou)).clamp(min=0).sqrt()) / 2
    smaller = (2 * around - (4 * around.square() - 16 * area * (1 - iou)).clamp(min=0).sqrt()) / 8
    larger = ((4 * iou**2 * around.square() + 16 * iou * area * (1 - iou)).sqrt() - 2 * iou * around) / (8 * iou)
    return torch.stack([shifted, smaller, larger]).amin(0)


def features_at(maps: Sequence[Tensor], place: Tensor) -> Tensor:
    """Features (B, K, C) of maps (B, C, H, W) at some of their points (B, K)."""
    found, first = [], 0
    for x in maps:
        x = x.flatten(2)
        at, size = place - first, x.shape[2]
        taken = x.gather(2, at.clamp(0, size - 1).unsqueeze(1).expand(-1, x.shape[1], -1))
        found.append(taken.where(((at >= 0) & (at < size)).unsqueeze(1), 0))
        first += size
    return torch.stack(found).sum(0).mT


# --- attention -------------------------------------------------------------------------------------------------------


class LocationTable(BaseModule):
    """A positive number for every attention head and every difference of positions, of which the logarithm is a bias.

    It is a linear map of sines and cosines of both coordinates of the difference, as a table over whole differences.
    Since each of them belongs to one coordinate, the table is the sum of a row and a column, and is never multiplied
    out: the authors' code keeps all codes, 165 MB, in memory and in checkpoints.

    Args:
        dim: number of sines and cosines, a multiple of 4.
        num_heads: number of attention heads.
        base_size: number of differences that the table spans along each axis.
        temperature: ratio of the longest to the shortest wavelength.
    """

    codes: Tensor

    def __init__(self, dim: int, num_heads: int, base_size: int = 400, temperature: float = 1000.0):
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4 (sines and cosines of two coordinates), got {dim}")
        if base_size < 2:
            raise ValueError(f"base_size must be 2 at least, got {base_size}")
        reach = base_size // 2
        angles = torch.arange(-reach, reach + 1.0).unsqueeze(1) / temperature ** (torch.arange(dim // 4) * 4 / dim)
        self.register_buffer("codes", torch.cat([angles.sin(), angles.cos()], 1), persistent=False)
        self.project = nn.Linear(dim, num_heads)
        nn.init.normal_(self.project.weight, std=0.01)
        nn.init.zeros_(self.project.bias)

    def forward(self) -> Tensor:
        """(heads, Y, X), in float32 at least, whatever autocast says."""
        dtype = torch.promote_types(self.project.weight.dtype, torch.float32)
        with without_autocast(self.codes):
            of_x, of_y = self.project.weight.to(dtype).chunk(2, 1)
            row, column = of_x @ self.codes.to(dtype).mT, of_y @ self.codes.to(dtype).mT
            return column.unsqueeze(2) + row.unsqueeze(1) + self.project.bias.to(dtype).view(-1, 1, 1)


# What `bridging_attention` takes after v: table, positions of the queries and of the keys, step.
Location = tuple[Tensor, Tensor, Tensor, float]


class KeyAttention(BaseModule):
    """Attention of queries to the keys of a type. The projections are packed as in torch's MultiheadAttention."""

    def __init__(self, dim: int, num_heads: int, appearance: bool):
        super().__init__()
        self.num_heads = num_heads
        self.scale = None if appearance else 0.0
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, keys: Tensor, location: Location | None) -> Tensor:
        """(B, N, C) of queries (B, N, C) and keys (B, K, C)."""
        q, k, v = self._projected(query, keys)
        if location is None:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2)
        else:
            out = bridging_attention(q, k, v, *location, scale=self.scale)
        return self.out_proj(out.flatten(2))

    def weights(self, query: Tensor, keys: Tensor, location: Location | None) -> Tensor:
        """The weights (B, heads, N, K) of the keys in `forward`, for pictures of them."""
        q, k, _ = self._projected(query, keys)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        logits = scale * torch.einsum("bnhd,bkhd->bhnk", q, k)
        if location is not None:
            logits = logits + location_bias(*location)
        return logits.softmax(-1)

    def _projected(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (to_q, to_kv), (q_bias, kv_bias) = (
            x.split([len(x) // 3, len(x) - len(x) // 3]) for x in (self.in_proj_weight, self.in_proj_bias)
        )
        q = F.linear(query, to_q, q_bias).unflatten(2, (self.num_heads, -1))
        k, v = F.linear(keys, to_kv, kv_bias).unflatten(2, (2, self.num_heads, -1)).unbind(2)
        return q, k, v


class Bridge(BaseModule):
    """ReLU of the queries plus their attention to the key points of each type.

    Args:
        dim: number of channels of queries and keys, a multiple of the heads and of 4.
        num_types: number of types of key points.
        num_heads: number of attention heads.
        base_size: number of differences, in units, that the bias by location tells apart along each axis.
        appearance: whether the attention goes by the products of queries and keys.
        location: whether the attention goes by the location of keys.
        shared_location: whether the types share one table of the bias by location.
    """

    def __init__(
        self,
        dim: int,
        num_types: int,
        num_heads: int = 8,
        base_size: int = 400,
        appearance: bool = True,
        location: bool = True,
        shared_location: bool = True,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide the {dim} channels, got {num_heads}")
        if not (appearance or location):
            raise ValueError("appearance and location must not both be False: all keys would count the same")
        self.attentions = nn.ModuleList(KeyAttention(dim, num_heads, appearance) for _ in range(num_types))
        tables = (1 if shared_location else num_types) if location else 0
        self.locations = nn.ModuleList(LocationTable(dim, num_heads, base_size) for _ in range(tables))
        self.cells = (2 * (base_size // 2) + 1) / base_size  # of a table, for a difference of 1

    def forward(
        self,
        queries: Sequence[Tensor],
        query_positions: Sequence[Sequence[Tensor]],
        keys: Sequence[Tensor],
        key_positions: Sequence[Tensor],
        units: Sequence[float],
    ) -> list[Tensor]:
        """Refined queries (B, N, C) of every level.

        Args:
            queries: queries (B, N, C) of every level.
            query_positions: positions (B, N, 2) of the queries, by level and type.
            keys: features (B, K, C) of the key points of every type.
            key_positions: positions (B, K, 2) of the key points of every type.
            units: number of pixels that a difference of 1 stands for, by level.
        """
        tables = self._tables()
        refined = []
        for query, places, unit in zip(queries, query_positions, units):
            total = query
            locations = self._located(tables, places, key_positions, unit)
            for attention, key, location in zip(self.attentions, keys, locations, strict=True):
                total = total + attention(query, key, location)
            refined.append(total.relu())
        return refined

    def weights(
        self,
        query: Tensor,
        places: Sequence[Tensor],
        keys: Sequence[Tensor],
        key_positions: Sequence[Tensor],
        unit: float,
    ) -> list[Tensor]:
        """How much queries of one level attend to the key points of every type: (B, heads, N, K), for pictures of it.

        Args:
            query: queries (B, N, C).
            places: positions (B, N, 2) of the queries, by type.
            keys, key_positions, unit: as of `forward`.
        """
        locations = self._located(self._tables(), places, key_positions, unit)
        parts = zip(self.attentions, keys, locations, strict=True)
        return [each.weights(query, key, location) for each, key, location in parts]  # type: ignore[operator]

    def _tables(self) -> list[Tensor] | None:
        """The table of every type, or None without a bias by location."""
        tables = [location() for location in self.locations]
        return tables * (len(self.attentions) // len(tables)) if tables else None

    def _located(
        self, tables: list[Tensor] | None, places: Sequence[Tensor], key_positions: Sequence[Tensor], unit: float
    ) -> list[Location] | list[None]:
        """What the attention to every type takes as `location`."""
        if tables is None:
            return [None] * len(self.attentions)
        return [
            (table, place.to(table.dtype), key_place.to(table.dtype), self.cells / unit)
            for table, place, key_place in zip(tables, places, key_positions, strict=True)
        ]


# --- one-stage heads -------------------------------------------------------------------------------------------------

# The authors' names below the head, `bbox_head` of their detectors. The codes of the table are constant, and not kept.
RULES: Rules = [
    (r"relative_positional_encoding\.(\d+\.)?base_embedding$", None),
    (r"^bbox_head\.", r""),
    (r"^keypoint_head\.shared_layers\.", r"keypoint_head.shared."),
    (r"^keypoint_head\.keypoint_layers\.", r"keypoint_head.towers."),
    (r"^keypoint_head\.keypoint_cls_heads\.", r"keypoint_head.scores."),
    (r"^keypoint_head\.keypoint_offset_heads\.", r"keypoint_head.offsets."),
    (r"^(cls|reg)_transformer\.decoder\.", r"\1_bridge.attentions."),
    (r"^(cls|reg)_transformer\.relative_positional_encoding\.embedding", r"\1_bridge.locations.0.embedding"),
    (r"^(cls|reg)_transformer\.relative_positional_encoding\.(\d+)\.", r"\1_bridge.locations.\2."),
    (r"\.embedding_transform\.0\.conv\.", r".project."),
]


class BVRMixin:
    """Key points and attention to them, between the towers and the predictors of a head of mmdet.

    Args:
        keypoint_head: options of `KeypointHead`.
        bridging: options of `Bridge`, for both branches, and

            - cls_types, reg_types: types of the key points that the branches attend to;
            - shared_between_branches: whether the branches share the tables of the bias by location;
            - scale_position: whether the unit of location is each level's stride; else the first level's counts for
              all.
    """

    checkpoint_rules = RULES

    def __init__(
        self, *args, keypoint_head: Mapping[str, Any] | None = None, bridging: Mapping[str, Any] | None = None, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self._add_bridges(**(bridging or {}))
        strides = [stride[0] for stride in self.prior_generator.strides]  # type: ignore[attr-defined]
        types = tuple(dict.fromkeys((*self.cls_types, *self.reg_types)))
        given = dict(num_classes=self.num_classes, in_channels=self.in_channels)  # type: ignore[attr-defined]
        self.keypoint_head = KeypointHead(**given, strides=strides, types=types, **(keypoint_head or {}))

    def _add_bridges(
        self,
        cls_types: Sequence[str] = ("center",),
        reg_types: Sequence[str] = ("top_left_corner", "bottom_right_corner"),
        shared_between_branches: bool = False,
        scale_position: bool = False,
        **options,
    ) -> None:
        dim = self.feat_channels if self.stacked_convs else self.in_channels  # type: ignore[attr-defined]
        self.cls_types, self.reg_types, self.scale_position = tuple(cls_types), tuple(reg_types), scale_position
        self.cls_bridge = Bridge(dim, len(cls_types), **options)
        self.reg_bridge = Bridge(dim, len(reg_types), **options)
        if shared_between_branches:
            if len(self.cls_bridge.locations) != len(self.reg_bridge.locations):
                raise ValueError("shared_between_branches needs shared_location, or as many cls_types as reg_types")
            self.reg_bridge.locations = self.cls_bridge.locations

    def predict_level(self, level: int, cls_feat: Tensor, reg_feat: Tensor) -> tuple[Tensor, ...]:
        """What the stock head predicts from the features of its towers on a level."""
        raise TypeError(f"{type(self).__name__} must define predict_level")

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """What the stock head gives, from refined features."""
        return self._detect(x)[0]

    def _detect(self, x: Sequence[Tensor]) -> tuple[tuple[list[Tensor], ...], dict[str, Levels]]:
        """What the stock head gives, and what the key-point head gives."""
        found = self.keypoint_head(x)
        keys = {kind: self.keypoint_head.keys(levels) for kind, levels in found.items()}
        cls_feats, reg_feats = [], []
        for cls_feat in x:
            reg_feat = cls_feat
            for cls_conv in self.cls_convs:  # type: ignore[attr-defined]
                cls_feat = cls_conv(cls_feat)
            for reg_conv in self.reg_convs:  # type: ignore[attr-defined]
                reg_feat = reg_conv(reg_feat)
            cls_feats.append(cls_feat)
            reg_feats.append(reg_feat)
        cls_feats = self._refine(self.cls_bridge, cls_feats, [keys[kind] for kind in self.cls_types])
        reg_feats = self._refine(self.reg_bridge, reg_feats, [keys[kind] for kind in self.reg_types])
        outputs = map(self.predict_level, range(len(x)), cls_feats, reg_feats)
        return tuple(map(list, zip(*outputs))), found

    def _refine(self, bridge: Bridge, maps: list[Tensor], keys: list[Keys]) -> list[Tensor]:
        strides = self.keypoint_head.strides
        places = [grid(x.shape[2:], stride, x).expand(x.shape[0], -1, -1) for x, stride in zip(maps, strides)]
        refined = bridge(
            [x.flatten(2).mT for x in maps],
            [[place] * len(keys) for place in places],
            [features_at(maps, found.place) for found in keys],
            [found.positions for found in keys],
            strides if self.scale_position else strides[:1] * len(strides),
        )
        return [tokens.mT.reshape(x.shape) for tokens, x in zip(refined, maps)]

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """The losses of the stock head, and `loss_keypoint_score` and `loss_keypoint_offset`."""
        outputs, found = self._detect(x)
        gt, ignored, metas = unpack_gt_instances(batch_data_samples)
        losses = self.loss_by_feat(*outputs, gt, metas, ignored)  # type: ignore[attr-defined]
        return {**losses, **self.keypoint_head.loss(found, gt)}


@MODELS.register_module()
class BVRRetinaHead(BVRMixin, RetinaHead):
    """mmdet's RetinaHead on features that attend to key points."""

    def predict_level(self, level, cls_feat, reg_feat):
        return self.retina_cls(cls_feat), self.retina_reg(reg_feat)


@MODELS.register_module()
class BVRATSSHead(BVRMixin, ATSSHead):
    """mmdet's ATSSHead on features that attend to key points.

    Args:
        dcn_on_last_conv: whether the last convolution of each tower is deformable (DCNv2), as mmdet's FCOSHead has it.
    """

    def __init__(self, *args, dcn_on_last_conv: bool = False, **kwargs):
        self.dcn_on_last_conv = dcn_on_last_conv
        super().__init__(*args, **kwargs)

    def _init_layers(self):
        super()._init_layers()
        for tower in (self.cls_convs, self.reg_convs) if self.dcn_on_last_conv else ():
            last = tower[-1].conv
            deformable = dict(conv_cfg=dict(type="DCNv2"), norm_cfg=self.norm_cfg)
            tower[-1] = ConvModule(last.in_channels, last.out_channels, 3, padding=1, **deformable)

    def predict_level(self, level, cls_feat, reg_feat):
        boxes = self.scales[level](self.atss_reg(reg_feat)).float()
        return self.atss_cls(cls_feat), boxes, self.atss_centerness(reg_feat)


@MODELS.register_module()
class BVRFCOSHead(BVRMixin, FCOSHead):
    """mmdet's FCOSHead on features that attend to key points."""

    def predict_level(self, level, cls_feat, reg_feat):
        centerness = self.conv_centerness(reg_feat if self.centerness_on_reg else cls_feat)
        boxes = self.scales[level](self.conv_reg(reg_feat)).float()
        if not self.norm_on_bbox:
            boxes = boxes.exp()
        else:
            boxes = boxes.clamp(min=0) * (1 if self.training else self.strides[level])
        return self.conv_cls(cls_feat), boxes, centerness


# --- Faster R-CNN ----------------------------------------------------------------------------------------------------


@MODELS.register_module()
class BVRShared2FCBBoxHead(Shared2FCBBoxHead):
    """mmdet's Shared2FCBBoxHead, between whose shared layers and predictors something may happen."""

    def forward(self, x: Tensor, refine=lambda x: (x, x)) -> tuple[Tensor, Tensor]:
        """Scores and boxes of RoI features; `refine` makes features for either from the shared ones (R, channels)."""
        if self.with_avg_pool:
            x = self.avg_pool(x)
        x = x.flatten(1)
        for layer in self.shared_fcs:
            x = self.relu(layer(x))
        of_scores, of_boxes = refine(x)
        return self.fc_cls(of_scores), self.fc_reg(of_boxes)


class _Pyramid(tuple):
    """Maps, with what the key-point head found on them."""

    found: dict[str, Levels]


@MODELS.register_module()
class BVRRoIHead(StandardRoIHead):
    """mmdet's StandardRoIHead whose proposals attend to key points; its `bbox_head` is a BVRShared2FCBBoxHead.

    Our inference of the paper's Faster R-CNN, of which no code was released. A proposal is one query, its features
    behind the shared layers. For its scores it attends to centers, from its own center; for its box to corners, from
    its own corner of the same type. Keys are features of the pyramid at the key points, projected to as many channels.

    Args:
        strides: stride of each level of the pyramid that has key points.
        num_classes: number of classes of the key points.
        in_channels: number of channels of the pyramid.
        start_level: first level of the pyramid that has key points.
        keypoint_head: options of `KeypointHead`.
        bridging: options of `Bridge`.
    """

    def __init__(
        self,
        *args,
        strides: Sequence[int] = (8, 16, 32, 64),
        num_classes: int = 80,
        in_channels: int = 256,
        start_level: int = 1,
        keypoint_head: Mapping[str, Any] | None = None,
        bridging: Mapping[str, Any] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.start_level = start_level
        self.keypoint_head = KeypointHead(num_classes, in_channels, strides, **(keypoint_head or {}))
        dim = self.bbox_head.fc_cls.in_features
        self.key_features = nn.Linear(in_channels, dim)
        self.cls_types, self.reg_types = ("center",), ("top_left_corner", "bottom_right_corner")
        self.cls_bridge, self.reg_bridge = (
            Bridge(dim, len(types), **(bridging or {})) for types in (self.cls_types, self.reg_types)
        )

    def _with_keypoints(self, x: Sequence[Tensor]) -> _Pyramid:
        pyramid = _Pyramid(x)
        pyramid.found = self.keypoint_head(x[self.start_level :])
        return pyramid

    def forward(self, x, rpn_results_list, batch_data_samples=None):
        return super().forward(self._with_keypoints(x), rpn_results_list, batch_data_samples)

    def predict(self, x, rpn_results_list, batch_data_samples, rescale=False):
        return super().predict(self._with_keypoints(x), rpn_results_list, batch_data_samples, rescale)

    def loss(self, x, rpn_results_list, batch_data_samples):
        """The losses of the stock head, and `loss_keypoint_score` and `loss_keypoint_offset`."""
        pyramid = self._with_keypoints(x)
        losses = super().loss(pyramid, rpn_results_list, batch_data_samples)
        return {**losses, **self.keypoint_head.loss(pyramid.found, unpack_gt_instances(batch_data_samples)[0])}

    def _bbox_forward(self, x: _Pyramid, rois: Tensor) -> dict[str, Tensor]:
        features = self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)
        if self.with_shared_head:
            features = self.shared_head(features)
        scores, boxes = self.bbox_head(features, lambda tokens: self._refine(x, rois, tokens))
        return dict(cls_score=scores, bbox_pred=boxes, bbox_feats=features)

    def _refine(self, x: _Pyramid, rois: Tensor, tokens: Tensor) -> list[Tensor]:
        """Features (R, channels) for scores, and for boxes, of tokens (R, channels)."""
        keys = {kind: self.keypoint_head.keys(levels) for kind, levels in x.found.items()}
        features = {
            kind: self.key_features(features_at(x[self.start_level :], found.place)) for kind, found in keys.items()
        }
        unit = self.keypoint_head.strides[:1]
        refined = []
        for bridge, types in ((self.cls_bridge, self.cls_types), (self.reg_bridge, self.reg_types)):
            out = torch.zeros_like(tokens)
            for image in range(len(x[0])):
                mine = (rois[:, 0] == image).nonzero().squeeze(1)
                if len(mine):
                    (of_image,) = bridge(
                        [tokens[mine].unsqueeze(0)],
                        [[points_of(rois[mine, 1:], kind).unsqueeze(0) for kind in types]],
                        [features[kind][image : image + 1] for kind in types],
                        [keys[kind].positions[image : image + 1] for kind in types],
                        unit,
                    )
                    out = out.index_copy(0, mine, of_image.squeeze(0).to(out.dtype))
            refined.append(out)
        return refined
