import math
import re

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree
from networks import build, fill

from attlas import backbones, checkpoint
from attlas.backbones import sparsifiner
from attlas.backbones.layers import Attention
from attlas.backbones.sparsifiner import SparsifiedAttention, Sparsifiner, SparsifinerLVViT


def mixer(dim=16, heads=2, **options):
    torch.manual_seed(0)
    options = dict(size=(4, 5), reduce_tokens=3, coef_topk=3) | options
    return fill(SparsifiedAttention(dim, heads, **options)).double()


def inputs(height=4, width=5, dim=16, tokens=1):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, dim, height, width, dtype=torch.float64, generator=generator)
    return x, torch.randn(2, tokens, dim, dtype=torch.float64, generator=generator) if tokens else None


def network(**options):
    torch.manual_seed(0)
    options = dict(reduce_tokens=4, coef_topk=4, img_size=(96, 80), num_classes=5) | options
    return fill(Sparsifiner(24, 4, heads=2, **options)).double()


def image(height=96, width=80):
    return torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


# --- the attention ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("keep", [0.1, 0.5, 7])
def test_every_pixel_attends_to_k_keys_and_tokens_to_all(keep, tokens):
    part, (x, beside) = mixer(keep=keep), inputs(tokens=tokens)
    mask = part.mask(x, beside)
    expected = keep if keep == 7 else math.ceil(keep * (tokens + 20))
    assert torch.equal(mask[:, :, tokens:].sum(-1), torch.full((2, 2, 20), expected))
    assert mask[:, :, :tokens].all()
    rows = x.flatten(2).mT if beside is None else torch.cat([beside, x.flatten(2).mT], 1)
    q, k, v = part._split(rows)
    out = part.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
    got = part(x, beside) if tokens else (part(x), out[:, :0])
    assert_agree("map", got[0].flatten(2).mT, out[:, tokens:])
    if tokens:
        assert_agree("tokens", got[1], out[:, :tokens])
    for place in ((0, 0), (2, 3)):
        seen = part.attention_maps(x, place, beside).flatten(2)
        kept = mask[:, :, tokens + 5 * place[0] + place[1], tokens:]
        assert torch.equal(seen > 0, kept)


def test_all_keys_are_dense_attention():
    part, (x, tokens) = mixer(keep=1.0), inputs()
    dense = Attention(16, 2).double()
    dense.load_state_dict({n: p for n, p in part.state_dict().items() if "predictor" not in n})
    for got, expected in zip(part(x, tokens), dense(x, tokens)):
        assert_agree("output", got, expected)
    reconstructing = mixer(keep=0.1, reconstruct=True).train()
    for got, expected in zip(reconstructing(x, tokens), dense(x, tokens)):
        assert_agree("output in training", got, expected)
    assert not torch.allclose(reconstructing.eval()(x, tokens)[0], dense(x, tokens)[0])


def by_the_sheet(part, q, k, coef_topk, coef_threshold, basis_threshold, signed=False):
    """The scores of all pairs of q and k (B, H, N, d), of the class token first."""
    predictor = part.predictor
    restore = predictor.reduce if predictor.restore is None else predictor.restore
    coefficients = predictor.q(q)[:, :, 1:] @ (predictor.k(k).mT @ predictor.reduce) * part.heads**-0.5
    coefficients = coefficients.softmax(-1)
    if signed:
        return coefficients @ restore.mT
    if coef_topk is not None:
        least = coefficients.topk(coef_topk).values[..., -1:]
        coefficients = torch.where(coefficients >= least, coefficients, 0)
    else:
        coefficients = torch.where(coefficients > coef_threshold, coefficients, 0)
    basis = restore.abs()
    return coefficients @ torch.where(basis > basis_threshold, basis, 0).mT


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("topk", "coef", "basis"), [(3, 0.0, 0.02), (None, 0.17, 0.01), (None, 0.0, 0.0), (6, 0.5, 0)])
def test_scores_by_definition(topk, coef, basis, shared):
    part = mixer(coef_topk=topk, coef_threshold=coef, basis_threshold=basis, shared=shared)
    x, tokens = inputs()
    q, k, _ = part._split(torch.cat([tokens, x.flatten(2).mT], 1))
    expected = by_the_sheet(part, q, k, topk, coef, basis)
    assert_agree("scores", part.scores(x, tokens), expected)
    assert_agree("signed", part.scores(x, tokens, signed=True), by_the_sheet(part, q, k, topk, coef, basis, True))
    kept = part.mask(x, tokens)[:, :, 1:]
    least = torch.where(kept, expected, math.inf).amin(-1)
    others = torch.where(kept, -math.inf, expected).amax(-1)
    assert (least >= others - 1e-6).all()  # scores are compared in float32


