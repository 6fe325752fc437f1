"""Image classification as an MMEngine model: a backbone, a loss with mixed images, and the accuracy of the answers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn

from ...data import one_of
from ...files import check_out, replacing
from ...registry import METRICS, MODELS
from ..layers import cut_box, diversify, kept_share, mean_loss, noted, swap_box
from .inference import ImageClassification
from .metrics import agreement, confidence_gap, confused_pairs

# --- from a batch to the network's arguments -------------------------------------------------------------------------


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """A collated batch -> the arguments of `ImageClassifier.forward`, on the model's device.

    The batch is dict(image, label, index), each stacked (`default_collate`) or a list (`pseudo_collate`): normalised
    images (3, H, W) of one size, integer labels and, if it has them, the items' numbers in the data set. "token_labels"
    may stand beside them: for each image targets (num_classes, h, w), whose classes sum to 1, for a network that labels
    the pixels of its last map (VOLO). Images come out in the channels-last memory format, which the backbones are
    written for.

    Args:
        num_classes: labels must be below. They and token labels are looked at before they leave the CPU, where that
            costs little.
    """

    def __init__(self, num_classes: int | None = None, non_blocking: bool = True):
        super().__init__(non_blocking)
        self.num_classes = num_classes

    def forward(self, data: dict, training: bool = False) -> dict:
        images, labels, indices = data["image"], data.get("label"), data.get("index")
        if len(images) == 0:
            raise ValueError("the batch is empty: it must hold at least one image.")
        if not isinstance(images, Tensor):
            sizes = sorted({tuple(image.shape) for image in images})
            if len(sizes) != 1:
                raise ValueError(f"the images of a batch must have one size, got {sizes}: have a transform crop them.")
            images = torch.stack(list(images))
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(
                f"images must be floats of shape (B, channels, H, W), got {images.dtype} of {tuple(images.shape)}: "
                "end the transforms by dict(type='PackImage'), which normalises them."
            )
        if labels is not None:
            labels = torch.as_tensor(labels)
            if self.num_classes is not None and not labels.is_cuda:
                wrong = labels[(labels < 0) | (labels >= self.num_classes)]
                if len(wrong):
                    raise ValueError(
                        f"label {int(wrong[0])} is not of a class of the network, which has num_classes="
                        f"{self.num_classes} (0 to {self.num_classes - 1})."
                    )
            labels = labels.to(self.device, non_blocking=self._non_blocking)
        tokens = {}
        if data.get("token_labels") is not None:
            targets = _token_labels(data["token_labels"])
            tokens = dict(token_labels=targets.to(self.device, non_blocking=self._non_blocking))
        return dict(
            **tokens,
            images=images.to(self.device, non_blocking=self._non_blocking, memory_format=torch.channels_last),
            labels=labels,
            indices=None if indices is None else torch.as_tensor(indices).tolist(),
        )


def _token_labels(targets: Tensor | Sequence) -> Tensor:
    """The targets of a batch (B, num_classes, h, w), checked on the CPU as labels are."""
    if not isinstance(targets, Tensor):
        parts = [torch.as_tensor(part) for part in targets]
        sizes = sorted({tuple(part.shape) for part in parts})
        if len(sizes) != 1:
            raise ValueError(f"the token_labels of a batch must have one size, got {sizes}.")
        targets = torch.stack(parts)
    if targets.ndim != 4:
        raise ValueError(f"token_labels must be of shape (B, num_classes, h, w), got {tuple(targets.shape)}.")
    if not targets.is_cuda:
        sums = targets.sum(1, dtype=torch.float32)
        wrong = sums[~((sums - 1).abs() < 0.01)]  # NaN, too
        if len(wrong):
            raise ValueError(f"token_labels must sum to 1 over the classes of each pixel, got {wrong[0].item():.4g}.")
    return targets


# --- mixing images ---------------------------------------------------------------------------------------------------


def smooth_one_hot(labels: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Labels (B,) -> targets (B, num_classes) that sum to 1; a share `smoothing` of each is spread over all classes."""
    return F.one_hot(labels.long(), num_classes).float() * (1 - smoothing) + smoothing / num_classes


