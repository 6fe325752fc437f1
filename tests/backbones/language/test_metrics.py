import math

import numpy as np
import pytest
import torch

from attlas.backbones.language.metrics import Bigram, BitsPerByte


def test_bits_and_perplexity():
    metric = BitsPerByte()
    metric.process(None, [dict(bits=torch.tensor([1.0, 2.0]), tokens=torch.tensor([3, 4, 5]))])
    metric.process(None, [dict(bits=torch.tensor([6.0]), tokens=torch.tensor([3, 4]))])
    assert metric.evaluate(3) == dict(bits_per_byte=3.0, perplexity=8.0)


def test_a_bigram_counts_pairs():
    text = np.frombuffer(b"ababababac", dtype=np.uint8)
    bigram = Bigram(text, smoothing=1e-9)
    a, b, c = b"abc"
    assert bigram.bits[b, a] == pytest.approx(0, abs=1e-6)
    assert bigram.bits[a, b] == pytest.approx(-math.log2(4 / 5))
    assert bigram.bits[a, c] == pytest.approx(-math.log2(1 / 5))
    assert bigram(np.frombuffer(b"ba", dtype=np.uint8)) == pytest.approx(0, abs=1e-6)


def test_chances_sum_to_one():
    text = np.random.default_rng(0).integers(0, 40, 500).astype(np.uint8)
    np.testing.assert_allclose((2 ** -Bigram(text, 3.0).bits).sum(1), 1)


def test_margin(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_bytes(b"the cat sat on the mat. " * 10)
    metric = BitsPerByte(bigram=dict(type="attlas.TextFiles", root=str(tmp_path), length=8))
    tokens = torch.tensor(list(b"the mat"))
    metric.process(None, [dict(bits=torch.full((6,), 0.5), tokens=tokens)])
    found = metric.evaluate(1)
    assert found["bigram"] == pytest.approx(metric.bigram(tokens.numpy()) / 6)
    assert found["margin"] == pytest.approx(found["bigram"] - 0.5)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"text must be uint8 \(M,\) of at least two bytes, got uint8 \(1,\)"):
        Bigram(np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match="smoothing must be positive and finite, got 0"):
        Bigram(np.zeros(9, np.uint8), 0)
