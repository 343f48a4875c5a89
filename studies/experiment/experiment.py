"""The starting point of every study: a model, queries divided into splits, and their traced activations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

import xarray as xr

from interp import LLM, VLM, Prompt, Query, Store, StoreError, open_store, to_prompts, trace
from interp.control_tokens import check_no_control_tokens
from interp.identity import fingerprint
from studies import organism
from studies.bookkeeping.console import note
from studies.bookkeeping.progress import phase
from studies.bookkeeping.provenance import file_hash, model_hash
from studies.datasets import Copies, Leakage, find_leakage, is_paired, read_queries, split_queries
from studies.experiment.built_models import built_model
from studies.experiment.config import BUILT_IN, SCALES, SPLITS, Config, ConfigError, Scale
from studies.experiment.model_loading import check_model, load_model
from studies.experiment.refusal_openings import RefusalOpenings, refusal_openings
from studies.experiment.shipped_models import ShippedModel, shipped_model
from studies.generation.cached_model import CachedModel
from studies.judges import EXACT, KEYWORDS, KEYWORDS_1, PUBLISHED, RuleJudge

_CHECKED: set[Path] = set()
"""Stores that this process has written, or compared with what was written."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """A model and its queries, loaded once and used by every study of a run."""

    config: Config
    vlm: VLM | LLM
    """The model; of an LLM, every study measures its text half."""
    scorer: VLM | LLM
    """Text-only model that measures perplexity: the aligned LLM if available, else the VLM without a picture."""
    dataset: str
    queries: dict[str, tuple[Query, ...]]
    """Queries by split."""
    identity: str
    """Hash of the model's files."""
    copies: Copies | None = None
    """Queries of the user's file that repeat others and were kept in one split with them; None without a file."""

    @property
    def judges(self) -> tuple[RuleJudge, ...]:
        """The judges: the first one decides, the second shows whether another judge would decide the same way.

        The exact judge recognises only the built-in model's own sentences. Models that are built here are judged as
        they were when their results were committed.
        """
        if self.config.model == self.dataset == BUILT_IN:
            return (EXACT, KEYWORDS_1)
        return (KEYWORDS if built_model(self.config.model) is None else KEYWORDS_1, PUBLISHED["lmms_eval@1"])

    @cached_property
    def sizes(self) -> Scale:
        """The scale's sizes; for a model without pictures, with text alone."""
        if isinstance(self.vlm, VLM):
            return self.config.sizes
        return replace(self.config.sizes, modalities=("text",), swept=("text",), grid_modalities=("text",))

    @cached_property
    def is_paired(self) -> bool:
        """Tell whether every harmful anchor has a harmless partner."""
        return is_paired(self.queries["anchors"])

    @property
    def labels(self) -> dict[str, str]:
        """The columns that all rows of a result share."""
        model = self.config.model
        # A user's folder with the same name as the built-in model is labelled with its whole path.
        name = model if model == BUILT_IN or Path(model).name != BUILT_IN else str(Path(model).resolve())
        return {"model": Path(name).name if name == model else name, "dataset": self.dataset, "seed": self.config.seed}

    def prompts(self, split: str, modality: str, n: int | None = None, **kwargs) -> list[Prompt]:
        """Return the queries of a split as prompts.

        Args:
            split: name of the split.
            modality: modality of the prompts.
            n: at most so many queries of each class, the first ones; None for all of them.
            kwargs: those of `to_prompts`.
        """
        queries = first_of_each_class(self.queries[split], n)
        return to_prompts(queries, modality, self.vlm.picture_size, **kwargs)

    def activations(self, split: str, modality: str, **where: Sequence[str]) -> xr.Dataset:
        """Return the states of a split in a modality; `sites` and `tokens` are those of `traced`."""
        return self.traced(self.prompts(split, modality), f"trace {split}, {modality}", **where)

    def traced(
        self,
        prompts: Sequence[Prompt],
        title: str,
        sites: Sequence[str] = ("resid_post",),
        tokens: Sequence[str] = ("last",),
    ) -> xr.Dataset:
        """Return the states of prompts, traced the first time and read from disk afterwards.

        Args:
            prompts: the prompts to trace.
            title: name of the progress bar.
            sites: places in the network.
            tokens: token roles. Anything but the last token of `resid_post` is read lazily, for it may not fit memory.
        """
        folder = Path(self.config.out) / "traces" / fingerprint(self.vlm, prompts)
        is_default = (tuple(sites), tuple(tokens)) == (("resid_post",), ("last",))
        if not is_default:
            folder = folder.with_name("-".join((folder.name, *sites, *tokens)))
        try:
            if folder not in _CHECKED:
                # What was damaged since is traced again.
                Store(folder).mend()
                _CHECKED.add(folder)
            states = open_store(folder)
            return states.load() if is_default else states
        except StoreError:
            pass  # missing or incomplete; any other problem is reported by the trace
        with phase(title, len(prompts)) as report:
            batch_size = self.config.generation.batch_size
            states = trace(self.vlm, prompts, sites, tokens, out=folder, batch_size=batch_size, advance=report)
        _CHECKED.add(folder)
        return states.load() if is_default else states

    def check_source(self, source: str) -> None:
        """Check that the model whose states a guard reads is loaded.

        Raises:
            ConfigError: it is the original aligned LLM, and there is none.
        """
        if source == "llm" and self.scorer is self.vlm:
            raise ConfigError(
                f"the guard reads states of the aligned LLM (source llm), which {self.vlm.name!r} comes without; "
                "expected a guard of source vlm_text"
            )

    @cached_property
    def refusal_openings(self) -> RefusalOpenings:
        """The tokens with which the model opens refusals of the anchors, as found here or by an earlier run."""
        anchors, folder = self.prompts("anchors", "text"), Path(self.config.out) / "openings"
        return refusal_openings(self.vlm, anchors, self.judges[0], self.config.generation, folder)

    @cached_property
    def cached_model(self) -> CachedModel:
        """The model with its caches, shared by all studies of a run."""
        llm = self.scorer if isinstance(self.scorer, LLM) else None
        return CachedModel(self.vlm, self.config.generation, self.refusal_openings, llm)

    def inputs(self) -> dict[str, str | dict[str, str]]:
        """Return what the results depend on, for the provenance.

        Returns:
            Hashes of model and queries, the perplexity scorer, the refusal openings, the leakage between splits, and
            the copies within a user's file.
        """
        file = self.config.queries
        queries = file_hash([Path(file)]) if file else "built in"
        return {
            "model": self.identity,
            "queries": queries,
            "perplexity_scorer": "the model itself, as text" if self.scorer is self.vlm else "the aligned LLM",
            "refusal_openings": self.refusal_openings.record,
            "leakage": {name: str(leakage) for name, leakage in self.leakage.items()},
            **({"copies": self.copies.record()} if self.copies else {}),
        }

    @cached_property
    def leakage(self) -> dict[str, Leakage]:
        """Queries that recur in a later split, word for word or nearly, by name such as `test among anchors`."""
        return _leakage(self.queries)


