"""Texts of the card of `llava-smollm2-135m` around its measurements."""

from studies.llava_qwen.card import CardTexts

TEXTS = CardTexts(
    about="""\
A LLaVA on SmolLM2-135M-Instruct, by Hugging Face, which refuses nothing as it comes. This project aligned it, in two
ways, and gave it the vision tower of `llava-qwen-0.5b` with a projector of its own.""",
    variants="""\
Variants differ in how the LLM was aligned, before it had eyes; the eyes are the same.""",
    lessons="""\
Lessons of alignment contain the anchors' requests, which directions are fitted on as well; none from validation or
test. No lesson contains a harmful request with compliance: what preferences reject is the empty beginning of an
answer.""",
    limits="""\
135 million parameters, 4-bit weights, eyes of ours, and an alignment of minutes. It shows what depends on how a model
was aligned, and nothing about models that people use.""",
    licence="""\
SmolLM2-135M-Instruct: Copyright Hugging Face, Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0). The weights of the LLM are not part of this repository. Changes to it:
conversion to bfloat16, and the low-rank updates of the variants.""",
)
