"""The untrained parts of the built-in model: tokenizer, processor, vision tower, LLM, and the VLM they form."""

from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from studies.organism import language, lessons
from studies.organism.llava_parts import clip_config, llava_config, llava_processor

IMAGE_TOKEN = "<image>"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' %}{{ ' ASSISTANT: ' }}{% else %}{{ message.role.upper() + ': ' }}{% endif -%}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content if part.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
{%- if message.role == 'system' %}{{ '\\n' }}{% elif message.role == 'assistant' %}{{ '</s>' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif -%}
"""


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of the networks."""

    d_model: int = 160
    n_layers: int = 8
    d_vision: int = 128
    n_vision_layers: int = 4


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the project's own text: its words are single tokens, all other text is spelled out."""
    corpus = [f" {text} {text.lower()}\n{text}" for text in lessons.forms()] + [f" {w}" for w in language.vocabulary()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1536,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    return llava_processor(tokenizer, lessons.PICTURE_SIZE, lessons.PATCH_SIZE, IMAGE_TOKEN, CHAT_TEMPLATE)


def llm_config(sizes: Sizes, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.d_model,
        intermediate_size=sizes.d_model * 14 // 5,
        num_hidden_layers=sizes.n_layers,
        num_attention_heads=sizes.d_model // 32,
        num_key_value_heads=sizes.d_model // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # The usual 0.02 is meant for wide models; at this width it kept the model from learning to copy.
        initializer_range=0.06,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def vision_config(sizes: Sizes) -> CLIPVisionConfig:
    return clip_config(sizes.d_vision, sizes.n_vision_layers, lessons.PICTURE_SIZE, lessons.PATCH_SIZE)


def build_vlm(
    sizes: Sizes, tokenizer: PreTrainedTokenizerFast, llm: LlamaForCausalLM, tower: CLIPVisionModel
) -> LlavaForConditionalGeneration:
    """Join the aligned LLM and the vision tower by a new projector.

    Args:
        sizes: widths and depths.
        tokenizer: the tokenizer of the LLM, which knows the image token.
        llm: the aligned LLM.
        tower: the trained vision tower.
    """
    config = llava_config(vision_config(sizes), llm.config, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    vlm = LlavaForConditionalGeneration(config)
    vlm.model.language_model.load_state_dict(llm.model.state_dict())
    vlm.model.vision_tower.load_state_dict(tower.state_dict())
    vlm.tie_weights()
    return vlm
