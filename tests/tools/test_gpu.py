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
