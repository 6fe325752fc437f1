"""Shelves of furniture: the law of the searcher, boxes, and a network that learns from it to search."""

from types import SimpleNamespace

import numpy as np
import pytest

from attlas.dense.gaze import shelves
from attlas.dense.gaze.metrics import Behavior, mean_behavior
from attlas.dense.gaze.shelves import FurnitureShelves, Search
from attlas.engine import Runner


@pytest.fixture(scope="module")
def views():
    """In place of rendered furniture: pictures of one color for each class, brighter or darker."""
    labels = np.arange(84) % 14
    colors = np.random.default_rng(0).integers(60, 196, (14, 3))
    bright = np.random.default_rng(1).integers(-30, 30, (84, 1))
    images = np.broadcast_to((colors[labels] + bright)[:, None, None], (84, 8, 8, 3)).astype(np.uint8)
    return lambda split, **options: SimpleNamespace(labels=labels, images=images)


@pytest.fixture(autouse=True)
def without_rendering(monkeypatch, views):
    monkeypatch.setattr(shelves, "furniture", views)


def test_the_law_of_the_searcher():
    cells = np.stack(np.divmod(np.arange(6), 3), 1)
    alike = np.array([True, False, False, True, False, False])
    search = Search(reach=1.0, likeness=3.0, memory=0.5, linger=0.2, stop=0.8, most=5)
    first = search.chances(cells, alike, 3, [], (0.5, 1.0))
    assert abs(first.sum() - 1) < 1e-12
    assert first[-1] == 0
    assert np.isclose(first[0] / first[2], 3)  # as far, and alike
    assert np.isclose(first[1] / first[2], np.exp(0.5))  # nearer: 0.25 and 1.25, halved
    later = search.chances(cells, alike, 3, [1, 0], (0.5, 1.0))
    assert np.isclose(later[0], 0.2)
    assert np.isclose(later[1] / later[3], 0.5 / 3)  # both one cell away, seen, and alike
    assert later[-1] == 0
    over = search.chances(cells, alike, 3, [1, 0, 3], (0.5, 1.0))
    assert np.isclose(over[-1], 0.8)
    assert np.isclose(over[3], 0.2 * 0.2)
    assert abs(over.sum() - 1) < 1e-12
    assert search.chances(cells, alike, 3, [1, 0, 1, 0, 1], (0.5, 1.0))[-1] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(reach=0), "Search.reach is 0"), (dict(stop=1.1), "Search.stop"), (dict(most=0), "Search.most")],
)
def test_bad_searchers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Search(**options)
    with pytest.raises(ValueError, match="leaves nothing to search"):
        FurnitureShelves(rows=1, columns=1)


def test_a_shelf_is_a_function_of_its_number():
    data = FurnitureShelves(size=5, rows=2, columns=3, cell=(20, 24))
    item, again = data[3], FurnitureShelves(size=9, rows=2, columns=3, cell=(20, 24))[3]
    assert (item["image"] == again["image"]).all()
    assert item["path"].tolist() == again["path"].tolist()
    assert item["image"].shape == (40, 72, 3)
    assert item["boxes"][4].tolist() == [24, 20, 48, 40]
    chosen, _, alike, target, *_ = data.scene(3)
    for view, (x1, y1, x2, y2) in zip(chosen, item["boxes"].astype(int)):
        assert (item["image"][y1:y2, x1:x2] == data.views.images[view][0, 0]).all()
    assert alike[target] and item["target"] == target  # noqa: PT018
    other = FurnitureShelves(size=5, rows=2, columns=3, seed=1)[3]
    assert other["path"].tolist() != item["path"].tolist() or other["target"] != item["target"]


def training(folder, epochs, size):
    grid = dict(rows=3, columns=4)
    data = dict(type="FurnitureShelves", **grid, cell=(24, 24), transforms=[dict(type="CutObjects", size=(24, 24))])
    return Runner(
        model=dict(
            type="OAT",
            **grid,
            dim=48,
            mlp_dim=64,
            depth=(1, 2),
            dropout=0.0,
            pointer_dim=48,
            spp=1,
            max_length=24,
            samples=8,
        ),
        work_dir=str(folder),
        train_dataloader=dict(
            batch_size=32,
            num_workers=0,
            dataset=dict(**data, split="train", size=size),
            sampler=dict(type="EpochSampler", shuffle=True),
        ),
        val_dataloader=dict(
            batch_size=100,
            num_workers=0,
            dataset=dict(**data, split="test", size=min(size, 200)),
            sampler=dict(type="DefaultSampler", shuffle=False),
        ),
        val_evaluator=dict(type="ScanpathMetrics", **grid),
        optim_wrapper=dict(optimizer=dict(type="Adam", lr=2e-3), clip_grad=dict(max_norm=1.0)),
        param_scheduler=[dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=epochs, T_max=epochs)],
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=epochs),
        val_cfg=dict(),
        default_scope="attlas",
        experiment_name=f"shelves{epochs}",
        randomness=dict(seed=0),
    )


def test_a_training_runs_and_its_checkpoint_answers(tmp_path):
    runner = training(tmp_path, 1, 40)
    runner.train()
    found = {name: runner.message_hub.get_scalar(f"val/gaze/{name}").current() for name in ("SS", "delta", "SIM")}
    assert 0 < found["SS"] < 1
    assert 0 < found["SIM"] < 1
    assert found["delta"] > 0
    assert (tmp_path / "epoch_1.pth").is_file()


@pytest.mark.slow
def test_a_network_learns_to_search(tmp_path):
    """On new shelves, what is drawn ends at the target and looks at new objects. The figures of a run: hit 0.94 (the
    searcher 1.00), search 0.80 (0.92), refixation 0.08 (0.05), revisit 0.12 (0.03), length 7.8 (4.6): so short a
    training does not yet learn all that the searcher remembers."""
    runner = training(tmp_path, 8, 1600)
    runner.train()
    found = {name: runner.message_hub.get_scalar(f"val/gaze/{name}").current() for name in Behavior._fields}
    # who goes anywhere, and ends anywhere, after as many looks
    random = np.random.default_rng(0)
    paths = [random.integers(12, size=8).tolist() for _ in range(1000)]
    anyhow = mean_behavior(paths, random.integers(12, size=1000).tolist())
    assert found["hit"] > 0.85 > 0.2 > anyhow.hit
    assert found["search"] > anyhow.search + 0.02
    assert found["revisit"] < anyhow.revisit - 0.02
    assert abs(found["refixation"] - 0.053) < 0.06
    assert found["length"] < 10
