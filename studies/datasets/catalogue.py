"""The benchmarks that can be read, one line each: what it is, its source, its licence, and how to get its files."""

from collections.abc import Iterator

from studies.datasets.registry import ENTRIES, OWN

FILES_OF = {
    "AdvBench": (
        "520 harmful requests",
        "data/advbench/harmful_behaviors.csv; PAIR's 50 are in its repository",
    ),
    "XSTest": ("250 safe prompts that look unsafe, 200 unsafe ones", "xstest_prompts.csv"),
    "FigStep": ("500 requests written in pictures", "data/question/safebench.csv and data/images/SafeBench"),
    "MM-SafetyBench": (
        "13 scenarios, each request with three pictures",
        "processed_questions/*.json, pictures in imgs",
    ),
    "MOSSBench": ("300 harmless requests that look harmful, with pictures", "data and data_contrast"),
    "LVLM-SafeR": (
        "4 x 125 pairs, safe and unsafe, with pictures",
        "data/*.json; pictures by address or from the authors",
    ),
    "HarmBench": (
        "400 behaviours, without the copyrighted ones 300",
        "data/behavior_datasets/harmbench_behaviors_text_*.csv",
    ),
    "HarmBench-multimodal": (
        "110 behaviours about pictures",
        "data/behavior_datasets/harmbench_behaviors_multimodal_all.csv and data/multimodal_behavior_images",
    ),
    "JailbreakBench": (
        "100 harmful and 100 benign behaviours",
        "harmful-behaviors.csv and benign-behaviors.csv",
    ),
    "MaliciousInstruct": ("100 harmful questions", "data/MaliciousInstruct.txt"),
    "StrongREJECT": ("313 harmful requests", "strongreject_dataset/strongreject_dataset.csv"),
    "TDC2023": (
        "50 + 50 harmful requests",
        "red_teaming/data/*/behaviors.json, named TDC2023=PATH; or HarmBench's form",
    ),
    "Do-Not-Answer": ("939 questions that should not be answered", "datasets/Instruction/do_not_answer_en.csv"),
    "refusal_direction": ("harmful and harmless instructions in splits", "dataset/splits/*.json"),
    "VLSafe": ("1,110 harmful questions about COCO pictures", "VLSafe/*.jsonl, and COCO train2017"),
    "VLGuard": (
        "2,000 + 1,000 pictures with safe and unsafe instructions",
        "train.json and test.json; ask for the pictures",
    ),
    "JailBreakV-28K": (
        "28,000 jailbreaks with pictures",
        "JailBreakV_28K/JailBreakV_28K.csv and its folders of pictures",
    ),
    "RedTeam-2K": ("2,000 harmful requests", "JailBreakV_28K/RedTeam_2K.csv"),
    "MM-HarmfulBench": (
        "100 harmful questions about pictures",
        "MM-HarmfulBench/questions.jsonl; pictures by address",
    ),
    "SIUO": (
        "167 questions that a picture makes unsafe",
        "data/siuo_gen.json or siuo_mcqa.json; ask for the pictures",
    ),
    "MM-Vet": ("218 questions about pictures, with answers", "mm-vet.zip among the releases"),
    "ScienceQA": ("4,241 test questions, 2,017 with a picture", "data/scienceqa/problems.json and images/test"),
    "own": (
        "a table of your own",
        "CSV, TSV, JSON, JSON lines, Parquet or a saved dataset with text and harmful, or --columns",
    ),
}
"""Benchmark -> what it is, and the files to get from its source."""


def catalogue() -> Iterator[dict[str, str]]:
    """Yield for each benchmark its name, what it is, source and licence if it has them, and which files to get."""
    for entry in ENTRIES:
        what, files = FILES_OF[entry.name]
        source = {} if entry.name == OWN.name else {"source": entry.source.url, "licence": entry.source.licence}
        yield {"name": entry.name, "what": what, **source, "files": files}
