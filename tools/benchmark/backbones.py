"""The smallest backbone of every system beside itself by PyTorch's plain operators, in turns step by step.

*naive* is the same network with the same weights. Its kernels run as their PyTorch references, and its products go
where PyTorch sends them. It shows what kernels and routes are worth, not how we stand beside others' networks.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from attlas import backbones

from .cases import OURS, Run
from .measure import PeakMemory, summary, take_turns, timed

LINEAR = importlib.import_module("attlas.backbones.layers.linear")  # the package has a function of that name


@contextmanager
def plain() -> Iterator[None]:
    """PyTorch's own operators alone."""
    products = mock.patch.object(LINEAR, "by_onednn", return_value=False)
    with mock.patch.dict(os.environ, ATTLAS_KERNELS="reference"), products:
        yield


def smallest(system: str) -> str:
    """The name of the variant with the fewest parameters."""
    variants = backbones.systems()[system].variants
    return min(variants, key=lambda name: variants[name].params)


def step(network: torch.nn.Module, image: Tensor, mode: str) -> Tensor:
    """Logits of an inference, or the loss of a forward and a backward."""
    if mode == "inference":
        with torch.inference_mode():
            return network.eval()(image)
    network.train().zero_grad()
    logits = network(image)
    logits = logits[0] if isinstance(logits, tuple) else logits  # others are of an auxiliary head
    loss = F.cross_entropy(logits, torch.arange(len(image), device=image.device))
    loss.backward()
    return loss.detach()


def naive_step(network: torch.nn.Module, image: Tensor, mode: str) -> Tensor:
    with plain():
        return step(network, image, mode)


def measure_backbone(run: Run, system: str, batch: int, side: int, mode: str, quick: bool) -> dict:
    """Time and memory of one network, and the largest difference of its results over the largest result."""
    torch.manual_seed(0)
    name = smallest(system)
    network = backbones.create(name, num_classes=1000, drop_path_rate=0.0).to(run.device)
    image = torch.randn(batch, 3, side, side, device=run.device)
    calls = {who: partial(call, network, image, mode) for who, call in ((OURS, step), ("naive", naive_step))}
    outputs, peak = {}, {}
    for who, call in calls.items():
        call()  # compiles
        memory = PeakMemory(run.device)
        outputs[who] = call()
        peak[who] = memory.mib()
    turns = {who: (lambda call=call: timed(call, run.device)[0]) for who, call in calls.items()}
    times = take_turns(turns, budget=0 if quick else 3, least=lambda _: 3, most=15)
    ours, naive = outputs[OURS], outputs["naive"]
    return {
        "operator": f"network of images, {mode}",
        "sizes": {"network": name, "B": batch, "side": side},
        "results": {who: {**summary(seconds), **peak[who]} for who, seconds in times.items()},
        "logits_differ": ((ours - naive).abs().max() / naive.abs().max()).item(),
    }


def measure_backbones(run: Run, quick: bool) -> Iterator[dict]:
    """Inference and training of every system, for one image and for eight."""
    for mode in ("inference", "training"):
        for system in sorted(backbones.systems()):
            for batch in (1,) if quick else (1, 8):
                yield measure_backbone(run, system, batch, 64 if quick else 224, mode, quick)
