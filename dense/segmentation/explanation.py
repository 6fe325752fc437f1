"""What of a segmentor's answer is explained: the logit of a class at a pixel, or its mean over a region."""

from typing import Any

import torch
from torch import Tensor, nn

from ...backbones.inspection.targets import Classes, Score


class Logits(nn.Module):
    """A segmentor as a function of images (B, 3, H, W), normalized: logits (B, classes, H, W), differentiable.

    Args:
        segmentor: of mmseg, in inference mode. Its modules are below the name "segmentor". Whole images are seen, not
            windows.
    """

    def __init__(self, segmentor: nn.Module):
        super().__init__()
        self.segmentor = segmentor
        self.train(segmentor.training)

    def forward(self, images: Tensor) -> Tensor:
        size = tuple(images.shape[-2:])
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size, padding_size=[0] * 4)
        segmentor: Any = self.segmentor
        return segmentor.encode_decode(images, [dict(meta) for _ in images])


def pixel_logit(classes: Classes, row: int, column: int) -> Score:
    """The logit of a class at a pixel of logits (B, classes, H, W).

    Args:
        classes: one for all images, or one for each.
        row, column: of the pixel, from 0.
    """

    def at_pixel(logits: Tensor, chosen: Tensor) -> Tensor:
        height, width = logits.shape[2:]
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"the pixel {row}, {column} is not inside the image of {height} x {width} (rows, columns)")
        return _of_class(logits, chosen)[:, row, column]

    return Score(at_pixel, torch.as_tensor(classes).reshape(-1).long())


def region_logit(classes: Classes, regions: Tensor) -> Score:
    """The mean logit of a class over a region, of logits (B, classes, H, W).

    Args:
        classes: one for all images, or one for each.
        regions: bool (B, H, W), or (1, H, W) for all images; none is empty.
    """
    if regions.dtype != torch.bool or regions.ndim != 3 or not bool(regions.flatten(1).any(1).all()):
        raise ValueError(
            f"regions must be bool (B, H, W), none of them empty, got {regions.dtype} {tuple(regions.shape)}"
        )

    def over_region(logits: Tensor, chosen: Tensor, inside: Tensor) -> Tensor:
        if inside.shape[1:] != logits.shape[2:]:
            raise ValueError(f"regions have {tuple(inside.shape[1:])} pixels, and the logits {tuple(logits.shape[2:])}")
        weights = inside.to(logits) / inside.sum((1, 2), keepdim=True)
        return (_of_class(logits, chosen) * weights).sum((1, 2))

    return Score(over_region, torch.as_tensor(classes).reshape(-1).long(), regions)


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    """(B, H, W)."""
    batch, count = logits.shape[:2]
    if len(classes) not in (1, batch):
        raise ValueError(f"classes are {len(classes)}, and the batch has {batch} images: give one class, or {batch}")
    wrong = classes[(classes < 0) | (classes >= count)]
    if len(wrong):
        raise ValueError(f"class {int(wrong[0])}: the network has 0 to {count - 1}")
    return logits[torch.arange(batch), classes.expand(batch)]
