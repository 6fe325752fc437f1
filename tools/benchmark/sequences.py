"""How the time and the memory of operators over sequences grow from 1,024 to 65,536 tokens.

A row of one operator is a series of calls, forward and with backward, of one sequence with two heads of 32 channels.
Its law is the slope of a line through the logarithms: time ~ N^p, memory ~ N^p. PyTorch's fused attention, and
attention with all N x N weights, stand beside them as far as a call takes a few seconds.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attlas.kernels import (
    combiner_fixed,
    combiner_logsparse,
    combiner_mixture,
    combiner_rowmajor,
    lightning_attention,
    nprf_attention,
    reversed_attention,
    sparse_attention,
)
from attlas.kernels.lightning_attention import alibi_slopes

from .cases import OURS, Run
from .measure import PeakMemory, seconds_of, summary

HEADS, DIM, FEATURES, KEYS = 2, 32, 32, 64
LENGTHS, QUICK = [1024 << n for n in range(7)], [256, 512]
PATIENCE = 6.0  # seconds: an operator whose call takes longer goes no further
LAW = "law of "


def _weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def _scanned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The cumulative form of linear attention, with a state for each token."""
    return ((k.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(2) * q.unsqueeze(-1)).sum(-2)


def operators(length: int, device: torch.device) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Functions (q, k, v) -> out of one length by name."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(FEATURES, DIM, generator=draw).to(device)
    biases = torch.randn(HEADS, 2 * length - 1, generator=draw).to(device)
    height = 1 << (length.bit_length() // 2)
    width = length // height
    grid = torch.randn(HEADS, 2 * height - 1, 2 * width - 1, generator=draw).to(device)
    index = torch.randint(length, (1, HEADS, length, KEYS), generator=draw).to(device)
    slopes = alibi_slopes(HEADS).to(device)
    segment = math.isqrt(length)
    return {
        "attention, fused": F.scaled_dot_product_attention,
        "attention, causal, fused": partial(F.scaled_dot_product_attention, is_causal=True),
        "attention, all weights": _weights,
        "linear attention, cumulative": _scanned,
        "lightning_attention": lambda q, k, v: lightning_attention(q, k, v, slopes)[0],
        "nprf_attention": lambda q, k, v: nprf_attention(q, k, v, features, biases),
        "nprf_attention, causal": lambda q, k, v: nprf_attention(q, k, v, features, biases, causal=True),
        "nprf_attention, grid": lambda q, k, v: nprf_attention(q, k, v, features, grid),
        "combiner, fixed": partial(combiner_fixed, segment=segment, causal=True),
        "combiner, logsparse": combiner_logsparse,
        "combiner, row-major": partial(combiner_rowmajor, segment=segment),
        "combiner, mixture": partial(combiner_mixture, segment=segment),
        f"sparse_attention, {KEYS} keys": lambda q, k, v: sparse_attention(q, k, v, index),
        "reversed_attention": reversed_attention,
    }


def measure_laws(run: Run, quick: bool) -> Iterator[dict]:
    """A record for each operator, step and length."""
    for name in operators(QUICK[0], run.device):
        for step in ("forward", "forward+backward"):
            for length in QUICK if quick else LENGTHS:
                result = _measured(name, step, length, run, 1 if quick else 3)
                yield {"operator": f"{LAW}{name}, {step}", "sizes": {"N": length}, "results": {OURS: result}}
                if result["ms"] > 1e3 * PATIENCE / 4:  # the next length may take four times as long
                    break


def _measured(name: str, step: str, length: int, run: Run, rounds: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, HEADS, length, DIM, generator=draw).to(run.device) for _ in range(3)]
    if backward := step != "forward":
        tensors = [x.requires_grad_() for x in tensors]
    function = operators(length, run.device)[name]

    def call() -> None:
        with torch.set_grad_enabled(backward):
            out = function(*tensors)
            if backward:
                torch.autograd.grad(out.sum(), tensors)

    call()  # compiles
    memory = PeakMemory(run.device)
    call()
    taken = memory.mib()
    repeat = max(1, min(20, int(0.02 / max(seconds_of(call, run.device), 1e-6))))
    return taken | summary([seconds_of(call, run.device, repeat) for _ in range(rounds)])
