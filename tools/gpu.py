"""Test and time the Triton kernels on a GPU: what `make gpu` runs.

    python tools/gpu.py                   every kernel test on the GPU, then a table of times: work_dirs/gpu.json
    python tools/gpu.py --only times      the table alone; --only tests: the tests alone
    python tools/gpu.py --compile-only    no GPU: compile every Triton kernel for sm_90, and list registers and spills

It needs PyTorch, Triton, Numba, NumPy and pytest, and no installation: the package is found through links in a
temporary folder. With pytest-xdist the tests share the processor's cores. The exit code is 0 if all is well.

The table has two times: that of a call, as a Python program sees it, and that of the GPU alone, where the calls are
replayed from a CUDA graph. The lower bound is the larger of two: the bytes that must move over the rate of a large
copy, and the operations over the rate of a large float32 product, both measured in the same run.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("kernels", "backbones", "pointnets", "dense")
CASES = {  # rows of the table: operators of the benchmark, at sizes that fill a GPU
    "farthest_point_sample": [{"B": 32, "N": 4096, "S": 1024}, {"B": 1, "N": 65536, "S": 1024}],
    "knn": [{"B": 32, "N": 4096, "K": 16}, {"B": 1, "N": 65536, "K": 16}],
    "ball_query": [{"B": 16, "N": 4096, "S": 1024, "K": 64}, {"B": 1, "N": 65536, "S": 16384, "K": 32}],
    "gather_neighbors": [{"B": 32, "N": 4096, "S": 1024, "K": 32, "C": 64}],
    "three_interpolate": [{"B": 32, "N": 1024, "S": 4096, "C": 128}],
    "gather_max": [{"B": 32, "N": 4096, "S": 1024, "K": 32, "C": 64, "D": 64}],
    "surface_properties": [{"B": 32, "N": 4096, "S": 1024, "K": 32}],
    "surface_attention": [{"B": 32, "S": 1024, "K": 16, "C": 64}, {"B": 16, "S": 1024, "K": 0, "C": 32}],
    "deformable_attention": [{"B": 4, "side": 128, "heads": 8, "D": 32, "places": 4}],
    "neighborhood_attention": [{"B": 16, "side": 56, "heads": 4, "D": 32, "kernel": 7, "dilation": 1}],
    "neighborhood_aggregate": [{"B": 16, "side": 28, "heads": 8, "D": 16, "kernel": 13}],
    "small_kernel_aggregate": [{"B": 64, "side": 28, "C": 128, "Cw": 16, "kernel": 3}],
    "lightning_attention": [{"B": 4, "heads": 16, "N": 8192, "D": 64}],
    "outlook_attention": [{"B": 64, "side": 28, "heads": 6, "D": 32, "kernel": 3, "stride": 2}],
    "position_relation": [{"B": 8, "N": 900, "heads": 8}],
    "halo_attention": [{"B": 16, "side": 64, "heads": 8, "D": 16, "block": 8, "halo": 3}],
    "window_attention": [
        {"B": 4, "side": 64, "heads": 6, "D": 30, "block": 16, "halo": halo, "shift": shift}
        for halo, shift in ((0, 8), (4, 0))
    ],
    "local_cross_attention": [{"B": 8, "tokens": 24, "side": 96, "heads": 16, "D": 128}],
    "roi_align": [{"B": 2, "side": 128, "C": 256, "R": 512, "bins": 7, "ratio": 2}],
    "roi_pool": [{"B": 2, "side": 128, "C": 256, "R": 512, "bins": 7}],
    "reversed_attention": [{"B": 64, "N": 196, "heads": 12, "D": 16}, {"B": 4, "N": 4096, "heads": 12, "D": 32}],
    "routed_attention": [{"B": 16, "side": 56, "heads": 4, "D": 32, "regions": 7, "topk": 4}],
    "sparse_attention": [{"B": 16, "side": 28, "heads": 6, "D": 64, "topk": 197}],
    "carafe": [{"B": 16, "side": 64, "C": 256, "kernel": 5, "scale": 2}],
    "psa_mask": [{"B": 16, "side": 60}],
    "deformable_convolution": [{"B": 16, "side": 64, "C": 256, "kernel": 3}],
    "bridging_attention": [{"B": 2, "side": 128, "heads": 8, "D": 32, "keys": 50, "table": 401}],
}
SMALL = {  # for --compile-only: sizes that the CPU prepares at once
    "farthest_point_sample": [{"B": 2, "N": 256, "S": 64}, {"B": 1, "N": 16384, "S": 4}, {"B": 133, "N": 8256, "S": 2}],
    "knn": [{"B": 2, "N": 256, "K": 16}],
    "ball_query": [{"B": 2, "N": 256, "S": 64, "K": 16}],
    "gather_neighbors": [{"B": 2, "N": 256, "S": 64, "K": 16, "C": 64}],
    "three_interpolate": [{"B": 2, "N": 64, "S": 256, "C": 64}],
    "gather_max": [{"B": 2, "N": 256, "S": 64, "K": 16, "C": 64, "D": depth} for depth in (64, 0)],
    "surface_properties": [{"B": 2, "N": 256, "S": 64, "K": 16}],
    "surface_attention": [{"B": 2, "S": 64, "K": 16, "C": 64}, {"B": 2, "S": 64, "K": 0, "C": 32}],
    "deformable_attention": [{"B": 1, "side": 16, "heads": 2, "D": 32, "places": 4}],
    "neighborhood_attention": [{"B": 1, "side": 14, "heads": 2, "D": 32, "kernel": 7, "dilation": 1}],
    "neighborhood_aggregate": [{"B": 1, "side": 14, "heads": 2, "D": 16, "kernel": 5}],
    "small_kernel_aggregate": [{"B": 1, "side": 14, "C": 128, "Cw": 16, "kernel": 3}],
    "lightning_attention": [{"B": 1, "heads": 2, "N": 128, "D": depth} for depth in (64, 192)],
    "outlook_attention": [{"B": 1, "side": 14, "heads": 2, "D": 32, "kernel": 3, "stride": 2}],
    "position_relation": [{"B": 1, "N": 9, "heads": 8}],
    "halo_attention": [{"B": 1, "side": 16, "heads": 2, "D": 16, "block": 8, "halo": 3}],
    "window_attention": [
        {"B": 1, "side": 32, "heads": 2, "D": 30, "block": 16, "halo": halo, "shift": shift}
        for halo, shift in ((0, 8), (4, 0))
    ],
    "local_cross_attention": [{"B": 1, "tokens": 3, "side": 12, "heads": 2, "D": 32}],
    "roi_align": [{"B": 1, "side": 16, "C": 32, "R": 4, "bins": 7, "ratio": 2}],
    "roi_pool": [{"B": 1, "side": 16, "C": 32, "R": 4, "bins": 7}],
    "reversed_attention": [{"B": 1, "N": 70, "heads": 2, "D": 32}],
    "routed_attention": [{"B": 1, "side": 14, "heads": 2, "D": 32, "regions": 7, "topk": 4}],
    "sparse_attention": [{"B": 1, "side": 14, "heads": 2, "D": 64, "topk": 50}],
    "carafe": [{"B": 1, "side": 14, "C": 64, "kernel": 5, "scale": 2}],
    "psa_mask": [{"B": 1, "side": 9}],
    "deformable_convolution": [{"B": 1, "side": 14, "C": 64, "kernel": 3}],
    "bridging_attention": [
        {"B": 1, "side": 14, "heads": 2, "D": depth, "keys": 50, "table": 41} for depth in (32, 64, 128, 256)
    ],
}


def find_package() -> None:
    """Make `attlas` and `benchmark` importable, here and in child processes, without an installation."""
    links = Path(tempfile.mkdtemp(prefix="attlas-"))
    (links / "attlas").mkdir()
    for path in (*(ROOT / "attlas").iterdir(), *(ROOT / floor for floor in FLOORS)):
        if path.name != "__pycache__":
            (links / "attlas" / path.name).symlink_to(path)
    sys.path[:0] = [str(links), str(ROOT / "tools")]
    # without the safe path, children would find the folder `attlas` of the repository first, which lacks the floors
    os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path[:2]), "PYTHONSAFEPATH": "1"}


# --- tests -----------------------------------------------------------------------------------------------------------


def run_tests(out: Path, limit: float, chosen: list[str]) -> dict:
    """Counts, seconds and failures of the kernels' tests, also of those that were done when time ran out."""
    log = out.with_suffix(".log")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "-vv",
        *(chosen or ["tests/kernels"]),
    ]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(12, os.cpu_count() or 1))]
    began, late = time.perf_counter(), []
    with log.open("w") as file:
        # a session of its own, so that its workers end with it
        tests = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            tests.wait(limit)
        except subprocess.TimeoutExpired:
            late = [f"the tests took more than {limit:.0f} s"]
            os.killpg(tests.pid, signal.SIGKILL)
            tests.wait()
    # "path::name PASSED [ 3%]", and with pytest-xdist "[gw1] [ 3%] PASSED path::name"
    found = re.findall(r"(?:(tests/\S+) )?(PASSED|FAILED|ERROR|SKIPPED)(?: (tests/\S+))?", log.read_text())
    done = {before or after: outcome for before, outcome, after in found if before or after}
    failed = sorted(name for name, outcome in done.items() if outcome in ("FAILED", "ERROR"))
    if not done:
        late.append(f"pytest ran no test: see {log}")
    outcomes = list(done.values())
    print(*failed, f"{outcomes.count('PASSED')} passed, {len(failed)} failed: {log}", sep="\n", flush=True)
    return {
        "passed": outcomes.count("PASSED"),
        "failed": failed + late,
        "seconds": round(time.perf_counter() - began, 1),
    }


