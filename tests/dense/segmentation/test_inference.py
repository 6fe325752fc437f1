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
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from attlas.backbones.channels import fill_channels
from attlas.config import load_config
from attlas.dense.room_files import LABELS
from attlas.dense.segmentation.inference import Segmentation, label_map
from attlas.drawing import palette
from attlas.images import read_image, read_map
from attlas.inference import Inferencer
from attlas.registry import MODELS

ROOT = Path(__file__).parents[3]


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
    long = dict(input="folder/" * 30, classes=[dict(entry, name="a class of a long name") for entry in classes] * 9)
    figure = asked.task.draw(next(asked.stream(asked.find(paths)))[1], results[0] | long)
    figure.draw_without_rendering()
    left, right = (axes.title.get_window_extent() for axes in figure.axes)
    assert 0 <= left.x0 < left.x1 < right.x0 < right.x1 <= figure.bbox.x1


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


def test_labels_of_one_channel():
    """mmseg gives them as numbers with a point."""
    labels = torch.zeros(1, 4, 5)
    labels[:, 3] = 1
    prediction = SegDataSample(pred_sem_seg=PixelData(data=labels), seg_logits=PixelData(data=torch.rand(1, 4, 5)))
    result = Segmentation().result(prediction, None, ("wall", "crack"), 10)
    assert [(c["label"], c["name"], c["share"]) for c in result["classes"]] == [(0, "wall", 0.75), (1, "crack", 0.25)]
    assert np.array_equal(label_map(result), labels[0].numpy())


def test_slices_of_volumes(tmp_path):
    """A network of one channel is asked of its checkpoint alone; color is refused."""
    config = load_config(ROOT / "configs/guided_attention/guided_attention_x101_chaos.py")
    config.model.backbone = dict(type="ResNet", depth=18, base_channels=8, in_channels=1)
    config.model.decode_head.update(in_channels=[8, 16, 32, 64], channels=8)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    names = config.train_dataloader.dataset.classes
    meta = dict(cfg=config.pretty_text, dataset_meta=dict(classes=names))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / "epoch_1.pth")
    gray = np.random.default_rng(0).integers(0, 256, (40, 64), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "gray.png"), gray)
    cv2.imwrite(str(tmp_path / "color.png"), np.dstack([gray, gray, 255 - gray]))
    asked = Inferencer(tmp_path / "epoch_1.pth", device="cpu")
    file, array, color = asked([str(tmp_path / "gray.png"), gray, str(tmp_path / "color.png")])
    assert label_map(file).shape == (40, 64)
    assert {entry["name"] for entry in file["classes"]} <= {*names}
    assert array["classes"] == file["classes"]
    assert "in color; slices and masks" in color["error"]
    filled = torch.nn.functional.pad(torch.tensor(gray)[None, None] / 255, (0, 0, 0, 24))
    with torch.inference_mode():
        logits = asked.model.encode_decode(filled, [dict(img_shape=(64, 64))])[..., :40, :]
    assert np.array_equal(label_map(file), logits[0].argmax(0).numpy())


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
