"""Plain vision transformers: ViT as DeiT trained it, DINOv2, and the towers for images of CLIP.

"An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929; "Training data-efficient image transformers", ICML 2021,
arXiv 2012.12877, and "DeiT III", ECCV 2022, arXiv 2204.07118, https://github.com/facebookresearch/deit (Apache-2.0);
"DINOv2", TMLR 2024, arXiv 2304.07193, and "Vision Transformers Need Registers", ICLR 2024, arXiv 2309.16588,
https://github.com/facebookresearch/dinov2 (Apache-2.0); "Learning Transferable Visual Models From Natural Language
Supervision", ICML 2021, arXiv 2103.00020, https://github.com/openai/CLIP (MIT), whose weights load.

All are `Isotropic` with plain attention and a class token, which takes part in the dense form, too: the weights were
trained with it. The maps hold pixels alone.

Tables of positions are resized as each authors do, always bicubically: DeiT's as they are; DINOv2's by a step that is a
little larger (see `resize_table`), and with registers as an average where they shrink; CLIP's as OpenCLIP does, as an
average.
"""

from typing import Any

from .skeletons import vit_names
from .skeletons.isotropic import Isotropic
from .zoo import Variant, register


class ViT(Isotropic):
    """A plain vision transformer.

    Args:
        dim, depth, class_position, **common: as of `Isotropic`.
        heads: number of attention heads.
    """

    def __init__(self, dim: int = 192, depth: int = 12, heads: int = 3, class_position: bool = True, **common):
        mixer = dict(type="Attention", heads=heads)
        super().__init__(dim, depth, mixer, class_token=0, class_position=class_position, **common)


def _size(dim: int, heads: int, depth: int = 12, **options) -> dict:
    return dict(dim=dim, heads=heads, depth=depth, **options)


def _deit3(*size) -> dict:
    return _size(*size, class_position=False, layer_scale=1e-4)


def _dinov2(*size, registers: int = 0, **options) -> dict:
    position = dict(antialias=True) if registers else dict(offset=0.1)
    return _size(
        *size, patch_size=14, img_size=518, position=position, registers=registers, layer_scale=1e-5, **options
    )


def _clip(*size, projection: int, patch_size: int, mlp: str = "quick_gelu", **options) -> dict:
    return _size(
        *size,
        patch_size=patch_size,
        projection=projection,
        mlp=mlp,
        pre_norm=True,
        eps=1e-5,
        position=dict(antialias=True),
        **options,
    )


_DINOV2: dict[str, Any] = dict(size=518, classes=0, crop=1.0)
_CLIP: dict[str, Any] = dict(
    classes=0,
    crop=1.0,
    mean=(122.7709383, 116.7460125, 104.09373615),
    std=(68.5005327, 66.6321579, 70.32316305),
)

# DINOv2 and CLIP were published without a classifier: 0 classes, and `create` gives the class token behind the norm and
# the projection. DINOv2's counts are without the mask token, one more of C. OpenAI's towers have quick GELU, OpenCLIP's
# GELU where their names do not say "quickgelu".
VARIANTS = {
    "deit_tiny": Variant(_size(192, 3), 5_717_416, 1.3, 72.2, drop_path=0.1),
    "deit_small": Variant(_size(384, 6), 22_050_664, 4.6, 79.9, drop_path=0.1),
    "deit_base": Variant(_size(768, 12), 86_567_656, 17.6, 81.8, drop_path=0.1),
    "deit_base_384": Variant(_size(768, 12, img_size=384), 86_859_496, 55.5, 83.1, size=384, drop_path=0.1, crop=1.0),
    "deit3_small": Variant(_deit3(384, 6), 22_059_496, 4.6, 81.4, drop_path=0.05, crop=1.0),
    "deit3_base": Variant(_deit3(768, 12), 86_585_320, 17.5, 83.8, drop_path=0.2, crop=1.0),
    "deit3_large": Variant(_deit3(1024, 16, 24), 304_374_760, 61.6, 84.9, drop_path=0.45, crop=1.0),
    "dinov2_small": Variant(_dinov2(384, 6), 22_056_192, **_DINOV2),
    "dinov2_base": Variant(_dinov2(768, 12), 86_579_712, **_DINOV2),
    "dinov2_large": Variant(_dinov2(1024, 16, 24), 304_367_616, **_DINOV2),
    "dinov2_giant": Variant(_dinov2(1536, 24, 40, mlp="swiglu"), 1_136_479_232, **_DINOV2),
    "dinov2_small_reg4": Variant(_dinov2(384, 6, registers=4), 22_057_728, **_DINOV2),
    "dinov2_base_reg4": Variant(_dinov2(768, 12, registers=4), 86_582_784, **_DINOV2),
    "dinov2_large_reg4": Variant(_dinov2(1024, 16, 24, registers=4), 304_371_712, **_DINOV2),
    "dinov2_giant_reg4": Variant(_dinov2(1536, 24, 40, registers=4, mlp="swiglu"), 1_136_485_376, **_DINOV2),
    "clip_vit_base_patch32": Variant(_clip(768, 12, projection=512, patch_size=32), 87_849_216, **_CLIP),
    "clip_vit_base_patch16": Variant(_clip(768, 12, projection=512, patch_size=16), 86_192_640, **_CLIP),
    "clip_vit_large_patch14": Variant(_clip(1024, 16, 24, projection=768, patch_size=14), 303_966_208, **_CLIP),
    "openclip_vit_base_patch32": Variant(
        _clip(768, 12, projection=512, patch_size=32, mlp="gelu"), 87_849_216, **_CLIP
    ),
    "openclip_vit_base_patch16": Variant(
        _clip(768, 12, projection=512, patch_size=16, mlp="gelu"), 86_192_640, **_CLIP
    ),
    "openclip_vit_large_patch14": Variant(
        _clip(1024, 16, 24, projection=768, patch_size=14, mlp="gelu"), 303_966_208, **_CLIP
    ),
}

register(ViT, VARIANTS, vit_names.RULES)
