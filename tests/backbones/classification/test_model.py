"""The image classifier: what its losses are by definition, what its metric counts, and that it trains and resumes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import default_collate, pseudo_collate
from torch import nn
from torch.utils.data import Dataset

from attlas import checkpoint
from attlas.backbones.classification.model import (
    ImageAccuracy,
    ImageClassifier,
    PooledHead,
    cut_box,
    mix,
    smooth_one_hot,
)
from attlas.engine import Runner
from attlas.registry import DATASETS, METRICS, MODELS

ROOT = Path(__file__).parents[3]


@MODELS.register_module()
class ToyNetwork(nn.Module):
    """Two stages; maps, or logits where `num_classes` is given, and second logits in training where they are wanted."""

    out_channels, out_strides = (8, 12), (2, 4)
    checkpoint_rules = [(r"^old_stem\.", "stem.")]
    checkpoint_optional = [r"^gate\."]
    checkpoint_resize = {"stem.weight": lambda tensor, shape: tensor[..., :1, :1].expand(shape)}

    def __init__(self, num_classes=None, auxiliary=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.stages = nn.ModuleList([nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, stride=2, padding=1)])
        self.head = nn.Linear(12, num_classes) if num_classes else None
        self.second = nn.Linear(8, num_classes) if auxiliary else None

    def group_matcher(self, coarse=False):
        return dict(stem=r"^stem", blocks=[(r"^stages\.(\d+)", None)])

    def no_weight_decay(self):
        return set()

    def forward(self, image):
        first = F.gelu(self.stages[0](self.stem(image)))
        last = F.gelu(self.stages[1](first))
        if self.head is None:
            return first, last
        logits = self.head(last.mean((2, 3)))
        return (logits, self.second(first.mean((2, 3)))) if self.second is not None and self.training else logits


@DATASETS.register_module()
class ToyImages(Dataset):
    """Noise around the colour of the class; a draw depends on the index, epochs included, alone."""

    metainfo = dict(classes=("red", "green", "blue"))

    def __init__(self, length=30):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        item = index % self.length
        image = 0.5 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))
        image[item % 3] += 1
        return dict(image=image, label=item % 3, index=item)


def classifier(**options):
    return ImageClassifier(**{"backbone": dict(type="ToyNetwork", num_classes=3), **options})


def batch(size=4):
    return default_collate([ToyImages()[i] for i in range(size)])


# --- the batch


@pytest.mark.parametrize("collate", [default_collate, pseudo_collate])
def test_preprocessor_takes_both_collations(collate):
    samples = [ToyImages()[i] for i in (4, 2, 0)]
    found = classifier().data_preprocessor(collate(samples), True)
    assert torch.equal(found["images"], torch.stack([sample["image"] for sample in samples]))
    assert found["images"].is_contiguous(memory_format=torch.channels_last)
    assert found["labels"].tolist() == [1, 2, 0]
    assert found["indices"] == [4, 2, 0]


def test_preprocessor_says_what_is_wrong_with_a_batch():
    preprocess = classifier().data_preprocessor
    image = torch.zeros(3, 8, 8)
    with pytest.raises(ValueError, match="batch is empty"):
        preprocess(dict(image=torch.zeros(0, 3, 8, 8), label=torch.zeros(0)))
    with pytest.raises(ValueError, match=r"one size, got \[\(3, 7, 8\), \(3, 8, 8\)\]"):
        preprocess(dict(image=[image, image[:, 1:]], label=[0, 0]))
    with pytest.raises(ValueError, match=r"uint8.*PackImage"):
        preprocess(dict(image=[image.to(torch.uint8)], label=[0]))
    with pytest.raises(ValueError, match=r"must be floats of shape.*\(3, 8, 8\)"):
        preprocess(dict(image=image, label=[0]))
    for label in (3, -1):
        with pytest.raises(ValueError, match=rf"label {label} .*num_classes=3 \(0 to 2\)"):
            preprocess(dict(image=[image], label=[label]))


# --- mixing


def test_mixup_is_the_convex_combination_with_the_reversed_batch():
    images, targets = torch.rand(5, 3, 6, 6), torch.eye(5)
    for _ in range(5):
        mixed, soft = mix(images, targets, mixup=0.8, cutmix=0.0)
        kept = soft[0, 0]
        assert 0 <= kept <= 1
        torch.testing.assert_close(mixed, kept * images + (1 - kept) * images.flip(0))
        torch.testing.assert_close(soft, kept * targets + (1 - kept) * targets.flip(0))


def test_cutmix_targets_are_the_share_of_each_image():
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 2, 9, 7)
    before, shares = images.clone(), set()
    for _ in range(30):
        mixed, soft = mix(images, torch.eye(4), mixup=0.0, cutmix=1.0)
        for i in range(4):
            assert set(mixed[i].unique().tolist()) <= {float(i), float(3 - i)}
            torch.testing.assert_close(soft[i, i], (mixed[i] == i).float().mean())
        rows, columns = (mixed[0, 0] != 0).any(1).sum(), (mixed[0, 0] != 0).any(0).sum()
        assert (mixed[0, 0] != 0).sum() == rows * columns  # one box, the same in every image
        shares.add(round(soft[0, 0].item(), 4))
    assert len(shares) > 10
    assert torch.equal(images, before)


def test_switch_probability_chooses_between_the_two():
    images = torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 3, 16, 16)

    def is_cut():
        return set(mix(images, torch.eye(2), 1.0, 1.0, switch_probability=0.25)[0].unique().tolist()) <= {0.0, 1.0}

    assert 0.15 < np.mean([is_cut() for _ in range(400)]) < 0.35


def test_the_box_has_its_share_where_no_border_cuts_it(monkeypatch):
    monkeypatch.setattr(np.random, "randint", lambda side: side // 2)
    top, bottom, left, right = cut_box(100, 60, 0.25)
    assert (bottom - top, right - left) == (50, 30)
    monkeypatch.setattr(np.random, "randint", lambda side: 0)
    assert cut_box(100, 60, 0.25) == (0, 25, 0, 15)


# --- losses


def test_targets_equal_label_smoothing():
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 4])
    soft = smooth_one_hot(labels, 5, 0.1)
    torch.testing.assert_close(F.cross_entropy(logits, soft), F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_cross_entropy_and_accuracy():
    model, data = classifier(label_smoothing=0.1).eval(), batch(6)
    arguments = model.data_preprocessor(data)
    logits = model(**arguments)
    found = model(**arguments, mode="loss")
    torch.testing.assert_close(found["loss"], F.cross_entropy(logits, data["label"], label_smoothing=0.1))
    assert found["accuracy"] == (logits.argmax(1) == data["label"]).float().mean() * 100
    answers = model(**arguments, mode="predict")
    torch.testing.assert_close(torch.stack([a["log_probs"] for a in answers]), logits.log_softmax(1))
    assert [(int(a["label"]), a["index"]) for a in answers] == [(i % 3, i) for i in range(6)]
    assert len(model(arguments["images"], mode="predict")) == 6  # of images without labels
    with pytest.raises(ValueError, match="mode must be"):
        model(**arguments, mode="train")


def test_bce_with_and_without_threshold():
    data = batch(6)
    for threshold, targets in (
        (None, F.one_hot(data["label"], 3) * 0.7 + 0.1),
        (0.2, F.one_hot(data["label"], 3).float()),
    ):
        model = classifier(loss="bce", target_threshold=threshold, label_smoothing=0.3).eval()
        arguments = model.data_preprocessor(data)
        logits = model(**arguments)
        wanted = -(targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits)).mean()
        torch.testing.assert_close(model(**arguments, mode="loss")["loss"], wanted)
        assert torch.equal(model(**arguments, mode="predict")[2]["log_probs"], F.logsigmoid(logits[2]))


def test_class_weights():
    """The weighted mean over the batch, as of torch with labels; soft targets weigh by their shares."""
    weights = [1.0, 0.5, 3.0]
    model = classifier(class_weights=weights)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 2, 2, 1])
    logits = model.train()(images)
    loss = model(images, labels, mode="loss")["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, torch.tensor(weights)))
    equal = classifier(class_weights=[2.0] * 3, label_smoothing=0.2)
    equal.load_state_dict(model.state_dict())
    loss = equal.train()(images, labels, mode="loss")["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=0.2))
    assert "class_weights" not in model.state_dict()
    for wrong, message in (
        (dict(class_weights=[1, 2]), "class_weights has 2 entries for 3 classes"),
        (dict(class_weights=[1, 2, 0]), "class_weights must be positive numbers"),
        (dict(class_weights=weights, loss="bce"), "class_weights belong to loss='cross_entropy', not 'bce'"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier(**wrong)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_mirrored_views(loss):
    """Probabilities are the mean over the image and its mirrored copies; training sees none of them."""
    model = classifier(loss=loss, mirrored=("horizontal", "vertical")).eval()
    plain = classifier(loss=loss).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(3, 3, 8, 9)

    def probabilities(model, images):
        return torch.stack([sample["log_probs"] for sample in model(images, mode="predict")]).exp()

    views = [probabilities(plain, x) for x in (images, images.flip(3), images.flip(2))]
    torch.testing.assert_close(probabilities(model, images), torch.stack(views).mean(0))
    assert torch.equal(model(images), plain(images))
    with pytest.raises(ValueError, match="mirrored"):
        classifier(mirrored=("diagonal",))
    with pytest.raises(ValueError, match=r"mirrored='vertical' must be a tuple of directions, such as \('vertical',\)"):
        classifier(mirrored="vertical")


def test_the_loss_is_of_the_mixed_images(monkeypatch):
    model, data = classifier(mixup=1.0).eval(), batch(6)
    arguments = model.data_preprocessor(data)
    monkeypatch.setattr(np.random, "beta", lambda a, b: 0.25)
    images, targets = mix(arguments["images"], F.one_hot(data["label"], 3).float(), 1.0, 0.0)
    logits = model(images)
    found = model(**arguments, mode="loss")
    torch.testing.assert_close(found["loss"], -(targets * logits.log_softmax(1)).sum(1).mean())
    assert found["accuracy"] == (logits.argmax(1) == data["label"].flip(0)).float().mean() * 100
    model.mix_probability = 0
    plain = F.cross_entropy(model(arguments["images"]), data["label"])
    torch.testing.assert_close(model(**arguments, mode="loss")["loss"], plain)


def test_auxiliary_logits_count_with_their_weight():
    model = classifier(backbone=dict(type="ToyNetwork", num_classes=3, auxiliary=True), auxiliary_weight=0.3)
    arguments = model.data_preprocessor(batch(6), True)
    main, second = model.backbone(arguments["images"])
    found = model(**arguments, mode="loss")
    parts = [F.cross_entropy(logits, arguments["labels"]) for logits in (main, second)]
    torch.testing.assert_close(found["loss"], parts[0] + 0.3 * parts[1])
    torch.testing.assert_close(model.parse_losses(found)[0], found["loss"])  # MMEngine adds nothing to it
    assert model(arguments["images"]).shape == (6, 3)


def test_attention_diversification_counts_with_its_weight():
    network = dict(type="Isotropic", dim=16, depth=2, patch_size=8, img_size=32, num_classes=3)
    model = classifier(backbone=network, diversification=0.5, diversification_threshold=1.0)
    arguments = model.data_preprocessor(batch(6), True)
    found = model(**arguments, mode="loss")
    plain = F.cross_entropy(model(arguments["images"]), arguments["labels"])
    assert 0 < found["diversification"] <= 1
    torch.testing.assert_close(found["loss"], plain + 0.5 * found["diversification"])
    torch.testing.assert_close(model.parse_losses(found)[0], found["loss"])  # MMEngine adds nothing to it
    compiled = torch.compile(model, backend="eager")(**arguments, mode="loss")
    torch.testing.assert_close(compiled["loss"], found["loss"])
    with pytest.raises(ValueError, match="ToyNetwork has no attention that says how alike its queries look"):
        classifier(diversification=1.0)
    with pytest.raises(ValueError, match="diversification must be a number of at least 0, got -1"):
        classifier(backbone=network, diversification=-1)


@pytest.mark.filterwarnings("ignore:Anomaly")
def test_nan_is_an_error():
    model = classifier()
    arguments = model.data_preprocessor(batch())
    arguments["images"][0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        model(**arguments, mode="loss")


# --- heads and arguments


@pytest.mark.parametrize(("pooling", "pool"), [("mean", lambda x: x.mean((2, 3))), ("max", lambda x: x.amax((2, 3)))])
def test_pooled_head_reads_the_last_map(pooling, pool):
    head = dict(type="PooledHead", num_classes=5, pooling=pooling, norm=False)
    model = classifier(backbone=dict(type="ToyNetwork"), head=head).eval()
    assert head.get("in_channels") is None  # the config is left as it was
    images = torch.randn(2, 3, 9, 7)
    torch.testing.assert_close(model(images), model.head.linear(pool(model.backbone(images)[-1])))
    assert PooledHead(5, 12)(model.backbone(images)).shape == (2, 5)


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="nothing says num_classes"):
        classifier(backbone=dict(type="ToyNetwork"))
    for options, message in (
        (dict(loss="focal"), "loss is 'focal'.*'cross_entropy', 'bce'"),
        (dict(target_threshold=0.2), "target_threshold=0.2 belongs to loss='bce'"),
        (dict(mixup=-1.0), "mixup must be at least 0"),
        (dict(label_smoothing=2), r"label_smoothing must lie in \[0, 1\], got 2"),
        (dict(head=dict(type="PooledHead", num_classes=3, pooling="avg")), "pooling is 'avg'"),
        (
            dict(backbone=dict(type="ToyNetwork"), head=dict(type="PooledHead", num_classes=3, pooling="mena")),
            "Did you mean 'mean'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            classifier(**options)
    model = classifier()
    model.backbone = MODELS.build(dict(type="ToyNetwork"))
    with pytest.raises(ValueError, match=r"gives maps \[\(1, 8, 4, 4\), .*PooledHead"):
        model(torch.randn(1, 3, 8, 8))
    with pytest.raises(TypeError, match="out_indices"):
        PooledHead(3, 12)(torch.zeros(1, 12))


def test_channels_that_a_backbone_does_not_say(monkeypatch):
    monkeypatch.delattr(ToyNetwork, "out_channels")
    head = dict(type="PooledHead", num_classes=3)
    with pytest.raises(ValueError, match="ToyNetwork does not say its out_channels"):
        classifier(backbone=dict(type="ToyNetwork"), head=head)
    assert classifier(backbone=dict(type="ToyNetwork"), head={**head, "in_channels": 12}).head.linear.in_features == 12


def test_authors_checkpoints_load_into_the_backbone():
    model, network = classifier(), ToyNetwork(num_classes=3)
    theirs = {name.replace("stem.", "old_stem."): value for name, value in network.state_dict().items()}
    account = checkpoint.load(model, {**theirs, "gate.weight": torch.zeros(1)})
    assert account.complete
    assert account.ignored == ["backbone.gate.weight"]
    assert torch.equal(model.backbone.stem.weight, network.stem.weight)
    assert checkpoint.load(model, model.state_dict()).renamed == {}
    theirs["old_stem.weight"] = torch.ones(8, 3, 5, 5)
    assert list(checkpoint.load(model, theirs).resized) == ["backbone.stem.weight"]


# --- the metric


def answers(log_probs, labels):
    rows = zip(torch.tensor(log_probs), labels)
    return [dict(log_probs=row, label=torch.tensor(label), index=i) for i, (row, label) in enumerate(rows)]


def test_metric_counts_by_definition(tmp_path):
    generator = np.random.default_rng(0)
    log_probs, labels = generator.normal(size=(50, 8)), generator.integers(0, 7, 50)  # the last class does not occur
    metric = ImageAccuracy(out_file=tmp_path / "out.npz")
    metric.dataset_meta = dict(classes=tuple("abcdefgh"))
    samples = answers(log_probs, labels.tolist())
    for start in range(0, 50, 16):
        metric.process(None, samples[start : start + 16])
    found = metric.evaluate(50)
    order = np.argsort(-log_probs, axis=1)
    right = order[:, 0] == labels
    assert found["top1"] == pytest.approx(100 * right.mean())
    assert found["top5"] == pytest.approx(100 * (order[:, :5] == labels[:, None]).any(1).mean())
    assert found["mAcc"] == pytest.approx(100 * np.mean([right[labels == c].mean() for c in range(7)]))
    with np.load(tmp_path / "out.npz") as file:
        assert file["confusion"].trace() == right.sum()
        assert file["confusion"].sum(1).tolist() == np.bincount(labels, minlength=8).tolist()
        np.testing.assert_allclose(file["log_probs"], log_probs, rtol=1e-6)
    with pytest.raises(FileExistsError, match=r"out\.npz exists\. To replace it"):
        ImageAccuracy(out_file=tmp_path / "out.npz")


def test_metric_of_ties_and_few_classes():
    metric = METRICS.build(dict(type="ImageAccuracy"))
    metric.process(None, answers([[0.0, 0.0, 0.0]] * 3, [0, 1, 2]))
    assert metric.evaluate(3) == pytest.approx(dict(top1=100 / 3, mAcc=100 / 3))


def test_details_of_the_metric():
    """Kappa and the confidence gap of three classes, by hand."""
    metric = ImageAccuracy(details=True)
    metric.dataset_meta = dict(classes=("a", "b", "c"))
    # truth a a b b c c; predictions a a a b c b
    probabilities = [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0, 0.3, 0.7], [0.2, 0.6, 0.2]]
    samples = [
        dict(log_probs=torch.tensor(row).clamp(min=1e-6).log(), label=i // 2, index=i)
        for i, row in enumerate(probabilities)
    ]
    metric.process({}, samples)
    found = metric.compute_metrics(metric.results)
    # observed agreement 4/6, by chance (2·3 + 2·2 + 2·1) / 36 = 1/3
    assert found["kappa"] == pytest.approx((4 / 6 - 1 / 3) / (1 - 1 / 3))
    assert found["confidence_right"] == pytest.approx(100 * (0.8 + 0.6 + 0.8 + 0.7) / 4, abs=1e-3)
    assert found["confidence_wrong"] == pytest.approx(100 * (0.5 + 0.6) / 2, abs=1e-3)
    assert found["confidence_gap"] == pytest.approx(found["confidence_right"] - found["confidence_wrong"])
    assert found["precision"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 1) / 3)
    assert found["recall"] == found["mAcc"] == pytest.approx(100 * 4 / 6)
    assert "kappa" not in ImageAccuracy().compute_metrics(metric.results)


def test_metric_refuses_nan_and_foreign_labels():
    metric = ImageAccuracy()
    with pytest.raises(ValueError, match="image 1 are NaN"):
        metric.process(None, answers([[0.0, 1.0], [float("nan"), 0.0]], [0, 1]))
    with pytest.raises(ValueError, match="gives 2 log-probabilities; a label is 2"):
        metric.process(None, answers([[0.0, 1.0]], [2]))
    metric.process(None, answers([[0.0, 1.0]], [1]))
    metric.dataset_meta = dict(classes=("a", "b", "c"))
    with pytest.raises(ValueError, match="2 classes, the data set 3"):
        metric.evaluate(1)


# --- all together


def config(work_dir, epochs):
    """Thirty iterations in six epochs, with everything that a recipe may ask for."""
    loader = dict(batch_size=6, num_workers=0, collate_fn=dict(type="default_collate"))
    found = Config.fromfile(ROOT / "configs/_base_/default_runtime.py")
    found.merge_from_dict(
        dict(
            work_dir=str(work_dir),
            model=dict(
                type="ImageClassifier",
                backbone=dict(type="ToyNetwork", num_classes=3),
                label_smoothing=0.1,
                mixup=0.2,
                cutmix=1.0,
                mix_probability=0.3,
            ),
            train_dataloader=dict(
                **loader, dataset=dict(type="ToyImages"), sampler=dict(type="RepeatedAugmentSampler", repeats=2)
            ),
            val_dataloader=dict(
                **loader, dataset=dict(type="ToyImages", length=12), sampler=dict(type="DefaultSampler")
            ),
            val_evaluator=dict(type="ImageAccuracy"),
            val_cfg=dict(),
            train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=3),
            optim_wrapper=dict(
                constructor="LayerDecayConstructor",
                paramwise_cfg=dict(layer_decay=0.8),
                optimizer=dict(type="LAMB", lr=0.1, weight_decay=0.02),
            ),
            param_scheduler=dict(
                type="CosineAnnealingLR", T_max=6, end=6, eta_min_ratio=0.1, convert_to_iter_based=True
            ),
            custom_hooks=[
                dict(type="EMAHook", ema_type="MomentumAnnealingEMA", momentum=0.1, gamma=10, update_buffers=True),
                dict(type="AdaptiveClipHook", clip_factor=0.5),
            ],
            log_level="WARNING",
            experiment_name=f"{work_dir}-{epochs}",  # or runs of the same second share their history
        )
    )
    return found


def test_trains_and_resumes(tmp_path):
    whole = Runner.from_cfg(config(tmp_path / "whole", 6))
    whole.train()
    losses = whole.message_hub.get_scalar("train/loss").data[0]
    assert len(losses) == 30
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    assert whole.message_hub.get_scalar("val/top1").current() > 80
    lrs = {round(group["initial_lr"], 5) for group in whole.optim_wrapper.param_groups}
    assert lrs == {0.1, 0.08, 0.064, 0.0512}  # head, two stages, stem

    Runner.from_cfg(config(tmp_path / "parts", 3)).train()
    again = config(tmp_path / "parts", 6)
    again.resume = True
    Runner.from_cfg(again).train()
    ours, theirs = (checkpoint.read(tmp_path / part / "epoch_6.pth") for part in ("parts", "whole"))
    for state in ("state_dict", "ema_state_dict"):
        assert ours[state].keys() == theirs[state].keys()
        assert all(torch.equal(ours[state][name], value) for name, value in theirs[state].items())
