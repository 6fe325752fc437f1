"""Prediction of the next token as an MMEngine model."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor

from ...registry import MODELS
from .inference import Reading

# Tokens that prediction gives to the network at a time; the state goes on to the next.
PART = 4096


@MODELS.register_module()
class LanguageModel(BaseModel):
    """Training and prediction of a causal network over tokens.

    Args:
        network: config of a module `forward(tokens (B, N) int64, state) -> (logits (B, N, vocabulary), state)`, such as
            dict(type="TransNormer", vocabulary=256, ...).

    It takes sequences of one length, `tokens` (B, N + 1) or a list of (N + 1,); the network reads all but the last, and
    predicts all but the first. `mode="loss"` gives {"loss", "bits"}: the mean of -log p of the token that came, and the
    same in bits; `mode="tensor"` the logits (B, N, vocabulary); `mode="predict"` for each sequence {"bits" (N,), what
    each token took, "tokens", "index"}. Prediction of long sequences takes memory for a part of them.

    Raises:
        ValueError, IndexError: names the argument.
    """

    task = Reading

    def __init__(self, network: dict, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor, init_cfg)
        self.network = MODELS.build(network)

    @property
    def checkpoint_rules(self) -> list:
        """The rules for the authors' files, which hold the network and no more."""
        return [*getattr(self.network, "checkpoint_rules", ()), (r"^(?!network\.)", "network.")]

    @property
    def checkpoint_optional(self) -> list[str]:
        optional = getattr(self.network, "checkpoint_optional", ())
        return [rf"^network\.{pattern.removeprefix('^')}" for pattern in optional]

    def forward(self, tokens: Tensor | Sequence[Tensor], index=None, mode: str = "tensor"):
        tokens = _stacked(tokens)
        if mode == "predict":
            bits = self._bits(tokens)
            numbers = [None] * len(tokens) if index is None else index
            return [dict(bits=b, tokens=row, index=number) for b, row, number in zip(bits, tokens, numbers)]
        if mode not in ("loss", "tensor"):
            raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")
        logits, _ = self.network(tokens[:, :-1])
        if mode == "tensor":
            return logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        if loss.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.isfinite(loss):
            raise FloatingPointError(
                "the loss is NaN or infinite: the training has diverged (a lower learning rate, a warm-up or gradient "
                "clipping may help)."
            )
        return dict(loss=loss, bits=loss.detach() / math.log(2))

    def _bits(self, tokens: Tensor) -> Tensor:
        """(B, N), what each token but the first took."""
        found, state = [], None
        for start in range(0, tokens.shape[1] - 1, PART):
            part = tokens[:, start : start + PART + 1]
            logits, state = self.network(part[:, :-1], state)
            found.append(F.cross_entropy(logits.float().mT, part[:, 1:], reduction="none") / math.log(2))
        return torch.cat(found, 1)


def _stacked(tokens: Tensor | Sequence[Tensor]) -> Tensor:
    if not isinstance(tokens, Tensor):
        if len(lengths := sorted({tuple(row.shape) for row in tokens})) != 1:
            raise ValueError(f"the tokens of a batch must be of one length, got {lengths}")
        tokens = torch.stack(list(tokens))
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise ValueError(f"tokens must be of shape (B, N + 1), N at least 1, got {tuple(tokens.shape)}")
    return tokens
