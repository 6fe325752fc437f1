"""How a model of text is asked (see `attlas.inference`): how many bits the bytes of a file take."""

import numpy as np
import torch

from ...tasks import Task
from .datasets import SUFFIXES


class Reading(Task):
    """Text files, and arrays of bytes uint8 (N,). A result has `bytes` and `bits_per_byte`; the picture shows where the
    text surprised the model."""

    suffixes = SUFFIXES
    top = 1

    def read(self, path):
        return self.take(np.frombuffer(path.read_bytes(), dtype=np.uint8))

    def take(self, source):
        text = np.asarray(source)
        if text.dtype != np.uint8 or text.ndim != 1 or len(text) < 2:
            raise ValueError(f"a text must be uint8 (N,) of at least two bytes, not {text.dtype} {text.shape}")
        return dict(tokens=torch.from_numpy(text.astype(np.int64)))

    def form(self, item):
        return tuple(item["tokens"].shape)

    def result(self, prediction, source, classes, top):
        bits = prediction["bits"].double().cpu()
        if not torch.isfinite(bits).all():
            raise ValueError("the network gives NaN or infinite numbers for it")
        parts = [float(part.mean()) for part in bits.tensor_split(min(200, len(bits)))]
        return dict(bytes=len(source["tokens"]), bits_per_byte=float(bits.mean()), along=parts)

    def said(self, result):
        return f"{result['bits_per_byte']:.3f} bits per byte, {result['bytes']:,} bytes"

    def draw(self, source, result):
        from matplotlib.figure import Figure  # here, because only pictures need it

        canvas = Figure(figsize=(8, 3), layout="constrained", dpi=120)
        axes = canvas.subplots()
        along = result["along"]
        axes.plot(np.linspace(0, result["bytes"], len(along)), along, color="#2f5d8a", linewidth=1)
        axes.axhline(result["bits_per_byte"], color="0.6", linewidth=0.8)
        axes.set(xlabel="byte", ylabel="bits per byte", ylim=(0, None), title=self.said(result))
        return canvas
