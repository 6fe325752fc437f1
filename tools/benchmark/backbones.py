"""The smallest backbone of every system beside itself by PyTorch's plain operators, and beside timm's network of the
same weights where timm has one and can be imported; in turns step by step.

*naive* is the same network with the same weights. Its kernels run as their PyTorch references, attention is written out
as a product, a softmax and a product, as most releases have it, and products of pixels go where PyTorch sends them. It
shows what kernels and routes are worth. *timm* shows how we stand beside others.
"""

import importlib
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from attlas import backbones, checkpoint

from .cases import OURS, Run
from .measure import PeakMemory, summary, take_turns, timed

PORTS = {  # the variants that timm has, and its names of them
    "ConViT": ("convit_tiny", "convit_tiny"),
    "CrossViT": ("crossvit_tiny", "crossvit_tiny_240"),
    "DaViT": ("davit_tiny", "davit_tiny"),
    "HaloNet": ("halonet26t", "halonet26t"),
    "SHViT": ("shvit_s1", "shvit_s1"),
    "VOLO": ("volo_d1_224", "volo_d1_224"),
}
SQUARE = ("convit_tiny", "volo_d1_224")  # whose position is of one size, ours or timm's
LARGE = ((512, 512), (768, 1024))  # H, W; for the networks that timm has
LINEAR = importlib.import_module("attlas.backbones.layers.linear")  # the package has a function of that name


# Steps of every network: mode, images (two in training, for norms of a batch), side.
STEPS = (("inference", 1, 224), ("inference", 1, 512), ("training", 2, 224))


def attention_written_out(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """`F.scaled_dot_product_attention` with all weights in memory, for the options that our networks use."""
    scale = options.pop("scale", None)
    if any(options.values()):
        raise ValueError(f"the naive attention does not take {options}")
    weights = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else weights + attn_mask
    return weights.softmax(-1) @ v


@contextmanager
def plain() -> Iterator[None]:
    """PyTorch's own operators alone, and no fused attention."""
    products = mock.patch.object(LINEAR, "by_onednn", return_value=False)
    attention = mock.patch.object(F, "scaled_dot_product_attention", attention_written_out)
    with mock.patch.dict(os.environ, ATTLAS_KERNELS="reference"), products, attention:
        yield


def smallest(system: str) -> str:
    """The name of the variant with the fewest parameters, of those for images of 224 pixels if there are any: patches
    for small images would be too many."""
    variants = backbones.systems()[system].variants
    variants = {name: facts for name, facts in variants.items() if facts.size >= 224} or variants
    return min(variants, key=lambda name: variants[name].params)


def step(network: torch.nn.Module, image: Tensor, mode: str) -> Tensor:
    """Logits of an inference, or the loss of a forward and a backward."""
    if mode == "inference":
        with torch.inference_mode():
            return network.eval()(image)
    network.train().zero_grad()
    logits = network(image)
    logits = logits[0] if isinstance(logits, tuple) else logits  # others are of an auxiliary head
    loss = F.cross_entropy(logits, torch.arange(len(image), device=image.device))
    loss.backward()
    return loss.detach()


def naive_step(network: torch.nn.Module, image: Tensor, mode: str) -> Tensor:
    with plain():
        return step(network, image, mode)


def of_size(name: str, height: int) -> dict[str, Any]:
    """The option that fits a network to images of a size, of those that have one."""
    return dict(img_size=height) if name in SQUARE else {}


def worker(
    pipe, who: str, name: str, batch: int, height: int, width: int, mode: str, device: str, threads: int
) -> None:
    """A process with one network, which answers with the peak memory of its second step."""
    torch.set_num_threads(threads)
    if who == "timm":
        network = importlib.import_module("timm").create_model(dict(PORTS.values())[name], **of_size(name, height))
    else:
        network = backbones.create(name, num_classes=1000, **of_size(name, height))
    network, call = network.to(device), naive_step if who == "naive" else step
    image = torch.randn(batch, 3, height, width, device=device)
    call(network, image, mode)  # compiles
    memory = PeakMemory(torch.device(device))
    call(network, image, mode)
    pipe.send(memory.mib())


def peak_alone(run: Run, who: str, *case: Any) -> dict[str, float]:
    """Peak memory in a process of its own: what others have freed in one process hides a part, or adds to it."""
    spawn = multiprocessing.get_context("spawn")
    pipe, theirs = spawn.Pipe()
    process = spawn.Process(target=worker, args=(theirs, who, *case, str(run.device), run.threads), daemon=True)
    process.start()
    theirs.close()
    found = pipe.recv()  # EOFError: the process ended, and said why
    process.join()
    return found


def measure_backbone(
    run: Run, name: str, batch: int, height: int, width: int, mode: str, quick: bool, naive: bool = True
) -> dict:
    """Time and memory of one network, and the largest difference of the others' results over their largest result. With
    `quick`, the memory is measured in this process."""
    torch.manual_seed(0)
    network = backbones.create(name, num_classes=1000, **of_size(name, height)).to(run.device)
    image = torch.randn(batch, 3, height, width, device=run.device)
    calls = {OURS: partial(step, network, image, mode)}
    if naive:
        calls["naive"] = partial(naive_step, network, image, mode)
    port = dict(PORTS.values()).get(name)
    if port and (timm := run.peers.get("timm")):
        other = timm.create_model(port, **of_size(name, height)).to(run.device)
        with torch.no_grad():
            for parameter in other.parameters():
                if parameter.dim() == 1:  # norms that begin at zero would hide the branches before them
                    parameter += 0.1 * torch.randn_like(parameter)
        account = checkpoint.load(network, other.state_dict())
        if account.missing or account.mismatched:
            raise ValueError(f"{name} of timm {timm.__version__} has other weights: {account}")
        calls["timm"] = partial(step, other, image, mode)
    outputs, peak = {}, {}
    for who, call in calls.items():
        call()  # compiles
        memory = PeakMemory(run.device)
        outputs[who] = call()
        peak[who] = memory.mib() if quick else peak_alone(run, who, name, batch, height, width, mode)
    turns = {who: (lambda call=call: timed(call, run.device)[0]) for who, call in calls.items()}
    times = take_turns(turns, budget=0 if quick else 3, least=lambda _: 3, most=15)
    ours = outputs.pop(OURS)
    differ = [((ours - theirs).abs().max() / theirs.abs().max()).item() for theirs in outputs.values()]
    return {
        "operator": f"network of images, {mode}",
        "sizes": {"network": name, "B": batch, "H": height, "W": width},
        "results": {who: {**summary(seconds), **peak[who]} for who, seconds in times.items()},
        "logits_differ": max(differ),
    }


def measure_backbones(run: Run, quick: bool) -> Iterator[dict]:
    """Every system: `STEPS`, and larger images beside timm."""
    for system in sorted(backbones.systems()):
        ports = "timm" in run.peers and system in PORTS
        name = PORTS[system][0] if ports else smallest(system)
        for mode, batch, side in STEPS[1:] if quick else STEPS:
            if quick:
                side = 64
            elif ports and system == "HaloNet" and side == 224:
                side = 256  # timm's takes whole blocks at all levels
            yield measure_backbone(run, name, batch, side, side, mode, quick)
        if ports and not quick:
            for mode, batch, _ in STEPS[1:]:
                for height, width in LARGE:
                    if mode == "training" if height == width else name not in SQUARE:
                        yield measure_backbone(run, name, batch, height, width, mode, quick, naive=False)
