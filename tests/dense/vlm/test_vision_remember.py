"""Vision Remember: the record, its properties, and tiny LLaVA models with it."""

import copy
import math

import pytest
import torch
import vlms
from golden_records import Record

from attlas.dense.vlm.vision_remember import BidirectionalAttention, PooledProjector, VisionRemember, insert, remove

IMAGE = vlms.ID["<image>"]


def awake(module):
    """The module with output projections that are not zero."""
    for name, parameter in module.named_parameters():
        if "out_proj" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return module


def example(grid=(3, 4), feature_grid=(6, 8), start=2, length=17, **options):
    module = awake(VisionRemember(16, 6, heads=4, **options))
    features = [torch.randn(2, feature_grid[0] * feature_grid[1], 6) for _ in range(3)]
    return module, torch.randn(2, length, 16), features, (start, start + grid[0] * grid[1]), grid, feature_grid


# --- one module ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["concat", "sum"])
def test_equals_the_record(mode):
    record = Record("vision-remember/local_resample_derived")
    config = record.config
    sizes = (config[name] for name in ("dim", "vision_dim", "levels", "heads"))
    module = VisionRemember(*sizes, levels_mode=mode)
    module.load_state_dict(record.state_dict())
    assert sum(p.numel() for p in module.parameters()) == record.params
    hidden, *features = (record.input(name, torch.float32) for name in ("hidden", "feat0", "feat1", "feat2"))
    out = module(hidden, features, config["vision_slice"], config["grid"], config["feature_grid"])
    torch.testing.assert_close(out, record.output(), rtol=1e-4, atol=1e-5)


def test_count():
    with torch.device("meta"):
        module = VisionRemember(2048, 1024)
    assert sum(p.numel() for p in module.parameters()) == 20_989_952


@pytest.mark.parametrize("bidirectional", [False, True])
def test_at_the_start_nothing_changes(bidirectional):
    module, *inputs = example(bidirectional=bidirectional)
    fresh = VisionRemember(16, 6, heads=4, bidirectional=bidirectional)
    assert torch.equal(fresh(*inputs), inputs[0])
    assert not torch.equal(module(*inputs), inputs[0])


@pytest.mark.parametrize("guide", ["mean", "last"])
def test_text_is_never_changed(guide):
    module, hidden, *rest = example(bidirectional=True, guide=guide)
    out = module(hidden, *rest)
    start, stop = rest[1]
    assert torch.equal(out[:, :start], hidden[:, :start])
    assert torch.equal(out[:, stop:], hidden[:, stop:])
    assert (out[:, start:stop] != hidden[:, start:stop]).any(-1).all()


@pytest.mark.parametrize(
    ("grid", "feature_grid", "cell", "readers"),
    [((3, 4), (6, 8), (3, 5), [6]), ((3, 3), (8, 7), (2, 4), [1, 2, 4, 5])],
)
def test_a_cell_is_read_by_tokens_whose_region_holds_it(grid, feature_grid, cell, readers):
    """(8, 7) on (3, 3): rows 0-2, 2-5, 5-7 and columns 0-2, 2-4, 4-6."""
    module, hidden, features, *rest = example(grid, feature_grid)
    before = module(hidden, features, *rest)
    features[1][:, cell[0] * feature_grid[1] + cell[1]] += torch.randn(6)
    changed = (module(hidden, features, *rest) != before).any(-1)[0].nonzero().flatten() - 2
    assert changed.tolist() == readers


def test_the_order_of_cells_in_a_region_is_no_matter():
    module, hidden, features, *rest = example()
    order = torch.arange(48).view(6, 8)
    block = order[2:4, 4:6].flatten()
    order[2:4, 4:6] = block[torch.tensor([2, 0, 3, 1])].view(2, 2)
    shuffled = [x[:, order.flatten()] for x in features]
    torch.testing.assert_close(module(hidden, shuffled, *rest), module(hidden, features, *rest))


