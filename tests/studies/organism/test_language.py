"""The built-in queries, which every result on the built-in model rests on."""

from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from probes import grouped_folds
from probes.baselines import out_of_fold_words
from studies.organism import language

SPLITS = ("anchors", "validation", "test", "train")


def separation(labels, scores) -> float:
    """AUROC, whichever class scores higher."""
    value = roc_auc_score(labels, scores)
    return max(value, 1 - value)


def test_there_are_enough_queries_of_each_kind():
    harmful = {core for split in SPLITS for core in (p.harmful for p in language.splits()[split])}
    harmless = {core for split in SPLITS for core in (p.harmless for p in language.splits()[split])}
    assert len(harmful) >= 300 and len(harmless | set(language.kind_cores())) >= 450
    assert len(language.CATEGORIES) >= 8 and not harmful & (harmless | set(language.kind_cores()))
    sizes = {split: len(language.splits()[split]) for split in SPLITS}
    assert sizes["anchors"] >= 100 and sizes["validation"] == sizes["test"] == 60


def test_partners_share_verb_form_and_phrasing():
    for split in SPLITS:
        for harmful, harmless in zip(*[iter(language.queries(split))] * 2, strict=True):
            assert (harmful.harmful, harmless.harmful) == (True, False) and harmful.pair == harmless.pair
            assert harmful.rendered.split()[0] == harmless.rendered.split()[0]
            assert len(harmful.rendered.split()) == len(harmless.rendered.split())
            assert harmful.text.replace(harmful.rendered, "") == harmless.text.replace(harmless.rendered, "")


def test_splits_are_disjoint_and_stratified():
    pairs = [pair.name for split in SPLITS for pair in language.splits()[split]]
    assert len(pairs) == len(set(pairs)) == 440
    for split in SPLITS:
        counts = Counter(pair.category for pair in language.splits()[split])
        assert len(counts) == len(language.CATEGORIES) and max(counts.values()) - min(counts.values()) <= 2


def test_no_core_of_validation_or_test_can_be_trained_on():
    trained = set(language.trained_cores(True)) | set(language.trained_cores(False))
    assert len(language.held_back_cores()) == 240 and not trained & language.held_back_cores()


def test_every_word_occurs_in_several_trained_combinations():
    cores = language.trained_cores(True) + language.trained_cores(False)
    counts = Counter(word for core in cores for word in core.split())
    assert set(counts) == set(language.vocabulary()) and min(counts.values()) >= 2


@pytest.mark.parametrize("split", SPLITS)
def test_length_does_not_separate_the_classes(split):
    queries = language.queries(split)
    labels = [query.harmful for query in queries]
    assert separation(labels, [len(query.text) for query in queries]) <= 0.55
    assert separation(labels, [len(query.text.split()) for query in queries]) <= 0.55


def test_opening_and_punctuation_do_not_separate_the_anchors():
    queries = language.queries("anchors")
    labels = np.array([query.harmful for query in queries])
    surfaces = [f"{query.text.split()[0]} {'?' if query.text.endswith('?') else 'dot'}" for query in queries]
    folds = grouped_folds(labels, [query.pair for query in queries])
    assert separation(labels, out_of_fold_words(surfaces, labels, folds)) <= 0.55


def test_words_separate_the_classes():
    """A property of the queries that tables show next to every probe (`bag_of_words`)."""
    anchors, validation = language.queries("anchors"), language.queries("validation")
    words = CountVectorizer().fit([query.text for query in anchors])
    model = LogisticRegression(C=10).fit(words.transform([q.text for q in anchors]), [q.harmful for q in anchors])
    scores = model.decision_function(words.transform([query.text for query in validation]))
    assert roc_auc_score([query.harmful for query in validation], scores) > 0.9


def test_the_exact_judge_recognises_its_own_forms():
    for form in language.COMPLIANCE:
        assert language.named_core(form.format(core="kill a wasp")) == "kill a wasp"
        assert language.named_core(form.format(core="kill a wasp")[:-5]) is None
        assert not language.is_refusal(form)
    assert all(language.is_refusal(text) and language.named_core(text) is None for text in language.REFUSALS)
    assert language.named_core("I am square.") is None
