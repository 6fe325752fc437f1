"""Small detectors with random weights, in checkpoints as trainings write them."""

import os
from copy import deepcopy
from pathlib import Path
from unittest import mock

import torch
from coco_files import NAMES
from mmengine.config import Config
from mmengine.registry import DefaultScope

from attlas.backbones.channels import fill_channels
from attlas.config import load_config
from attlas.data import fill_classes
from attlas.registry import MODELS

CONFIGS = Path(__file__).parent / "configs"


def read(name: str, data: Path) -> Config:
    """A config of tests/configs on a folder that `write_coco` wrote."""
    with mock.patch.dict(os.environ, DATA=str(data), PRETRAINED="None"):
        config = load_config(CONFIGS / f"{name}.py")
    fill_channels(config.model)
    fill_classes(config.model, lambda: len(NAMES))
    return config


def write(path: Path, config: Config, seed: int = 0, **meta) -> Path:
    """Write random weights of the config's detector, which finds something: no class is unlikely."""
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(deepcopy(config.model))  # DETRs write into their config
    model.init_weights()
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("_cls.bias", "cls_branches", "scores.")) and name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
        elif "position_relation" in name or "_cls.weight" in name or "bridge.locations" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=NAMES), **meta)), path)
    return path
