"""tools/benchmark: that it compares equals, that what it writes is whole, and that the page can be made from it."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark import backbones as benchmark_backbones
from benchmark import cases as benchmark_cases
from benchmark import command, extension, measure, network, scenes, sequences
from benchmark import images as benchmark_images
from benchmark import page as benchmark_page
from benchmark import restorers as benchmark_restorers
from benchmark import tokens as benchmark_tokens

from attlas import backbones
from attlas.backbones.layers import pair_bias
from attlas.kernels import mmcv_ext
from attlas.registry import MIXERS

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMALL_IMAGES = {
    "neighborhood_attention": {"B": 2, "side": 9, "heads": 2, "D": 4, "kernel": 3, "dilation": 2},
    "neighborhood_aggregate": {"B": 2, "side": 7, "heads": 2, "D": 4, "kernel": 5},
    "lightning_attention": {"B": 2, "heads": 2, "N": 70, "D": 4},
    "combiner_fixed": {"B": 2, "N": 15, "heads": 2, "D": 4, "w": 5},
    "combiner_logsparse": {"B": 2, "N": 15, "heads": 2, "D": 4},
    "combiner_rowmajor": {"B": 2, "N": 15, "heads": 2, "D": 4, "w": 5},
    "combiner_mixture": {"B": 2, "N": 15, "heads": 2, "D": 4, "w": 5},
    "nprf_attention": {"B": 2, "N": 9, "heads": 2, "D": 4, "m": 3},
    "outlook_attention": {"B": 2, "side": 5, "heads": 2, "D": 4, "kernel": 3, "stride": 2},
    "position_relation": {"B": 2, "N": 7, "heads": 3},
    "small_kernel_aggregate": {"B": 2, "side": 5, "C": 8, "Cw": 4, "kernel": 3},
    "halo_attention": {"B": 2, "side": 8, "heads": 2, "D": 4, "block": 4, "halo": 1},
    "local_cross_attention": {"B": 2, "tokens": 2, "side": 6, "heads": 2, "D": 4},
    "window_attention": {"B": 2, "side": 8, "heads": 2, "D": 4, "block": 4, "halo": 0, "shift": 1},
    "reversed_attention": {"B": 2, "N": 7, "heads": 2, "D": 4},
    "routed_attention": {"B": 2, "side": 6, "heads": 2, "D": 4, "regions": 3, "topk": 2},
    "sparse_attention": {"B": 2, "side": 4, "heads": 2, "D": 4, "topk": 5},
    "carafe": {"B": 2, "side": 5, "C": 8, "kernel": 3, "scale": 2},
    "psa_mask": {"B": 2, "side": 5},
    "deformable_convolution": {"B": 2, "side": 5, "C": 8, "kernel": 3},
    "deformable_attention": {"B": 2, "side": 8, "heads": 2, "D": 4, "places": 2},
    "roi_align": {"B": 2, "side": 9, "C": 8, "R": 5, "bins": 2, "ratio": 2},
    "roi_pool": {"B": 2, "side": 9, "C": 8, "R": 5, "bins": 2},
    "bridging_attention": {"B": 2, "side": 5, "heads": 2, "D": 4, "keys": 3, "table": 9},
    "coordinated_attention": {"B": 2, "N": 7, "heads": 2, "D": 4, "groups": 3, "topk": 2},
    "position_attention": {"B": 2, "N": 10, "C": 8, "D": 2},
}
SMALL = {kind: {**found.small, "num_points": 64} for kind, found in network.NETWORKS.items()}


def result(ms, **more):
    return {"ms": ms, "low_ms": ms, "high_ms": ms, "rounds": 3, "extra_mib": 10 * ms, "total_mib": 99.0, **more}


def record(device="cpu", scale=1.0):
    """A small record as the tool writes it: two sizes of kNN, a training step, and a scene."""
    knn = [
        {
            "operator": "knn",
            "sizes": {"B": 1, "N": n, "K": 16},
            "grows": True,
            "bound_ms": n / 1e5,
            "results": {
                name: result(scale * n / speed, differs=0.0, cores=1.0)
                for name, speed in (("attlas", 1000), ("scipy", 500), ("reference", 4000))
            },
            "left_out": {"naive": "would take about 99 s"},
        }
        for n in (1024, 16384)
    ]
    step = {
        "operator": "network, training",
        "sizes": {"B": 16, "N": 1024, "num_points": 512},
        "results": {"attlas": result(scale * 100), "naive": result(500)},
        "logits_differ": 1e-15,
    }
    labelled = {"ms": 4e5, "normals_ms": 5e3, "points_per_s": 2500.0, "extra_mib": 800.0, "total_mib": 1200.0}
    scene = {"operator": "scene", "sizes": {"N": 1_000_000}, "results": {"attlas": labelled}}
    machine = {"name": "a machine", "type": device, "threads": 2, "python": "3", "versions": {"torch": "2"}}
    machine |= {"date": "2026-01-01", "command": "python", "bytes_per_s": 1e10, "operations_per_s": 1e11}
    return {"machine": machine, "missing": {"pykdtree": "no module"}, "cases": [*knn, step, scene], "seconds": 60.0}


@pytest.mark.slow
def test_the_command_measures_and_writes(tmp_path):
    out = tmp_path / "cpu.json"
    command = [sys.executable, str(ROOT / "tools" / "benchmark"), "--quick", "--threads", "1"]
    command += ["--only", "knn,surface_properties,network,parts,scene", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(out.read_text())
    assert written["machine"]["bytes_per_s"] > 1e8
    assert written["machine"]["type"] == "cpu"
    operators = [case["operator"] for case in written["cases"]]
    steps = [f"{name}, {mode}" for name in ("network", "network of parts") for mode in ("inference", "training")]
    assert operators == ["knn", "knn", "surface_properties", *steps, "scene"]
    (scene,) = written["cases"].pop()["results"].values()
    assert 0 < scene["normals_ms"] < scene["ms"]
    assert scene["points_per_s"] == pytest.approx(1e7 / scene["ms"])
    for case in written["cases"]:
        assert {"attlas", "naive"} <= case["results"].keys()
        for found in case["results"].values():
            assert 0 < found["low_ms"] <= found["ms"] <= found["high_ms"]
            assert found["rounds"] >= 2
            assert found["extra_mib"] >= 0
            assert found.get("differs", 0) < 0.01
    assert all(case["bound_ms"] > 0 for case in written["cases"][:3])
    assert written["cases"][-1]["logits_differ"] < 1e-9
    assert "training" in done.stdout
    assert "growth" in done.stdout
    page = tmp_path / "page.md"
    page.write_text(f"{benchmark_page.BEGIN}{benchmark_page.END}")
    benchmark_page.write_page(page, written, None)
    assert "### Network, training, ms" in page.read_text()


@pytest.mark.parametrize("kind", network.NETWORKS)
def test_the_naive_twin_computes_what_ours_does(kind):
    assert network.logits_differ(kind, SMALL[kind], 128) < 1e-10
    ours, naive = network.twins(kind, SMALL[kind], torch.float64)
    assert [p.numel() for p in ours.parameters()] == [p.numel() for p in naive.parameters()]
    list(naive.head.children())[-1].weight.data *= 1.01
    inputs = network.clouds(kind, 2, 128, CPU, torch.float64)
    assert not torch.allclose(ours.eval()(*inputs), naive.eval()(*inputs))


def test_the_room_has_points_on_all_sides():
    points = scenes.room(20_000)
    size = torch.tensor(scenes.ROOM)
    sides = torch.cat([(points == 0).double().mean(0), (points == size).double().mean(0)])
    areas = (size.prod() / size).repeat(2).double()
    assert torch.allclose(sides, areas / areas.sum(), atol=0.01)
    assert ((points >= 0) & (points <= size)).all()


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_backbone_beside_its_plain_operators(mode, monkeypatch):
    by_onednn, asked = benchmark_backbones.LINEAR.by_onednn, []
    monkeypatch.setattr(benchmark_backbones.LINEAR, "by_onednn", lambda *x: asked.append(by_onednn(*x)) or asked[-1])
    run = benchmark_cases.Run(CPU, 1, {})
    case = benchmark_backbones.measure_backbone(run, "davit_tiny", 2, 64, 64, mode, quick=True)
    assert any(asked)
    assert 0 <= case["logits_differ"] < 1e-4
    assert benchmark_page.fastest_other(case) == "naive"
    (_, header, rows), *_ = benchmark_page.tables({"machine": {"type": "cpu"}, "cases": [case]})
    assert header[1] == f"{mode}, 2 images of 64 x 64"
    assert [row[0] for row in rows] == ["davit_tiny, naive", "geometric mean"]
    assert float(rows[0][1]) == float(rows[1][1]) > 0
    assert all(len(row) == len(header) for row in rows)
    with benchmark_backbones.plain():
        assert not benchmark_backbones.LINEAR.by_onednn(torch.ones(1, 400, 64), torch.ones(64, 64))


def test_attention_is_written_out():
    q, k, v = torch.randn(3, 2, 4, 5, 8, dtype=torch.float64)
    attend = torch.nn.functional.scaled_dot_product_attention
    mask = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    for options in (dict(), dict(attn_mask=mask), dict(attn_mask=mask > -1), dict(scale=0.3)):
        torch.testing.assert_close(
            benchmark_backbones.attention_written_out(q, k, v, **options), attend(q, k, v, **options)
        )
    with pytest.raises(ValueError, match="dropout_p"):
        benchmark_backbones.attention_written_out(q, k, v, dropout_p=0.1)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_hat_beside_the_form_of_its_authors(mode):
    run = benchmark_cases.Run(CPU, 1, {})
    case = benchmark_restorers.measure_restorer(run, 1, 32, mode, quick=True)
    assert 0 < case["logits_differ"] < 1e-4  # not the same operations
    assert benchmark_page.fastest_other(case) == "naive"
    (_, header, rows), *_ = benchmark_page.tables({"machine": {"type": "cpu"}, "cases": [case]})
    assert rows[0][0] == "hat_s_x2, B 1, H 32, W 32"
    assert len(rows[0]) == len(header)


def test_fewer_tokens_beside_fused_attention():
    run = benchmark_cases.Run(CPU, 1, {})
    (case,) = benchmark_tokens.measure_tokens(run, quick=True)
    dense, *others = (found["macs"] for found in case["results"].values())
    keys, both, pixels, lite, *interpreted = (macs / dense for macs in others)
    assert keys > both
    assert 0.4 < both < 0.75
    assert 0.4 < pixels < 0.75
    assert lite < 0.8
    assert interpreted[0] > 1  # the scores of all tokens
    assert interpreted[0] > interpreted[1] > interpreted[2] > 0.4
    assert all(found["ms"] > 0 for found in case["results"].values())
    ((_, header, rows),) = benchmark_page.tables({"machine": {"type": "cpu"}, "cases": [case]})
    assert header == ["size", *case["results"]]
    assert all(len(row) == len(header) for row in rows)


def test_where_fewer_tokens_break_even():
    """From the size on behind which nothing takes more time."""
    times = {(1, 100): 2.0, (1, 200): 0.9, (8, 100): 0.5, (8, 200): 1.5}
    cases = [
        {
            "operator": "fewer tokens",
            "sizes": {"B": batch, "N": count},
            "results": {"dense": result(10.0, macs=4.0), "sparse": result(10.0 * ratio, macs=3.0)},
        }
        for (batch, count), ratio in times.items()
    ]
    ((_, _, rows),) = benchmark_page.tables({"machine": {"type": "cpu"}, "cases": cases})
    assert rows[0] == ["B 1, N 100", "10.0 ms, 100 MiB", "2.00, 2.00, 0.75"]
    assert rows[-1] == ["less time", "", "B 1: from 200; B 8: not"]


@pytest.mark.parametrize("name", ["WindowAttention", "OverlappingAttention"])
def test_biases_are_gathered_as_they_are_sliced(name):
    mixer = MIXERS.build(dict(type=name, dim=6, heads=3, window=4))
    torch.nn.init.normal_(mixer.table)
    expected = pair_bias(mixer.ordered(), mixer.window, mixer.reach)
    assert torch.equal(benchmark_restorers.bias_of(mixer), expected)


def test_a_backbone_beside_timm():
    """timm is not installed: a module with its `create_model` stands for it, which knows ours."""
    timm = SimpleNamespace(__version__="0", create_model=backbones.create)
    run = benchmark_cases.Run(CPU, 1, {"timm": timm})
    case = benchmark_backbones.measure_backbone(run, "shvit_s1", 1, 64, 64, "inference", quick=True, naive=False)
    assert case["results"].keys() == {"attlas", "timm"}
    assert case["logits_differ"] < 1e-5
    timm.create_model = lambda name: backbones.create("shvit_s1", num_classes=10)
    with pytest.raises(ValueError, match="head"):
        benchmark_backbones.measure_backbone(run, "shvit_s1", 1, 64, 64, "inference", quick=True)


@pytest.mark.parametrize(
    "case", [x for x in benchmark_cases.all_cases() if x.sizes["B"] == 4], ids=lambda x: x.operator
)
def test_small_cases_agree_with_reference_and_naive(case):
    run = benchmark_cases.Run(CPU, 1, {})
    results, left_out = measure.measure(case, run, measure.Forecast(), quick=True)
    assert not left_out
    assert results.keys() == {"attlas", "reference", "naive"}
    assert all(found["differs"] < 1e-3 for found in results.values())


@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("name", benchmark_images.IMAGE_OPERATORS)
def test_small_cases_of_images_agree_with_reference_and_naive(name, mode):
    case = benchmark_images.case(name, mode, SMALL_IMAGES[name])
    if name == "position_attention":
        pytest.importorskip("mmseg")
    run = benchmark_cases.Run(CPU, 1, {})
    results, left_out = measure.measure(case, run, measure.Forecast(), quick=True)
    assert not left_out
    dense = {"masked sdpa"} if name in ("neighborhood_attention", "sparse_attention") else set()
    if not benchmark_images.IMAGE_OPERATORS[name].referred:  # of PyTorch's operators
        assert results.keys() == {"attlas", "naive"}
    else:
        assert results.keys() == {"attlas", "reference", "naive"} | dense
    assert all(found["differs"] < 1e-3 for found in results.values())


SMALL_MMCV = {"N": 40, "M": 30, "C": 4, "side": 16, "R": 5, "Q": 7, "classes": 3}


def small_mmcv():
    """The cases of mmcv's operators at small sizes, the first of each operator."""
    cases = {}
    for case in extension.mmcv_cases():
        sizes = {name: SMALL_MMCV.get(name, 1) for name in case.sizes}
        cases.setdefault(case.operator, dataclasses.replace(case, sizes=sizes))
    return [*cases.values()]


