"""Each check refuses or warns in one sentence, and leaves alone what is right."""

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR, OneCycleLR, PolyLR
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from attlas import preflight
from attlas.data import Items


class Dots(Items):
    """Items with one label each, of the classes a, b, ..."""

    def __init__(self, labels, classes=2):
        self.labels = np.asarray(labels)
        super().__init__("train", len(self.labels), "abcdefgh"[:classes], (), 0)

    def get(self, item):
        return item


class Net(nn.Module):
    def __init__(self, num_classes=2, norm=nn.BatchNorm1d):
        super().__init__()
        self.head = nn.Module()
        self.head.num_classes = num_classes
        self.norm = norm(3)


@pytest.fixture
def warned(monkeypatch):
    """What is logged as a warning."""
    texts = []
    monkeypatch.setattr(preflight, "print_log", lambda text, logger, level=logging.INFO: texts.append(text))
    return texts


def loader(count=21, size=4, classes=2, **options):
    return DataLoader(Dots(np.arange(count) % classes, classes), size, **options)


@pytest.mark.parametrize(
    ("data", "net", "words"),
    [
        (dict(size=64, drop_last=True), {}, r"of 21 items, in batches of 64, drop_last=True .* may be at most 21\.$"),
        (
            dict(),
            {},
            r"of 21 items, in batches of 4, the last .* batch norm \(norm\) .* batch_size=6 or drop_last=True",
        ),
        (dict(count=9, size=8), {}, r"the last batch is one item.* Take batch_size=9 or drop_last=True\.$"),
        (dict(size=7, classes=1), dict(num_classes=1), r"The training data have one class, 'a': there is nothing"),
        (dict(size=7), dict(num_classes=3), r"num_classes of head is 3, and the data set has 2 classes \(a, b\)"),
        (dict(size=7, classes=7), {}, r"num_classes of head is 2, .* 7 classes \(a, b, c, d, e and 2 more\)"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, net, words):
    with pytest.raises(preflight.CannotTrain, match=words):
        preflight.check_batches(loader(**data), Net(**net))


def test_data_that_fit_are_left_alone(warned):
    for data, net in [
        (loader(drop_last=True), Net()),
        (loader(), Net(norm=nn.LayerNorm)),
        (loader(size=1), Net()),
        (loader(size=7), Net(num_classes=None)),
        (loader(size=64), Net()),
        (DataLoader(Dots([0, 1] * 10 + [0]), 4, sampler=InfiniteSampler(range(21))), Net()),
        (DataLoader(torch.zeros(5, 2), 4), Net(norm=nn.LayerNorm)),
    ]:
        preflight.check_batches(data, net)
    frozen = Net()
    frozen.norm.train = lambda mode=True: frozen.norm
    frozen.norm.training = False
    preflight.check_batches(loader(), frozen)
    assert warned == []


def test_a_part_that_tells_no_classes_apart(warned):
    net = Net(num_classes=7, norm=nn.LayerNorm)
    net.proposals = nn.Module()
    net.proposals.num_classes = 1
    preflight.check_classes(loader(classes=7).dataset, net)
    with pytest.raises(preflight.CannotTrain, match="num_classes of head is 7, and the data set has 6 classes"):
        preflight.check_classes(loader(classes=6).dataset, net)


def test_things_and_stuff_are_counted_for_themselves():
    """Their sum is right in all of these."""
    names = tuple("abcde")
    data = SimpleNamespace(metainfo=dict(classes=names, thing_classes=names[:3], stuff_classes=names[3:]))

    def panoptic(things=3, stuff=2, roi=3):
        net = nn.Module()
        net.num_classes = 5
        net.seg_head, net.roi_head = nn.Module(), nn.ModuleDict(dict(bbox_head=nn.Module()))
        net.seg_head.num_things_classes, net.seg_head.num_stuff_classes = things, stuff
        net.roi_head.bbox_head.num_classes = roi
        return net

    preflight.check_classes(data, panoptic())
    for wrong, words in [
        (dict(things=2, stuff=3), r"num_things_classes of seg_head is 2, .* 3 classes of things \(a, b, c\)"),
        (dict(stuff=3), r"num_stuff_classes of seg_head is 3, .* 2 classes of stuff \(d, e\)"),
        (dict(roi=5), r"num_classes of roi_head\.bbox_head is 5, .* 3 classes of things"),
    ]:
        with pytest.raises(preflight.CannotTrain, match=words):
            preflight.check_classes(data, panoptic(**wrong))


def test_a_class_without_training_items_is_told(warned):
    preflight.check_batches(DataLoader(Dots([0, 2, 0, 2], 3), 2), Net(num_classes=3))
    assert warned == ["No training item is of the class b: it will not be learned."]
    preflight.check_batches(DataLoader(Dots([0, 1, 2, 1], 3)[np.array([0, 2])], 2), Net(num_classes=3))
    assert warned[1:] == warned[:1]


def test_a_loader_without_workers(warned):
    config = dict(num_workers=0, persistent_workers=True, prefetch_factor=4, batch_size=2)
    assert preflight.without_workers(config) == dict(num_workers=0, batch_size=2)
    assert warned == ["num_workers is 0, so persistent_workers and prefetch_factor is left out."]
    config["num_workers"] = 1
    assert preflight.without_workers(config) == config
    assert len(warned) == 1


# --- the schedule


def runner(schedule, total=60, by_epoch=True, iterations=10, **options):
    """A training of `total` epochs (or iterations) with one schedule."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    loop = object.__new__(EpochBasedTrainLoop if by_epoch else IterBasedTrainLoop)
    loop.dataloader, loop._max_epochs, loop._max_iters = loader(2 * iterations, 2), total, total
    if by_epoch:  # counted in epochs, and converted
        built = schedule.build_iter_from_epoch(optimizer, epoch_length=iterations, **options)
    else:
        built = schedule(optimizer, by_epoch=False, **options)
    return SimpleNamespace(
        train_loop=loop, train_dataloader=loop.dataloader, val_loop=None, param_schedulers=dict(optimizer=[built])
    )


@pytest.mark.parametrize(
    ("schedule", "options", "words"),
    [
        (CosineAnnealingLR, dict(end=20, T_max=20), r"stays at its smallest from there on: .* at epoch 20, .* at 60\."),
        (CosineAnnealingLR, dict(T_max=20), "CosineAnnealingLR ends at epoch 20, and training at 60"),
        (CosineAnnealingLR, dict(begin=5, end=80), "does not come down to its smallest: .* ends at epoch 80"),
        (PolyLR, dict(end=20), "PolyLR ends at epoch 20"),
        (LinearLR, dict(start_factor=1.0, end_factor=0.1, end=20), "LinearLR ends at epoch 20"),
        (OneCycleLR, dict(eta_max=1.0, total_steps=90), "OneCycleLR ends at epoch 90"),
        (CosineAnnealingLR, dict(begin=5, end=60), None),
        (CosineAnnealingLR, dict(end=58), None),
        (OneCycleLR, dict(eta_max=1.0, total_steps=60), None),
        (LinearLR, dict(start_factor=0.1, end=5), None),
        (MultiStepLR, dict(milestones=[10]), None),
    ],
)
def test_a_schedule_that_does_not_end_with_the_training_is_told(warned, schedule, options, words):
    preflight.check_training(runner(schedule, **options))
    assert len(warned) == (words is not None)
    if words:
        assert re.search(words, warned[0])


def test_a_schedule_of_iterations(warned):
    preflight.check_training(runner(CosineAnnealingLR, 600, by_epoch=False, end=600))
    assert warned == []
    preflight.check_training(runner(CosineAnnealingLR, 600, by_epoch=False, end=900))
    assert "ends at iteration 900, and training at 600" in warned[0]


def test_validation_has_the_classes_of_training():
    found = runner(MultiStepLR, milestones=[10])
    found.val_loop = SimpleNamespace(dataloader=loader(classes=3))
    with pytest.raises(preflight.CannotTrain, match=r"have the classes a, b; those of val_dataloader are a, b, c\."):
        preflight.check_training(found)


def test_one_output_and_a_loss_for_several(warned):
    model = Net(norm=nn.LayerNorm)
    model.head.out_channels = 1
    model.head.loss_decode = nn.ModuleList([nn.CrossEntropyLoss()])
    model.head.loss_decode[0].use_sigmoid = True
    preflight.check_batches(loader(), model)
    model.head.loss_decode[0].use_sigmoid = False
    with pytest.raises(
        preflight.CannotTrain, match=r"head has out_channels=1, .* CrossEntropyLoss .*: take use_sigmoid"
    ):
        preflight.check_batches(loader(), model)
    model.head.loss_decode[0].use_sigmoid = True
    model.head.sampler = SimpleNamespace(thresh=None)  # the hardest by their loss
    preflight.check_batches(loader(), model)
    model.head.sampler.thresh = 0.7  # by a softmax
    with pytest.raises(preflight.CannotTrain, match=r"head has out_channels=1, .* with a thresh wants .*: leave"):
        preflight.check_batches(loader(), model)
    model.head.out_channels = 2
    preflight.check_batches(loader(), model)
