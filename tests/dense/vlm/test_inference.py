import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import vlms

from attlas.backbones.skeletons.isotropic import Isotropic
from attlas.dense.vlm import inference
from attlas.dense.vlm.carve import GENERAL, SUFFIX
from attlas.dense.vlm.inference import VisionLanguageModel, class_focus, focus, patch_view
from attlas.dense.vlm.pictures import draw

QUESTION = "what is the color of the chair ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return vlms.write(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def vlm(folder):
    return VisionLanguageModel.load(folder)


def picture(height=45, width=70):
    return np.random.randint(0, 255, (height, width, 3), np.uint8)


def test_a_question_is_asked_twice(vlm, monkeypatch):
    asked = []
    monkeypatch.setattr(vlm, "inputs", lambda images, text: asked.append((images, text)) or own(images, text))
    own = VisionLanguageModel.inputs.__get__(vlm)
    image = picture()
    found = focus(vlm, image, QUESTION, [1, 2, 40], max_new_tokens=3)
    assert [text for _, text in asked] == [f"{QUESTION} {SUFFIX}", f"{GENERAL} {SUFFIX}", f"{QUESTION} {SUFFIX}"]
    assert [len(images) for images, _ in asked] == [1, 1, 2]
    assert asked[2][0][0] is image
    assert asked[2][0][1] is found.carved.refined
    assert [look.attention.shape for look in found.looks] == [(3, 2, 16)] * 2
    assert found.looks[0].layers == (1, 2)
    assert found.answer == vlm.answer([image], asked[0][1], 3)
    assert len(found.answer.split()) <= 3
    assert found.refined_answer == vlm.answer([image, found.carved.refined], asked[0][1], 3)
    covered = found.carved.fused[22]  # LLaVA cuts the sides of a wide image off, and nothing is said of them
    left, right = found.carved.views[0].columns[[0, -1], [0, 1]]
    assert left > 10
    assert right < 60
    assert not covered[: int(left)].any()
    assert covered[int(left) + 1 : int(right) - 1].all()


def test_an_answer_is_that_of_the_model_alone(vlm):
    image = picture()
    inputs = vlm.inputs([image], QUESTION)
    with torch.no_grad():
        made = vlm.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert vlm.answer([image], QUESTION, 3) == vlm.text(made[0, -3:].tolist())


def test_the_released_grid(vlm):
    plain, legacy = (focus(vlm, picture(), QUESTION, [1], legacy_grid=x, max_new_tokens=1, again=False) for x in (0, 1))
    assert legacy.carved.views[0].columns[0, 0] == 0
    assert plain.carved.views[0].columns[0, 0] > 0
    assert legacy.carved.fused.all()
    assert plain.refined_answer is None


def test_the_same_question_as_the_instruction_keeps_the_whole_image(vlm):
    found = focus(vlm, picture(), GENERAL, [1, 2], max_new_tokens=2)
    assert found.carved.flat
    assert found.refined_answer is None
    np.testing.assert_array_equal(found.carved.refined, found.carved.image)


def test_tiles_from_the_image_to_the_map(tmp_path):
    tiled = VisionLanguageModel.load(vlms.write(tmp_path, "llava_next"))
    found = focus(tiled, picture(45, 90), QUESTION, [0, 3], max_new_tokens=2, queries="text")
    assert [view.tokens.shape for view in found.carved.views] == [(4, 4), (4, 8)]
    assert found.carved.fused.all()
    assert found.looks[0].queries == "the mean of all tokens behind the image"


def test_prompts(vlm):
    assert vlm.prompt("what ?", 2) == "USER: <image> <image> what ? ASSISTANT:"
    own = VisionLanguageModel(vlm.model, vlm.processor, "USER: {images} {question} ASSISTANT:")
    assert own.prompt("what ?") == "USER: <image> what ? ASSISTANT:"
    with pytest.raises(ValueError, match="no chat template"):
        VisionLanguageModel(vlm.model, vlms.processor("llava", chat_template=None))
    with pytest.raises(ValueError, match="must hold"):
        VisionLanguageModel(vlm.model, vlm.processor, "{question}")


def test_bad_questions(vlm):
    with pytest.raises(ValueError, match=r"the decoder has attention at \[0, 1, 2, 3\]"):
        focus(vlm, picture(), QUESTION)
    with pytest.raises(ValueError, match="question is empty"):
        focus(vlm, picture(), " ", [1])
    with pytest.raises(ValueError, match="an image of float64"):
        focus(vlm, picture() / 255, QUESTION, [1])
    with pytest.raises(ValueError, match="an image of uint8"):
        focus(vlm, picture()[..., 0], QUESTION, [1])


def test_folders_that_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        VisionLanguageModel.load(tmp_path)
    with pytest.raises(ValueError, match="no config"):
        VisionLanguageModel.load("llava-hf/llava-1.5-7b-hf")  # is never downloaded
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")  # a pickle is not read
    with pytest.raises(OSError, match="safetensors"):
        VisionLanguageModel.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= dict(model_type="mine", auto_map=dict(AutoConfig="code.Config", AutoModelForImageTextToText="code.Model"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('code of the folder was run')")
    with pytest.raises(ValueError, match=r"custom code|trust_remote_code"):
        VisionLanguageModel.load(tmp_path)


def test_weights_that_are_missing(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata=dict(format="pt"))
    with pytest.raises(ValueError, match="lack 1 weights"):
        VisionLanguageModel.load(tmp_path)


# --- class tokens ----------------------------------------------------------------------------------------------------


def vit():
    return Isotropic(dim=16, depth=3, patch_size=8, img_size=(24, 40), num_classes=5).eval()


def test_a_class_token_under_two_conditions():
    network, image, pixels = vit(), torch.randn(1, 3, 21, 37), picture(21, 37)
    general = torch.zeros_like(image)
    found = class_focus(network, image, general, pixels, [1, 2])
    rows = [inference.rows.class_rows(network, x)[0, 1:].double() for x in (image, general)]
    values = (rows[0] / (rows[1] + 1e-8)).sum(0).numpy()
    np.testing.assert_allclose(found.fused, patch_view(8, (21, 37)).spread(values, (21, 37)), rtol=1e-6)
    assert class_focus(network, image, image, pixels, ()).flat
    with pytest.raises(ValueError, match=r"blocks=\[3\]: the class token looks at the image in 3"):
        class_focus(network, image, general, pixels, [3])
    with pytest.raises(ValueError, match="must both be"):
        class_focus(network, image, general[..., :-1], pixels, ())


def test_patches_reach_beyond_the_image():
    view = patch_view(8, (21, 37))
    assert view.box(2, 4) == (32, 16, 40, 24)
    assert view.tokens[2, 4] == 14


def test_pictures():
    image, pixels = torch.randn(1, 3, 24, 40), picture(24, 40)
    found = class_focus(vit(), image, torch.zeros_like(image), pixels, ())
    figure = draw(found, ("$\\frac{", "b\x1b[2J"), "$x\nanswer: {^", [0, 2])
    figure.canvas.draw()
    titles = [axes.get_title() for axes in figure.axes]
    assert any("entropy" in title for title in titles)
    assert not any("\x1b" in title for title in titles)
    flat = class_focus(vit(), image, image, pixels, ())
    assert any("no region" in axes.get_title() for axes in draw(flat, ("a", "b")).axes)


def test_transformers_is_asked_for_by_name(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'attlas\[vlm\]'"):
        VisionLanguageModel.load(tmp_path)


def test_transformers_is_loaded_only_where_it_is_asked_for():
    code = "import sys\nfrom attlas.dense.vlm import inference, pictures\nprint('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr
