"""What of a detector's answer is explained: the class of one query, or a side of its box.

    network = Answers(detector)
    look(network, images, class_logit([3], [7]), layers)      # query 7 of the image, class 3

A query is one of a DETR, or a place and an anchor of a dense head (levels, rows, columns, anchors, in this order), or
a box that a first stage proposed (`Proposed`); before duplicates are removed. No query is guessed from a box:
`Detection.question` ranks them by their score.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from ...backbones.inspection.targets import Classes, Score

SIDES = ("left", "top", "right", "bottom")


class Found(NamedTuple):
    """What a detector says before duplicates are removed."""

    logits: Tensor  # (B, queries, classes)
    boxes: Tensor | None  # (B, queries, 4): left, top, right, bottom in pixels of the batch; None where not decoded


class Answers(nn.Module):
    """A detector as a function of images (B, 3, H, W), normalized: `Found`, differentiable.

    Args:
        detector: one-stage detector of mmdet, or a DETR, in inference mode. Its modules are below the name "detector".

    Raises:
        ValueError: it has no dense head, as detectors of two stages; see `Proposed`.
    """

    def __init__(self, detector: nn.Module):
        super().__init__()
        if getattr(detector, "bbox_head", None) is None:
            raise ValueError(
                f"a {type(detector).__name__} has no head that answers for whole images; one-stage detectors and DETRs "
                "have, and detectors that propose boxes and then look at them again are explained as Proposed"
            )
        self.detector = detector
        self.train(detector.training)

    def forward(self, images: Tensor) -> Found:
        answer: Any = self.detector(images, _samples(images), mode="tensor")
        logits, boxes = answer[:2]
        if isinstance(logits, Tensor):  # of all layers of a DETR's decoder
            return Found(logits[-1], _corners(boxes[-1], images.shape[-2:]))
        head: Any = self.detector.bbox_head
        return Found(_rows(logits, head.cls_out_channels), _decoded(head, boxes))


class Proposed(nn.Module):
    """What the second stage of a detector says of given boxes, as a function of images (B, 3, H, W), normalized, and
    boxes (B, R, 4), in pixels of the batch: `Found`, with a query for each box.

    The boxes are constants, so that a query stays what it is whatever is done to the network; why they were proposed is
    not explained. Methods of gradients take it; relevance is not propagated through the pooling of boxes.

    Its logits are logarithms of probabilities, with the background last, where the classes compete by a softmax. Its
    boxes are those of the best class.

    Args:
        detector: two-stage detector of mmdet with a StandardRoIHead (Faster R-CNN, Mask R-CNN), in inference mode. Its
            modules are below the name "detector".

    Raises:
        ValueError: another kind of second stage, as a cascade, whose stages move the boxes.
    """

    def __init__(self, detector: nn.Module):
        super().__init__()
        kind = type(getattr(detector, "roi_head", None))
        if kind is not StandardRoIHead:
            raise ValueError(
                f"a {type(detector).__name__} with a {kind.__name__} is not explained: of detectors that propose boxes "
                "and then look at them again, those with a StandardRoIHead are; besides, one-stage detectors and DETRs"
            )
        self.detector = detector
        self.train(detector.training)

    @torch.no_grad()
    def propose(self, image: Tensor) -> Tensor:
        """The boxes (1, R, 4) that the first stage proposes for an image (1, 3, H, W).

        Raises:
            ValueError: it proposes none.
        """
        detector: Any = self.detector
        (found,) = detector.rpn_head.predict(detector.extract_feat(image), _samples(image), rescale=False)
        if not len(found):
            raise ValueError("the first stage of the detector proposes no box for the image")
        return found.bboxes[None]

    def forward(self, images: Tensor, boxes: Tensor) -> Found:
        detector: Any = self.detector
        roi, rois = detector.roi_head, bbox2roi(list(boxes))
        extractor, head = roi.bbox_roi_extractor, roi.bbox_head
        features = extractor(detector.extract_feat(images)[: extractor.num_inputs], rois)
        logits, deltas = head(roi.shared_head(features) if roi.with_shared_head else features)
        if not head.loss_cls.use_sigmoid:
            logits = logits.log_softmax(-1)
        found = head.bbox_coder.decode(rois[:, 1:], deltas).view(len(rois), -1, 4)
        best = logits[:, : head.num_classes].argmax(-1) % found.shape[1]  # 0 of boxes that are those of all classes
        return Found(*(x.unflatten(0, boxes.shape[:2]) for x in (logits, found[torch.arange(len(rois)), best])))


def _samples(images: Tensor) -> list[DetDataSample]:
    size = tuple(images.shape[-2:])
    meta = dict(batch_input_shape=size, img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    return [DetDataSample(metainfo=dict(meta)) for _ in images]


def _corners(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Centers and sizes (B, Q, 4) as fractions, as corners in pixels."""
    scale = boxes.new_tensor([size[1], size[0]])
    center, half = boxes[..., :2] * scale, boxes[..., 2:] * scale / 2
    return torch.cat([center - half, center + half], -1)


def _rows(levels: Sequence[Tensor], width: int) -> Tensor:
    """Maps (B, anchors * width, h, w) of all levels as rows (B, queries, width)."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, width) for x in levels], 1)


def _decoded(head: Any, levels: Sequence[Tensor]) -> Tensor | None:
    """Boxes of heads with anchors, whose coder reads them; None of others."""
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

    if not isinstance(getattr(head, "bbox_coder", None), DeltaXYWHBBoxCoder):
        return None
    anchors = torch.cat(head.prior_generator.grid_priors([x.shape[-2:] for x in levels], device=levels[0].device))
    deltas = _rows(levels, 4)
    return head.bbox_coder.decode(anchors.expand(len(deltas), -1, -1), deltas)


def class_logit(classes: Classes, queries: Classes) -> Score:
    """The logit of a class of a query of `Found`; each one number for all samples, or one for each."""
    return Score(_class_logit, *(torch.as_tensor(x).reshape(-1).long() for x in (classes, queries)))


def _class_logit(found: Found, classes: Tensor, queries: Tensor) -> Tensor:
    batch, count, width = found.logits.shape
    _check(("class", classes, width), ("query", queries, count), batch=batch)
    return found.logits[torch.arange(batch), queries.expand(batch), classes.expand(batch)]


def box_side(side: str, queries: Classes) -> Score:
    """Where a side of the box of a query is, in pixels: one of SIDES."""
    if side not in SIDES:
        raise ValueError(f"side {side!r} is none of {', '.join(SIDES)}")
    number = SIDES.index(side)

    def of_box(found: Found, queries: Tensor) -> Tensor:
        if found.boxes is None:
            raise ValueError("the boxes of this head are not decoded: explain a class of the query")
        batch, count = found.boxes.shape[:2]
        _check(("query", queries, count), batch=batch)
        return found.boxes[torch.arange(batch), queries.expand(batch), number]

    return Score(of_box, torch.as_tensor(queries).reshape(-1).long())


def _check(*given: tuple[str, Tensor, int], batch: int) -> None:
    for name, numbers, count in given:
        if len(numbers) not in (1, batch):
            raise ValueError(f"{name}: {len(numbers)} numbers for {batch} images; give one, or one for each")
        wrong = numbers[(numbers < 0) | (numbers >= count)]
        if len(wrong):
            raise ValueError(f"{name} {int(wrong[0])}: the detector has 0 to {count - 1}")
