import pytest
import torch
import torch.nn.functional as F

from attlas.backbones.classification.sparsifying import SparsifinerDistiller
from attlas.kernels.top_keys import largest
from attlas.registry import MODELS

NETWORK = dict(type="Sparsifiner", dim=16, depth=3, heads=2, reduce_tokens=2, coef_topk=4, img_size=64, num_classes=5)
TEACHER = dict(NETWORK, keep=1.0)
IA_RED2 = dict(type="IARED2", dim=16, groups=(1, 1, 1), heads=2, interpreter_heads=2, img_size=64, num_classes=5)
DEPENDENCY = dict(type="DependencyViT", dim=16, depth=3, heads=2, img_size=64, num_classes=5)


def distiller(seed=0, **options):
    torch.manual_seed(seed)
    options = dict(backbone=NETWORK, teacher=TEACHER) | options
    return SparsifinerDistiller(**options).train()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 64, 64, generator=generator), torch.tensor([0, 1, 4, 2])


def learned(model):
    images, labels = batch()
    found = model(images, labels, mode="loss")
    found["loss"].backward()
    return found, {name for name, p in model.named_parameters() if p.grad is not None and p.grad.ne(0).any()}


def layers(network, images):
    """The inputs of every mixer, by the levels of the network."""
    notes, found = {}, []
    for x, block in zip(network.levels(images, notes), network.blocks[1:]):
        found.append((block.mixer, block.norm1(x), block.norm1(notes["tokens"])))
    return found


@pytest.mark.parametrize("teacher", [TEACHER, None])
def test_the_predictors_learn_attention(teacher):
    model = distiller(teacher=teacher, phase="predictor")
    found, names = learned(model)
    assert names == {name for name, _ in model.named_parameters() if ".predictor." in name}
    images, _ = batch()
    dense = model.teacher() if teacher else model.backbone
    with torch.no_grad():
        whole, first = 3 * found["loss"] / 0.01, 0.0
        for (mixer, *inputs), (other, *its) in zip(layers(model.backbone, images), layers(dense, images)):
            first += (mixer.scores(*inputs, signed=True) - other.weights(*its)).square().sum()
    assert 0 < whole - first < whole / 2  # what is left is that of the first block
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        images, labels = batch()
        loss = model(images, labels, mode="loss")["loss"]
        loss.backward()
        optimizer.step()
    assert loss < found["loss"] / 3


@pytest.mark.parametrize("token_keep", [1.0, (0.6, 0.6, 0.3)])
def test_the_backbone_learns_from_labels_logits_and_maps(token_keep):
    model = distiller(backbone=dict(NETWORK, token_keep=token_keep), logits_weight=0.3, map_weight=0.7)
    found, names = learned(model)
    expected = {name for name, _ in model.named_parameters() if ".predictor." not in name}
    assert names == expected
    images, labels = batch()
    notes = {}
    with torch.no_grad():
        rows = model.backbone.forward_features(images, notes)
        logits = model.backbone.forward_head(rows)
        its_rows = model.teacher().forward_features(images)
        its_logits = model.teacher().forward_head(its_rows).softmax(-1)
        if "pruned" in notes:
            its_rows = torch.stack(
                [row[[0, *(1 + kept).tolist()]] for row, kept in zip(its_rows, notes["pruned"].places)]
            )
        loss = F.cross_entropy(logits, labels)
        loss += 0.3 * (its_logits * (its_logits.log() - logits.log_softmax(-1))).sum(-1).mean()
        loss += 0.7 * (rows - its_rows)[:, 1:].square().mean()
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_both_learn_from_its_own_attention():
    model = distiller(teacher=None, logits_weight=0, map_weight=0, self_weight=0.002, basis_weight=1e-3)
    found, names = learned(model)
    assert names == {name for name, _ in model.named_parameters()}
    tables = sum(mixer.predictor.restore.abs().sum() for mixer in model.mixers)
    whole = found["labels"] + 0.002 * found["attention"] + 1e-3 * tables
    assert found["loss"].item() == pytest.approx(whole.item(), rel=1e-5)
    shared = distiller(backbone=dict(NETWORK, shared=True), phase="predictor", basis_weight=1.0)
    assert learned(shared)[0]["loss"] > shared.mixers[0].predictor.reduce.abs().sum()


