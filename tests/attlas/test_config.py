"""Every config builds: its network, its pipelines, its hooks; and each says what it was meant to say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from attlas.config import load_config, unread_variables
from attlas.data import build_transforms
from attlas.registry import HOOKS, METRICS, MODELS

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").glob("[!_]*/*.py"))


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """The folder of own shapes that risurconv_folder.py reads: three classes of clouds."""
    for name in ("cone", "cube", "ring"):
        for number in range(5):
            path = tmp_path / "shapes" / name / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.random.default_rng(number).normal(size=(600, 3)))
    monkeypatch.setenv("SHAPES", str(tmp_path / "shapes"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_builds(path, shapes):
    config = load_config(ROOT / path)
    with torch.device("meta"):  # some have a billion parameters
        model = MODELS.build(config.model)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    optimized = {id(parameter) for group in wrapper.param_groups for parameter in group["params"]}
    assert optimized >= {id(parameter) for parameter in model.parameters()}
    HOOKS.build(config.default_hooks.checkpoint)
    METRICS.build(config.test_evaluator)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        build_transforms(loader.dataset.get("dataset", loader.dataset).transforms)
    assert unread_variables(ROOT / path) == {}


def test_folder_of_own_shapes(shapes):
    assert load_config(ROOT / "configs/risurconv/risurconv_folder.py").model.network.num_classes == 3


@pytest.mark.parametrize("network", ["risurconv", "pointnet2", "dgcnn"])
def test_so3_configs_differ_in_the_rotation_alone(network):
    z, so3 = (Config.fromfile(ROOT / f"configs/{network}/{network}_furniture14{s}.py").to_dict() for s in ("", "_so3"))
    del so3["transforms"]  # a variable of the file
    for config, group in ((z, "z"), (so3, "SO3")):
        (rotation,) = [t for t in config["train_dataloader"]["dataset"]["transforms"] if t["type"] == "RandomRotation"]
        assert rotation.pop("group") == group
        assert rotation["up"] == "y"
    assert z == so3


@pytest.mark.parametrize("protocol", ["", "_so3"])
@pytest.mark.parametrize("network", ["risurconv", "pointnet2", "dgcnn"])
def test_weights_beside_the_configs_load(network, protocol):
    from attlas import checkpoint

    path = ROOT / f"configs/{network}/{network}_furniture14{protocol}.safetensors"
    if (network, protocol) == ("risurconv", ""):
        assert not path.exists()  # the demo trains these
        return
    model = MODELS.build(Config.fromfile(path.with_suffix(".py")).model)
    assert checkpoint.load(model, path).complete
    assert all(torch.isfinite(p).all() for p in model.parameters())
