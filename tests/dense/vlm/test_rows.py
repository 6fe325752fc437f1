import numpy as np
import pytest
import torch
import torch.nn.functional as F
import vlms
from golden_records import Record
from torch.utils._python_dispatch import TorchDispatchMode

from attlas.backbones.skeletons.isotropic import Isotropic
from attlas.dense.vlm.carve import entropy, fuse
from attlas.dense.vlm.rows import class_rows, look, row_weights, rows_of
from attlas.dense.vlm.views import View

# --- one row ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", ["none", "causal", "window", "bool", "added", "padded"])
def test_a_row_is_that_of_the_whole_softmax(key_heads, masked):
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, key_heads, 9, 8)
    whole = q @ k.repeat_interleave(4 // key_heads, 1).mT * 0.3
    ahead, options = torch.arange(9) - (4 + torch.arange(5)[:, None]), {}
    keep = torch.ones(2, 1, 5, 9, dtype=torch.bool)
    if masked == "causal":
        keep, options = ahead <= 0, dict(causal_from=4)
    elif masked == "window":
        keep, options = (ahead <= 0) & (ahead > -3), dict(causal_from=4, window=3)
    elif masked in ("bool", "added"):
        keep = torch.rand(2, 1, 5, 9) < 0.7
        keep[..., 0] = True
        added = torch.zeros(2, 1, 5, 9).masked_fill(~keep, torch.finfo(torch.float32).min)
        options = dict(mask=keep if masked == "bool" else added)
    elif masked == "padded":
        there = torch.arange(9) < torch.tensor([[9], [6]])
        keep, options = there[:, None, None], dict(mask=there)
    expected = whole.masked_fill(~keep, -torch.inf).softmax(-1).mean(1)
    found = row_weights(q, k, [4, 1], 0.3, **options)
    torch.testing.assert_close(found, expected[:, [4, 1]], atol=1e-6, rtol=0)
    singles = [row_weights(q[i : i + 1], k[i : i + 1], [4], 0.3)[0] for i in range(2)]
    torch.testing.assert_close(row_weights(q, k, [4], 0.3), torch.stack(singles))


def test_softcap_sinks_and_half_types():
    q, k, sinks = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 6, 8), torch.tensor([1.0, -2.0])
    logits = 5 * torch.tanh(q[:, :, 2:] @ k.mT * 8**-0.5 / 5)
    torch.testing.assert_close(row_weights(q, k, [2], softcap=5.0), logits.softmax(-1).mean(1))
    with_sink = torch.cat([q[:, :, 2:] @ k.mT * 8**-0.5, sinks.view(1, 2, 1, 1)], -1).softmax(-1)[..., :6]
    torch.testing.assert_close(row_weights(q, k, [2], sinks=sinks), with_sink.mean(1))
    half = row_weights(q.bfloat16(), k.bfloat16(), [2])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, row_weights(q.bfloat16().float(), k.bfloat16().float(), [2]))


# --- models of transformers ------------------------------------------------------------------------------------------


def test_record_of_a_tiny_llava(tmp_path):
    """The authors' loop over transformers 4.46.3, whose names transformers' own rules rename."""
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText, LlavaConfig

    record = Record("carve/tiny_llava")
    said = record.config["llava"]
    config = LlavaConfig(
        text_config=dict(model_type="llama", **said["text"]),
        vision_config=dict(model_type="clip_vision_model", **said["vision"]),
        image_token_id=said["image_token_index"],
        vision_feature_layer=said["vision_feature_layer"],
        vision_feature_select_strategy=said["vision_feature_select_strategy"],
        architectures=["LlavaForConditionalGeneration"],
    )
    config.save_pretrained(tmp_path)
    save_file(record.state_dict(), tmp_path / "model.safetensors", metadata=dict(format="pt"))
    model, account = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not account["missing_keys"]
    assert not account["unexpected_keys"]
    assert sum(weight.numel() for weight in model.parameters()) == record.params
    assert model.config._attn_implementation == "sdpa"
    model.eval().generation_config.eos_token_id = None
    looks = []
    for number, prompt in enumerate(("task_ids", "general_ids")):
        ids = torch.tensor([[said["image_token_index"] if i == "image" else i for i in record.config[prompt]]])
        inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        inputs["pixel_values"] = record.input("pixels", torch.float32)
        found = look(model, inputs, range(4), max_new_tokens=record.config["max_new_tokens"])
        assert found.difference == 0
        assert found.ids == record.output(3)[number].int().tolist()
        np.testing.assert_allclose(found.attention, record.output(number), atol=1e-6)
        looks.append(found.attention)
    size = tuple(record.config["image_size_wh"][::-1])
    fused = fuse(*looks, [View.whole((4, 4), size)], size, record.config["layers"], lam=record.config["lam"])
    np.testing.assert_allclose(fused, record.output(2), rtol=1e-3)
    np.testing.assert_allclose(entropy(looks[0]), record.output(4), atol=1e-4)


