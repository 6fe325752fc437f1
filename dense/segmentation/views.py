"""Multi-scale and flip test: an image is predicted in several sizes and mirrored, and the probabilities are averaged.

    python tools/test.py CONFIG CHECKPOINT --tta

A config says `tta_model`, and either `tta_views`, from which the views are made of its own test pipeline, or mmseg's
`tta_pipeline`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.structures import PixelData
from torch import Tensor, nn

from ...checkpoint import unwrapped
from ...data import one_of
from ...registry import MODELS
from .scores import probabilities

READERS = ("LoadAnnotations", "ReadMap")  # of maps, whose truth must stay that of the file


@MODELS.register_module()
class AveragedSegmentor(nn.Module):
    """A segmentor of mmseg whose prediction is the mean of the probabilities in all views of an image.

    mmseg's `SegTTAModel` does the same but that it keeps the scores of all views at once, and takes the sigmoid of one
    channel twice. `seg_logits` of the result are logarithms of the means or, of one channel, the means.

    Args:
        module: segmentor.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module: Any = module
        self.count = 0  # of views

    @torch.no_grad()
    def test_step(self, data: Mapping[str, Sequence]) -> list:
        """Samples of mmseg, with truth and metainfo of the first view.

        Args:
            data: lists of `inputs` and `data_samples`: of views, and in each of images.

        Raises:
            ValueError: a sample does not tell whether it is mirrored, so that nothing turns its prediction back.
        """
        count = len(data["inputs"])
        told: list[Any] = [sample for samples in data["data_samples"] for sample in samples]
        if not all("flip" in sample.metainfo for sample in told):
            raise ValueError(
                "samples do not tell whether they are mirrored: meta_keys of PackSegInputs must have 'flip' and "
                "'flip_direction'"
            )
        if count != self.count:
            self.count = count
            print_log(f"views of each image whose probabilities are averaged: {count}", logger="current")
        head: Any = unwrapped(self.module).decode_head
        samples: list = []
        sums: list[Tensor] = []
        for view in range(count):
            found = self.module.test_step({key: values[view] for key, values in data.items()})
            # float64, so that one view has the labels of the plain prediction
            these = [probabilities(sample.seg_logits.data.double(), head) for sample in found]
            samples = samples or found
            sums = [total + more for total, more in zip(sums, these)] if sums else these
        for sample, total in zip(samples, sums):
            mean = total / count
            if len(mean) > 1:
                labels = mean.argmax(0, keepdim=True)
                mean = mean.clamp(min=torch.finfo(torch.float32).tiny).log()
            else:
                labels = (mean > head.threshold).to(mean)
            sample.set_data(dict(pred_sem_seg=PixelData(data=labels), seg_logits=PixelData(data=mean.float())))
        return samples


def views(pipeline: Sequence[Mapping[str, Any]], ratios: Sequence[float], flip: bool = True) -> list[dict[str, Any]]:
    """A test pipeline that gives an image in several sizes and, in each, as it is and mirrored.

    Sizes are multiples of that to which the pipeline resizes an image or, if it does not, of the image's. Maps are read
    behind it, so that figures are of the pixels of their files. `meta_keys` get what turns predictions back.

    Args:
        pipeline: configs of the transforms of test data, with the reading of the image first.
        ratios: factors of the size.
        flip: whether to add mirrored views.

    Raises:
        ValueError: a ratio is not positive or leaves no pixel of a side, or there are none; the pipeline resizes twice
            or in another way, reads maps together with images, or already has several views.
    """
    numbers = isinstance(ratios, Sequence) and all(type(ratio) in (int, float) for ratio in ratios)
    if not numbers or not ratios or not all(0 < ratio < math.inf for ratio in ratios):
        raise ValueError(f"ratios must be a list of positive numbers, not {ratios!r}")
    if not isinstance(flip, bool):
        raise ValueError(f"flip must be True or False, not {flip!r}")
    steps = [dict(step) for step in pipeline]
    for step in steps:
        if "meta_keys" in step:
            step["meta_keys"] = tuple(dict.fromkeys((*step["meta_keys"], "flip", "flip_direction")))
    kinds = [str(step["type"]).rpartition(".")[2] for step in steps]
    if "ReadSlice" in kinds:
        raise ValueError("ReadSlice reads the map with the image: views would change it, too")
    resizes = [place for place, kind in enumerate(kinds) if "Resize" in kind]
    if len(resizes) > 1 or "TestTimeAug" in kinds or any(kinds[place] != "Resize" for place in resizes):
        raise ValueError(f"views are made of a pipeline with one Resize or none, not of {', '.join(kinds)}")
    place = resizes[0] if resizes else 1
    given = steps[place] if resizes else dict(type="mmseg.Resize", scale_factor=1.0, keep_ratio=True)
    named = [key for key in ("scale", "scale_factor") if given.get(key)]
    sizes = [given | {key: _times(given[key], ratio) for key in named} for ratio in ratios]
    for ratio, size in zip(ratios, sizes):
        if any(0 in (side if isinstance(side, tuple) else (side,)) for side in (size[key] for key in named)):
            raise ValueError(f"ratios: {ratio!r} times {given} leaves no pixel of a side")
    flips = [dict(type="mmseg.RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)[: 1 + flip]]
    maps = [step for step, kind in zip(steps, kinds) if kind in READERS]
    before, behind = (
        [step for step, kind in zip(steps[part], kinds[part]) if kind not in READERS]
        for part in (slice(place), slice(place + len(resizes), None))
    )
    return [*before, dict(type="TestTimeAug", transforms=[sizes, flips, *([step] for step in (*maps, *behind))])]


def _times(size: Any, ratio: float) -> Any:
    """A scale in whole pixels, or a factor, multiplied."""
    if isinstance(size, (list, tuple)):
        return tuple(_times(side, ratio) for side in size)
    return round(size * ratio) if isinstance(size, int) else size * ratio


def add_views(config: Config) -> None:
    """Have a config test with `tta_model`; changed in place.

    Raises:
        ValueError: it does not say how, or not of which pipeline; or as of `views`.
    """
    how = config.get("tta_pipeline") or config.get("tta_views")
    if not config.get("tta_model") or not how:
        raise ValueError(
            "the config has no tta_model with tta_views or tta_pipeline. Those of segmentors have "
            "configs/_base_/segmentation_runtime.py"
        )
    dataset = config.test_dataloader.dataset
    if "pipeline" not in dataset:
        raise ValueError(
            f"test_dataloader.dataset, {dataset.get('type')}, has no pipeline to make views of: name the data "
            "themselves, not what wraps them"
        )
    if not config.get("tta_pipeline"):
        if not isinstance(how, Mapping):
            raise ValueError(f"tta_views must be dict(ratios=..., flip=...), not {how!r}")
        for key in how:
            one_of("a key of tta_views", key, ("ratios", "flip"))
        try:
            how = views(dataset.pipeline, **{"ratios": (), **how})
        except ValueError as error:
            raise ValueError(f"tta_views: {error}") from None
    dataset.pipeline = how
    hooks = config.get("custom_hooks") or []
    config.custom_hooks = [*hooks, dict(type="PrepareTTAHook", tta_cfg=dict(config.tta_model))]
