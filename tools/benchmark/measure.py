"""Time and memory of the implementations of a case, in turns, and how far their results differ from ours."""

import contextlib
import ctypes
import gc
import importlib
import importlib.metadata
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
from torch import Tensor

from .cases import CPU_ONLY, EAGER, GPU_ONLY, OURS, PEERS, Case, Run
from .page import growth

PATIENCE = 10.0  # seconds for one call: what would take longer is left out


# --- the machine ------------------------------------------------------------------------------------------------------


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
    """Where the figures come from, and the rates of the lower bounds: of a large copy and a large matrix product."""
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
        "command": " ".join(["python tools/benchmark", *sys.argv[1:]]),
        "bytes_per_s": 2 * 4 * size / copied,
        "operations_per_s": 2 * width**3 / multiplied,
    }


# --- operators --------------------------------------------------------------------------------------------------------


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
