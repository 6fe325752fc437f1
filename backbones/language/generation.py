"""Text from a causal network, token after token, with a state of constant size."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from ...data import check_seed
from ...kernels.checks import check_number


def stream(
    network: nn.Module, prompt: bytes | Tensor, temperature: float = 1.0, top_k: int | None = None, seed: int = 0
) -> Iterator[int]:
    """Tokens behind a prompt, without end. Each takes the same time and memory, however many came before.

    Args:
        network: module `forward(tokens (B, N), state) -> (logits (B, N, vocabulary), state)`.
        prompt: what comes before, bytes or int64 (N,), at least one token.
        temperature: of the draw from softmax(logits / temperature); 0 takes the likeliest token, the lowest of several.
        top_k: number of the likeliest tokens that are drawn from; None for all.
        seed: of the draws.

    Raises:
        ValueError, TypeError: names the argument.
    """
    if isinstance(prompt, (bytes, bytearray)):
        prompt = torch.tensor(list(prompt), dtype=torch.int64)
    if not isinstance(prompt, Tensor):
        raise TypeError(f"prompt must be bytes or int64 (N,), at least one token, got {prompt!r:.60}")
    if prompt.dtype != torch.int64 or prompt.ndim != 1 or not len(prompt):
        raise ValueError(
            f"prompt must be bytes or int64 (N,), at least one token, got {prompt.dtype} {tuple(prompt.shape)}"
        )
    check_number(temperature, "temperature")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k must be a positive integer or None, got {top_k!r}")
    return _tokens(network, prompt, temperature, top_k, torch.Generator().manual_seed(check_seed(seed)))


def _tokens(
    network: nn.Module, prompt: Tensor, temperature: float, top_k: int | None, draw: torch.Generator
) -> Iterator[int]:
    device = next(network.parameters()).device
    tokens, state = prompt[None].to(device), None
    while True:
        with torch.no_grad():
            logits, state = network(tokens, state)
        last = logits[0, -1].double().cpu()
        if not torch.isfinite(last).all():
            raise ValueError("network: its logits are NaN or infinite")
        if temperature == 0:
            token = int(last.argmax())
        else:
            likeliest = last.sort(descending=True, stable=True)
            values = (likeliest.values[:top_k] - likeliest.values[0]) / temperature
            token = int(likeliest.indices[torch.multinomial(values.softmax(0), 1, generator=draw)])
        yield token
        tokens = torch.tensor([[token]], device=device)


def generate(network: nn.Module, prompt: bytes | Tensor, count: int, **options) -> Tensor:
    """`count` tokens behind a prompt, int64 (count,).

    Args:
        network, prompt, **options: as of `stream`.
        count: number of tokens, at least 0.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"count must be an integer of at least 0, got {count!r}")
    return torch.tensor(list(islice(stream(network, prompt, **options), count)), dtype=torch.int64)
