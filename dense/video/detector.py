"""Video anomaly detection as an MMEngine model: training on normal clips, and the scores of a video as it comes.

A network predicts the middle frames of clips (B, T, C, H, W) in [-1, 1] from those at both ends; `in_channels` and
`context` are its attributes. A frame that is badly predicted is anomalous.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor, BaseModel, is_model_wrapper
from torch import Tensor

from ...data import one_of, positive
from ...files import printable
from ...registry import HOOKS, MODELS
from ..batches import stacked
from .errors import losses, score_of
from .inference import AnomalyDetection
from .videos import Video
from .windows import Gathered, Windows

PERCENTILES = 1001  # of the scores of normal frames, in steps of a thousandth


@MODELS.register_module()
class VideoPreprocessor(BaseDataPreprocessor):
    """A collated batch -> the arguments of `VideoAnomalyDetector.forward`, on the model's device.

    Of clips it is dict(clip, name), float (T, C, H, W) each, stacked or a list. Of whole videos it is dict(video,
    transforms, name) and perhaps truth, each a list: their frames go to the model when they are read.

    Raises:
        ValueError: the batch is empty, its clips are of several shapes or no floats, or hold NaN (names the file).
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        names = data.get("name")
        if "video" in data:
            return dict(videos=data["video"], transforms=data["transforms"], truths=data.get("truth"), names=names)
        clips = stacked("clip", data["clip"], names, "B, T, C, H, W", "give PackClip a size", "PackClip")
        return dict(clips=clips.to(self.device, non_blocking=self._non_blocking), names=names)