# --- times -----------------------------------------------------------------------------------------------------------


def cases_of(sizes: dict[str, list[dict[str, int]]]) -> list:
    """Cases of the benchmark, of every operator and mode."""
    from benchmark import cases, images

    found = []
    for operator, listed in sizes.items():
        for size in listed:
            if operator in images.IMAGE_OPERATORS:
                found += [images.case(operator, mode, size) for mode in ("forward", "forward+backward")]
            else:
                found += [cases.case(operator, mode, size) for mode in cases.modes(operator)]
    return found


def gpu_ms(call: Callable, replays: int = 10) -> float | None:
    """Milliseconds of a call on the GPU alone: the median over replays of its CUDA graph; None where it has none."""
    import torch

    try:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graph.replay()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
        for mark in marks[:-1]:
            mark.record()
            graph.replay()
        marks[-1].record()
        torch.cuda.synchronize()
    except RuntimeError:  # it waits for the device, which a graph cannot hold
        torch.cuda.synchronize()
        return None
    times = sorted(a.elapsed_time(b) for a, b in zip(marks, marks[1:]))
    return times[len(times) // 2]


def call_ms(call: Callable, budget: float = 0.1) -> float:
    """Milliseconds of a call, as the median over calls one after the other."""
    import torch

    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - began < budget and len(times) < 50):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2]