@pytest.mark.parametrize("pairs", [1, 10**6])
def test_a_threshold_of_scores(pairs, monkeypatch):
    """Queries have as many keys as score more than it; those without any give zeros, and so do their gradients."""
    monkeypatch.setattr(sparsifiner, "PAIRS", pairs)
    x, tokens = inputs()
    scores = mixer().scores(x, tokens)
    part = mixer(score_threshold=scores.amax(-1).median().item())
    mask = part.mask(x, tokens)
    assert torch.equal(mask[:, :, 1:], scores > part.score_threshold)
    assert 0 < (~mask.any(-1)).sum() < mask[..., 0].numel()
    q, k, v = part._split(torch.cat([tokens, x.flatten(2).mT], 1))
    weights = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, -math.inf).softmax(-1).nan_to_num()
    out = part.proj((weights @ v).transpose(1, 2).flatten(2))
    got = part(x.requires_grad_(), tokens)
    assert_agree("map", got[0].flatten(2).mT, out[:, 1:])
    got[0].square().sum().backward()
    assert x.grad.isfinite().all()
    assert part.attention_maps(x, (0, 0), tokens).isfinite().all()


def test_maps_of_another_size():
    """Tables are interpolated along the pixels: of constant ones, P keeps the sums and Q the entries."""
    part, (x, tokens) = mixer(), inputs(6, 9)
    assert all(y.isfinite().all() for y in part(x, tokens))
    torch.nn.init.constant_(part.predictor.reduce[1:], 0.5)
    torch.nn.init.constant_(part.predictor.restore[1:], -2.0)
    reduce, restore = part.predictor.tables(1, (6, 9))
    assert reduce.shape == restore.shape == (1, 1 + 54, 7)
    assert_agree("sums", reduce[:, 1:].sum(1), torch.full((1, 7), 0.5 * 20).double())
    assert_agree("entries", restore[:, 1:], torch.full((1, 54, 7), -2.0).double())
    with pytest.raises(
        ValueError, match=r"the map is 6 x 9 pixels, the predictor's tables are of 4 x 5: .*resize=True"
    ):
        mixer(resize=False)(x, tokens)
    mixer(resize=False)(*inputs())


def test_the_predictor_learns_from_its_scores_alone():
    part, (x, tokens) = mixer(reconstruct=True).train(), inputs()
    part(x, tokens)[0].sum().backward()
    assert all(p.grad is None for p in part.predictor.parameters())
    (part.scores(x, tokens, signed=True) - part.weights(x, tokens)).square().sum().backward()
    assert all(p.grad.ne(0).any() for p in part.predictor.parameters())
    assert_agree("rows", part.weights(x, tokens).sum(-1), torch.ones(2, 2, 20, dtype=torch.float64))


