"""The hook of TCPA's training: random picks while it begins, and what it refuses."""

import pytest
import torch

from attlas.backbones.classification.model import ImageClassifier
from attlas.backbones.classification.prompting import PromptHook
from attlas.registry import HOOKS

SMALL = dict(dim=48, depth=3, heads=4, img_size=64, class_pool=5, image_pool=6, class_topk=2, image_topk=3)


def test_the_hook():
    """Prints the counts, and has random prompts in the first epochs."""

    class Runner:
        model, epoch = ImageClassifier(dict(type="TCPA", **SMALL, num_classes=5)), 0

    hook, runner = HOOKS.build(dict(type="PromptHook", random_epochs=2)), Runner()
    assert isinstance(hook, PromptHook)
    hook.before_train(runner)
    seen = []
    for runner.epoch in range(4):
        hook.before_train_epoch(runner)
        seen.append(runner.model.backbone.random_picks)
    assert seen == [True, True, False, False]
    runner.model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Linear holds no TCPA"):
        hook.before_train(runner)


def test_bad_options():
    with pytest.raises(ValueError, match="random_epochs must be whole, at least 0, got -1"):
        PromptHook(-1)