def figures(call: Callable) -> dict:
    """Time and memory of a call; the first one compiles and does not count."""
    import torch

    call()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    mib = (torch.cuda.max_memory_allocated() - before) / 2**20
    return {"call_ms": call_ms(call), "gpu_ms": gpu_ms(call), "mib": mib}


def measure(limit: float, chosen: list[str]) -> dict:
    """Times of every case, in float32 and, where features count, in bfloat16: ours, and what the benchmark sets beside
    it in PyTorch."""
    import torch
    from benchmark.cases import OURS, Run
    from benchmark.measure import machine, timed

    device, began = torch.device("cuda"), time.perf_counter()
    at = machine(device, 1, {}, quick=False)
    half = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    at["bf16_per_s"] = 2 * 8192**3 / min(timed(lambda: half @ half, device, 3)[0] for _ in range(5))
    rates = at["bytes_per_s"] / 1e12, at["operations_per_s"] / 1e12, at["bf16_per_s"] / 1e12
    print("{}: copy {:.2f} TB/s, products {:.0f} (float32) and {:.0f} (bfloat16) TFLOP/s".format(at["name"], *rates))
    print(HEADER.format("operator", "sizes", "dtype", "bound", "GPU", "call", "other", "ms"))
    rows: list[dict] = []
    errors: list[str] = []
    listed = [(case, torch.float32) for case in cases_of({name: CASES[name] for name in chosen or CASES})]
    listed += [(case, torch.bfloat16) for case, _ in listed if "," in case.operator]
    for case, dtype in listed:
        name = f"{case.operator} {case.sizes} {dtype}"
        if time.perf_counter() - began > limit:
            errors.append(f"{name}: no time left")
            continue
        rates_here = at if dtype == torch.float32 else at | {
            "bytes_per_s": 2 * at["bytes_per_s"],  # the case counts four bytes for a number
            "operations_per_s": at["bf16_per_s"],
        }  # fmt: skip
        row = {"operator": case.operator, "sizes": case.sizes, "dtype": str(dtype).removeprefix("torch.")}
        row |= {"bound_ms": 1e3 * case.bound(rates_here), "results": {}}
        try:
            calls = case.make(Run(device, 1, {}, dtype), **case.sizes)
            row["results"][OURS] = figures(calls[OURS])
            for other in (n for n in calls if n not in (OURS, "reference")):
                with contextlib.suppress(torch.OutOfMemoryError):
                    row["results"][other] = figures(calls[other])
            del calls
        except Exception as error:
            errors.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            print(errors[-1], flush=True)
            continue
        torch.cuda.empty_cache()
        rows.append(row)
        print(HEADER.format(*cells(row)[:6], *cells(row)[6:8]), flush=True)
    return {"machine": at, "cases": rows, "failed": errors, "seconds": round(time.perf_counter() - began, 1)}


