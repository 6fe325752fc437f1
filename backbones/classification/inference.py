"""How a classifier of images is asked (see `attlas.inference`)."""

import copy
import difflib

import cv2
import numpy as np
import torch
from mmengine.dataset import pseudo_collate

from ... import images
from ...data import drawn
from ...files import printable
from ...tasks import Classification


class ImageClassification(Classification):
    """Image files, and arrays uint8 (H, W, 3), red, green, blue, or grey (H, W)."""

    suffixes = images.SUFFIXES
    unit = "image"

    def read(self, path):
        return dict(image=images.read_image(path))

    def take(self, source):
        image = np.asarray(source)
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
            raise ValueError(
                f"an image must be uint8 (H, W, 3), red, green, blue, or (H, W), not {image.dtype} {image.shape}"
            )
        if image.ndim == 2:
            image = np.broadcast_to(image[..., None], (*image.shape, 3))
        return dict(image=np.array(image, order="C"))

    def form(self, item):
        return tuple(item["image"].shape)

    def picture(self, source):
        image, most = source["image"], 800  # pixels of the longer side, which a large one is shrunk to
        if (longer := max(image.shape[:2])) <= most:
            return image
        height, width = (max(round(side * most / longer), 1) for side in image.shape[:2])
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    def question(self, model, source, target):
        """Targets are the logits of classes, by name or number; by default that of the likeliest class."""
        from ..inspection.targets import Question, cross_entropy, logit  # here, because only explanations need it

        data = drawn(model.transforms, copy.deepcopy(source), "the image", 0)
        batch = model.data_preprocessor(pseudo_collate([data]), False)["images"]
        with torch.no_grad():
            logits = model(batch)[0]
        number = int(logits.argmax()) if target is None else class_number(target, model.classes, len(logits))
        name = printable(model.classes[number]) if model.classes else f"class {number}"
        probability = float(logits.softmax(0)[number])
        packed = next(step for step in reversed(model.transforms.transforms) if hasattr(step, "mean"))
        pixels = data["image"] * packed.std + packed.mean
        picture = pixels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        said = f"{name} ({100 * probability:.0f} %)"
        return Question(model, (batch,), logit(number), said, picture, loss=cross_entropy(number))


def class_number(target: str, classes, count: int) -> int:
    """The class that a text names, by its name or its number.

    Raises:
        ValueError: there is none; names those that are near.
    """
    if target in classes:
        return list(classes).index(target)
    if target.isdecimal() and int(target) < count:
        return int(target)
    near = difflib.get_close_matches(target, classes, 4) or list(classes)[:20]
    raise ValueError(
        f"target {printable(target)!r} is no class: there are 0 to {count - 1}"
        + (f", such as {', '.join(map(printable, near))}" if near else "")
    )
