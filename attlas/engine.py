"""What Attlas adds to MMEngine's Runner: safe and counted loading, whole files, a progress bar, exact resumption.

Importing this module makes every road by which MMEngine reads a checkpoint (`load_from`, `resume`, `init_cfg`, `http://`,
`torchvision://`, ...) end in `attlas.checkpoint.read`, which never unpickles; see `load_from_attlas` below.
"""

import atexit
import ctypes
import gc
import logging
import platform
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import hooks, runner
from mmengine.dist import broadcast_object_list, is_main_process, master_only
from mmengine.runner import BaseLoop, CheckpointLoader, EpochBasedTrainLoop
from mmengine.runner import checkpoint as mmengine_checkpoint
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.syntax import Syntax
from rich.text import Text
from torch.nn.parallel import DistributedDataParallel

from . import checkpoint, download
from .config import resolved
from .files import replacing, sweep
from .preflight import CannotTrain, check_batches, check_training, without_workers
from .registry import HOOKS, RUNNERS
from .resumption import CannotResume, CheckpointHook, check_resumed, checkpoints, newest_whole

# --- checkpoints -----------------------------------------------------------------------------------------------------


def load_from_attlas(filename: str, map_location: Any = None, **_: Any) -> dict:
    """Read a checkpoint from a file or a URL for MMEngine. See `attlas.download`."""
    return _without_configs(download.read(filename, map_location or "cpu"))


def _without_configs(found: dict) -> dict:
    """What a checkpoint holds, without the texts of configs: MMEngine runs that of `meta.config` as Python when a
    training is resumed, and that of `cfg` when it infers from a checkpoint alone. Nothing that we use reads them."""
    hub = found.get("message_hub")
    parts = found.get("meta"), hub.get("runtime_info") if isinstance(hub, dict) else None
    for part in (part for part in parts if isinstance(part, dict)):
        part.pop("cfg", None)
        part.pop("config", None)
    return found


# Files and URLs by MMEngine's interface. Its other schemes (torchvision://, openmmlab://, s3://, ...) call two
# functions of its module; one falls back to unpickling, the other always unpickles. So these two names are set as well.
CheckpointLoader.register_scheme(("", "http://", "https://"), load_from_attlas, force=True)
mmengine_checkpoint._safe_torch_load = load_from_attlas
mmengine_checkpoint.load_from_http = load_from_attlas


def _raise_for_disk(handle: Callable, record: logging.LogRecord) -> None:
    """Stop a training whose log cannot be written, instead of printing a traceback for every line of the log."""
    if isinstance(sys.exc_info()[1], OSError):
        raise
    handle(record)


def keep_freed_memory() -> None:
    """Have glibc keep large blocks that are freed. By default it returns them to the kernel, which clears them anew at
    every step: a fifth of the time of a training on a CPU. Does nothing where the C library has no mallopt."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):
        return
    # M_MMAP_MAX = 0: no block gets a mapping of its own; M_TRIM_THRESHOLD, M_TOP_PAD: give back late, take much at
    # once; M_ARENA_MAX = 1: and that from the one heap that can grow
    for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**29), (-8, 1)):
        mallopt(parameter, value)


def end_processes() -> None:
    """To be called last, where several processes trained or tested on CPUs, and nothing holds the Runner any more.

    The threads of gloo free the last tensors that they sent. If Python is ending meanwhile, they abort the process.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        gc.collect()  # the Runner, which has cycles, with the network that holds the process group
        torch.distributed.destroy_process_group()  # waits for the threads


