"""What detectors and segmentors of mmdet and mmseg have in common as networks that `tools/export.py` writes to a
file."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..tasks import Exportable


class ExportedModel(Exportable):
    """A model whose input is an image (B, C, H, W), normalized. What its data preprocessor does besides is metadata.

    Args:
        model: detector or segmentor of `attlas.load`.
        steps: configs of the transforms of its test data.
        outputs: names of what `forward` gives.
        **why_fixed: reasons why sizes are fixed, beside those of the backbone.
    """

    unknown_size = (800, 1344)  # height and width to trace with where the test data do not say them

    def __init__(self, model: Any, steps: Sequence[Mapping[str, Any]], outputs: Sequence[str], **why_fixed: str):
        of_backbone = getattr(model.backbone, "fixed_sizes", {})
        fixed = {suffix: why_fixed | of_backbone.get(suffix, {}) for suffix in (".onnx", ".pt2")}
        pixels = model.data_preprocessor
        mean, std = [0.0] * 3, [1.0] * 3
        if getattr(pixels, "_enable_normalize", False):
            mean, std = pixels.mean.flatten().tolist(), pixels.std.flatten().tolist()
        colors = "RGB" if getattr(pixels, "_channel_conversion", False) else "BGR" if len(mean) == 3 else "gray"
        about = dict(
            layout=f"{colors}, (image - mean) / std, levels of 0 to 255",
            mean=",".join(f"{x:.6g}" for x in mean),
            std=",".join(f"{x:.6g}" for x in std),
        )
        if model.classes:
            about["classes"] = json.dumps(model.classes, ensure_ascii=False)
        super().__init__(type(model).__name__, outputs, about, fixed)
        self.model, self.steps, self.channels = model, steps, len(mean)

    def inputs(self, batch, size):
        """Noise of all scales, in which a model is the likelier to find something."""
        if size is None:
            scales = [step["scale"] for step in self.steps if isinstance(step.get("scale"), (list, tuple))]
            step = getattr(self.model.data_preprocessor, "pad_size_divisor", 1)
            size = [-(-n // step) * step for n in (scales[-1][::-1] if scales else self.unknown_size)]
        size = (size[0], size[-1])
        noise = [torch.randn(batch, self.channels, *(-(-n // step) for n in size)) for step in (1, 8, 32)]
        return (sum(F.interpolate(x, size=size, mode="bilinear") for x in noise) / len(noise) ** 0.5,)
