"""Networks that drop tokens or keys beside the plain one with PyTorch's fused attention: where each breaks even.

All are of the width and depth of DeiT-Ti, with random weights, in turns batch by batch. What finds the tokens or keys
(interpreters, predictors, messages) is part of every figure. Multiply-adds are those of products and convolutions, of
our operators as their references compute them: they are not time.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attlas import backbones
from attlas.backbones.inspection.costs import analyze

from .cases import Run
from .measure import PeakMemory, summary, take_turns, timed

DENSE = "fused attention"
PATCH, CLASSES, COUNTED = 16, 1000, 2  # images whose multiply-adds are counted
SIDES = (14, 24, 32)  # of the map of patches
BATCHES = (1, 8, 32)
MOST = 32 * 24**2  # patches of a batch
KEYS = 0.25
LEFT = (1.0,) * 3 + (0.7,) * 3 + (0.49,) * 3 + (0.34,) * 3  # Sparsifiner's pixels, behind every block
COSTS = (1.0, 0.75, 0.5)  # of IA-RED2, relative to all tokens, as its `interpret` says them


def create(name: str, side: int, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return backbones.create(name, num_classes=CLASSES, img_size=PATCH * side, **options).eval()


def interpreted(side: int, image: Tensor, cost: float) -> nn.Module:
    """IA-RED2 with interpreters that differ from token to token, and the threshold at which images cost that much."""
    network: Any = create("ia_red2_deit_tiny", side).to(image.device)
    for interpreter in network.interpreters:
        nn.init.normal_(interpreter.qk.weight, std=0.2)
    low, high = (0.0, 0.0) if cost == 1 else (0.0, 1.0)
    network.threshold = low
    while high - low > 1e-3:
        network.threshold = (low + high) / 2
        with torch.inference_mode():
            found = network.interpret(image[:COUNTED]).cost.mean().item()
        low, high = (network.threshold, high) if found > cost else (low, network.threshold)
    return network


def networks(side: int, image: Tensor) -> dict[str, Callable[[], nn.Module]]:
    """What makes a network for images of side x side patches, by name."""
    sparse = partial(create, "sparsifiner_tiny", side)
    return {
        DENSE: partial(create, "deit_tiny", side),
        "Sparsifiner, 1/4 of the keys": partial(sparse, keep=KEYS),
        "the same, and fewer pixels": partial(sparse, keep=KEYS, token_keep=LEFT),
        "Sparsifiner, fewer pixels": partial(sparse, keep=1.0, token_keep=LEFT),
        "DependencyViT-Lite": partial(create, "dependencyvit_lite_tiny", side),
        **{f"IA-RED2, cost {cost:g}": partial(interpreted, side, image, cost) for cost in COSTS},
    }


def inference(network: nn.Module, image: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(image)


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    return timed(call, device)[0]


def measure_tokens(run: Run, quick: bool) -> Iterator[dict]:
    """A record for each number of images and patches, with the results of all networks, the least work first."""
    sizes = [(2, 8)] if quick else [(batch, side) for side in SIDES for batch in BATCHES if batch * side**2 <= MOST]
    for batch, side in sorted(sizes, key=lambda size: size[0] * size[1] ** 2):
        yield _measured(run, batch, side, quick)


def _measured(run: Run, batch: int, side: int, quick: bool) -> dict:
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(batch, 3, PATCH * side, PATCH * side, generator=draw).to(run.device)
    results: dict[str, dict] = {}
    calls: dict[str, Callable[[], float]] = {}
    for name, build in networks(side, image).items():
        network = build().to(run.device)
        call = partial(inference, network, image)
        call()  # compiles
        memory = PeakMemory(run.device)
        call()
        taken, counted = memory.mib(), image[:COUNTED]
        results[name] = taken | {"macs": analyze(network, counted, repeats=0)[-1].macs / len(counted)}
        calls[name] = partial(_seconds, call, run.device)
    times = take_turns(calls, budget=0.0 if quick else 1.0, least=lambda _: 3, most=15)
    for name, seconds in times.items():
        results[name] |= summary(seconds)
    return {"operator": "fewer tokens", "sizes": {"B": batch, "N": side**2}, "results": results}
