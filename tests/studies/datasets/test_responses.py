import pytest
from typer.testing import CliRunner

from studies.cli.app import app
from studies.datasets import QueryFileError, ResponseColumns, read_response_files, read_responses
from tests.studies.datasets.benchmark_files import in_csv, in_jsonl, write_form


@pytest.fixture
def write(tmp_path):
    return lambda name, rows, **how: write_form(tmp_path, (name, in_csv(rows, **how), 0))


def review(action, **more):
    return {"id": 3, "question": "Who?", "response": " Nobody.", "action": action} | more


def test_code_5_depends_on_the_folder(write):
    [by_people] = read_responses(write("Human/annotated_response_llama.csv", [review(5, harmful=1)])).rows
    [by_gpt] = read_responses(write("GPT4/annotated_response_llama.csv", [review(5, action_review="")])).rows
    assert (by_people.label, by_people.harmful, by_people.labeller) == ("follows", True, "human")
    assert (by_gpt.label, by_gpt.harmful, by_gpt.refused) == ("unsure", None, None)
    assert by_people.model == "llama" and by_people.response == " Nobody."
    [six] = read_responses(write("GPT4/a_b.csv", [review(6, reviews="")])).rows
    assert six.label == "follows" and six.harmful
    with pytest.raises(QueryFileError, match="action: got '6', expected one of 0, 1, 2, 3, 4, 5"):
        read_responses(write("Human/a_b.csv", [review(6)]))


def test_replies_that_were_not_parsed_are_kept(write):
    rows = read_responses(write("GPT4/a_b.csv", [review(-1, reviews=""), review(0, reviews="")])).rows
    assert [(row.label, row.refused) for row in rows] == [("unparsed", None), ("declines", True)]


def test_classifiers_use_human_codes_under_their_own_names(write):
    for folder, labeller in (("BERT", "BERT"), ("Longformer", "Longformer"), ("Human", "human")):
        [row] = read_responses(write(f"{folder}/a_b.csv", [review(5, harmful=1)])).rows
        assert (row.labeller, row.label) == (labeller, "follows")


def test_the_labeller_must_be_known_without_contradiction(write):
    [row] = read_responses(write("elsewhere/a_b.csv", [review(5, reviews="It is category 5.")])).rows
    assert row.label == "unsure"
    with pytest.raises(QueryFileError, match="the labeller is unknown, without a folder .* and without a column"):
        read_responses(write("elsewhere/a_b.csv", [review(5, harmful=1)]))
    with pytest.raises(QueryFileError, match="a column of reasons, in the folder of labels by human"):
        read_responses(write("Human/a_b.csv", [review(5, action_review="")]))
    with pytest.raises(QueryFileError, match="no column of reasons, in the folder of labels by GPT-4"):
        read_responses(write("GPT4/a_b.csv", [review(5, harmful=1)]))


def test_repeated_ids_of_one_model_are_named(write):
    responses = read_responses(write("GPT4/a_b.csv", [review(0, reviews=""), review(1, reviews="")]))
    assert len(responses.rows) == 2 and responses.repeated_ids == ("3",)


def test_six_models_in_one_row_are_six_answers(write):
    row = {"id": 1, "question": "Who?"}
    for model in ("GPT4", "vicuna-7b"):
        row |= {f"{model}_response": "No.", f"{model}_harmful": 0, f"{model}_action": 5}
    responses = read_responses(write("data_en.csv", [row]))
    assert [answer.model for answer in responses.rows] == ["GPT4", "vicuna-7b"] and responses.repeated_ids == ()
    assert {answer.label for answer in responses.rows} == {"follows"}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_completions_of_xstest_have_three_labels(write, end):
    labels = ("1_full_compliance", "2_full_refusal", "3_partial_refusal")
    rows = [
        {"id": f"v2-{i}", "type": "homonyms", "prompt": "Who?", "completion": " Well,\nno", "final_label": label}
        for i, label in enumerate(labels)
    ]
    answers = read_responses(write("c.csv", rows, end=end)).rows
    assert [(row.id, row.refused) for row in answers] == [("0", False), ("1", True), ("2", None)]
    assert answers[0].response == " Well,\nno" and answers[0].string_match == ""
    with pytest.raises(QueryFileError, match="final_label: got 'no', expected one of 1_full_compliance"):
        read_responses(write("c.csv", [rows[0] | {"final_label": "no"}]))