def mix(
    images: Tensor, targets: Tensor, mixup: float, cutmix: float, switch_probability: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al., ICLR 2018) or CutMix (Yun et al., ICCV 2019) of a batch with itself in reverse order.

    Args:
        images: (B, C, H, W).
        targets: (B, classes).
        mixup, cutmix: alpha of the Beta(alpha, alpha) of the share that an image keeps; 0 turns one of them off.
        switch_probability: of CutMix, where both are on.

    Returns:
        New images and targets of the same shapes. The random numbers are NumPy's global ones: the draw is one for the
        batch and is needed on the CPU, where a number from the device would have to be waited for.
    """
    cut = cutmix > 0 and (mixup == 0 or np.random.rand() < switch_probability)
    alpha = cutmix if cut else mixup
    kept = float(np.random.beta(alpha, alpha))
    if cut:
        height, width = images.shape[-2:]
        box = cut_box(height, width, 1 - kept)
        images, kept = swap_box(images, box), kept_share(height, width, box)  # the border may have cut the box
    else:
        images = torch.lerp(images.flip(0), images, kept)
    return images, torch.lerp(targets.flip(0), targets, kept)


AXES = {"horizontal": 3, "vertical": 2}  # of a batch, mirrored in a direction

# --- the model -------------------------------------------------------------------------------------------------------


@MODELS.register_module()
class PooledHead(nn.Module):
    """Logits of a feature pyramid: its last map, pooled over the places, normalised, through one linear layer.

    Args:
        num_classes, in_channels: of the logits and of the last map.
        pooling: 'mean' or 'max'.
        norm: a LayerNorm after the pooling.
        dropout: before the linear layer.
    """

    def __init__(
        self, num_classes: int, in_channels: int, pooling: str = "mean", norm: bool = True, dropout: float = 0.0
    ):
        super().__init__()
        self.pooling = one_of("PooledHead.pooling", pooling, ("mean", "max"))
        self.norm = nn.LayerNorm(in_channels) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_channels, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i) -> logits (B, num_classes)."""
        if isinstance(maps, Tensor):
            raise TypeError(
                f"PooledHead takes a tuple of maps, got a tensor {tuple(maps.shape)}: a network of Attlas gives maps "
                "if it is built with out_indices, such as backbone=dict(..., out_indices=(0, 1, 2, 3))."
            )
        places = maps[-1].flatten(2)
        return self.linear(self.dropout(self.norm(places.mean(-1) if self.pooling == "mean" else places.amax(-1))))


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """Training and prediction of an image network.

    Args:
        backbone: config of a module that maps images (B, 3, H, W) to logits (B, num_classes), such as
            dict(type='NamedBackbone', name='biformer_tiny', num_classes=14), or, with a `head`, to a tuple of maps.
        head: config of a module that maps a tuple of maps to logits, such as dict(type='PooledHead', num_classes=14).
            Its `in_channels` are `backbone.out_channels[-1]` if not given (mmdet's backbones do not say theirs).
        loss: 'cross_entropy', or 'bce': each class against the rest, averaged over classes (Wightman et al., "ResNet
            strikes back", 2021).
        class_weights: weight of each class in 'cross_entropy', which is then the weighted mean over the batch: for
            classes of unequal numbers or difficulty. None for equal ones.
        target_threshold: of 'bce', makes targets above it 1 and the others 0; None leaves them soft.
        label_smoothing: share of the targets that is spread over all classes.
        mixup, cutmix: the alphas of `mix`; 0 turns one of them off.
        mix_probability: share of the batches that are mixed.
        switch_probability: share of CutMix among them, where both are on.
        auxiliary_weight: of the loss of the second logits of a backbone that gives two in training (OverLoCK, VOLO).
        diversification: weight of the attention diversification loss of the backbone's attentions, 1 in the paper (see
            attlas/backbones/layers/diversification.py); 0 for none.
        diversification_threshold: least attention that counts there, in units of 1 / pixels.
        mirrored: directions in which prediction also looks at the mirrored image, 'horizontal', 'vertical' or both; the
            probabilities are averaged.

    Second logits may be of every pixel of a map, (B, num_classes, h, w). They learn from the batch's token labels, and
    without these from the label of the image. A third output of the backbone is the share that an image keeps where
    the backbone has mixed tokens; the targets of the first logits are mixed alike.

    `mode="loss"` gives {"loss", "accuracy"}, the accuracy in percent against the class that dominates a mixed image,
    {"auxiliary"}, the unweighted loss of second logits, {"diversification"}, that of the attentions, likewise, and what
    `feedback()` (with a loss that is added) and `log_vars()` of the backbone say; `mode="tensor"` the logits (B,
    num_classes); `mode="predict"` for each image {"log_probs" (num_classes,), "label", "index"}. The log-probabilities
    are of the softmax, or with 'bce' of each class by itself.
    """

    task = ImageClassification

    def __init__(
        self,
        backbone: dict,
        head: dict | None = None,
        loss: str = "cross_entropy",
        class_weights: Sequence[float] | None = None,
        target_threshold: float | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
        switch_probability: float = 0.5,
        auxiliary_weight: float = 0.4,
        diversification: float = 0.0,
        diversification_threshold: float = 2.0,
        mirrored: Sequence[str] = (),
        data_preprocessor=None,
        init_cfg=None,
    ):
        num_classes = (backbone if head is None else head).get("num_classes")
        if not num_classes:
            raise ValueError(
                "ImageClassifier: nothing says num_classes. Give backbone=dict(..., num_classes=...), or, for a "
                "backbone that gives maps, head=dict(type='PooledHead', num_classes=...)."
            )
        super().__init__(data_preprocessor or dict(type="ImagePreprocessor", num_classes=num_classes), init_cfg)
        one_of("ImageClassifier.loss", loss, ("cross_entropy", "bce"))
        if target_threshold is not None and loss != "bce":
            raise ValueError(f"ImageClassifier.target_threshold={target_threshold} belongs to loss='bce', not {loss!r}")
        if class_weights is not None:
            self._check_weights(class_weights, loss, num_classes)
        if isinstance(mirrored, str):
            raise ValueError(
                f"ImageClassifier.mirrored={mirrored!r} must be a tuple of directions, such as ({mirrored!r},)"
            )
        for direction in mirrored:
            one_of("ImageClassifier.mirrored", direction, tuple(AXES))
        for name, share in (
            ("target_threshold", target_threshold or 0.0),
            ("label_smoothing", label_smoothing),
            ("mix_probability", mix_probability),
            ("switch_probability", switch_probability),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"ImageClassifier.{name} must lie in [0, 1], got {share!r}")
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if alpha < 0:
                raise ValueError(f"ImageClassifier.{name} must be at least 0 (off), got {alpha!r}")
        for name, weight in (("auxiliary_weight", auxiliary_weight), ("diversification", diversification)):
            if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
                raise ValueError(f"ImageClassifier.{name} must be a number of at least 0, got {weight!r}")
        self.backbone = MODELS.build(backbone)
        if diversification:
            diversify(self.backbone, diversification_threshold)
        if head is not None and "in_channels" not in head:
            channels = getattr(self.backbone, "out_channels", None)
            if channels is None:
                raise ValueError(
                    f"ImageClassifier.head: {type(self.backbone).__name__} does not say its out_channels; "
                    "give head=dict(..., in_channels=...), the channels of its last map."
                )
            head = {**head, "in_channels": channels[-1]}
        self.head = None if head is None else MODELS.build(head)
        self.num_classes = num_classes
        self.loss, self.target_threshold, self.label_smoothing = loss, target_threshold, label_smoothing
        self.mixup, self.cutmix = mixup, cutmix
        self.mix_probability, self.switch_probability = mix_probability, switch_probability
        self.auxiliary_weight, self.mirrored = auxiliary_weight, tuple(mirrored)
        self.diversification = diversification
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    @staticmethod
    def _check_weights(weights: Sequence[float], loss: str, num_classes: int) -> None:
        if loss != "cross_entropy":
            raise ValueError(f"ImageClassifier.class_weights belong to loss='cross_entropy', not {loss!r}")
        if len(weights) != num_classes:
            raise ValueError(f"ImageClassifier.class_weights has {len(weights)} entries for {num_classes} classes")
        if not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"ImageClassifier.class_weights must be positive numbers, got {list(weights)}")

    @property
    def checkpoint_rules(self) -> list:
        """The rules for the authors' files, which hold a backbone and no more."""
        return [*getattr(self.backbone, "checkpoint_rules", ()), (r"^(?!backbone\.)", "backbone.")]

    @property
    def checkpoint_optional(self) -> list[str]:
        return [_inside(pattern) for pattern in getattr(self.backbone, "checkpoint_optional", ())]

    def classifier_names(self) -> list[str]:
        """Names of the layers that make logits."""
        if self.head is not None:
            return ["head"]
        return [f"backbone.{name}" for name in getattr(self.backbone, "classifier_names", list)()]

    def looks_like(self, state: Mapping[str, Tensor]) -> str:
        """Which variant a state dict is of, if it is of another one than the backbone (see `attlas.checkpoint`)."""
        looks_like = getattr(self.backbone, "looks_like", lambda state: "")
        return looks_like({name.removeprefix("backbone."): value for name, value in state.items()})

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        indices=None,
        mode: str = "tensor",
        token_labels: Tensor | None = None,
    ):
        if mode == "loss":
            if labels is None:
                raise ValueError("mode='loss' needs labels, got None")
            return self._losses(images, labels, token_labels)
        if mode == "tensor":
            return self._logits(images)[0]
        if mode == "predict":
            log_probs = self._log_probs(images)
            return [
                dict(log_probs=row, label=label, index=index)
                for row, label, index in zip(
                    log_probs,
                    [None] * len(images) if labels is None else labels,
                    [None] * len(images) if indices is None else indices,
                )
            ]
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    def _log_probs(self, images: Tensor) -> Tensor:
        """(B, num_classes); of the mean probabilities of the image and its mirrored copies."""
        views = [images, *(images.flip(AXES[direction]) for direction in self.mirrored)]
        logits = [self._logits(view)[0].float() for view in views]
        found = torch.stack([F.logsigmoid(x) if self.loss == "bce" else x.log_softmax(-1) for x in logits])
        return found[0] if len(found) == 1 else found.logsumexp(0) - math.log(len(found))

    def _logits(self, images: Tensor) -> tuple:
        """The logits, and behind them the auxiliary logits, and the share that an image keeps of them, that some
        backbones give in training."""
        found = self.backbone(images)
        if self.head is not None:
            return (self.head(found),)
        found = (found,) if isinstance(found, Tensor) else tuple(found)
        if found[0].ndim != 2:
            raise ValueError(
                f"{type(self.backbone).__name__} gives maps {[tuple(f.shape) for f in found]}, not logits: add "
                "head=dict(type='PooledHead', num_classes=...)."
            )
        return found

    def _losses(self, images: Tensor, labels: Tensor, token_labels: Tensor | None = None) -> dict[str, Tensor]:
        targets = own = smooth_one_hot(labels, self.num_classes, self.label_smoothing)
        if self.mixup or self.cutmix:
            if token_labels is not None:
                raise ValueError(
                    "token_labels are of the places of an image, which ImageClassifier.mixup and cutmix move: set both "
                    "to 0; mix_tokens of the backbone mixes what both belong to."
                )
            if np.random.rand() < self.mix_probability:
                images, targets = mix(images, targets, self.mixup, self.cutmix, self.switch_probability)
                own = targets
        with noted(self.backbone) as alike:
            logits, *auxiliary = self._logits(images)
        if len(auxiliary) > 1:
            targets = torch.lerp(targets.flip(0), targets, auxiliary[1])
        loss = self._loss(logits, targets)
        found = dict(
            loss=loss,
            accuracy=(logits.detach().argmax(-1) == targets.argmax(-1)).float().mean() * 100,
        )
        if token_labels is not None and not (auxiliary and auxiliary[0].ndim == 4):
            raise ValueError(
                f"the batch has token_labels, but {type(self.backbone).__name__} gives no logits of pixels in training"
            )
        if auxiliary:
            second = self._loss(auxiliary[0], self._second_targets(auxiliary[0], own, token_labels))
            # "auxiliary", for MMEngine adds up whatever has "loss" in its name
            found |= dict(loss=loss + self.auxiliary_weight * second, auxiliary=second.detach())
        if hasattr(self.backbone, "feedback"):
            said = self.backbone.feedback(logits, targets.argmax(-1))
            found |= said | dict(loss=found["loss"] + said.get("loss", 0))
        if self.diversification:
            third = mean_loss(alike)
            found |= dict(loss=found["loss"] + self.diversification * third, diversification=third.detach())
        found |= getattr(self.backbone, "log_vars", dict)()
        if not torch.compiler.is_compiling() and loss.device.type == "cpu" and not torch.isfinite(found["loss"]):
            raise FloatingPointError(
                "the loss is NaN or infinite: the images hold such values, or the training has diverged (a lower "
                "learning rate, a warm-up or gradient clipping may help)."
            )
        return found

    def _second_targets(self, logits: Tensor, targets: Tensor, token_labels: Tensor | None) -> Tensor:
        """Of second logits (B, classes), or of every pixel (B, classes, h, w)."""
        if token_labels is None:
            return targets if logits.ndim == 2 else targets[..., None, None].expand_as(logits)
        if token_labels.shape != logits.shape:
            raise ValueError(
                f"token_labels must have the shape of the logits of pixels, {tuple(logits.shape)}, got "
                f"{tuple(token_labels.shape)}: one target for each pixel of the last map of the backbone."
            )
        return token_labels.float() * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss == "cross_entropy":
            if self.class_weights is None:
                return F.cross_entropy(logits.float(), targets)
            losses = F.cross_entropy(logits.float(), targets, self.class_weights, reduction="none")
            return losses.sum() / (targets.movedim(1, -1) @ self.class_weights).sum()
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).float()
        return F.binary_cross_entropy_with_logits(logits.float(), targets)


