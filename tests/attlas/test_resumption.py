"""A training is killed at every kind of moment, resumed, and compared with one that was left alone: the same
files by name, the same contents, and the same losses, bit for bit."""

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from training import Trainings

from attlas import checkpoint, config, engine, resumption

TINY = Path(__file__).parents[1] / "configs" / "tiny.py"
HOOK = "default_hooks.checkpoint"

# What differs from the tiny training of 4 epochs of 5 iterations, with validation and checkpoint after each epoch.
PLANS = {
    "epochs": {"train_cfg.max_epochs": 3},
    "averaged weights, two best, some validations": {
        "train_cfg.val_interval": 2,
        f"{HOOK}.save_best": ["acc", "val_loss"],
        f"{HOOK}.max_keep_ckpts": 2,
        "custom_hooks": [
            dict(type="RecordLosses", path="losses"),
            dict(type="EMAHook", momentum=0.1, update_buffers=True),
        ],
    },
    "rare checkpoints, learning rate and end by validation": {
        "train_cfg.max_epochs": 6,
        f"{HOOK}.interval": 2,
        f"{HOOK}.save_best": "val_loss",
        "param_scheduler": dict(
            type="ReduceOnPlateauLR", monitor="val_loss", rule="less", patience=0, factor=0.5, _delete_=True
        ),
        "custom_hooks": [
            dict(type="RecordLosses", path="losses"),
            dict(type="EarlyStoppingHook", monitor="acc", patience=2, min_delta=0.01),
        ],
    },
    "iterations": {
        "train_cfg": dict(type="IterBasedTrainLoop", max_iters=11, val_interval=3, _delete_=True),
        "train_dataloader.sampler.type": "InfiniteSampler",
        "log_processor.by_epoch": False,
        HOOK: dict(type="CheckpointHook", by_epoch=False, interval=2, max_keep_ckpts=2, save_best=["val_loss", "acc"]),
    },
    "only the last": {"train_cfg.max_epochs": 2, f"{HOOK}.interval": -1, f"{HOOK}.max_keep_ckpts": -1},
}


@pytest.fixture(scope="module")
def train():
    with Trainings() as call:
        yield call


def plain(value, work: str):
    """A value of a checkpoint as something to compare with ==, every bit of it, without times and without the path of
    the work dir."""
    if isinstance(value, HistoryBuffer):
        value = [value._log_history, value._count_history]
    if isinstance(value, dict):
        return {
            key: plain(item, work)
            for key, item in value.items()
            if not re.search("time$|^eta$|^cfg$|^experiment_name$", str(key))
        }
    if isinstance(value, (list, tuple)):
        return [plain(item, work) for item in value]
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        array = np.asarray(value)
        return str(array.dtype), array.shape, array.tobytes()
    if isinstance(value, str):
        return value.replace(work, "WORK")
    if callable(value):
        return value.__qualname__
    return value


def result(folder: Path) -> dict:
    """Every file that a training left, but the logs: the names, and what is in them."""
    work = folder / "work"
    found = {"losses": dict(map(str.split, (folder / "losses.0").read_text().splitlines()))}  # the last of each number
    for path in work.iterdir():
        if path.suffix == ".pth":
            found[path.name] = plain(checkpoint.read(path), str(work))
        elif path.is_file() and path.suffix != ".py":
            found[path.name] = path.read_text().replace(str(work), "WORK")
    return found


def differences(one, other, place: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*dict.fromkeys([*one, *other])]
        return [
            difference
            for key in keys
            for difference in (
                differences(one[key], other[key], f"{place}/{key}")
                if key in one and key in other
                else [f"{place}/{key} is only in the {'first' if key in one else 'second'}"]
            )
        ]
    return [] if one == other else [f"{place}: {str(one)[:200]} != {str(other)[:200]}"]


def uninterrupted(train, folder: Path, plan: str) -> tuple[dict, list[str]]:
    folder.mkdir()
    assert train(folder, TINY, PLANS[plan], die={"trace": "trace"}) == 0, (folder / "printed").read_text()[-3000:]
    return result(folder), (folder / "trace").read_text().splitlines()


def kill_and_resume(train, folder: Path, plan: str, moments: list[int]) -> dict:
    """Kill a training at the first moment, its resumption at the second, and so on; then let it come to its end."""
    folder.mkdir()
    for number, moment in enumerate(moments):
        changes = {**PLANS[plan], "resume": number > 0}
        assert train(folder, TINY, changes, die={"trace": f"trace{number}", "moment": moment}) == -9
    assert train(folder, TINY, {**PLANS[plan], "resume": True}) == 0, (folder / "printed").read_text()[-3000:]
    found = result(folder)
    shutil.rmtree(folder)
    return found


