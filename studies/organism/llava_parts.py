"""The parts of a LLaVA around its LLM, as the project's own models have them: CLIP, pictures of one size, processor."""

from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

D_HEAD = 32
"""Width of a head of the vision tower."""


def clip_config(d_vision: int, n_layers: int, picture_size: int, patch_size: int) -> CLIPVisionConfig:
    """Return the configuration of a vision tower with heads of `D_HEAD`.

    Args:
        d_vision: its width.
        n_layers: its depth.
        picture_size: width and height of its pictures, in pixels.
        patch_size: width and height of a patch, in pixels.
    """
    return CLIPVisionConfig(
        hidden_size=d_vision,
        intermediate_size=4 * d_vision,
        num_hidden_layers=n_layers,
        num_attention_heads=d_vision // D_HEAD,
        image_size=picture_size,
        patch_size=patch_size,
    )


def llava_processor(
    tokenizer: PreTrainedTokenizerBase, picture_size: int, patch_size: int, image_token: str, chat_template: str
) -> LlavaProcessor:
    """Return a processor with the pixel values of `studies.organism.losses.pixels`.

    Args:
        tokenizer: the LLM's; from then on it pads on the left.
        picture_size: see `clip_config`, also for the next one.
        patch_size: size of a patch.
        image_token: token that stands for each patch of a picture.
        chat_template: template of chats with pictures.
    """
    tokenizer.padding_side = "left"
    images = CLIPImageProcessorPil(
        size={"shortest_edge": picture_size},
        crop_size={"height": picture_size, "width": picture_size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        # The class token, which is left out.
        num_additional_image_tokens=1,
        image_token=image_token,
        chat_template=chat_template,
    )


def llava_config(vision: CLIPVisionConfig, text: PretrainedConfig, image_token_id: int) -> LlavaConfig:
    """Return the configuration of a LLaVA that gives its LLM every patch of the last layer.

    Args:
        vision: that of the vision tower.
        text: that of the LLM.
        image_token_id: id of the token that stands for a patch.
    """
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=text.tie_word_embeddings,
    )
