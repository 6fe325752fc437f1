"""tools/gpu.py, as far as it goes without a GPU: every Triton kernel compiles for one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu.py"


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run for real there")
def test_every_kernel_compiles_for_a_gpu(tmp_path):
    out = tmp_path / "gpu.json"
    done = run("--compile-only", "--out", str(out))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    variants = json.loads(out.read_text())["compile"]["kernels"]
    assert len(variants) > 40
    assert all(variants.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_what_is_missing():
    done = run("--only", "times")
    assert done.returncode == 2
    assert "PyTorch sees no GPU here; --compile-only needs none" in done.stderr


def test_the_table_goes_into_a_page(tmp_path):
    found = {"call_ms": 1.0, "gpu_ms": 0.5, "mib": 3.0}
    row = {"operator": "knn", "sizes": {"B": 32, "N": 4096}, "dtype": "float32", "bound_ms": 0.1}
    row["results"] = {"attlas": found, "naive": found | {"gpu_ms": None, "call_ms": 9.0}}
    rates = {"bytes_per_s": 4e12, "operations_per_s": 5e13, "bf16_per_s": 8e14}
    machine = {"name": "a card", "date": "today", "versions": {"torch": "2"}, **rates}
    record = {"times": {"machine": machine, "cases": [row]}}
    out, page = tmp_path / "gpu.json", tmp_path / "page.md"
    out.write_text(json.dumps(record))
    page.write_text("before\n<!-- gpu:begin -->\nold\n<!-- gpu:end -->\nafter\n")
    done = run("--markdown", str(page), "--out", str(out))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "| knn | B 32, N 4,096 | float32 | 0.100 | 0.500 | 1.000 | 9.000 | naive | 3 | 3 |" in text
    assert "a card, today" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