def test_a_file_without_labels_is_an_error(write):
    with pytest.raises(
        QueryFileError, match="no column response; expected answers with labels: --columns request=NAME"
    ):
        read_responses(write("c.csv", [{"id": 1, "prompt": "Who?"}]))
    with pytest.raises(QueryFileError, match="no column of labels; expected .* got id,prompt,response"):
        read_responses(write("c.csv", [{"id": 1, "prompt": "Who?", "response": "I."}]))


def test_the_harm_that_people_see_goes_before_what_the_model_did(write):
    [row] = read_responses(write("Human/annotated_response_llama.csv", [review(5, harmful=0)])).rows
    assert row.label == "follows" and row.harmful is False
    [row] = read_responses(write("Human/annotated_response_llama.csv", [review(4, harmful=1)])).rows
    assert row.label == "cannot" and row.harmful is True
    row = {"id": 1, "question": "Who?", "GPT4_response": "No.", "GPT4_harmful": 1, "GPT4_action": 0}
    [row] = read_responses(write("data_en.csv", [row])).rows
    assert row.refused and row.harmful
    with pytest.raises(QueryFileError, match="harmful: got '2', expected one of 0, 1"):
        read_responses(write("Human/a_b.csv", [review(5, harmful=2)]))


def completions(answers, **more):
    rows = []
    for i, said in enumerate(answers):
        kind, label = ("homonyms", "1_full_compliance") if i % 2 else ("contrast_homonyms", "2_full_refusal")
        labels = dict.fromkeys(("annotation_1", "annotation_2", "final_label"), label)
        rows.append({"id": f"v2-{i}", "type": kind, "prompt": f"Who is {i}?", "completion": said} | labels | more)
    return rows


def test_files_with_the_answers_of_another_count_once(write):
    answers = [f"No, {i}." for i in range(4)]
    plain = write("m.csv", completions(answers))
    match = write("m_streval.csv", completions(answers, strmatch_label="2_full_refusal"))
    judged = write("m_gpteval.csv", completions(answers, gpt_label="2_full_refusal"))
    part = write("part.csv", completions(answers)[:2])
    other = write("other.csv", completions([*answers[:2], "Sorry.", "Never."]))

    def counted(*paths):
        files = read_response_files(paths)
        return files.names, files.repeated, len(files.rows)

    assert counted(plain, match, judged) == (("m",), (match, judged), 4)
    assert counted(plain, plain, other) == (("m", "other"), (plain,), 8)
    assert counted(part, other, plain) == (("other", "m"), (part,), 8)


def test_rows_that_repeat_another_of_their_file_count_once(write):
    rows = completions(["No.", "Never."])
    assert len(read_response_files([write("m.csv", [*rows, *rows])]).rows) == 2


def test_two_models_with_one_answer_are_two(write):
    first, second = (
        write(f"Human/annotated_response_{model}.csv", [review(0, harmful=0)]) for model in ("llama", "vicuna")
    )
    files = read_response_files([first, second])
    assert files.repeated == () and [row.model for row in files.rows] == ["llama", "vicuna"]


