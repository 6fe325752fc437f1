"""A segmentor is asked about files and arrays, from a checkpoint alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from attlas.backbones.channels import fill_channels
from attlas.config import load_config
from attlas.data import fill_classes
from attlas.dense.room_files import LABELS
from attlas.dense.segmentation.inference import label_map
from attlas.drawing import palette
from attlas.images import read_image, read_map
from attlas.inference import Inferencer
from attlas.registry import MODELS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """As a training of the rooms leaves it, but with random weights."""
    config = load_config(ROOT / "configs/semantic_fpn/semantic_fpn_lsnet_rooms.py", dict(pretrained="None"))
    fill_channels(config.model)
    fill_classes(config.model, lambda: len(LABELS))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(config.model)
    path = tmp_path_factory.mktemp("checkpoint") / "iter_1.pth"
    meta = dict(cfg=config.pretty_text, dataset_meta=dict(classes=LABELS))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for number, size in enumerate(((48, 64), (50, 70))):
        image = cv2.resize(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8), size[::-1])
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


def test_files_and_arrays(checkpoint, photos):
    asked = Inferencer(checkpoint, device="cpu")
    paths = sorted(map(str, photos.iterdir()))
    image = read_image(paths[0])
    results = asked([*paths, image, image[..., 0], np.zeros((4, 4), np.float32)])
    assert "must be uint8" in results.pop()["error"]
    for result, size in zip(results, ((48, 64), (50, 70), (48, 64), (48, 64))):
        labels, classes = label_map(result), result["classes"]
        assert labels.shape == size
        assert sum(entry["share"] for entry in classes) == pytest.approx(1)
        assert [entry["share"] for entry in classes] == sorted((entry["share"] for entry in classes), reverse=True)
        for entry in classes:
            assert (entry["name"], entry["share"]) == (LABELS[entry["label"]], (labels == entry["label"]).mean())
        json.dumps(result)
    assert results[2]["classes"] == results[0]["classes"]  # an array answers as its file
    data = dict(inputs=[torch.tensor(image[..., ::-1].copy()).permute(2, 0, 1)])
    with torch.inference_mode():
        logits = asked.model.encode_decode(asked.model.data_preprocessor(data)["inputs"], [dict(img_shape=(48, 64))])
    assert np.array_equal(label_map(results[0]), logits[0].argmax(0).numpy())
    figure = asked.task.draw(next(asked.stream(asked.find(paths)))[1], results[0])
    assert len(figure.axes) == 2


def test_windows(checkpoint, photos):
    """As the config says; one window over the whole image answers as the whole image."""
    config = load_config(ROOT / "configs/semantic_fpn/semantic_fpn_lsnet_rooms.py", dict(pretrained="None"))
    fill_channels(config.model)
    path = str(photos / "0.png")
    (whole,) = Inferencer(checkpoint, config, "cpu")(path)
    maps = []
    for side in (64, 32):
        config.model.test_cfg = dict(mode="slide", crop_size=(side, side), stride=(side // 2, side // 2))
        (found,) = Inferencer(checkpoint, config, "cpu")(path)
        maps.append(label_map(found))
    assert np.array_equal(maps[0], label_map(whole))
    assert not np.array_equal(maps[1], maps[0])


@pytest.mark.slow
def test_infer_writes_pictures_and_labels(checkpoint, photos, tmp_path):
    command = [sys.executable, "-W", "ignore", ROOT / "tools/infer.py", checkpoint, photos, "--out", tmp_path]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=os.environ | dict(CUDA_VISIBLE_DEVICES="")
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    for result, size in zip(results, ((48, 64), (50, 70))):
        labels = read_map(tmp_path / result["labels"])
        assert labels.shape == size
        assert np.array_equal(labels, label_map(result))
        assert np.array_equal(read_image(tmp_path / result["labels"]), palette(256)[labels])
        assert read_image(tmp_path / result["picture"]).shape[1] > 1000