@pytest.mark.parametrize("case", small_mmcv(), ids=lambda case: case.operator)
def test_mmcv_operators_beside_a_compiled_extension_and_python_forms(case):
    pytest.importorskip("mmcv")
    compiled = SimpleNamespace(**vars(mmcv_ext))
    run = benchmark_cases.Run(CPU, 1, {extension.COMPILED: compiled})
    results, left_out = measure.measure(case, run, measure.Forecast(), quick=True)
    assert not left_out
    on_gpus = case.operator.split(",")[0] in ("mmcv ms_deform_attn", "mmcv sigmoid_focal_loss")
    assert results.keys() == {"attlas", extension.PYTHON if on_gpus else extension.COMPILED}
    assert all(found["differs"] < 1e-3 for found in results.values())
    assert all(found["extra_mib"] >= 0 for found in results.values())
    assert benchmark_page.fastest_other(dict(operator=case.operator, results=results)) in results.keys() - {"attlas"}
    assert benchmark_page.is_mmcv(dict(operator=case.operator))


def test_a_compiled_extension_in_parts_that_differs():
    nms = next(case for case in small_mmcv() if case.operator == "mmcv nms")
    wrong = SimpleNamespace(nms=lambda *x, **y: mmcv_ext.nms(*x, **y).flip(0))
    run = benchmark_cases.Run(CPU, 1, {extension.COMPILED: wrong})
    results, _ = measure.measure(nms, run, measure.Forecast(), quick=True)
    assert results[extension.COMPILED]["differs"] > 0.5
    softnms = next(case for case in small_mmcv() if case.operator == "mmcv softnms")
    assert softnms.make(run, **softnms.sizes).keys() == {"attlas"}  # of which this part has nothing


