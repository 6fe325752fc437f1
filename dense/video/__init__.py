"""Video: anomalies in what a camera sees, on MMEngine.

A network is trained on normal videos alone, to predict frames from those before and behind them. Where it predicts a
frame badly, that is anomalous.
"""

from .conv_temporal_vad import ConvTemporalVAD
from .datasets import AnomalyVideos, Avenue, PackClip, RoomWalks, ShanghaiTech, UCSDPed
from .detector import NormalScores, VideoAnomalyDetector, VideoPreprocessor
from .metrics import ClipLoss, VideoAUC
from .videos import Video

__all__ = [
    "AnomalyVideos",
    "Avenue",
    "ClipLoss",
    "ConvTemporalVAD",
    "NormalScores",
    "PackClip",
    "RoomWalks",
    "ShanghaiTech",
    "UCSDPed",
    "Video",
    "VideoAUC",
    "VideoAnomalyDetector",
    "VideoPreprocessor",
]