HEADER = "{:42}{:58}{:10}{:>9}{:>9}{:>9}{:>9} {}"


def cells(row: dict) -> list[str]:
    """A row of the table as text: what, lower bound, ours, the fastest other and its name, memory of both."""
    ours = row["results"]["attlas"]
    others = {name: found for name, found in row["results"].items() if name != "attlas"}
    fastest = min(others, key=lambda name: others[name]["gpu_ms"] or others[name]["call_ms"], default=None)
    other = others[fastest] if fastest else {}
    sizes = ", ".join(f"{name} {size:,}" for name, size in row["sizes"].items())
    times = [row["bound_ms"], ours["gpu_ms"], ours["call_ms"], other.get("gpu_ms") or other.get("call_ms")]
    shown = ["-" if ms is None else f"{ms:.3f}" for ms in times]
    memory = [f"{found['mib']:,.0f}" if found else "-" for found in (ours, other)]
    return [row["operator"], sizes, row["dtype"], *shown, fastest or "", *memory]


BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"


def write_page(page: Path, record: dict) -> None:
    """Put the table of times of a run between the marks of a page."""
    text, times = page.read_text(), record["times"]
    at = times["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in at["versions"].items())
    lines = [
        f"{at['name']}, {at['date']}; {versions}; copy {at['bytes_per_s'] / 1e12:.2f} TB/s, products "
        f"{at['operations_per_s'] / 1e12:.0f} TFLOP/s in float32, {at['bf16_per_s'] / 1e12:.0f} in bfloat16.",
        "",
        "| operator | sizes | dtype | bound, ms | GPU, ms | call, ms | fastest other, ms | which | MiB | its MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells(row))} |" for row in times["cases"]),
    ]
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


# --- compiling without a GPU -----------------------------------------------------------------------------------------


def other_calls(run) -> list[tuple[str, Callable]]:
    """Launches of the kernels that no case of the benchmark reaches."""
    import torch
    from benchmark.cases import random

    from attlas.kernels import (
        bbox_overlaps,
        gather_neighbors,
        neighborhood_attention,
        nms,
        position_relation,
        residual_norm,
        roi_align,
        sigmoid_focal_loss,
        softmax_focal_loss,
        three_interpolate,
    )

    def leaf(*shape: int) -> torch.Tensor:
        return random(run, *shape).requires_grad_()

    index, box = torch.arange(128).view(2, 16, 4) % 32, torch.tensor([[0.0, 1, 1, 7, 7]])
    wide = torch.promote_types(run.dtype, torch.float32)
    features, weight, q = leaf(2, 32, 8), leaf(2, 16, 3), leaf(1, 8, 8, 2, 16)
    boxes, linear = random(run, 2, 9, 4).sigmoid(), (leaf(8, 64), leaf(8))
    pairs = torch.eye(9, dtype=torch.bool)
    scale = torch.ones(8, dtype=wide).requires_grad_()

    def in_order() -> None:
        torch.use_deterministic_algorithms(True)
        try:
            gather_neighbors(features, index).sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)

    corners, target = torch.cat([boxes[0, :, :2], boxes[0, :, :2] + 1], 1), torch.zeros(9, dtype=torch.int64)
    return [
        ("gather_neighbors, deterministic", in_order),
        ("bbox_overlaps", lambda: bbox_overlaps(corners, corners)),
        ("nms, of two blocks", lambda: nms(corners.repeat(300, 1), corners[:, 0].repeat(300), 0.5)),
        ("sigmoid_focal_loss", lambda: sigmoid_focal_loss(leaf(9, 4), target).sum().backward()),
        ("softmax_focal_loss", lambda: softmax_focal_loss(leaf(9, 4), target).sum().backward()),
        ("three_interpolate, weight", lambda: three_interpolate(features, index[..., :3], weight).sum().backward()),
        ("position_relation, mask", lambda: position_relation(boxes, boxes, *linear, pairs).sum().backward()),
        ("residual_norm", lambda: residual_norm(features, leaf(2, 32, 8), scale, scale, 1e-5)[0].sum().backward()),
        (
            "roi_align, maximum",
            lambda: roi_align(leaf(1, 8, 8, 8), box, 3, sampling_ratio=2, mode="max").sum().backward(),
        ),
        (
            "neighborhood_attention, bias",
            lambda: cast(Any, neighborhood_attention(q, q, q, 3, bias=leaf(2, 5, 5))).sum().backward(),
        ),
    ]


