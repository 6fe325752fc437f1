"""How plain vision transformers call their parts in published files, for every network on `Isotropic`.

The names of the four authors never meet, so one list of rules reads them all:

- timm, DeiT and DeiT III: `patch_embed.proj`, `blocks.0.attn.qkv`, `ls1.gamma` or `gamma_1`, `norm_pre`, `head`;
- DINOv2 of facebookresearch: the same, with `register_tokens`, and `mlp.w12` and `mlp.w3` in the gated MLP;
- DINOv2 of transformers: `embeddings`, `encoder.layer.0`, `layernorm`, below `dinov2` or not;
- towers for images of OpenAI's CLIP and of OpenCLIP: `conv1`, `transformer.resblocks.0`, `ln_post`, `proj`. Of a whole
  CLIP `Isotropic.checkpoint_parts` takes what lies below `visual`, and leaves the tower for texts out.

timm adds the position of the class token to the token itself where there are registers; its table has no row for it
then. `whole` gives it one of zeros. It goes by timm's name of the registers: by the number of rows, 169 could be
13 · 13 as well as 1 + 12 · 14.

DINOv2's mask token, which replaces hidden patches in its training, is left out: nothing reads it afterwards.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...checkpoint import Rules

RULES: Rules = [
    # timm, DeiT, DINOv2
    (r"(^|\.)mask_token$", None),
    (r"^patch_embed\.proj\.", r"stem."),
    (r"^pos_embed$", r"position.weight"),
    (r"^cls_token$", r"cls_token.weight"),
    (r"^(reg_token|register_tokens)$", r"register_tokens.weight"),
    (r"^norm_pre\.", r"pre_norm."),
    (r"^(blocks\.\d+)\.attn\.", r"\1.mixer."),
    (r"^(blocks\.\d+)\.ls([12])\.", r"\1.scale\2."),
    (r"^(blocks\.\d+)\.gamma_([12])$", r"\1.scale\2.gamma"),
    (r"^(blocks\.\d+)\.mlp\.w12\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.mlp\.w3\.", r"\1.mlp.fc2."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    # transformers
    (r"^(dinov2|dinov2_with_registers)\.", r""),
    (r"^embeddings\.patch_embeddings\.projection\.", r"stem."),
    (r"^embeddings\.position_embeddings$", r"position.weight"),
    (r"^embeddings\.(cls_token|register_tokens)$", r"\1.weight"),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^(blocks\.\d+)\.attention\.attention\.([qkv])(uery|ey|alue)\.", r"\1.mixer.\2."),
    (r"^(blocks\.\d+)\.attention\.output\.dense\.", r"\1.mixer.proj."),
    (r"^(blocks\.\d+)\.layer_scale([12])\.lambda1$", r"\1.scale\2.gamma"),
    (r"^(blocks\.\d+)\.mlp\.weights_in\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.mlp\.weights_out\.", r"\1.mlp.fc2."),
    (r"^layernorm\.", r"norm."),
    # CLIP
    (r"^class_embedding$", r"cls_token.weight"),
    (r"^positional_embedding$", r"position.weight"),
    (r"^conv1\.", r"stem."),
    (r"^ln_pre\.", r"pre_norm."),
    (r"^ln_post\.", r"norm."),
    (r"^proj$", r"projection.weight"),
    (r"^transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"^(blocks\.\d+)\.ln_([12])\.", r"\1.norm\2."),
    (r"^(blocks\.\d+)\.ls_([12])\.", r"\1.scale\2."),
    (r"^(blocks\.\d+)\.attn\.in_proj_", r"\1.mixer.qkv."),
    (r"^(blocks\.\d+)\.attn\.out_proj\.", r"\1.mixer.proj."),
    (r"^(blocks\.\d+)\.mlp\.c_fc\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.mlp\.c_proj\.", r"\1.mlp.fc2."),
]


def whole(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A file's state dict whose table of positions has a row for the class token, be it of timm with registers."""
    table = state.get("pos_embed")
    if table is None or table.ndim != 3 or "reg_token" not in state:
        return state
    return {**state, "pos_embed": torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)}
