"""Asking a vision-language model of transformers, looking at what it looks at, and asking again (CARVE)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import rows
from .carve import GENERAL, LAYERS, SUFFIX, Carved, carve
from .views import View, grid_of, views


class VisionLanguageModel:
    """A vision-language model with its processor, both of transformers.

    Args:
        model: one with `generate`, in inference mode.
        processor: the model's own.
        template: text of a prompt with `{images}`, where `image_token` stands for each image, and `{question}`. None
            for the processor's chat template.
        image_token: what the processor replaces by an image's tokens; its own by default.

    Raises:
        ValueError: there is neither a template nor a chat template.
    """

    image_token: Any

    def __init__(self, model: Any, processor: Any, template: str | None = None, image_token: str | None = None):
        if template is None and not getattr(processor, "chat_template", None):
            raise ValueError("the processor has no chat template: give template='USER: {images} {question} ASSISTANT:'")
        if template is not None and not ("{images}" in template and "{question}" in template):
            raise ValueError(f"template={template!r} must hold {{images}} and {{question}}")
        self.model, self.processor, self.template = model.eval(), processor, template
        self.image_token = image_token or getattr(processor, "image_token", "<image>")

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
        template: str | None = None,
    ) -> "VisionLanguageModel":
        """A model in a folder of transformers' format: config.json, safetensors, the files of a processor.

        Nothing is downloaded, no code of the folder is run, no pickle is read.

        Args:
            folder: the folder.
            device: where the model runs.
            dtype: of its weights; "auto" for that of the files.
            template: as of the class.

        Raises:
            ValueError: there is no such folder, it asks for code of its own, or its weights do not fill the model.
            ImportError: transformers is not installed; says how.
        """
        try:
            import transformers
        except ImportError as error:
            raise ImportError("vision-language models need transformers: pip install 'attlas[vlm]'") from error
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} is no folder of a model in transformers' format: it has no config.json")
        safe: dict[str, Any] = dict(local_files_only=True, trust_remote_code=False)
        loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, use_safetensors=True, dtype=dtype, output_loading_info=True, **safe
        )
        model, account = loaded
        if lacking := sorted(account["missing_keys"]) + sorted(map(str, account["mismatched_keys"])):
            raise ValueError(f"{folder}: the files lack {len(lacking)} weights of the model: {', '.join(lacking[:4])}")
        return cls(model.to(device), transformers.AutoProcessor.from_pretrained(folder, **safe), template)

    def prompt(self, question: str, images: int = 1) -> str:
        """The text of a question about so many images, with places for their tokens."""
        if self.template is not None:
            return self.template.format(images=self.image_token * images, question=question)
        content = [dict(type="image")] * images + [dict(type="text", text=question)]
        messages = [dict(role="user", content=content)]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def inputs(self, images: Sequence[np.ndarray], question: str) -> Any:
        """What the model reads of images, uint8 (H, W, 3), and a question about them."""
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ValueError(f"an image of {image.dtype} {image.shape}: uint8 (height, width, 3) is wanted")
        pictures = [Image.fromarray(image) for image in images]
        found = self.processor(images=pictures, text=self.prompt(question, len(images)), return_tensors="pt")
        return found.to(self.model.device, dtype=self.model.dtype)

    def text(self, ids: Sequence[int]) -> str:
        return self.processor.decode(list(ids), skip_special_tokens=True).strip()

    def answer(self, images: Sequence[np.ndarray], question: str, max_new_tokens: int = 32) -> str:
        """The model's most likely answer to a question about images, without a look inside."""
        inputs = self.inputs(images, question)
        made = rows.greedy(self.model, inputs, max_new_tokens).sequences
        return self.text(made[0, inputs["input_ids"].shape[1] :].tolist())

    def views(self, inputs: Any, size: tuple[int, int]) -> list[View]:
        """Where the vision tokens of a prompt with one image of `size` (H, W) lie in it."""
        count = len(rows.vision_tokens(self.model.config, inputs["input_ids"]))
        cpu = {name: value.cpu() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        return views(self.processor.image_processor, self.model.config, size, cpu, count)


@dataclass
class Focus:
    """A question, what it made a model look at, and the answers before and after."""

    question: str
    carved: Carved
    looks: tuple[rows.Look, rows.Look]  # under the question, and under the general instruction
    answer: str  # to the image alone
    refined_answer: str | None  # to the image and the refined one; None where it was not asked for, or S is flat


def focus(
    vlm: VisionLanguageModel,
    image: np.ndarray,
    question: str,
    layers: Sequence[int] = LAYERS,
    queries: rows.Queries = "last",
    max_new_tokens: int = 32,
    general: str = GENERAL,
    suffix: str = SUFFIX,
    legacy_grid: bool = False,
    again: bool = True,
    tolerance: float = 0.0,
    **options: Any,
) -> Focus:
    """Ask a question, look at what the model looks at, and ask again with the refined image beside the whole one.

    Args:
        vlm: the model.
        image: uint8 (H, W, 3).
        question: the question.
        layers: layers of the decoder, from 0; those beyond its depth are left out.
        queries: whose attention, as of `rows.rows_of`.
        max_new_tokens: most tokens of each of the answers.
        general: the instruction that a question is held against.
        suffix: sentence behind question and instruction.
        legacy_grid: whether the tokens are laid over the whole image as the released code does: see `grid_of`. Else
            padding, crops and tiles of the processor are undone.
        again: whether the model is asked again.
        tolerance: as of `rows.look`.
        **options: of `carve`: variant, lam, top_percent, min_keep_regions, outlier_percent, least_range.

    Raises:
        ValueError: no layer is left, the processor is not known, or an option is out of its range.
        RuntimeError: looking changed what the model computes.
    """
    if not question.strip():
        raise ValueError("question is empty")
    present = sorted(rows.attentions(vlm.model))
    chosen = [layer for layer in layers if layer in present]
    if not chosen:
        raise ValueError(f"layers={list(layers)}: the decoder has attention at {present}; name some of these")
    texts = [f"{text} {suffix}".strip() for text in (question, general)]
    prompts = [vlm.inputs([image], text) for text in texts]
    if legacy_grid:
        said = prompts[0].get("image_grid_thw")
        shape = None if said is None else tuple((said[0, 1:] // 2).tolist())
        grid = grid_of(len(rows.vision_tokens(vlm.model.config, prompts[0]["input_ids"])), shape, True)
        if grid is None:
            raise ValueError("legacy_grid=True: the released code has no grid for the tokens of this image")
        laid = [View.whole(grid, image.shape[:2])]
    else:
        laid = vlm.views(prompts[0], image.shape[:2])
    asked, held = (rows.look(vlm.model, x, chosen, queries, max_new_tokens, tolerance) for x in prompts)
    carved = carve(image, asked.attention, held.attention, laid, **options)
    refined = None
    if again and not carved.flat:
        refined = vlm.answer([image, carved.refined], texts[0], max_new_tokens)
    return Focus(question, carved, (asked, held), vlm.text(asked.ids), refined)


def class_focus(
    network: Any, image: torch.Tensor, general: torch.Tensor, pixels: np.ndarray, blocks: Sequence[int], **options: Any
) -> Carved:
    """The same contrast for the class token of a vision transformer under two conditions: an image, and another one.

    Args:
        network: as of `rows.class_rows`.
        image: (1, 3, H, W), normalized.
        general: of the same shape: what the image is held against, as one that shows nothing.
        pixels: uint8 (H, W, 3), the image as it is shown.
        blocks: attentions of the class token to add, from 0; none for all.
        **options: of `carve`.
    """
    if image.shape != general.shape or image.shape[0] != 1 or image.shape[-2:] != pixels.shape[:2]:
        raise ValueError(
            f"image {tuple(image.shape)} and general {tuple(general.shape)} must both be (1, 3, H, W) of the pixels "
            f"{pixels.shape}"
        )
    query, other = (rows.class_rows(network, x).numpy() for x in (image, general))
    if beyond := [block for block in blocks if not 0 <= block < query.shape[1]]:
        raise ValueError(f"blocks={beyond}: the class token looks at the image in {query.shape[1]}, from 0")
    views = [patch_view(network.patch_size, pixels.shape[:2])]
    return carve(pixels, query, other, views, layers=blocks or None, **options)


def patch_view(patch: int, size: tuple[int, int]) -> View:
    """The view of square patches, row by row; those at the end may reach beyond the image, which was filled up."""
    grid = [-(-side // patch) for side in size]
    edges = [np.arange(count + 1.0) * patch for count in grid]
    cells = (np.stack([edge[:-1], edge[1:]], axis=1) for edge in edges)
    return View(np.arange(grid[0] * grid[1]).reshape(grid), *cells)
