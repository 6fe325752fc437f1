import importlib
import math
from pathlib import Path

import pytest
import torch
from networks import fill

from attlas import checkpoint
from attlas.backbones.language.datasets import TextFiles
from attlas.backbones.language.metrics import Bigram
from attlas.backbones.language.model import LanguageModel
from attlas.backbones.transnormer import TransNormer
from attlas.config import load_config
from attlas.engine import Runner
from attlas.inference import Inferencer

CONFIG = Path(__file__).parents[3] / "configs/transnormer/transnormer_python.py"
NETWORK = dict(type="TransNormer", vocabulary=7, dim=16, depth=2, heads=2, hidden=24)


@pytest.fixture
def model():
    return fill(LanguageModel(NETWORK)).double().eval()


def tokens(batch=2, length=9):
    return torch.randint(7, (batch, length), generator=torch.Generator().manual_seed(0))


def test_loss_is_of_the_next_token(model):
    ids = tokens()
    found, logits = model(ids, mode="loss"), model(ids)
    assert logits.shape == (2, 8, 7)
    chosen = logits.log_softmax(-1).gather(2, ids[:, 1:, None])
    torch.testing.assert_close(found["loss"].double(), -chosen.mean(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found["bits"] * math.log(2), found["loss"].detach())
    predictions = model([*ids], index=[4, 5], mode="predict")
    assert [p["index"] for p in predictions] == [4, 5]
    bits = torch.stack([p["bits"] for p in predictions])
    torch.testing.assert_close(bits.double(), -chosen[..., 0] / math.log(2), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_prediction_in_parts(model, monkeypatch):
    whole = model(tokens(), mode="predict")
    monkeypatch.setattr(importlib.import_module("attlas.backbones.language.model"), "PART", 3)
    for part, expected in zip(model(tokens(), mode="predict"), whole):
        torch.testing.assert_close(part["bits"], expected["bits"])


@pytest.mark.slow
def test_a_training_beats_the_bigram(tmp_path):
    """A fifteenth of the published training; then the checkpoint is asked about a file."""
    changes = {"train_cfg.max_iters": 160, "train_cfg.val_interval": 160, "train_dataloader.batch_size": 4}
    config = load_config(CONFIG, changes)
    config.work_dir = str(tmp_path)
    config.param_scheduler[0].end = 40
    config.param_scheduler[1].update(begin=40, end=160, T_max=120)
    config.default_hooks.checkpoint.interval = 160
    runner = Runner.from_cfg(config)
    runner.train()
    names = ("bits_per_byte", "bigram", "margin")
    bits, bigram, margin = (runner.message_hub.get_scalar(f"val/{name}").current() for name in names)
    assert margin > 0.15
    assert bits == pytest.approx(bigram - margin)
    text = tmp_path / "text.py"
    held_out = TextFiles(split="test").text[:40_000]
    text.write_bytes(bytes(held_out))
    (answer,) = Inferencer(tmp_path / "iter_160.pth")([text])
    assert answer["bits_per_byte"] < Bigram(TextFiles().text)(held_out) / (len(held_out) - 1) - 0.15


def test_the_authors_names(model):
    network = fill(TransNormer(**{k: v for k, v in NETWORK.items() if k != "type"}))
    state = {name.replace("embedding", "model.embed_tokens"): value for name, value in network.state_dict().items()}
    state = {name.replace("layers", "model.layers"): value for name, value in state.items()}
    state["lm_head.weight"] = network.embedding.weight
    account = checkpoint.load(model, state)
    assert account.complete
    assert account.ignored == ["network.head.weight"]


def test_bad_arguments(model):
    with pytest.raises(ValueError, match=r"of one length, got \[\(8,\), \(9,\)\]"):
        model([tokens()[0], tokens()[1, :8]])
    with pytest.raises(ValueError, match=r"tokens must be of shape \(B, N \+ 1\), N at least 1, got \(2, 1\)"):
        model(tokens()[:, :1])
    with pytest.raises(ValueError, match="mode must be 'loss', 'predict' or 'tensor', got 'train'"):
        model(tokens(), mode="train")
    model.network.embedding.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the training has diverged"):
        model(tokens(), mode="loss")
