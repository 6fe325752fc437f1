"""A network of scanpaths asked about JSON files and arrays."""

import json

import cv2
import numpy as np
import pytest
import torch

from attlas.dense.gaze import OAT, CutObjects
from attlas.inference import Inferencer

BOXES = [[5 + 30 * c, 4 + 40 * r, 25 + 30 * c, 34 + 40 * r] for r in range(2) for c in range(3)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = OAT(rows=4, columns=6, dim=48, heads=4, mlp_dim=48, depth=(1, 1), pointer_dim=16, spp=2, max_length=5)
    network.classes, network.transforms = (), CutObjects((24, 24), grid=(4, 6))
    return network.eval()


def test_files_and_arrays_are_answered_alike(model, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    assert cv2.imwrite(str(tmp_path / "shelf.png"), image[..., ::-1])
    (tmp_path / "a.json").write_text(json.dumps(dict(image="shelf.png", boxes=BOXES, target=4)))
    (tmp_path / "b.json").write_text(json.dumps(dict(image="shelf.png", boxes=BOXES[:2], target=4)))
    (tmp_path / "c.json").write_text("{")
    (tmp_path / "d.json").write_text("[]")
    (tmp_path / "e.json").write_text(json.dumps(dict(image="shelf.png", boxes=[], target=0)))
    inferencer = Inferencer(model)
    first, second, *broken = inferencer([str(tmp_path), dict(image=image, boxes=BOXES, target=4)])
    broken, given = broken[:-1], broken[-1]
    assert first["target"] == 4
    assert first["paths"] == given["paths"]
    assert 1 <= len(first["paths"][0]) <= 5
    assert "looks:" in inferencer.task.said(first)
    assert "must be the number of a box, from 0 to 1" in second["error"]
    assert "no JSON" in broken[0]["error"]
    assert "must hold" in broken[1]["error"]
    assert "no objects" in broken[2]["error"]
    figure = inferencer.task.draw(inferencer.task.take(dict(image=image, boxes=BOXES, target=4)), first)
    assert len(figure.axes) == 1


def test_scenes_of_several_sizes_do_not_depend_on_each_other(model):
    image = np.random.default_rng(1).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    scenes = [dict(image=image, boxes=BOXES[:count], target=0) for count in (6, 1, 3)]
    together = Inferencer(model)(scenes)
    alone = [Inferencer(model)([scene])[0] for scene in scenes]
    assert [result["paths"] for result in together] == [result["paths"] for result in alone]
    wrong = Inferencer(model)([dict(image=image[..., 0], boxes=BOXES, target=0), dict(image=image)])
    assert "must be uint8" in wrong[0]["error"]
    assert "image, boxes and target" in wrong[1]["error"]
