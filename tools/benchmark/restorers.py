"""HAT beside itself in the form of its authors, of the same weights, in turns step by step.

*naive* has tokens for norms and products and maps for convolutions. Windows are rolled and cut, keys and values of
overlapping windows unfolded, masks and biases made at every call. All products go where PyTorch sends them.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attlas.backbones.layers import WindowAttention
from attlas.dense.restoration.hat import HAT, VARIANTS

from .backbones import plain
from .cases import OURS, Run
from .measure import PeakMemory, summary, take_turns, timed
from .naive import window_attention

SIZES = {"inference": ((1, 64), (1, 128)), "training": ((1, 64),)}  # images and their side, of "hat_s_x2"
SMALL = dict(dim=12, depths=(2,), heads=2, compress=3, squeeze=6)


def _normed(norm: Any, tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], norm.weight, norm.bias, norm.eps)


def _projected(linear: Any, tokens: Tensor) -> Tensor:
    return F.linear(tokens, linear.weight, linear.bias)


def _perceptron(mlp: Any, tokens: Tensor) -> Tensor:
    return _projected(mlp.fc2, F.gelu(_projected(mlp.fc1, tokens)))


def bias_of(mixer: WindowAttention) -> Tensor:
    """What `pair_bias` gives, gathered by a table of indices, which is made first."""
    (query_y, query_x), (key_y, key_x) = (
        torch.cartesian_prod(*2 * (torch.arange(side, device=mixer.table.device),)).T
        for side in (mixer.window, mixer.reach)
    )
    down, right = key_y - query_y[:, None] + mixer.window - 1, key_x - query_x[:, None] + mixer.window - 1
    return mixer.ordered()[down, right].permute(2, 0, 1).contiguous()


def _attended(mixer: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    shift = mixer.shift
    x = _projected(mixer.qkv, tokens).unflatten(1, (height, width))
    x = x.roll((-shift, -shift), (1, 2)) if shift else x
    q, k, v = x.unflatten(-1, (3, mixer.heads, -1)).unbind(3)
    y = window_attention(q, k, v, bias_of(mixer), mixer.window, (mixer.reach - mixer.window) // 2, shift).flatten(3)
    y = y.roll((shift, shift), (1, 2)) if shift else y
    return _projected(mixer.proj, y.flatten(1, 2))


def as_released(network: Any, image: Tensor) -> Tensor:
    """The output of a HAT that enlarges, for images of whole windows."""
    height, width = image.shape[2:]

    def as_tokens(x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)

    def as_map(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, (height, width)).contiguous()

    first = network.conv_first(image - network.mean)
    x = _normed(network.norm_first, as_tokens(first))
    for group in network.layers:
        y = x
        for block in group.blocks:
            n, hybrid = _normed(block.norm1, y), block.mixer
            y = y + _attended(hybrid.mixer, n, height, width)
            y = y + hybrid.channel_scale * as_tokens(hybrid.channels(as_map(n)))
            y = y + _perceptron(block.mlp, _normed(block.norm2, y))
        end = group.overlap
        y = y + _attended(end.mixer, _normed(end.norm1, y), height, width)
        y = y + _perceptron(end.mlp, _normed(end.norm2, y))
        x = x + as_tokens(group.conv(as_map(y)))
    x = network.conv_after_body(as_map(_normed(network.norm, x))) + first
    return network.conv_last(network.upsample(network.conv_before_upsample(x))) + network.mean


def step(network: Any, image: Tensor, mode: str, naive: bool = False) -> Tensor:
    """The output of an inference, or the gradient of the first weights by an L1 loss."""
    run: Callable[[Tensor], Tensor] = partial(as_released, network) if naive else network
    if mode == "inference":
        with torch.inference_mode():
            return run(image)
    network.zero_grad()
    output = run(image)
    F.l1_loss(output, torch.zeros_like(output)).backward()
    return network.conv_first.weight.grad


def naive_step(network: HAT, image: Tensor, mode: str) -> Tensor:
    with plain():
        return step(network, image, mode, naive=True)


def measure_restorer(run: Run, batch: int, side: int, mode: str, quick: bool) -> dict:
    """Time and memory, and the largest difference of the results over the largest result."""
    torch.manual_seed(0)
    options = dict(SMALL, scale=2) if quick else VARIANTS["hat_s_x2"][0]
    network = HAT(**{**options, "drop_path_rate": 0.0}).to(run.device).train(mode == "training")
    image = torch.rand(batch, 3, side, side, device=run.device)
    calls = {OURS: partial(step, network, image, mode), "naive": partial(naive_step, network, image, mode)}
    outputs, peak = {}, {}
    for who, call in calls.items():
        call()  # compiles
        memory = PeakMemory(run.device)
        outputs[who] = call().clone()
        peak[who] = memory.mib()
    turns = {who: (lambda call=call: timed(call, run.device)[0]) for who, call in calls.items()}
    times = take_turns(turns, budget=0 if quick else 5, least=lambda _: 3, most=9)
    ours, theirs = outputs.values()
    return {
        "operator": f"network of restoration, {mode}",
        "sizes": {"network": "hat_s_x2", "B": batch, "H": side, "W": side},
        "results": {who: {**summary(seconds), **peak[who]} for who, seconds in times.items()},
        "logits_differ": ((ours - theirs).abs().max() / theirs.abs().max()).item(),
    }


def measure_restorers(run: Run, quick: bool) -> Iterator[dict]:
    """Inference and training of HAT-S by 2."""
    for mode, sizes in SIZES.items():
        for batch, side in ((1, 32),) if quick else sizes:
            yield measure_restorer(run, batch, side, mode, quick)
