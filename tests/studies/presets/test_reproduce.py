"""`vlm-guard reproduce`: the plan without a model, a whole run on the built-in model, and a planted direction."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from interp import LLM, to_prompts
from interp.inputs import collate
from studies import organism
from studies.defences.answer_log import read_answers
from studies.experiment.config import ConfigError
from studies.organism import language
from studies.presets.plan import memory_of, shape_of
from studies.presets.preset import PresetError, read_preset
from studies.presets.refusal_direction import drawn_anchors
from studies.presets.reproduction import Reproduction
from studies.reproduce import run
from tests.studies.presets.preset_files import write_pairs, write_preset, write_requests


@pytest.fixture
def console():
    return Console(width=200, record=True)


@pytest.fixture
def data(tmp_path):
    """Data of the preset `llava-1.5-7b`, in the words of the built-in model."""
    folder = tmp_path / "data"
    write_requests(folder / "refusal_direction/dataset/splits/harmful_test.json", True, 8)
    write_pairs(folder / "pairs.csv")
    return folder


def test_the_plan_needs_neither_model_nor_data(tmp_path):
    plan = "\n".join(Reproduction(read_preset("llava-1.5-7b"), tmp_path, tmp_path / "out").plan().lines())
    assert "weights 14.1 GB" in plan and "revision main (the source states no revision)" in plan
    assert "missing: refusal_direction/dataset/splits/harmful_test.json: git clone" in plan
    assert "targets: 0 of 14 can be tested" in plan and "left out, since its data is missing: T1, text" in plan
    assert not (tmp_path / "out").exists()


def test_the_plan_counts_answers_and_names_a_changed_file(data, tmp_path):
    plan = "\n".join(Reproduction(read_preset("llava-1.5-7b"), data, tmp_path / "out", limit=3).plan().lines())
    assert "answers: 6, 0 of them done; at most 200 tokens" in plan
    assert "harmful_test.json is not the file that the published numbers were measured on" in plan
    assert "targets: 14 of 14" in plan


def test_a_run_on_the_built_in_model_is_resumed_and_ends_in_verdicts(data, tmp_path, console, monkeypatch):
    reproduction = Reproduction(
        read_preset("llava-1.5-7b"), data, tmp_path / "out", "organism", limit=4, loading={"dtype": "float32"}
    )
    monkeypatch.setattr("studies.benchmarks._write_results", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(reproduction, console)
    done = (tmp_path / "out/answers/answers.jsonl").read_text()
    monkeypatch.undo()
    again = Reproduction(
        read_preset("llava-1.5-7b"), data, tmp_path / "out", "organism", limit=4, loading={"dtype": "float32"}
    )
    verdicts = run(again, console)
    log = read_answers(tmp_path / "out/answers/answers.jsonl")
    assert len(log) == 8 and {json.loads(line)["key"] for line in done.splitlines()} == {each.key for each in log}
    assert {verdict.verdict for verdict in verdicts} == {"another model", "not measured"}
    by_target = {verdict.target: verdict for verdict in verdicts}
    # The gap of the built-in model: all attacks fail as text, and some succeed with a blank picture.
    assert by_target["T2, text"].ours == 0 and by_target["T2, text"].n == 4
    assert "layer 8" in [name for name in by_target if by_target[name].verdict == "not measured"][0]
    table = pd.read_csv(tmp_path / "out/targets.csv")
    assert len(table) == 14 and table.preset.str.contains(read_preset("llava-1.5-7b").sha256).all()
    assert "8 of them done" in console.export_text()
    other = Reproduction(read_preset("llava-1.5-7b"), data, tmp_path / "out", "organism", limit=3)
    with pytest.raises(ConfigError, match="limit 4, now 3"):
        run(other, console)


def test_what_was_not_measured_as_published_is_not_compared(data, tmp_path):
    preset = read_preset("llava-1.5-7b")
    by_id = {target.id: target for target in preset.targets}

    def verdict(name, **settings):
        return Reproduction(preset, data, tmp_path / "out", **settings).why_incomparable(by_id[name])[0]

    # The file of the tests is not the published one, and pairs are the user's own.
    assert verdict("T2, text") == verdict("T5, layer 8, cosine of the directions as text and with a blank picture")
    assert verdict("T2, text") == "other data"
    assert verdict("T2, text", limit=3) == verdict("T2, text", is_quick=True) == "quick run"
    assert verdict("T2, text", other_model="organism", limit=3) == "another model"
    same = preset.model_copy(update={"data": tuple(d.model_copy(update={"sha256": ""}) for d in preset.data)})
    for settings in ({"other_blank": "white"}, {"loading": {"dtype": "float32"}}, {"loading": {"revision": "x"}}):
        assert Reproduction(same, data, tmp_path, **settings).why_incomparable(by_id["T2, text"])[0] == "other settings"
    assert Reproduction(same, data, tmp_path, loading={"dtype": "auto"}).why_incomparable(by_id["T2, text"]) is None


def test_half_a_line_of_a_killed_run_does_not_stop_the_next_one(data, tmp_path):
    log = tmp_path / "out/answers/answers.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"a": 1}\n{"b')
    plan = Reproduction(read_preset("llava-1.5-7b"), data, tmp_path / "out").plan()
    assert plan.n_done == 1


def test_the_plan_says_why_a_file_that_is_there_can_not_be_read(data, tmp_path):
    (data / "refusal_direction/dataset/splits/harmful_test.json").write_text("[{")
    plan = "\n".join(Reproduction(read_preset("llava-1.5-7b"), data, tmp_path / "out").plan().lines())
    assert "can't be read: " in plan and "harmful_test.json: " in plan and "git clone" not in plan


def test_a_set_without_its_pictures_is_missing(tmp_path):
    folder = tmp_path / "MM-SafetyBench/data/processed_questions"
    folder.mkdir(parents=True)
    row = {"Question": "Q?", "Changed Question": "How?", "Key Phrase": "it", "Phrase Type": "Activity"}
    row |= {"Rephrased Question": "How?", "Rephrased Question(SD)": "How?"}
    (folder / "01-Illegal_Activitiy.json").write_text(json.dumps({"0": row}))
    data = Reproduction(read_preset("shiftdc-llava-1.5-7b"), tmp_path, tmp_path / "out").data
    assert "mm_safetybench" in [each.name for each in data.missing]


@pytest.mark.parametrize("rows", ["a,true,1\nb,false,1\n", "a,true,\nb,false,\nc,true,\nd,false,\n"])
def test_directions_need_pairs(rows, tmp_path, tiny_vlm):
    from studies.datasets import read_queries
    from studies.presets.directions import compare_directions

    (tmp_path / "pairs.csv").write_text("text,harmful,pair\n" + rows)
    with pytest.raises(PresetError, match="expected 3 pairs at least, each of a harmful and a harmless request"):
        compare_directions(tiny_vlm, read_queries(tmp_path / "pairs.csv"), [0], "grey")


def _interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_grey_and_white_pictures_are_different_prompts(data, tmp_path):
    preset = read_preset("llava-1.5-7b")
    part, colours = preset.answers[0], {}
    for blank in ("", "white"):
        from studies.defences.benchmark_sets import prompt_sets_of

        options = Reproduction(preset, data, tmp_path, other_blank=blank).benchmarks(part)
        (pictured,) = [each for each in prompt_sets_of(options, 96) if each.modality == "blank"]
        picture = pictured.prompts[0].pictures[0]
        colours[options.blank] = picture.draw(*picture.args).getpixel((0, 0))
    assert colours == {"grey": (128, 128, 128), "white": (255, 255, 255)}


def test_nothing_is_measured_without_data(tmp_path, console):
    with pytest.raises(PresetError, match="none of the data of 'llava-1.5-7b' is in"):
        run(Reproduction(read_preset("llava-1.5-7b"), tmp_path, tmp_path / "out", "organism"), console)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_with_code_of_its_own_is_not_loaded_unasked(tmp_path, console):
    write_requests(tmp_path / "refusal_direction/dataset/processed/jailbreakbench.json", True, 2)
    with pytest.raises(ConfigError, match="Qwen-1_8B-Chat runs Python code of its own"):
        run(Reproduction(read_preset("refusal-direction-qwen-1.8b"), tmp_path, tmp_path / "out"), console)
    assert not (tmp_path / "out").exists()


def literal_mean_differences(model, texts, position):
    """Return the mean difference as the published code takes it: hooks on the input of each block."""
    means = []
    for part in texts:
        total, n_requests = torch.zeros(model.n_layers, model.d_model, dtype=torch.float64), len(part)

        def hook(layer, total=total, n=n_requests):
            def add(module, args, kwargs):
                states = args[0] if args else kwargs["hidden_states"]
                total[layer] += states[:, position].double().sum(0) / n

            return add

        handles = [block.register_forward_pre_hook(hook(i), with_kwargs=True) for i, block in enumerate(model.blocks)]
        for query in part:
            with torch.no_grad():
                model.model(**collate(model, to_prompts([query], "text", 0)))
        for handle in handles:
            handle.remove()
        means.append(total)
    return means[0] - means[1]


@pytest.fixture
def llm():
    return LLM.from_pretrained(organism.llm_path(), device="cpu")


def refusing_tokens(llm, queries):
    """Return the first tokens of the answers to harmful requests."""
    with torch.no_grad():
        logits = [llm.model(**collate(llm, to_prompts([query], "text", 0))).logits[0, -1] for query in queries]
    return {int(each.argmax()) for each in logits}


def test_a_planted_direction_is_found_and_its_ablation_changes_the_answers(tmp_path, console, llm):
    folder = tmp_path / "data"
    for name, harmful, n, split in (
        ("harmful_train.json", True, 30, "anchors"),
        ("harmless_train.json", False, 30, "anchors"),
        ("harmful_test.json", True, 20, "test"),
    ):
        write_requests(folder / name, harmful, n, split)
    classes = [[query for query in language.queries("anchors") if query.harmful == h][:30] for h in (True, False)]
    anchors = drawn_anchors(*classes, 20, 42)
    tokens = refusing_tokens(llm, [query for query in anchors if query.harmful])
    theirs = literal_mean_differences(llm, [[q for q in anchors if q.harmful == h] for h in (True, False)], -1)
    torch.save(theirs[None], folder / "mean_diffs.pt")
    path = write_preset(tmp_path / "planted.toml", REFUSAL=", ".join(map(str, tokens)))
    reproduction = Reproduction(read_preset(str(path)), folder, tmp_path / "out", loading={"dtype": "auto"})
    verdicts = {verdict.target: verdict for verdict in run(reproduction, console)}
    assert verdicts["cosine"].verdict == "reproduced" and verdicts["cosine"].ours > 0.9999
    assert verdicts["unguarded"].verdict == "reproduced" and verdicts["unguarded"].ours == 0
    # Without its direction, the model answers what it refused.
    assert verdicts["ablated"].ours > 0.5
    torch.save(torch.randn_like(theirs)[None], folder / "mean_diffs.pt")
    other = Reproduction(read_preset(str(path)), folder, tmp_path / "other", loading={"dtype": "auto"})
    verdicts = {verdict.target: verdict for verdict in run(other, console)}
    assert verdicts["cosine"].verdict == "differs"


@pytest.mark.parametrize("content", ["not a tensor", {"a": 1}, torch.zeros(2, 3), torch.zeros(1, 8, 7)])
def test_a_file_that_holds_no_directions_is_refused(content, tmp_path, console, llm):
    from studies.presets.refusal_direction import read_published

    path, settings = tmp_path / "mean_diffs.pt", read_preset("refusal-direction-gemma-2b").refusal_direction
    if isinstance(content, str):
        path.write_text(content)
    else:
        torch.save(content, path)
    with pytest.raises(PresetError, match="mean_diffs.pt (can't be read as a tensor|holds)"):
        read_published(path, settings, 8, 160)


def test_anchors_are_drawn_as_the_published_code_draws_them():
    import random

    classes = [[query for query in language.queries("anchors") if query.harmful == h] for h in (True, False)]
    random.seed(42)
    expected = [*random.sample(classes[0], 16), *random.sample(classes[1], 16)]
    assert drawn_anchors(*classes, 16, 42) == expected
    with pytest.raises(PresetError, match="harmful requests to draw 10000 anchors from"):
        drawn_anchors(*classes, 10_000, 42)


def test_memory_is_that_of_weights_cache_and_states(tiny_vlm):
    shape = shape_of(tiny_vlm, 36)
    memory = memory_of(shape, "float32", 4, 100, 20)
    assert memory.weights == 4 * sum(p.numel() for p in tiny_vlm.model.parameters())
    assert memory.cache == 2 * 3 * 32 * 4 * 4 * 120
    assert memory.peak > memory.weights + memory.cache
    assert np.isclose(memory_of(shape, "bfloat16", 4, 100, 20).weights, memory.weights / 2)
