"""Tiny vision-language models of transformers, with random weights, and their processors."""

import torch

WORDS = (
    "<pad> <s> </s> <image> <vs> <ve> <unk> what is the color of a chair ? write general description image . answer "
)
WORDS += "question using single word or phrase USER: ASSISTANT: red green blue two three left right"
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}"
    "{{ c['text'] }}{% endif %} {% endfor %}{% endfor %}ASSISTANT:"
)
TEXT = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=len(WORDS.split()),
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
)
VISION = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
)
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56]]
ID = {word: number for number, word in enumerate(WORDS.split())}


def model(kind, attention="sdpa", **options):
    """One of "llava", "llava_next", "qwen2_5_vl", "gemma3", in inference mode, with weights that do not start alike."""
    import transformers as t

    torch.manual_seed(3)
    if kind.startswith("llava"):
        config = dict(llava=t.LlavaConfig, llava_next=t.LlavaNextConfig)[kind]
        more = dict(image_grid_pinpoints=PINPOINTS) if kind == "llava_next" else {}
        config = config(
            text_config=dict(model_type="llama", **TEXT | options),
            vision_config=dict(model_type="clip_vision_model", **VISION),
            image_token_id=3,
            vision_feature_layer=-2,
            **more,
        )
        build = dict(llava=t.LlavaForConditionalGeneration, llava_next=t.LlavaNextForConditionalGeneration)[kind]
    elif kind == "qwen2_5_vl":
        rope = dict(rope_type="default", mrope_section=[1, 1, 2], rope_theta=1e4)
        config = t.Qwen2_5_VLConfig(
            text_config=dict(rope_parameters=rope, **TEXT | options),
            vision_config=dict(
                depth=2,
                hidden_size=32,
                intermediate_size=32,
                num_heads=2,
                out_hidden_size=32,
                fullatt_block_indexes=[1],
                window_size=56,
            ),
            image_token_id=3,
            vision_start_token_id=4,
            vision_end_token_id=5,
        )
        build = t.Qwen2_5_VLForConditionalGeneration
    else:
        config = t.Gemma3Config(
            text_config=dict(head_dim=8, sliding_window=20, **TEXT | options),
            vision_config=VISION,
            image_token_index=3,
            mm_tokens_per_image=4,
        )
        build = t.Gemma3ForConditionalGeneration
    found = build._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():  # attention is nearly even with weights as they begin
        for name, weight in found.named_parameters():
            if weight.ndim > 1 and ("q_proj" in name or "k_proj" in name or "embed_tokens" in name):
                weight.normal_(std=0.3)
        found.get_output_embeddings().weight[3] = 0  # else it may answer with an image
    return found


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    table = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=table, extra_special_tokens=dict(image_token="<image>"), **special)


def image_processor(kind, **options):
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    square = dict(size=dict(shortest_edge=56), crop_size=dict(height=56, width=56))
    if kind == "llava":
        return LlavaImageProcessorPil(**square | options)
    if kind == "llava_next":
        return LlavaNextImageProcessorPil(**square | dict(image_grid_pinpoints=PINPOINTS) | options)
    return Qwen2VLImageProcessorPil(**dict(size=dict(shortest_edge=56 * 56, longest_edge=28 * 28 * 40)) | options)


def processor(kind, chat_template=TEMPLATE, **options):
    import transformers as t

    build = dict(llava=t.LlavaProcessor, llava_next=t.LlavaNextProcessor)[kind]
    return build(
        image_processor=image_processor(kind, **options),
        tokenizer=tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )


def write(folder, kind="llava"):
    """A folder of a model as transformers writes it."""
    model(kind).save_pretrained(folder)
    processor(kind).save_pretrained(folder)
    return folder
