"""A matcher asked about pairs of files and arrays."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from small_matchers import image, matcher

from attlas.dense.matching.inference import Matching
from attlas.inference import Inferencer


@pytest.fixture
def model():
    built = matcher()
    built.classes = ()
    built.transforms = Matching().prepare(Compose([]))
    return built


@pytest.fixture
def files(tmp_path):
    names = []
    for number, size in enumerate(((20, 31), (40, 17))):
        names.append(str(tmp_path / f"{number}.png"))
        cv2.imwrite(names[-1], image(*size, number).permute(1, 2, 0).byte().numpy()[..., ::-1])
    return names


def test_files_are_taken_two_by_two(model, files):
    forth, back = Inferencer(model)([*files, *files[::-1]])
    assert forth["input"] == f"{files[0]} and {files[1]}"
    assert (forth["source_size"], forth["target_size"]) == ([20, 31], [40, 17])
    assert back["source_size"] == [40, 17]
    assert forth["working_size"] == [16, 24]
    found = forth["matches"]
    assert 0 < len(found) <= 8 * 12 // 1
    assert all(0 <= x <= 31 and 0 <= y <= 20 for x, y in (m["source"] for m in found))
    assert all(0 <= x <= 17 and 0 <= y <= 40 for x, y in (m["target"] for m in found))
    assert [m["confidence"] for m in found] == sorted((m["confidence"] for m in found), reverse=True)
    assert forth["field"]["places"].shape == (20, 31, 2)
    assert "seen at 24 x 16" in Matching().said(forth)


def test_arrays_and_options(model):
    pair = [image(20, 31).permute(1, 2, 0).byte().numpy(), image(40, 17, 1).permute(1, 2, 0).byte().numpy()]
    (every,) = Inferencer(model)(pair)
    (few,) = Inferencer(model, mutual=2.0, apart=4.0, fusion="peak")(pair, top=5)
    assert model.network.fusion == "peak"
    assert len(few["matches"]) <= 5 < len(every["matches"])
    assert all(m["cycle_error"] <= 2 for m in few["matches"])
    grey, _ = pair[0][..., 0], None
    assert "error" not in Inferencer(model)([grey, pair[1]])[0]


def test_errors(model, files, tmp_path):
    inferencer = Inferencer(model)
    with pytest.raises(ValueError, match=r"taken 2 by 2, and 3 were given: .*0\.png is left over"):
        inferencer([*files, files[0]])
    (tmp_path / "broken.png").write_bytes(b"no")
    broken, missing, good = inferencer(
        [files[0], str(tmp_path / "broken.png"), str(tmp_path / "none.png"), files[1], *files]
    )
    assert "not a readable image" in broken["error"]
    assert "none.png: it does not exist" in missing["error"]
    assert "error" not in good
    assert "must be uint8" in inferencer([np.zeros((4, 5, 3)), np.zeros((4, 5, 3))])[0]["error"]
    with pytest.raises(ValueError, match="mutual is -1"):
        Inferencer(model, mutual=-1)
    with pytest.raises(ValueError, match="may be 'mutual', 'apart', 'fusion'"):
        Inferencer(model, tile=4)
    with torch.no_grad():
        next(model.network.parameters()).fill_(torch.nan)
    assert "NaN" in inferencer(files)[0]["error"]


def test_what_is_written(model, files, tmp_path):
    task = Matching()
    sources = [task.read(file) for file in files]
    result = Inferencer(model)(files)[0]
    figure = task.draw(task.join(sources), result)
    figure.savefig(tmp_path / "matches.png")
    entries = task.save(task.join(sources), result, tmp_path / "0001")
    assert entries == dict(field="0001_matches.npz")
    assert "field" not in result
    with np.load(tmp_path / "0001_matches.npz") as field:
        assert field["places"].shape == (20, 31, 2)
        assert field["confidence"].shape == (20, 31)