def prompt(kind):
    """ids with an image inside, and what else the model reads."""
    tokens = dict(llava=16, llava_next=36 + 4, qwen2_5_vl=6, gemma3=4)[kind]
    if kind == "llava_next":  # 112 x 56 of an image of 60 x 30: 8 rows of 4, and the ends of rows
        tokens = 16 + 8 * 5
    ids = [1, 8, *([4] if kind == "qwen2_5_vl" else []), *[3] * tokens, 5, 9, 10, 11, 12]
    inputs = dict(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    inputs["pixel_values"] = torch.randn(1, 3, 56, 56)
    if kind == "llava_next":
        inputs |= dict(pixel_values=torch.randn(1, 3, 3, 56, 56), image_sizes=torch.tensor([[60, 30]]))
    if kind == "qwen2_5_vl":  # 4 x 6 patches, 2 x 3 tokens
        inputs |= dict(pixel_values=torch.randn(24, 3 * 2 * 14 * 14), image_grid_thw=torch.tensor([[1, 4, 6]]))
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == 3).long()
    if kind == "gemma3":
        inputs["token_type_ids"] = (inputs["input_ids"] == 3).long()
    return inputs


@torch.no_grad()
def eager(kind, inputs, steps):
    """All attention of an eager twin at each step: [(layers, heads, rows, keys)], and the ids."""
    made = vlms.model(kind, "eager").generate(
        **inputs,
        max_new_tokens=steps,
        do_sample=False,
        output_attentions=True,
        return_dict_in_generate=True,
        eos_token_id=None,
    )
    return [torch.stack([layer[0] for layer in step]) for step in made.attentions], made.sequences[0, -steps:].tolist()


