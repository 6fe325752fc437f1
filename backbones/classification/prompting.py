"""What the training of `TCPA` needs beside a loss: random picks in the first epochs, and a word on what learns."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper

from ...registry import HOOKS
from ..skeletons.options import check_whole
from ..tcpa import TCPA


@HOOKS.register_module()
class PromptHook(Hook):
    """Says how many parameters of a `TCPA` learn, and lets it pick random prompts in the first epochs.

    Args:
        random_epochs: number of epochs with random prompts.
    """

    def __init__(self, random_epochs: int = 10):
        check_whole("random_epochs", [random_epochs], 0)
        self.random_epochs = random_epochs

    @staticmethod
    def _networks(runner) -> list[TCPA]:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        networks = [part for part in model.modules() if isinstance(part, TCPA)]
        if not networks:
            raise ValueError(f"PromptHook: {type(model).__name__} holds no TCPA, whose prompts it is for")
        return networks

    def before_train(self, runner) -> None:
        for network in self._networks(runner):
            counts = network.counts()
            frozen = counts.pop("frozen")
            learning = ", ".join(f"{count:,} of {part}" for part, count in counts.items() if count)
            print_log(f"{sum(counts.values()):,} parameters learn ({learning}); {frozen:,} are frozen", "current")

    def before_train_epoch(self, runner) -> None:
        for network in self._networks(runner):
            network.random_picks = runner.epoch < self.random_epochs