def test_where_a_compiled_extension_is_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no _ext\*\.so"):
        extension.find_extension([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"none\.so is no compiled extension"):
        extension.find_extension([tmp_path / "none.so"])
    (tmp_path / "_ext.cpython.so").write_text("no library")
    with pytest.raises(ImportError):
        extension.find_extension([tmp_path])
    library = Path(importlib.import_module("math").__spec__.origin or "")
    if library.suffix == ".so":  # any extension of Python's will do
        assert extension.find_extension([library]).floor(2.5) == 2


def test_the_lower_bound_of_an_operator_of_images():
    sizes = {"B": 2, "side": 4, "C": 8, "Cw": 2, "kernel": 3}
    forward, both = (
        benchmark_images.case("small_kernel_aggregate", mode, sizes) for mode in ("forward", "forward+backward")
    )
    assert forward.bytes == 4 * (2 * 16 * 8 + 2 * 16 * 2 * 9 + 2 * 16 * 8)  # x, weight, out
    assert forward.operations == 2 * 9 * 2 * 16 * 8
    assert both.bytes == 2 * forward.bytes
    assert both.operations == 3 * forward.operations


def test_wrong_results_are_seen_and_failures_left_out():
    points = torch.rand(1, 50, 3)
    right = torch.cdist(points, points).topk(4, largest=False).indices

    def fails():
        raise RuntimeError("no kernel for this device\nand more")

    calls = {"attlas": lambda: right, "other": lambda: right.flip(-1), "narrow": lambda: right.int(), "broken": fails}
    case = benchmark_cases.Case("knn", {"B": 1, "N": 50}, lambda run, **sizes: calls, bytes=1.0)
    run = benchmark_cases.Run(CPU, 1, {})
    results, left_out = measure.measure(case, run, measure.Forecast(), quick=True)
    assert results.keys() == {"attlas", "other"}
    assert results["attlas"]["differs"] == 0
    assert results["other"]["differs"] == 1
    assert left_out["broken"] == "no kernel for this device"
    assert "torch.int32" in left_out["narrow"]


def test_samples_are_compared_as_sets():
    a, b = torch.tensor([[0, 5, 9, 3]]), torch.tensor([[0, 3, 5, 7]])
    assert benchmark_cases.samples_differ(a, a.flip(-1)) == 0
    assert benchmark_cases.samples_differ(a, b) == pytest.approx(0.25)


def test_padded_lists_are_compared_as_sets():
    rows, found = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([5, 3, 7, 8, 9])
    lists = benchmark_cases.padded(rows[:2], found[:2], 1, 3)
    assert lists.tolist() == [[5, 3, 5]]
    assert benchmark_cases.lists_differ(lists, torch.tensor([[3, 3, 5]])) == 0
    assert benchmark_cases.lists_differ(lists, torch.tensor([[3, 4, 5]])) > 0


def test_turns_alternate_and_keep_to_budgets():
    order = []

    def call(name, seconds):
        return lambda: order.append(name) or seconds

    times = measure.take_turns({"a": call("a", 1.0), "b": call("b", 0.3)}, 1.0, lambda name: 2, most=30)
    assert order == ["a", "b", "a", "b", "b", "b"]
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 4}