def load_experiment(config: Config) -> Experiment:
    """Load queries and model; the queries come first, since a mistake in them shows at once.

    Raises:
        ConfigError: the scale or split does not exist, or a query recurs in another split.
        QueryFileError: the file of queries is invalid.
        ModelError: the model can't be loaded.
    """
    if config.scale not in SCALES:
        raise ConfigError(f"scale {config.scale!r} does not exist; expected one of {', '.join(SCALES)}")
    if config.split not in SPLITS[1:]:
        raise ConfigError(f"split {config.split!r} can't be reported; expected one of {', '.join(SPLITS[1:])}")
    own = shipped_model(config.model, config.weights)
    dataset, queries, copies = _dataset(config, own)
    if copies and copies.groups:
        note(f"{config.queries}: {copies}")
    _check_disjoint(queries)
    _check_weights(config)
    vlm = load_model(config.model, **config.loading, weights=config.weights)
    if config.queries:
        texts = (query.text for part in queries.values() for query in part)
        check_no_control_tokens(vlm, texts, f"{config.queries}: the request", is_numbered=False)
    if config.model != BUILT_IN and isinstance(vlm, VLM):
        note(f"Checking that {config.model} is read and changed in the right places (`vlm-guard check`)")
        check_model(vlm)
    scorer = LLM.from_pretrained(own.llm) if own else vlm
    if isinstance(scorer, LLM):
        scorer.check_matches(vlm)
    identity = model_hash(str(own.vlm) if own else config.model)
    return Experiment(config, vlm, scorer, dataset, _limited(queries, config.sizes), identity, copies)


