"""The parts of `llava-qwen-0.5b` around its LLM: vision tower, projector, processor, and the VLM they form."""

from dataclasses import dataclass

from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

IMAGE_TOKEN = "<|image_pad|>"
"""The LLM's own token for a picture, which it was never trained on."""
SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
"""System turn of the LLM's own template, used where a chat has none."""
CHAT_TEMPLATE = f"""\
{{%- if messages[0].role != 'system' %}}{{{{ '<|im_start|>system\\n{SYSTEM}<|im_end|>\\n' }}}}{{% endif -%}}
{{%- for message in messages -%}}
{{{{ '<|im_start|>' + message.role + '\\n' }}}}
{{%- if message.content is string -%}}{{{{ message.content }}}}
{{%- else -%}}
{{%- for part in message.content if part.type == 'image' -%}}{{{{ '{IMAGE_TOKEN}\\n' }}}}{{%- endfor -%}}
{{%- for part in message.content if part.type == 'text' -%}}{{{{ part.text }}}}{{%- endfor -%}}
{{%- endif -%}}
{{{{ '<|im_end|>\\n' }}}}
{{%- endfor -%}}
{{%- if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif -%}}
"""
"""The LLM's own template without tools, with the picture at the beginning of its turn."""


@dataclass(frozen=True)
class VisionSizes:
    """Dimensions of the vision tower and of its pictures."""

    picture: int = 240
    """Width and height in pixels."""
    patch: int = 20
    d_vision: int = 256
    n_vision_layers: int = 6
    n_vision_heads: int = 8

    @property
    def n_rows(self) -> int:
        """Patches in a row, and in a column; each patch is one token of the LLM."""
        return self.picture // self.patch


def vision_config(sizes: VisionSizes) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=sizes.d_vision,
        intermediate_size=4 * sizes.d_vision,
        num_hidden_layers=sizes.n_vision_layers,
        num_attention_heads=sizes.n_vision_heads,
        image_size=sizes.picture,
        patch_size=sizes.patch,
    )


def build_processor(sizes: VisionSizes, tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """Return the processor: pictures of one size, and the LLM's own tokenizer and template."""
    tokenizer.padding_side = "left"
    images = CLIPImageProcessorPil(
        size={"shortest_edge": sizes.picture},
        crop_size={"height": sizes.picture, "width": sizes.picture},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=sizes.patch,
        vision_feature_select_strategy="default",
        # The class token, which is left out.
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )


def vlm_config(sizes: VisionSizes, llm: Qwen2Config, image_token: int) -> LlavaConfig:
    """Return the configuration of the VLM.

    Args:
        sizes: those of the vision tower.
        llm: configuration of the LLM.
        image_token: id of `IMAGE_TOKEN`.
    """
    return LlavaConfig(
        vision_config=vision_config(sizes),
        text_config=llm,
        image_token_index=image_token,
        image_seq_length=sizes.n_rows**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=llm.tie_word_embeddings,
    )


def build_vlm(
    sizes: VisionSizes, llm: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> LlavaForConditionalGeneration:
    """Join the LLM with an untrained vision tower and projector; the weights of the LLM are shared, not copied."""
    config = vlm_config(sizes, llm.config, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    vlm = LlavaForConditionalGeneration(config)
    vlm.model.language_model = llm.model
    vlm.lm_head = llm.lm_head
    return vlm
