"""tools/generate.py as a user calls it."""

import os

import pytest
import torch
from networks import fill

from attlas.backbones.language import generate
from attlas.registry import MODELS

CONFIG = """
default_scope = "attlas"
model = dict(
    type="LanguageModel", network=dict(type="TransNormer", vocabulary=256, dim=16, depth=2, heads=2, hidden=24)
)
test_dataloader = dict(dataset=dict(type="TextFiles", split="test", transforms=[]))
"""


@pytest.fixture
def trained(tmp_path):
    """A file as a training leaves it, with its config, and the model."""
    scope = {}
    exec(CONFIG, scope)
    model = fill(MODELS.build(scope["model"])).eval()
    path = tmp_path / "iter_1.pth"
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=CONFIG)), path)
    return path, model


def test_it_goes_on_with_a_text(run, trained):
    path, model = trained
    for options, arguments in [
        (dict(temperature=0.0), ["--greedy"]),
        (dict(temperature=0.5, top_k=9, seed=3), ["--temperature", 0.5, "--top-k", 9, "--seed", 3]),
    ]:
        written = bytes(generate(model.network, b"def f", 40, **options).tolist()).decode("utf-8", "replace")
        visible = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in written)
        printed = run("generate", path, "def f", "--count", 40, *arguments, "--device", "cpu")
        assert f"def f{visible}\n" in printed


def test_a_prompt_that_is_no_text(run, trained):
    """Bytes that are no UTF-8, as a shell hands them over, and what a terminal would obey."""
    printed = run("generate", trained[0], os.fsdecode(b"a\xff\x1b[2J"), "--count", 0, "--device", "cpu")
    assert "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[2J\n" in printed


def test_what_it_refuses(refusal, trained, tmp_path):
    path, _ = trained
    assert "prompt must be bytes or int64 (N,), at least one token" in refusal("generate", path, "")
    assert "temperature must be at least 0" in refusal("generate", path, "x", "--temperature", "-1")
    assert "--count is -1; it must be at least 0" in refusal("generate", tmp_path / "iter_2.pth", "x", "--count", "-1")
    assert "does not exist" in refusal("generate", tmp_path / "iter_2.pth", "x")
