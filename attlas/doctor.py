"""A look at a training before it begins: what it would learn from, whether it can learn at all, and for how long.

`examine` gives the findings, which tools/doctor.py prints. What belongs to a kind of model is in `Task.examine`.
"""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.runner import EpochBasedTrainLoop

from .tasks import Task, task_of


class Finding(NamedTuple):
    """A line of the report."""

    about: str
    text: str
    warning: bool = False


def examine(config: Config, steps: int = 60, out: Path | None = None) -> Iterator[Finding]:
    """The findings about a training, which is built as it would be, and then overfits one batch.

    Args:
        config: config of a training, with everything filled in.
        steps: updates on one batch; 0 for none.
        out: a picture of the targets behind the pipeline, .png.

    Raises:
        ValueError, OSError: the training cannot begin; as `Runner.train` would say it.
    """
    from .engine import Runner  # here, because it changes how MMEngine loads files

    config = copy.deepcopy(config)
    with tempfile.TemporaryDirectory() as folder:
        config.work_dir, config.log_level, config.resume = folder, "ERROR", False
        runner: Any = Runner.from_cfg(config)
        loop = runner.build_train_loop(runner._train_loop)
        model, dataset = runner.model, loop.dataloader.dataset
        task = found() if (found := task_of(model)) else None
        yield from _schedule(runner, loop)
        if task is not None:
            yield from task.examine(dataset, model, out)
        if steps:
            runner._init_model_weights()
            if config.get("load_from"):
                runner.load_checkpoint(config.load_from)
            yield from _overfit(runner, loop.dataloader, steps, task)


def _schedule(runner: Any, loop: Any) -> Iterator[Finding]:
    updates = loop.max_iters
    sampler = loop.dataloader.batch_sampler  # which has the size where a config gives one
    told = f"{updates:,} updates of {getattr(sampler, 'batch_size', loop.dataloader.batch_size)} items"
    if isinstance(loop, EpochBasedTrainLoop):
        told = f"{loop.max_epochs} epochs of {len(loop.dataloader):,} updates, {told}"
    yield Finding("schedule", told)
    given = runner.cfg.get("param_scheduler") or []
    for entry in given if isinstance(given, list) else [given]:
        if entry.get("type") == "LinearLR" and not entry.get("by_epoch", True) and entry.get("end", 0) > updates / 4:
            yield Finding(
                "schedule", f"the warm-up of {entry['end']:,} updates is over a quarter of the training", warning=True
            )


def _overfit(runner: Any, dataloader: Any, steps: int, task: Task | None) -> Iterator[Finding]:
    """Learn one batch by heart, at the learning rate of the config: what cannot do that learns nothing."""
    model = runner.model.train()
    optimizer = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    batch = next(iter(dataloader))
    losses = []
    for _ in range(steps):
        found = model.train_step(copy.deepcopy(batch), optimizer)
        losses.append(float(found["loss"]))
        if not torch.isfinite(torch.tensor(losses[-1])):
            parts = ", ".join(f"{name} {float(value):g}" for name, value in found.items() if value.numel() == 1)
            yield Finding("one batch", f"the loss is {losses[-1]:g} at update {len(losses)}: {parts}", warning=True)
            return
    fell = losses[-1] < 0.5 * losses[0]
    told = f"the loss goes from {losses[0]:.3g} to {losses[-1]:.3g} in {steps} updates"
    yield Finding("one batch", told if fell else f"{told}: it should at least halve", warning=not fell)
    if task is not None:
        yield from task.examine_fit(model, batch)
