"""The whole recipe on a tiny LLM: what is trained, what stays, and what is built from it."""

import json
from copy import deepcopy
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from interp import VLM, to_prompts, trace
from studies.experiment import built_models
from studies.experiment.built_models import built_model as built_model_of
from studies.experiment.config import Config, ConfigError
from studies.experiment.experiment import load_experiment
from studies.judges import KEYWORDS_1
from studies.llava_qwen import QWEN, answers, build, built_model, instructions, lessons, networks, requests, train
from studies.llava_qwen.answers import OwnAnswer
from studies.llava_qwen.reading import PageLabels
from studies.llava_qwen.texts import Texts
from studies.organism.classroom import Stage
from tests.studies.llava_qwen.conftest import SIZES

STAGE = Stage(2, 2, 1e-2)
RECIPE = train.VisualRecipe(
    sizes=SIZES,
    spelling=STAGE,
    naming=STAGE,
    reading=STAGE,
    words=STAGE,
    looking=STAGE,
    own=(STAGE, STAGE),
    short=STAGE,
    rank=2,
)


@pytest.fixture
def few_instructions(monkeypatch):
    few = {split: texts[:6] for split, texts in instructions.splits().items()}
    monkeypatch.setattr(instructions, "splits", lambda: few)
    return few


@pytest.fixture
def scratch(tmp_path, few_instructions):
    """A folder with answers: a random LLM's own ones are no text."""
    rows = [
        OwnAnswer(split, text, f"Answer {i}.", True)
        for split, texts in few_instructions.items()
        for i, text in enumerate(texts)
    ]
    rows[1] = replace(rows[1], answer="I'm sorry, but I can't assist with that.")
    lines = [json.dumps(vars(row)) for row in rows]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:20])
    return tmp_path


def test_only_low_rank_updates_touch_the_llm_and_the_built_model_has_them(scratch, llm, tokenizer):
    before = {name: value.clone() for name, value in llm.state_dict().items()}
    train.train(RECIPE, llm, tokenizer, scratch / "weights", scratch)
    after = llm.state_dict()
    assert set(before) == set(after) and all(torch.equal(value, after[name]) for name, value in before.items())
    assert {path.name for path in (scratch / "weights").iterdir()} == {
        *(f"{name}.safetensors" for name in ("eyes", "c1", "c2", "d"))
    }
    states = {}
    for name in ("b", "c1"):
        vlm = build.join(replace(QWEN, weights=scratch / "weights"), deepcopy(llm), tokenizer, name, SIZES)
        states[name] = {
            key.replace("model.language_model.", "model."): value for key, value in vlm.state_dict().items()
        }
    # Without updates the LLM is the one that came; with them, a few of its weights differ.
    assert all(torch.equal(states["b"][name], value) for name, value in before.items())
    changed = {name.split(".")[-2] for name, value in before.items() if not torch.equal(states["c1"][name], value)}
    assert changed == {"q_proj", "v_proj", "o_proj"}
    # Both see with the same eyes.
    assert all(torch.equal(value, states["c1"][name]) for name, value in states["b"].items() if "vision_tower" in name)