@MODELS.register_module()
class VideoAnomalyDetector(BaseModel):
    """Training and scores of a network that predicts the middle frames of clips.

    Args:
        network: config of the network, such as dict(type='ConvTemporalVAD', in_channels=1).
        length: number of frames of a clip.
        step: distance of its frames in the video.
        error: what tells how badly a frame is predicted: 'psnr' (minus the PSNR), 'patch' (the largest error of a
            patch) or 'ssim' (1 - SSIM). How the authors score is not published; PSNR is the field's habit.
        patch: side of the patches of 'patch' in pixels; None for 16.
        overlap: whether a frame's score is the mean of its predictions at each place in the middle of a clip; else it
            is predicted once, in a third of the time with three middle frames. See `Windows`.
        ssim_weight: weight of 1 - SSIM in the loss; that of L1 is 1 - ssim_weight.

    `mode="loss"` gives {"loss_ssim", "loss_l1"}, weighted, and {"psnr"}, in dB; `mode="tensor"` the predicted frames;
    `mode="predict"` of clips for each {"loss", "scores" (middle,), "name"}, of videos for each {"scores" (T,) float64,
    one for each frame, NaN for those that no clip predicts, "truth", "name", "fps", "measure" (the `error`)}.

    Attributes:
        normal: percentiles of the scores of normal frames (1001,), which `NormalScores` measures; `threshold` reads
            them.
        normal_count: number of the frames that they are of; 0 before that.
    """

    task = AnomalyDetection

    def __init__(
        self,
        network: dict,
        length: int = 9,
        step: int = 3,
        error: str = "psnr",
        patch: int | None = None,
        overlap: bool = True,
        ssim_weight: float = 0.5,
        data_preprocessor=None,
        init_cfg=None,
    ):
        super().__init__(data_preprocessor or dict(type="VideoPreprocessor"), init_cfg)
        if not 0 <= ssim_weight <= 1:
            raise ValueError(f"VideoAnomalyDetector.ssim_weight is {ssim_weight!r}; it must lie in [0, 1].")
        self.network = MODELS.build(network)
        self.windows = Windows(length, step, self.network.context, overlap).check()
        self.error, self.score, self.ssim_weight = error, score_of(error, patch), ssim_weight
        self.normal: Tensor
        self.normal_count: Tensor
        self.register_buffer("normal", torch.zeros(PERCENTILES, dtype=torch.float64))
        self.register_buffer("normal_count", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_may_lack_normal)

    @property
    def checkpoint_rules(self) -> list:
        """The rules for the authors' files, which hold a network and no more."""
        return [*getattr(self.network, "checkpoint_rules", ()), (r"^(?!network\.|normal(_count)?$)", "network.")]

    def init_weights(self) -> None:
        """As the authors: Xavier's uniform initialization of all tensors with more than one dimension."""
        super().init_weights()
        for parameter in self.network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        clips: Tensor | None = None,
        videos: Sequence[Video] | None = None,
        transforms: Sequence[Callable] | None = None,
        truths: Sequence[np.ndarray | None] | None = None,
        names: Sequence[str] | None = None,
        mode: str = "tensor",
    ):
        one_of("mode", mode, ("loss", "predict", "tensor"))
        if videos is not None:
            if mode != "predict":
                raise ValueError(f"mode={mode!r} takes clips, and these are whole videos.")
            assert transforms is not None
            asked = zip(videos, transforms, truths or [None] * len(videos), names or [v.name for v in videos])
            return [self._watched(*one) for one in asked]
        if clips is None:
            raise ValueError("there are neither clips nor videos.")
        if clips.shape[1] != self.windows.length:
            raise ValueError(
                f"clips have {clips.shape[1]} frames, and the model has length={self.windows.length}: give data and "
                "model one number."
            )
        predicted = self.network(clips)
        if mode == "tensor":
            return predicted
        pair = predicted.float() / 2 + 0.5, self._middle(clips).float() / 2 + 0.5
        if mode == "loss":
            return self._losses(*pair)
        found = []
        for place in range(len(clips)):
            one = pair[0][place], pair[1][place]
            loss = float(torch.stack(list(self._weighted(*one).values())).detach().sum())
            name = names[place] if names else None
            found.append(dict(loss=loss, scores=self._finite(self.score(*one), str(name)), name=name))
        return found

    def _middle(self, clips: Tensor) -> Tensor:
        return clips[:, self.windows.context : clips.shape[1] - self.windows.context]

    def _weighted(self, predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
        weights = dict(ssim=self.ssim_weight, l1=1 - self.ssim_weight)
        return {f"loss_{name}": weights[name] * loss for name, loss in losses(predicted, truth).items()}

    def _losses(self, predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
        found = self._weighted(predicted, truth)
        total = torch.stack(list(found.values())).sum()
        if not torch.compiler.is_compiling() and total.device.type == "cpu" and not torch.isfinite(total):
            raise FloatingPointError(
                "the loss is NaN or infinite: the training has diverged (a lower learning rate, a warm-up or gradient "
                "clipping may help)."
            )
        with torch.no_grad():
            error = (predicted - truth).square().mean().clamp(min=1e-10)
        return found | dict(psnr=-10 * error.log10())

    @staticmethod
    def _finite(scores: Tensor, name: str) -> np.ndarray:
        found = scores.detach().double().cpu().numpy()
        if not np.isfinite(found).all():
            raise ValueError(f"the network gives NaN or infinite numbers for {printable(name)}.")
        return found

    # whole videos

    def watch(
        self, frames: Iterable[np.ndarray], transform: Callable[[dict], dict] | None = None, name: str = "the video"
    ) -> Iterator[tuple[int, float]]:
        """(number, score) of each frame of a stream, in order, as soon as all is known of it: `windows.delay` frames
        later. Memory is that of one clip, however long the stream is.

        Args:
            frames: uint8 (H, W, 3), red, green, blue; of a file, a camera, or made up.
            transform: what makes a clip of dict(frames), such as `PackClip(...)`; the model's own (`load`) unless
                given.
            name: what errors call the stream.

        Raises:
            ValueError: the network's scores are not finite, the frames do not fit it, or there are fewer than
                `windows.span`.
        """
        transform = transform or self.transforms
        windows, gathered = self.windows, Gathered(self.windows)
        kept: list[Tensor] = []  # the last `span` frames
        count = 0
        for count, frame in enumerate(frames, 1):
            packed = transform(dict(frames=[frame]))["clip"]
            kept.append(packed[0])
            if len(kept) < windows.span:
                continue
            start = count - windows.span
            if windows.starts_at(start):
                gathered.add(start, self._clip_scores(torch.stack(kept[:: windows.step])[None], name))
            kept.pop(0)
            yield from gathered.until(count - windows.delay)
        if count < windows.span:
            raise ValueError(
                f"{printable(name)} has {count} frames; clips of {windows.length} frames in steps of {windows.step} "
                f"take {windows.span}."
            )
        yield from gathered.until(count)

    @torch.no_grad()
    def _clip_scores(self, clip: Tensor, name: str) -> np.ndarray:
        """The scores (middle,) of one clip (1, T, C, H, W)."""
        device = next(self.network.parameters()).device
        clip = clip.to(device)
        predicted = self.network(clip).float() / 2 + 0.5
        return self._finite(self.score(predicted[0], self._middle(clip)[0].float() / 2 + 0.5), name)

    def _watched(self, video: Video, transform: Callable, truth: np.ndarray | None, name: str) -> dict[str, Any]:
        scores = np.array([score for _, score in self.watch(video, transform, name)])
        if truth is not None and len(truth) != len(scores):
            raise ValueError(f"{printable(name)} has {len(scores)} frames, and its truth {len(truth)}.")
        if not video.exact and video.count and video.count != len(scores):
            print_log(
                f"{printable(name)}: its header tells of {video.count} frames, and {len(scores)} could be decoded.",
                logger="current",
                level=logging.WARNING,
            )
        return dict(scores=scores, truth=truth, name=name, fps=video.fps, measure=self.error)

    def threshold(self, quantile: float = 0.995) -> float:
        """The score below which a share of the normal frames was.

        Args:
            quantile: the share, from 0 to 1.

        Raises:
            ValueError: the share is none, or the training did not measure normal frames.
        """
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile is {quantile!r}; it must lie in [0, 1].")
        if not self.normal_count:
            raise ValueError(
                "the model holds no scores of normal frames (its training had no hook dict(type='NormalScores')): "
                "give a threshold."
            )
        place = np.linspace(0, 1, PERCENTILES)
        return float(np.interp(quantile, place, self.normal.cpu().numpy()))

    def learn_normal(self, scores: np.ndarray) -> None:
        """Keep the percentiles of the scores (N,) of normal frames."""
        if not len(scores) or not np.isfinite(scores).all():
            raise ValueError("there are no scores of normal frames, or some are not finite.")
        found = np.quantile(scores, np.linspace(0, 1, PERCENTILES))
        self.normal.copy_(torch.from_numpy(found))
        self.normal_count.fill_(len(scores))


def _may_lack_normal(module: torch.nn.Module, incompatible: Any) -> None:
    """Files of a network alone, such as the authors', are whole without the scores of normal frames."""
    lacking = [name for name in incompatible.missing_keys if name in ("normal", "normal_count")]
    if lacking:
        print_log("the file holds no scores of normal frames: a threshold is to be given.", logger="current")
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in lacking]


@HOOKS.register_module()
class NormalScores(Hook):
    """After each epoch of a training, measures the scores of normal frames, so that a checkpoint holds the threshold
    above which frames are anomalous; see `VideoAnomalyDetector.threshold`. They are those of clips to train with, in
    inference mode. A score of a whole video is the mean of several predictions, and so spreads a little less.

    Args:
        clips: most clips that are looked at, spread evenly over the data.
    """

    priority = "NORMAL"  # before checkpoints are written

    def __init__(self, clips: int = 200):
        self.clips = positive("NormalScores.clips", clips)

    def after_train_epoch(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        dataset = runner.train_dataloader.dataset
        training = model.training
        model.eval()
        scores = []
        for item in np.unique(np.linspace(0, len(dataset) - 1, self.clips).astype(int)):
            sample: Mapping = dataset[int(item)]
            with torch.no_grad():
                (found,) = model.val_step(dict(clip=[sample["clip"]], name=[sample["name"]]))
            scores.append(found["scores"])
        model.learn_normal(np.concatenate(scores))
        model.train(training)
