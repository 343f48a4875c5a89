"""The parts around an LLM: vision tower, projector, processor, and the VLM they form."""

from dataclasses import dataclass

from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from studies.llava_qwen.built_model import ChatFormat
from studies.organism.llava_parts import clip_config, llava_config, llava_processor


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


def build_processor(sizes: VisionSizes, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> LlavaProcessor:
    """Return the processor: pictures of one size, and the LLM's own tokenizer and template."""
    return llava_processor(tokenizer, sizes.picture, sizes.patch, chat.image_token, chat.template)


def eyes_of(vlm: LlavaForConditionalGeneration) -> nn.ModuleDict:
    """Return vision tower and projector, under the names that their weights ship with."""
    return nn.ModuleDict(
        {"vision_tower": vlm.model.vision_tower, "multi_modal_projector": vlm.model.multi_modal_projector}
    )


def build_vlm(
    sizes: VisionSizes, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat
) -> LlavaForConditionalGeneration:
    """Join the LLM with an untrained vision tower and projector; the weights of the LLM are shared, not copied.

    Args:
        sizes: those of the vision tower.
        llm: the LLM.
        tokenizer: its tokenizer.
        chat: the form of its chats.
    """
    config = llava_config(vision_config(sizes), llm.config, tokenizer.convert_tokens_to_ids(chat.image_token))
    vlm = LlavaForConditionalGeneration(config)
    vlm.model.language_model = llm.model
    vlm.lm_head = llm.lm_head
    return vlm
