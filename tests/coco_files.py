"""Small data in COCO's format: bright rectangles and ellipses on a dark ground."""

import json
from pathlib import Path

import cv2
import numpy as np

NAMES = ("box", "ball")


def write_coco(folder: Path, images: int = 6, size: tuple[int, int] = (64, 96), seed: int = 0) -> Path:
    """Write `folder`/images/*.png and `folder`/objects.json, which is returned; ids of categories are 3 and 7."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    found: dict = dict(images=[], annotations=[], categories=[dict(id=3, name=NAMES[0]), dict(id=7, name=NAMES[1])])
    for number in range(images):
        image = rng.integers(0, 60, (*size, 3), dtype=np.uint8)
        found["images"].append(dict(id=number, file_name=f"{number}.png", height=size[0], width=size[1]))
        for _ in range(2):
            width, height = rng.integers(16, 32, 2)
            x, y = rng.integers(0, size[1] - width), rng.integers(0, size[0] - height)
            kind = int(rng.integers(2))
            mask = np.zeros(size, np.uint8)
            if kind:
                center = (int(x + width // 2), int(y + height // 2))
                cv2.ellipse(mask, center, (int(width // 2), int(height // 2)), 0, 0, 360, 1, -1)
            else:
                mask[y : y + height, x : x + width] = 1
            image[mask > 0] = (230, 120, 40) if kind else (40, 200, 90)
            x, y, width, height = map(int, cv2.boundingRect(mask))
            found["annotations"].append(
                dict(
                    id=len(found["annotations"]) + 1,
                    image_id=number,
                    category_id=(3, 7)[kind],
                    bbox=[x, y, width, height],
                    area=int(mask.sum()),
                    iscrowd=0,
                    segmentation=[cv2.findContours(mask, 0, 2)[0][0].flatten().tolist()],
                )
            )
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
    path = folder / "objects.json"
    path.write_text(json.dumps(found))
    return path
