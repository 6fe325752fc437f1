"""A training that was killed, at whatever moment, goes on as if nothing had happened.

Where to go on: `checkpoints` and `newest_whole`. Whether a checkpoint is of this training: `check_resumed`. What it
must hold, and what resumption must repeat or remove: CheckpointHook and EarlyStoppingHook, in the place of MMEngine's.
"""

import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from mmengine import dist, hooks
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import Tensor

from . import checkpoint
from .files import printable, replacing
from .preflight import CannotTrain, schedulers
from .registry import HOOKS


class CannotResume(CannotTrain):
    """A training cannot go on from a checkpoint. Its text is for the user."""


# --- where to go on --------------------------------------------------------------------------------------------------


def checkpoints(work_dir: str | Path, folder: str | Path | None = None) -> list[Path]:
    """The checkpoints that a training can go on from, the best choice first: the one that `last_checkpoint` names, then
    the other `epoch_*.pth` and `iter_*.pth` from the newest on.

    Args:
        work_dir: the folder of `last_checkpoint`.
        folder: that of the checkpoints, if it is another.
    """
    folder = Path(folder or work_dir)
    newest_last = sorted(
        (*folder.glob("epoch_*.pth"), *folder.glob("iter_*.pth")), key=lambda path: path.stat().st_mtime_ns
    )
    named = _named_in(Path(work_dir) / "last_checkpoint", folder)
    return list(dict.fromkeys([*filter(None, [named]), *reversed(newest_last)]))


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """The checkpoint to go on from, if there is one; whether it is whole is not looked at."""
    return next(iter(checkpoints(work_dir)), None)


def _named_in(pointer: Path, folder: Path) -> Path | None:
    """The file of `folder` that MMEngine's `last_checkpoint` names; None, with a warning, where it names none. Only the
    name counts: the folder may have been moved."""
    if not pointer.exists():
        return None
    longest = 4096  # bytes of a path, on Linux
    try:
        if not pointer.is_file():
            raise ValueError("it is not a file")
        with pointer.open("rb") as file:
            text = file.read(longest + 1).decode().strip()
        if len(text) > longest:
            raise ValueError("it is longer than a path can be")
        if not text.isprintable():
            raise ValueError("it holds no path")
        named = folder / Path(text).name
        if os.path.isfile(named):  # which takes any name, however long
            return named
        if text:  # else it was being written
            outside = f". To go on from it all the same: --resume {shlex.quote(text)}" if os.path.isfile(text) else ""
            raise ValueError(f"{printable(text)} is not in {folder}{outside}")
    except (OSError, ValueError) as error:
        _warn(f"{pointer} is ignored: {error}")
    return None


def _warn(text: str) -> None:
    print_log(text, logger="current", level=logging.WARNING)


def newest_whole(found: Iterable[Path]) -> Path | None:
    """The first of some checkpoints that reads from end to end; warns of those that do not. None if there are none.

    Raises:
        CannotResume: there are some, and none of them reads.
    """
    broken = []
    for path in found:
        try:
            checkpoint.read(path)  # which compares the checksums, too
        except (OSError, ValueError) as error:
            _warn(f"{path} is broken, so an older checkpoint is looked for: {error}")
            broken.append(path)
        else:
            return path
    if broken:
        raise CannotResume(
            f"No checkpoint in {broken[0].parent} can be read ({', '.join(path.name for path in broken)}). "
            "To train anew in its place: --overwrite."
        )
    return None


# --- what a checkpoint may say ---------------------------------------------------------------------------------------
#
# MMEngine and torch take what a checkpoint says of a training as it is: counters, hyper-parameters, which kernel of an
# optimizer runs, over states of whatever size. A stranger's checkpoint can be resumed; so it is held to what it is for.


