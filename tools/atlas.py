"""Make docs/atlas.md: every system with the command that shows it, published and counted figures of backbones, their
configs of detection and segmentation, cost laws of mixers, small trainings.

    python tools/atlas.py train configs/*/*_furniture_views.py   # train and measure; a .json beside each config
    python tools/atlas.py mixers                                 # measure time and memory against the size of the map
    python tools/atlas.py write                                  # docs/atlas.md, from the above and the library

`train` leaves alone what has been measured; with --overwrite it measures again, what is trained stays trained. Measure
on a quiet machine.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from datetime import date
from pathlib import Path

import torch
from rich.console import Console

import attlas.backbones as backbones
from attlas.backbones import published
from attlas.backbones.inspection.costs import PeakMemory, analyze
from attlas.config import load_config
from attlas.files import replacing
from attlas.registry import MIXERS, MODELS

ROOT = Path(__file__).resolve().parent.parent
PAGE, MEASURED = ROOT / "docs/atlas.md", ROOT / "docs/atlas_mixers.json"
LISTED = ROOT / "docs/systems.csv"
TASKS = dict(mmdet="detection", mmseg="segmentation")  # by the `default_scope` of configs
SIDES, DIM = (14, 28, 56, 112), 64
WIDTHS = (64, 256, 1024)  # of plug-ins
out = Console(soft_wrap=True)


def machine() -> str:
    return f"{os.cpu_count()} CPU cores, PyTorch {torch.__version__.split('+')[0]}, {date.today()}"


def save(path: Path, found: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")


# --- measuring -------------------------------------------------------------------------------------------------------


def train(config: Path, work_dir: Path) -> dict:
    """Train and test a config by the tool that users call (or go on, or take what is there); measure its network."""
    command = [sys.executable, str(ROOT / "tools/train.py"), str(config), "--work-dir", str(work_dir), "--resume"]
    subprocess.run(command, check=True)
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"), key=lambda path: path.stat().st_mtime)
    lines = [json.loads(line) for path in logs for line in path.read_text().splitlines()]
    last = [line for line in lines if "top1" in line][-1]
    cfg = load_config(config)
    model = MODELS.build(cfg.model)
    network = model.backbone.eval()
    side = model_side(cfg)
    image = torch.randn(1, 3, side, side)
    whole = analyze(network, image, repeats=20)[-1]
    batch = cfg.train_dataloader.batch_size
    inputs = dict(images=torch.randn(batch, 3, side, side), labels=torch.randint(0, 2, (batch,)))
    model.train()
    with PeakMemory([*inputs.values(), *model.parameters(), *model.buffers()]) as memory:
        model(**inputs, mode="loss")["loss"].backward()
    step = math.inf
    for _ in range(3):
        began = time.perf_counter()
        model(**inputs, mode="loss")["loss"].backward()
        step = min(step, time.perf_counter() - began)
    return dict(
        top1=round(last["top1"], 1),
        mAcc=round(last["mAcc"], 1),
        epochs=cfg.train_cfg.max_epochs,
        step_milliseconds=round(step * 1e3),
        side=side,
        params=whole.params,
        macs=whole.macs,
        milliseconds=round(whole.seconds * 1e3, 1),
        batch=batch,
        peak_mib=round(memory.peak / 2**20),
        machine=machine(),
    )


def model_side(cfg) -> int:
    """The side of the images that a config tests on."""
    sizes = [t["size"] for t in cfg.test_dataloader.dataset.transforms if "size" in t]
    return int(sizes[-1] if isinstance(sizes[-1], int) else sizes[-1][0])


def measure_mixer(name: str) -> dict:
    """Seconds (forward and backward, one thread) and peak bytes for square maps, and their exponents against H·W."""
    mixer = MIXERS.build(dict(type=name, dim=DIM)).train()
    rows = []
    for side in SIDES:
        x = torch.randn(1, DIM, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
        with PeakMemory([x, *mixer.parameters(), *mixer.buffers()]) as memory:
            mixer(x).sum().backward()
        seconds = math.inf
        for _ in range(5):
            begin = time.process_time()
            mixer(x).sum().backward()
            seconds = min(seconds, time.process_time() - begin)
        rows.append(dict(side=side, seconds=seconds, bytes=memory.peak))
    params = sum(p.numel() for p in mixer.parameters())
    return dict(params=params, rows=rows, time=exponent(rows, "seconds"), memory=exponent(rows, "bytes"))


def exponent(rows: list[dict], key: str) -> float:
    """Slope of log(figure) over log(H·W), by least squares over the three largest maps."""
    points = [(2 * math.log(row["side"]), math.log(row[key])) for row in rows[-3:]]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


# --- restoration -----------------------------------------------------------------------------------------------------


def restores(mixer: str) -> tuple[list[str], str]:
    """The published sizes of HAT in whose body a mixer stands with its default options, and what it says of others."""
    from attlas.dense.restoration import hat  # which loads mmcv: not for --help

    found, why = [], ""
    for name, (options, _) in hat.VARIANTS.items():
        if options["scale"] == 4:
            try:
                with torch.device("meta"):
                    hat.HAT(**{**options, "depths": (1,), "mixer": mixer, "overlap_mixer": mixer})
                found.append(name.removesuffix("_x4"))
            except ValueError as error:
                why = str(error)
    return found, why


# --- writing ---------------------------------------------------------------------------------------------------------


def count_gflops(name: str, side: int) -> float:
    """10⁹ multiply-adds for one image, counted on tensors without memory."""
    with torch.device("meta"):
        network = backbones.create(name).eval()
        image = torch.empty(1, 3, side, side)
    return analyze(network, image, repeats=0)[-1].macs / 1e9


def row_of(name: str, network: str, variant: backbones.Variant) -> str:
    """The row of a variant in the table of its system; sides other than the variant's are named."""
    given = variant.gflops if isinstance(variant.gflops, Mapping) else {variant.size: variant.gflops}
    printed, counted = [], []
    for side, gflops in given.items():
        at = "" if side == variant.size else f" at {side}"
        printed.append("" if gflops is None else f"{gflops:g}{at}")
        counted.append(f"{count_gflops(name, side):.2f}{at}")
    top1 = "" if variant.top1 is None else f"{variant.top1:g}"
    weights = published.weights().get(name)
    link = "" if weights is None else f"[{weights.source if weights.kind == 'direct' else 'page'}]({weights.url})"
    sizes = variant.size, ", ".join(printed), ", ".join(counted)
    cells = f"`{name}`", network, f"{variant.params:,}", *sizes, top1, link
    return f"| {' | '.join(map(str, cells))} |"