def test_a_built_folder_is_read_like_any_other_model(scratch, llm, tokenizer, monkeypatch):
    train.train(RECIPE, llm, tokenizer, scratch / "weights", scratch)
    monkeypatch.setattr(built_model, "cache", lambda: scratch / "cache")
    model = replace(QWEN, weights=scratch / "weights")
    monkeypatch.setattr(networks, "VisionSizes", lambda: SIZES)
    monkeypatch.setattr(build.base_model, "find", lambda cache, base, path: path)
    monkeypatch.setattr(build, "dequantised", lambda file: (llm, tokenizer))
    folder = build.get(model, "c1", scratch / "base.gguf")
    assert folder == model.path("c1") and build.get(model, "c1") == folder
    # Other weights than those that it was built from: the folder is replaced.
    before = (folder / "made_of.json").read_text()
    (model.weights / "c1.safetensors").write_bytes((model.weights / "d.safetensors").read_bytes())
    build.get(model, "c1")
    assert (folder / "made_of.json").read_text() != before and [path.name for path in model.folder.iterdir()] != []
    assert not [path for path in model.folder.iterdir() if ".old" in path.name or ".part" in path.name]
    vlm = VLM.from_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert vlm.picture_size == SIZES.picture
    prompts = to_prompts(requests.queries("validation")[:2], "typographic", vlm.picture_size)
    assert trace(vlm, prompts).sizes["layer"] == 3
    # As text, the processor's template is the LLM's own.
    chat = [{"role": "user", "content": "Hello"}]
    assert vlm.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        f"<|im_start|>system\n{QWEN.chat.system}<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_interrupted_build_leaves_nothing_half_done(scratch, monkeypatch):
    def stop(folder):
        (folder / "half").write_text("done")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build._write(scratch / "built", {}, stop)
    assert not [path for path in scratch.iterdir() if "built" in path.name]


@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava-qwen-0.5b", QWEN.default), ("llava-qwen-0.5b:c2", "c2"), ("organism", None), ("my/llava", None)],
)
def test_a_variant_is_named_behind_a_colon(name, variant):
    model = built_model_of(name)
    assert (model and model.variant_of(name)) == variant


def test_a_model_that_is_not_built_is_reported_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(built_model, "cache", lambda: tmp_path)
    with pytest.raises(ConfigError, match="is not built yet.*run `vlm-guard model get llava-qwen-0.5b:b`"):
        load_experiment(Config(model="llava-qwen-0.5b:b", scale="tiny", out=str(tmp_path / "out")))
    with pytest.raises(ConfigError, match="variant 'x' does not exist; expected one of b, c1"):
        load_experiment(Config(model="llava-qwen-0.5b:x", scale="tiny", out=str(tmp_path / "out")))


def test_a_built_model_whose_weights_no_longer_ship_is_reported_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(built_model, "cache", lambda: tmp_path)
    monkeypatch.setattr(built_models, "BUILT_MODELS", (replace(QWEN, weights=tmp_path / "llava_qwen" / "weights"),))
    for folder in ("c1", "llm"):
        (tmp_path / QWEN.alias / folder).mkdir(parents=True)
    with pytest.raises(ConfigError, match="not part of this version; train them with `python -m studies.llava_qwen`"):
        load_experiment(Config(model="llava-qwen-0.5b:c1", scale="tiny", out=str(tmp_path / "out")))


def test_no_lesson_holds_a_refusal(scratch, tokenizer):
    own = answers.read(scratch / "answers.jsonl")
    assert len(own) == 18 and sum(not answer.is_useful for answer in own) == 1


def test_lessons_are_benign_and_their_answers_are_of_their_style(scratch, tokenizer):
    useful = [answer for answer in answers.read(scratch / "answers.jsonl") if answer.is_useful]
    texts = Texts.of(tuple(answer.text for answer in useful), [answer.answer for answer in useful], tokenizer)
    teacher = lessons.Teacher(useful, texts, PageLabels(SIZES, tokenizer))
    own = {answer.answer for answer in useful}
    requested = {query.text for split in requests.SPLITS for query in requests.queries(split)}
    rng = np.random.default_rng(0)
    styles = {
        style: [getattr(teacher, style)(rng) for _ in range(200)] for style in ("looking", "own_style", "short_style")
    }
    assert all(lesson.picture for lesson in styles["looking"])
    taught = {
        style: [lesson.answer for lesson in own_lessons if not lesson.picture or lesson.picture.text != lesson.answer]
        for style, own_lessons in styles.items()
    }
    assert sum(answer in own for answer in taught["own_style"]) > 80
    assert not own & {*taught["looking"], *taught["short_style"]}
    for lesson in chain(*styles.values()):
        assert not KEYWORDS_1.refuses(lesson.answer)
        assert not {lesson.text, lesson.answer, lesson.picture.text if lesson.picture else ""} & requested
