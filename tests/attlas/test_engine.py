import os
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import hooks
from mmengine.model import BaseModule, initialize
from mmengine.runner import load_checkpoint
from torch import nn

from attlas import backbones, checkpoint, config, download, engine, preflight, resumption
from attlas.registry import DATASETS, MODELS

TINY = Path(__file__).parents[1] / "configs" / "tiny.py"


class Trap:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """The tiny training, of 19 samples in batches of 4, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    found = config.load_config(TINY)
    found.work_dir = str(tmp_path / "work")
    found.experiment_name = tmp_path.name  # MMEngine tells trainings of one second apart by nothing else
    return found


# --- loading through MMEngine


@pytest.mark.parametrize("source", ["bad.pth", "https://localhost/bad.pth?x=1", "torchvision://net", "openmmlab://net"])
def test_no_road_of_mmengine_unpickles(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "x": Trap()}, "bad.pth")
    monkeypatch.setattr(download, "fetch", lambda url, *_: Path("bad.pth"))
    urls = {"net": "https://localhost/bad.pth"}
    monkeypatch.setattr("mmengine.runner.checkpoint.get_torchvision_models", lambda: urls)
    monkeypatch.setattr("mmengine.runner.checkpoint.get_external_models", lambda: urls)
    with pytest.raises(ValueError, match=r"bad\.pth cannot be read without executing"):
        load_checkpoint(nn.Linear(1, 1), source)
    assert not Path("executed").exists()


def test_a_config_in_a_checkpoint_is_not_run(cfg):
    """MMEngine runs the text of `meta.config` when a training is resumed. It replaces {{$X:default}} before that, so
    the text need not show what it does."""
    engine.Runner.from_cfg(cfg).train()
    found = checkpoint.read(Path(cfg.work_dir) / "epoch_4.pth")
    hidden = r'a = "{{$X:q\042+str(__import__(\047os\047).system(\047touch\040executed\047))#|}}"'
    for text in ("import os\nos.system('touch executed')\n", hidden):
        found["meta"]["config"] = found["message_hub"]["runtime_info"]["cfg"] = text
        torch.save(found, "evil.pth")
        cfg.resume, cfg.load_from = True, "evil.pth"
        engine.Runner.from_cfg(cfg).train()
        assert not Path("executed").exists()
    inert = engine.load_from_attlas("evil.pth")
    assert not {"cfg", "config"} & {*inert["meta"], *inert["message_hub"]["runtime_info"]}


def test_pretrained_counts_and_refuses_a_file_that_does_not_fit(tmp_path):
    class Backbone(BaseModule):
        checkpoint_rules = [("^old_fc", "fc")]

        def __init__(self, init_cfg):
            super().__init__(init_cfg)
            self.fc = nn.Linear(2, 3)

    weight = torch.arange(6.0).reshape(3, 2)
    torch.save({"backbone.old_fc.weight": weight, "backbone.old_fc.bias": torch.ones(3)}, tmp_path / "a.pth")
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "a.pth"), prefix="backbone")
    backbone = Backbone(init)
    backbone.init_weights()
    assert torch.equal(backbone.fc.weight, weight)
    with pytest.raises(ValueError, match="nothing was loaded"):
        initialize(nn.Conv2d(2, 2, 3), dict(init, prefix=None))


def test_load_from_takes_safetensors_and_logs_the_account(cfg, tmp_path):
    runner = engine.Runner.from_cfg(cfg)
    state = {name: value + 1 for name, value in runner.model.state_dict().items() if name != "layers.4.bias"}
    checkpoint.save(tmp_path / "given.safetensors", state)
    runner.load_checkpoint(tmp_path / "given.safetensors")
    assert torch.equal(runner.model.layers[0].weight, state["layers.0.weight"])
    log = Path(runner.logger.log_file).read_text()
    assert "missing from the file (1): layers.4.bias" in log
    with pytest.raises(ValueError, match="strict=True"):
        runner.load_checkpoint(tmp_path / "given.safetensors", strict=True)


@pytest.mark.parametrize("how", ["load_from", "pretrained"])
def test_weights_for_other_classes_or_of_another_variant(cfg, tmp_path, how):
    """Both roads leave the same layer out, name the file, and say what it looks like."""

    def load(path, classes=3):
        backbone = dict(type="NamedBackbone", name="shvit_s1", num_classes=classes)
        if how == "pretrained":
            return MODELS.build(dict(backbone, pretrained=str(path)))
        cfg.model = dict(type="ImageClassifier", backbone=backbone)
        runner = engine.Runner.from_cfg(cfg)
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner.load_checkpoint(path)
        return runner.model.backbone

    source = backbones.create("shvit_s1", num_classes=5)
    torch.save(source.state_dict(), tmp_path / "five.pth")
    loaded = load(tmp_path / "five.pth")
    assert torch.equal(loaded.head.after.weight, source.head.after.weight)
    assert loaded.head.fc.weight.shape[0] == 3
    torch.save(backbones.create("shvit_s2", num_classes=5).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth(.|\n)*The file looks like shvit_s2\.$"):
        load(tmp_path / "other.pth")


@pytest.mark.parametrize("task", ["train", "test"])
def test_an_average_begins_with_the_weights_that_were_loaded(cfg, tmp_path, task):
    """Under whatever names they are in the file: it is what is tested, and what a training evaluates."""
    state = engine.Runner.from_cfg(cfg).model.state_dict()
    state = {name: value + 1 for name, value in state.items()}
    torch.save({"params_ema": {f"net.{name}": value for name, value in state.items()}}, tmp_path / "theirs.pth")
    seen = []

    class Look(hooks.Hook):
        priority = "LOW"

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append(ema.ema_model.module.layers[0].weight.clone())

        def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.append(runner.model.layers[0].weight.clone())

    cfg.load_from = str(tmp_path / "theirs.pth")
    cfg.test_dataloader, cfg.test_evaluator, cfg.test_cfg = cfg.val_dataloader, cfg.val_evaluator, dict()
    cfg.custom_hooks = [dict(type="EMAHook", momentum=0.001)]
    runner = engine.Runner.from_cfg(cfg)
    runner.model.checkpoint_rules = [("^net[.]", "")]
    runner.register_hook(Look())
    (ema,) = (hook for hook in runner.hooks if isinstance(hook, hooks.EMAHook))
    getattr(runner, task)()
    assert torch.equal(seen[0], state["layers.0.weight"])


def test_weights_alone_cannot_be_resumed(cfg, tmp_path):
    torch.save({"layers.4.bias": torch.zeros(2)}, tmp_path / "weights.pth")
    cfg.resume, cfg.load_from = True, str(tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"cannot be resumed from .*weights\.pth: it lacks message_hub, meta, optim"):
        engine.Runner.from_cfg(cfg).train()


# --- writing


def test_a_checkpoint_that_fails_midway_leaves_the_last_good_one(cfg, monkeypatch):
    engine.Runner.from_cfg(cfg).train()
    work = Path(cfg.work_dir)
    before = {p.name: p.read_bytes() for p in work.glob("*.pth")}
    assert "epoch_4.pth" in before
    assert len(before) == 2  # the last and the best
    assert sum(name.startswith("best_acc_epoch_") for name in before) == 1

    def half(checkpoint, path, **_):
        Path(path).write_bytes(pickle.dumps(1)[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr("mmengine.runner.runner.save_checkpoint", half)
    cfg.resume, cfg.train_cfg.max_epochs = True, 6
    with pytest.raises(KeyboardInterrupt):
        engine.Runner.from_cfg(cfg).train()
    assert {p.name: p.read_bytes() for p in work.glob("*.pth")} == before
    assert not list(work.glob(".*"))
    assert resumption.latest_checkpoint(work) == work / "epoch_4.pth"


def test_a_resumption_with_other_batches_is_refused_or_told(cfg, monkeypatch):
    cfg.train_cfg.max_epochs = 1
    engine.Runner.from_cfg(cfg).train()
    kept = checkpoint.read(Path(cfg.work_dir) / "epoch_1.pth")["batches"]
    assert kept == dict(batch_size=4, processes=1, items=19, iterations=5)
    cfg.resume, cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size = True, 2, 8
    words = r"epoch_1\.pth with other epochs \(batch_size 4 -> 8, iterations 5 -> 3\).* until an epoch has 5 iterations"
    with pytest.raises(resumption.CannotResume, match=words):
        engine.Runner.from_cfg(cfg).train()
    told = []
    monkeypatch.setattr(resumption, "_warn", told.append)
    cfg.train_dataloader.batch_size, cfg.train_dataloader.dataset.length = 4, 20
    engine.Runner.from_cfg(cfg).train()
    assert told == ["The data of the resumed training changed (items 19 -> 20): it goes on, but not as it would have."]


def test_what_cannot_train_is_refused_before_the_schedules_are_built(cfg):
    cfg.train_dataloader.update(batch_size=64, drop_last=True, persistent_workers=True)
    with pytest.raises(preflight.CannotTrain, match=r"of 19 items, in batches of 64, drop_last=True leaves no batch"):
        engine.Runner.from_cfg(cfg).train()


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
@pytest.mark.parametrize("kind", [FileNotFoundError, ValueError])
def test_data_that_cannot_be_built_are_one_sentence(cfg, monkeypatch, loader, kind):
    def refuse():
        raise kind("Nowhere: there is no folder 'data'.")

    monkeypatch.setitem(DATASETS._module_dict, "Nowhere", refuse)
    cfg[loader].dataset = dict(type="Nowhere")
    with pytest.raises(preflight.CannotTrain, match=r"Nowhere: there is no folder 'data'\.$") as error:
        engine.Runner.from_cfg(cfg).train()
    assert isinstance(error.value.__cause__, kind)


# --- hooks


class FakeRunner:
    seed, epoch, iter, rank = 3, 1, 10, 0


def test_iteration_seed_depends_on_all_five_and_nothing_else():
    def draw(purpose="train", **changes):
        runner = FakeRunner()
        vars(runner).update(changes)
        match purpose:
            case "train":
                hook.before_train_iter(runner, 0)
            case "validate":
                hook.before_val_epoch(runner)
            case "fetch":
                hook.after_val_epoch(runner)
        return random.random(), np.random.rand(), torch.rand(1).item()

    hook = engine.IterationSeedHook()
    first = draw()
    assert draw() == first
    others = [draw(seed=4), draw(epoch=2), draw(iter=11), draw(rank=1), draw("validate"), draw("fetch")]
    assert len({first, *others}) == 7
    assert all(len(set(column)) == 7 for column in zip(first, *others))


def test_progress_bar_on_a_terminal_only(cfg, monkeypatch):
    """Train within a pseudo-terminal: the bar is drawn, the log lines stay whole, and the log file holds no bar."""
    import pty

    script = (
        "import sys; from attlas.config import load_config; from attlas.engine import Runner; "
        f"cfg = load_config({str(TINY)!r}); cfg.work_dir = {cfg.work_dir!r}; Runner.from_cfg(cfg).train()"
    )
    shown = bytearray()

    def keep(descriptor):
        data = os.read(descriptor, 4096)
        shown.extend(data)
        return data

    paths = [os.environ.get("PYTHONPATH"), str(TINY.parents[2])]  # the latter for the config's toys
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    assert pty.spawn([sys.executable, "-c", script], keep, lambda _: b"") == 0
    text = shown.decode()
    assert "epoch 4/4" in text
    assert "20/20" in text
    assert "samples/s" in text
    assert "Epoch(train)" in text
    log = next(Path(cfg.work_dir).glob("*/*.log")).read_text()
    assert "samples/s" not in log
    assert log.count("Epoch(train) [4][4/5]") == 1


# --- configs


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder / f"{name}.py"


BASE = """
num_points = 64
train_pipeline = [dict(type="A"), dict(type="B", num=num_points)]
train_dataloader = dict(batch_size=2, dataset=dict(type="D", pipeline=train_pipeline))
"""


def test_a_missing_config_names_its_neighbors(tmp_path):
    write(tmp_path, risurconv="x = 1")
    with pytest.raises(FileNotFoundError, match=r"risurcnov\.py does not exist\. Near it: .*risurconv\.py"):
        config.load_config(tmp_path / "risurcnov.py")


def test_overrides_that_do_not_fit_are_errors(tmp_path):
    path = write(tmp_path, base=BASE)
    with pytest.raises(ValueError, match=r"no 'train_datalaoder'\. Near it: train_dataloader"):
        config.load_config(path, {"train_datalaoder.batch_size": 4})
    with pytest.raises(ValueError, match=r"train_dataloader\.batch_size\.x=4 does not fit"):
        config.load_config(path, {"train_dataloader.batch_size.x": 4})
    with pytest.raises(ValueError, match=r"train_dataloader\.dataset\.pipeline\.7\.num=4 does not fit"):
        config.load_config(path, {"train_dataloader.dataset.pipeline.7.num": 4})
    assert config.load_config(path, {"train_dataloader.batch_size": 4}).train_dataloader.batch_size == 4
    assert config.load_config(path, {"auto_scale_lr.base_batch_size": 4}).auto_scale_lr.base_batch_size == 4


def test_an_unread_override_is_warned_of_with_the_key_to_use(tmp_path):
    path = write(tmp_path, base=BASE)
    with pytest.warns(UserWarning, match=r"'num_points' has no effect.*train_dataloader\.dataset\.pipeline\.1\.num in"):
        config.load_config(path, {"num_points": 128})
    with pytest.warns(UserWarning, match=r"'train_pipeline'.*Override train_dataloader\.dataset\.pipeline\.0\.type in"):
        config.load_config(path, {"train_pipeline.0.type": "C"})


@pytest.mark.parametrize(
    ("child", "warned"),
    [
        ("train_pipeline = [dict(type='C')]", {"train_pipeline": ["train_dataloader.dataset.pipeline"]}),
        ("train_pipeline = []\ntrain_dataloader = dict(dataset=dict(pipeline=train_pipeline))", {}),
        ("train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))", {}),
        ("num_points = 8\ntrain_pipeline = _base_.train_pipeline + [num_points]\nmodel = dict(a=train_pipeline)", {}),
        ("max_epochs = 3", {}),
        ("train_dataloader = dict(batch_size=8)", {}),
    ],
)
def test_a_child_config_that_overrides_in_vain(tmp_path, child, warned):
    path = write(tmp_path, base=BASE, child=f"_base_ = ['base.py']\n{child}\n")
    assert config.unread_variables(path) == warned
    grandchild = write(tmp_path, grandchild="_base_ = 'child.py'\n")
    assert config.unread_variables(grandchild) == warned


def test_resolved_leaves_out_what_was_copied(tmp_path):
    text = config.resolved(config.load_config(write(tmp_path, base=BASE + "load_from = None\n")))
    assert "train_dataloader" in text
    assert "num=64" in text
    assert "train_pipeline" not in text
    assert "load_from" not in text


def test_shipped_configs_override_nothing_in_vain():
    paths = [*(TINY.parents[2] / "configs").rglob("*.py")]
    assert paths
    assert {str(path): config.unread_variables(path) for path in paths if config.unread_variables(path)} == {}
