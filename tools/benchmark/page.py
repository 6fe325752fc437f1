"""The tables of tools/benchmark: what it prints, and what stands between the marks of docs/performance.md.

A record is what the JSON holds: the machine, the missing peers, and the cases with the results of every implementation.
Several may be joined into one, which keeps the records that it was made of as its "runs".
"""

import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from attlas.files import replacing

from .cases import EAGER, OURS
from .images import IMAGE_OPERATORS

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
MISSING = "missing"
LONG_MS = 20.0
Table = tuple[str, list[str], list[list[str]]]  # title, header, rows


# --- figures ---------------------------------------------------------------------------------------------------------


def is_network(case: dict) -> bool:
    return case["operator"].startswith("network")


def is_backbone(case: dict) -> bool:
    return case["operator"].startswith("network of images")


def is_image(case: dict) -> bool:
    return case["operator"].split(",")[0] in IMAGE_OPERATORS


def is_mmcv(case: dict) -> bool:
    return case["operator"].startswith("mmcv ")


def is_scene(case: dict) -> bool:
    return case["operator"] == "scene"


def is_law(case: dict) -> bool:
    return case["operator"].startswith("law of ")


def is_tokens(case: dict) -> bool:
    return case["operator"] == "fewer tokens"


def joined(records: list[dict]) -> dict | None:
    """One record of several, of machines of one type: of what more than one of them measured, the last counts."""
    if not records:
        return None
    cases = {(case["operator"], *case["sizes"].items()): case for record in records for case in record["cases"]}
    return {**records[0], "cases": [*cases.values()], "runs": records}


def fastest_other(case: dict) -> str | None:
    """Of the libraries, or of eager PyTorch where no library does it; a network has its naive twin."""
    others = [name for name in case["results"] if not name.startswith(OURS)]
    if is_backbone(case) and "timm" in case["results"]:
        return "timm"
    peers = ["naive"] if is_network(case) else [name for name in others if name not in EAGER]
    return min(peers or others, key=lambda name: case["results"][name]["ms"], default=None)


def over_fastest(case: dict) -> float:
    other = fastest_other(case)
    return case["results"][OURS]["ms"] / case["results"][other]["ms"] if other else math.nan


def over_bound(case: dict) -> float:
    return case["results"][OURS]["ms"] / case["bound_ms"]


def growth(series: list[tuple[int, float]]) -> float | None:
    """The exponent p of time ~ N^p: the slope of a line through the logarithms of (N, time)."""
    if len({n for n, _ in series}) < 2:
        return None
    x, y = zip(*((math.log(n), math.log(time)) for n, time in series))
    return statistics.linear_regression(x, y).slope


