"""Measure the operators of `attlas.kernels`, RISurConv's networks, backbones and HAT against what else PyPI has.

    python tools/benchmark                            everything, half an hour: work_dirs/benchmark/cpu.json
    python tools/benchmark --device cuda              the same on a GPU: work_dirs/benchmark/cuda.json
    python tools/benchmark --only knn,network --quick some of it, small, in seconds
    python tools/benchmark --only mmcv                mmcv's operators, beside its compiled extension if there is one
    python tools/benchmark --only laws                how operators over sequences grow, from 1,024 to 65,536 tokens
    python tools/benchmark --only tokens              networks that drop tokens or keys: where they break even
    python tools/benchmark --markdown docs/performance.md cpu.json [more.json ...]  results of runs into the page

The implementations of a case take turns in one run (A B C A B C ...), after first calls that compile, tell how much
memory each takes, and show how far its results differ from ours. Figures are medians, with the quartiles. A peer that
is not installed is left out and named. The networks are compared with their naive twin (tools/benchmark/naive.py): each
in a process of its own, all with the same weights and batch, in turns step by step.
"""

import argparse
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from attlas.files import console, replacing

from .backbones import measure_backbones
from .cases import OPERATORS, Run, all_cases
from .extension import COMPILED, find_extension, mmcv_cases
from .images import IMAGE_OPERATORS, image_cases
from .measure import Forecast, find_peers, machine, measure, use_threads
from .network import NETWORKS, TWINS, measure_network
from .page import figure, joined, tables, write_page
from .restorers import measure_restorers
from .scenes import measure_scene
from .sequences import measure_laws
from .tokens import measure_tokens

CHOICES = [*OPERATORS, *IMAGE_OPERATORS, "mmcv", *NETWORKS, "backbones", "restorers", "laws", "tokens", "scene"]
ROOT = Path(__file__).resolve().parents[2]


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
    parser.add_argument(
        "--mmcv-ext", nargs="+", type=Path, default=[], metavar="FILE", help="compiled mmcv._ext, or parts (installed)"
    )
    parser.add_argument("--batch", type=int, default=16, help="clouds of a batch of RISurConv (16)")
    parser.add_argument("--bf16", action="store_true", help="our network under autocast to bfloat16, too")
    parser.add_argument("--out", type=Path, help="JSON to write (default: work_dirs/benchmark/DEVICE.json)")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write the tables of `results` into this page")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    chosen = {*args.only.split(",")}
    if unknown := chosen - {*CHOICES}:
        parser.error(f"--only may name {', '.join(CHOICES)}, got {', '.join(sorted(unknown))}")
    if bool(args.markdown) != bool(args.results):
        parser.error("--markdown PAGE goes with the JSON of a CPU and, if there are any, of other runs")
    if args.markdown:
        records = [json.loads(path.read_text()) for path in args.results]
        cpu, gpu = (joined([x for x in records if x["machine"]["type"] == kind]) for kind in ("cpu", "cuda"))
        if cpu is None:
            parser.error("--markdown PAGE needs the JSON of a CPU")
        return write_page(args.markdown, cpu, gpu)
    if args.batch < 1:
        parser.error(f"--batch is {args.batch}; it must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU")
    with_mmcv = args.device == "cpu" and "mmcv" in chosen
    try:
        compiled = find_extension(args.mmcv_ext) if with_mmcv else None
    except (ImportError, OSError) as error:
        parser.error(f"--mmcv-ext: {error}")

    began = time.perf_counter()
    use_threads(args.threads)
    device = torch.device(args.device)
    peers, missing = find_peers(device)
    forecast = Forecast()
    peers |= {COMPILED: compiled} if compiled else {}
    missing |= {} if compiled or not with_mmcv else {"mmcv._ext": "not compiled here, and no --mmcv-ext"}
    absent = {"position_attention"} if importlib.util.find_spec("mmseg") is None else set()
    missing |= dict.fromkeys(absent & chosen, "mmseg is not installed, which its head is made for")
    run = Run(device, args.threads, peers)
    at = machine(device, args.threads, peers, args.quick)
    record: dict[str, Any] = {"machine": at, "missing": missing, "cases": []}
    out = args.out or ROOT / "work_dirs" / "benchmark" / f"{args.device}.json"
    for name, why in missing.items():
        console().print(f"[yellow]missing: {name}[/yellow] ({why})")

    def keep(*found: dict) -> None:
        record["cases"] += found
        record["seconds"] = time.perf_counter() - began
        with replacing(out) as temporary:
            temporary.write_text(json.dumps(record, indent=1))
        for case in found:
            times = ", ".join(f"{name} {figure(result['ms'])}" for name, result in case["results"].items())
            console().print(
                f"{record['seconds']:5.0f} s  {case['operator']} {case['sizes']}: {times} ms", highlight=False
            )

    for case in (*all_cases(), *image_cases(), *(mmcv_cases() if with_mmcv else ())):
        sizes = case.sizes
        small = sizes["B"] <= 4 and (sizes.get("N") or sizes.get("S", 0)) <= 4096
        if case.operator.split(",")[0].split()[0] in chosen - absent and (small or not args.quick):
            results, left_out = measure(case, run, forecast, args.quick)
            keep(
                {
                    "operator": case.operator,
                    "sizes": sizes,
                    "grows": case.grows,
                    "bound_ms": 1e3 * case.bound(at),
                    "results": results,
                    "left_out": left_out,
                }
            )
    names = [name for name in TWINS if args.bf16 or not TWINS[name][1]]
    if device.type == "cuda" or args.quick:
        names.remove("naive, memory kept")
    for kind in NETWORKS:
        if kind in chosen:
            for found in measure_network(run, kind, names, args.batch, args.quick):
                keep(found)
    if "backbones" in chosen:
        for found in measure_backbones(run, args.quick):
            keep(found)
    if "restorers" in chosen:
        for found in measure_restorers(run, args.quick):
            keep(found)
    if "laws" in chosen:
        for found in measure_laws(run, args.quick):
            keep(found)
    if "tokens" in chosen:
        for found in measure_tokens(run, args.quick):
            keep(found)
    if "scene" in chosen:
        keep(measure_scene(run, args.quick))
    for title, header, rows in tables(record):
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console().print(table)
    console().print(f"{out}, after {record.get('seconds', 0.0) / 60:.1f} minutes")
