"""What characterizes balanced multi-task attention: learned shares of attention to places and to channels."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import close, fill, image
from torch import nn

from attlas import backbones
from attlas.backbones.balanced_mta import (
    BalancedMTA,
    BalancedMultiTaskAttention,
    DropBlock,
    PlainCNN,
    attention_shares,
)
from attlas.backbones.mixers.ela import CBAM
from attlas.config import load_config
from attlas.engine import Runner
from attlas.registry import MODELS

ROOT = Path(__file__).parents[2]
SMALL = dict(dims=(16, 32), depths=(1, 2), strides=(1, 2), drop_block=(0.05, 0.1))


def attention(alpha=None, dim=32):
    mixer = fill(BalancedMultiTaskAttention(dim)).double()
    if alpha is not None:
        nn.init.constant_(mixer.alpha, alpha)
    return mixer


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- attention -------------------------------------------------------------------------------------------------------


def test_the_share_begins_at_the_sigmoid_of_a_half():
    network = BalancedMTA(**SMALL, num_classes=3)
    shares = attention_shares(network)
    assert [*shares] == ["stages.0.blocks.0.end", "stages.1.blocks.0.end", "stages.1.blocks.1.end"]
    assert all(share == pytest.approx(0.6225, abs=1e-4) for share in shares.values())
    assert network.stages[0].blocks[0].end.alpha.ndim == 0
    assert attention_shares(backbones.create("resnet18", plugins="SE")) == {}
    assert len(attention_shares(backbones.create("resnet18", plugins="BalancedMultiTaskAttention"))) == 8


def test_the_ends_of_alpha_are_the_branches():
    x = normal(2, 32, 7, 5)
    for alpha, branch in ((40.0, "coordinates"), (-40.0, "channels")):
        mixer = attention(alpha)
        torch.testing.assert_close(mixer(x), getattr(mixer, branch)(x))
    mixer = attention(0.3)
    share = 1 / (1 + math.exp(-0.3))
    torch.testing.assert_close(mixer(x), share * mixer.coordinates(x) + (1 - share) * mixer.channels(x))


def test_alpha_learns():
    mixer, x = attention(0.3), normal(2, 32, 7, 5)
    (mixer(x) * normal(2, 32, 7, 5, seed=1)).sum().backward()
    assert mixer.alpha.grad.abs() > 1e-3
    assert torch.autograd.gradcheck(attention(0.3, 16).eval(), (normal(1, 16, 3, 4).requires_grad_(),))


def places(generator, count=64):
    """Two spots, in one row or column, or in neither: the same means over all pixels."""
    labels = torch.randint(2, (count,), generator=generator)
    each, along = torch.arange(count), torch.rand(count, generator=generator) < 0.5
    row, column = torch.randint(6, (2, count), generator=generator)
    down, right = torch.randint(1, 6, (2, count), generator=generator)
    x = torch.zeros(count, 2, 6, 6)
    x[each, 0, row, column] = 6
    x[each, 0, (row + down * (labels + ~along).bool()) % 6, (column + right * (labels + along).bool()) % 6] = 6
    return x, labels


def colors(generator, count=64):
    """Two channels whose means agree in sign, or do not, under noise of rows and of columns that has no mean."""
    means = torch.randint(2, (count, 2), generator=generator) * 2 - 1
    x = means[:, :, None, None].float().expand(count, 2, 6, 6)
    for shape in ((count, 2, 6, 1), (count, 2, 1, 6)):
        noise = 3 * torch.randn(shape, generator=generator)
        x = x + noise - noise.mean((2, 3), keepdim=True)
    return x, (means[:, 0] == means[:, 1]).long()


def pull(toy):
    """The share, and the loss, after a short training. Behind the attention are a mean and a linear layer, which see
    neither cue without it."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(2, 16, 1), BalancedMultiTaskAttention(16))
    fc, generator = nn.Linear(16, 2), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam([*network.parameters(), *fc.parameters()], lr=0.02)
    for _ in range(150):
        x, labels = toy(generator)
        loss = F.cross_entropy(fc(network(x).mean((2, 3))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network[1].share.item(), loss.item()


@pytest.mark.parametrize(("toy", "sign"), [(places, 1), (colors, -1)])
def test_the_cue_pulls_the_share(toy, sign):
    """The place as the only cue pulls it up, the color as the only cue down."""
    with torch.random.fork_rng():
        share, loss = pull(toy)
    assert sign * (share - 0.6225) > 0.1
    assert loss < 0.1


# --- DropBlock -------------------------------------------------------------------------------------------------------


def test_drop_block_drops_squares_of_all_channels():
    torch.manual_seed(0)
    x = torch.ones(4, 3, 40, 40)
    layer = DropBlock(0.1, 5)
    y = layer.train()(x)
    dropped = y == 0
    assert torch.equal(dropped[:, :1].expand_as(dropped), dropped)
    assert 0.03 < dropped.float().mean() < 0.15
    assert y.mean() == pytest.approx(1, abs=1e-4)
    kept = y[y != 0]
    assert kept.min() == kept.max()
    # each dropped pixel lies in a square of dropped ones, or in the part of one that the border leaves
    padded = F.pad(dropped[:, :1].float(), (5,) * 4, value=1.0)
    eroded = -F.max_pool2d(-padded, 5, stride=1)  # whether a square that begins here is dropped
    covered = F.max_pool2d(F.pad(eroded, (4,) * 4), 5, stride=1)[..., 5:-5, 5:-5]
    assert torch.equal(covered.bool() & dropped[:, :1], dropped[:, :1])


def test_drop_block_is_the_identity_elsewhere():
    x = torch.randn(2, 3, 9, 8)
    assert DropBlock(0.5).eval()(x) is x
    assert DropBlock(0.0).train()(x) is x
    assert DropBlock(0.0).train()(torch.ones(1, 1, 2, 2)).shape == (1, 1, 2, 2)
    half = DropBlock(0.2).train()(x.bfloat16())
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: DropBlock(0.1).train()(torch.ones(1, 3, 6, 9)),
            r"block_size=7 is larger than the map of 6 x 9 pixels",
        ),
        (lambda: DropBlock(1.0), r"DropBlock: rate=1.0 must be in \[0, 1\)"),
        (lambda: DropBlock(0.1, 4), "DropBlock: block_size=4 must be odd"),
        (lambda: BalancedMTA(drop_block=(0.1, 0.2)), "drop_block must have one entry for each of the 4 stages"),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_drop_block_grows_with_the_depth():
    network = backbones.create("balanced_mta_12")
    rates = [[block.inner.rate for block in stage.blocks] for stage in network.stages]
    assert rates == [[0.05] * 3, [0.10] * 3, [0.15] * 3, [0.20] * 2]
    with pytest.raises(ValueError, match="DropBlock: block_size=7 is larger than the map of 4 x 4 pixels"):
        network.train()(image(32, 32))
    network.eval()(image(32, 32))


# --- networks --------------------------------------------------------------------------------------------------------


def test_the_network():
    network = backbones.create("balanced_mta_12", out_indices=(0, 1, 2, 3)).eval()
    assert network.out_strides == (1, 2, 4, 8)
    assert [tuple(x.shape[1:]) for x in network(image(64, 64, batch=1))] == [
        (64, 64, 64),
        (128, 32, 32),
        (256, 16, 16),
        (512, 8, 8),
    ]
    parts = [part for part in network.modules() if isinstance(part, BalancedMultiTaskAttention)]
    assert sum(p.numel() for part in parts for p in part.parameters()) == 391_771
    assert len(parts) == 11


def test_a_block():
    block = fill(BalancedMTA(**SMALL)).stages[1].blocks[0]
    x = torch.randn(2, 16, 9, 8)
    y = block.end(block.conv2(torch.relu(block.conv1(x))))
    close(block(x), torch.relu(block.shortcut(x) + y))


def test_initial_weights():
    """Linear layers are narrow, the two of SE too, which have no biases to set."""
    network = backbones.create("balanced_mta_12")
    part = network.stages[3].blocks[0].end.channels
    for weight in (part.fc1.weight, part.fc2.weight, network.head.fc.weight):
        assert weight.std().item() == pytest.approx(0.01, rel=0.1)
    conv = network.stages[3].blocks[1].conv1.conv.weight
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.02)
    assert not network.head.fc.bias.any()


