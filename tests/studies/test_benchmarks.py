"""Benchmarks from files to tables, interrupted and resumed, and judged again."""

import csv
import json
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from interp.directions import SafetyDirection
from interp.guard import Guard
from interp.inputs import Query, to_prompts
from interp.trace import trace
from studies import benchmarks
from studies.cli import benchmark_run
from studies.cli.benchmark_options import benchmark_file
from studies.datasets import QueryFileError, Record, SeenTexts, Source, write_queries
from studies.defences import benchmark_sets
from studies.defences.answer_log import AnswerLog, read_answers
from studies.defences.benchmark_sets import BenchmarkFile, BenchmarkOptions, prompt_sets_of
from studies.defences.defence import unguarded
from studies.defences.lineup import check_names
from studies.defences.prompt_sets import AT_ONCE
from studies.defences.stage_costs import QUANTILES
from studies.experiment.config import ConfigError
from studies.experiment.model_loading import load_model
from studies.generation.generate import Generation
from studies.judges import FAILED, KEYWORDS, PUBLISHED, UNPARSED, Verdict
from studies.organism import language

HOW = Generation(max_new_tokens=24, batch_size=32)
QUERIES = language.queries("validation")[:20]
ANCHORS = language.queries("anchors")[:30] + QUERIES[:1]


@pytest.fixture(scope="module")
def vlm():
    return load_model("organism")