def test_judges_counts_repeated_answers_once_and_says_so(tmp_path, write):
    paths = [write(name, completions(["No.", "Yes."])) for name in ("m.csv", "m_streval.csv")]
    arguments = ["judges", *map(str, [*paths, paths[0]]), "--judge", "xstest", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "counted once: " in result.output and "n = 2" in result.output and "n = 4" not in result.output


def test_answers_are_read_from_every_kind_of_file(tmp_path):
    rows = completions(["No.", "Never."])
    path = tmp_path / "c.jsonl"
    path.write_bytes(in_jsonl(rows))
    assert [row.response for row in read_responses(path).rows] == ["No.", "Never."]


def test_jailbreakbenchs_comparison_has_three_people_and_their_majority(write):
    votes = {"human1": 0, "human2": 1, "human3": 1, "human_majority": 1}
    row = {"Index": 7, "goal": "Do it", "prompt": "You are free. Do it", "target_response": "Sure."}
    [row] = read_responses(write("judge_comparison.csv", [row | votes | {"gpt4_cf": 1}])).rows
    assert (row.request, row.response, row.harmful, row.refused, row.asks_harm) == ("Do it", "Sure.", True, None, True)
    assert [opinion.harmful for opinion in row.annotators] == [False, True, True] and row.id == "7"
    assert {name: opinion.harmful for name, opinion in row.automatic.items()} == {"gpt4_cf": True}


def wildguard(refusal, harm, asks="harmful", response="Sure."):
    return {
        "prompt": "Do it",
        "response": response,
        "prompt_harm_label": asks,
        "response_refusal_label": refusal,
        "response_harm_label": harm,
    }


@pytest.mark.parametrize("null", [r"\N", ""])
def test_wildguardtest_has_nulls_and_prompts_without_answers(write, null):
    rows = [
        wildguard("compliance", "harmful"),
        wildguard("refusal", null),
        wildguard(null, "unharmful", "unharmful"),
        wildguard(null, null, response=r"\N"),
    ]
    read = read_responses(write("wildguardtest.csv", rows)).rows
    assert [(row.refused, row.harmful, row.asks_harm) for row in read] == [
        (False, True, True),
        (True, None, True),
        (None, False, False),
    ]
    with pytest.raises(
        QueryFileError, match="response_refusal_label: got 'maybe', expected one of refusal, compliance"
    ):
        read_responses(write("other.csv", [wildguard("maybe", "harmful")]))


def test_a_table_of_ones_own_is_read_under_its_usual_names(write):
    rows = [
        {"Prompt": "Who?", "Completion": "I.", "refused": "no"},
        {"Prompt": "Why?", "Completion": "No.", "refused": "yes"},
    ]
    read = read_responses(write("own.csv", rows)).rows
    assert [(row.request, row.response, row.refused, row.harmful) for row in read] == [
        ("Who?", "I.", False, None),
        ("Why?", "No.", True, None),
    ]


def test_a_table_of_ones_own_is_read_with_a_mapping(write):
    rows = [
        {"q": "Who?", "a": "I.", "kind": "complied", "bad": "toxic", "llm": "m"},
        {"q": "Why?", "a": " No.", "kind": "declined", "bad": "fine", "llm": "n"},
    ]
    columns = ResponseColumns.parse("request=q,response=a,refused=kind,harmful=bad,model=llm", "declined", "toxic")
    read = read_responses(write("own.csv", rows), columns).rows
    assert [(row.response, row.refused, row.harmful, row.model) for row in read] == [
        ("I.", False, True, "m"),
        (" No.", True, False, "n"),
    ]
    with pytest.raises(QueryFileError, match=r"no column kindd \(refused\); .*; did you mean 'kind'"):
        read_responses(write("own.csv", rows), ResponseColumns.parse("request=q,response=a,refused=kindd"))
    with pytest.raises(
        QueryFileError, match="'declined', expected true or false, or words that --refused-values explains"
    ):
        read_responses(write("own.csv", rows), ResponseColumns.parse("request=q,response=a,refused=kind"))
    three = [*rows, rows[0] | {"kind": "unsure"}]
    with pytest.raises(QueryFileError, match=r"labels of 3 kinds: .*; expected two: name in --refused-values"):
        read_responses(
            write("three.csv", three), ResponseColumns.parse("request=q,response=a,refused=kind", "declined")
        )


def test_judges_takes_a_table_of_ones_own(tmp_path, write):
    rows = [{"q": f"Q{i}?", "a": "Sorry, no." if i % 2 else "Sure.", "kind": "no" if i % 2 else "ok"} for i in range(6)]
    typed = ["--columns", "request=q,response=a,refused=kind", "--refused-values", "no", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["judges", str(write("own.csv", rows)), "--judge", "xstest", *typed])
    assert result.exit_code == 0, result.output
    assert "xstest@1 and human, refusal: 1.000 the same" in result.output and "n = 6" in result.output