@contextmanager
def _data_in_a_sentence() -> Iterator[None]:
    """What data that are missing or do not fit say, as CannotTrain: tools print its sentence without a traceback."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise CannotTrain(str(error)) from error


@RUNNERS.register_module(name="AttlasRunner")
class Runner(runner.Runner):
    """MMEngine's Runner; its loops, hooks and config keys are all as they were. What differs:

    - Checkpoints are loaded through `attlas.checkpoint.load`: safetensors and the authors' files work for `load_from`,
      and an account of every name is logged. Top-level variables are options of it: `ignore_mismatched`, names that
      may differ in shape, `container` and `fit_channels`. A training that begins with weights for other classes leaves
      the last layer as it is (`classifier_names` of the model). An average of weights (EMAHook) begins with what was
      loaded.
    - Checkpoints and the resolved config are written whole or not at all.
    - Without a GPU, `launcher='pytorch'` uses gloo.
    - What would fail late, or run for nothing, is refused before the first step (`attlas.preflight`); so are data that
      are missing, by the sentence that they say.
    """

    _resume: bool
    _load_from: str | None

    def setup_env(self, env_cfg: dict) -> None:
        if not torch.cuda.is_available():
            keep_freed_memory()
        if self.distributed and not torch.cuda.is_available() and not torch.distributed.is_initialized():
            if self.launcher != "pytorch":
                raise ValueError(f"launcher={self.launcher!r} needs GPUs; without one it may be 'pytorch' or 'none'.")
            torch.distributed.init_process_group("gloo")
        super().setup_env(env_cfg)

    def build_logger(self, *args, **kwargs):
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handleError = partial(_raise_for_disk, handler.handleError)
        return logger

    def wrap_model(self, model_wrapper_cfg, model):
        if self.distributed and not torch.cuda.is_available():  # DistributedDataParallel refuses device_ids on a CPU
            model_wrapper_cfg = {
                "broadcast_buffers": False,
                "find_unused_parameters": self.cfg.get("find_unused_parameters", False),
                **(model_wrapper_cfg or {}),
                "device_ids": None,
            }
            wrapped = super().wrap_model(model_wrapper_cfg, model)
            # DDP lays its buckets out anew after the first step. The order in which gloo sums the processes' gradients
            # depends on the layout, so the first step after a resumption would not equal that of a training which was
            # never interrupted. Here the layout is final before the first step.
            if isinstance(wrapped, DistributedDataParallel):
                wrapped.reducer._push_all_rebuilt_params()
                wrapped.reducer._rebuild_buckets()
            return wrapped
        return super().wrap_model(model_wrapper_cfg, model)

    def load_checkpoint(self, filename, map_location="cpu", strict=False, revise_keys=None):
        found = CheckpointLoader.load_checkpoint(str(filename), map_location)
        if self._resume:
            check_resumed(found, self, filename)
        container = None if self._resume else self.cfg.get("container")
        besides = {} if self._resume else checkpoint.besides(found, container)
        if "state_dict" not in found or container is not None:
            found = {"state_dict": checkpoint.weights(found, container)}
        averages = [hook for hook in self.hooks if isinstance(hook, hooks.EMAHook)]
        for hook in self.hooks:
            if self._resume or hook not in averages:
                hook.after_load_checkpoint(self, checkpoint=found)
        account = checkpoint.load(
            self.model,
            found,
            rules=revise_keys,
            ignore_mismatched=[*self.cfg.get("ignore_mismatched", ()), *self._new_layers()],
            fit_channels=self.cfg.get("fit_channels", False),
            name=str(filename),
        )
        for hook in averages:
            # MMEngine's looks for its own names in the file, finds none in a file of the authors, and is evaluated
            if not self._resume and hasattr(hook, "ema_model"):
                hook.ema_model.module.load_state_dict(hook.src_model.state_dict())
        account.besides = besides
        checkpoint.log(account)
        if strict and not account.complete:
            raise ValueError(f"strict=True, but {account}")
        self._has_loaded = True
        return found

    def _new_layers(self) -> list[str]:
        """Expressions for the last layers of the model, which a training may begin without."""
        model: Any = checkpoint.unwrapped(self.model)
        if self._resume or not isinstance(self._train_loop, BaseLoop) or not hasattr(model, "classifier_names"):
            return []
        return [rf"^{re.escape(name)}\." for name in model.classifier_names()]

    @staticmethod
    def build_dataloader(dataloader, seed=None, diff_rank_seed=False):
        config = without_workers(dataloader) if isinstance(dataloader, dict) else dataloader
        return runner.Runner.build_dataloader(config, seed, diff_rank_seed)

    def build_train_loop(self, loop):
        with _data_in_a_sentence():
            built = super().build_train_loop(loop)
        check_batches(built.dataloader, self.model)  # before the schedules, which cannot be built without a batch
        return built

    def build_val_loop(self, loop):
        with _data_in_a_sentence():
            return super().build_val_loop(loop)

    def load_or_resume(self) -> None:
        if self._resume and self._load_from is None and not self._has_loaded:
            self._load_from = self._newest_whole()
            if self._load_from is None:
                self.logger.info(f"There is nothing to resume in {self.work_dir}: training begins from the start.")
                self._resume = False
        super().load_or_resume()
        if isinstance(self._train_loop, BaseLoop):  # else this is a test
            check_training(self)  # now, for a resumed schedule ends where it did

    def _newest_whole(self) -> str | None:
        """The checkpoint to go on from, as the first process finds it: all have to begin with the same one."""
        found: list[Any] = [None]
        if is_main_process():
            try:
                whole = newest_whole(checkpoints(self.work_dir, self._checkpoint_folder()))
                found = [whole and str(whole)]
            except CannotResume as error:
                found = [error]
        broadcast_object_list(found)
        if isinstance(found[0], CannotResume):
            raise found[0]
        return found[0]

    def _checkpoint_folder(self) -> Path:
        hook = next((hook for hook in self.hooks if isinstance(hook, CheckpointHook)), None)
        return hook.folder(self) if hook else Path(self.work_dir)

    @master_only
    def save_checkpoint(self, out_dir, filename, *args, **kwargs):
        with replacing(Path(out_dir) / filename) as temporary:
            super().save_checkpoint(out_dir, temporary.name, *args, **kwargs)

    @master_only
    def dump_config(self) -> None:
        if self._train_loop is None:  # a test must not overwrite the config that the training left
            return
        for folder in {Path(self.work_dir), self._checkpoint_folder()}:
            for left in sweep(folder):
                self.logger.info(f"Removed {left}, which a process that was killed left unfinished.")
        name = Path(self.cfg.filename).name if self.cfg.filename else f"{self.timestamp}.py"
        with replacing(Path(self.work_dir) / name) as temporary:
            self.cfg.dump(temporary)

    def get_hooks_info(self) -> str:
        return ", ".join(type(hook).__name__ for hook in self._hooks)

    @master_only
    def _log_env(self, env_cfg: dict) -> None:
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        self.logger.info(
            f"Python {platform.python_version()}, PyTorch {torch.__version__}, "
            f"{', '.join(devices) or f'CPU with {torch.get_num_threads()} threads'}; "
            f"{self.world_size} process{'es' if self.world_size > 1 else ''}, seed {self.seed}"
        )
        if self.cfg._cfg_dict:
            text = resolved(self.cfg)
            if sys.stdout.isatty():
                Console().print(Syntax(text, "python", background_color="default", word_wrap=True))
            else:
                self.logger.info(f"Config:\n{text}")


# --- reproducibility and progress ------------------------------------------------------------------------------------


@HOOKS.register_module()
class IterationSeedHook(hooks.DistSamplerSeedHook):
    """Seeds torch, numpy and random from (seed, epoch, iteration, rank) before each batch is fetched, each training
    iteration and each validation, so that a training that was killed and resumed draws the same numbers as one that
    was not. Use it as `default_hooks.sampler_seed`.

    What worker processes of a DataLoader draw is theirs: a data set that shall be repeatable there seeds itself by item
    (those of `attlas.pointnets` do).
    """

    def before_train_epoch(self, runner) -> None:
        super().before_train_epoch(runner)
        self._seed(runner, runner.iter, "fetch")
        # with one of its own, an iterator that is made anew takes none of the numbers of the next batch
        runner.train_dataloader.generator = torch.Generator().manual_seed(torch.initial_seed())

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._seed(runner, runner.iter, "train")

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._seed(runner, runner.iter + 1, "fetch")

    def before_val_epoch(self, runner) -> None:
        self._seed(runner, runner.iter, "validate")

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._seed(runner, runner.iter, "fetch")

    def _seed(self, runner, iteration: int, purpose: str) -> None:
        number = ("fetch", "train", "validate").index(purpose)
        source = np.random.SeedSequence([runner.seed, runner.epoch, iteration, runner.rank, number])
        state = source.generate_state(3)
        random.seed(int(state[0]))
        np.random.seed(state[1])
        torch.manual_seed(int(state[2]))


class _Speed(ProgressColumn):
    """Samples per second, where the loader knows its batch size; else iterations."""

    def render(self, task: Task) -> Text:
        batch = task.fields["batch"]
        speed = (task.speed or 0) * (batch or 1)
        return Text(f"{speed:.1f} {'samples' if batch else 'it'}/s", style="progress.data.speed")


@HOOKS.register_module()
class ProgressHook(hooks.Hook):
    """A progress bar with loss, speed and time left, on the first process of a terminal. Elsewhere there is none, and
    the lines of LoggerHook tell the same."""

    priority = "LOWEST"

    def __init__(self):
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def _start(self, runner, stage: str, total: int, loader: Any, text: str) -> None:
        if runner.rank != 0 or not sys.__stdout__ or not sys.__stdout__.isatty():
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                _Speed(),
                TimeRemainingColumn(),
            )
            self._bar.start()
            atexit.register(self._bar.stop)  # gives the terminal its cursor back after an error
            self._point_logger_at(runner, sys.stdout)  # which rich now redirects above the bar
        batch = getattr(loader, "batch_size", None)
        self._tasks[stage] = self._bar.add_task(text, total=total, loss="", batch=batch and batch * runner.world_size)

    def _end(self, runner, stage: str) -> None:
        if self._bar is None:
            return
        self._bar.remove_task(self._tasks.pop(stage))
        if not self._tasks:
            self._bar.stop()
            atexit.unregister(self._bar.stop)
            self._bar = None
            self._point_logger_at(runner, sys.stdout)

    @staticmethod
    def _point_logger_at(runner, stream: Any) -> None:
        """MMEngine's handler keeps the stream that was stdout when it was made, and would write through the bar."""
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(stream)

    def before_train(self, runner) -> None:
        self._start(runner, "train", runner.max_iters, runner.train_dataloader, "train")
        if self._bar:
            self._bar.update(self._tasks["train"], completed=runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._bar:
            by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
            text = f"epoch {runner.epoch + 1}/{runner.max_epochs}" if by_epoch else "train"
            loss = f"loss {float(outputs['loss']):.4f}" if outputs and "loss" in outputs else ""
            self._bar.update(self._tasks["train"], advance=1, description=text, loss=loss)

    def after_train(self, runner) -> None:
        self._end(runner, "train")

    def before_val_epoch(self, runner) -> None:
        self._start(runner, "val", len(runner.val_dataloader), runner.val_dataloader, "validate")

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._bar:
            self._bar.advance(self._tasks["val"])

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._end(runner, "val")

    def before_test_epoch(self, runner) -> None:
        self._start(runner, "test", len(runner.test_dataloader), runner.test_dataloader, "test")

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._bar:
            self._bar.advance(self._tasks["test"])

    def after_test_epoch(self, runner, metrics=None) -> None:
        self._end(runner, "test")