def check_resumed(found: dict, runner, source: str | Path) -> None:
    """Hold what a checkpoint says of a training to the training that shall go on from it.

    Raises:
        CannotResume: says what does not fit.
    """
    if lacking := {"meta", "state_dict", "message_hub", "optimizer"} - found.keys():
        raise CannotResume(
            f"Training cannot be resumed from {printable(source)}: it lacks {', '.join(sorted(lacking))}. Resume from "
            "an epoch_*.pth or iter_*.pth; to begin a new training with these weights: --cfg-options load_from=..."
        )
    try:
        _check_counters(_dict(found["meta"]), runner.train_loop)
        _check_hub(_dict(found["message_hub"]))
        _each(found["optimizer"], runner.optim_wrapper, "optimizer", _check_optimizer)
        if "param_schedulers" in found and runner.param_schedulers is not None:
            _each(found["param_schedulers"], runner.param_schedulers, "schedule", _check_schedulers)
    except (ValueError, TypeError) as error:
        raise CannotResume(
            f"Training cannot be resumed from {printable(source)}, which may be another training's: it holds "
            f"{printable(error)}."
        ) from None
    _check_batches(found.get("batches"), runner, source)


def batches(runner) -> dict[str, int]:
    """What a checkpoint keeps of a training's data: `items`, `batch_size`, `processes` and, in a training by epochs,
    `iterations` of one of them; without what is not known."""
    loop = runner.train_loop
    found = dict(batch_size=loop.dataloader.batch_size, processes=dist.get_world_size())
    if hasattr(loop.dataloader.dataset, "__len__"):
        found["items"] = len(loop.dataloader.dataset)
    if isinstance(loop, EpochBasedTrainLoop):
        found["iterations"] = len(loop.dataloader)
    return {name: value for name, value in found.items() if value is not None}


def _check_batches(saved: Any, runner, source: str | Path) -> None:
    """Compare the data of a training with what its checkpoint kept of them, if anything."""
    if not isinstance(saved, dict):
        return
    now = batches(runner)
    changed = {name for name in now if _is_int(saved.get(name)) and saved[name] != now[name]}
    if not changed:
        return
    words = [f"{name} {saved[name]} -> {now[name]}" for name in now if name in changed]
    if "iterations" in changed and not all(scheduler.by_epoch for scheduler in schedulers(runner)):
        raise CannotResume(
            f"Training cannot be resumed from {printable(source)} with other epochs ({', '.join(words)}): the schedule "
            "of the learning rate counts iterations, and would end too early or too late. Restore what changed, until "
            f"an epoch has {saved['iterations']} iterations; to begin a new training with these weights: --cfg-options "
            "load_from=..."
        )
    _warn(f"The data of the resumed training changed ({', '.join(words)}): it goes on, but not as it would have.")


def _check_counters(meta: dict, loop: Any) -> None:
    for name in ("epoch", "iter"):
        _require(_is_int(meta.get(name)) and 0 <= meta[name] < 2**40, f"no count as {name}")
    seed = meta.get("seed")
    _require(seed is None or (_is_int(seed) and 0 <= meta["seed"] < 2**64), "a seed that is no number")
    if isinstance(loop, IterBasedTrainLoop):
        _require(meta["iter"] <= loop.max_iters, f"iteration {meta['iter']} of a training of {loop.max_iters}")


def _check_hub(hub: dict) -> None:
    for part in ("log_scalars", "runtime_info", "resumed_keys"):
        for name in _dict(hub.get(part)):
            _require(isinstance(name, str) and name == printable(name), f"the name {printable(name)} in {part}")