@pytest.mark.parametrize("kind", ["llava", "llava_next", "qwen2_5_vl", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_a_look_is_the_eager_attention(kind):
    """With a cache of keys; grouped heads; Gemma 3 with a window that the image is leaving. The model stays fused."""
    inputs = prompt(kind)
    model = vlms.model(kind)
    tokens = (inputs["input_ids"][0] == 3).nonzero().flatten()
    layers = (1, 3)
    found = look(model, inputs, layers, max_new_tokens=3)
    whole, ids = eager(kind, inputs, 3)
    assert found.difference == 0
    assert found.ids == ids
    assert found.attention.shape == (3, 2, len(tokens))
    for step, maps in enumerate(whole):
        expected = maps[list(layers)].mean(1)[:, -1]
        length = inputs["input_ids"].shape[1] + step
        expected = F.pad(expected, (length - expected.shape[-1], 0))[:, tokens]
        torch.testing.assert_close(torch.from_numpy(found.attention[step]), expected, atol=1e-6, rtol=0)
    behind = int(tokens[-1]) + 1
    text = look(model, inputs, layers, "text", max_new_tokens=1)
    places = look(model, inputs, layers, [behind, behind + 2], max_new_tokens=2)
    rows = whole[0][list(layers)].mean(1)
    torch.testing.assert_close(torch.from_numpy(text.attention[0]), rows[:, behind:, tokens].mean(1), atol=1e-6, rtol=0)
    expected = rows[:, [behind, behind + 2]][..., tokens].mean(1)
    for step in range(2):
        torch.testing.assert_close(torch.from_numpy(places.attention[step]), expected, atol=1e-6, rtol=0)
    assert found.queries != text.queries != places.queries
    assert str(behind + 2) in places.queries
    assert all(not hasattr(part, "attlas_watch") for part in model.modules())
    assert {part.config._attn_implementation for part in model.modules() if hasattr(part, "config")} == {"sdpa"}


def test_without_a_cache_it_is_the_same():
    inputs, model = prompt("llava"), vlms.model("llava")
    tokens = (inputs["input_ids"][0] == 3).nonzero().flatten()
    found = {}
    for queries in ("last", "text"):
        with rows_of(model, [2], tokens, queries) as watches, torch.no_grad():
            made = model.generate(**inputs, max_new_tokens=3, do_sample=False, use_cache=False)
        found[queries] = torch.stack(watches[2].steps)
        cached = look(model, inputs, [2], queries, max_new_tokens=3)
        assert made[0, -3:].tolist() == cached.ids
        torch.testing.assert_close(found[queries], torch.from_numpy(cached.attention[:, 0]), atol=1e-6, rtol=0)
    assert (found["last"] - found["text"]).abs().max() > 1e-3


class Largest(TorchDispatchMode):
    """The most numbers of any float tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(part, torch.Tensor) and part.is_floating_point():
                self.numbers = max(self.numbers, part.numel())
        return made


@pytest.mark.parametrize(("attention", "makes"), [("sdpa", False), ("eager", True)])
def test_no_square_of_the_sequence_is_made(attention, makes):
    model, length = vlms.model("llava", attention), 400
    ids = torch.full((1, length), 9)
    ids[0, 2:18] = 3
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.randn(1, 3, 56, 56))
    with Largest() as largest:
        look(model, inputs, range(4), max_new_tokens=1)
    assert (largest.numbers >= length**2) == makes


def test_a_look_that_changes_the_model_is_refused(monkeypatch):
    inputs, model = prompt("llava"), vlms.model("llava")
    from attlas.dense.vlm import rows

    def shifted(*args):
        own = rows_own(*args)
        return lambda *a, **k: (own(*a, **k)[0] + 1e-3, None)

    rows_own = rows._own
    monkeypatch.setattr(rows, "_own", shifted)
    with pytest.raises(RuntimeError, match="looking changed the logits by"):
        look(model, inputs, [1], max_new_tokens=1)
    assert look(model, inputs, [1], max_new_tokens=1, tolerance=10).difference > 0


def test_greedy_takes_no_penalty_of_the_model():
    inputs, model = prompt("llava"), vlms.model("llava")
    expected = look(model, inputs, [0], max_new_tokens=3).ids
    own = model.generation_config
    own.repetition_penalty, own.do_sample, own.temperature = 5.0, True, 9.0
    assert look(model, inputs, [0], max_new_tokens=3).ids == expected
    assert model.generation_config is own
    own.eos_token_id = expected[0]  # the step that gives the end token is the last, and kept
    assert len(look(model, inputs, [0], max_new_tokens=3).attention) == 1


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, dict(layers=[9]), "can be watched at"),
        ({}, dict(layers=[]), "can be watched at"),
        ({}, dict(queries="mean"), "queries='mean' must be"),
        ({}, dict(queries=[3]), "behind the image, from 18"),
        ({}, dict(queries=[]), "behind the image"),
        ({}, dict(queries=[99]), "the prompt has 23 tokens"),
        ({}, dict(max_new_tokens=0), "max_new_tokens=0"),
        (dict(input_ids=torch.ones(2, 4, dtype=torch.long)), {}, "one prompt at a time"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long)), {}, "no image token"),
    ],
)
def test_bad_looks(change, options, said):
    model = vlms.model("llava", num_hidden_layers=2)
    with pytest.raises(ValueError, match=said):
        look(model, prompt("llava") | change, **dict(layers=[1], max_new_tokens=1) | options)


# --- class tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, dict(registers=2), dict(class_token=2), dict(num_classes=None)])
def test_the_class_token_of_a_vit(options):
    given = dict(dim=16, depth=3, patch_size=8, img_size=(24, 40), num_classes=5) | options
    network = Isotropic(mixers=dict(type="Attention", heads=2), **given).eval()
    images = torch.randn(2, 3, 21, 37)
    count = 1 + network.registers
    kept = []
    for block in network.blocks[network.joins :]:
        block.mixer.register_forward_pre_hook(lambda mixer, args: kept.append((mixer, args)))
    found = class_rows(network, images)
    expected = []
    for mixer, (x, tokens) in kept[: len(kept) // 2]:
        q, k, _ = mixer._split(torch.cat([tokens, x.flatten(2).transpose(1, 2)], 1))
        expected.append((q[:, :, :1] @ k.mT * q.shape[-1] ** -0.5).softmax(-1).mean(1)[:, 0, count:])
    assert found.shape == (2, len(expected), 3 * 5)
    torch.testing.assert_close(found, torch.stack(expected, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(class_rows(network, images[1:]), found[1:], atol=1e-6, rtol=1e-5)


def test_networks_without_a_look():
    given, image = dict(dim=16, depth=2, patch_size=8, img_size=16, num_classes=2), torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match="has no class token"):
        class_rows(Isotropic(**given, class_token=None).eval(), image)
    network = Isotropic(**given).eval()
    for block in network.blocks:  # an attention that is not PyTorch's fused one
        block.mixer.attend = lambda q, k, v: (q @ k.mT).softmax(-1) @ v
    with pytest.raises(ValueError, match="2 x 2 patches goes through scaled_dot_product_attention"):
        class_rows(network, image)
    with pytest.raises(ValueError, match="Identity has no class token"):
        class_rows(torch.nn.Identity(), image)
