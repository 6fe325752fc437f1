"""A training that was killed, at whatever moment, goes on as if nothing had happened.

Where to go on: `checkpoints` and `newest_whole`. What a checkpoint must hold for it, and what resumption must repeat or
remove: CheckpointHook and EarlyStoppingHook, which take the place of MMEngine's.
"""

import logging
import os
import re
import shlex
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from mmengine import dist, hooks
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from . import checkpoint
from .files import printable, replacing
from .registry import HOOKS

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
        ValueError: there are some, and none of them reads.
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
        raise ValueError(
            f"No checkpoint in {broken[0].parent} can be read ({', '.join(path.name for path in broken)}). "
            "To train anew in its place: --overwrite."
        )
    return None


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
