"""Detectors as networks from images to boxes, scores and labels, which `tools/export.py` writes to a file.

mmdet decodes image by image and chooses by values, so that the shapes of its tensors depend on them. A graph has to
have them fixed: here a prediction has as many places as it can have objects. Those that are left over have score 0, a
box of zeros and the label -1. What is found is the same.

Two families are decoded: heads that inherit the predictions of mmdet's `BaseDenseHead` (RetinaNet, FCOS, ATSS, ours of
BVR), with class-wise NMS in the graph, and DETRs. mmdet shifts the boxes of every class to a place of their own before
its NMS; so do we, and boxes round alike.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import DeformableDETRHead, DETRHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import DetectionTransformer, SingleStageDetector
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...kernels import nms
from ..export import ExportedModel
from ..layers.deformable_attention import use_kernel

Detections = tuple[Tensor, Tensor, Tensor]  # boxes (B, N, 4), scores (B, N), labels (B, N)


def exportable(model: nn.Module, steps: Sequence[Mapping[str, Any]]) -> "ExportedDetector":
    """The network of a detector; see `attlas.tasks.Task.exportable`."""
    if isinstance(model, SingleStageDetector) and type(model).predict is SingleStageDetector.predict:
        return ExportedDenseHead(model, steps)
    if isinstance(model, DetectionTransformer) and type(model).predict is DetectionTransformer.predict:
        return ExportedDETR(model, steps)
    raise ValueError(
        f"a {type(model).__name__} cannot be exported whole: detectors of a single stage, which give boxes alone, and "
        "DETRs can. --dense exports the maps of its backbone"
    )


def inherits(kind: type, *names: str, of: Sequence[type]) -> bool:
    """Whether the methods of a class are those of one of some classes."""
    return all(any(getattr(kind, name) is getattr(base, name, None) for base in of) for name in names)


class ExportedDetector(ExportedModel):
    """Images (B, 3, H, W), normalized, to boxes (B, N, 4), scores (B, N) and labels (B, N), the best objects first.

    Boxes are (x1, y1, x2, y2) in pixels of the image and clipped to it. All of the image counts as image: nothing is
    known of padding, which `predict` leaves out of an attention and of the boxes.

    Args:
        model: detector.
        steps: configs of the transforms of its test data.
        **why_fixed: reasons why sizes are fixed, beside those of the backbone.
    """

    def __init__(self, model: Any, steps: Sequence[Mapping[str, Any]], **why_fixed: str):
        super().__init__(model, steps, ("boxes", "scores", "labels"), **why_fixed)

    @property
    def head(self) -> Any:
        return self.model.bbox_head

    def difference(self, outputs, expected):
        """The farthest that an object is from the nearest one of its label, in score, and in its box in image sizes.

        An object without a counterpart differs by its score: which of nearly equal scores is the last is rounding.
        """

        def one_way(found: Detections, others: Detections) -> Tensor:
            boxes, scores, labels = found
            other_boxes, other_scores, other_labels = others
            far = (boxes.unsqueeze(2) - other_boxes.unsqueeze(1)).abs().amax(-1) / expected[0].abs().max().clamp(min=1)
            far = torch.maximum(far, (scores.unsqueeze(2) - other_scores.unsqueeze(1)).abs())
            same = labels.unsqueeze(2) == other_labels.unsqueeze(1)
            return torch.minimum(far.where(same, torch.inf).amin(2), scores).max()

        return float(torch.stack([one_way(outputs, expected), one_way(expected, outputs)]).max())

    def remark(self, expected):
        found = int((expected[1] > 0).sum())
        return "" if found else "The network finds nothing in noise: the comparison says little. Compare on an image."


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows (B, K, C) of (B, N, C) at (B, K)."""
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))


