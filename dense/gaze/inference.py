"""How a network of scanpaths is asked (see `attlas.inference`): of a picture, boxes of its objects, and the one that is
searched, comes the order of looks."""

import json
from pathlib import Path

import numpy as np

from ...images import read_image
from ...tasks import Task


class Gaze(Task):
    """JSON files, {"image": file, "boxes": [[x1, y1, x2, y2], ...] in pixels, "target": number of a box}, the
    image beside the file; and such dicts, with the image as an array uint8 (H, W, 3). Boxes may be a detector's.

    A result has the `paths`, lists of numbers of boxes, `ended`, whether each chose the end of the search, and the
    `target`.
    """

    suffixes = (".json",)
    top = 1

    def read(self, path):
        try:
            scene = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
        if not isinstance(scene, dict) or not isinstance(scene.get("image"), str):
            raise ValueError(f'{path} must hold {{"image": ..., "boxes": ..., "target": ...}}.')
        return self.take(scene | dict(image=read_image(Path(path).parent / scene["image"])))

    def take(self, source):
        if not isinstance(source, dict) or not {"image", "boxes", "target"} <= source.keys():
            raise ValueError("a scene must be a dict of image, boxes and target.")
        image, boxes = np.asarray(source["image"]), np.asarray(source["boxes"], np.float64)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image is {image.dtype} {image.shape}; it must be uint8 (H, W, 3).")
        return dict(image=image, boxes=boxes, target=source["target"])

    def form(self, item):
        return tuple(item["crops"].shape[1:]), "cells" in item

    def result(self, prediction, source, classes, top):
        return {name: prediction[name] for name in ("paths", "ended", "target")}

    def said(self, result):
        path, more = result["paths"][0], len(result["paths"]) - 1
        looks = " > ".join(f"{place} (target)" if place == result["target"] else str(place) for place in path)
        end = "end" if result["ended"][0] else "not ended"
        return f"{len(path)} looks: {looks}, {end}" + (f"; and {more} other paths" if more else "")

    def draw(self, source, result):
        from .pictures import draw_scanpaths  # here, because only pictures need Matplotlib

        found = [
            ("predicted", source["image"], source["boxes"], path, result["target"]) for path in result["paths"][:3]
        ]
        return draw_scanpaths([found])