def figure(value: float) -> str:
    """Three digits, without exponents."""
    if not math.isfinite(value):
        return "-"
    digits = 0 if value == 0 else min(4, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def time(result: dict | None) -> str:
    """Median, and half the distance of the quartiles."""
    if result is None:
        return "-"
    return f"{figure(result['ms'])} ±{50 * (result['high_ms'] - result['low_ms']) / result['ms']:.0f} %"


def memory(result: dict) -> str:
    return f"{result['extra_mib']:,.0f} of {result['total_mib']:,.0f} MiB"


def at(sizes: Mapping[str, int | str]) -> str:
    return ", ".join(f"{name} {size:,}" if isinstance(size, int) else size for name, size in sizes.items())


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(record: dict, gpu: dict | None = None) -> list[Table]:
    """One of every operator, with columns for `gpu` unless it is None, and one of how times grow."""
    found = []
    alone = [case for case in record["cases"] if not any(of(case) for of in (is_scene, is_backbone, is_law, is_tokens))]
    for operator in dict.fromkeys(case["operator"] for case in alone):
        cases = [case for case in record["cases"] if case["operator"] == operator]
        names = list(dict.fromkeys(name for case in cases for name in (*case["results"], *case.get("left_out", ()))))
        last = ["logits differ"] if is_network(cases[0]) else ["lower bound", "MiB, ours / theirs", "results differ"]
        header = ["size", *names, "ours / fastest other", *last]
        if gpu is not None:
            header += [
                "GPU: ours",
                "GPU: ours / fastest other",
                *["GPU: ours / lower bound"] * (not is_network(cases[0])),
            ]
        rows = [row(case, names) + (gpu_cells(case, gpu) if gpu is not None else []) for case in cases]
        found.append((f"{operator}, ms", header, rows))
    return [
        *found,
        *family_table(record),
        *scene_table(record),
        *growth_table(record),
        *law_table(record),
        *token_table(record),
        *cores_table(record),
    ]


def row(case: dict, names: list[str]) -> list[str]:
    results, other = case["results"], fastest_other(case)
    cells = [at(case["sizes"])]
    ratio = f"{figure(over_fastest(case))} ({other})" if other else "-"
    if is_network(case):
        times = [f"{time(results[name])}; {memory(results[name])}" if name in results else "-" for name in names]
        return [*cells, *times, ratio, f"{case['logits_differ']:.1g}"]
    taken = " / ".join(figure(results[name]["extra_mib"]) for name in (OURS, other) if name)
    differs = max(result["differs"] for result in results.values())
    times = [time(results.get(name)) for name in names]
    return [*cells, *times, ratio, figure(case["bound_ms"]), taken, f"{100 * differs:.2g} %"]


def gpu_cells(case: dict, gpu: dict) -> list[str]:
    same = (x for x in gpu["cases"] if (x["operator"], x["sizes"]) == (case["operator"], case["sizes"]))
    case_gpu = next(same, None)
    if case_gpu is None:
        return [MISSING] * (2 if is_network(case) else 3)
    ours = case_gpu["results"][OURS]
    ratio = f"{figure(over_fastest(case_gpu))} ({fastest_other(case_gpu)})"
    if is_network(case):
        return [f"{time(ours)}; {memory(ours)}", ratio]
    return [time(ours), ratio, figure(over_bound(case_gpu))]


def scene_table(record: dict) -> list[Table]:
    rows = []
    for case in filter(is_scene, record["cases"]):
        found = case["results"][OURS]
        seconds = [figure(found[key] / 1e3) for key in ("ms", "normals_ms")]
        rows.append([at(case["sizes"]), *seconds, figure(found["points_per_s"]), memory(found)])
    return [("scenes", ["size", "s", "of these normals", "points a second", "peak memory"], rows)] if rows else []


def family_table(record: dict) -> list[Table]:
    """Backbones, a row for each, with three columns for every kind of step: the other's time over ours, our time, and
    the memory of both. Ratios are averaged, too."""
    cases = list(filter(is_backbone, record["cases"]))
    if not cases:
        return []

    def kind(case):
        sizes = case["sizes"]
        images = "1 image" if sizes["B"] == 1 else f"{sizes['B']} images"
        return f"{case['operator'].split(', ')[1]}, {images} of {sizes['H']} x {sizes['W']}"

    def ratio(case):
        return 1 / over_fastest(case)

    kinds = list(dict.fromkeys(map(kind, cases)))
    header = ["network, beside", *(cell for name in kinds for cell in (name, "ms", "MiB, ours / theirs"))]
    rows = []
    for name in dict.fromkeys(case["sizes"]["network"] for case in cases):
        own = {kind(case): case for case in cases if case["sizes"]["network"] == name}
        others = dict.fromkeys(fastest_other(case) for case in own.values())
        cells = [f"{name}, {' or '.join(map(str, others))}"]
        for case in map(own.get, kinds):
            if case is None:
                cells += ["-"] * 3
                continue
            ours, theirs = (case["results"][who] for who in (OURS, fastest_other(case)))
            cells += [figure(ratio(case)), figure(ours["ms"])]
            cells.append(" / ".join(figure(x["extra_mib"]) for x in (ours, theirs)))
        rows.append(cells)
    means = ["geometric mean"]
    for name in kinds:
        found = [ratio(case) for case in cases if kind(case) == name]
        means += [figure(statistics.geometric_mean(found)), "", ""]
    differ = max(case["logits_differ"] for case in cases)
    return [(f"backbones, theirs over ours (logits or losses differ by {differ:.1g})", header, [*rows, means])]


def growth_table(record: dict) -> list[Table]:
    series = [case for case in record["cases"] if case.get("grows")]
    names = list(dict.fromkeys(name for case in series for name in case["results"]))
    rows = []
    for operator in dict.fromkeys(case["operator"] for case in series):
        cells = [operator]
        for name in names:
            cases = [case for case in series if case["operator"] == operator and name in case["results"]]
            points = [(case["sizes"]["N"], case["results"][name]["ms"]) for case in cases]
            exponent = growth(points)
            cells.append("-" if exponent is None else f"{exponent:.2f}, to {points[-1][0]:,}")
        rows.append(cells)
    return [("growth, p of time ~ N^p", ["operator", *names], rows)] if rows else []


def law_table(record: dict) -> list[Table]:
    """The laws of operators over sequences: exponents of time and memory, and both at the ends of the series."""
    rows = []
    for operator in dict.fromkeys(case["operator"] for case in record["cases"] if is_law(case)):
        cases = [case for case in record["cases"] if case["operator"] == operator]
        lengths, results = zip(*((case["sizes"]["N"], case["results"][OURS]) for case in cases))
        cells = [operator.removeprefix("law of "), f"{lengths[-1]:,}"]
        for key, least in (("ms", 0.0), ("extra_mib", 1.0)):  # a mebibyte, below which pages count
            found = [(length, result[key]) for length, result in zip(lengths, results) if result[key] > least]
            exponent = growth(found)
            cells += [
                "-" if exponent is None else f"{exponent:.2f}",
                f"{figure(results[0][key])} ... {figure(results[-1][key])}",
            ]
        rows.append(cells)
    header = ["operator", "to N", "time ~ N^p", "ms", "memory ~ N^p", "MiB beyond the inputs"]
    return [("cost laws of sequences, from 1,024 tokens", header, rows)] if rows else []


def token_table(record: dict) -> list[Table]:
    """Networks with fewer tokens: time, memory and multiply-adds over those of the first, and from how many tokens on
    they take less time."""
    cases = list(filter(is_tokens, record["cases"]))
    if not cases:
        return []
    dense, *names = cases[0]["results"]
    rows: list[list[str]] = []
    faster: dict[str, list[str]] = {name: [] for name in names}
    for batch in dict.fromkeys(case["sizes"]["B"] for case in cases):
        alike = sorted((x for x in cases if x["sizes"]["B"] == batch), key=lambda x: x["sizes"]["N"])
        for case in alike:
            base = case["results"][dense]
            cells = [at(case["sizes"]), f"{figure(base['ms'])} ms, {figure(base['extra_mib'])} MiB"]
            for name in names:
                found = case["results"][name]
                shares = (found[key] / base[key] if base[key] else math.nan for key in ("ms", "extra_mib", "macs"))
                cells.append(", ".join(f"{share:.2f}" for share in shares))
            rows.append(cells)
        for name in names:
            slow = [case["results"][name]["ms"] > case["results"][dense]["ms"] for case in alike]
            first = len(slow) - slow[::-1].index(True) if True in slow else 0  # behind the last one that is slower
            lengths = [f"{case['sizes']['N']:,}" for case in alike]
            faster[name].append(f"B {batch}: {f'from {lengths[first]}' if first < len(alike) else 'not'}")
    rows.append(["less time", "", *("; ".join(faster[name]) for name in names)])
    title = f"fewer tokens: time, memory beyond the weights and multiply-adds, over those of {dense}"
    return [(title, ["size", dense, *names], rows)]


def cores_table(record: dict) -> list[Table]:
    """How many cores everybody kept busy at most: not all libraries have threads, and some have them over clouds.
    Of calls long enough that threads which wait, spinning, for the next do not count."""
    cases = [
        case
        for case in record["cases"]
        if not any(of(case) for of in (is_network, is_image, is_mmcv, is_scene, is_law, is_tokens))
    ]
    cases = cases if record["machine"]["type"] == "cpu" else []
    names = list(dict.fromkeys(name for case in cases for name in case["results"]))
    rows = []
    for operator, many in dict.fromkeys((case["operator"], case["sizes"]["B"] > 1) for case in cases):
        alike = [x["results"] for x in cases if (x["operator"], x["sizes"]["B"] > 1) == (operator, many)]
        used = {name: [x[name]["cores"] for x in alike if name in x and x[name]["ms"] >= LONG_MS] for name in names}
        cells = [f"{max(used[name]):.1f}" if used[name] else "-" for name in names]
        rows.append([f"{operator}, {'batches' if many else 'one cloud'}", *cells])
    return [("cores busy at most", ["operator", *names], rows)] if rows else []


def targets(cpu: dict, gpu: dict | None) -> list[list[str]]:
    """Rows of what this library set out to reach: where, what, target, and the worst that was measured."""

    def worst(record: dict | None, operator: str, value: Callable[[dict], float], choose=max, where=lambda sizes: True):
        cases = [] if record is None else record["cases"]
        cases = [
            case
            for case in cases
            if case["operator"] == operator and where(case["sizes"]) and (is_scene(case) or fastest_other(case))
        ]
        if not cases:
            return MISSING
        case = choose(cases, key=value)
        return f"{figure(value(case))} ({at(case['sizes'])})"

    def gain(case, eager="naive"):
        return case["results"][eager]["ms"] / case["results"][OURS]["ms"]

    def over_reference(case):
        return gain(case, "reference")

    def of(points):
        return lambda sizes: sizes["num_points"] == points

    def share(case):
        return case["results"][OURS]["extra_mib"] / case["results"]["naive"]["extra_mib"]

    def mebibytes(case):
        return case["results"][OURS]["total_mib"]

    def per_sample(case):
        return 1e3 * case["results"][OURS]["ms"] / case["sizes"]["S"]

    fps, properties, step = "farthest_point_sample", "surface_properties", "network, training"
    parts = "network of parts, training"
    medium = {"B": 32, "N": 4096, "K": 16}
    return [
        ["CPU", "FPS, over the fastest peer", "≤ 1.2", worst(cpu, fps, over_fastest)],
        ["CPU", "kNN, N ≥ 8,192, the same", "≤ 1", worst(cpu, "knn", over_fastest, where=lambda x: x["N"] >= 8192)],
        ["CPU", "kNN, smaller N, the same", "≤ 1.5", worst(cpu, "knn", over_fastest, where=lambda x: x["N"] < 8192)],
        ["CPU", "surface properties, our reference over ours", "≥ 5", worst(cpu, properties, over_reference, min)],
        ["CPU", "surface properties, naive PyTorch over ours", "≥ 5", worst(cpu, properties, gain, min)],
        ["CPU", "training step, 512 samples, naive twin over ours", "≥ 4", worst(cpu, step, gain, min, of(512))],
        ["CPU", "training step, 1,024 samples, the same", "≥ 4", worst(cpu, step, gain, min, of(1024))],
        ["CPU", "training step, peak memory over the naive twin's", "≤ 0.5", worst(cpu, step, share)],
        ["CPU", "training step of parts, naive twin over ours", "≥ 4", worst(cpu, parts, gain, min)],
        ["CPU", "training step of parts, peak memory over the naive twin's", "≤ 0.5", worst(cpu, parts, share)],
        ["CPU", "a scene of 1,000,000 points, peak memory in MiB", "≤ 1,907", worst(cpu, "scene", mebibytes)],
        ["GPU", "FPS, µs a sample", "≤ 1.3", worst(gpu, fps, per_sample)],
        ["GPU", "kNN, over its lower bound", "≤ 4", worst(gpu, "knn", over_bound, where=lambda x: x == medium)],
        ["GPU", "fused attention, over its lower bound", "≤ 3", worst(gpu, "surface_attention, forward", over_bound)],
        ["GPU", "training step, naive twin over ours", "≥ 8", worst(gpu, step, gain, min)],
    ]


# --- the page --------------------------------------------------------------------------------------------------------


def sources(record: dict) -> list[str]:
    """Where the figures of a record, or of those that it was joined from, come from."""
    first, *others = record.get("runs", [record])
    return [source(first), *(source(run, f", {operators(run)}") for run in others)]


def operators(record: dict) -> str:
    return ", ".join(dict.fromkeys(case["operator"].split(",")[0] for case in record["cases"]))


def source(record: dict, part: str = "") -> str:
    """Where the figures of one run come from; `part` says what of the page it is."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    missing = "; ".join(f"{name} ({why})" for name, why in record["missing"].items()) or "none"
    threads = f", {machine['threads']} thread{'s' * (machine['threads'] > 1)}" if machine["type"] == "cpu" else ""
    return (
        f"**{'CPU' if machine['type'] == 'cpu' else 'GPU'}{part}:** {machine['name']}{threads}, which copies "
        f"{machine['bytes_per_s'] / 1e9:,.1f} GB/s and multiplies {machine['operations_per_s'] / 1e9:,.0f} GFLOP/s. "
        f"Python {machine['python']}, {versions}. {machine['date']}, {record['seconds'] / 60:.1f} minutes: "
        f"`{machine['command']}`. Missing peers: {missing}."
    )


def markdown(cpu: dict, gpu: dict | None) -> str:
    def table(header, rows):
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))

    blocks = [*sources(cpu), *(sources(gpu) if gpu else ["**GPU:** missing, none was at hand."])]
    blocks.append("### Targets\n\n" + table(["on", "what", "target", "worst measured"], targets(cpu, gpu)))
    parts = {
        "": [case for case in cpu["cases"] if not (is_image(case) or is_mmcv(case))],
        "### Operators of images": list(filter(is_image, cpu["cases"])),
        "### Operators of mmcv": list(filter(is_mmcv, cpu["cases"])),
    }
    for heading, cases in parts.items():
        blocks += [heading] if heading and cases else []
        level, part = "####" if heading else "###", {**cpu, "cases": cases}
        for title, header, rows in tables(part, gpu or {"cases": []}):
            blocks.append(f"{level} {title[0].upper()}{title[1:]}\n\n{table(header, rows)}")
    left_out = [
        f"- {case['operator']}, {at(case['sizes'])}: {name}, {why}"
        for case in cpu["cases"]
        for name, why in case.get("left_out", {}).items()
    ]
    return "\n\n".join([*blocks, *(["### Left out", "\n".join(left_out)] if left_out else [])])


def write_page(page: Path, cpu: dict, gpu: dict | None) -> None:
    """Replace what stands between the marks of a page."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{page} must hold {BEGIN} and {END} once each: the tables go between them")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    with replacing(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{markdown(cpu, gpu)}\n\n{END}{after}")