def _require(holds: Any, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _each(states: Any, built: Any, what: str, check_one: Callable[[Any, Any], None]) -> None:
    """One optimizer (or one list of schedulers), or several by name."""
    if isinstance(built, (dict, OptimWrapperDict)):
        names = dict(built.items())
        _require(isinstance(states, dict) and names.keys() <= states.keys(), f"another {what} than {', '.join(names)}")
        for name, one in names.items():
            check_one(states[name], one)
    else:
        check_one(states, built)


# which kernel runs is for the training to say; torch would believe the checkpoint
KERNELS = ("fused", "foreach", "capturable", "differentiable")


def _check_optimizer(state: Any, wrapper: Any) -> None:
    optimizer = wrapper.optimizer
    groups: Any = _dict(state).get("param_groups")
    own = optimizer.state_dict()["param_groups"]
    _require(isinstance(groups, list) and all(isinstance(group, dict) for group in groups), "no groups of parameters")
    sizes = [[len(group.get("params", ())) for group in given] for given in (groups, own)]
    _require(sizes[0] == sizes[1], "other groups of parameters")
    parameters: dict[int, Any] = {}
    for group, mine, real in zip(groups, own, optimizer.param_groups):
        group.update({name: mine[name] for name in KERNELS if name in mine})
        for name, value in mine.items():
            _require(name not in group or _alike(group[name], value), f"the {name} of another optimizer")
        parameters.update(zip(group["params"], real["params"]))
    for number, values in _dict(state.get("state")).items():
        _require(number in parameters and isinstance(values, dict), "a state of no parameter")
        if "fused" not in optimizer.defaults:  # the others compare sizes
            continue
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim:
                room = value.untyped_storage().nbytes() // value.element_size() - value.storage_offset()
                fits = value.shape == parameters[number].shape and value.numel() <= room  # not so if it is expanded
                _require(fits, f"{printable(name)} of another shape")


def _check_schedulers(states: Any, schedulers: Any) -> None:
    _require(isinstance(states, list) and len(states) == len(schedulers), "other schedules")
    for state, scheduler in zip(states, schedulers):
        own = scheduler.state_dict()
        _require(_dict(state).keys() <= own.keys(), f"a schedule that is no {type(scheduler).__name__}")
        for name, value in state.items():
            _require(_alike(value, own[name]), f"{name} of another schedule")


def _dict(value: Any) -> dict:
    _require(isinstance(value, dict), f"a {type(value).__name__} for a dictionary")
    return value


def _alike(one: Any, other: Any) -> bool:
    """Whether a value may take the place of another: of the same kind, and of a size that can be computed with."""
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and all(map(_alike, one, other if len(one) == len(other) else [0.0] * len(one)))
    if isinstance(one, Counter):  # of milestones, and how often each counts
        times = all(_is_int(n) and 0 <= n < 10_000 for n in one.values())
        return isinstance(other, Counter) and times and all(_is_int(n) and 0 <= n < 2**53 for n in one)
    if isinstance(one, dict):
        return type(one) is type(other) and all(key in other and _alike(one[key], other[key]) for key in one)
    numbers = (int, float, type(None))
    if isinstance(one, numbers) and isinstance(other, numbers):
        return isinstance(one, bool) == isinstance(other, bool) and (not isinstance(one, int) or abs(one) < 2**53)
    return type(one) is type(other) and (one is other or not callable(one))


# --- what a checkpoint must hold -------------------------------------------------------------------------------------


@HOOKS.register_module(force=True)
class CheckpointHook(hooks.CheckpointHook):
    """MMEngine's CheckpointHook, with which however a kill can lose a checkpoint, a validation or the best. Here:

    - Outdated checkpoints are removed after the new one is whole. The new one names them (`outdated`), so that
      resumption removes what a kill left.
    - An epoch (or iteration) is saved before it is validated, since a validation may fail. The message hub tells
      whether it was validated (`last_validation`); if not, resumption begins with that.
    - All processes go on, and validate, with the buffers (the running statistics of norms) that the checkpoint holds,
      those of the first process.
    - What a moved folder calls its best and its last is looked for in the folder.
    """

    _default_greater_keys = [*hooks.CheckpointHook._default_greater_keys, "OA"]  # for save_best="z/OA" without a rule

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._outdated: list[str] = []  # to be removed once what replaces them is written
        self._began: str | None = None  # the checkpoint of the same folder that the training began with
        self._left: list[str] = []  # names of what that one was to replace, which a kill may have left

    def folder(self, runner) -> Path:
        """Where the checkpoints of a training that has not yet begun will be."""
        if self.out_dir in (None, runner.work_dir):
            return Path(runner.work_dir)
        return Path(self.out_dir) / Path(runner.work_dir).name

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume and Path(runner._load_from).absolute().parent == self.folder(runner).absolute():
            self._began = str(runner._load_from)
            self._left = checkpoint.get("outdated", [])

    def before_train(self, runner) -> None:
        hub, folder = runner.message_hub, self.folder(runner)
        for name in [name for name in hub.runtime_info if name == "last_ckpt" or name.startswith("best_ckpt")]:
            here = folder / Path(str(hub.get_info(name))).name
            if here.is_file():
                hub.update_info(name, str(here))
                if name == "last_ckpt":
                    self.last_ckpt = str(here)
        super().before_train(runner)
        self._remove = self.file_backend.remove
        self.file_backend.remove = self._outdated.append

        if self._began and dist.is_main_process():
            with replacing(Path(runner.work_dir) / "last_checkpoint") as temporary:
                temporary.write_text(self._began)
            ours = re.escape(self.filename_tmpl).replace(r"\{\}", r"\d+")
            found = [name for name in self._left if re.fullmatch(rf"(best_.+_)?{ours}", name)]
            self._outdated += [self.file_backend.join_path(self.out_dir, name) for name in found]
            self._remove_outdated()
        self._validate(runner)

    def _validate(self, runner) -> None:
        """Do the validation that the training was killed before the end of, or whose outcome was not saved."""
        loop, hub, (done, end) = runner.train_loop, runner.message_hub, _progress(runner)
        if runner.val_loop is None or not done or hub.get_info("last_validation") == done:
            return
        loop._decide_current_val_interval()
        if done >= loop.val_begin and (done % loop.val_interval == 0 or done == end):
            runner.logger.info("What was resumed had not been validated: validation comes first.")
            # the hub has the epoch and the iteration that began last, and not yet those that are to begin
            hub.update_info("epoch", runner.epoch - isinstance(loop, EpochBasedTrainLoop))
            hub.update_info("iter", runner.iter - 1)
            runner.val_loop.run()

    def before_val_epoch(self, runner) -> None:
        _share_buffers(runner)

    def after_val_epoch(self, runner, metrics) -> None:
        runner.message_hub.update_info("last_validation", _progress(runner)[0])
        super().after_val_epoch(runner, metrics)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if "optimizer" in checkpoint:  # the best have none: nobody goes on from them
            checkpoint["batches"] = batches(runner)
            checkpoint["outdated"] = sorted({Path(path).name for path in self._outdated})

    def _save_checkpoint(self, runner) -> None:
        _share_buffers(runner)
        super()._save_checkpoint(runner)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_outdated()

    def _save_best_checkpoint(self, runner, metrics) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        best = getattr(self, "best_ckpt_path_dict", {"": getattr(self, "best_ckpt_path", None)}).values()
        kept = {Path(path).name for path in (self.last_ckpt, *best) if path}
        for path in dict.fromkeys(self._outdated):
            ours = Path(path).parent == Path(self.out_dir)  # else this training began with what another one left
            if ours and Path(path).name not in kept and self.file_backend.isfile(path):
                self._remove(path)
        self._outdated.clear()


def _progress(runner) -> tuple[int, int]:
    """How many epochs, in a training by iterations how many iterations, are done, and how many there are to be; (0, 0)
    if that is not known: of a loop of other kind, or where there is no training."""
    loop = runner._train_loop
    if isinstance(loop, EpochBasedTrainLoop):
        return loop.epoch, loop.max_epochs
    if isinstance(loop, IterBasedTrainLoop):
        return loop.iter, loop.max_iters
    return 0, 0


def _share_buffers(runner) -> None:
    """Give all processes the buffers of the first, also of averaged weights."""
    if dist.get_world_size() > 1:
        averaged = [hook.ema_model for hook in runner.hooks if isinstance(hook, hooks.EMAHook)]
        for buffer in chain.from_iterable(model.buffers() for model in (runner.model, *averaged)):
            dist.broadcast(buffer)


@HOOKS.register_module(force=True)
class EarlyStoppingHook(hooks.EarlyStoppingHook):
    """MMEngine's EarlyStoppingHook, which however begins to count anew after a resumption."""

    priority = "LOW"  # before CheckpointHook saves what was counted

    def before_train(self, runner) -> None:
        state = runner.message_hub.get_info("early_stopping")
        if state is not None:
            self.wait_count, self.best_score, runner.train_loop.stop_training = state
            if runner.train_loop.stop_training:
                runner.logger.info("This training was stopped by EarlyStoppingHook: it does not go on.")

    def after_val_epoch(self, runner, metrics) -> None:
        super().after_val_epoch(runner, metrics)
        state = [self.wait_count, self.best_score, runner.train_loop.stop_training]
        runner.message_hub.update_info("early_stopping", state)