def moments(trace: list[str], *names: str) -> list[int]:
    """The last moment of each name that was passed."""
    found = [max((i for i, line in enumerate(trace) if re.search(name, line)), default=-1) for name in names]
    assert -1 not in found, trace
    return found


def ends_of_each_kind(trace: list[str]) -> list[int]:
    """The first and the last moment of each name, whatever its numbers."""
    kinds: dict[str, list[int]] = {}
    for i, line in enumerate(trace):
        kinds.setdefault(re.sub(r"\d+", "N", line), []).append(i)
    return sorted({place for found in kinds.values() for place in (found[0], found[-1])})


def test_a_kill_between_checkpoint_and_best_loses_neither(train, tmp_path):
    whole, trace = uninterrupted(train, tmp_path / "whole", "epochs")
    # within the validation; with half of the best written; before the epoch before goes
    for moment in moments(trace, "validate 1", "half .best", "remove epoch_1.pth"):
        assert differences(whole, kill_and_resume(train, tmp_path / "killed", "epochs", [moment])) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("plan", PLANS)
def test_a_kill_at_any_kind_of_moment(train, tmp_path, count, plan, part):
    whole, trace = uninterrupted(train, tmp_path / "whole", plan)
    tried = ends_of_each_kind(trace)[part::2]
    for moment in tried:
        found = differences(whole, kill_and_resume(train, tmp_path / "killed", plan, [moment]))
        assert found == [], f"killed at {moment}: {trace[moment - 1 : moment + 1]}"
    count(f"trainings killed and resumed, {plan}", f"{len(tried)}, all equal to the one that was left alone")


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_a_resumption_that_is_killed_too(train, tmp_path, plan):
    whole, trace = uninterrupted(train, tmp_path / "whole", plan)
    first, *_ = moments(trace, "half .best")
    for second in (1, 2, 3, 5, 8, 13):  # counted from the resumption
        assert differences(whole, kill_and_resume(train, tmp_path / "killed", plan, [first, second])) == []


# --- what is found in the folder


@pytest.fixture
def warned(monkeypatch):
    """The warnings of the module."""
    found = []
    monkeypatch.setattr(resumption, "print_log", lambda text, logger, level: found.append(text))
    return found


def test_latest_checkpoint_survives_a_move_and_a_lost_pointer(tmp_path, warned):
    assert resumption.latest_checkpoint(tmp_path) is None
    for number, name in enumerate(("epoch_9.pth", "epoch_10.pth", "best_acc_epoch_10.pth")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (number, number))
    assert resumption.latest_checkpoint(tmp_path).name == "epoch_10.pth"
    (tmp_path / "last_checkpoint").write_text("/elsewhere/work/epoch_9.pth\n")
    assert resumption.latest_checkpoint(tmp_path) == tmp_path / "epoch_9.pth"
    assert [path.name for path in resumption.checkpoints(tmp_path)] == ["epoch_9.pth", "epoch_10.pth"]
    (tmp_path / "last_checkpoint").write_text("")  # killed while it was written
    assert resumption.latest_checkpoint(tmp_path).name == "epoch_10.pth"
    assert warned == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x02}q\x00", "codec can't decode"),
        (b"a\x00b", "holds no path"),
        (b"\x1b[2Jepoch_9.pth", "holds no path"),
        (b"epoch_9.pth\nepoch_8.pth", "holds no path"),
        (b"x" * 10**6, "longer than a path can be"),
        (b"x" * 4000, "is not in"),
        (b"OUTSIDE", "other.pth is not in .*work.*To go on from it all the same: --resume .*other.pth"),
        (b"..", "is not in"),
        (b"/", "is not in"),
        (None, "is not a file"),  # but a folder
    ],
)
def test_a_pointer_that_points_nowhere_is_ignored_with_a_word(tmp_path, warned, content, said):
    (tmp_path / "work").mkdir()
    for name in ("other.pth", "work/epoch_9.pth"):
        (tmp_path / name).touch()
    pointer = tmp_path / "work" / "last_checkpoint"
    if content is None:
        pointer.mkdir()
    else:
        pointer.write_bytes(content.replace(b"OUTSIDE", str(tmp_path / "other.pth").encode()))
    assert resumption.latest_checkpoint(tmp_path / "work").name == "epoch_9.pth"
    assert len(warned) == 1
    assert re.search(f"last_checkpoint is ignored: .*{said}", warned[0])
    assert len(warned[0]) < 1000
    assert warned[0].isprintable()


