"""The scope of the tests of segmentors, their rooms, and a checkpoint with images to ask it about."""

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
from attlas.registry import MODELS

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _scope():
    """mmseg's, as the configs of segmentors have it, whatever a Runner before left."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@pytest.fixture(scope="session")
def rooms(furnished):
    """The arguments of a `FurnishedRoomsMaps` of three small rooms."""
    return {"room_seed" if name == "seed" else name: value for name, value in furnished.items()}


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for number, size in enumerate(((48, 64), (50, 70))):
        image = cv2.resize(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8), size[::-1])
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder
