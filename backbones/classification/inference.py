"""How a classifier of images is asked (see `attlas.inference`)."""

import cv2
import numpy as np

from ... import images
from ...inference import Classification


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