@pytest.fixture(scope="module")
def guard(vlm):
    anchors = to_prompts(language.queries("anchors"), "text", vlm.picture_size)
    return Guard(SafetyDirection.fit(trace(vlm, anchors)), (7,), strength=2.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A text set of paired requests, and a set with pictures next to its requests, two of them missing."""
    folder = tmp_path_factory.mktemp("data")
    write_queries(folder / "mine.csv", QUERIES)
    (folder / "pictured").mkdir()
    Image.new("RGB", (32, 32), "white").save(folder / "pictured" / "a.png")
    with (folder / "pictured" / "shown.jsonl").open("w") as file:
        for i, query in enumerate(QUERIES[:8]):
            picture = "a.png" if i < 6 else "gone.png"
            file.write(json.dumps({"text": query.text, "harmful": query.harmful, "picture": picture}) + "\n")
    return folder


@pytest.fixture(scope="module")
def finished(vlm, guard, data, tmp_path_factory):
    """A finished run: folder, options, table, and what was printed."""
    out = tmp_path_factory.mktemp("defended")
    options = BenchmarkOptions.of(
        [benchmark_file(f"own={data / 'mine.csv'}")],
        ("text", "blank"),
        ("self_reminder", "text_verdict", "guard"),
        attacks=["role_play"],
    )
    console = Console(record=True, width=100)
    report_leakage = partial(benchmark_run.print_leakage, console=console)
    result = benchmarks.run(
        vlm, "weights", options, [KEYWORDS], out, HOW, guard, ANCHORS, {"model": "tiny"}, report_leakage
    )
    benchmark_run.print_result(result, console)
    return out, options, result.table, console.export_text()


def row(table, **columns):
    for column, value in columns.items():
        table = table[table[column] == value]
    assert len(table) == 1, columns
    return table.iloc[0]


def test_every_set_is_answered_under_every_defence_and_judged(finished):
    out, _, table, printed = finished
    answers = read_answers(out / "answers.jsonl")
    # 20 requests, as text and with a blank picture, plain and in a role play; unguarded and three defences.
    assert len(answers) == 20 * 2 * 2 * 4
    assert {record.setting for record in answers} == {"plain", "role_play@1"}
    assert all((record.said == record.request) == (record.setting == "plain") for record in answers)
    assert all(record.request in record.said for record in answers)
    assert all(KEYWORDS.name in record.verdicts for record in answers)
    assert all(record.generation["max_new_tokens"] == 24 for record in answers)
    plain = {"dataset": "mine", "setting": "plain", "modality": "blank", "metric": "asr"}
    unguarded, guarded = (row(table[table.category.isna()], **plain, defence=name) for name in ("unguarded", "guard"))
    assert guarded.value < unguarded.value and guarded.n == 10
    assert {"paired_rate", "asr_change_p_holm", "over_refusal_rate"} <= set(table.metric)
    assert "attack success" in printed and "mine, plain, blank" in printed
    assert {"defence.csv", "leakage.csv", "defend.json", "safety_tradeoff.png"} <= {path.name for path in out.iterdir()}


def test_anchors_are_found_in_the_set(finished):
    out, _, _, printed = finished
    assert "leakage, mine: 1 of 20 test requests are among the 31 anchors: 1 word for word" in " ".join(printed.split())
    leaked = pd.read_csv(out / "leakage.csv")
    assert leaked.anchor.tolist() == [QUERIES[0].text] and leaked.dataset.tolist() == ["mine"]
    described = json.loads((out / "defend.json").read_text(encoding="utf-8"))
    assert described["model"] == "tiny" and described["leakage"].keys() == {"mine"}
    assert described["leakage"]["mine"].startswith("1 of 20 test requests are among the 31 anchors")
    assert printed.index("leakage, mine") < printed.index("attack success")


def test_what_the_guard_was_chosen_on_is_found_too_by_hashes_alone(finished, vlm, tmp_path):
    disguised = QUERIES[1].text.upper().replace("?", "") + ", please!"
    queries = {"anchors": QUERIES[2:3], "validation": (Query(disguised, False), Query("Paint a house", False))}
    SeenTexts.of(queries).write(tmp_path)
    events = []

    def stop(leakage):
        events.append(leakage)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seen = SeenTexts.read(tmp_path)
        benchmarks.run(vlm, "weights", finished[1], [KEYWORDS], tmp_path, HOW, report_leakage=stop, seen=seen)
    anchors, validation = events[0]["mine"].split("; ")
    assert anchors.startswith("1 of 20 test requests are among the 1 anchors: 1 word for word")
    assert validation.startswith("1 of 20 test requests are among the 2 validation requests: 0 word for word, 1 with")
    leaked = pd.read_csv(tmp_path / "leakage.csv")
    assert leaked[["anchor", "kind", "split"]].values.tolist() == [
        ["anchors 1", "exact", "anchors"],
        ["validation 1", "near", "validation"],
    ]


def test_leakage_is_reported_before_the_first_answer_and_removed_without_anchors(finished, vlm, data, tmp_path):
    options, events = finished[1], []

    def stop(leakage):
        events.append(leakage)
        raise KeyboardInterrupt

    for anchors in (QUERIES[:1], ()):
        with pytest.raises(KeyboardInterrupt):
            benchmarks.run(vlm, "weights", options, [KEYWORDS], tmp_path, HOW, anchors=anchors, report_leakage=stop)
        assert (tmp_path / "leakage.csv").exists() == bool(anchors)
    assert [list(leakage) for leakage in events] == [["mine"], []]
    assert not (tmp_path / "answers.jsonl").exists()


def test_nothing_is_asked_twice(finished, vlm, guard, monkeypatch):
    out, options, table, _ = finished

    def asked(*args):
        raise AssertionError("asked although it was answered")

    monkeypatch.setattr("studies.defences.prompt_sets._answer", asked)
    again = benchmarks.run(vlm, "weights", options, [KEYWORDS], out, HOW, guard, ANCHORS)
    pd.testing.assert_frame_equal(again.table, table)


def test_bounds_rivals_and_costs_are_in_the_table_of_a_published_set(vlm, guard, data, tmp_path):
    names = ("guard", "guard_always", "gate_refuser", "text_score_verdict", "cmrm", "self_reminder")
    options = BenchmarkOptions.of([BenchmarkFile(data / "mine.csv")], defences=names, limit=4, n_costed=2)
    console = Console(record=True, width=150)
    result = benchmarks.run(vlm, "w", options, [KEYWORDS], tmp_path, HOW, guard, ANCHORS[:30])
    benchmark_run.print_result(result, console)
    rows = result.table.dropna(subset="defence")
    arms = rows[(rows.metric == "asr") & rows.category.isna()].set_index("defence")
    assert set(arms.index) == {"unguarded", *names}
    # Four attacks leave no room, and nothing is chosen where there are anchors alone.
    assert arms.standing.to_dict() == {
        "unguarded": "baseline",
        "gate_refuser": "bound",
        "text_score_verdict": "bound",
    } | {"guard_always": "control"} | dict.fromkeys(("guard", "cmrm", "self_reminder"), "not testable here")
    tuning = arms.tuning.to_dict()
    assert tuning["cmrm"] == tuning["self_reminder"] == "untuned"
    assert tuning["guard"] == tuning["gate_refuser"] == "as given"
    assert tuning["text_score_verdict"].endswith("midpoint of 30 anchors")
    costs = rows[rows.setting == "cost"]
    assert {"tokens", "forward_passes", "seconds", *QUANTILES} == set(costs.metric) and set(costs.n) == {2}
    assert set(costs.defence) == {"unguarded", *names}
    assert "mine, cost, text" in console.export_text()
    assert (result.table.metric == "opening_coverage").sum() == 1


def test_an_interrupted_run_is_resumed(finished, vlm, guard, tmp_path):
    out, options, _, _ = finished
    lines = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    # Fifty answers, and half of another.
    (tmp_path / "answers.jsonl").write_text("".join(lines[:50]) + lines[50][:40], encoding="utf-8")
    benchmarks.run(vlm, "weights", options, [KEYWORDS], tmp_path, HOW, guard)
    first, second = (
        {record.key: record for record in read_answers(folder / "answers.jsonl")} for folder in (out, tmp_path)
    )
    assert first.keys() == second.keys()
    assert all(first[key].answer == second[key].answer for key in first)


def test_answers_of_another_model_or_length_are_not_mixed_in(finished, vlm, guard):
    out, options, _, _ = finished
    longer = Generation(max_new_tokens=25, batch_size=32)
    for weights, generation in (("others", HOW), ("weights", longer)):
        with pytest.raises(ConfigError, match="holds answers of 'organism' .weights. .* give another --out"):
            benchmarks.run(vlm, weights, options, [KEYWORDS], out, generation, guard)


def test_ctrl_c_loses_one_batch_at_most(vlm, data, tmp_path, monkeypatch):
    from studies.defences import prompt_sets

    options = BenchmarkOptions.of([BenchmarkFile(data / "mine.csv")], defences=("self_reminder",))
    real, calls = prompt_sets._answer, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(prompt_sets, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmarks.run(vlm, "weights", options, [KEYWORDS], tmp_path, HOW)
    kept = read_answers(tmp_path / "answers.jsonl")
    assert len(kept) == 20 <= AT_ONCE and {record.defence for record in kept} == {"unguarded"}


def test_other_judges_need_no_model(finished, tmp_path):
    out = finished[0]
    (tmp_path / "answers.jsonl").write_bytes((out / "answers.jsonl").read_bytes())
    others = [PUBLISHED["xstest@1"], PUBLISHED["gcg@1"]]
    table = benchmarks.judge_again(tmp_path / "answers.jsonl", others, tmp_path).table
    assert list(dict.fromkeys(table.judge.dropna())) == ["xstest@1", "gcg@1", KEYWORDS.name]
    (record, *_) = read_answers(tmp_path / "answers.jsonl")
    assert set(record.verdicts) == {"xstest@1", "gcg@1", KEYWORDS.name}
    agreement = pd.read_csv(tmp_path / "judges.csv")
    assert {"kappa", "agreement", "late_refusal_rate", "looping_rate"} <= set(agreement.metric)


class CountingJudge:
    """A judge that always gives one verdict, and counts how often it is asked."""

    def __init__(self, identity="one", **verdict):
        self.name, self.identity, self.verdict, self.n_asked = "counting@1", identity, Verdict(**verdict), 0

    def verdicts(self, cases, advance=lambda n: None):
        self.n_asked += len(cases)
        return [self.verdict] * len(cases)


@pytest.fixture
def judged_by(finished, tmp_path):
    (tmp_path / "answers.jsonl").write_bytes((finished[0] / "answers.jsonl").read_bytes())
    return lambda judge: benchmarks.judge_again(tmp_path / "answers.jsonl", [KEYWORDS, judge], tmp_path).table


def test_a_judge_that_could_not_be_asked_is_asked_again(judged_by):
    absent = CountingJudge(state=FAILED)
    for times in (1, 2):
        table = judged_by(absent)
        assert absent.n_asked == 320 * times
    rows = table[table.judge == absent.name]
    failed = rows[rows.metric == "failed_rate"]
    assert (failed.value == 1).all() and failed.n.sum() == 320
    # Answers that nobody has judged don't count as safe.
    asr = rows[(rows.metric == "asr") & rows.category.isna()]
    assert len(asr) and asr.value.isna().all() and (asr.ci_high > 0.9).all()


def test_replies_that_cant_be_read_are_asked_for_again(judged_by):
    unreadable = CountingJudge(state=UNPARSED)
    for times in (1, 2):
        table = judged_by(unreadable)
        assert unreadable.n_asked == 320 * times
    rows = table[(table.judge == unreadable.name) & (table.metric == "unparsed_rate")]
    assert (rows.value == 1).all() and rows.n.sum() == 320


def test_keywords_stand_next_to_a_model_that_judges_alone(finished, tmp_path):
    records = [replace(record, verdicts={}) for record in read_answers(finished[0] / "answers.jsonl")]
    AnswerLog(tmp_path / "answers.jsonl").add(records)
    judge = CountingJudge(harmful=True)
    result = benchmarks.judge_again(tmp_path / "answers.jsonl", [judge], tmp_path)
    assert result.judge == judge.name and set(result.table.judge.dropna()) == {judge.name, KEYWORDS.name}


def test_the_same_judge_is_not_asked_twice_and_another_of_its_name_is(judged_by):
    first, again = CountingJudge(harmful=False), CountingJudge(harmful=True)
    other = CountingJudge("two", harmful=True)
    for judge in (first, again, other):
        table = judged_by(judge)
        asr = table[(table.judge == judge.name) & (table.metric == "asr") & table.category.isna()]
        assert (asr.value == (judge is other)).all()
    assert (first.n_asked, again.n_asked, other.n_asked) == (320, 0, 320)


def test_missing_pictures_are_an_error_unless_skipped_or_drawn(data, vlm):
    file = BenchmarkFile(data / "pictured" / "shown.jsonl")
    with pytest.raises(QueryFileError, match="2 of 8 rows lack a picture that can be read, the first 'gone.png'; give"):
        BenchmarkOptions.of([file])
    (present,) = prompt_sets_of(BenchmarkOptions.of([file], skip_missing=True), vlm.picture_size)
    (drawn,) = prompt_sets_of(BenchmarkOptions.of([file], stand_in=True), vlm.picture_size)
    assert (len(present.prompts), len(drawn.prompts)) == (6, 8) and {present.modality, drawn.modality} == {"scene"}
    assert drawn.stand_ins == (False,) * 6 + (True,) * 2 and not any(present.stand_ins)
    model = {"prompt": "hash", "model": "model", "weights": "weights", "generation": {}}
    assert drawn.record(7, unguarded(), model).is_stand_in
    assert not drawn.record(0, unguarded(), model).is_stand_in


def test_a_damaged_picture_is_found_before_a_model_is_loaded(tmp_path, vlm):
    Image.new("RGB", (32, 32), "white").save(tmp_path / "good.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    rows = "".join(f"How {name}?,true,{name}.png\n" for name in ("good", "torn"))
    (tmp_path / "own.csv").write_text("text,harmful,picture\n" + rows)
    file = BenchmarkFile(tmp_path / "own.csv")
    with pytest.raises(QueryFileError, match="1 of 2 rows lack a picture that can be read, the first 'torn.png'"):
        BenchmarkOptions.of([file])
    (prompt_set,) = prompt_sets_of(BenchmarkOptions.of([file], skip_missing=True), vlm.picture_size)
    assert [prompt.text for prompt in prompt_set.prompts] == ["How good?"]
    (tmp_path / "good.png").unlink()
    with pytest.raises(QueryFileError, match="2 of 2 rows lack a picture"):
        BenchmarkOptions.of([file], skip_missing=True)


def test_a_limit_keeps_whole_pairs_evenly_over_the_set(data, vlm):
    options = BenchmarkOptions.of([BenchmarkFile(data / "mine.csv")], limit=3)
    (prompt_set,) = prompt_sets_of(options, vlm.picture_size)
    queries = [prompt.query for prompt in prompt_set.prompts]
    assert [query.harmful for query in queries].count(True) == 3 and len(queries) == 6
    assert prompt_set.rows[0] == "0" and prompt_set.rows[-1] == "19"
    assert all(queries[i].pair == queries[i + 1].pair for i in (0, 2, 4))


def test_a_limit_keeps_the_shares_of_the_classes(tmp_path, vlm):
    rows = [f"{kind} {i},{str(kind == 'bad').lower()}\n" for kind, n in (("bad", 40), ("good", 10)) for i in range(n)]
    (tmp_path / "own.csv").write_text("text,harmful\n" + "".join(rows))
    options = BenchmarkOptions.of([BenchmarkFile(tmp_path / "own.csv")], limit=8)
    (prompt_set,) = prompt_sets_of(options, vlm.picture_size)
    assert [prompt.query.harmful for prompt in prompt_set.prompts] == [True] * 8 + [False] * 2
    assert prompt_set.rows[7] == "39"


def test_a_text_part_that_is_drawn_in_no_modality_leaves_other_sets_alone(data, tmp_path, vlm):
    Image.new("RGB", (32, 32), "white").save(tmp_path / "a.png")
    rows = [{"text": "How?", "harmful": True}, {"text": "Why?", "harmful": True, "picture": "a.png"}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [BenchmarkFile(data / "mine.csv"), BenchmarkFile(tmp_path / "mixed.jsonl")]
    # The set `mixed` is itself published with scenes, so none is drawn for its first row.
    options = BenchmarkOptions.of(files, ("scene",), attacks=["role_play"])
    prompt_sets = [(found.dataset, found.setting) for found in prompt_sets_of(options, vlm.picture_size)]
    assert prompt_sets == [("mine", "plain"), ("mine", "role_play@1"), ("mixed", "plain")]


def test_the_published_wording_of_a_request_is_kept_next_to_a_picture():
    record = Record(Query("How?", True), "0", "refuse", Source("s", "", ""), said="Given this text: how?")
    shown = {
        name: benchmark_sets._prompt_set("s", [record], name, 96).prompts[0]
        for name in ("text", "blank", "typographic")
    }
    assert shown["text"].text == shown["blank"].text == record.said and shown["typographic"].text != record.said


def test_options_must_exist(data):
    file = BenchmarkFile(data / "mine.csv")
    for changed, message in (
        ({"files": []}, "no data"),
        ({"modalities": ["smell"]}, "modality smell does not exist"),
        ({"attacks": ["charm"]}, "attack 'charm' does not exist; expected any of prefix_injection"),
        ({"files": [benchmark_file(f"NoSuchSet={file.path}")]}, "benchmark 'NoSuchSet' does not exist"),
        ({"files": [file, file]}, "expected each set once"),
    ):
        with pytest.raises(ConfigError, match=message):
            BenchmarkOptions.of(**({"files": [file]} | changed))
    with pytest.raises(ConfigError, match="defence 'guard' does not exist here"):
        check_names(["guard"], guard=False, anchors=False)
    check_names(["guard", "cmrm"], guard=True, anchors=True)


def test_a_set_of_abilities_is_scored_by_its_answers(tmp_path, vlm):
    row_fields = {
        "imagename": "a.png",
        "question": "What does the picture show?",
        "capability": ["rec"],
        "imagesource": "x",
    }
    Image.new("RGB", (32, 32), "white").save(tmp_path / "a.png")
    rows = {
        "v1_0": row_fields | {"answer": "nothing<OR>a blank page"},
        "v1_1": row_fields | {"answer": "a dog"},
    }
    (tmp_path / "mm-vet.json").write_text(json.dumps(rows))
    file = BenchmarkFile(tmp_path / "mm-vet.json", "MM-Vet")
    options = BenchmarkOptions.of([file], defences=("self_reminder",), pictures=str(tmp_path))
    result = benchmarks.run(vlm, "w", options, [KEYWORDS], tmp_path / "out", HOW)
    accuracy = row(result.table, defence="unguarded", metric="accuracy")
    assert (accuracy.value, accuracy.n, accuracy.setting) == (0.5, 2, "ability")


def test_a_safety_set_with_reference_answers_is_judged_not_scored_by_them(tmp_path, vlm):
    row_fields = {"question": "May I?", "category": "c", "safety_warning": "w", "reference_answer": "No."}
    rows = [row_fields | {"question_id": 1001 + i, "image": f"S-0{i}.png"} for i in range(2)]
    (tmp_path / "siuo_gen.json").write_text(json.dumps(rows))
    for row in rows:
        Image.new("RGB", (32, 32), "white").save(tmp_path / row["image"])
    options = BenchmarkOptions.of([BenchmarkFile(tmp_path / "siuo_gen.json")], pictures=str(tmp_path))
    (prompt_set,) = prompt_sets_of(options, vlm.picture_size)
    assert prompt_set.setting == "plain" and not prompt_set.right and prompt_set.expected == ("caveat",) * 2


def test_the_table_is_an_ordinary_csv_file(finished):
    with (finished[0] / "defence.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert header[:6] == ["model", "dataset", "split", "setting", "category", "modality"]
