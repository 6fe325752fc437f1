"""Measure the operators of `attlas.kernels` and the RISurConv classifier against what else PyPI has.

    python tools/benchmark.py                            everything, about 12 minutes: work_dirs/benchmark/cpu.json
    python tools/benchmark.py --device cuda              the same on a GPU: work_dirs/benchmark/cuda.json
    python tools/benchmark.py --only knn,network --quick some of it, small, in seconds
    python tools/benchmark.py --markdown docs/performance.md cpu.json [more.json ...]  results of runs into the page

The implementations of a case take turns in one run (A B C A B C ...), after first calls that compile, tell how much
memory each takes, and show how far its results differ from ours. Figures are medians, with the quartiles. A peer that
is not installed is left out and named. The networks are compared with their naive twin (tools/naive.py): each in a
process of its own, all with the same weights and batch, in turns step by step.
"""

import argparse
import contextlib
import copy
import ctypes
import gc
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmark_cases import CPU_ONLY, EAGER, GPU_ONLY, OPERATORS, OURS, PEERS, Case, Run, all_cases, surface
from benchmark_images import IMAGE_OPERATORS, image_cases
from benchmark_page import figure, growth, joined, tables, write_page
from naive import NaiveRISurConv, load_from_attlas
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attlas.files import replacing

CHOICES = [*OPERATORS, *IMAGE_OPERATORS, "network"]
ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 10.0  # seconds for one call: what would take longer is left out
console = Console(width=None if sys.stdout.isatty() else 200)


# --- the machine -----------------------------------------------------------------------------------------------------


def use_threads(threads: int) -> None:
    """Hold this process, the libraries it loads and its children to `threads` cores."""
    if hasattr(os, "sched_setaffinity"):  # what every library obeys, also Open3D, which has no setting of its own
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(threads)
    torch.set_num_threads(threads)


def find_peers(device: torch.device) -> tuple[dict[str, Any], dict[str, str]]:
    """Modules of the peers for this device, and why the others are missing."""
    found, missing = {}, {}
    for name, module in PEERS.items():
        if name in (CPU_ONLY if device.type == "cuda" else GPU_ONLY):
            continue
        try:
            found[name] = importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            missing[name] = first_line(error)
    return found, missing


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def timed(call: Callable, device: torch.device, repeat: int = 1) -> tuple[float, Any]:
    """Seconds of one call, and its result. On one thread, of the processor's time, which others do not take part in."""
    on_gpu = device.type == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    clock = time.perf_counter if on_gpu or torch.get_num_threads() > 1 else time.process_time
    wait()
    began = clock()
    for _ in range(repeat):
        result = call()
    wait()
    return (clock() - began) / repeat, result


def seconds_of(call: Callable, device: torch.device, repeat: int = 1) -> float:
    return timed(call, device, repeat)[0]