def title_of(module: str) -> tuple[str, str, str]:
    """The name of a system, what it is, and its source, from the first two paragraphs of its file."""
    title, source, *_ = (sys.modules[module].__doc__ or "").split("\n\n")
    name, _, what = title.strip().rstrip(".").partition(": ")
    return name, what, source


def shown_section() -> list[str]:
    """The fifty systems of docs/systems.csv; where it names no result, that of the training beside the config."""
    lines = [
        "## Fifty systems",
        "",
        "What was published, where it stands, the command that shows it, and what that gave. Top-1: of the built-in "
        "pictures of furniture, by a small network; [Small trainings](#small-trainings) has the rest.",
        "",
        "| system | file | command | result |",
        "|---|---|---|---|",
    ]
    with LISTED.open() as file:
        for row in csv.DictReader(file):
            result = row["result"]
            if not result:
                (config,) = (word for word in row["command"].split() if word.startswith("configs/"))
                found = json.loads((ROOT / config).with_suffix(".json").read_text())
                result = f"{found['top1']} % top-1 in {found['epochs']} epochs"
            link = f"[{row['file']}](../{row['file']})"
            lines.append(f"| {row['system']} | {link} | `{row['command']}` | {result} |")
    return [*lines, ""]


def systems_section() -> list[str]:
    lines = [
        "## Backbones",
        "",
        "Parameters are counted, with the published head, and tested against the authors' to the digit (sizes of "
        "S2AFormer and TiC are ours: nothing of their networks was released). G: 10⁹ "
        "multiply-adds for one image, published, and as `tools/analyze.py` counts them (products, convolutions). "
        "Top-1: ImageNet-1k, percent, as published; not measured here, for want of ImageNet. Weights: a published file "
        "of the authors or of timm, which `create(name, pretrained=True)` downloads, or a page where somebody has to "
        "fetch it. The addresses were collected from public repositories and not tried here; "
        "[weights.csv](../backbones/weights.csv) has what was published with them.",
        "",
    ]
    by_module: dict[str, list[type[backbones.Backbone]]] = {}
    for network in backbones.systems().values():
        by_module.setdefault(network.__module__, []).append(network)
    for module, networks in sorted(by_module.items()):
        name, what, source = title_of(module)
        where = module.removeprefix("attlas.").replace(".", "/")
        lines += [f"### {name}", "", f"{what[:1].upper()}{what[1:]}. {' '.join(source.split())}", ""]
        lines += [f"[{where}.py](../{where}.py)", ""]
        lines += ["| variant | class | parameters | image | G, published | G, counted | top-1 | weights |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        lines += [row_of(name, n.__name__, variant) for n in networks for name, variant in n.variants.items()]
        lines.append("")
    return lines


def tasks_of_folders(files: Collection[str]) -> dict[Path, str]:
    """The task of each folder of configs in which a backbone of backbones/ does one, by their `default_scope`."""
    found = {}
    for folder in sorted(path for path in ROOT.glob("configs/[!_]*") if path.name not in files):
        paths = [path for file in files for path in folder.glob(f"{folder.name}*_{file}_*.py")]
        if paths and (scope := load_config(paths[0]).get("default_scope")) in TASKS:
            found[folder] = TASKS[scope]
    return found


def tasks_section() -> list[str]:
    lines = [
        "## Detection and segmentation",
        "",
        "The configs of each backbone with mmdet and mmseg, on COCO, ADE20K, Cityscapes, or the built-in rooms; "
        "`--cfg-options name=...` chooses the variant. Figures that were published with a backbone stand in its "
        "configs; none was repeated. [detection.md](detection.md) and [segmentation.md](segmentation.md) have what was "
        "trained here.",
        "",
        f"| backbone | {' | '.join(TASKS.values())} |",
        "|---|" + "---|" * len(TASKS),
    ]
    modules = {network.__module__: network.__module__.rpartition(".")[2] for network in backbones.systems().values()}
    folders = tasks_of_folders(modules.values())
    for module, file in sorted(modules.items()):
        cells = []
        for task in TASKS.values():
            paths = [
                path
                for folder, of_folder in folders.items()
                if of_folder == task
                for path in sorted(folder.glob(f"{folder.name}*_{file}_*.py"))
            ]
            links = [f"[{p.stem.replace(f'_{file}', '', 1)}](../{p.relative_to(ROOT).as_posix()})" for p in paths]
            cells.append(", ".join(links))
        if any(cells):  # hosts of explanations have none
            lines.append(f"| {title_of(module)[0]} | {' | '.join(cells)} |")
    return [*lines, ""]


def mixers_section() -> list[str]:
    found = json.loads(MEASURED.read_text())
    lines = [
        "## Mixers and their cost laws",
        "",
        "Any of them stands in any stage: `Pyramid(mixers=[...])`. Forward and backward of one map of "
        f"{DIM} channels, default options, one CPU thread; the exponents are slopes over H·W from {SIDES[-3]}² to "
        f"{SIDES[-1]}² pixels (1: linear, 2: quadratic; below 1: fixed costs still show). Memory is the peak of all "
        "tensors that the pass makes, weights and scratch of operators not counted. Restoration: the published sizes "
        "of HAT in whose body, and at the end of whose groups, a mixer stands with its default options: "
        "`dict(type='HAT', mixer=...)`.",
        "",
        "| mixer | parameters | " + " | ".join(f"{side}², ms" for side in SIDES) + " | time ~ (H·W)^ | peak at "
        f"{SIDES[-1]}², MiB | memory ~ (H·W)^ | restoration |",
        "|---|" + "---|" * (len(SIDES) + 5),
    ]
    others = []
    for name, mixer in sorted(found["mixers"].items()):
        times = " | ".join(f"{row['seconds'] * 1e3:.3g}" for row in mixer["rows"])
        peak = mixer["rows"][-1]["bytes"] / 2**20
        sizes, why = restores(name)
        others += [f"- {why}"] if why else []
        lines.append(
            f"| `{name}` | {mixer['params']:,} | {times} | {mixer['time']:.2f} | {peak:.1f} | {mixer['memory']:.2f} | "
            f"{', '.join(f'`{size}`' for size in sizes)} |"
        )
    if others:
        lines += ["", "The other sizes take an option of the mixer, `mixer=dict(type=..., ...)`:", "", *others]
    return [*lines, "", f"Measured on {found['machine']}.", ""]


def plugins_section() -> list[str]:
    """What stands both among the mixers and among mm's modules."""
    names = sorted(MIXERS.module_dict.keys() & MODELS.module_dict.keys())
    without = [name for name, system in backbones.systems().items() if "plugins" not in system.options()]
    lines = [
        "## Plug-ins",
        "",
        'Gates on maps that keep the shape. `plugins="ELA"` of a backbone puts one at the end of every block, '
        f"`plugins=[None, None, dict(type=...), ...]` by stage{'; not of ' if without else ''}{', '.join(without)}. In "
        "mm's "
        'ResNets: `plugins=[dict(cfg=dict(type="attlas.ELA"), stages=(True,) * 4, position="after_conv3")]`. They are '
        "mixers, too, with their costs above.",
        "",
        f"| plug-in | what it is | parameters at {', '.join(f'{dim:,}' for dim in WIDTHS)} channels |",
        "|---|---|---|",
    ]
    for name in names:
        with torch.device("meta"):
            counts = [sum(p.numel() for p in MIXERS.build(dict(type=name, dim=dim)).parameters()) for dim in WIDTHS]
        what = " ".join((MIXERS.get(name).__doc__ or "").split("\n\n")[0].split())
        cells = f"`{name}`", what.removesuffix(", see above.").rstrip("."), ", ".join(f"{n:,}" for n in counts)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def trainings_section() -> list[str]:
    results = {path: json.loads(path.read_text()) for path in sorted(ROOT.glob("configs/*/*.json"))}
    results = {path: result for path, result in results.items() if "top1" in result}
    if not results:
        return []
    some = next(iter(results.values()))
    lines = [
        "## Small trainings",
        "",
        "Every system as a small network on the built-in pictures of furniture (14 classes; 286 models seen in "
        "training, 122 others in the test), from nothing, by the same short recipe. They show that each trains, not "
        "which is best: one run each, narrow networks, few pictures, and a test model is worth 0.8 %.",
        "",
        "| config | top-1 | class accuracy | parameters | M multiply-adds | ms for one image | training step, ms for "
        f"{some['batch']} images | its peak, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path, r in sorted(results.items(), key=lambda item: -item[1]["top1"]):
        config = path.with_suffix(".py").relative_to(ROOT)
        lines.append(
            f"| [{path.stem}](../{config.as_posix()}) | {r['top1']} | {r['mAcc']} | {r['params']:,} | "
            f"{r['macs'] / 1e6:.1f} | {r['milliseconds']} | {r['step_milliseconds']} | {r['peak_mib']} |"
        )
    machines = "; ".join(sorted({result["machine"] for result in results.values()}))
    usual = max(r["epochs"] for r in results.values())
    shorter = [f"{path.stem} {r['epochs']}" for path, r in sorted(results.items()) if r["epochs"] < usual]
    epochs = f"{usual} epochs" + (f" ({', '.join(shorter)})" if shorter else "")
    return [*lines, "", f"{epochs}, images of {some['side']} pixels. {machines}.", ""]


def write() -> None:
    lines = [
        "# The atlas",
        "",
        "<!-- made by tools/atlas.py: change that, not this -->",
        "",
        *shown_section(),
        *systems_section(),
        *tasks_section(),
        *mixers_section(),
        *plugins_section(),
        *trainings_section(),
    ]
    with replacing(PAGE) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n")
    out.print(PAGE.relative_to(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("train")
    sub.add_argument("configs", type=Path, nargs="+")
    sub.add_argument("--work-dir", type=Path, default=Path("work_dirs/atlas"))
    sub.add_argument("--overwrite", action="store_true", help="measure again what has been measured")
    sub = commands.add_parser("mixers")
    sub.add_argument("names", nargs="*", help="these alone (all)")
    commands.add_parser("write")
    args = parser.parse_args()
    if args.command == "train":
        for config in args.configs:
            result = config.with_suffix(".json")
            if result.exists() and not args.overwrite:
                out.print(f"{result} exists")
                continue
            save(result, train(config, args.work_dir / config.stem))
            out.print(f"{result}: {json.loads(result.read_text())}")
    elif args.command == "mixers":
        torch.set_num_threads(1)
        if unknown := [name for name in args.names if name not in MIXERS.module_dict]:
            parser.error(f"{', '.join(unknown)}: no mixer; there are {', '.join(sorted(MIXERS.module_dict))}")
        known = json.loads(MEASURED.read_text())["mixers"] if MEASURED.exists() and args.names else {}
        for name in args.names or sorted(MIXERS.module_dict):
            known[name] = measure_mixer(name)
            out.print(f"{name}: time ~ (H·W)^{known[name]['time']:.2f}, memory ~ (H·W)^{known[name]['memory']:.2f}")
        save(MEASURED, dict(machine=f"one thread, the processor's time; {machine()}", mixers=known))
    else:
        if not MEASURED.exists():
            parser.error(f"{MEASURED} is missing: `python tools/atlas.py mixers` makes it")
        write()


if __name__ == "__main__":
    main()
