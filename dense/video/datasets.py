"""Videos to learn what is normal from, and videos with the truth about each frame to test on.

To train with, an item is a clip: dict(frames, name, index) before its `transforms`, `frames` a list of uint8 (H, W, 3),
red, green, blue; `PackClip` makes the tensor of it. To test on, an item is a whole video, dict(video, truth, name,
index): it is not read before the model asks for its frames, one after the other, so that memory does not grow with it.
The transforms go with it, for the frames.
"""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ...data import Items, existing_root, folders, one_of, positive
from ...files import printable
from ...images import read_image
from ...registry import DATASETS, TRANSFORMS
from .room_walks import walk_folder
from .videos import VIDEOS, Video, is_frames, natural
from .windows import Windows

SPLITS = ("train", "val", "test")

# --- truth -----------------------------------------------------------------------------------------------------------


def truth_of_masks(folder: Path) -> np.ndarray:
    """Whether each frame is anomalous, booleans (T,): whether its mask, a picture in the folder, has a pixel that is
    not 0."""
    names = sorted((p for p in folder.iterdir() if p.suffix.lower() in (".bmp", ".png") and p.name[0] != "."), key=_key)
    if not names:
        raise FileNotFoundError(f"{printable(folder)} holds no masks (.bmp, .png).")
    return np.array([bool(read_image(path).any()) for path in names])


def truth_of_array(path: Path) -> np.ndarray:
    """As `truth_of_masks`, of a NumPy file: of frames (T,), or of pixels (T, H, W). Nothing in it is unpickled."""
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{printable(path)} is no NumPy array: {printable(error)}") from error
    if not isinstance(found, np.ndarray) or found.ndim not in (1, 3) or found.dtype.kind not in "biuf":
        raise ValueError(f"{printable(path)} must hold numbers (T,) of frames or (T, H, W) of pixels.")
    return _anomalous(found, path)


def truth_of_mat(path: Path) -> np.ndarray:
    """As `truth_of_masks`, of a MATLAB file up to version 7 with `volLabel`: a cell with a mask for each frame, or
    masks (H, W, T)."""
    from scipy.io import loadmat  # here, because Avenue alone needs it

    try:
        volume = loadmat(path, variable_names=["volLabel"]).get("volLabel")
    except NotImplementedError:
        raise ValueError(
            f"{printable(path)} is of MATLAB 7.3: in MATLAB, save('-v7', ...) makes one to read."
        ) from None
    except Exception as error:  # of bytes that make no sense, the reader may fail in any way
        raise ValueError(f"{printable(path)} is no MATLAB file: {printable(error)}") from error
    if not isinstance(volume, np.ndarray) or not volume.size:
        raise ValueError(f"{printable(path)} has no volLabel.")
    if volume.dtype == object:
        return np.array([bool(np.any(np.asarray(mask))) for mask in volume.ravel()])
    if volume.ndim != 3 or volume.dtype.kind not in "biuf":
        raise ValueError(f"{printable(path)}: volLabel must be a cell of masks or (H, W, T), not {volume.shape}.")
    return _anomalous(np.moveaxis(volume, 2, 0), path)


def _anomalous(found: np.ndarray, path: Path) -> np.ndarray:
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise ValueError(f"{printable(path)} holds NaN or infinite numbers.")
    return (found != 0).reshape(len(found), -1).any(1)


def ranges_of_m(path: Path) -> list[list[tuple[int, int]]]:
    """The ranges of anomalous frames, from 1 and with both ends, of each video in the list of UCSD: lines such as
    TestVideoFile{end+1}.gt_frame = [61:180]."""
    found = []
    for inside in re.findall(r"gt_frame\s*=\s*\[([^\]]*)\]", re.sub(r"%.*", "", path.read_text(errors="replace"))):
        ranges = []
        for part in re.split(r"[,\s]+", inside.strip()):
            match = re.fullmatch(r"(\d+)(?::(\d+))?", part)
            if match is None or int(match[1]) < 1:
                raise ValueError(f"{printable(path)}: {printable(part)!r} is no range of frames, such as 61:180.")
            ranges.append((int(match[1]), int(match[2] or match[1])))
        found.append(ranges)
    return found


def _key(path: Path) -> list:
    return natural(path.name)