def test_forecast_follows_the_growth_of_a_series():
    forecast = measure.Forecast()
    cases = [benchmark_cases.Case("knn", {"B": 1, "N": n}, dict, 1.0, grows=True) for n in (1000, 2000, 4000)]
    assert forecast(cases[0], "x") == 0
    forecast.remember(cases[0], "x", 1.0)
    assert forecast(cases[1], "x") == pytest.approx(2)
    forecast.remember(cases[1], "x", 4.0)
    assert forecast(cases[2], "x") == pytest.approx(16)


def test_peak_memory_sees_what_was_freed():
    memory = measure.PeakMemory(CPU)
    torch.ones(16 << 20)  # 64 MiB
    assert memory.mib()["extra_mib"] == pytest.approx(64, abs=8) or sys.platform != "linux"


def test_the_page(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{benchmark_page.BEGIN}\nold\n{benchmark_page.END}\nafter\n")
    benchmark_page.write_page(page, record(), None)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| knn | 1.00, to 16,384 |" in text
    assert "| CPU | kNN, N ≥ 8,192, the same | ≤ 1 | 0.500 (B 1, N 16,384, K 16) |" in text
    step = "| CPU | training step, 512 samples, naive twin over ours"
    assert f"{step} | ≥ 4 | 5.00 (B 16, N 1,024, num_points 512) |" in text
    assert "| GPU | training step, naive twin over ours | ≥ 8 | missing |" in text
    assert "| N 1,000,000 | 400 | 5.00 | 2,500 | 800 of 1,200 MiB |" in text
    assert "peak memory in MiB | ≤ 1,907 | 1,200 (N 1,000,000) |" in text
    assert "missing, none was at hand" in text
    assert "pykdtree (no module)" in text
    assert "- knn, B 1, N 1,024, K 16: naive, would take about 99 s" in text
    assert all(line.count("|") == 13 for line in text.splitlines() if line.startswith("| B 1,"))

    benchmark_page.write_page(page, record(), record("cuda", scale=0.5))
    text = page.read_text()
    assert "| GPU | training step, naive twin over ours | ≥ 8 | 10.0 (B 16, N 1,024, num_points 512) |" in text
    assert text.count(benchmark_page.BEGIN) == 1

    page.write_text("no marks")
    with pytest.raises(SystemExit, match="must hold"):
        benchmark_page.write_page(page, record(), None)
    assert page.read_text() == "no marks"


def image_record(ms):
    names = ("attlas", "reference", "naive", "masked sdpa")
    results = {name: result(ms * (1 + i), differs=0.0, cores=1.0) for i, name in enumerate(names)}
    case = {"operator": "neighborhood_attention, forward", "sizes": SMALL_IMAGES["neighborhood_attention"]}
    case |= {"grows": False, "bound_ms": 0.5, "results": results, "left_out": {}}
    machine = record()["machine"] | {"threads": 1, "command": "python --only"}
    return {"machine": machine, "missing": {}, "cases": [case], "seconds": 30.0}


def test_runs_are_joined_and_images_have_a_section(tmp_path, monkeypatch):
    files = []
    for name, found in (("clouds", record()), ("old", image_record(7.0)), ("new", image_record(2.0))):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(found))
    page = tmp_path / "page.md"
    pages = []
    for chosen in (files[:1], files):
        page.write_text(f"{benchmark_page.BEGIN}{benchmark_page.END}")
        monkeypatch.setattr(sys, "argv", ["benchmark", "--markdown", str(page), *map(str, chosen)])
        command.main()
        pages.append(page.read_text())
    alone, whole = pages
    assert "Operators of images" not in alone
    assert set(alone.splitlines()) <= set(whole.splitlines())  # what was there stays as it was
    tables, images = whole.split("### Operators of images\n\n#### Neighborhood_attention, forward, ms\n")
    assert "neighborhood_attention, forward" not in tables.lower()
    row = "| B 2, side 9, heads 2, D 4, kernel 3, dilation 2 | 2.00 ±0 % | 4.00 ±0 % | 6.00 ±0 % | 8.00 ±0 % "
    assert f"{row}| 0.500 (reference) | 0.500 | 20.0 / 40.0 | 0 % | missing | missing | missing |" in images
    assert "7.00" not in images  # the last run counts
    assert "**CPU, neighborhood_attention:** a machine, 1 thread, " in tables


