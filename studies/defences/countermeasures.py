"""Countermeasures against an attacker who knows the guard: what is put in front of it, and what is drawn or doubled.

A screen decides before the model is asked. It is a margin, positive where a request is refused, so that an attacker who
knows it can lower it.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Guard, Prompt, log_probabilities, text_prompt, trace
from interp.batches import in_halves
from interp.detectors import gate_scores
from interp.projection import ProbeGate, coordinates
from studies.defences.defence import GUARD, Defence, refuse_where
from studies.defences.guarded import guard_settings
from studies.generation.cached_model import CachedModel, Outcome
from studies.generation.first_token import first_token_refusal

Screen = Callable[[CachedModel, Sequence[Prompt]], Float[Tensor, " prompt"]]
"""The margin by which each request is refused before the model is asked; not refused at 0 and below."""
States = Callable[[CachedModel, Sequence[Prompt]], Float[Tensor, "prompt layer d_model"] | None]
"""Reference states of prompts, as a guard reads them."""
GAP = 10.0
"""Margin between the classes' means on the anchors in a gate's screen: about that of refusal scores, in nats."""


def gate_screen(guard: Guard, states: States, gap: float) -> Screen:
    """Return the guard's own gate as a screen; see `interp.detectors.gate_scores`.

    Args:
        guard: the guard.
        states: read the references.
        gap: distance between the mean coordinates of harmful and harmless anchors at that layer; margins are in units
            in which it is `GAP`. Not used by the gate `probe`, whose margin is its logit.
    """

    def margins(model: CachedModel, prompts: Sequence[Prompt]) -> Float[Tensor, " prompt"]:
        if guard.gate == "always":
            return torch.full((len(prompts),), GAP)
        scores = torch.from_numpy(gate_scores(guard, states(model, prompts))).float()
        return scores if guard.gate == "probe" else scores / gap * GAP

    return margins


def detector_screen(probe: ProbeGate, layer: int) -> Screen:
    """Return a probe on the prompt's own state, picture included, at its last token in a layer."""

    def margins(model: CachedModel, prompts: Sequence[Prompt]) -> Float[Tensor, " prompt"]:
        traced = trace(model.vlm, prompts, batch_size=model.generation.batch_size)
        resid = torch.from_numpy(traced.resid_post.sel(token="last", layer=layer).values)
        return probe.margins(resid.float())

    return margins


def text_score_screen(reference: str, threshold: float = 0.0) -> Screen:
    """Return the refusal score of the reference's text, above a threshold in nats.

    At 0 it is the first-token form of the text verdict: a refusal of the text is more likely than not.
    """

    def margins(model: CachedModel, prompts: Sequence[Prompt]) -> Float[Tensor, " prompt"]:
        texts = [text_prompt(text) for text in model.reference_texts(prompts, reference)]
        return first_token_refusal(model.vlm, texts, model.generation, model.openings)[1] - threshold

    return margins


Surprise = Callable[[CachedModel, Sequence[str]], Float[Tensor, " text"]]
"""The mean negative log-likelihood per token of each text, in nats."""


def perplexity_screen(surprise: Surprise, threshold: float) -> Screen:
    """Return the log-perplexity of the user's text above a threshold (Jain et al., arXiv:2309.00614, section 4.1)."""

    def margins(model: CachedModel, prompts: Sequence[Prompt]) -> Float[Tensor, " prompt"]:
        return surprise(model, [prompt.text for prompt in prompts]) - threshold

    return margins


