"""The RISurConv classifier beside its naive twin: each in a process of its own, all with the same weights and batch, in
turns step by step."""

import copy
import gc
import multiprocessing
from functools import partial

import torch
import torch.nn.functional as F

from .cases import OURS, Run, surface
from .measure import PeakMemory, summary, take_turns, timed
from .naive import NaiveRISurConv, load_from_attlas

NETWORK = dict(num_classes=15, channels=(32, 64, 128, 256, 512), neighbors=(8, 16, 32, 64))
TWINS = {  # what stands in the table -> (our Runner's memory settings, bf16)
    OURS: (True, False),
    "attlas, bf16": (True, True),
    "naive": (False, False),
    "naive, memory kept": (True, False),
}


def twins(options: dict, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our classifier and the naive one, of the same weights."""
    from attlas.pointnets.risurconv import RISurConvClassifier

    torch.manual_seed(0)
    ours = RISurConvClassifier(**options, encoder_layers=0).to(dtype)
    naive = NaiveRISurConv(**options).to(dtype)
    load_from_attlas(naive, ours)
    return ours, naive


def logits_differ(options: dict, size: int) -> float:
    """The largest difference of their logits over the largest logit: a small batch in float64, with running statistics
    that one batch of training has moved."""
    ours, _ = twins(options, torch.float64)
    cloud = surface(2, size, torch.device("cpu"), torch.float64)
    with torch.no_grad():
        ours(*cloud)
    naive = NaiveRISurConv(**options).double()
    load_from_attlas(naive, ours)
    with torch.no_grad():
        expected, got = ours.eval()(*cloud), naive.eval()(*cloud)
    return ((got - expected).abs().max() / expected.abs().max()).item()


def worker(pipe, name: str, options: dict, batch: int, size: int, device_name: str, threads: int) -> None:
    """A process with one network: does a step for each mode it is sent, and answers with seconds and peak memory."""
    from attlas.engine import keep_freed_memory  # imported by all, so that all begin with the same memory

    device = torch.device(device_name)
    keep, half = TWINS[name]
    torch.set_num_threads(threads)
    if keep and device.type == "cpu":
        keep_freed_memory()  # as our Runner does
    network = twins(options)[0 if name.startswith(OURS) else 1].to(device)
    points, normals = surface(batch, size, device)
    labels = torch.arange(batch, device=device) % options["num_classes"]

    def training(network, optimizer, clouds):
        network.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(network(points[:clouds], normals[:clouds]), labels[:clouds])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def inference(network, clouds):
        network.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            return network(points[:clouds], normals[:clouds])

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


def measure_network(run: Run, names: list[str], num_points: int, quick: bool) -> list[dict]:
    """Inference, then training, of one variant: every network a step, then again."""
    options, batch, size = dict(NETWORK, num_points=num_points), 16, 1024
    if quick:
        options, batch, size = dict(options, channels=(8, 8, 8, 8, 8), neighbors=(4, 4, 4, 4)), 4, 2 * num_points
    differs = logits_differ(options, size)
    spawn, pipes, processes = multiprocessing.get_context("spawn"), {}, []
    for name in names:
        pipes[name], theirs = spawn.Pipe()
        arguments = (theirs, name, options, batch, size, str(run.device), run.threads)
        processes.append(spawn.Process(target=worker, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
    records = []
    for mode in ("inference", "training"):
        peak: dict[str, dict] = {}

        def step(name: str, mode=mode, peak=peak) -> float:
            pipes[name].send(mode)
            seconds, peak[name] = pipes[name].recv()  # EOFError: the process ended, and said why
            return seconds

        for name in names:
            step(name)  # the first step takes memory from the system, and tunes kernels
        turns = {name: partial(step, name) for name in names}
        times = take_turns(turns, budget=0 if quick else 20, least=lambda _: 3, most=9)
        results = {name: {**summary(seconds), **peak[name]} for name, seconds in times.items()}
        sizes = {"B": batch, "N": size, "num_points": num_points}
        records.append({"operator": f"network, {mode}", "sizes": sizes, "results": results, "logits_differ": differs})
    for pipe, process in zip(pipes.values(), processes):
        pipe.send(None)
        process.join()
    return records
