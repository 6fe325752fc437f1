"""What is checked before the first step of a training: it shall neither fail late nor run for nothing.

The Runner calls `check_batches` as soon as it has the training's data, and `check_training` when all is built. (That a
training which goes on has the same data is `resumption.check_resumed`.) All of it holds for any floor: a model says how
many classes it has by `num_classes`, its own or that of its heads; a data set by `metainfo["classes"]`, and, where an
item has one label, by `labels`.
"""

import logging
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
from mmengine import dist
from mmengine.dataset import InfiniteSampler
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .data import Items
from .files import printable
from .optim import topmost


class CannotTrain(ValueError):
    """A training would fail or be in vain as it is configured. Its text is for the user."""


def _warn(text: str) -> None:
    print_log(text, logger="current", level=logging.WARNING)


# --- data ------------------------------------------------------------------------------------------------------------


def without_workers(loader: Mapping) -> dict:
    """The config of a loader, without what PyTorch refuses where there are no workers."""
    kept = dict(loader)
    if not loader.get("num_workers"):
        dropped = [key for key in ("persistent_workers", "prefetch_factor") if kept.pop(key, None)]
        if dropped:
            print_log(f"num_workers is 0, so {' and '.join(dropped)} is left out.", logger="current")
    return kept


def check_batches(loader: Any, model: Any) -> None:
    """Hold the data of a training to its batches and to its model.

    Args:
        loader: the DataLoader of the training.
        model: the module that is trained, wrapped or not.

    Raises:
        CannotTrain: there is no batch; or one of a single item, of which batch norm cannot take statistics; or the
            model has more or fewer classes than the data, or a loss that does not fit to its outputs; or there is one
            class alone.
    """
    model = model.module if is_model_wrapper(model) else model
    check_classes(loader.dataset, model)
    check_losses(model)
    labels = _labels(loader.dataset)
    if labels is not None:
        classes = loader.dataset.metainfo["classes"]
        if len(classes) == 1:
            raise CannotTrain(
                f"The training data have one class, {printable(classes[0])!r}: there is nothing to tell apart. In "
                "data of folders each class is a folder of its own, in root or in root/train."
            )
        empty = [name for name, count in zip(classes, np.bincount(labels, minlength=len(classes))) if not count]
        if empty:
            _warn(f"No training item is of the class {_some(empty)}: it will not be learned.")
    if loader.batch_size is None or isinstance(loader.sampler, InfiniteSampler):
        return
    items, size = len(loader.sampler), loader.batch_size  # of this process
    share = f" for each of {dist.get_world_size()} processes" if dist.get_world_size() > 1 else ""
    if items < size and loader.drop_last:
        raise CannotTrain(
            f"train_dataloader: of {items} items{share}, in batches of {size}, drop_last=True leaves no batch; "
            f"batch_size may be at most {items}."
        )
    if items % size == 1 < size and not loader.drop_last and (norm := _batch_norm(model)):
        other = next((number for number in range(size + 1, items + 1) if items % number != 1), None)
        advice = f"Take batch_size={other} or drop_last=True." if other else "More items are needed."
        raise CannotTrain(
            f"train_dataloader: of {items} items{share}, in batches of {size}, the last batch is one item, of which "
            f"batch norm ({norm}) cannot take statistics. {advice}"
        )


def check_classes(dataset: Any, model: nn.Module) -> None:
    """Compare the number of classes of a data set with `num_classes` of a model, or of its parts; of panoptic ones
    those of things and of stuff.

    Raises:
        CannotTrain: names the part.
    """
    classes = _classes(dataset)
    if classes is None:
        return
    parts = topmost(model, lambda module: type(getattr(module, "num_classes", None)) is int)
    counts = {name: part.num_classes for name, part in parts.items() if part.num_classes}
    agnostic = max(counts.values(), default=0) > 1  # then a part with one class, as proposals have, tells none apart
    for name, count in counts.items():
        if count != len(classes) and not (agnostic and count == 1):
            raise CannotTrain(
                f"num_classes of {name or type(model).__name__} is {count}, and the data set has "
                f"{len(classes)} classes ({_some(classes)})."
            )
    _check_things(dataset.metainfo, model)


def _check_things(metainfo: Mapping, model: nn.Module) -> None:
    """As `check_classes`, of the parts of a panoptic model: RoI heads tell things apart."""
    if not {"thing_classes", "stuff_classes"} <= metainfo.keys():
        return
    names = dict(num_things_classes=metainfo["thing_classes"], num_stuff_classes=metainfo["stuff_classes"])
    parts = dict(model.named_modules())
    found = [(name, key, getattr(part, key)) for name, part in parts.items() for key in names if hasattr(part, key)]
    if found:
        names["num_classes"] = names["num_things_classes"]
        rois = ((name, getattr(part, "num_classes", None)) for name, part in parts.items() if "roi_head" in name)
        found += [(name, "num_classes", count) for name, count in rois if type(count) is int]
    for name, key, count in found:
        if count != len(names[key]):
            kind = "stuff" if key == "num_stuff_classes" else "things"
            raise CannotTrain(
                f"{key} of {name or type(model).__name__} is {count}, and the data set has {len(names[key])} classes "
                f"of {kind} ({_some(names[key])})."
            )


