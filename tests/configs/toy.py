"""A network and a data set that train in milliseconds: points on a line, told apart with dropout in the way."""

import os
import sys
import time
from pathlib import Path

import torch
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from attlas.registry import DATASETS, HOOKS, METRICS, MODELS


@DATASETS.register_module()
class ToyPoints(Dataset):
    def __init__(self, length: int):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        noise = torch.rand(4)  # from the global generator, as the transforms of many data sets
        return {"point": torch.randn(4, generator=generator) + noise, "label": index % 2, "index": index}


@MODELS.register_module()
class ToyClassifier(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))

    def forward(self, point, label, index, mode="tensor"):
        logits = self.layers(point)
        if mode == "loss":
            return {"loss": nn.functional.cross_entropy(logits, label)}
        losses = nn.functional.cross_entropy(logits, label, reduction="none")
        return [
            {"index": int(i), "right": bool(r), "loss": float(loss)}
            for i, r, loss in zip(index, logits.argmax(1) == label, losses)
        ]


@METRICS.register_module()
class ToyCount(BaseMetric):
    """Counts samples, and sums their indices: each once, or it shows."""

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        right, loss = (sum(sample[key] for sample in results) / len(results) for key in ("right", "loss"))
        # as floats: MMEngine writes numpy integers as null
        return {
            "count": float(len(results)),
            "index_sum": float(sum(sample["index"] for sample in results)),
            "acc": right,
            "val_loss": loss,
        }


@HOOKS.register_module()
class RecordLosses(Hook):
    """Appends "iteration loss" with every bit of the loss to a file; waits a moment so that a test can kill in time."""

    def __init__(self, path: str, wait: float = 0.0):
        self.path, self.wait = Path(path), wait

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        with self.path.with_suffix(f".{runner.rank}").open("a") as file:
            file.write(f"{runner.iter} {outputs['loss'].item().hex()}\n")
        time.sleep(self.wait)


@HOOKS.register_module()
class DieAt(Hook):
    """Kills the process as `kill -9` does: nothing is closed, nothing is written. Or sends it another signal.

    Args:
        iteration: the iteration before which to die.
        moment: the number of the moment at which to die. A moment is before each step of training or validation, before
            the hooks that follow an epoch or a validation, before a file of the work dir is opened for writing, renamed
            or removed, and when half a checkpoint is written.
        trace: the file that gets a line for each moment.
        number: the signal.
    """

    priority = "VERY_HIGH"

    def __init__(self, iteration: int = -1, moment: int = -1, trace: str | None = None, number: int = 9):
        self.iteration, self.moment, self.number = iteration, moment, number
        self.trace = trace and Path(trace)
        self.count = 0

    def before_run(self, runner):
        if self.trace is None:
            return
        put = LocalBackend.put
        watched = Path(runner.work_dir)

        def halves(backend, content, path):
            put(backend, content[: len(content) // 2], path)
            self.pass_moment(f"half {Path(path).name}")
            put(backend, content, path)

        def audit(event, args):
            writes = event == "open" and isinstance(args[1], str) and "w" in args[1]
            if (writes or event in ("os.rename", "os.remove")) and Path(str(args[0])).parent == watched:
                self.pass_moment(f"{event} {Path(args[0]).name}")

        LocalBackend.put = halves
        sys.addaudithook(audit)

    def pass_moment(self, name):
        if self.trace is None:
            return
        if self.count == self.moment:
            os.kill(os.getpid(), self.number)
        self.count += 1
        fd = os.open(self.trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{name}\n".encode())
        os.close(fd)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.pass_moment(f"train {runner.iter}")
        if runner.iter == self.iteration:
            os.kill(os.getpid(), self.number)

    def after_train_epoch(self, runner):
        self.pass_moment("end of the epoch")

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.pass_moment(f"validate {batch_idx}")

    def after_val_epoch(self, runner, metrics=None):
        self.pass_moment("end of the validation")
