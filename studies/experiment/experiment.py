"""What every study starts from: a model, queries divided into splits, and their traced activations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import xarray as xr

from interp.activations import StoreError, fingerprint, open_store
from interp.inputs import Prompt, Query, to_prompts
from interp.trace import trace
from interp.vlm import LLM, VLM
from studies import organism
from studies.bookkeeping.progress import phase
from studies.bookkeeping.provenance import file_hash, model_hash
from studies.datasets import Leakage, find_leakage, is_paired, read_queries, split_queries
from studies.experiment.config import BUILT_IN, SCALES, SPLITS, TRAINED, Config, ConfigError, Scale
from studies.experiment.model_loading import _check, load_model
from studies.experiment.refusal_tokens import RefusalTokens, refusal_tokens
from studies.generation.cached_model import CachedModel
from studies.judges import EXACT, KEYWORDS, RuleJudge
from studies.organism import language


@dataclass(frozen=True)
class Experiment:
    """Loaded once, used by every study of a run."""

    config: Config
    vlm: VLM
    scorer: VLM | LLM
    """Text-only model that measures perplexity: the aligned LLM where it is at hand, else the VLM without a picture."""
    dataset: str
    queries: dict[str, tuple[Query, ...]]
    identity: str
    """Hash of the model's files."""

    @property
    def judges(self) -> tuple[RuleJudge, ...]:
        """The first one decides; the second shows whether another would.

        The exact judge knows the built-in model's own sentences, and nobody else's.
        """
        return (EXACT, KEYWORDS) if self.config.model == self.dataset == BUILT_IN else (KEYWORDS,)

    @cached_property
    def is_paired(self) -> bool:
        return is_paired(self.queries["anchors"])

    @property
    def labels(self) -> dict[str, str]:
        """The columns that every row of a result shares."""
        model = self.config.model
        # A folder of the user's own that is called as the built-in model is goes by its whole path.
        name = model if model == BUILT_IN or Path(model).name != BUILT_IN else str(Path(model).resolve())
        return {"model": Path(name).name if name == model else name, "dataset": self.dataset, "seed": self.config.seed}

    def prompts(self, split: str, modality: str, **kwargs) -> list[Prompt]:
        return to_prompts(self.queries[split], modality, self.vlm.picture_size, **kwargs)

    def activations(self, split: str, modality: str, **read: Sequence[str]) -> xr.Dataset:
        """States of a split in a modality; `read` as for `traced`."""
        return self.traced(self.prompts(split, modality), f"trace {split}, {modality}", **read)

    def traced(
        self,
        prompts: Sequence[Prompt],
        title: str,
        sites: Sequence[str] = ("resid_post",),
        tokens: Sequence[str] = ("last",),
    ) -> xr.Dataset:
        """Traced on first use, found on disk after that; read lazily where it is more than the usual place."""
        folder = Path(self.config.out) / "traces" / fingerprint(self.vlm, prompts)
        is_usual = (tuple(sites), tuple(tokens)) == (("resid_post",), ("last",))
        if not is_usual:
            folder = folder.with_name("-".join((folder.name, *sites, *tokens)))
        try:
            found = open_store(folder)
            return found.load() if is_usual else found
        except StoreError:
            pass  # not there yet, or not whole; what else is wrong with it is told by the trace
        with phase(title, len(prompts)) as report:
            how = {"batch_size": self.config.generation.batch_size, "advance": report}
            found = trace(self.vlm, prompts, sites, tokens, out=folder, **how)
        return found.load() if is_usual else found

    @cached_property
    def refusal_tokens(self) -> RefusalTokens:
        anchors = self.prompts("anchors", "text")
        return refusal_tokens(self.vlm, anchors, self.judges[0], self.config.generation)

    @cached_property
    def asker(self) -> CachedModel:
        llm = self.scorer if isinstance(self.scorer, LLM) else None
        return CachedModel(self.vlm, self.config.generation, self.refusal_tokens.ids, llm)

    def inputs(self) -> dict[str, str | dict[str, str]]:
        """Hashes of what went in, and how the refusal tokens were found: for the provenance."""
        file = self.config.queries
        queries = file_hash([Path(file)]) if file else "built in"
        return {
            "model": self.identity,
            "queries": queries,
            "perplexity_scorer": "the model itself, as text" if self.scorer is self.vlm else "the aligned LLM",
            "refusal_tokens": self.refusal_tokens.found,
            "leakage": {split: str(found) for split, found in self.leakage.items()},
        }

    @cached_property
    def leakage(self) -> dict[str, Leakage]:
        """Anchors among the queries of each other split, word for word or nearly."""
        anchors = [query.text for query in self.queries["anchors"]]
        others = {split: [query.text for query in self.queries[split]] for split in SPLITS[1:]}
        return {split: find_leakage(anchors, texts, texts) for split, texts in others.items()}


def load(config: Config) -> Experiment:
    """Queries first, since a mistake in them shows at once; then the model.

    Raises:
        ConfigError, QueryFileError, ModelError: no such scale or split, bad queries, a bad model.
    """
    if config.scale not in SCALES:
        raise ConfigError(f"scale {config.scale!r} does not exist; expected one of {', '.join(SCALES)}")
    if config.split not in SPLITS[1:]:
        raise ConfigError(f"split {config.split!r} can't be reported; expected one of {', '.join(SPLITS[1:])}")
    if config.queries:
        path = Path(config.queries)
        dataset = path.name if path.stem == BUILT_IN else path.stem
        queries = split_queries(read_queries(config.queries), config.seed)
    else:
        dataset, queries = BUILT_IN, {split: language.queries(split) for split in (*SPLITS, TRAINED)}
    is_organism = config.model == BUILT_IN
    _check_apart(queries)
    folder = str(organism.path()) if is_organism else config.model
    vlm = load_model(config.model, **config.loading)
    if not is_organism:
        _check(vlm)
    scorer = LLM.from_pretrained(organism.llm_path()) if is_organism else vlm
    if isinstance(scorer, LLM):
        scorer.check_matches(vlm)
    return Experiment(config, vlm, scorer, dataset, _cut(queries, config.sizes), model_hash(folder))


def _check_apart(queries: Mapping[str, Sequence[Query]]) -> None:
    """Raises:
    ConfigError: an anchor is in the validation or the test split.
    """
    texts = {split: {query.text for query in chosen} for split, chosen in queries.items()}
    for split in SPLITS[1:]:
        seen = sorted(texts["anchors"] & texts[split])
        if seen:
            raise ConfigError(
                f"{len(seen)} anchors are in the {split} split too ({', '.join(map(repr, seen[:5]))}); a direction "
                "fitted on what it is measured on proves nothing: give them one split"
            )


def _cut(queries: dict[str, tuple[Query, ...]], sizes: Scale) -> dict[str, tuple[Query, ...]]:
    """The first so many of each class: built-in splits begin with one pair of each category."""
    limits = {"anchors": sizes.n_anchors}
    return {
        split: tuple(
            replace(query, split=split) for query in _first_of_each_class(chosen, limits.get(split, sizes.n_evaluated))
        )
        for split, chosen in queries.items()
    }


def _first_of_each_class(queries: tuple[Query, ...], n: int) -> tuple[Query, ...]:
    """In their order. Cuts no pair where partners stand side by side."""
    seen, kept = {True: 0, False: 0}, []
    for query in queries:
        if seen[query.harmful] < n:
            seen[query.harmful] += 1
            kept.append(query)
    return tuple(kept)