def _inside(pattern: str) -> str:
    """A regular expression over the backbone's names as one over the model's."""
    return rf"^backbone\.{pattern[1:]}" if pattern.startswith("^") else pattern


# --- the metric ------------------------------------------------------------------------------------------------------


@METRICS.register_module()
class ImageAccuracy(BaseMetric):
    """Accuracy in percent: `top1`, `top5` (of more than five classes), and `mAcc`, the mean over the classes seen. With
    `details`, what `agreement` (Cohen's kappa, ...) and `confidence_gap` say besides; the classes that
    are confused most often go to the logger.

    Takes samples dict(log_probs (C,), label, index). Of equal log-probabilities the lower class comes first. The table
    of class accuracies goes to MMEngine's logger, if there are at most 100. Samples from several processes are gathered
    by MMEngine, which drops the repetitions that fill up the last batch.

    Args:
        out_file: an npz for `classes`, `labels` (M,), `indices` (M,), `log_probs` (M, C) and `confusion` (C, C; rows:
            truth, columns: prediction).
        overwrite: replace an `out_file` of an earlier run. Otherwise it is a FileExistsError, raised at once.
        details: whether to say more than accuracies; see above.
    """

    default_prefix = ""  # not None, which MMEngine would warn of
    out_suffix = ".npz"

    def __init__(self, out_file: str | Path | None = None, overwrite: bool = False, details: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.details = details
        self.out_file = check_out(out_file, (self.out_suffix,), overwrite) if out_file else None

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        log_probs = torch.stack([sample["log_probs"] for sample in data_samples]).float()
        labels = torch.as_tensor([int(sample["label"]) for sample in data_samples], device=log_probs.device)
        indices = [int(sample["index"]) for sample in data_samples]
        num_classes = log_probs.shape[1]
        finite = torch.isfinite(log_probs).all(1).tolist()
        if not all(finite):
            raise ValueError(
                f"log_probs of image {indices[finite.index(False)]} are NaN or infinite: the network has diverged (a "
                "lower learning rate, a warm-up or gradient clipping may help)."
            )
        if labels.max() >= num_classes:
            raise ValueError(f"the network gives {num_classes} log-probabilities; a label is {int(labels.max())}.")
        own = log_probs.gather(1, labels[:, None])
        before = torch.arange(num_classes, device=labels.device) < labels[:, None]
        ranks = ((log_probs > own) | ((log_probs == own) & before)).sum(1).tolist()
        predictions = log_probs.argmax(1).tolist()
        rows = log_probs.cpu().numpy() if self.out_file else [None] * len(indices)  # of ImageNet 200 MB
        sure = log_probs.amax(1).exp().tolist()
        self.results += zip(indices, labels.tolist(), predictions, ranks, [num_classes] * len(indices), sure, rows)

    def compute_metrics(self, results: list) -> dict[str, float]:
        *columns, rows = zip(*results)
        indices, labels, predictions, ranks, (num_classes, *_), sure = map(np.array, columns)
        classes = (self.dataset_meta or {}).get("classes") or [str(c) for c in range(num_classes)]
        if len(classes) != num_classes:
            raise ValueError(f"the network has {num_classes} classes, the data set {len(classes)}.")
        count = np.bincount(labels, minlength=num_classes)
        right = np.bincount(labels[ranks == 0], minlength=num_classes)
        metrics = dict(top1=float(100 * (ranks == 0).mean()))
        if num_classes > 5:
            metrics["top5"] = float(100 * (ranks < 5).mean())
        metrics["mAcc"] = float(100 * (right[count > 0] / count[count > 0]).mean())
        confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(confusion, (labels, predictions), 1)
        if self.details:
            metrics |= agreement(confusion) | confidence_gap(sure, ranks == 0)
            pairs = [f"  {truth} taken for {other}: {n}" for truth, other, n in confused_pairs(confusion, classes)]
            print_log("\n".join(["confused most often", *(pairs or ["  none"])]), logger="current")
        if num_classes <= 100:  # more are no table to read
            width = max(map(len, classes))
            lines = [
                f"  {name:<{width}}  {total:>6}  {f'{100 * hits / total:.1f}' if total else '-':>6}"
                for name, total, hits in zip(classes, count, right)
            ]
            print_log("\n".join([f"class accuracy, %\n  {'class':<{width}}  images  top1", *lines]), logger="current")
        if self.out_file:
            with replacing(self.out_file) as temporary:
                np.savez(
                    temporary,
                    classes=np.array(classes),
                    labels=labels,
                    indices=indices,
                    log_probs=np.stack(rows),
                    confusion=confusion,
                )
            print_log(f"confusion matrix and log-probabilities: {self.out_file}", logger="current")
        return metrics
