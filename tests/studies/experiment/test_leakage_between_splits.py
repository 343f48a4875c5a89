"""No query recurs in another split, and a run says so: of the built-in queries, and of a user's file full of copies."""

from dataclasses import replace

import pytest

from interp import Query
from studies.datasets import write_queries
from studies.experiment import experiment as experiments
from studies.experiment.config import SPLITS, Config, ConfigError
from studies.experiment.experiment import load_experiment
from studies.organism import language

NAMES = ["validation among anchors", "test among anchors", "test among validation"]


def disguised(query, i):
    """The same request with other case and punctuation, in a pair of its own."""
    text = query.text.upper().replace("?", " !") if i % 2 else f"- {query.text.lower()} -"
    return replace(query, text=text, pair=f"copy {query.pair}")


def test_built_in_splits_are_apart():
    experiment = load_experiment(Config(scale="tiny"))
    assert list(experiment.leakage) == NAMES and experiment.copies is None
    assert all(leakage.rows.empty for leakage in experiment.leakage.values())
    assert str(experiment.leakage["test among validation"]) == (
        "0 of 22 test requests are among the 22 validation requests: 0 word for word, 0 with Jaccard >= 0.8 on content "
        "words"
    )


@pytest.mark.parametrize(("earlier", "later"), [("anchors", "validation"), ("anchors", "test"), ("validation", "test")])
@pytest.mark.parametrize("copied", ["HOW does one, feed a wasp", "Feed a small wasp some honey and water today too"])
def test_copies_in_fixed_splits_are_an_error(earlier, later, copied):
    queries = {split: [Query(f"Paint {split} blue", False)] for split in SPLITS}
    queries[earlier] += [Query("How does one feed a wasp?", True), Query("Feed small wasp honey, water, today", True)]
    experiments._check_disjoint(queries)
    queries[later].append(Query(copied, True))
    message = f"1 of 2 {later} requests are among the 3 {earlier}.*keep copies in one split"
    with pytest.raises(ConfigError, match=message):
        experiments._check_disjoint(queries)


def test_a_file_in_which_every_request_has_a_disguised_copy_is_divided_without_leakage(tmp_path, capsys):
    """Split by pair alone, half of the tests are copies of anchors."""
    queries = language.queries("validation")
    copies = [disguised(query, i) for i, query in enumerate(queries)]
    write_queries(tmp_path / "mine.csv", [*queries, *copies])
    experiment = load_experiment(Config(queries=str(tmp_path / "mine.csv"), scale="quick"))
    assert all(leakage.rows.empty for leakage in experiment.leakage.values())
    texts = [query.text for split in SPLITS for query in experiment.queries[split]]
    assert len(texts) == 240 and min(len(experiment.queries[split]) for split in SPLITS) >= 40
    assert (experiment.copies.n_exact, experiment.copies.n_near, len(experiment.copies.groups)) == (120, 0, 120)
    assert "120 of 240 queries repeat another one: 120 word for word" in capsys.readouterr().err
    assert experiment.copies.record()["groups"][0] == [queries[0].text, copies[0].text]
