"""The model and prompts of the bench; they are fixed, so that numbers stay comparable over the years."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlavaForConditionalGeneration, PretrainedConfig, Qwen2Config

from interp import VLM, Guard, Prompt, Query, SafetyDirection, random_basis
from interp.typography import noise_picture
from studies import organism
from studies.organism import networks
from studies.organism.llava_parts import clip_config, llava_config, llava_processor

PICTURE, PATCH = 336, 14
WORDS = (10, 20)
"""Shortest and longest request, in tokens."""


def bench_vlm() -> VLM:
    """Return a random LLaVA: CLIP of 6 x 128 at 336/14, Llama of 12 x 256 with 8 heads, MLP 704, vocabulary 32,000."""
    text = LlamaConfig(
        vocab_size=32_000,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    return _random_llava(text, PICTURE, PATCH, "bench")


def large_vocabulary_vlm(dtype: torch.dtype) -> VLM:
    """Return a random LLaVA with the LLM of `llava-qwen-0.5b`: Qwen2 of 24 x 896, vocabulary 151,936; 240/20 pixels."""
    text = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        dtype=dtype,
    )
    return _random_llava(text, 240, 20, f"large vocabulary, {str(dtype).removeprefix('torch.')}", dtype)


def _random_llava(
    text: PretrainedConfig, picture: int, patch: int, name: str, dtype: torch.dtype = torch.float32
) -> VLM:
    torch.manual_seed(0)
    tokenizer = networks.build_tokenizer()
    text.pad_token_id = tokenizer.pad_token_id
    image_token = networks.IMAGE_TOKEN
    vision = clip_config(d_vision=128, n_layers=6, picture_size=picture, patch_size=patch)
    config = llava_config(vision, text, tokenizer.convert_tokens_to_ids(image_token))
    processor = llava_processor(tokenizer, picture, patch, image_token, networks.CHAT_TEMPLATE)
    return VLM(LlavaForConditionalGeneration(config).to(dtype).eval(), processor, name)


def built_in_vlm() -> VLM:
    return replace(VLM.from_pretrained(organism.path(), device="cpu"), name="built-in")


def bench_guard(vlm: VLM, layer: int = 6, strength: float = 1.0) -> Guard:
    """Return a guard of one layer with the default rule and positions; its gate is always open."""
    basis = random_basis(torch.zeros(vlm.n_layers, 1, vlm.d_model), 0)
    return Guard(SafetyDirection(basis, "random"), (layer,), gate="always", strength=strength)


def generate(vlm: VLM, batch: Mapping[str, Tensor], guard: Guard | None, n_new: int, **kwargs) -> Tensor:
    """Generate exactly `n_new` tokens, greedily.

    Args:
        vlm: the model.
        batch: collated prompts.
        guard: applied during generation; None for the bare model.
        n_new: number of tokens.
        **kwargs: passed on to `model.generate`.
    """
    kwargs |= {"max_new_tokens": n_new, "min_new_tokens": n_new, "do_sample": False, "pad_token_id": 0}
    with guard.on(vlm) if guard else nullcontext():
        return vlm.model.generate(**batch, **kwargs)


@dataclass(frozen=True)
class Load:
    """A number of prompts about a number of pictures."""

    n_prompts: int
    n_pictures: int

    @property
    def pictures(self) -> str:
        """The number of pictures in words, as tables show it."""
        return {1: "one shared", self.n_prompts: "all different"}.get(self.n_pictures, f"{self.n_pictures} shared")

    def prompts(self, vlm: VLM) -> list[Prompt]:
        """Return requests of 10 to 20 tokens, each about one of the pictures."""
        rng = np.random.default_rng(0)
        # Whole words of the tokenizer: each is one token after a space.
        words = sorted(word[1:] for word in vlm.tokenizer.get_vocab() if word[0] == "Ġ" and word[1:].isalpha())
        pictures = [noise_picture(vlm.picture_size, seed) for seed in range(self.n_pictures)]
        texts = [" ".join(rng.choice(words, rng.integers(WORDS[0], WORDS[1] + 1))) for _ in range(self.n_prompts)]
        return [
            Prompt(Query(text, harmful=False), "noise", text, (pictures[i % self.n_pictures],))
            for i, text in enumerate(texts)
        ]