def test_the_newest_that_is_whole(tmp_path, warned):
    paths = [tmp_path / f"epoch_{number}.pth" for number in (5, 4, 3, 2)]
    for path in paths:
        torch.save({"weights": torch.arange(5000.0)}, path)
    data = paths[0].read_bytes()
    middle = len(data) // 2
    paths[0].write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])  # torch.load takes this one
    paths[1].write_bytes(data[:middle])
    paths[2].write_bytes(b"")
    assert torch.load(paths[0])["weights"].shape == (5000,)
    assert resumption.newest_whole(paths) == paths[3]
    assert [re.search(r"(epoch_\d)\.pth is broken", text)[1] for text in warned] == ["epoch_5", "epoch_4", "epoch_3"]
    assert "epoch_5.pth cannot be read" in warned[0]
    assert resumption.newest_whole([]) is None
    with pytest.raises(ValueError, match=r"No checkpoint in .* can be read \(epoch_5\.pth, epoch_4\.pth\)"):
        resumption.newest_whole(paths[:2])


def test_a_broken_checkpoint_and_what_lies_about(train, tmp_path):
    """Training goes on from the checkpoint before the broken one, and removes what is its own and nothing else."""
    folder, work = tmp_path / "whole", tmp_path / "whole" / "work"
    changes = {"train_cfg.max_epochs": 3, f"{HOOK}.max_keep_ckpts": 2, f"{HOOK}.save_best": "val_loss"}
    folder.mkdir()
    assert train(folder, TINY, changes) == 0
    whole = result(folder)
    assert {"epoch_2.pth", "epoch_3.pth", "best_val_loss_epoch_3.pth"} <= whole.keys()

    (work / "epoch_3.pth").write_bytes((work / "epoch_3.pth").read_bytes()[:5000])
    kept = [".x.1.unfinished.pth", ".backup.999999.pth", "epoch_1.pth.bak", "epoch_0.pth", "best_val_loss_epoch_9.pth"]
    for name in [*kept, ".epoch_1.999999999.unfinished.pth", ".tiny.999999999.unfinished.py"]:
        (work / name).touch()
    (work / "epoch_1.pth").touch()  # which the second was to replace when the training was killed
    assert train(folder, TINY, {**changes, "resume": True}) == 0
    printed = (folder / "printed").read_text()
    assert re.search(r"WARNING - .*epoch_3\.pth is broken, so an older checkpoint is looked for: ", printed)
    assert "Removed" in printed
    assert all((work / name).exists() for name in kept)
    for name in kept:
        (work / name).unlink()
    resumed = result(folder)
    # the best of the second epoch went with the first third epoch: nothing was left to be removed by the second one
    assert whole["epoch_3.pth"].pop("outdated") == ["best_val_loss_epoch_2.pth"]
    assert resumed["epoch_3.pth"].pop("outdated") == []
    assert differences(whole, resumed) == []


def test_a_moved_folder_goes_on_as_if_it_had_not_moved(train, tmp_path):
    changes = {"train_cfg.max_epochs": 1, f"{HOOK}.save_best": "val_loss"}
    for name in ("there", "left"):
        (tmp_path / name).mkdir()
        assert train(tmp_path / name, TINY, changes) == 0
    (tmp_path / "there").rename(tmp_path / "here")
    (tmp_path / "there" / "work").mkdir(parents=True)
    (tmp_path / "there" / "work" / "best_val_loss_epoch_1.pth").touch()  # of another training by now
    for name in ("here", "left"):
        assert train(tmp_path / name, TINY, {**changes, "train_cfg.max_epochs": 3, "resume": True}) == 0
    assert differences(result(tmp_path / "left"), result(tmp_path / "here")) == []
    assert sum(name.startswith("best") for name in result(tmp_path / "here")) == 1
    assert (tmp_path / "there" / "work" / "best_val_loss_epoch_1.pth").exists()