class ExportedDenseHead(ExportedDetector):
    """A detector whose head gives scores and boxes at every place of its maps, and decodes them as `BaseDenseHead`.

    Raises:
        ValueError: the head decodes in another way, or its `test_cfg` asks for what is not here.
    """

    def __init__(self, model, steps):
        super().__init__(model, steps)
        kind, config = type(self.head), self.head.test_cfg
        methods = "predict", "predict_by_feat", "_predict_by_feat_single", "_bbox_post_process"
        if not isinstance(self.head, BaseDenseHead) or not inherits(kind, *methods, of=[BaseDenseHead]):
            raise ValueError(f"a {kind.__name__} decodes its predictions in a way of its own, which cannot be exported")
        if getattr(getattr(self.head, "loss_cls", None), "custom_cls_channels", False):
            raise ValueError("scores that the loss computes (custom_cls_channels) cannot be exported")
        suppression = dict(config.get("nms") or {})
        unknown = suppression.keys() - {"type", "iou_threshold", "class_agnostic", "split_thr"}
        if suppression.pop("type", "nms") != "nms" or "iou_threshold" not in suppression or unknown:
            raise ValueError(
                f"test_cfg.nms must be of type nms with an iou_threshold to export, got {config.get('nms')}"
            )
        for name in ("nms_pre", "max_per_img"):
            if config.get(name, 0) < 1:
                raise ValueError(f"test_cfg.{name} must be positive to export, got {config.get(name)}")

    def forward(self, image: Tensor) -> Detections:
        head, config = self.head, self.head.test_cfg
        logits, *others = head(self.model.extract_feat(image))
        sizes = [x.shape[2:] for x in logits]
        priors = head.prior_generator.grid_priors(sizes, dtype=logits[0].dtype, device=image.device)
        candidates = [self.candidates(*level) for level in zip(priors, logits, *others)]
        origins, deltas, scores, labels = (torch.cat(parts, 1) for parts in zip(*candidates))
        decoded = head.bbox_coder.decode(origins.flatten(0, 1), deltas.flatten(0, 1), max_shape=image.shape[2:])
        boxes = decoded.view(*scores.shape, 4)
        seen = scores > 0
        if config.get("min_bbox_size", -1) >= 0:
            seen = seen & ((boxes[..., 2:] - boxes[..., :2]) > config.min_bbox_size).all(-1)
        scores = scores.where(self.kept(boxes, scores, labels, seen), 0)
        scores, best = scores.topk(min(config.max_per_img, scores.shape[1]))
        found = scores > 0
        return rows(boxes, best).where(found.unsqueeze(2), 0), scores, labels.gather(1, best).where(found, -1)

    def candidates(self, priors: Tensor, logits: Tensor, deltas: Tensor, factors: Tensor | None = None):
        """The best `nms_pre` pairs of a prior and a class of a level: priors (B, K, 2 or 4), what the head says of the
        boxes (B, K, 4), scores (B, K), 0 where they are not above the threshold, and classes (B, K)."""
        head, config = self.head, self.head.test_cfg
        logits, deltas = (
            x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, channels)
            for x, channels in ((logits, head.cls_out_channels), (deltas, head.bbox_coder.encode_size))
        )
        scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]
        classes = scores.shape[2]
        scores, best = scores.flatten(1).topk(min(config.nms_pre, scores.shape[1] * classes))
        place = best // classes
        scores = scores.where(scores > config.get("score_thr", 0), 0)
        if factors is not None:
            scores = scores * factors.permute(0, 2, 3, 1).flatten(1).sigmoid().gather(1, place)
        return priors[place], rows(deltas, place), scores, best % classes

    def kept(self, boxes: Tensor, scores: Tensor, labels: Tensor, seen: Tensor) -> Tensor:
        """Which candidates (B, N) are seen and not suppressed."""
        config = self.head.test_cfg.nms
        if not config.get("class_agnostic", False):
            largest = boxes.where(seen.unsqueeze(2), 0).flatten(1).amax(1).view(-1, 1, 1)
            boxes = boxes + labels.to(boxes.dtype).unsqueeze(2) * (largest + 1)
        image = torch.arange(boxes.shape[0], device=boxes.device).unsqueeze(1).expand_as(labels)
        scores = scores.where(seen, -torch.inf)
        index = nms(boxes.flatten(0, 1), scores.flatten(), config.iou_threshold, groups=image.flatten())
        return torch.zeros_like(seen).flatten().index_fill(0, index, True).view(seen.shape) & seen


class ExportedDETR(ExportedDetector):
    """A DETR whose head decodes as mmdet's `DETRHead`.

    Raises:
        ValueError: the head decodes in another way.
    """

    def __init__(self, model, steps):
        sizes = "the sizes of the maps are numbers in the graph"
        fixed = dict(height=sizes, width=sizes)
        if not getattr(model, "free_batch", False):
            fixed["batch"] = "mmdet's DETRs take the number of images of the trace for a constant"
        super().__init__(model, steps, **fixed)
        kind, bases = type(self.head), [DETRHead, DeformableDETRHead]
        single = [] if getattr(kind, "decodes_as_detr", False) else ["_predict_by_feat_single"]
        if not inherits(kind, "predict_by_feat", *single, of=bases):
            raise ValueError(f"a {kind.__name__} decodes its predictions in a way of its own, which cannot be exported")
        use_kernel(model)  # mmcv's own attention looks at values

    def forward(self, image: Tensor) -> Detections:
        size = tuple(image.shape[2:])
        sample = DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=size))
        with KnownSizes():
            outputs = self.model.forward_transformer(self.model.extract_feat(image), [sample])
        logits, boxes = (x[-1] for x in self.head(**outputs))
        classes = logits.shape[2]
        if self.head.loss_cls.use_sigmoid:
            scores, labels = logits.sigmoid().flatten(1), None
        else:
            scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        most = min(self.head.test_cfg.get("max_per_img", logits.shape[1]), scores.shape[1])
        scores, best = scores.topk(most)
        place, labels = (best // classes, best % classes) if labels is None else (best, labels.gather(1, best))
        limits = boxes.new_tensor([size[1], size[0]]).repeat(2)
        return (bbox_cxcywh_to_xyxy(rows(boxes, place)) * limits).clamp(min=0).minimum(limits), scores, labels


class Size(tuple):
    """Height and width of a map, a row of the tensor of them: `tolist()` of a tensor in a trace asks its rows."""

    def tolist(self) -> list[int]:
        return list(self)


class KnownSizes(TorchFunctionMode):
    """The heights and widths of maps as numbers where mmdet, or a mixer of ours, loops over them: mmdet holds them in a
    tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch._shape_as_tensor:
            self.sizes.append(tuple(args[0].shape[2:]))
            return torch.tensor([0, 0, *args[0].shape[2:]])  # of which mmdet takes the last two
        if function is torch.Tensor.unbind and args[0].dtype == torch.int64 and args[0].shape == (len(self.sizes), 2):
            return tuple(map(Size, self.sizes))
        return function(*args, **(kwargs or {}))