def check_losses(model: nn.Module) -> None:
    """Refuse heads of mmseg that give one number for a pixel to a loss, or to a choice of hard pixels, that wants one
    for each class: on a GPU that is an assertion of the device.

    Raises:
        CannotTrain: names the head.
    """
    for name, part in model.named_modules():
        if getattr(part, "out_channels", None) != 1 or not hasattr(part, "loss_decode"):
            continue
        if getattr(getattr(part, "sampler", None), "thresh", None) is not None:
            raise CannotTrain(
                f"{name or type(part).__name__} has out_channels=1, one number for each pixel, and its "
                f"{type(part.sampler).__name__} with a thresh wants one for each class: leave thresh out."
            )
        losses = part.loss_decode if isinstance(part.loss_decode, nn.ModuleList) else [part.loss_decode]
        for loss in losses:
            if getattr(loss, "use_sigmoid", True) is False:
                raise CannotTrain(
                    f"{name or type(part).__name__} has out_channels=1, one number for each pixel, and its "
                    f"{type(loss).__name__} with use_sigmoid=False wants one for each class: take use_sigmoid=True, or "
                    "leave out_channels out."
                )


def _classes(dataset: Any) -> tuple[str, ...] | None:
    found = (getattr(dataset, "metainfo", None) or {}).get("classes")
    return tuple(found) if found else None


def _labels(dataset: Any) -> np.ndarray | None:
    """The labels (N,) of the items of a data set that has one for each item."""
    labels = getattr(dataset, "labels", None)
    if not isinstance(dataset, Items) or not isinstance(labels, np.ndarray) or not dataset.classes:
        return None
    return labels[dataset.items]


def _batch_norm(model: nn.Module) -> str | None:
    """The name of a batch norm that takes the statistics of the batches of one process, if there is one."""
    model.train()  # as every epoch begins; what is frozen stays so
    several = dist.get_world_size() > 1
    for name, module in model.named_modules():
        shared = several and isinstance(module, nn.SyncBatchNorm)
        if isinstance(module, _BatchNorm) and module.training and not shared:
            return name
    return None


def _some(names: Iterable[str], most: int = 5) -> str:
    names = [printable(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- the schedule ----------------------------------------------------------------------------------------------------

# Schedules that come down to an end. The others (steps, restarts, exponentials, warm-ups) may go on as they are.
FALLING = ("CosineAnnealing", "Poly", "OneCycle", "Linear")


def check_training(runner: Any) -> None:
    """Compare the classes of training and validation, and warn of a schedule that does not end with the training.

    A learning rate that stays at its smallest for up to a tenth of the training is taken to be meant.

    Raises:
        CannotTrain: the data sets have other classes.
    """
    trained = _classes(runner.train_dataloader.dataset)
    if runner.val_loop is not None:
        validated = _classes(runner.val_loop.dataloader.dataset)
        if trained and validated and trained != validated:
            raise CannotTrain(
                f"The training data have the classes {_some(trained)}; those of val_dataloader are {_some(validated)}."
            )
    ends = [found for scheduler in schedulers(runner) if (found := _end(scheduler, runner))]
    if not ends:
        return
    end, total, name = max(ends)
    unit = "epoch" if isinstance(runner.train_loop, EpochBasedTrainLoop) else "iteration"
    if end > total or end < 0.9 * total:
        then = "stays at its smallest from there on" if end < total else "does not come down to its smallest"
        _warn(
            f"The learning rate {then}: {name} ends at {unit} {end:g}, and training at {total}. Where the config has a "
            "variable max_epochs, that sets both (--cfg-options max_epochs=...); else set end and T_max as well."
        )


def schedulers(runner: Any) -> list[Any]:
    """The schedules of a training, also where there are several optimizers."""
    found = runner.param_schedulers
    return list(chain.from_iterable(found.values()) if isinstance(found, dict) else found or ())


def _end(scheduler: Any, runner: Any) -> tuple[float, int, str] | None:
    """Where a falling schedule of the learning rate ends, and where training does, both in the unit of the training."""
    name, loop = type(scheduler).__name__, runner.train_loop
    if scheduler.param_name != "lr" or not name.startswith(FALLING) or "Restart" in name:
        return None
    if name.startswith("Linear") and scheduler.end_factor >= scheduler.start_factor:
        return None
    length = getattr(scheduler, "total_steps", None) or getattr(scheduler, "T_max", None)
    end = min(scheduler.end, scheduler.begin + length) if length else scheduler.end
    if isinstance(loop, EpochBasedTrainLoop):
        return (end if scheduler.by_epoch else end / len(loop.dataloader)), loop.max_epochs, name
    if isinstance(loop, IterBasedTrainLoop) and not scheduler.by_epoch:
        return end, loop.max_iters, name
    return None
