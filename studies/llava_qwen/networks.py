"""The parts of `llava-qwen-0.5b` around its LLM: vision tower, projector, processor, and the VLM they form."""

from dataclasses import dataclass

from transformers import (
    CLIPVisionConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
)

from studies.organism.llava_parts import clip_config, llava_config, llava_processor

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

    @property
    def n_rows(self) -> int:
        """Patches in a row, and in a column; each patch is one token of the LLM."""
        return self.picture // self.patch


def vision_config(sizes: VisionSizes) -> CLIPVisionConfig:
    return clip_config(sizes.d_vision, sizes.n_vision_layers, sizes.picture, sizes.patch)


def build_processor(sizes: VisionSizes, tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """Return the processor: pictures of one size, and the LLM's own tokenizer and template."""
    return llava_processor(tokenizer, sizes.picture, sizes.patch, IMAGE_TOKEN, CHAT_TEMPLATE)


def build_vlm(
    sizes: VisionSizes, llm: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> LlavaForConditionalGeneration:
    """Join the LLM with an untrained vision tower and projector; the weights of the LLM are shared, not copied."""
    config = llava_config(vision_config(sizes), llm.config, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    vlm = LlavaForConditionalGeneration(config)
    vlm.model.language_model = llm.model
    vlm.lm_head = llm.lm_head
    return vlm
