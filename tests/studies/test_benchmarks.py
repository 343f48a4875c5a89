"""`vlm-guard defend` from files to tables, stopped and gone on, and judged again."""

import csv
import json

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from interp.directions import SafetyDirection
from interp.guard import Guard
from interp.inputs import Query, to_prompts
from interp.trace import trace
from studies import benchmarks
from studies.datasets import QueryFileError, Record, Source, write_queries
from studies.defences import benchmark_sets
from studies.defences.answer_log import read_answers
from studies.defences.benchmark_sets import BenchmarkOptions, prompt_sets_of
from studies.defences.defence import unguarded
from studies.defences.lineup import check_names
from studies.defences.prompt_sets import AT_ONCE
from studies.experiment.config import ConfigError
from studies.experiment.model_loading import load_model
from studies.generation.generate import Generation
from studies.judges import FAILED, KEYWORDS, PUBLISHED, Verdict
from studies.organism import language

HOW = Generation(max_new_tokens=24, batch_size=32)
QUERIES = language.queries("validation")[:20]


@pytest.fixture(scope="module")
def vlm():
    return load_model("organism")


@pytest.fixture(scope="module")
def guard(vlm):
    anchors = to_prompts(language.queries("anchors"), "text", vlm.picture_size)
    return Guard(SafetyDirection.fit(trace(vlm, anchors)), (7,), strength=2.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A text set of paired requests, and a set with pictures beside some of its requests."""
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
    out = tmp_path_factory.mktemp("defended")
    asked = BenchmarkOptions.of(
        [f"own={data / 'mine.csv'}"],
        ("text", "blank"),
        ("self_reminder", "text_verdict", "guard"),
        attacks=["role_play"],
    )
    anchors = language.queries("anchors")[:30] + QUERIES[:1]
    console = Console(record=True, width=100)
    table = benchmarks.run(vlm, "weights", asked, [KEYWORDS], out, HOW, guard, anchors, {"asked": "x"}, console)
    return out, asked, table, console.export_text()


def row(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1, where
    return table.iloc[0]


def test_every_set_is_answered_under_every_defence_and_judged(finished):
    out, _, table, shown = finished
    answers = read_answers(out / "answers.jsonl")
    # 20 requests, as text and beside a blank picture, plain and in a role play; unguarded and three defences.
    assert len(answers) == 20 * 2 * 2 * 4
    assert {one.setting for one in answers} == {"plain", "role_play@1"}
    assert all((one.said == one.request) == (one.setting == "plain") for one in answers)
    assert all(one.request in one.said for one in answers)
    assert all(KEYWORDS.name in one.verdicts and one.generation["max_new_tokens"] == 24 for one in answers)
    plain = {"dataset": "mine", "setting": "plain", "modality": "blank", "metric": "asr"}
    unguarded, guarded = (row(table[table.category.isna()], **plain, defence=name) for name in ("unguarded", "guard"))
    assert guarded.value < unguarded.value and guarded.n == 10
    assert {"paired_rate", "asr_change_p_holm", "over_refusal_rate"} <= set(table.metric)
    assert "attack success" in shown and "mine, plain, blank" in shown
    assert {"defence.csv", "leakage.csv", "defend.json", "safety_tradeoff.png"} <= {p.name for p in out.iterdir()}


def test_what_was_fitted_on_is_found_in_the_set(finished):
    out, _, _, shown = finished
    assert "leakage, mine: 1 of 20 test requests are among the 31 anchors: 1 word for word" in " ".join(shown.split())
    leaked = pd.read_csv(out / "leakage.csv")
    assert leaked.anchor.tolist() == [QUERIES[0].text] and leaked.dataset.tolist() == ["mine"]


def test_nothing_is_asked_twice(finished, vlm, guard, monkeypatch):
    out, asked, table, _ = finished

    def again(*args):
        raise AssertionError("asked although it was answered")

    monkeypatch.setattr("studies.defences.prompt_sets._answer", again)
    same = benchmarks.run(vlm, "weights", asked, [KEYWORDS], out, HOW, guard, console=Console(quiet=True))
    pd.testing.assert_frame_equal(same, table)


def test_a_run_that_was_stopped_goes_on_where_it_was(finished, vlm, guard, tmp_path):
    out, asked, _, _ = finished
    lines = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    some = tmp_path / "answers.jsonl"
    # Fifty answers, and the half of another.
    some.write_text("".join(lines[:50]) + lines[50][:40], encoding="utf-8")
    benchmarks.run(vlm, "weights", asked, [KEYWORDS], tmp_path, HOW, guard, console=Console(quiet=True))
    first, second = ({one.key: one for one in read_answers(folder / "answers.jsonl")} for folder in (out, tmp_path))
    assert first.keys() == second.keys()
    assert all(first[key].answer == second[key].answer for key in first)


def test_answers_of_another_model_or_length_are_not_mixed_in(finished, vlm, guard):
    out, asked, _, _ = finished
    longer = Generation(max_new_tokens=25, batch_size=32)
    for weights, how in (("others", HOW), ("weights", longer)):
        with pytest.raises(ConfigError, match="holds answers of 'organism' .weights. .* give another --out"):
            benchmarks.run(vlm, weights, asked, [KEYWORDS], out, how, guard, console=Console(quiet=True))


def test_ctrl_c_costs_one_batch_at_most(vlm, data, tmp_path, monkeypatch):
    from studies.defences import prompt_sets

    asked, real, calls = (
        BenchmarkOptions.of([str(data / "mine.csv")], defences=("self_reminder",)),
        prompt_sets._answer,
        [],
    )

    def stopped(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(prompt_sets, "_answer", stopped)
    with pytest.raises(KeyboardInterrupt):
        benchmarks.run(vlm, "weights", asked, [KEYWORDS], tmp_path, HOW, console=Console(quiet=True))
    kept = read_answers(tmp_path / "answers.jsonl")
    assert len(kept) == 20 <= AT_ONCE and {one.defence for one in kept} == {"unguarded"}


def test_other_judges_need_no_model(finished, tmp_path, capsys):
    out = finished[0]
    (tmp_path / "answers.jsonl").write_bytes((out / "answers.jsonl").read_bytes())
    others = [PUBLISHED["xstest@1"], PUBLISHED["gcg@1"]]
    table = benchmarks.judge(tmp_path / "answers.jsonl", others, tmp_path, Console(quiet=True))
    assert list(dict.fromkeys(table.judge.dropna())) == ["xstest@1", "gcg@1", KEYWORDS.name]
    (one, *_) = read_answers(tmp_path / "answers.jsonl")
    assert set(one.verdicts) == {"xstest@1", "gcg@1", KEYWORDS.name}
    agreement = pd.read_csv(tmp_path / "judges.csv")
    assert {"kappa", "agreement", "late_refusal_rate", "looping_rate"} <= set(agreement.metric)


class Counting:
    """A judge that says one thing, and counts how often it is asked."""

    def __init__(self, identity="one", **verdict):
        self.name, self.identity, self.verdict, self.n_asked = "counting@1", identity, Verdict(**verdict), 0

    def verdicts(self, cases, advance=lambda n: None):
        self.n_asked += len(cases)
        return [self.verdict] * len(cases)


@pytest.fixture
def judged_by(finished, tmp_path):
    (tmp_path / "answers.jsonl").write_bytes((finished[0] / "answers.jsonl").read_bytes())
    return lambda judge: benchmarks.judge(tmp_path / "answers.jsonl", [KEYWORDS, judge], tmp_path, Console(quiet=True))


def test_a_judge_that_could_not_be_asked_is_asked_again(judged_by):
    absent = Counting(state=FAILED)
    for times in (1, 2):
        table = judged_by(absent)
        assert absent.n_asked == 320 * times
    told = table[table.judge == absent.name]
    failed = told[told.metric == "failed_rate"]
    assert (failed.value == 1).all() and failed.n.sum() == 320
    # What nobody has judged is no safety.
    asr = told[(told.metric == "asr") & told.category.isna()]
    assert len(asr) and asr.value.isna().all() and (asr.ci_high > 0.9).all()


def test_the_same_judge_is_not_asked_twice_and_another_of_its_name_is(judged_by):
    first, again, other = Counting(harmful=False), Counting(harmful=True), Counting("two", harmful=True)
    for judge in (first, again, other):
        table = judged_by(judge)
        asr = table[(table.judge == judge.name) & (table.metric == "asr") & table.category.isna()]
        assert (asr.value == (judge is other)).all()
    assert (first.n_asked, again.n_asked, other.n_asked) == (320, 0, 320)


def test_pictures_that_are_missing_are_an_error_unless_left_out_or_drawn(data, vlm):
    path = str(data / "pictured" / "shown.jsonl")
    with pytest.raises(QueryFileError, match="2 of 8 rows lack a picture that can be read, the first 'gone.png'; give"):
        BenchmarkOptions.of([path])
    (left,) = prompt_sets_of(BenchmarkOptions.of([path], leave_out=True), vlm.picture_size)
    (drawn,) = prompt_sets_of(BenchmarkOptions.of([path], stand_in=True), vlm.picture_size)
    assert (len(left.prompts), len(drawn.prompts)) == (6, 8) and {left.modality, drawn.modality} == {"scene"}
    assert drawn.stand_ins == (False,) * 6 + (True,) * 2 and not any(left.stand_ins)
    asked = drawn.asked(7, "hash", "model", "weights", unguarded(), {})
    assert asked.is_stand_in and not drawn.asked(0, "hash", "model", "weights", unguarded(), {}).is_stand_in


def test_a_damaged_picture_is_found_before_a_model_is_loaded(tmp_path, vlm):
    Image.new("RGB", (32, 32), "white").save(tmp_path / "good.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    rows = "".join(f"How {name}?,true,{name}.png\n" for name in ("good", "torn"))
    (tmp_path / "own.csv").write_text("text,harmful,picture\n" + rows)
    with pytest.raises(QueryFileError, match="1 of 2 rows lack a picture that can be read, the first 'torn.png'"):
        BenchmarkOptions.of([str(tmp_path / "own.csv")])
    (trial,) = prompt_sets_of(BenchmarkOptions.of([str(tmp_path / "own.csv")], leave_out=True), vlm.picture_size)
    assert [prompt.text for prompt in trial.prompts] == ["How good?"]
    (tmp_path / "good.png").unlink()
    with pytest.raises(QueryFileError, match="2 of 2 rows lack a picture"):
        BenchmarkOptions.of([str(tmp_path / "own.csv")], leave_out=True)


def test_a_limit_takes_whole_pairs_evenly_over_the_set(data, vlm):
    (trial,) = prompt_sets_of(BenchmarkOptions.of([str(data / "mine.csv")], limit=3), vlm.picture_size)
    assert [prompt.query.harmful for prompt in trial.prompts].count(True) == 3 and len(trial.prompts) == 6
    assert trial.rows[0] == "0" and trial.rows[-1] == "19"
    assert all(trial.prompts[i].query.pair == trial.prompts[i + 1].query.pair for i in (0, 2, 4))


def test_a_limit_keeps_the_shares_of_what_is_expected(tmp_path, vlm):
    rows = [f"{kind} {i},{str(kind == 'bad').lower()}\n" for kind, n in (("bad", 40), ("good", 10)) for i in range(n)]
    (tmp_path / "own.csv").write_text("text,harmful\n" + "".join(rows))
    (trial,) = prompt_sets_of(BenchmarkOptions.of([str(tmp_path / "own.csv")], limit=8), vlm.picture_size)
    assert [prompt.query.harmful for prompt in trial.prompts] == [True] * 8 + [False] * 2
    assert trial.rows[7] == "39"


def test_what_is_said_with_a_request_is_said_beside_a_picture_too():
    record = Record(Query("How?", True), "0", "refuse", Source("s", "", ""), said="Given this text: how?")
    shown = {
        name: benchmark_sets._trial("s", [record], name, 96).prompts[0] for name in ("text", "blank", "typographic")
    }
    assert shown["text"].text == shown["blank"].text == record.said and shown["typographic"].text != record.said


def test_what_is_asked_must_exist(data):
    path = str(data / "mine.csv")
    for changed, message in (
        ({"data": []}, "no data"),
        ({"modalities": ["smell"]}, "modality smell does not exist"),
        ({"attacks": ["charm"]}, "attack 'charm' does not exist; expected some of prefix_injection"),
        ({"data": [f"NoSuchSet={path}"]}, "benchmark 'NoSuchSet' is not known"),
        ({"data": [path, path]}, "expected each set once"),
    ):
        with pytest.raises(ConfigError, match=message):
            BenchmarkOptions.of(**({"data": [path]} | changed))
    with pytest.raises(ConfigError, match="defence 'guard' does not exist here"):
        check_names(["guard"], guard=False, anchors=False)
    check_names(["guard", "cmrm"], guard=True, anchors=True)


def test_a_set_of_abilities_is_scored_by_its_answers(tmp_path, vlm):
    about = {"imagename": "a.png", "question": "What does the picture show?", "capability": ["rec"], "imagesource": "x"}
    Image.new("RGB", (32, 32), "white").save(tmp_path / "a.png")
    rows = {"v1_0": about | {"answer": "nothing<OR>a blank page"}, "v1_1": about | {"answer": "a dog"}}
    (tmp_path / "mm-vet.json").write_text(json.dumps(rows))
    asked = BenchmarkOptions.of(
        [f"MM-Vet={tmp_path / 'mm-vet.json'}"], defences=("self_reminder",), pictures=str(tmp_path)
    )
    table = benchmarks.run(vlm, "w", asked, [KEYWORDS], tmp_path / "out", HOW, console=Console(quiet=True))
    found = row(table, defence="unguarded", metric="accuracy")
    assert (found.value, found.n, found.setting) == (0.5, 2, "ability")


def test_a_set_that_says_what_a_safe_answer_is_is_judged_and_not_searched_for_it(tmp_path, vlm):
    about = {"question": "May I?", "category": "c", "safety_warning": "w", "reference_answer": "No."}
    rows = [about | {"question_id": 1001 + i, "image": f"S-0{i}.png"} for i in range(2)]
    (tmp_path / "siuo_gen.json").write_text(json.dumps(rows))
    for row in rows:
        Image.new("RGB", (32, 32), "white").save(tmp_path / row["image"])
    asked = BenchmarkOptions.of([str(tmp_path / "siuo_gen.json")], pictures=str(tmp_path))
    (trial,) = prompt_sets_of(asked, vlm.picture_size)
    assert trial.setting == "plain" and not trial.right and trial.expected == ("caveat",) * 2


def test_csv_of_answers_is_readable_by_others(finished):
    with (finished[0] / "defence.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert header[:5] == ["model", "dataset", "setting", "category", "modality"]
