"""Segmentors as networks from images to labels and their probabilities, which `tools/export.py` writes to a file."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils.wrappers import Upsample
from torch import Tensor, nn

from ..export import ExportedModel
from .scores import OF_MASKS


class ExportedSegmentor(ExportedModel):
    """Images (B, C, H, W), normalized, to labels (B, H, W), int64, and the probability of each (B, H, W).

    The whole image is predicted at once, whatever `test_cfg` says of windows. All of it counts as image, and labels
    have its size.

    Args:
        model: segmentor of mmseg.
        steps: configs of the transforms of its test data.

    Raises:
        ValueError: the model is no `EncoderDecoder`, or its head is one of masks (Mask2Former, MaskFormer).
    """

    unknown_size = (512, 512)

    def __init__(self, model: Any, steps: Sequence[Mapping[str, Any]]):
        if not isinstance(model, EncoderDecoder):
            raise ValueError(f"a {type(model).__name__} cannot be exported whole: only mmseg's EncoderDecoder can")
        if isinstance(model.decode_head, OF_MASKS):
            raise ValueError(f"a {type(model.decode_head).__name__} cannot be exported. --dense exports its backbone")
        super().__init__(model, steps, ("labels", "probabilities"), **getattr(model.decode_head, "fixed_sizes", {}))
        part: Any
        for part in model.decode_head.modules():
            if type(part) is Upsample and part.size is None and float(part.scale_factor).is_integer():
                part.forward = partial(enlarged, part)
            elif isinstance(part, nn.AdaptiveAvgPool2d) and isinstance(part.output_size, int):
                vars(part)["forward"] = partial(averaged, part.output_size)

    def inputs(self, batch, size):
        """Noise in the size of a window, where the model is tested in windows."""
        if size is None and self.model.test_cfg.get("mode") == "slide":
            size = self.model.test_cfg.crop_size
        return super().inputs(batch, size)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model.encode_decode(image, [dict(img_shape=image.shape[2:])])
        if logits.shape[1] > 1:
            return logits.argmax(1), logits.softmax(1).amax(1)
        second = logits[:, 0].sigmoid()
        labels = second > self.model.decode_head.threshold
        return labels.long(), torch.where(labels, second, 1 - second)

    def difference(self, outputs, expected):
        """The largest difference of a probability, relative to the range of all, or the share of pixels with another
        label: where two classes are nearly equal, rounding decides."""
        other = (outputs[0] != expected[0]).double().mean()
        far = (outputs[1] - expected[1]).abs().max() / (expected[1].max() - expected[1].min()).clamp(min=1e-3)
        return float(torch.maximum(other, far.double()))


def enlarged(module: Any, x: Tensor) -> Tensor:
    """What mmseg's `Upsample` by a whole factor gives. It makes integers of the sizes, which would fix them."""
    size = [side * int(module.scale_factor) for side in x.shape[2:]]
    return F.interpolate(x, size, mode=module.mode, align_corners=module.align_corners)


def averaged(count: int, x: Tensor) -> Tensor:
    """What `AdaptiveAvgPool2d(count)` gives, as products of matrices: ONNX would keep the windows of the trace."""
    first = torch.arange(count, device=x.device).unsqueeze(1)
    for axis in (2, 3):
        side = x.shape[axis]
        place = torch.arange(side, device=x.device)
        window = (place >= first * side // count) & (place < ((first + 1) * side + count - 1) // count)
        weight = window.to(x.dtype)
        x = (x.movedim(axis, 3) @ (weight / weight.sum(1, keepdim=True)).mT).movedim(3, axis)
    return x