def videos_below(dataset: str, folder: Path) -> list[Path]:
    """The videos of a folder, in order: files, and folders of frames.

    Raises:
        FileNotFoundError: there is no such folder, or no video in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{dataset}: there is no folder {printable(folder)}.")
    files = [p for p in folder.iterdir() if p.suffix.lower() in VIDEOS and p.name[0] != "." and p.is_file()]
    found = sorted([*files, *(folder / name for name in folders(folder) if is_frames(folder / name))], key=_key)
    if not found:
        raise FileNotFoundError(f"{dataset}: {printable(folder)} holds no videos, neither files nor folders of frames.")
    return found


# --- the base --------------------------------------------------------------------------------------------------------


class AnomalyVideos(Items):
    """Base of the data sets of video anomaly detection (see `Items`): a layout says where videos and truths lie.

    Args:
        root: folder of the data set.
        split: 'train' or 'val', of clips of normal videos, or 'test', of whole videos.
        length, step: as of `attlas.dense.video.windows.Windows`. At test the model has its own.
        stride: distance of the starts of two clips of a video.
        val_share: share of the clips that are 'val', drawn by `seed`; clips beside them share frames with them.
        transforms, seed: as of `Items`.

    Raises:
        FileNotFoundError: a folder or a truth is not there.
        ValueError: a video is too short for a clip, or has another number of frames than its truth. Of files this is
            seen when they are read, and only there certain.
    """

    layout: str  # what lies in the root, for the error

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        length: int = 9,
        step: int = 3,
        stride: int = 1,
        val_share: float = 0.1,
        transforms=(),
        seed: int = 0,
    ):
        kind = type(self).__name__
        one_of(f"{kind}.split", split, SPLITS)
        top = existing_root(kind, root, self.layout)
        paths = self.paths(top, split)
        truths = [self.truth(top, number, path) for number, path in enumerate(paths)] if split == "test" else []
        self.windows = Windows(positive(f"{kind}.length", length), positive(f"{kind}.step", step), 0)
        if not 0 <= val_share < 1:
            raise ValueError(f"{kind}.val_share is {val_share!r}; it must lie in [0, 1).")
        positive(f"{kind}.stride", stride)
        self.videos = [Video(path) for path in paths]
        self.truths = truths
        for video, truth in zip(self.videos, self.truths):
            if video.exact and video.count != len(truth):
                raise ValueError(
                    f"{kind}: {printable(video.name)} has {video.count} frames, and its truth {len(truth)}."
                )
        self.clips: np.ndarray | None = None  # (N, 2): video, start
        count = len(self.videos)
        if split != "test":
            starts = [range(0, video.count - self.windows.span + 1, stride) for video in self.videos]
            for video, found in zip(self.videos, starts):
                if not len(found):
                    raise ValueError(
                        f"{kind}: {printable(video.name)} has {video.count} frames, and a clip of {length} frames "
                        f"in steps of {step} takes {self.windows.span}."
                    )
            clips = np.array([(number, start) for number, found in enumerate(starts) for start in found])
            kept = round(val_share * len(clips))
            order = np.random.default_rng(seed).permutation(len(clips))
            chosen = order[:kept] if split == "val" else order[kept:]
            self.clips = clips[np.sort(chosen)]
            count = len(self.clips)
        super().__init__(split, count, (), transforms, seed)

    @abstractmethod
    def paths(self, top: Path, split: str) -> list[Path]:
        """The videos of a split below the root."""

    @abstractmethod
    def truth(self, top: Path, number: int, path: Path) -> np.ndarray:
        """Which frames of a video of the test split, the `number`th of `paths`, are anomalous: bool (T,)."""

    def name(self, item: int) -> str:
        return self.videos[item if self.clips is None else self.clips[item][0]].name

    def get(self, item: int) -> dict[str, Any]:
        if self.clips is None:
            return dict(video=self.videos[item], truth=self.truths[item], name=self.name(item), index=item)
        number, start = map(int, self.clips[item])
        frames = self.videos[number].clip(start, self.windows.length, self.windows.step)
        return dict(frames=frames, name=f"{self.name(item)}, frame {start}", index=item)

    def draw(self, epoch: int, item: int) -> Any:
        if self.clips is None:  # its frames are transformed when they are read
            return self.get(item) | dict(transforms=self.transform)
        return super().draw(epoch, item)


@TRANSFORMS.register_module()
class PackClip:
    """Frames uint8 (H, W, 3) of a sample, `frames`, to one tensor `clip` float32 (T, C, height, width) in [-1, 1]:
    values / 127.5 - 1.

    Args:
        size: height and width; frames are resized to it, averaging pixels where they shrink (the release says nothing
            of how). None for no resizing.
        grey: whether the one channel is luma of BT.601; else the three are red, green, blue.
    """

    def __init__(self, size: Sequence[int] | None = None, grey: bool = False):
        if size is not None and (isinstance(size, (int, str)) or len(size) != 2):
            raise ValueError(f"PackClip.size is {size!r}; it must be (height, width).")
        self.size = None if size is None else tuple(positive("PackClip.size", side) for side in size)
        self.grey = grey

    def __call__(self, data: Mapping) -> dict:
        packed = []
        for frame in data["frames"]:
            if self.grey:
                frame = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            if self.size is not None and frame.shape[:2] != self.size:
                frame = cv2.resize(frame, self.size[::-1], interpolation=cv2.INTER_AREA)
            packed.append(np.atleast_3d(frame))
        clip = torch.from_numpy(np.stack(packed)).permute(0, 3, 1, 2).float() / 127.5 - 1
        kept = {key: value for key, value in data.items() if key != "frames"}
        return {**kept, "clip": clip}


# --- published layouts -----------------------------------------------------------------------------------------------


@DATASETS.register_module()
class UCSDPed(AnomalyVideos):
    """UCSD Ped1 or Ped2: `Train/Train001/001.tif`, `Test/Test001/001.tif`, and the truth as masks,
    `Test/Test001_gt/001.bmp`, or, of videos without, in the list of ranges `Test/UCSDped2.m`.

    Args:
        root: folder UCSDped1 or UCSDped2.
        split, length, step, stride, val_share, transforms, seed: as of `AnomalyVideos`.

    Raises:
        FileNotFoundError: a folder or a truth is not there.
        ValueError: as of `AnomalyVideos`.
    """

    layout = "Train/Train001/001.tif, Test/Test001/001.tif."

    def paths(self, top, split):
        part = top / ("Test" if split == "test" else "Train")
        return [path for path in videos_below("UCSDPed", part) if not path.name.endswith("_gt")]

    def truth(self, top, number, path):
        masks = path.with_name(f"{path.name}_gt")
        if masks.is_dir():
            return truth_of_masks(masks)
        lists = sorted(path.parent.glob("[!.]*.m"))
        ranges = ranges_of_m(lists[0]) if len(lists) == 1 else []
        if number >= len(ranges):
            raise FileNotFoundError(
                f"UCSDPed: there is no truth of {printable(path)}: neither masks, {masks.name}/*.bmp, nor an entry "
                f"{number + 1} of one list *.m beside it."
            )
        truth = np.zeros(Video(path).count, bool)
        for first, last in ranges[number]:
            if last > len(truth) or last < first:
                raise ValueError(
                    f"{printable(lists[0])}: {first}:{last} is no range of the {len(truth)} frames of {path.name}."
                )
            truth[first - 1 : last] = True
        return truth


@DATASETS.register_module()
class Avenue(AnomalyVideos):
    """CUHK Avenue: `training_videos/01.avi`, `testing_videos/01.avi`, and the truth as volumes of masks,
    `ground_truth_demo/testing_label_mask/1_label.mat` or `testing_label_mask/1_label.mat`.

    Arguments and errors as of `UCSDPed`.
    """

    layout = "training_videos/01.avi, testing_videos/01.avi."

    def paths(self, top, split):
        return videos_below("Avenue", top / ("testing_videos" if split == "test" else "training_videos"))

    def truth(self, top, number, path):
        name = path.stem.lstrip("0") or "0"
        places = [top / place / "testing_label_mask" for place in ("ground_truth_demo", ".")]
        found = [place / f"{name}_label.mat" for place in places if (place / f"{name}_label.mat").is_file()]
        if not found:
            raise FileNotFoundError(
                f"Avenue: there is no truth of {printable(path)}: {printable(places[0] / f'{name}_label.mat')}."
            )
        return truth_of_mat(found[0])


@DATASETS.register_module()
class ShanghaiTech(AnomalyVideos):
    """ShanghaiTech Campus, and whatever lies as it does: `training/videos/01_001.avi` (or frames, `training/frames/01/
    000.jpg`), `testing/frames/01_0014/000.jpg` (or `testing/videos`), and the truth, `testing/test_frame_mask/
    01_0014.npy` (T,) or `testing/test_pixel_mask/01_0014.npy` (T, H, W).

    Arguments and errors as of `UCSDPed`.
    """

    layout = "training/videos, testing/frames, testing/test_frame_mask."

    def paths(self, top, split):
        part = top / ("testing" if split == "test" else "training")
        order = ("frames", "videos") if split == "test" else ("videos", "frames")
        inside = next((part / name for name in order if (part / name).is_dir()), part / order[0])
        return videos_below(type(self).__name__, inside)

    def truth(self, top, number, path):
        name = path.name if path.is_dir() else path.stem
        files = [top / "testing" / folder / f"{name}.npy" for folder in ("test_frame_mask", "test_pixel_mask")]
        found = [file for file in files if file.is_file()]
        if not found:
            raise FileNotFoundError(
                f"{type(self).__name__}: there is no truth of {printable(path)}: {printable(files[0])}."
            )
        return truth_of_array(found[0])


@DATASETS.register_module()
class RoomWalks(ShanghaiTech):
    """The built-in videos: a camera walks through furnished rooms, in which nothing else moves; in the videos to test
    on, an object jumps, grows or spins for a while. They are made once, by CPU, and kept; see `room_walks`.

    Args:
        split: 'train', 'val' or 'test'.
        count: number of videos.
        frames: number of frames of each.
        size: width and height in pixels.
        cache, workers: as of `attlas.dense.room_files.room_folder`.
        length, step, stride, val_share, transforms, seed: as of `AnomalyVideos`; the videos are those of seed 0.

    Raises:
        ValueError, OSError, RuntimeError: as of `attlas.dense.video.room_walks.walk_folder`.
    """

    def __init__(
        self,
        split: str = "train",
        count: int = 24,
        frames: int = 48,
        size: Sequence[int] = (64, 48),
        length: int = 9,
        step: int = 2,
        stride: int = 1,
        val_share: float = 0.0,
        transforms=(),
        seed: int = 0,
        cache: str | Path | None = None,
        workers: int | None = None,
    ):
        one_of("RoomWalks.split", split, SPLITS)
        root = walk_folder("test" if split == "test" else "train", count, frames, size, 0, cache, workers)
        super().__init__(root, split, length, step, stride, val_share, transforms, seed)
