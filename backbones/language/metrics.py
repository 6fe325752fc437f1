"""What is said of a model of text: bits per byte, perplexity, and the bits of a bigram model to compare with."""

from collections.abc import Mapping, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric

from ...registry import DATASETS, METRICS


class Bigram:
    """The next byte by the byte before it, as counted in a text.

    p(b | a) = (count(a, b) + s p(b)) / (count(a) + s), and p(b) = (count(b) + 1) / (M + 256): pairs that the text lacks
    get what is known of the byte alone.

    Args:
        text: bytes that are counted, uint8 (M,).
        smoothing: weight s of what is known of the byte alone, above 0.
    """

    def __init__(self, text: np.ndarray, smoothing: float = 1.0):
        if text.dtype != np.uint8 or text.ndim != 1 or len(text) < 2:
            raise ValueError(f"text must be uint8 (M,) of at least two bytes, got {text.dtype} {text.shape}")
        if not 0 < smoothing < np.inf:
            raise ValueError(f"smoothing must be positive and finite, got {smoothing!r}")
        pairs = np.bincount(text[:-1].astype(np.int64) * 256 + text[1:], minlength=65536).reshape(256, 256)
        alone = (np.bincount(text, minlength=256) + 1) / (len(text) + 256)
        chances = (pairs + smoothing * alone) / (pairs.sum(1, keepdims=True) + smoothing)
        self.bits = -np.log2(chances)  # (256, 256): of a byte, the second index, behind another

    def __call__(self, tokens: np.ndarray) -> float:
        """The bits that all bytes of `tokens` but the first take."""
        return float(self.bits[tokens[:-1], tokens[1:]].sum())


@METRICS.register_module()
class BitsPerByte(BaseMetric):
    """`bits_per_byte`, the mean of -log2 of what the model gave the byte that came, and `perplexity`, 2 to that power.

    Takes samples dict(bits (N,), tokens (N + 1,)) of a model whose tokens are bytes. Samples from several processes are
    gathered by MMEngine.

    Args:
        bigram: config of the data set whose `text` a `Bigram` counts, such as that of the training. Then `bigram` is
            its bits per byte of the same bytes, and `margin` how many fewer the model takes. None for none.
    """

    default_prefix = ""  # not None, which MMEngine would warn of

    def __init__(self, bigram: Mapping | None = None, **kwargs):
        super().__init__(**kwargs)
        self.bigram = None if bigram is None else Bigram(DATASETS.build(dict(bigram)).text)

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            tokens = sample["tokens"].cpu().numpy()
            baseline = 0.0 if self.bigram is None else self.bigram(tokens)
            self.results.append((float(sample["bits"].double().sum()), len(tokens) - 1, baseline))

    def compute_metrics(self, results: list) -> dict[str, float]:
        bits, count, baseline = (sum(column) for column in zip(*results))
        found = dict(bits_per_byte=bits / count, perplexity=2 ** (bits / count))
        if self.bigram is not None:
            found |= dict(bigram=baseline / count, margin=(baseline - bits) / count)
        return found