def test_no_scores_of_all_pairs():
    """No tensor of a forward without thresholds has as many elements as pairs of pixels."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(found):
                largest = max(largest, x.numel() if isinstance(x, torch.Tensor) else 0)
            return found

    part = SparsifiedAttention(8, 2, keep=16, size=32, reduce_tokens=100)
    x = torch.randn(1, 8, 32, 32)
    with Watch():
        part(x).sum().backward()
    assert 0 < largest < 32**4 // 10


def test_bad_options():
    for options, message in (
        (dict(keep=0), "keep=0 must be a share of the keys above 0 and up to 1, or an integer above 1"),
        (dict(keep=1.5), "keep=1.5 must be a share"),
        (dict(keep=-0.1), "keep=-0.1 must be a share"),
        (dict(keep="a"), "keep='a' must be a share"),
        (dict(reduce_tokens=22), "reduce_tokens=22 must lie in 1..21, the number of tokens"),
        (dict(reduce_width=9), "reduce_width=9 must lie in 1..8, the channels of a head"),
        (dict(coef_threshold=-1.0), "coef_threshold=-1.0 must be a number of at least 0"),
        (dict(basis_threshold=-1.0), "basis_threshold=-1.0 must be a number of at least 0"),
        (dict(basis_threshold=math.nan), "basis_threshold=nan must be a number of at least 0"),
        (dict(score_threshold=math.nan), "score_threshold=nan must be a finite number, or None"),
        (dict(coef_topk=8), "coef_topk=8 must lie in 1..7, the columns of the tables, or be None"),
    ):
        with pytest.raises(ValueError, match=message):
            mixer(**options)
    with pytest.raises(ValueError, match="keep=22 keys of a query are more than the 21 tokens that there are"):
        mixer(keep=22)(*inputs())
    for options, message in (
        *(
            (dict(token_keep=rate), r"token_keep must be a number in \[0, 1\]")
            for rate in (-0.1, 1.5, math.nan, None, "a")
        ),
        (dict(token_keep=(1, 0.5, 0.5, True)), r"token_keep must be a number in \[0, 1\], got True"),
        (dict(token_keep=0.0), r"token_keep=0.0 must lie above 0 and up to 1"),
        (dict(token_keep=(1, 0.5, 0.7, 0.5)), "must not rise: pixels that were dropped do not come back"),
        (dict(token_keep=(1, 0.5)), "token_keep must have one entry for each of the 4 blocks"),
        (dict(keep=(0.5, 2.5, 1, 1)), "keep=2.5 must be a share"),
    ):
        with pytest.raises(ValueError, match=message):
            network(**options)


# --- the network -----------------------------------------------------------------------------------------------------


def masked_form(model, x, keep, token_keep):
    """Logits, rows behind the last block, and which pixels are alive, of the form that keeps dropped pixels as zeros
    and masks them."""
    x = model.position(model.stem(x)).flatten(2).mT
    x = torch.cat([model.cls_token(len(x)) + model.position.row, x], 1)
    alive = torch.ones(x.shape[:2], dtype=torch.bool)
    for block, rate, share, before in zip(model.blocks, keep, token_keep, (1.0, *token_keep)):
        part = block.mixer
        q, k, v = (y * alive[:, None, :, None] for y in part._split(block.norm1(x)))
        narrow_q, narrow_k = (
            layer(y) * alive[:, None, :, None] for layer, y in ((part.predictor.q, q), (part.predictor.k, k))
        )
        coefficients = (narrow_q @ (narrow_k.mT @ part.predictor.reduce) * part.heads**-0.5)[:, :, 1:].softmax(-1)
        least = coefficients.topk(part.predictor.coef_topk).values[..., -1:]
        basis = part.predictor.restore.abs()
        scores = (coefficients * (coefficients >= least)) @ (basis * (basis > part.predictor.basis_threshold)).mT
        scores = scores.masked_fill(~alive[:, None, None], -math.inf)
        number = rate if rate > 1 else math.ceil(rate * x.shape[1])
        budget = min(number, int(alive[0, 1:].sum())) if not alive.all() else number
        mask = torch.zeros_like(scores).scatter(-1, scores.topk(budget).indices, 1.0).bool()
        mask = torch.cat([torch.ones_like(mask[:, :, :1]), mask], 2)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, -math.inf).softmax(-1)
        x = x + part.proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        if share < before:
            seen = weights[:, :, 0, 1:].mean(1).masked_fill(~alive[:, 1:], -math.inf)
            left = seen.topk(math.ceil(share * seen.shape[1])).indices
            alive = torch.zeros_like(alive).scatter(1, left + 1, True)
            alive[:, 0] = True
        x = x * alive[..., None]
    return model.head.fc(model.norm(x)[:, 0]), x, alive


@pytest.mark.parametrize("keep", [(0.25,) * 4, (0.5, 0.9, 0.7, 0.2), (31,) * 4])
@pytest.mark.parametrize("token_keep", [(1, 0.7, 0.7, 0.3), (0.8, 0.5, 0.2, 0.1), (1, 1, 1, 1)])
def test_dropped_pixels_are_those_of_the_masked_form(keep, token_keep):
    """Gathered, they cost nothing, and all others are as if they were zeros."""
    # without a threshold, which makes many scores 0, and of equal ones anybody may take another
    model, x = network(keep=keep, token_keep=token_keep, basis_threshold=0.0), image()
    with torch.no_grad():
        logits, rows, alive = masked_form(model, x, keep, token_keep)
        notes = {}
        *_, last = model.levels(x, notes)
        assert_agree("logits", model(x), logits)
    assert_agree("pixels", notes["rest"].flatten(2).mT, rows[:, 1:][alive[:, 1:]].unflatten(0, (2, -1)))
    assert last.shape == (2, 24, 6, 5)
    if token_keep[-1] < 1:
        places = alive[:, 1:].nonzero()[:, 1].view(2, -1)
        assert torch.equal(notes["pruned"].places, places)
        at = places.unsqueeze(1).expand(-1, 24, -1)
        assert torch.equal(last.flatten(2).gather(2, at), notes["rest"].flatten(2))  # on the grid where they were
        assert notes["rest"].shape[-1] == math.ceil(token_keep[-1] * 30)


def test_all_keys_of_pixels_that_are_left():
    """Then no predictor runs."""
    model = network(keep=1.0, token_keep=0.5)
    del model.blocks[1].mixer.predictor
    assert model(image()).isfinite().all()


def test_pruning_keeps_no_state():
    """A batch does not change what becomes of the next, of another size."""
    model = network(token_keep=(0.5, 0.5, 0.2, 0.2))
    with torch.no_grad():
        first = model(image())
        model(image(48, 64))
        assert torch.equal(model(image()), first)


def test_pruning_trains():
    model = network(token_keep=(0.5, 0.5, 0.2, 0.2)).train()
    model(image()).sum().backward()
    assert all(p.grad.isfinite().all() for n, p in model.named_parameters() if ".predictor." not in n)
    notes = {}
    model.forward_features(image(), notes)
    assert notes["rest"].shape[-1] == 6
    model, notes = network(token_keep=(0.5, 0.5, 0.2, 0.2), reconstruct=True).train(), {}
    model.forward_features(image(), notes)
    assert "pruned" not in notes


def test_the_dense_form_keeps_dropped_pixels_as_they_were_last():
    options = dict(num_classes=None, img_size=(96, 80), token_keep=(1, 0.5, 0.5, 0.5))
    whole, pruned = network(**{**options, "token_keep": 1.0}), network(**options)
    with torch.no_grad():
        expected, found = whole(image()), pruned(image())
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert_agree("before", found[0], expected[0])
    assert_agree("at once", found[1], expected[1])
    same = (found[2] == found[1]).all(1).flatten(1).sum(1)  # what block 1 left out
    assert same.tolist() == [15, 15]


def test_files_of_deit():
    """Its names load, and what is missing are the predictors."""
    model = network()
    state = {
        "cls_token": model.cls_token.weight,
        "pos_embed": model.position.weight,
        "patch_embed.proj.weight": model.stem.weight,
        "patch_embed.proj.bias": model.stem.bias,
        "head.weight": model.head.fc.weight,
        "head.bias": model.head.fc.bias,
    }
    for name, value in model.state_dict().items():
        if name.startswith(("blocks", "norm")) and "predictor" not in name:
            state[name.replace(".mixer.", ".attn.")] = value
    again = Sparsifiner(24, 4, heads=2, reduce_tokens=4, coef_topk=4, img_size=(96, 80), num_classes=5)
    account = backbones.load(again, {"model": {n: x.detach() for n, x in state.items()}})
    assert account.missing
    assert all(".predictor." in name for name in account.missing)
    assert not account.unexpected
    assert torch.equal(again.blocks[3].mixer.qkv.weight.double(), model.blocks[3].mixer.qkv.weight)


def test_files_with_a_shared_table_and_of_another_size():
    model = network(shared=True, img_size=96)
    state = model.state_dict()
    state |= {n.replace("reduce", "restore"): x for n, x in state.items() if n.endswith("reduce")}
    account = backbones.load(network(shared=True, img_size=96), state)
    assert account.complete, str(account)
    larger = network(img_size=192, reduce_tokens=16)  # of as many columns: 37 // 4 and 145 // 16
    account = backbones.load(larger, network(img_size=96).state_dict())
    assert account.complete, str(account)
    assert larger.blocks[0].mixer.predictor.reduce.shape == (145, 9)


def test_tables_of_files_keep_the_sums_of_p_and_the_entries_of_q():
    """As `tables` does: a file in a larger network is the smaller network on larger maps."""
    small, large = mixer(size=4, reduce_tokens=4), mixer(size=8, reduce_tokens=16)
    checkpoint.load(large, small.state_dict())
    for mine, expected in zip(large.predictor.tables(1, (8, 8)), small.predictor.tables(1, (8, 8))):
        assert_agree("table", mine, expected)
    shared = mixer(size=8, reduce_tokens=16, shared=True)
    checkpoint.load(shared, {n: x for n, x in small.state_dict().items() if not n.endswith("restore")})
    of_shared, of_small = shared.predictor.tables(1, (8, 8))[1], small.predictor.tables(1, (8, 8))[0]
    assert_agree("Q", of_shared[:, 1:] / 4, of_small[:, 1:])


def test_float16_of_large_values():
    part = mixer(64, 1, size=4, coef_topk=2).float()
    part.qkv.weight.data.copy_(torch.eye(64).repeat(3, 1))
    part.qkv.bias.data.zero_()
    x, tokens = torch.full((1, 64, 4, 4), 40.0).half(), torch.full((1, 1, 64), 40.0).half()
    part.half()  # the products of rows are 102,400
    assert all(y.isfinite().all() for y in part(x, tokens))
    assert part.attention_maps(x, (0, 0), tokens).sum() > 0.1
    assert part.weights(x, tokens).isfinite().all()


def test_no_decay():
    assert build("Sparsifiner", num_classes=5).no_weight_decay() == {"cls_token.weight", "position.weight"}


# --- LV-ViT ----------------------------------------------------------------------------------------------------------


def lv_vit(**options):
    torch.manual_seed(0)
    options = dict(reduce_tokens=4, coef_topk=4, img_size=64, num_classes=5) | options
    return fill(SparsifinerLVViT(24, 2, heads=2, stem_dim=8, **options)).double()


def test_the_head_labels_every_pixel():
    model, x = lv_vit(), image(64, 96)
    rows = model.forward_features(x)
    token, pixels = model.head.fc(rows[:, 0]), model.head.auxiliary.fc(rows[:, 1:])
    assert_agree("in inference", model(x), token + 0.5 * pixels.amax(1))
    model.train()
    for norm in (part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        norm.eval()
    logits, labels = model(x)
    assert_agree("of the token", logits, token)
    assert_agree("of pixels", labels, pixels.mT.unflatten(2, (4, 6)))
    single = lv_vit(pixel_logits=False)
    assert_agree("without labels", single(x), single.head.fc(single.forward_features(x)[:, 0]))


def test_branches_are_divided():
    """The larger the divisor, the nearer the network is to its stem."""
    x = image(64, 64)
    stem = lv_vit(num_classes=None).position(lv_vit(num_classes=None).stem(x))
    far = [lv_vit(skip=skip, num_classes=None).forward_intermediates(x)[1][0] - stem for skip in (1.0, 2.0, 1e9)]
    assert far[0].norm() > 1.2 * far[1].norm()
    assert far[2].abs().max() < 1e-6
    block, x = lv_vit().blocks[0], torch.randn(2, 24, 4, 4, dtype=torch.float64)
    tokens = torch.randn(2, 1, 24, dtype=torch.float64)
    y, beside, _ = block(x, tokens)
    middle = [z + mixed / 2 for z, mixed in zip((x, tokens), block.mixer(block.norm1(x), block.norm1(tokens)))]
    assert_agree("map", y, middle[0] + block.mlp(block.norm2(middle[0])) / 2)
    assert_agree("token", beside, middle[1] + block.mlp(block.norm2(middle[1])) / 2)


def test_files_of_lv_vit():
    """By its names, without predictors."""
    model, state = lv_vit(), {}
    for name, value in model.state_dict().items():
        if "predictor" not in name:
            for ours, theirs in (
                (r"^stem\.(\d)\.conv", lambda m: f"patch_embed.conv{int(m[1]) // 2 + 1}"),
                (r"^stem\.(\d)\.norm", lambda m: f"patch_embed.bn{int(m[1]) // 2 + 1}"),
                (r"^stem\.6", "patch_embed.proj"),
                (r"^position\.weight", "pos_embed"),
                (r"^cls_token\.weight", "cls_token"),
                (r"\.mixer\.", ".attn."),
                (r"^head\.auxiliary\.fc", "aux_head"),
                (r"^head\.fc", "head"),
            ):
                name = re.sub(ours, theirs, name)
            state[name] = value
    again = lv_vit()
    account = backbones.load(again, state)
    assert all(".predictor." in name for name in account.missing)
    assert not account.unexpected
    assert not account.ignored


def test_bad_options_of_lv_vit():
    with pytest.raises(ValueError, match="patch_size=7 must be even"):
        lv_vit(patch_size=7)
    with pytest.raises(ValueError, match="skip=0 must be a number above 0"):
        lv_vit(skip=0)
