"""Files and folders of frames, read in order, one frame after the other, and refused where they are broken."""

import cv2
import numpy as np
import pytest
from small_videos import frames_of, write_file, write_frames

from attlas.dense.video.videos import Frames, Video, is_frames

FRAMES = frames_of(14)


@pytest.fixture
def folder(tmp_path):
    write_frames(tmp_path / "frames", FRAMES)
    return tmp_path / "frames"


@pytest.fixture
def file(tmp_path):
    write_file(tmp_path / "video.avi", FRAMES, fps=12.5)
    return tmp_path / "video.avi"


def test_a_folder_in_the_order_of_its_numbers(folder):
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    video = Video(folder)
    assert (video.count, video.exact, video.fps, video.name) == (14, True, None, str(folder))
    np.testing.assert_array_equal(np.stack(list(video)), FRAMES)  # frame 10 comes after 9
    np.testing.assert_array_equal(video.clip(1, 4, 3), FRAMES[[1, 4, 7, 10]])
    np.testing.assert_array_equal(video.picked([12, 3])[12], FRAMES[12])


def test_a_file(file):
    video = Video(file)
    assert (video.count, video.exact, video.fps) == (14, False, 12.5)
    decoded = np.stack(list(video))
    assert decoded.shape == FRAMES.shape
    assert abs(decoded.astype(int) - FRAMES).mean() < 4  # JPEG, red, green, blue
    np.testing.assert_array_equal(video.clip(1, 4, 3), decoded[[1, 4, 7, 10]])
    np.testing.assert_array_equal(video.clip(0, 14, 1), decoded)
    picked = video.picked([12, 3])
    assert sorted(picked) == [3, 12]
    np.testing.assert_array_equal(picked[12], decoded[12])


def test_a_file_is_decoded_as_it_is_read(file, monkeypatch):
    grabbed = []
    opened = Video._open

    class Counted:  # a subclass of OpenCV's own would crash
        def __init__(self, capture):
            self.capture = capture

        def grab(self):
            grabbed.append(1)
            return self.capture.grab()

        def __getattr__(self, name):
            return getattr(self.capture, name)

    monkeypatch.setattr(Video, "_open", lambda self: Counted(opened(self)))
    frames = iter(Video(file))
    next(frames), next(frames)
    assert len(grabbed) == 2


def test_is_frames(folder, file, tmp_path):
    assert is_frames(folder)
    assert not is_frames(file)
    assert not is_frames(tmp_path)  # it holds a video and a folder
    write_frames(tmp_path / "mixed", FRAMES[:1])
    write_file(tmp_path / "mixed" / "a.avi", FRAMES)
    assert not is_frames(tmp_path / "mixed")


def test_what_is_no_video(tmp_path, folder, file):
    with pytest.raises(FileNotFoundError, match=r"vide.avi does not exist\. Near it: .*video.avi"):
        Video(tmp_path / "vide.avi")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no frames"):
        Video(tmp_path / "empty")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4 is no video that FFmpeg can decode"):
        Video(tmp_path / "text.mp4")
    for video in (Video(folder), Video(file)):
        with pytest.raises(ValueError, match="ends before frame 16"):
            video.clip(10, 3, 3)
    cv2.imwrite(str(folder / "3.png"), FRAMES[3][:20])
    with pytest.raises(ValueError, match=r"frames are of several sizes, 48 x 36 and 48 x 20 \(3\.png\)"):
        list(Video(folder))
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:90])
    with pytest.raises(ValueError, match=r"1\.png"):
        list(Video(folder))


def test_arrays():
    np.testing.assert_array_equal(np.stack(list(Frames(FRAMES))), FRAMES)
    grey = FRAMES[..., 0]
    np.testing.assert_array_equal(np.stack(list(Frames(grey))), grey[..., None].repeat(3, 3))
    np.testing.assert_array_equal(Frames(grey).picked([5])[5][..., 1], grey[5])
    for wrong in (FRAMES / 255, FRAMES[0, 0], FRAMES[..., :2], FRAMES[:0]):
        with pytest.raises(ValueError, match="a video must be uint8"):
            Frames(wrong)