def test_what_the_command_refuses(monkeypatch, capsys, tmp_path):
    gpu = tmp_path / "cuda.json"
    gpu.write_text(json.dumps(record("cuda")))
    for arguments, message in (
        (["--only", "knn,fps"], "got fps"),
        (["--markdown", "page.md"], "goes with"),
        (["cpu.json"], "goes with"),
        (["--only", "mmcv", "--mmcv-ext", str(tmp_path)], "--mmcv-ext"),
        (["--markdown", "page.md", str(gpu)], "needs the JSON of a CPU"),
    ):
        monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
        with pytest.raises(SystemExit, match="2"):
            command.main()
        assert message in capsys.readouterr().err


def test_laws_of_sequences():
    """Exponents are those of the figures, and every operator runs at a length that no tile divides."""
    cases = [
        {
            "operator": "law of x, forward",
            "sizes": {"N": n},
            "results": {"attlas": {"ms": 3 * (n / 1024) ** 1.5, "extra_mib": 7 * n / 1024}},
        }
        for n in (1024, 2048, 4096)
    ]
    ((_, header, (row,)),) = benchmark_page.law_table({"cases": cases})
    assert row == ["x, forward", "4,096", "1.50", "3.00 ... 24.0", "1.00", "7.00 ... 28.0"]
    assert len(header) == len(row)
    q, k, v = (torch.randn(1, sequences.HEADS, 72, sequences.DIM) for _ in range(3))
    for name, function in sequences.operators(72, CPU).items():
        assert function(q, k, v).shape == v.shape, name