@pytest.mark.parametrize("halo", [0, 1])
def test_uneven_grids_equal_the_plain_loop(halo):
    module, hidden, features, span, grid, feature_grid = example((3, 3), (8, 7), halo=halo)
    fine = module.norm_kv(torch.cat(features, -1))
    q = module.q_proj(module.norm_q(hidden[:, span[0] : span[1]]))
    k, v = module.k_proj(fine), module.v_proj(fine)
    expected = hidden.clone()
    for i in range(3):
        for j in range(3):
            rows = range(max(0, math.floor(i * 8 / 3) - halo), min(8, math.ceil((i + 1) * 8 / 3) + halo))
            columns = range(max(0, math.floor(j * 7 / 3) - halo), min(7, math.ceil((j + 1) * 7 / 3) + halo))
            cells = [y * 7 + x for y in rows for x in columns]
            parts = []
            for head in range(4):
                some = slice(4 * head, 4 * head + 4)
                weight = torch.softmax(q[:, 3 * i + j, None, some] @ k[:, cells, some].mT / 2, -1)
                parts.append((weight @ v[:, cells, some]).squeeze(1))
            expected[:, span[0] + 3 * i + j] += module.out_proj(torch.cat(parts, -1))
    out = module(hidden, features, span, grid, feature_grid)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_the_second_module_sees_all_vision_tokens_and_the_text():
    module = awake(BidirectionalAttention(8, 2))
    vision, guide = torch.randn(1, 5, 8), torch.randn(1, 8)
    normed = module.norm(torch.cat([vision, guide[:, None]], 1))
    q, k, v = (p(normed).unflatten(-1, (2, 4)).transpose(1, 2) for p in (module.q_proj, module.k_proj, module.v_proj))
    mixed = (torch.softmax(q @ k.mT / 2, -1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(module(vision, guide), vision + module.out_proj(mixed)[:, :5])


@pytest.mark.parametrize("guide", ["mean", "last"])
def test_which_text_guides(guide):
    """By the mean all of the prompt counts, else its last token; what is no prompt never counts."""
    module, hidden, *rest = example(bidirectional=True, guide=guide)
    prompt = torch.zeros(2, 17, dtype=torch.bool)
    prompt[:, [0, 15]] = True
    before, changes = module(hidden, *rest, prompt), []
    for place in (0, 1, 15, 16):
        other = hidden.clone()
        other[:, place] += torch.randn(16)
        changes.append(not torch.equal(module(other, *rest, prompt)[:, 2:14], before[:, 2:14]))
    assert changes == [guide == "mean", False, True, False]


def test_gradients_reach_all():
    module, hidden, features, *rest = example(bidirectional=True)
    inputs = [x.requires_grad_() for x in (hidden, *features)]
    module(inputs[0], inputs[1:], *rest).square().sum().backward()
    assert all(x.grad.any() for x in inputs)
    assert all(x.grad.any() for n, x in module.named_parameters() if "k_proj.bias" not in n)


def test_two_samples_are_two_single_ones():
    module, hidden, features, *rest = example(bidirectional=True)
    singles = [module(hidden[i : i + 1], [x[i : i + 1] for x in features], *rest) for i in range(2)]
    torch.testing.assert_close(module(hidden, features, *rest), torch.cat(singles))


def test_no_image_is_the_identity():
    module, hidden, features, *_ = example(bidirectional=True)
    assert torch.equal(module(hidden, features, (5, 5), (0, 0), (6, 8)), hidden)


def test_bad_input():
    module, hidden, features, span, grid, feature_grid = example(bidirectional=True)
    with pytest.raises(ValueError, match=r"grid=\(3, 5\) has 15 cells, and the span has 12 tokens"):
        module(hidden, features, span, (3, 5), feature_grid)
    with pytest.raises(ValueError, match=r"span=\(6, 18\) must lie in the 17 positions"):
        module(hidden, features, (6, 18), grid, feature_grid)
    with pytest.raises(ValueError, match=r"feature_grid=\(6, 7\) has 42 cells, and features have 48"):
        module(hidden, features, span, grid, (6, 7))
    with_class = [torch.cat([x[:, :1], x], 1) for x in features]
    with pytest.raises(ValueError, match="features have 49; class and register tokens must be left out"):
        module(hidden, with_class, span, grid, feature_grid)
    with pytest.raises(ValueError, match=r"with C = \(6, 6, 6\)"):
        module(hidden, features[:2], span, grid, feature_grid)
    with pytest.raises(ValueError, match="needs a prompt with text in every sample"):
        module(hidden, features, span, grid, feature_grid, torch.zeros(2, 17, dtype=torch.bool))
    with pytest.raises(ValueError, match="guide"):
        VisionRemember(16, 6, heads=4, guide="first")


# --- in a model of transformers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    return vlms.model("llava")


@pytest.fixture
def llava(plain):
    return copy.deepcopy(plain)


def prompts(*texts, side="left"):
    """Inputs of prompts, in each of which "<image>" stands for 16 tokens, padded on one side."""
    rows = [[vlms.ID[w] for word in text.split() for w in [word] * (16 if word == "<image>" else 1)] for text in texts]
    length = max(map(len, rows))
    pads = [[0] * (length - len(row)) for row in rows]
    ids = torch.tensor([pad + row if side == "left" else row + pad for row, pad in zip(rows, pads)])
    images = torch.randn(sum(text.split().count("<image>") for text in texts), 3, 56, 56)
    return dict(input_ids=ids, attention_mask=(ids != 0).long(), pixel_values=images)


def counting(own, calls, name):
    def call(*x):
        calls[name] += 1
        return own(*x)

    return call


def counted(insertions):
    """How often keys and values are computed, and how often vision tokens are changed."""
    calls = dict(read=0, update=0)
    for module in insertions.behind:
        for name in calls:
            setattr(module, name, counting(getattr(module, name), calls, name))
    return calls


@torch.no_grad()
def test_a_trained_model_begins_unchanged_and_can_be_restored(plain, llava):
    inputs = prompts("USER: <image> what is the color ? ASSISTANT:")
    expected = plain(**inputs).logits
    insertions = insert(llava, bidirectional=True)
    assert (insertions.encoder_layers, insertions.decoder_layers) == ((0, 1, 2), (1, 2))
    assert torch.equal(llava(**inputs).logits, expected)
    awake(insertions)
    changed = llava(**inputs).logits
    assert torch.equal(changed[:, 0], expected[:, 0])  # before the image
    assert not torch.allclose(changed[:, -1], expected[:, -1], atol=1e-3)
    remove(llava)
    assert torch.equal(llava(**inputs).logits, expected)
    assert "vision_remember" not in str(llava.state_dict().keys())


@torch.no_grad()
def test_the_hidden_states_behind_a_layer(llava):
    """Those of the model are those that one module makes of the encoder's blocks, without their class token."""
    insertions = awake(insert(llava, encoder_layers=[2, 0], decoder_layers=[1], heads=2, halo=1))
    inputs = prompts("USER: <image> what ?")
    seen = {}
    encoder, layer = llava.model.vision_tower.encoder.layers, llava.get_decoder().layers[1]
    own = insertions.behind[0].update
    insertions.behind[0].update = lambda hidden, *x: seen.update(hidden=hidden) or own(hidden, *x)
    hooks = [encoder[i].register_forward_hook(lambda m, a, out, i=i: seen.update({i: out[:, 1:]})) for i in (0, 2)]
    hooks.append(layer.register_forward_hook(lambda m, a, out: seen.update(out=out)))
    llava(**inputs)
    expected = insertions.behind[0](seen["hidden"], [seen[2], seen[0]], (1, 17), (4, 4), (4, 4))
    torch.testing.assert_close(seen["out"], expected)


@pytest.mark.parametrize("options", [{}, dict(num_beams=2), dict(use_cache=False)])
def test_it_runs_where_the_prompt_is_read(llava, options):
    insertions = awake(insert(llava))
    calls = counted(insertions)
    inputs = prompts("USER: <image> what is the color ? ASSISTANT:", "<image> USER: <image> what ?")
    llava.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None, **options)
    assert calls["read"] == 2
    assert calls["update"] == (8 if "use_cache" in options else 2)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_prompts_one_by_one(llava, side):
    """Two images, one, none; padding."""
    awake(insert(llava, bidirectional=True))
    texts = "USER: <image> two what ? <image> ASSISTANT:", "<image> what is the color ?", "what is a chair ?"
    inputs = prompts(*texts, side=side)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits, images = llava(**inputs, position_ids=positions).logits, inputs["pixel_values"]
    for row, text in enumerate(texts):
        single = prompts(text)
        single["pixel_values"] = (images[:2], images[2:], None)[row]
        expected = llava(**single).logits[0]
        torch.testing.assert_close(logits[row][inputs["attention_mask"][row] == 1], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_copies_of_prompts_read_their_own_images(llava):
    """As `generate` repeats them for several answers: each copy behind its prompt."""
    awake(insert(llava))
    inputs = prompts("<image> what <image> ?", "what is <image> a chair ?", side="left")
    options = dict(max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True)
    once = llava.generate(**inputs, **options)
    twice = llava.generate(**inputs, **options, num_return_sequences=2, num_beams=2)
    torch.testing.assert_close(twice.logits[0], once.logits[0].repeat_interleave(2, 0), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_compressing_projector(llava):
    """2 x 2 of 4 x 4 tokens: each reads its own 2 x 2 patches."""
    llava.model.multi_modal_projector = PooledProjector(llava.model.multi_modal_projector, (4, 4), (2, 2))
    insertions = awake(insert(llava))
    calls, inputs = counted(insertions), prompts("<image> what ?")
    inputs["input_ids"], inputs["attention_mask"] = (inputs[x][:, 12:] for x in ("input_ids", "attention_mask"))
    assert llava(**inputs).logits.shape[1] == 6
    assert calls == dict(read=2, update=2)


def test_no_answer_is_seen_before_it_is_given(llava):
    """The text-guided token is made of what stands before the first label."""
    awake(insert(llava, bidirectional=True))
    inputs = prompts("USER: <image> what ? ASSISTANT: red green")
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    with torch.no_grad():
        logits = [llava(**inputs, labels=labels).logits[:, :-2]]
        inputs["input_ids"][:, -2:] = vlms.ID["blue"]
        logits.append(llava(**inputs, labels=labels).logits[:, :-2])
    assert torch.equal(*logits)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_learns(llava, checkpointing):
    insertions = awake(insert(llava, bidirectional=True))
    llava.train()
    if checkpointing:
        llava.gradient_checkpointing_enable(dict(use_reentrant=False))
    inputs = prompts("USER: <image> what ? ASSISTANT: red")
    labels = inputs["input_ids"].clone()
    labels[:, :-1] = -100
    llava(**inputs, labels=labels).loss.backward()
    learned = {n for n, p in insertions.named_parameters() if p.grad is not None and p.grad.any()}
    assert {n for n, _ in insertions.named_parameters() if "k_proj.bias" not in n} <= learned


def test_bad_models_and_layers(llava):
    with pytest.raises(ValueError, match=r"encoder_layers=\[13\] must be different layers of the encoder, 0 to 2"):
        insert(llava, encoder_layers=[13])
    with pytest.raises(ValueError, match=r"decoder_layers=\[-1\] must be different layers of the decoder, 0 to 3"):
        insert(llava, decoder_layers=[-1])
    with pytest.raises(ValueError, match="Linear must be of LLaVA's shape"):
        insert(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="LlavaNextForConditionalGeneration must be of LLaVA's shape"):
        insert(vlms.model("llava_next"))
    with pytest.raises(ValueError, match="has no vision_remember"):
        remove(llava)
    insert(llava, grid=(3, 5))
    with pytest.raises(ValueError, match="has vision_remember already"):
        insert(llava)
    with pytest.raises(ValueError, match=r"grid=\(3, 5\): \[16\] vision tokens in 1 prompts are not those of the 1"):
        llava(**prompts("<image> what ?"))
    with pytest.raises(ValueError, match="give input_ids"):
        llava(inputs_embeds=torch.zeros(1, 3, 32))
    remove(llava)
    insert(llava)
    with pytest.raises(ValueError, match="the encoder has seen no image"):
        llava(input_ids=torch.tensor([[1, IMAGE]]))
