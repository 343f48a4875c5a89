"""Which guards can share a prefill, on which models; every reason why one can't is a sentence."""

from interp.bare import is_guarded
from interp.guard import Guard
from interp.tracing.prefix import shares_prefixes
from interp.vlm import LLM, VLM

MASKABLE_ATTENTION = ("eager", "sdpa")
"""Attention implementations that accept any mask."""
GREEDY_SETTINGS = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": None,
}
"""Settings of a generation config with the values at which greedy decoding picks the likeliest token each time."""
PREFILL_SAFE_POSITIONS = ("last_prefill", "generated", "last")
"""Positions of a guard that leave the prompt unchanged before its last token."""


def why_not_together(vlm: VLM | LLM, guard: Guard | None, max_new_tokens: int = 1) -> str | None:
    """Return the reason why a guard can't share a prefill with other guards on this model; None if it can."""
    if guard and guard.positions not in PREFILL_SAFE_POSITIONS:
        return f"positions {guard.positions} change the prompt before its last token"
    if guard and guard.frozen_shift:
        return "a frozen shift is measured in a pass of its own"
    if guard and guard.all_writes:
        return "all_writes changes more than one place in a layer"
    return _why_model_not_together(vlm, max_new_tokens)


def _why_model_not_together(vlm: VLM | LLM, max_new_tokens: int) -> str | None:
    if is_guarded(vlm.model):
        return f"a guard is on {vlm.name!r} already"
    if not vlm.family.is_causal:
        return f"prompt tokens of {vlm.name!r} look ahead"
    if not vlm.family.pictures_in_sequence:
        return f"pictures of {vlm.name!r} are not part of the token sequence"
    text = vlm.model.config.get_text_config()
    unknown = sorted(set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if unknown:
        return f"{vlm.name!r} has layers of {', '.join(unknown)}"
    if text._attn_implementation not in MASKABLE_ATTENTION:
        return f"{vlm.name!r} attends by {text._attn_implementation}, which accepts no mask per guard"
    changed = _settings_beyond_greedy(vlm) if max_new_tokens > 1 else []
    if changed:
        return f"the generation config of {vlm.name!r} sets {', '.join(changed)}"
    # Tested once on each model: the name of a family proves nothing.
    return None if shares_prefixes(vlm) else f"prompts of {vlm.name!r} can't be cut into prefix and suffix"


def _settings_beyond_greedy(vlm: VLM | LLM) -> list[str]:
    config = vlm.model.generation_config
    return [name for name, plain in GREEDY_SETTINGS.items() if getattr(config, name, None) not in (None, plain)]