def compile_all(chosen: list[str]) -> dict:
    """Compile every Triton kernel for sm_90 as its operator launches it, in float32, bfloat16 and float64, and launch
    none. Without a device, so the tensors lie on the CPU and what the operators return is not to be looked at."""
    import torch
    import triton
    from benchmark.cases import OURS, Run
    from triton.backends.compiler import GPUTarget
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    from attlas.kernels import dispatch

    class NoDevice:
        """What Triton asks of a driver before it launches."""

        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

        def get_active_torch_device(self):
            return torch.device("cpu")

    triton.runtime.driver.set_active(NoDevice())
    vars(torch.cuda)["get_device_properties"] = lambda device: SimpleNamespace(multi_processor_count=132)
    kernels: dict[str, dict] = {}
    run_kernel, errors = JITFunction.run, []

    def compile_only(self, *args, grid, warmup, **options):
        compiled = run_kernel(self, *args, grid=grid, warmup=True, **options)
        entry = kernels.setdefault(self.fn.__name__, {"variants": {}})
        entry["variants"][compiled.hash] = compiled.metadata.shared
        return compiled

    def compile_configs(self, *args, **options):
        for config in self.configs:
            self.fn.run(*args, **options, **config.all_kwargs())

    JITFunction.run, Autotuner.run, dispatch.INTERPRETED = compile_only, compile_configs, True
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        run = Run(torch.device("cpu"), 1, {}, dtype)
        calls = [
            (f"{case.operator} {case.sizes}", case.make(run, **case.sizes)[OURS])
            for case in cases_of({name: SMALL[name] for name in chosen or SMALL})
        ]
        for name, call in calls + ([] if chosen else other_calls(run)):
            os.environ["ATTLAS_KERNELS"] = "triton"
            try:
                call()
            except Exception as error:
                errors.append(f"{name}, {dtype}: {type(error).__name__}: {str(error)[-500:]}")
            finally:
                del os.environ["ATTLAS_KERNELS"]
    names = {
        name
        for path in (ROOT / "kernels").glob("*.py")
        for name, value in vars(importlib.import_module(f"attlas.kernels.{path.stem}")).items()
        if name.endswith("_kernel") and value.__module__ == f"attlas.kernels.{path.stem}"
    }
    if not chosen:
        errors += [f"{name} was never launched" for name in sorted(names - kernels.keys())]
    for name, entry in sorted(kernels.items()):
        print(f"{name:48} {len(entry['variants'])} variants, shared memory {max(entry['variants'].values())} bytes")
    return {"kernels": {name: len(e["variants"]) for name, e in kernels.items()}, "failed": errors}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile-only", action="store_true", help="compile for sm_90; needs no GPU")
    parser.add_argument("--only", choices=("tests", "times"), help="one half")
    parser.add_argument("--operators", default="", help=f"for times and compiling: some of {','.join(CASES)}")
    parser.add_argument("--tests", nargs="*", default=[], help="test files or nodes instead of all of tests/kernels")
    parser.add_argument("--limit", type=float, default=240, help="seconds for each half")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write the table of --out into this page")
    parser.add_argument("--out", type=Path, default=ROOT / "work_dirs" / "gpu.json", help="JSON to write")
    args = parser.parse_args()
    chosen = [name for name in args.operators.split(",") if name]
    if unknown := set(chosen) - CASES.keys():
        parser.error(f"--operators may name {', '.join(CASES)}, got {', '.join(sorted(unknown))}")
    if args.markdown:
        write_page(args.markdown, json.loads(args.out.read_text()))
        return 0
    find_package()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    halves: dict[str, Callable[[], dict]] = {
        "tests": partial(run_tests, args.out, args.limit, args.tests),
        "times": partial(measure, args.limit, chosen),
    }
    if args.compile_only:
        halves = {"compile": partial(compile_all, chosen)}
    else:
        import torch

        if not torch.cuda.is_available():
            parser.error("PyTorch sees no GPU here; --compile-only needs none")
        if args.only:
            halves = {args.only: halves[args.only]}
    record = {}
    for name, half in halves.items():
        record[name] = half()
        args.out.write_text(json.dumps(record, indent=1))
    failed = [line for half in record.values() for line in half["failed"]]
    print(*failed, f"{args.out}: {len(failed)} failed", sep="\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
