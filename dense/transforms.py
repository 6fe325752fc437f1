"""Reading the image of a pipeline of mmdet or mmseg, and what the network sees of it."""

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from torch import Tensor

from ..images import read_image
from ..registry import TRANSFORMS


@TRANSFORMS.register_module()
class ReadImage(BaseTransform):
    """`img` uint8 (H, W, 3), blue, green, red, as mmdet and mmseg expect it, from the file at `img_path`.

    It takes the place of LoadImageFromFile, and reads the formats of `attlas.images` with its checks. An image
    that EXIF turns is turned unless `height` and `width` of its annotations are those of the pixels as they are stored.

    Raises:
        ValueError: the file is no whole image, or of another size than its annotations say.
    """

    def transform(self, results: dict) -> dict:
        path, size = results["img_path"], (results.get("height"), results.get("width"))
        image = read_image(path)
        if None not in size and image.shape[:2] != size:
            image = read_image(path, upright=False)
            if image.shape[:2] != size:
                height, width = image.shape[:2]
                raise ValueError(
                    f"{path} has {width} x {height} pixels, and its annotations are of {size[1]} x {size[0]}: the "
                    "boxes may be another image's"
                )
        results["img"] = image[..., ::-1].copy()
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


def seen_pixels(model: Any, image: Tensor) -> np.ndarray:
    """What a network of mm sees, (3, H, W) behind its preprocessor, as pixels uint8 (H, W, 3), red, green, blue."""
    preprocessor, pixels = model.data_preprocessor, image
    if preprocessor._enable_normalize:
        pixels = pixels * preprocessor.std + preprocessor.mean
    turned = getattr(preprocessor, "_channel_conversion", False) or getattr(preprocessor, "channel_conversion", False)
    pixels = pixels if turned else pixels.flip(0)  # files come in as blue, green, red
    return pixels.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
