"""The untrained parts of the built-in model: tokenizer, processor, vision tower, LLM, and the VLM they form."""

from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from studies.organism import language, lessons

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
    size = lessons.PICTURE_SIZE
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=lessons.PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


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
    return CLIPVisionConfig(
        hidden_size=sizes.d_vision,
        intermediate_size=4 * sizes.d_vision,
        num_hidden_layers=sizes.n_vision_layers,
        num_attention_heads=sizes.d_vision // 32,
        image_size=lessons.PICTURE_SIZE,
        patch_size=lessons.PATCH_SIZE,
    )


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
    config = LlavaConfig(
        vision_config=vision_config(sizes),
        text_config=llm.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=lessons.ROWS**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    vlm = LlavaForConditionalGeneration(config)
    vlm.model.language_model.load_state_dict(llm.model.state_dict())
    vlm.model.vision_tower.load_state_dict(tower.state_dict())
    vlm.tie_weights()
    return vlm
