"""The configs build and learn, and MMEngine's runner trains a small one that tells what it should."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope

from attlas.config import load_config
from attlas.dense.video.conv_temporal_vad import VARIANTS
from attlas.engine import Runner
from attlas.inference import Inferencer
from attlas.registry import DATASETS, MODELS

CONFIGS = sorted((Path(__file__).parents[3] / "configs/conv_temporal_vad").glob("*.py"))
PUBLISHED = [path for path in CONFIGS if not path.stem.endswith("_walks")]


def built(config):
    with DefaultScope.overwrite_default_scope("attlas"):
        return MODELS.build(config.model)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_published_network(path):
    config = load_config(path)
    with torch.device("meta"):
        model = built(config)
    grey = path.stem.endswith("ped2")
    count = sum(parameter.numel() for parameter in model.network.parameters())
    assert count == VARIANTS["conv_temporal_vad_grey" if grey else "conv_temporal_vad_rgb"][1]
    assert (model.windows.length, model.windows.step, model.windows.context) == (9, 3, 3)
    for split in ("train", "val", "test"):
        data = config[f"{split}_dataloader"].dataset
        assert (data.split, data.length, data.step) == (split, 9, 3)
        assert data.transforms == [dict(type="PackClip", size=(256, 256), grey=grey)]


def small(walks, **changes):
    """The config of the built-in videos with fewer and smaller ones, and a smaller network."""
    config = load_config(next(path for path in CONFIGS if path not in PUBLISHED))
    steps = [dict(type="PackClip", size=(24, 32))]
    config.model.network.update(dims=(8, 8, 8), heads=2)
    for split in ("train", "val", "test"):
        files = {name: str(value) if isinstance(value, Path) else value for name, value in walks.items()}
        config[f"{split}_dataloader"].dataset.update(**files, transforms=steps)
    config.merge_from_dict(changes)
    return config


def test_a_step_of_the_small_config(walks):
    config = small(walks)
    model = built(config).train()
    with DefaultScope.overwrite_default_scope("attlas"):
        train = DATASETS.build(config.train_dataloader.dataset)
    batch = model.data_preprocessor(pseudo_collate([train[0], train[1]]), True)
    loss, _ = model.parse_losses(model(**batch, mode="loss"))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.slow
def test_a_training_tells_the_anomaly(walks, tmp_path):
    """From files to a checkpoint whose threshold finds the event."""
    config = small(walks, train_cfg=dict(max_epochs=12, val_interval=12), param_scheduler=[])
    config.train_dataloader.dataset.stride = 1
    config.work_dir = str(tmp_path)
    runner = Runner.from_cfg(config)
    runner.train()
    figures = {name: runner.message_hub.get_scalar(f"val/{name}").current() for name in ("raw_micro", "causal_macro")}
    assert figures["raw_micro"] > 80
    assert figures["causal_macro"] > 50
    test = runner.val_dataloader.dataset
    (result,) = Inferencer(tmp_path / "epoch_12.pth", device="cpu")(test[0]["video"].path)
    truth = np.flatnonzero(test[0]["truth"])
    assert any(event["start"] <= truth[-1] and event["end"] >= truth[0] for event in result["events"])
