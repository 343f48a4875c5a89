"""Small files in the format of every benchmark, with placeholders where the published ones have requests."""

import csv
import io
import json
from pathlib import Path

from studies.datasets.text_sets import XSTEST_TYPES


def in_csv(rows: list[dict], end: str = "\n", last_end: bool = True, bom: bool = False) -> bytes:
    """Write rows with the given line end; line ends within cells stay line feeds, as in the published files."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    whole = text.getvalue() if last_end else text.getvalue().removesuffix(end)
    return whole.encode("utf-8-sig" if bom else "utf-8")


def in_json(value) -> bytes:
    return json.dumps(value).encode()


def in_jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def requests(n: int) -> list[str]:
    return [f"Request number {i} that a safe model refuses" for i in range(n)]


def figstep(n: int = 2, categories: tuple[int, ...] = (1, 8)) -> list[dict]:
    return [
        {
            "dataset": "ForbidQI",
            "category_id": category,
            "task_id": task,
            "category_name": f"category {category}",
            "question": f"How can someone do deed {category}-{task}?",
            "instruction": f"Steps to do deed {category}-{task}.",
        }
        for category in categories
        for task in range(1, n + 1)
    ]


def mm_safety_row(i: int) -> dict:
    return {
        "Question": f"Can you tell me about deed {i}?",
        "GPT-Pred": "[Changed Question]",
        "Changed Question": f"List steps to do deed {i}.",
        "Key Phrase": f"deed {i}",
        "Phrase Type": "activity",
        "Rephrased Question": f"The bottom of the image shows a phrase of an activity. List steps, {i}.",
        "Rephrased Question(SD)": f"The image shows an activity. List steps, {i}.",
    }


def xstest(labelled: bool) -> list[dict]:
    rows = []
    for kind in XSTEST_TYPES:
        for i in range(2):
            row = {"prompt": f"{kind} prompt {i}?", "type": kind, "focus": f"word {i}", "note": ""}
            label = "unsafe" if kind.startswith("contrast_") else "safe"
            number = 25 * XSTEST_TYPES.index(kind) + i + 1
            ids = {"id": number, "label": label} if labelled else {"id_v1": "", "id_v2": f"v2-{number}"}
            rows.append(ids | row)
    return rows


def xstest_v1() -> list[dict]:
    rows = [row for row in xstest(labelled=False) if not row["type"].startswith("contrast_")]
    return [
        {"id_v1": f"v1-{i}", **{key: row[key] for key in ("type", "prompt", "focus")}}
        for i, row in enumerate(rows[::2])
    ]


def mossbench(over: str, metadata: dict) -> dict:
    return {
        pid: {
            "image": f"images/{pid}.png",
            "short description": "A room",
            "question": f"What is {over} in picture {pid}?",
            "metadata": metadata,
            "pid": pid,
            "description": "A room",
        }
        for pid in ("1", "2", "7")
    }


def lvlm_safer(is_one_picture: bool) -> list[dict]:
    if is_one_picture:
        return [
            {
                "img": {"id": "02937.png", "source": "elsewhere", "type": "speech"},
                "safe_pair": {"question": "What color is the hat?", "region": "local"},
                "unsafe_pair": {"question": "How to promote this?", "region": "global"},
            }
        ]
    safe = {"description": "an actor", "img_id": "Assassin's Hat.jpg", "img_url": "https://example.org/1"}
    unsafe = {"description": "", "img_id": "COCO_1.webp", "img_source": "COCO"}
    return [{"type": "privacy", "prompt": "Who is this?", "safe_pair": safe, "unsafe_pair": unsafe}]


def vlguard() -> list[dict]:
    answers = [
        {"unsafe_instruction": "Insult them", "response": "No."},
        {"safe_instruction": "Describe it", "response": "A hat."},
    ]
    unsafe = {"id": 7, "image": "HOD/2 & 3.jpg", "safe": False, "harmful_category": "privacy"}
    return [
        {"id": "Ads_3", "image": "bad_ads/3.png", "safe": True, "instr-resp": answers},
        {"id": "Ads_4", "image": "bad_ads/4.png", "safe": True, "instr-resp": answers[::-1]},
        unsafe
        | {"harmful_subcategory": "documents", "instr-resp": [{"instruction": "Read their card", "response": "No."}]},
    ]


def scienceqa() -> dict:
    row = {"question": "Which?", "choices": ["this", "that"], "answer": 1, "hint": "", "image": "image.png"}
    return {
        "3": row | {"split": "test", "hint": "Look.", "topic": "geography"},
        "5": row | {"split": "test", "image": None},
        "11": row | {"split": "train"},
    }


def harmbench() -> list[dict]:
    def row(kind: str, context: str, tags: str) -> dict:
        return {
            "Behavior": f"Do the {kind} deed,\nplease",
            "FunctionalCategory": kind,
            "SemanticCategory": "illegal",
            "Tags": tags,
            "ContextString": context,
            "BehaviorID": f"{kind}_deed",
        }

    return [
        row("standard", "", ""),
        row("contextual", "One line,\nand another", "context"),
        row("copyright", "", "lyrics, hash_check"),
    ]


def in_harmbench_form(texts: list[str], ids: list[str]) -> list[dict]:
    return [
        {"Behavior": text, "Category": "", "Tags": "", "ContextString": "", "BehaviorID": id}
        for text, id in zip(texts, ids, strict=True)
    ]


def jailbreakbench(first: str, word: str) -> list[dict]:
    return [
        {first: i, "Goal": f"{word} {i}", "Target": "Sure", "Behavior": "b", "Category": "c", "Source": "Original"}
        for i in range(2)
    ]


HARMBENCH_PICTURE = {
    "Behavior": "Describe how to misuse this",
    "BehaviorID": "misuse",
    "FunctionalCategory": "multimodal",
    "SemanticCategory": "illegal",
    "ImageFileName": "misuse.jpeg",
    "Source": "",
    "ImageDescription": "A thing,\nseen from above",
    "RedactedImageDescription": "A thing",
    "Tags": "multimodal",
}
JAILBREAKV = {
    "id": 1542,
    "jailbreak_query": "A story.\nNow tell me deed 3",
    "redteam_query": "Tell me deed 3",
    "format": "Template",
    "policy": "Fraud",
    "image_path": "llm_transfer_attack/SD_related_1542.png",
    "from": "GPT Rewrite",
    "selected_mini": "False",
    "transfer_from_llm": "True",
}
SIUO_QUESTION = {
    "question_id": 1001,
    "image": "S-01.png",
    "question": "What do I need here?",
    "category": "self-harm",
}
SIUO = SIUO_QUESTION | {"safety_warning": "It is high up.", "reference_answer": "Step back, please."}
# As published, the multiple-choice file has neither a warning nor an answer in words.
SIUO_CHOICE = SIUO_QUESTION | {"options": {"A": "Jump", "B": "Step back"}, "correct_option": "B"}
MM_VET = {"imagename": "v1_0.jpg", "question": "How much?", "answer": "5<OR> five", "capability": ["ocr", "math"]}
DO_NOT_ANSWER = [
    {"id": i, "risk_area": "a", "types_of_harm": "t", "specific_harms": "s", "question": text}
    for i, text in zip((4, 0, 2), requests(3), strict=True)
]

# Benchmark -> each of its published forms: (path in its folder, contents, number of records).
FORMS: dict[str, list[tuple[str, bytes, int]]] = {
    "AdvBench": [
        ("harmful_behaviors.csv", in_csv([{"goal": text, "target": "Sure, here"} for text in requests(3)]), 3),
        (
            "advbench_behaviors.csv",
            in_csv(
                in_harmbench_form(requests(3), [f"advbench_{i}" for i in range(3)]),
                end="\r\n",
                last_end=False,
            ),
            3,
        ),
        ("advbench.txt", "\n".join(requests(3)).encode(), 3),
        (
            "harmful_behaviors_custom.csv",
            in_csv(
                [
                    {"": i, "goal": text, "target": "Sure", "category": "c", "Original index": 40 - i}
                    for i, text in enumerate(requests(2))
                ]
            ),
            2,
        ),
    ],
    "XSTest": [
        ("xstest_prompts.csv", in_csv(xstest(labelled=True)), 36),
        ("xstest_v2_prompts.csv", in_csv(xstest(labelled=False), end="\r\n"), 36),
        ("xstest_v2.json", in_json(xstest(labelled=False)), 36),
        ("xstest_v1_prompts.csv", in_csv(xstest_v1()), 10),
    ],
    "FigStep": [
        ("question/safebench.csv", in_csv(figstep(), last_end=False), 4),
        ("question/SafeBench-Tiny.csv", in_csv(figstep(1), end="\r\n"), 2),
    ],
    "MM-SafetyBench": [
        ("processed_questions/01-Illegal_Activitiy.json", in_json({str(i): mm_safety_row(i) for i in range(2)}), 8),
        ("processed_questions/10-Legal_Opinion.json", in_json({"0": mm_safety_row(0)}), 4),
        ("subset.json", in_json({"09-Privacy_Violence#87": mm_safety_row(87)}), 4),
    ],
    "MOSSBench": [
        ("images_information/information.json", in_json(mossbench("type 1", {"over": "type 1", "harm": [7]})), 3),
        ("contrast/images_information/information.json", in_json(mossbench("kept", {"over": "type 1"})), 3),
        (
            "information.csv",
            in_csv(
                [
                    {
                        "pid": "1",
                        "question": "What is this?",
                        "image_path": "images/1.png",
                        "short description": "A room",
                        "description": "A room",
                        "meta_data_over": "Negated Harm",
                        "meta_data_harm": "7",
                    }
                ],
                end="\r\n",
            ),
            1,
        ),
    ],
    "LVLM-SafeR": [
        ("2-same_prompt_different_attibutes.json", in_json(lvlm_safer(is_one_picture=False)), 2),
        ("3-same_image_different_region.json", in_json(lvlm_safer(is_one_picture=True)), 2),
    ],
    "HarmBench": [
        ("harmbench_behaviors_text_all.csv", in_csv(harmbench(), end="\r\n"), 2),
        ("adv_training_behaviors.csv", in_csv(in_harmbench_form(requests(2), ["one", "two"])), 2),
    ],
    "HarmBench-multimodal": [("multimodal.csv", in_csv([HARMBENCH_PICTURE], end="\r\n", last_end=False), 1)],
    "JailbreakBench": [
        ("behaviors.csv", in_csv(jailbreakbench("", "Deed")), 2),
        ("harmful-behaviors.csv", in_csv(jailbreakbench("Index", "Deed")), 2),
        ("benign-behaviors.csv", in_csv(jailbreakbench("Index", "Kindness")), 2),
    ],
    "MaliciousInstruct": [("MaliciousInstruct.txt", b"How to do one?\nHow to do two?", 2)],
    "StrongREJECT": [
        (
            "strongreject_dataset.csv",
            in_csv([{"category": "c", "source": "custom", "forbidden_prompt": "Do\nthis"}]),
            1,
        )
    ],
    "TDC2023": [
        ("dev_behaviors.json", in_json(requests(2)), 2),
        ("test_behaviors.json", in_json(requests(1)), 1),
        ("tdc2023_behaviors.csv", in_csv(in_harmbench_form(requests(2), requests(2))), 2),
    ],
    "Do-Not-Answer": [("do_not_answer_en.csv", in_csv(DO_NOT_ANSWER), 3)],
    "refusal_direction": [
        ("splits/harmful_train.json", in_json([{"instruction": "Do a deed", "category": None}]), 1),
        ("splits/harmless_val.json", in_json([{"instruction": "Name a bird", "category": None}]), 1),
        ("processed/harmbench_val.json", in_json([{"instruction": "Do another", "category": "illegal"}]), 1),
    ],
    "VLSafe": [
        ("examine.jsonl", in_jsonl([{"image_id": "000000000009.jpg", "caption": "A bus", "query": "Misuse it"}]), 1),
        (
            "vlsafe_convert_safe.jsonl",
            in_jsonl([{"image_id": "000000000009.jpg", "safe_query": "Use it\u2028well", "orig_query": "Misuse it"}]),
            2,
        ),
    ],
    "VLGuard": [("test.json", in_json(vlguard()), 5)],
    "JailBreakV-28K": [("JailBreakV_28K.csv", in_csv([JAILBREAKV]), 1)],
    "RedTeam-2K": [
        ("RedTeam_2K.csv", in_csv([{"id": 1, "question": "Do it?", "policy": "Fraud", "from": "GPT Rewrite"}]), 1)
    ],
    "MM-HarmfulBench": [
        ("questions.jsonl", in_jsonl([{"image_url": "http://example.org/1", "question": f"{i}?"} for i in "ab"]), 2)
    ],
    "SIUO": [
        ("siuo_gen.json", in_json([SIUO]), 1),
        ("siuo_mcqa.json", in_json([SIUO_CHOICE]), 1),
    ],
    "MM-Vet": [("mm-vet.json", in_json({"v1_0": MM_VET, "v1_9": MM_VET | {"imagename": "v1_9.png"}}), 2)],
    "ScienceQA": [("problems.json", in_json(scienceqa()), 1)],
    "own": [
        ("mine.csv", b"text,harmful,picture\nA deed,yes,\nA bird,no,seen/bird.png\n", 2),
        ("mine.jsonl", in_jsonl([{"text": "A deed", "harmful": True, "category": "c"}]), 1),
    ],
}


def write_form(folder: Path, form: tuple[str, bytes, int]) -> Path:
    path = folder / form[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(form[1])
    return path
