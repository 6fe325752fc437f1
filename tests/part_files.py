"""A small ShapeNetPart in its published layout, of solids whose parts are clear: mugs, tables and lamps."""

import json
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config

from attlas.pointnets.datasets import ShapeNetPart
from attlas.registry import MODELS

FOLDERS = {"Lamp": "03636649", "Mug": "03797390", "Table": "04379243"}
FIRST = {"Lamp": 24, "Mug": 36, "Table": 47}  # label of the first part


def box(random, count, size, center):
    """Points (count, 3) and normals on the surface of a box, evenly by area."""
    half = np.array(size) / 2
    areas = np.array([half[1] * half[2], half[0] * half[2], half[0] * half[1]])
    axis = random.choice(3, count, p=areas / areas.sum())
    side = random.choice([-1.0, 1.0], count)
    points, normals = random.uniform(-1, 1, (count, 3)) * half, np.zeros((count, 3))
    points[np.arange(count), axis] = side * half[axis]
    normals[np.arange(count), axis] = side
    return points + center, normals


def tube(random, count, radius, low, high):
    """On the side of an upright cylinder."""
    angle = random.uniform(0, 2 * np.pi, count)
    normals = np.stack([np.cos(angle), np.zeros(count), np.sin(angle)], axis=1)
    return radius * normals + np.stack([0 * angle, random.uniform(low, high, count), 0 * angle], axis=1), normals


def ring(random, count, large, small, center):
    """On an upright torus."""
    a, b = random.uniform(0, 2 * np.pi, (2, count))
    normals = np.stack([np.cos(b) * np.cos(a), np.cos(b) * np.sin(a), np.sin(b)], axis=1)
    middle = large * np.stack([np.cos(a), np.sin(a), 0 * a], axis=1)
    return middle + small * normals + center, normals


def solid(category, random, count):
    """Rows (count, 7) of x y z nx ny nz label."""
    n, stretch = count // 4, random.uniform(0.8, 1.25)
    if category == "Lamp":  # foot, pole, shade
        parts = [
            (0, box(random, n, (0.8, 0.1, 0.8), (0, -1 * stretch, 0))),
            (1, tube(random, n, 0.06, -stretch, 0.4)),
            (2, tube(random, count - 2 * n, 0.5, 0.3, 0.9)),
        ]
    elif category == "Mug":  # handle, body
        parts = [
            (0, ring(random, n, 0.35, 0.07, (0.85 * stretch, 0, 0))),
            (1, tube(random, count - n, 0.8 * stretch, -0.8, 0.8)),
        ]
    else:  # top, legs
        legs = [
            (1, box(random, n // 2, (0.1, 1, 0.1), (x * stretch, -0.5, z))) for x in (-0.7, 0.7) for z in (-0.5, 0.5)
        ]
        parts = [(0, box(random, count - 4 * (n // 2), (1.6 * stretch, 0.1, 1.2), (0, 0.05, 0))), *legs]
    rows = [np.c_[points, normals, np.full(len(points), FIRST[category] + part)] for part, (points, normals) in parts]
    return random.permutation(np.concatenate(rows))


def write_parts(root: Path, train=2, val=1, test=1, count=300) -> Path:
    """Write so many shapes of each category for each split, of `count` points and a few more."""
    random = np.random.default_rng(0)
    shapes = dict(train=train, val=val, test=test)
    (root / "train_test_split").mkdir(parents=True)
    (root / "synsetoffset2category.txt").write_text("".join(f"{c}\t{folder}\n" for c, folder in FOLDERS.items()))
    for split, number in shapes.items():
        names = []
        for category, folder in FOLDERS.items():
            (root / folder).mkdir(exist_ok=True)
            for shape in range(number):
                name = f"{split}{shape}"
                rows = solid(category, random, count + shape)
                np.savetxt(root / folder / f"{name}.txt", rows, fmt="%.6f")
                names.append(f"shape_data/{folder}/{name}")
        listing = root / "train_test_split" / f"shuffled_{split}_file_list.json"
        listing.write_text(json.dumps(random.permutation(names).tolist()))
    return root


SEGMENTER = dict(
    model=dict(
        type="PointSegmenter",
        num_points=128,
        network=dict(
            type="RISurConvSegmenter", num_points=32, channels=(8, 8), neighbors=(4, 4), decoder=((8, 8), (8,)),
            decoder_neighbors=(4, 4), width=16,
        ),
    ),
    test_dataloader=dict(
        dataset=dict(
            type="RotatedViews",
            views=dict(z=1),
            dataset=dict(type="ShapeNetPart", root="none", transforms=[dict(type="UnitSphere")]),
            transforms=[dict(type="EstimateNormals", k=8, only_missing=True)],
        )
    ),
)  # fmt: skip


def write_segmenter(path: Path, classes=ShapeNetPart.CLASSES, **network) -> Path:
    """A checkpoint of a small random network, as MMEngine writes it."""
    torch.manual_seed(1)
    config = Config(SEGMENTER)
    config.model.network.update(num_classes=len(classes), **network)
    meta = dict(cfg=config.pretty_text, dataset_meta=dict(classes=classes))
    torch.save(dict(meta=meta, state_dict=MODELS.build(config.model).state_dict()), path)
    return path