def status(key: str) -> int:
    """A figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) << 10


class PeakMemory:
    """The most that this process (on a GPU: PyTorch's allocator) holds, in all and beyond what it held at the start.
    Zero where the system does not tell."""

    def __init__(self, device: torch.device):
        self.on_gpu, self.before = device.type == "cuda", 0
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        elif sys.platform == "linux":
            with contextlib.suppress(AttributeError):  # not every C library has it
                ctypes.CDLL(None).malloc_trim(0)  # freed memory is given back, lest it is taken again unnoticed
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            self.before = status("VmRSS")

    def mib(self) -> dict[str, float]:
        peak = self.before
        if self.on_gpu:
            peak = torch.cuda.max_memory_allocated()
        elif sys.platform == "linux":
            peak = status("VmHWM")
        return {"extra_mib": max(0, peak - self.before) / 2**20, "total_mib": peak / 2**20}


def machine(device: torch.device, threads: int, peers: dict[str, Any], quick: bool) -> dict:
    """Where the figures come from, with the rates that the floors rest on: a large copy, a large matrix product."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    versions = {}
    for name in ("torch", "numba", "triton", *peers):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    size, width = (1 << 22, 512) if quick else (1 << 26, 4096 if device.type == "cuda" else 2048)
    source, target, matrix = (torch.ones(shape, device=device) for shape in ((size,), (size,), (width, width)))
    copied = min(timed(lambda: target.copy_(source), device, 3)[0] for _ in range(6))
    multiplied = min(timed(lambda: matrix @ matrix, device, 3)[0] for _ in range(6))
    return {
        "name": torch.cuda.get_device_name() if device.type == "cuda" else processor,
        "type": device.type,
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "command": " ".join(["python tools/benchmark.py", *sys.argv[1:]]),
        "bytes_per_s": 2 * 4 * size / copied,
        "operations_per_s": 2 * width**3 / multiplied,
    }


# --- operators -------------------------------------------------------------------------------------------------------


def summary(seconds: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {"ms": 1e3 * middle, "low_ms": 1e3 * low, "high_ms": 1e3 * high, "rounds": len(seconds)}


def difference(got: Any, expected: Any, differ: Callable[[Tensor, Tensor], float]) -> float:
    """Share of the results that differ, of several outputs the largest. Not zero where ties, or what rounding makes of
    near ties, may fall either way."""
    if isinstance(expected, tuple):
        return max(difference(a, b, differ) for a, b in zip(got, expected))
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise ValueError(f"gives {got.dtype} {tuple(got.shape)} instead of {expected.dtype} {tuple(expected.shape)}")
    return differ(got, expected)


def take_turns(
    calls: Mapping[str, Callable[[], float]], budget: float, least: Callable[[str], int], most: int = 30
) -> dict[str, list[float]]:
    """Seconds by name: everybody once, then again, until each has spent its budget in at least `least` rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    active = list(calls)
    while active:
        for name in active:
            seconds[name].append(calls[name]())
        active = [
            name
            for name in active
            if len(seconds[name]) < most and (len(seconds[name]) < least(name) or sum(seconds[name]) < budget)
        ]
    return seconds


class Forecast:
    """How long an implementation will take at the next N of its series, so that nobody waits for hopeless ones."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], list[tuple[int, float]]] = {}

    def remember(self, case: Case, name: str, seconds: float) -> None:
        self.seen.setdefault((case.operator, name), []).append((case.sizes.get("N", 0), seconds))

    def knows(self, case: Case, name: str) -> bool:
        return (case.operator, name) in self.seen

    def __call__(self, case: Case, name: str) -> float:
        series = self.seen.get((case.operator, name), [])
        if not (case.grows and series):
            return 0.0
        last, seconds = series[-1]
        exponent = min(2.0, max(1.0, growth(series[-2:]) or 1.0))
        return seconds * (case.sizes["N"] / last) ** exponent


def measure(case: Case, run: Run, forecast: Forecast, quick: bool) -> tuple[dict, dict]:
    """Results and what was left out, by the name of the implementation."""
    calls, results, left_out, expected = case.make(run, **case.sizes), {}, {}, None
    repeat: dict[str, int] = {}
    gc.collect(1)  # what the case before left
    for name, call in calls.items():
        if name != OURS and (wait := forecast(case, name)) > (PATIENCE / 3 if name in EAGER else PATIENCE):
            left_out[name] = f"would take about {wait:.0f} s"
            continue
        try:
            for _ in range(2):  # the first compiles, loads and makes graphs, which is not to be counted
                memory, worked = PeakMemory(run.device), time.process_time()
                seconds, got = timed(call, run.device)
                taken, cores = memory.mib()["extra_mib"], (time.process_time() - worked) / seconds
                if seconds > 1 and run.device.type == "cpu" and forecast.knows(case, name):
                    break
            if name != OURS and seconds > PATIENCE:
                left_out[name] = f"takes {seconds:.0f} s"
                continue
            expected = got if name == OURS else expected
            wanted = case.expected(run, got, **case.sizes) if case.expected else expected
            results[name] = {"extra_mib": taken, "cores": cores, "differs": difference(got, wanted, case.differ)}
        except Exception as error:  # whatever a library of any version may raise
            if name == OURS:
                raise
            left_out[name] = first_line(error)
            continue
        forecast.remember(case, name, seconds)
        repeat[name] = max(1, min(100, int(2e-3 / max(seconds, 1e-6))))  # a measurement lasts 2 ms at least
    times = take_turns(
        {name: partial(seconds_of, calls[name], run.device, repeat[name]) for name in results},
        budget=0.0 if quick else 0.5,
        least=lambda name: 2 if quick or name in EAGER else 3,
    )
    for name, laps in times.items():
        results[name] |= summary(laps)
    return results, left_out


# --- the network -----------------------------------------------------------------------------------------------------

NETWORK = dict(num_classes=15, channels=(32, 64, 128, 256, 512), neighbours=(8, 16, 32, 64))
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
        options, batch, size = dict(options, channels=(8, 8, 8, 8, 8), neighbours=(4, 4, 4, 4)), 4, 2 * num_points
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


# --- the command -----------------------------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", nargs="*", type=Path, help="with --markdown: JSON of runs; of what several measured, the last counts"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=int, default=cores, help="cores to use (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: does it work?")
    parser.add_argument("--only", default=",".join(CHOICES), help=f"some of {', '.join(CHOICES)}")
    parser.add_argument("--bf16", action="store_true", help="our network under autocast to bfloat16, too")
    parser.add_argument("--out", type=Path, help="JSON to write (default: work_dirs/benchmark/DEVICE.json)")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write the tables of `results` into this page")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    chosen = args.only.split(",")
    if unknown := set(chosen) - {*CHOICES}:
        parser.error(f"--only may name {', '.join(CHOICES)}, got {', '.join(sorted(unknown))}")
    if bool(args.markdown) != bool(args.results):
        parser.error("--markdown PAGE goes with the JSON of a CPU and, if there are any, of other runs")
    if args.markdown:
        records = [json.loads(path.read_text()) for path in args.results]
        cpu, gpu = (joined([x for x in records if x["machine"]["type"] == kind]) for kind in ("cpu", "cuda"))
        if cpu is None:
            parser.error("--markdown PAGE needs the JSON of a CPU")
        return write_page(args.markdown, cpu, gpu)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU")

    began = time.perf_counter()
    use_threads(args.threads)
    device = torch.device(args.device)
    peers, missing = find_peers(device)
    run, forecast = Run(device, args.threads, peers), Forecast()
    at = machine(device, args.threads, peers, args.quick)
    record: dict[str, Any] = {"machine": at, "missing": missing, "cases": []}
    out = args.out or ROOT / "work_dirs" / "benchmark" / f"{args.device}.json"
    for name, why in missing.items():
        console.print(f"[yellow]missing: {name}[/yellow] ({why})")

    def keep(*found: dict) -> None:
        record["cases"] += found
        record["seconds"] = time.perf_counter() - began
        with replacing(out) as temporary:
            temporary.write_text(json.dumps(record, indent=1))
        for case in found:
            times = ", ".join(f"{name} {figure(result['ms'])}" for name, result in case["results"].items())
            console.print(
                f"{record['seconds']:5.0f} s  {case['operator']} {case['sizes']}: {times} ms", highlight=False
            )

    for case in (*all_cases(), *image_cases()):
        sizes = case.sizes
        small = sizes["B"] <= 4 and (sizes.get("N") or sizes.get("S", 0)) <= 4096
        if case.operator.split(",")[0] in chosen and (small or not args.quick):
            results, left_out = measure(case, run, forecast, args.quick)
            keep(
                {
                    "operator": case.operator,
                    "sizes": sizes,
                    "grows": case.grows,
                    "floor_ms": 1e3 * case.floor(at),
                    "results": results,
                    "left_out": left_out,
                }
            )
    if "network" in chosen:
        names = [name for name in TWINS if args.bf16 or not TWINS[name][1]]
        if device.type == "cuda" or args.quick:
            names.remove("naive, memory kept")
        for num_points in (64,) if args.quick else (512, 1024):  # ScanObjectNN's variant, and ModelNet40's
            keep(*measure_network(run, names, num_points, args.quick))
    for title, header, rows in tables(record):
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(f"{out}, after {record.get('seconds', 0.0) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
