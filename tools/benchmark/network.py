"""The RISurConv classifier and segmenter beside their naive twins: each in a process of its own, all with the same
weights and batch, in turns step by step."""

import copy
import gc
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import OURS, Run, surface
from .measure import PeakMemory, summary, take_turns, timed
from .naive import NaiveRISurConv, NaiveRISurConvSegmenter, load_from_attlas


@dataclass
class Network:
    """Our network and its twin.

    Args:
        name: the operator of its records begins with it.
        ours: name of the class.
        naive: class of the twin.
        options: what both are made with.
        small: what they are made with to see whether it works.
        sizes: numbers of points of a cloud, and of the points that the first layer samples.
        own: what ours is made with besides.
        per_point: whether it has logits of every point, and is told the category of the cloud.
        kept: whether a twin that keeps its memory has room beside the others.
    """

    name: str
    ours: str
    naive: type[torch.nn.Module]
    options: dict[str, Any]
    small: dict[str, Any]
    sizes: tuple[tuple[int, int], ...]
    own: dict[str, Any]
    per_point: bool = False
    kept: bool = True


NETWORKS = {
    "network": Network(
        "network",
        "RISurConvClassifier",
        NaiveRISurConv,
        dict(num_classes=15, channels=(32, 64, 128, 256, 512), neighbors=(8, 16, 32, 64)),
        dict(num_classes=15, channels=(8, 8, 8, 8, 8), neighbors=(4, 4, 4, 4)),
        sizes=((1024, 512), (1024, 1024)),  # ScanObjectNN's variant, and ModelNet40's
        own=dict(encoder_layers=0),
    ),
    "parts": Network(
        "network of parts",
        "RISurConvSegmenter",
        NaiveRISurConvSegmenter,
        dict(num_classes=50, num_categories=16),  # ShapeNetPart
        dict(
            num_classes=50,
            num_categories=16,
            channels=(8, 8, 8, 8),
            neighbors=(4, 4, 4, 4),
            decoder=((8, 8), (8, 8), (8, 8), (8,)),
            decoder_neighbors=(4, 4, 4, 4),
        ),
        sizes=((2048, 512),),
        own={},
        per_point=True,
        kept=False,
    ),
}
TWINS = {  # what stands in the table -> (our Runner's memory settings, bf16)
    OURS: (True, False),
    "attlas, bf16": (True, True),
    "naive": (False, False),
    "naive, memory kept": (True, False),
}


def twins(kind: str, options: dict, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our network and the naive one, of the same weights."""
    from attlas.pointnets import risurconv

    network = NETWORKS[kind]
    torch.manual_seed(0)
    ours = getattr(risurconv, network.ours)(**options, **network.own).to(dtype)
    naive = network.naive(**options).to(dtype)
    load_from_attlas(naive, ours)
    return ours, naive


def clouds(kind: str, batch: int, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """What the network takes: points, normals, and perhaps a category of each cloud."""
    inputs = [*surface(batch, size, device, dtype)]
    if NETWORKS[kind].per_point:
        inputs.append(torch.arange(batch, device=device) % NETWORKS[kind].options["num_categories"])
    return inputs


def logits_differ(kind: str, options: dict, size: int) -> float:
    """The largest difference of their logits over the largest logit: a small batch in float64, with running statistics
    that one batch of training has moved."""
    ours, naive = twins(kind, options, torch.float64)
    inputs = clouds(kind, 2, size, torch.device("cpu"), torch.float64)
    with torch.no_grad():
        ours(*inputs)
        load_from_attlas(naive, ours)
        expected, got = ours.eval()(*inputs), naive.eval()(*inputs)
    return ((got - expected).abs().max() / expected.abs().max()).item()


def worker(pipe, kind: str, name: str, options: dict, batch: int, size: int, device_name: str, threads: int) -> None:
    """A process with one network: does a step for each mode it is sent, and answers with seconds and peak memory."""
    from attlas.engine import keep_freed_memory  # imported by all, so that all begin with the same memory

    device = torch.device(device_name)
    keep, half = TWINS[name]
    torch.set_num_threads(threads)
    if keep and device.type == "cpu":
        keep_freed_memory()  # as our Runner does
    network = twins(kind, options)[0 if name.startswith(OURS) else 1].to(device)
    inputs, per_point = clouds(kind, batch, size, device), NETWORKS[kind].per_point
    labels = torch.arange(batch * size if per_point else batch, device=device) % options["num_classes"]
    labels = labels.view(batch, -1)

    def training(network, optimizer, few):
        network.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = network(*(x[:few] for x in inputs))
            loss = F.cross_entropy(logits.flatten(0, -2), labels[:few].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def inference(network, few):
        network.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            return network(*(x[:few] for x in inputs))

    rehearsal = copy.deepcopy(network)  # compiles
    training(rehearsal, torch.optim.Adam(rehearsal.parameters()), 2)
    inference(rehearsal, 2)
    del rehearsal
    gc.collect()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    memory = PeakMemory(device)
    steps = {"inference": lambda: inference(network, batch), "training": lambda: training(network, optimizer, batch)}
    while mode := pipe.recv():
        seconds, _ = timed(steps[mode], device)
        pipe.send((seconds, memory.mib()))


def measure_network(run: Run, kind: str, names: list[str], batch: int, quick: bool) -> Iterator[dict]:
    """Inference, then training, of each variant: every network a step, then again."""
    network, spawn = NETWORKS[kind], multiprocessing.get_context("spawn")
    batch = min(4, batch) if quick else batch
    names = [name for name in names if network.kept or name != "naive, memory kept"]
    for size, num_points in ((128, 64),) if quick else network.sizes:
        options = dict(network.small if quick else network.options, num_points=num_points)
        differs = logits_differ(kind, options, size)
        pipes, processes = {}, []
        for name in names:
            pipes[name], theirs = spawn.Pipe()
            arguments = (theirs, kind, name, options, batch, size, str(run.device), run.threads)
            processes.append(spawn.Process(target=worker, args=arguments, daemon=True))
            processes[-1].start()
            theirs.close()
        for mode in ("inference", "training"):
            peak: dict[str, dict] = {}

            def step(name: str, pipes=pipes, mode=mode, peak=peak) -> float:
                pipes[name].send(mode)
                seconds, peak[name] = pipes[name].recv()  # EOFError: the process ended, and said why
                return seconds

            for name in names:
                step(name)  # the first step takes memory from the system, and tunes kernels
            turns = {name: partial(step, name) for name in names}
            times = take_turns(turns, budget=0 if quick else 20, least=lambda _: 3, most=9)
            results = {name: {**summary(seconds), **peak[name]} for name, seconds in times.items()}
            sizes = {"B": batch, "N": size, "num_points": num_points}
            yield {"operator": f"{network.name}, {mode}", "sizes": sizes, "results": results, "logits_differ": differs}
        for pipe, process in zip(pipes.values(), processes):
            pipe.send(None)
            process.join()
