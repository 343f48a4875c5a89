"""Texts of the card of `llava-qwen-0.5b` around its measurements."""

from studies.llava_qwen.card import CardTexts

TEXTS = CardTexts(
    about="""\
A LLaVA on an LLM whose safety others trained: Qwen2.5-Coder-0.5B-Instruct, by Alibaba Cloud. Its refusals are its
makers'. Added here: a vision tower of a few million parameters that reads printed English and sees simple scenes, a
projector, and, in some variants, low-rank updates of the LLM.""",
    variants="""\
Variants differ in what was done to the LLM after vision tower and projector had been trained.""",
    lessons="""\
No lesson contains a harmful request with compliance, or a refusal. Harmful words occur in transcriptions alone. None of
the requests below is in a lesson.""",
    limits="""\
Half a billion parameters, 4-bit weights, and eyes of ours that see nothing but print, simple drawings and noise. As
text, the LLM refuses many of the harmless requests, which share their words with harmful ones: its judgement goes by
words. What holds on this model is shown on *a* real aligned LLM; it says little about larger ones.""",
    licence="""\
Qwen2.5-Coder-0.5B-Instruct: Copyright Alibaba Cloud, Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0). The weights of the LLM are not part of this repository. Changes to it:
conversion to bfloat16, and the low-rank updates of the variants c1 to d.""",
)