def test_predictors_behind_dropped_pixels_learn():
    """Of the scores and the attention of the pixels that are left."""
    sparse = dict(NETWORK, token_keep=(0.6, 0.6, 0.3))
    model = distiller(backbone=sparse, teacher=None, logits_weight=0, map_weight=0, self_weight=0.002)
    found, names = learned(model)
    assert names == {name for name, _ in model.named_parameters()}
    notes, whole = {}, 0.0
    with torch.no_grad():
        network = model.backbone
        x, tokens = network.embed(batch()[0]), network.joining(4)
        for index, block in enumerate(network.blocks):
            inputs, pruned = (block.norm1(x), block.norm1(tokens)), notes.get("pruned")
            scores = block.mixer.scores(*inputs, pruned=pruned)
            if pruned is not None:
                q, k, _ = block.mixer._split(torch.cat([inputs[1], inputs[0].flatten(2).mT], 1))
                tables = block.mixer.predictor.tables(1, pruned.others.shape[-2:])
                rows = [[0, *(1 + kept).tolist()] for kept in pruned.places]
                reduce, restore = (torch.stack([table[0, row] for row in rows]) for table in tables)
                coefficients = block.mixer.predictor.coefficients(q[:, :, 1:], k, reduce)
                coefficients = largest(coefficients, 4)
                torch.testing.assert_close(scores, coefficients @ F.threshold(restore.abs(), 0.02, 0.0).mT[:, None])
            whole += (scores - block.mixer.weights(*inputs)).square().sum() / 3
            x, tokens = network.run(block, x, tokens, notes)
            x, tokens = network.prune(index, x, tokens, notes)
    assert found["attention"].item() == pytest.approx(whole.item(), rel=1e-4)