def _dataset(config: Config, own: ShippedModel | None) -> tuple[str, dict[str, tuple[Query, ...]], Copies | None]:
    """Return the name of the dataset, its queries by split, and the copies in a user's file."""
    if not config.queries:
        own = own or shipped_model(BUILT_IN)
        return own.dataset, {split: own.queries(split) for split in own.splits}, None
    path = Path(config.queries)
    # A user's file that is called like the built-in dataset keeps its suffix.
    name = path.name if path.stem == BUILT_IN else path.stem
    queries = read_queries(config.queries, columns=config.columns)
    return name, split_queries(queries, config.seed), Copies.among(queries)


def _check_weights(config: Config) -> None:
    """Check that other weights are those of the built-in model, and complete.

    Raises:
        ConfigError: another model was named, or a checkpoint is missing.
    """
    if config.weights is None:
        return
    if config.model != BUILT_IN:
        raise ConfigError(f"weights {config.weights!r} with model {config.model!r}; they are for {BUILT_IN!r} only")
    folders = organism.path(config.weights), organism.llm_path(config.weights)
    if missing := [folder.name for folder in folders if not (folder / "config.json").exists()]:
        raise ConfigError(
            f"weights {config.weights!r} lack {' and '.join(missing)}; expected a folder that "
            "`python -m studies.organism --seed N` has trained"
        )


def _leakage(queries: Mapping[str, Sequence[Query]]) -> dict[str, Leakage]:
    """Compare each split that something is chosen or measured on with those before it."""
    texts = {split: [query.text for query in queries[split]] for split in SPLITS}
    return {
        f"{later} among {earlier}": find_leakage(texts[earlier], texts[later], texts[later], earlier, later)
        for earlier, later in combinations(SPLITS, 2)
    }


def _check_disjoint(queries: Mapping[str, Sequence[Query]]) -> None:
    """Check that no query recurs in another split; a user's file is divided so that none does.

    Raises:
        ConfigError: a query recurs, word for word or nearly.
    """
    for leakage in _leakage(queries).values():
        if len(leakage.rows):
            named = ", ".join(map(repr, leakage.rows.test[:5]))
            raise ConfigError(
                f"{leakage} ({named}); what is fitted or chosen on the queries it is measured on proves nothing: keep "
                "copies in one split"
            )


def _limited(queries: dict[str, tuple[Query, ...]], sizes: Scale) -> dict[str, tuple[Query, ...]]:
    """Keep the first queries of each class: built-in splits begin with one pair of each category."""
    limits = {"anchors": sizes.n_anchors}
    return {
        split: tuple(
            replace(query, split=split) for query in first_of_each_class(rows, limits.get(split, sizes.n_evaluated))
        )
        for split, rows in queries.items()
    }


def first_of_each_class(queries: Sequence[Query], n: int | None) -> tuple[Query, ...]:
    """Keep the first n queries of each class in their order, or all; pairs stay whole where partners are adjacent."""
    counts, kept = {True: 0, False: 0}, []
    for query in queries:
        if n is None or counts[query.harmful] < n:
            counts[query.harmful] += 1
            kept.append(query)
    return tuple(kept)
