"""How a matcher is asked (see `attlas.inference`): two images in, a list of matches and a dense field out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...data import one_of
from ...files import printable, replacing
from ...images import SUFFIXES, read_image
from ...tasks import Task
from .warps import matches

OPTIONS = ("mutual", "apart", "fusion")


class Matching(Task):
    """Pairs of image files, or of arrays uint8 (H, W, 3), red, green, blue, or grey (H, W), two by two as they are
    given. A result has `matches`, a list of dict(source [x, y], target [x, y], confidence, cycle_error), the surest
    first, in pixels of the images as they were given (the middle of the first pixel is (0.5, 0.5)); their sizes
    `source_size` and `target_size`, and `working_size`, at which the network saw both, all (height, width). `save`
    writes the dense field, NAME_matches.npz: `places` (H, W, 2), for each pixel of the source its place in the target,
    and `confidence` (H, W)."""

    suffixes = SUFFIXES
    top = 200
    together = 2

    def __init__(self) -> None:
        self.mutual: float | None = None
        self.apart = 0.0

    def configure(self, model, mutual: float | None = None, apart: float = 0.0, **options):
        """Set how matches are chosen.

        Args:
            model: a matcher.
            mutual: largest error of the way there and back, in pixels of the source; None for any.
            apart: least distance of two matches in pixels, in either image.
            **options: `fusion`, as of `Matcher.configure`, set on the model.
        """
        for name in options:
            one_of("Inferencer's option for a matcher", name, OPTIONS)
        for name, value in (("mutual", mutual), ("apart", apart)):
            if value is not None and not value >= 0:
                raise ValueError(f"{name} is {value!r}; it must be a number of pixels, at least 0.")
        model.configure(**options)
        self.mutual, self.apart = mutual, apart

    def read(self, path):
        return read_image(path)

    def take(self, source):
        image = np.asarray(source)
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
            raise ValueError(f"an image must be uint8 (H, W, 3) or (H, W), not {image.dtype} {image.shape}")
        return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image

    def join(self, parts):
        return dict(source=parts[0], target=parts[1])

    def prepare(self, transforms):
        from .datasets import PackMatches

        return PackMatches()  # what else the test data have, as key points, a pair of images has not

    def form(self, item):
        return ()  # images of any sizes share a batch

    def result(self, prediction, source, classes, top):
        there, back = prediction["there"], prediction["back"]
        if not (torch.isfinite(there.shares).all() and torch.isfinite(back.shares).all()):
            raise ValueError("the network gives NaN or infinite numbers for it")
        found = matches(there, back, self.mutual, self.apart, top)
        listed = [
            dict(source=list(s), target=list(t), confidence=c, cycle_error=e)
            for s, t, c, e in zip(*(found[key].tolist() for key in ("source", "target", "confidence", "cycle_error")))
        ]
        places, confidence = (each.float().cpu().numpy() for each in there.dense())
        return dict(
            matches=listed,
            source_size=list(there.frame.size),
            target_size=list(there.other.size),
            working_size=list(prediction["working_size"]),
            field=dict(places=places, confidence=confidence),
        )

    def said(self, result):
        sizes = [
            f"{width} x {height}" for height, width in (result[f"{s}_size"] for s in ("source", "target", "working"))
        ]
        found = result["matches"]
        mean = f", mean confidence {np.mean([m['confidence'] for m in found]):.2f}" if found else ""
        return f"{len(found)} matches{mean}; {sizes[0]} to {sizes[1]} pixels, both seen at {sizes[2]}"

    def draw(self, source: Any, result: Mapping[str, Any]):
        from .pictures import draw_matches  # here, because only pictures need Matplotlib

        pairs = [(m["source"], m["target"], m["confidence"]) for m in result["matches"]]
        field = result["field"]["places"]
        return draw_matches(source["source"], source["target"], pairs, field, printable(result["input"], 90))

    def save(self, source, result, stem):
        file = stem.with_name(f"{stem.name}_matches.npz")
        with replacing(file) as temporary:
            np.savez_compressed(temporary, **result.pop("field"))
        return dict(field=file.name)