@pytest.mark.parametrize("token_keep", [1.0, (0.6, 0.6, 0.3)])
def test_logits_of_pixels_learn(token_keep):
    """From those of the teacher, or from the labels."""
    student = dict(NETWORK, type="SparsifinerLVViT", token_keep=token_keep)
    dense = dict(NETWORK, type="SparsifinerLVViT", keep=1.0)
    model = distiller(backbone=student, teacher=dense)
    found, names = learned(model)
    assert "backbone.head.auxiliary.fc.weight" in names
    images, labels = batch()
    notes = {}
    with torch.no_grad():
        network, teacher = model.backbone, model.teacher()
        _, mine = network.forward_head(network.forward_features(images, notes), notes=notes)
        its = teacher.head.auxiliary.fc(teacher.forward_features(images)[:, 1:])
        if "pruned" in notes:
            its = torch.stack([rows[kept] for rows, kept in zip(its, notes["pruned"].places)])
        assert found["maps"].item() == pytest.approx((mine.flatten(2).mT - its).square().mean().item(), rel=1e-5)
        logits = mine.flatten(2).mT.flatten(0, 1)
        of_labels = F.cross_entropy(logits, labels.repeat_interleave(len(logits) // 4)).item()
    for options in (dict(teacher=TEACHER), dict(teacher=None, logits_weight=0, map_weight=0)):
        model = distiller(backbone=student, auxiliary_weight=0.3, **options)
        found, names = learned(model)
        assert "backbone.head.auxiliary.fc.weight" in names
        assert found["auxiliary"].item() == pytest.approx(of_labels, rel=1e-5)
        terms = {"labels": 1, "divergence": 0.5, "maps": 0.5, "auxiliary": 0.3}
        whole = sum(weight * found[name].item() for name, weight in terms.items() if name in found)
        assert found["loss"].item() == pytest.approx(whole, rel=1e-5)


def test_a_teacher_with_further_tokens():
    """Its rows are cut by its own tokens."""
    model = distiller(teacher=dict(TEACHER, registers=3))
    found, _ = learned(model)
    images, _ = batch()
    with torch.no_grad():
        mine, its = (network.forward_features(images) for network in (model.backbone, model.teacher()))
    assert found["maps"].item() == pytest.approx((mine[:, 1:] - its[:, 4:]).square().mean().item(), rel=1e-5)


def test_what_is_kept_of_a_training():
    """The network alone; its answers are sparse in either phase."""
    model = MODELS.build(dict(type="SparsifinerDistiller", backbone=NETWORK, teacher=TEACHER, phase="predictor")).eval()
    assert all(name.startswith("backbone.") for name in model.state_dict())
    images, labels = batch()
    assert torch.equal(model(images), model.backbone(images))
    assert not torch.allclose(model(images), model.train()(images))
    assert len(model(images, labels, mode="predict")) == 4


def test_mixed_images_change_the_targets():
    images, labels = batch()
    losses = {cutmix: distiller(cutmix=cutmix)(images, labels, mode="loss")["loss"].item() for cutmix in (0.0, 1.0)}
    assert losses[0.0] != losses[1.0]


def test_bad_arguments():
    for options, message in (
        (dict(phase="both"), "SparsifinerDistiller.phase"),
        (dict(teacher=None), "teacher must be the config of a dense network in phase='backbone', got None"),
        (dict(map_weight=-1), "map_weight must be a number of at least 0, got -1"),
        (dict(backbone=dict(type="Isotropic", dim=16, depth=1, num_classes=5)), "backbone must be a Sparsifiner, got"),
        (
            dict(teacher=dict(TEACHER, depth=2)),
            "teacher must have the 3 blocks of the backbone, got Sparsifiner with 2",
        ),
        (dict(teacher=dict(TEACHER, dim=32)), "teacher: its channels must be 16 as in the backbone, got 32"),
        (dict(teacher=dict(TEACHER, num_classes=4)), "teacher: its num_classes must be 5 as in the backbone, got 4"),
        (dict(teacher=dict(TEACHER, num_classes=None)), "its num_classes must be 5 as in the backbone, got None"),
        (dict(teacher=dict(TEACHER, patch_size=8)), "teacher: its patch_size must be 16 as in the backbone, got 8"),
        (dict(teacher=NETWORK), "teacher must be a dense network, got Sparsifiner, which leaves out keys"),
        (dict(teacher=dict(TEACHER, token_keep=(1, 0.5, 0.5))), "got Sparsifiner, which leaves out pixels"),
        (dict(teacher=IA_RED2), "teacher must be a dense network, got IARED2, which leaves out tokens"),
        (dict(teacher=IA_RED2, phase="predictor"), "got IARED2, which leaves out tokens"),
        (dict(backbone=IA_RED2, teacher=IA_RED2), "backbone must be a Sparsifiner, got IARED2"),
        (dict(teacher=dict(DEPENDENCY, prune_blocks=(1,))), "got DependencyViT, which leaves out pixels"),
        (
            dict(teacher=DEPENDENCY, phase="predictor"),
            "must have attention in all blocks in phase='predictor', got DependencyViT with ReversedAttention",
        ),
        (
            dict(backbone=dict(NETWORK, num_classes=None), head=dict(type="PooledHead", num_classes=5)),
            "SparsifinerDistiller.backbone must have a head",
        ),
        (dict(teacher=dict(TEACHER, heads=4), phase="predictor"), r"its heads must be \[2, 2, 2\] as in the backbone"),
        (
            dict(teacher=dict(TEACHER, registers=2), phase="predictor"),
            "its class and register tokens must be 1 as in the backbone, got 3",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            distiller(**options)
    images, labels = batch()
    with pytest.raises(ValueError, match="needs labels"):
        distiller()(images, mode="loss")
    with pytest.raises(ValueError, match="learns from no token_labels"):
        distiller()(images, labels, mode="loss", token_labels=images)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        distiller()(images * float("nan"), labels, mode="loss")
