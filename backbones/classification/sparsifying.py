"""Training of Sparsifiner from a dense network, in two phases: first its predictors, then all else.

Source: arXiv 2303.13755; https://github.com/lim142857/Sparsifiner (MIT).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...data import one_of
from ...registry import MODELS
from ..layers import Pruned
from ..skeletons.isotropic import Isotropic
from .model import ImageClassifier, mix, smooth_one_hot

PHASES = ("predictor", "backbone")


@contextmanager
def inputs_of(blocks: nn.ModuleList) -> Iterator[list[tuple]]:
    """A list that gets the inputs of the blocks, in their order, while a network runs."""
    found: list[tuple] = []
    handles = [block.register_forward_pre_hook(lambda _, inputs: found.append(inputs)) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@MODELS.register_module()
class SparsifinerDistiller(ImageClassifier):
    """An `ImageClassifier` on a `Sparsifiner` that learns from a dense network.

    - Phase "predictor": the predictors learn, and nothing else. The loss is that between their scores (all
      coefficients, the signed basis) and the attention of the dense network: squared differences, summed, the mean of
      the blocks. Attention is dense meanwhile, and no pixels are dropped.
    - Phase "backbone": all but the predictors learn. The loss is that of the labels, the divergence of the dense
      network's probabilities from those of the network, and the mean square of the differences of their last maps, of
      the pixels that are left. Of two networks that label every pixel (`SparsifinerLVViT`), the logits of pixels stand
      for the maps. Where the backbone alone does, or `map_weight` is 0, these learn from the labels, as in
      `ImageClassifier`.

    Each phase is a training of its own; the second begins with the file of the first (`load_from`).

    Args:
        backbone: config of a Sparsifiner with a head.
        teacher: config of a plain network with as many blocks and the same patches, such as dict(type='NamedBackbone',
            name='deit_small', num_classes=1000, pretrained='deit_small_patch16_224-cd65a155.pth'). It leaves out no
            pixels and no keys, as IA-RED2 and a sparse Sparsifiner do. Its heads and tokens are those of the backbone
            in the phase "predictor", its classes and channels in the phase "backbone". In the phase "predictor" None is
            the backbone itself, whose attention is dense then.
        phase: "predictor" or "backbone".
        attention_weight: of the loss between scores and attention, in the phase "predictor".
        logits_weight, map_weight: of the second and the third loss of the phase "backbone".
        self_weight: of a further loss of the phase "backbone", that between the scores and the network's own dense
            attention, among the pixels that are left; the predictors learn there, too, unless it is 0. The authors'
            option has 0.002.
        basis_weight: of the sum of the absolute values of all Q, wherever the predictors learn.
        **classifier: as of `ImageClassifier`.

    The teacher is no part of checkpoints. The authors' ratio loss is left out: it is of masks, which have no gradient.
    """

    def __init__(
        self,
        backbone: dict,
        teacher: dict | None = None,
        phase: str = "backbone",
        attention_weight: float = 0.01,
        logits_weight: float = 0.5,
        map_weight: float = 0.5,
        self_weight: float = 0.0,
        basis_weight: float = 0.0,
        **classifier,
    ):
        one_of("SparsifinerDistiller.phase", phase, PHASES)
        weights = dict(
            attention_weight=attention_weight,
            logits_weight=logits_weight,
            map_weight=map_weight,
            self_weight=self_weight,
            basis_weight=basis_weight,
        )
        for name, weight in weights.items():
            if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
                raise ValueError(f"SparsifinerDistiller.{name} must be a number of at least 0, got {weight!r}")
        if teacher is None and phase == "backbone" and (logits_weight or map_weight):
            raise ValueError(
                "SparsifinerDistiller.teacher must be the config of a dense network in phase='backbone', got None: "
                "set logits_weight and map_weight to 0 to train without one"
            )
        super().__init__(backbone, **classifier)
        self.weights, self.phase = weights, phase
        network = self.backbone
        mixers = [block.mixer for block in getattr(network, "blocks", [])]
        if not mixers or not all(hasattr(mixer, "predictor") for mixer in mixers):
            raise ValueError(f"SparsifinerDistiller.backbone must be a Sparsifiner, got {type(network).__name__}")
        for mixer in mixers:
            mixer.reconstruct = phase == "predictor"
        self.mixers = mixers
        learning = phase == "predictor" or self_weight > 0
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(learning if ".predictor." in name else phase == "backbone")
        # in a list, so that it is neither trained, nor saved, nor moved to half precision
        self._teacher = [] if teacher is None else [MODELS.build(teacher).eval().requires_grad_(False)]
        if network.num_classes is None:
            raise ValueError("SparsifinerDistiller.backbone must have a head, got num_classes=None")
        for dense in self._teacher:
            self._check_teacher(dense)

    def _check_teacher(self, teacher: Any) -> None:
        """Raises ValueError for a network that has not what this phase compares."""
        network: Any = self.backbone
        blocks = len(getattr(teacher, "blocks", []))
        if not isinstance(teacher, Isotropic) or blocks != len(self.mixers):
            raise ValueError(
                f"SparsifinerDistiller.teacher must have the {len(self.mixers)} blocks of the backbone, got "
                f"{type(teacher).__name__} with {blocks}"
            )
        if teacher.leaves_out:
            raise ValueError(
                f"SparsifinerDistiller.teacher must be a dense network, got {type(teacher).__name__}, which leaves out "
                f"{teacher.leaves_out}"
            )
        if self.phase == "predictor" and not all(hasattr(block.mixer, "weights") for block in teacher.blocks):
            raise ValueError(
                f"SparsifinerDistiller.teacher must have attention in all blocks in phase='predictor', got "
                f"{type(teacher).__name__} with {type(teacher.blocks[0].mixer).__name__}"
            )
        compared: dict[str, Callable[[Any], Any]] = {}
        if self.phase == "predictor":
            compared["heads"] = lambda of: [getattr(block.mixer, "heads", None) for block in of.blocks]
            compared["class and register tokens"] = lambda of: (of.cls_token is not None) + of.registers
        elif self.weights["logits_weight"] or self.weights["map_weight"]:
            compared["num_classes"] = lambda of: of.num_classes
        if self.phase == "predictor" or self.weights["map_weight"]:
            compared["patch_size"] = lambda of: of.patch_size
        if self.phase == "backbone" and self.weights["map_weight"] and not self._of_pixels(teacher):
            compared["channels"] = lambda of: of.channels[-1]
        for name, value in compared.items():
            if value(teacher) != value(network):
                raise ValueError(
                    f"SparsifinerDistiller.teacher: its {name} must be {value(network)} as in the backbone, got "
                    f"{value(teacher)}"
                )

    def _of_pixels(self, teacher: Any) -> bool:
        """Whether both networks label every pixel."""
        return all(getattr(network.head, "auxiliary", None) is not None for network in (self.backbone, teacher))

    def init_weights(self) -> None:
        super().init_weights()
        for teacher in self._teacher:
            teacher.init_weights()

    def teacher(self) -> Any:
        """The dense network, on the device of the other."""
        return self._teacher[0].to(next(self.backbone.parameters()).device)

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        indices=None,
        mode: str = "tensor",
        token_labels: Tensor | None = None,
    ):
        if mode != "loss":
            return super().forward(images, labels, indices, mode)
        if token_labels is not None:
            raise ValueError("SparsifinerDistiller learns from no token_labels, and the batch has some")
        if labels is None:
            raise ValueError("mode='loss' needs labels, got None")
        targets = smooth_one_hot(labels, self.num_classes, self.label_smoothing)
        if (self.mixup or self.cutmix) and np.random.rand() < self.mix_probability:
            images, targets = mix(images, targets, self.mixup, self.cutmix, self.switch_probability)
        found = self._of_predictors(images) if self.phase == "predictor" else self._of_backbone(images, targets)
        if self.weights["basis_weight"]:
            tables = [mixer.predictor.restore for mixer in self.mixers if mixer.predictor.restore is not None]
            tables = tables or [mixer.predictor.reduce for mixer in self.mixers]
            found["loss"] = found["loss"] + self.weights["basis_weight"] * sum(table.abs().sum() for table in tables)
        if not torch.compiler.is_compiling() and images.device.type == "cpu" and not torch.isfinite(found["loss"]):
            raise FloatingPointError(
                "the loss is NaN or infinite: the training has diverged (try a lower learning rate)"
            )
        return found

    def _of_predictors(self, images: Tensor) -> dict[str, Tensor]:
        network: Any = self.backbone
        with torch.no_grad():
            with inputs_of(network.blocks) as given:
                network.forward_features(images)
            dense, seen = network, given
            if self._teacher:
                dense = self.teacher()
                with inputs_of(dense.blocks) as seen:
                    dense.forward_features(images)

        def of_block(block: Any, x: Tensor, tokens: Tensor, other: Any, its_x: Tensor, its_tokens: Tensor):
            with torch.no_grad():
                attention = other.mixer.weights(other.norm1(its_x), other.norm1(its_tokens))
            scores = block.mixer.scores(block.norm1(x), block.norm1(tokens), signed=True)
            return F.mse_loss(scores.float(), attention.float(), reduction="sum")

        # all pairs of pixels of one block at a time
        losses = [
            checkpoint(of_block, block, *mine[:2], other, *its[:2], use_reentrant=False)
            for block, mine, other, its in zip(network.blocks, given, dense.blocks, seen)
        ]
        attention = torch.stack(losses).mean()
        return dict(loss=self.weights["attention_weight"] * attention, attention=attention.detach())

    def _of_backbone(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        network: Any = self.backbone
        weights, notes = self.weights, dict[str, Any]()
        with inputs_of(network.blocks) as given:
            features = network.forward_features(images, notes)
        found_logits = network.forward_head(features, notes=notes)
        logits, *of_pixels = found_logits if isinstance(found_logits, tuple) else (found_logits,)
        loss = self._loss(logits, targets)
        right = (logits.detach().argmax(-1) == targets.argmax(-1)).float().mean() * 100
        found = dict(labels=loss.detach(), accuracy=right)
        both = False
        if self._teacher and (weights["logits_weight"] or weights["map_weight"]):
            dense, its_notes = self.teacher(), dict[str, Any]()
            with torch.no_grad():
                rows = dense.forward_features(images, its_notes)
                expected = dense.forward_head(rows).float()
            divergence = F.kl_div(
                logits.float().log_softmax(-1), expected.log_softmax(-1), reduction="batchmean", log_target=True
            )
            loss = loss + weights["logits_weight"] * divergence
            found |= dict(divergence=divergence.detach())
            if weights["map_weight"]:
                mine, its = (
                    x[:, 0 if of["tokens"] is None else of["tokens"].shape[1] :]
                    for x, of in ((features, notes), (rows, its_notes))
                )
                both = bool(of_pixels) and self._of_pixels(dense)
                if both:
                    mine = of_pixels[0].flatten(2).mT
                    with torch.no_grad():
                        its = dense.head.auxiliary.fc(its)
                if "pruned" in notes:
                    its = its.gather(1, notes["pruned"].places[..., None].expand(-1, -1, its.shape[2]))
                maps = F.mse_loss(mine.float(), its.float())
                loss = loss + weights["map_weight"] * maps
                found |= dict(maps=maps.detach())
        if of_pixels and not both:
            second = self._loss(of_pixels[0], self._second_targets(of_pixels[0], targets, None))
            loss = loss + self.auxiliary_weight * second
            found |= dict(auxiliary=second.detach())
        if weights["self_weight"]:

            def of_block(block: Any, x: Tensor, tokens: Tensor, pruned: Pruned | None) -> Tensor:
                x, tokens = block.norm1(x), block.norm1(tokens)
                scores = block.mixer.scores(x, tokens, pruned=pruned)
                return F.mse_loss(scores.float(), block.mixer.weights(x, tokens).float(), reduction="sum")

            losses = [
                checkpoint(of_block, block, *mine, use_reentrant=False) for block, mine in zip(network.blocks, given)
            ]
            own = torch.stack(losses).mean()
            loss = loss + weights["self_weight"] * own
            found |= dict(attention=own.detach())
        return dict(loss=loss, **found)
