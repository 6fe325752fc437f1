"""A network and a data set that train in milliseconds: points on a line, told apart with dropout in the way."""

import os
import time
from pathlib import Path

import torch
from mmengine.evaluator import BaseMetric
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
        return [{"index": int(i), "right": bool(r)} for i, r in zip(index, logits.argmax(1) == label)]


@METRICS.register_module()
class ToyCount(BaseMetric):
    """Counts samples, and sums their indices: each once, or it shows."""

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        right = sum(sample["right"] for sample in results) / len(results)
        # as floats: MMEngine writes numpy integers as null
        return {"count": float(len(results)), "index_sum": float(sum(s["index"] for s in results)), "acc": right}


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
    """Kills the process as `kill -9` does: nothing is closed, nothing is written."""

    def __init__(self, iteration: int):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            os.kill(os.getpid(), 9)
