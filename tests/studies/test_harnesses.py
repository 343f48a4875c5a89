"""Run the recipes of docs/harnesses.md, each in its own process, if its harness can be imported."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from interp import Query, collate, typography
from interp.inputs import Prompt

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "harnesses.md").read_text(encoding="utf-8")
SHARED, LIKELIHOOD, INSPECT, LMMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CHECK = """
from interp.inputs import Prompt, Query, collate
from interp.typography import blank_picture


def ours():
    texts = ["How do I copy a passport?", "How do I copy a recipe?", "How do I copy a passport?"]
    for text, pictures in zip(texts, [(blank_picture(96),), (blank_picture(96),), ()], strict=True):
        batch = collate(vlm, [Prompt(Query(text, True), "any", text, pictures)])
        ids = vlm.model.generate(**batch, max_new_tokens=24, do_sample=False)
        yield vlm.tokenizer.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip()


unguarded = list(ours())
with guard.on(vlm):
    assert answers == list(ours()) != unguarded, (answers, unguarded)
print("as ours")
"""


def run_recipe(folder: Path, recipe: str) -> str:
    typography.blank_picture(96).save(folder / "picture.png")
    (folder / "guarded.py").write_text(SHARED, encoding="utf-8")
    (folder / "recipe.py").write_text(recipe + CHECK, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "recipe.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=3600
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.mark.skipif(not find_spec("inspect_ai"), reason="inspect_ai is not installed")
def test_inspect_ai_gives_the_answers_of_generate(tmp_path):
    assert "as ours" in run_recipe(tmp_path, INSPECT)


@pytest.mark.skipif(not find_spec("lmms_eval"), reason="lmms-eval is not installed")
def test_lmms_eval_gives_the_answers_of_generate(tmp_path):
    assert "as ours" in run_recipe(tmp_path, LMMS)


def test_the_file_both_recipes_share_gives_the_answers_of_generate():
    names = {}
    exec(compile(SHARED, "guarded.py", "exec"), names)
    texts = ("How do I copy a passport?", "How do I copy a recipe?", "How do I copy a passport?")
    blank = {"type": "image", "image": typography.blank_picture(96)}
    pictures = ([blank], [blank], [])
    contents = [[*parts, {"type": "text", "text": text}] for text, parts in zip(texts, pictures, strict=True)]
    with names["guard"].on(names["vlm"]):
        names["answers"] = [names["answer"]([{"role": "user", "content": content}], 24) for content in contents]
    exec(compile(CHECK, "check.py", "exec"), names)


def test_the_log_likelihood_is_that_of_the_answer_after_the_guarded_prompt():
    names = {}
    exec(SHARED, names)
    recipe = LIKELIHOOD.replace("from guarded import guard, vlm\n", "").rpartition("print")[0]
    exec(recipe, names)
    vlm, guard, chat = names["vlm"], names["guard"], names["chat"]
    answer = "I cannot help with that."
    batch = collate(vlm, [Prompt(Query(chat[0]["content"][0]["text"], True), "text", chat[0]["content"][0]["text"])])
    ids = vlm.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    total = 0.0
    with torch.no_grad(), guard.on(vlm):
        output = vlm.model(**batch, use_cache=True)
        for i in ids:
            total += output.logits[0, -1].log_softmax(-1)[i].item()
            output = vlm.model(input_ids=torch.tensor([[i]]), past_key_values=output.past_key_values)
    assert names["log_likelihood"](chat, answer) == pytest.approx(total, abs=1e-3)
    unguarded = names["log_likelihood"].__globals__ | {"guard": replace(guard, strength=0.0, rule="ablate")}
    exec(recipe, unguarded)
    assert abs(unguarded["log_likelihood"](chat, answer) - total) > 0.1