def test_the_plain_networks():
    baseline = fill(backbones.create("balanced_mta_baseline_3"))
    x = image(64, 64)
    features = baseline.forward_features(x)
    assert features.shape == (2, 128, 8, 8)
    vector = baseline.head.after[0](features.flatten(1))  # at 64 pixels nothing is resized
    close(baseline(x), baseline.head.fc(vector))
    assert baseline(image(70, 130)).shape == (2, 10)
    network = backbones.create("balanced_mta_cbam_7")
    gates = [[isinstance(part, CBAM) for part in stage.blocks[0].children()] for stage in network.stages]
    assert [any(found) for found in gates] == [False] + [True] * 5
    assert network.strides == (2, 4, 8, 16, 32, 64)
    with torch.no_grad():  # smaller images are filled up with zeros
        padded = F.pad(image(50, 40), (0, 24, 0, 14))
        close(fill(network)(image(50, 40)), network(padded))


def test_names_of_the_baseline():
    network = fill(PlainCNN((8, 16), convs=1, features=12, flat=True, num_classes=3))
    names = {"stages.0.blocks.0.convs.0.conv": "conv1", "stages.0.blocks.0.convs.0.norm": "bn1", "head.fc": "fc2"}
    names |= {"stages.1.blocks.0.convs.0.conv": "conv2", "stages.1.blocks.0.convs.0.norm": "bn2", "head.after.0": "fc1"}
    state = {f"{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": v for n, v in network.state_dict().items()}
    again = PlainCNN((8, 16), convs=1, features=12, flat=True, num_classes=3)
    assert backbones.load(again, state).complete


