"""Files of four authors, named as they name them, against what they compute."""

import math

import pytest
import torch
import torch.nn.functional as F
from golden_records import parameter
from networks import close

from attlas import backbones
from attlas.backbones.layers.position import resize_table
from attlas.backbones.vit import ViT

C, HEADS, DEPTH, SIDE, PATCH = 24, 3, 2, 3, 4


def state(shapes):
    return {name: parameter(name, shape) for name, shape in shapes.items()}


def linear(name, out, into, bias=True):
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def norm(name):
    return {f"{name}.weight": (C,), f"{name}.bias": (C,)}


def timm(registers=None, gated=False, scale="ls{}.gamma", class_row=True):
    """timm's and facebookresearch's."""
    shapes = {"cls_token": (1, 1, C), "pos_embed": (1, class_row + SIDE**2, C), "mask_token": (1, C)}
    shapes |= {registers: (1, 4, C)} if registers else {}
    shapes |= {"patch_embed.proj.weight": (C, 3, PATCH, PATCH), "patch_embed.proj.bias": (C,)}
    for i in range(DEPTH):
        b = f"blocks.{i}"
        shapes |= norm(f"{b}.norm1") | linear(f"{b}.attn.qkv", 3 * C, C) | linear(f"{b}.attn.proj", C, C)
        shapes |= {f"{b}.{scale.format(n)}": (C,) for n in (1, 2)} | norm(f"{b}.norm2")
        if gated:
            shapes |= linear(f"{b}.mlp.w12", 128, C) | linear(f"{b}.mlp.w3", C, 64)
        else:
            shapes |= linear(f"{b}.mlp.fc1", 4 * C, C) | linear(f"{b}.mlp.fc2", C, 4 * C)
    return state(shapes | norm("norm"))


def in_transformers(file, prefix=""):
    """A file of timm in the names of transformers."""
    renamed = {}
    for name, value in file.items():
        if name in ("cls_token", "mask_token", "register_tokens"):
            name = f"embeddings.{name}"
        name = name.replace("pos_embed", "embeddings.position_embeddings")
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = name.replace("blocks.", "encoder.layer.").replace("attn.proj", "attention.output.dense")
        name = name.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        name = name.replace("w12", "weights_in").replace("w3", "weights_out")
        name = f"layer{name}" if name.startswith("norm") else name
        if "attn.qkv" in name:
            for part, third in zip(("query", "key", "value"), value.chunk(3)):
                renamed[prefix + name.replace("attn.qkv", f"attention.attention.{part}")] = third
        else:
            renamed[prefix + name] = value
    return renamed


def clip(scale=False):
    """The tower for images, in OpenAI's names; OpenCLIP's may have factors."""
    shapes = {"class_embedding": (C,), "positional_embedding": (1 + SIDE**2, C), "proj": (C, C)}
    shapes |= {"conv1.weight": (C, 3, PATCH, PATCH)} | norm("ln_pre") | norm("ln_post")
    for i in range(DEPTH):
        b = f"transformer.resblocks.{i}"
        shapes |= {f"{b}.attn.in_proj_weight": (3 * C, C), f"{b}.attn.in_proj_bias": (3 * C,)}
        shapes |= linear(f"{b}.attn.out_proj", C, C) | norm(f"{b}.ln_1") | norm(f"{b}.ln_2")
        shapes |= linear(f"{b}.mlp.c_fc", 4 * C, C) | linear(f"{b}.mlp.c_proj", C, 4 * C)
        shapes |= {f"{b}.ls_{n}.gamma": (C,) for n in (1, 2)} if scale else {}
    return state(shapes)