def test_a_checkpoint_cannot_have_other_files_removed(train, tmp_path):
    assert train(tmp_path, TINY, {"train_cfg.max_epochs": 1}) == 0
    work = tmp_path / "work"
    found = torch.load(work / "epoch_1.pth", weights_only=False)
    names = ["../notes.txt", "notes.txt", "epoch_1.pth", "epoch_1.pth/../notes.txt", str(tmp_path / "notes.txt"), ".."]
    for path in (tmp_path / "notes.txt", work / "notes.txt", work / "epoch_0.pth"):
        path.touch()
    torch.save({**found, "outdated": [*names, "epoch_0.pth"]}, work / "epoch_1.pth")
    assert train(tmp_path, TINY, {"train_cfg.max_epochs": 1, "resume": True}) == 0
    assert (tmp_path / "notes.txt").exists()
    assert (work / "notes.txt").exists()
    assert (work / "epoch_1.pth").exists()
    assert not (work / "epoch_0.pth").exists()


# --- what a checkpoint says of a training


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A training of two epochs by Adam with milestones."""
    folder = tmp_path_factory.mktemp("saved")
    found = config.load_config(TINY)
    found.work_dir, found.experiment_name = str(folder), folder.name
    found.train_cfg.max_epochs = 2
    found.optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=0.01))
    found.param_scheduler = [dict(type="MultiStepLR", milestones=[1, 5], gamma=0.5, by_epoch=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where the toy writes its losses
        engine.Runner.from_cfg(found).train()
    found.dump(folder / "config.py")
    return folder


def test_another_trainings_checkpoint_is_refused(saved, tmp_path, monkeypatch):
    """What torch or MMEngine would believe: kernels that compare no sizes, numbers that take for ever, names that a
    terminal obeys."""
    monkeypatch.chdir(tmp_path)
    huge = Counter(dict.fromkeys(range(1, 9), 10**11))
    changes = {
        "no count as epoch": lambda c: c["meta"].update(epoch="3"),
        "no count as iter": lambda c: c["meta"].update(iter=-1),
        "a seed that is no number": lambda c: c["meta"].update(seed="x"),
        r"the name a\\x1b\[2J in log_scalars": lambda c: c["message_hub"]["log_scalars"].update({"a\x1b[2J": 1}),
        "a NoneType for a dictionary": lambda c: c["message_hub"].pop("resumed_keys"),
        "no groups of parameters": lambda c: c["optimizer"].update(param_groups=None),
        "other groups of parameters": lambda c: c["optimizer"]["param_groups"].append({"params": []}),
        "the lr of another optimizer": lambda c: c["optimizer"]["param_groups"][0].update(lr="x"),
        "a state of no parameter": lambda c: c["optimizer"]["state"].update({99: {}}),
        "milestones of another schedule": lambda c: c["param_schedulers"][0].update(milestones=huge),
        "gamma of another schedule": lambda c: c["param_schedulers"][0].update(gamma=2**60),
        "a schedule that is no MultiStepLR": lambda c: c["param_schedulers"][0].update(other=1),
        "other schedules": lambda c: c["param_schedulers"].clear(),
    }
    for words, change in changes.items():
        found = checkpoint.read(saved / "epoch_2.pth")
        change(found)
        torch.save(found, tmp_path / "evil.pth")
        resumed = Config.fromfile(saved / "config.py")
        resumed.work_dir, resumed.resume, resumed.load_from = str(tmp_path), True, str(tmp_path / "evil.pth")
        with pytest.raises(resumption.CannotResume, match=rf"evil\.pth, which may be another .*: it holds {words}"):
            engine.Runner.from_cfg(resumed).train()


@pytest.mark.parametrize("fused", [True, None])
def test_the_training_says_which_kernel_runs(saved, tmp_path, monkeypatch, fused):
    """torch's fused optimizers write outside of a state that is too small."""
    monkeypatch.chdir(tmp_path)
    found = checkpoint.read(saved / "epoch_2.pth")
    found["optimizer"]["param_groups"][0].update(fused=True, foreach=False)
    for state in found["optimizer"]["state"].values():
        state["exp_avg"] = state["exp_avg_sq"] = torch.zeros(3, 1)
    torch.save(found, tmp_path / "evil.pth")
    resumed = Config.fromfile(saved / "config.py")
    resumed.work_dir, resumed.resume, resumed.load_from = str(tmp_path), True, str(tmp_path / "evil.pth")
    resumed.train_cfg.max_epochs, resumed.optim_wrapper.optimizer.fused = 3, fused
    with pytest.raises(resumption.CannotResume, match="exp_avg of another shape"):
        engine.Runner.from_cfg(resumed).train()