def bigram_surprise(tokenizer, texts: Sequence[str]) -> Surprise:
    """Return the surprise under the pairs of neighbouring tokens in some texts, with one added to every count.

    It needs no language model of requests, which an LLM that was trained on answers alone is not.

    Args:
        tokenizer: of the model.
        texts: requests as they are in use.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for text in texts:
        counts.update(pairwise(tokenizer(text, add_special_tokens=False)["input_ids"]))
    firsts: Counter[int] = Counter()
    for (first, _), n in counts.items():
        firsts[first] += n

    def surprise(model: CachedModel, others: Sequence[str]) -> Float[Tensor, " text"]:
        values = []
        for text in others:
            pairs = list(pairwise(tokenizer(text, add_special_tokens=False)["input_ids"]))
            likelihoods = [(counts[pair] + 1) / (firsts[pair[0]] + len(tokenizer)) for pair in pairs]
            values.append(-sum(map(log, likelihoods)) / max(1, len(pairs)))
        return torch.tensor(values)

    return surprise


@torch.no_grad()
def text_log_perplexities(model: CachedModel, texts: Sequence[str]) -> Float[Tensor, " text"]:
    """Compute the mean negative log-likelihood per token of each bare text, in nats, after its first token.

    Args:
        model: scores with its aligned LLM if it has one, else with the model itself, without a picture.
        texts: of two tokens at least, or their perplexity is NaN.
    """
    scorer, size = model.llm or model.vlm, model.generation.batch_size
    tokenizer = scorer.tokenizer

    def score(rows: list[int]) -> Float[Tensor, " row"]:
        batch = tokenizer([texts[i] for i in rows], padding=True, padding_side="right", return_tensors="pt")
        batch = batch.to(scorer.model.device)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = scorer.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        logprobs = log_probabilities(logits).gather(-1, ids[:, 1:, None])[..., 0]
        return (-(logprobs * mask[:, 1:]).sum(1) / mask[:, 1:].sum(1)).cpu()

    plan = [list(range(start, min(start + size, len(texts)))) for start in range(0, len(texts), size)]
    return torch.cat([values for _, values in in_halves(plan, score)])


def screened(name: str, screen: Screen, inner: Defence, settings: Mapping[str, object]) -> Defence:
    """Return a defence that refuses where a screen says so, and otherwise answers as another defence does.

    Args:
        name: what it is called in tables.
        screen: decides first.
        inner: answers what the screen lets through.
        settings: everything that the screen depends on, as JSON values.
    """

    def run(model: CachedModel, prompts: Sequence[Prompt]) -> Outcome:
        return refuse_where(model, prompts, (screen(model, prompts) > 0).tolist(), inner.run)

    return Defence(name, GUARD, {"screen": dict(settings), "inner": inner.stored_settings}, run)


def with_strictest_reference(
    guard: Guard, texts: Callable[[CachedModel, Sequence[Prompt]], list[list[str]]], source: str
) -> States:
    """Return states of the text that looks most harmful of several for each prompt: an attack has to hide all of them.

    Args:
        guard: harm is the first coordinate at its first layer.
        texts: for each prompt, as many as for every other.
        source: whose states, `vlm_text` or `llm`.
    """
    layer = guard.layers[0]

    def states(model: CachedModel, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt layer d_model"]:
        by_prompt = texts(model, prompts)
        flat = model.text_states([text for own in by_prompt for text in own], source)
        several = flat.reshape(len(prompts), -1, *flat.shape[1:])
        harm = coordinates(several[:, :, layer].float(), guard.basis(layer))[..., 0]
        return several[torch.arange(len(prompts)), harm.argmax(1)]

    return states


def text_and_halves(reference: str) -> Callable[[CachedModel, Sequence[Prompt]], list[list[str]]]:
    """Return the reference's text, its first half and its second half, by words, for each prompt."""

    def texts(model: CachedModel, prompts: Sequence[Prompt]) -> list[list[str]]:
        return [[text, *_halves(text)] for text in model.reference_texts(prompts, reference)]

    return texts


def _halves(text: str) -> tuple[str, str]:
    words = text.split()
    middle = (len(words) + 1) // 2
    return " ".join(words[:middle]) or text, " ".join(words[middle:]) or text


def with_states(name: str, guard: Guard, reference: str, states: States) -> Defence:
    """Return a guard that reads its references in a way of its own.

    Args:
        name: what it is called in tables; it says how references are read.
        guard: the fitted guard.
        reference: kind of text that they come from.
        states: reads them.
    """

    def run(model: CachedModel, prompts: Sequence[Prompt]) -> Outcome:
        return model.run_guards(prompts, [guard], states(model, prompts))[0]

    return Defence(name, GUARD, guard_settings(guard, reference), run)


def one_of(name: str, guards: Sequence[Guard], reference: str, states: States, seed: int = 0) -> Defence:
    """Return the defence that draws one of several guards for each prompt.

    The draw is a hash of the prompt and a seed that the attacker does not know: the same prompt gets the same guard
    whatever it is batched with.

    Args:
        name: what it is called in tables.
        guards: which may differ in their layers.
        reference: kind of text that they read.
        states: reads it.
        seed: of the draws.
    """

    def run(model: CachedModel, prompts: Sequence[Prompt]) -> Outcome:
        outcomes = model.run_guards(prompts, guards, states(model, prompts))
        drawn = [zlib.crc32(f"{seed} {model.prompt_hash(prompt)}".encode()) % len(guards) for prompt in prompts]
        answers = [outcomes[draw].answers[i] for i, draw in enumerate(drawn)]
        scores, kl = (
            torch.stack([getattr(outcomes[draw], name)[i] for i, draw in enumerate(drawn)])
            for name in ("refusal_score", "kl")
        )
        return Outcome(answers, scores, kl)

    settings = {"guards": [guard_settings(guard, reference) for guard in guards], "seed": seed}
    return Defence(name, GUARD, settings, run)