def attention(x, state, qkv, proj):
    q, k, v = F.linear(x, state[f"{qkv}weight"], state[f"{qkv}bias"]).unflatten(-1, (3, HEADS, -1)).unbind(2)
    seen = torch.einsum("bihd,bjhd->bhij", q, k) * (C // HEADS) ** -0.5
    x = torch.einsum("bhij,bjhd->bihd", seen.softmax(-1), v).flatten(2)
    return F.linear(x, state[f"{proj}.weight"], state[f"{proj}.bias"])


def normed(x, state, name, eps):
    return F.layer_norm(x, [C], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def dense(x, state, name):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def dinov2(image, state, scale="ls{}.gamma"):
    """Rows [class, registers, patches] after the last norm."""
    x = F.conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], PATCH).flatten(2).mT
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    if "register_tokens" in state:
        x = torch.cat([x[:, :1], state["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], 1)
    for i in range(DEPTH):
        b = f"blocks.{i}"
        y = attention(normed(x, state, f"{b}.norm1", 1e-6), state, f"{b}.attn.qkv.", f"{b}.attn.proj")
        x = x + state[f"{b}.{scale.format(1)}"] * y
        y = normed(x, state, f"{b}.norm2", 1e-6)
        if f"{b}.mlp.w12.weight" in state:
            gate, value = dense(y, state, f"{b}.mlp.w12").chunk(2, -1)
            y = dense(F.silu(gate) * value, state, f"{b}.mlp.w3")
        else:
            y = dense(F.gelu(dense(y, state, f"{b}.mlp.fc1")), state, f"{b}.mlp.fc2")
        x = x + state[f"{b}.{scale.format(2)}"] * y
    return normed(x, state, "norm", 1e-6)


def tower(image, state, activation):
    """Rows [class, patches] behind the projection."""
    x = F.conv2d(image, state["conv1.weight"], stride=PATCH).flatten(2).mT
    x = torch.cat([state["class_embedding"].expand(len(x), 1, -1), x], 1) + state["positional_embedding"]
    x = normed(x, state, "ln_pre", 1e-5)
    for i in range(DEPTH):
        b = f"transformer.resblocks.{i}"
        y = attention(normed(x, state, f"{b}.ln_1", 1e-5), state, f"{b}.attn.in_proj_", f"{b}.attn.out_proj")
        x = x + state.get(f"{b}.ls_1.gamma", 1) * y
        y = activation(dense(normed(x, state, f"{b}.ln_2", 1e-5), state, f"{b}.mlp.c_fc"))
        x = x + state.get(f"{b}.ls_2.gamma", 1) * dense(y, state, f"{b}.mlp.c_proj")
    return normed(x, state, "ln_post", 1e-5) @ state["proj"]


def network(**options):
    options = dict(num_classes=0) | options
    return ViT(C, DEPTH, HEADS, patch_size=PATCH, img_size=SIDE * PATCH, **options).eval()


def image():
    return torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(1))


def loaded(network, file):
    account = backbones.load(network, file)
    assert account.complete, str(account)
    return account


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [None, "register_tokens"])
def test_dinov2(registers, gated):
    """Of facebookresearch and of transformers, with and without its prefix."""
    file = timm(registers, gated)
    options = dict(registers=4 if registers else 0, mlp="swiglu" if gated else "gelu", layer_scale=1.0)
    expected = dinov2(image(), file)
    prefix = "dinov2_with_registers." if registers else "dinov2."
    for names in (file, in_transformers(file), in_transformers(file, prefix)):
        model = network(**options)
        account = loaded(model, names)
        assert ["mask_token" in name for name in account.ignored] == [True]
        close(model.forward_features(image()), expected, 1e-5)
        maps = network(num_classes=None, out_indices=(0, 1), **options)
        loaded(maps, names)
        rows = expected[:, 1 + options["registers"] :]
        close(maps(image())[1].flatten(2).mT, rows, 1e-5)


def test_timm_adds_the_class_position_to_the_token():
    file = timm("register_tokens")
    expected = dinov2(image(), file)
    file["cls_token"] = file["cls_token"] + file["pos_embed"][:, :1]
    file["pos_embed"] = file["pos_embed"][:, 1:]
    file["reg_token"] = file.pop("register_tokens")
    model = network(registers=4, layer_scale=1.0)
    loaded(model, file)
    close(model.forward_features(image()), expected, 1e-5)


@pytest.mark.parametrize("grid", [(2, 4), (3, 5), (3, 3)])
def test_the_row_of_the_class_token_goes_by_names(grid):
    """1 + 2 · 4 and 1 + 3 · 5 are squares: as many rows of timm are those of 3 x 3 and 4 x 4 pixels all the same."""
    file, count = timm("register_tokens"), 1 + grid[0] * grid[1]
    size = [PATCH * side for side in grid]
    model = ViT(C, DEPTH, HEADS, patch_size=PATCH, img_size=size, num_classes=0, registers=4, layer_scale=1.0)
    file["pos_embed"] = parameter("pos_embed", (1, count, C))
    loaded(model, file)
    assert torch.equal(model.position.weight, file["pos_embed"])
    side = math.isqrt(count)
    file["reg_token"], file["pos_embed"] = file.pop("register_tokens"), parameter("rows", (1, side**2, C))
    loaded(model, file)
    assert torch.equal(model.position.row, torch.zeros(1, 1, C))
    table = resize_table(file["pos_embed"].mT.unflatten(2, (side, side)), grid, **model.position.resizing)
    close(model.position.weight[:, 1:], table.flatten(2).mT, 1e-6)


def test_deit3():
    """Its table has no row for the class token, and its factors are called gamma_1 and gamma_2."""
    file = timm(scale="gamma_{}", class_row=False)
    whole = {**file, "pos_embed": torch.cat([torch.zeros(1, 1, C), file["pos_embed"]], 1)}
    expected = dinov2(image(), whole, "gamma_{}")
    model = network(class_position=False, layer_scale=1.0, num_classes=5)
    head = {"head.weight": parameter("head.weight", (5, C)), "head.bias": parameter("head.bias", (5,))}
    loaded(model, file | head)
    close(model(image()), dense(expected[:, 0], head, "head"), 1e-5)


@pytest.mark.parametrize("scale", [False, True])
def test_clip(scale):
    """The tower alone, and in a whole CLIP, whose other tower is left out and named."""
    file = clip(scale)
    text = {"positional_embedding": torch.zeros(77, C), "token_embedding.weight": torch.zeros(99, C)}
    text |= {"transformer.resblocks.0.ln_1.weight": torch.zeros(C), "logit_scale": torch.zeros(())}
    whole = {f"visual.{name}": value for name, value in file.items()} | text
    options = dict(pre_norm=True, projection=C, eps=1e-5, layer_scale=1.0 if scale else None)
    for mlp, activation in (("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)), ("gelu", F.gelu)):
        expected = tower(image(), file, activation)
        for names in (file, whole):
            model = network(mlp=mlp, **options)
            account = loaded(model, names)
            assert account.ignored == (list(text) if names is whole else [])
            close(model.forward_features(image()), expected, 1e-5)
            close(model(image()), expected[:, 0], 1e-5)
    unprojected = network(mlp=mlp, **{**options, "projection": None})
    assert loaded(unprojected, file).ignored == ["projection.weight"]
    close(unprojected.forward_features(image()) @ file["proj"], expected, 1e-5)


def test_any_network_takes_them():
    """The rules are of names, not of a class."""
    model = backbones.Isotropic(
        C, DEPTH, dict(type="Attention", heads=HEADS), class_position=True, patch_size=PATCH, img_size=12, num_classes=0
    )
    model.checkpoint_rules = backbones.skeletons.vit_names.RULES
    file = {name: value for name, value in timm().items() if ".ls" not in name}
    loaded(model, file)
    ones = {f"blocks.{i}.ls{n}.gamma": torch.ones(C) for i in range(DEPTH) for n in (1, 2)}
    close(model.eval().forward_features(image()), dinov2(image(), file | ones), 1e-5)