def test_training_logs_the_share():
    model = MODELS.build(
        dict(
            type="ImageClassifier",
            backbone=dict(type="BalancedMTA", **SMALL, num_classes=3),
            class_weights=[1.0, 2.0, 0.5],
        )
    ).train()
    nn.init.constant_(model.backbone.stages[0].blocks[0].end.alpha, 3.0)
    losses = model(image(16, 16), torch.tensor([0, 2]), mode="loss")
    shares = attention_shares(model)
    assert losses["attention_share"].item() == pytest.approx(sum(shares.values()) / 3)
    loss, logged = model.parse_losses(losses)
    assert logged["attention_share"] == losses["attention_share"]
    assert loss == losses["loss"]  # it is no part of the loss
    plain = MODELS.build(
        dict(type="ImageClassifier", backbone=dict(type="BalancedMTA", **SMALL, plugins=None, num_classes=3))
    )
    assert "attention_share" not in plain.train()(image(16, 16), torch.tensor([0, 2]), mode="loss")


def test_the_recipe_trains_on_the_layout_of_eurosat(tmp_path):
    """Two epochs, narrow: it logs the share, and validates with kappa and the gap."""
    classes = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop"]
    rng = np.random.default_rng(0)
    for name in [*classes, "Residential", "River", "SeaLake"]:
        (tmp_path / "EuroSAT_RGB" / name).mkdir(parents=True)
        for number in range(8):
            picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "EuroSAT_RGB" / name / f"{name}_{number + 1}.jpg"), picture)
    config = load_config(ROOT / "configs/balanced_mta/balanced_mta_eurosat.py")
    config.model.backbone.update(dims=(16, 16, 32, 32), depths=(1, 1, 1, 1))
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=16)
        loader.dataset.root = str(tmp_path / "EuroSAT_RGB")
    config.train_cfg.max_epochs = 2
    config.work_dir = str(tmp_path / "work")
    runner = Runner.from_cfg(config)
    runner.train()
    scalars = {name: runner.message_hub.get_scalar(name) for name in ("train/attention_share", "val/kappa", "val/top1")}
    assert scalars["train/attention_share"].current() == pytest.approx(0.6225, abs=0.01)
    assert -1 <= scalars["val/kappa"].current() <= 1
    logged = next((tmp_path / "work").rglob("scalars.json")).read_text()
    assert '"attention_share"' in logged
    assert '"confidence_gap"' in logged or scalars["val/top1"].current() in (0, 100)
