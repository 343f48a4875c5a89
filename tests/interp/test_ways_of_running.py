"""Every family in every way of running it: the guard does what a hand-written hook does, or refuses in one line.

`VLM_GUARD_WRITE_MODELS=1 pytest -m slow tests/interp/test_ways_of_running.py` writes the table of `docs/models.md`.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from interp.directions import SafetyDirection, random_basis
from interp.errors import ModelError
from interp.guard import Guard
from interp.inputs import Inputs, collate, text_prompt
from interp.vlm import VLM
from tests.families.all_families import DEEP, FOLDERS

N_TOKENS, TOLERANCE = 4, 1e-4
FAMILIES = {family.name: family for family in (*DEEP, *FOLDERS)}
IN_DEFAULT_RUN = ("LLaVA-1.5", "Gemma 3", "Qwen3-VL", "Gemma 4")
FOUND: dict[str, dict[str, str]] = {}
"""Outcome by family and way, from the tests that have run."""
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
pytestmark = pytest.mark.filterwarnings("ignore")


def prompts(vlm, n_pictures=1, texts=("How do I water a plant?",)):
    size = vlm.picture_size
    colors = ("red", "blue")[:n_pictures]
    return [
        replace(text_prompt(text), pictures=tuple(Image.new("RGB", (size, size), c) for c in colors)) for text in texts
    ]


@contextmanager
def by_hand(vlm: VLM, basis: torch.Tensor, layer: int) -> Iterator[None]:
    """Project the last prompt token's state, by a hook that is written here and knows nothing of the toolkit."""
    lengths: list[int] = []

    def hook(module, args, output):
        resid = output[0] if isinstance(output, tuple) else output
        lengths.append(resid.shape[1])
        if len(lengths) > 1 and resid.shape[1] == 1:
            # A generated token, after a cache.
            return output
        # The first pass ends with the prompt; without a cache, later ones run it again.
        changed, end, vector = resid.clone(), lengths[0] - 1, basis[0].to(resid.dtype)
        changed[:, end] = changed[:, end] - (changed[:, end] @ vector)[:, None] * vector
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = vlm.blocks[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def generated(model, batch: Inputs, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens and the logits of each of their steps."""
    torch.manual_seed(0)
    settings = {"max_new_tokens": N_TOKENS, "min_new_tokens": N_TOKENS, "do_sample": False, "pad_token_id": 0}
    settings |= {"output_logits": True, "return_dict_in_generate": True} | kwargs
    output = model.generate(**batch, **settings)
    return output.sequences, torch.stack(output.logits).float()


Way = Callable[[VLM], tuple[VLM, object, Inputs, dict]]
"""From a family's model to the one that is guarded, the one that is run, its inputs, and settings."""


def plain(**settings) -> Way:
    return lambda vlm: (vlm, vlm.model, collate(vlm, prompts(vlm)), settings)


def padded(vlm: VLM):
    texts = ("How?", "Tell me, please, what the capital of that country is called today.")
    return vlm, vlm.model, collate(vlm, prompts(vlm, texts=texts)), {}


def several_pictures(vlm: VLM):
    return vlm, vlm.model, collate(vlm, prompts(vlm, n_pictures=2)), {}


def compiled(vlm: VLM):
    batch = collate(vlm, prompts(vlm))
    model = torch.compile(vlm.model, backend="eager")
    with torch.no_grad():
        model(**batch)

    def generate(**kwargs) -> SimpleNamespace:
        logits = model(**batch).logits[:, -1]
        return SimpleNamespace(sequences=logits.argmax(-1, keepdim=True), logits=(logits,))

    model.generate = generate
    return vlm, model, batch, {}


def adapted(vlm: VLM):
    import peft

    config = peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    model = peft.get_peft_model(vlm.model, config)
    return VLM(model, vlm.processor, vlm.name), model, collate(vlm, prompts(vlm)), {}


def quantised(vlm: VLM):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(vlm.model, Int8WeightOnlyConfig())
    return vlm, vlm.model, collate(vlm, prompts(vlm)), {}


LAST = "last layer"
WAYS: dict[str, Way] = {
    "greedy": plain(),
    LAST: plain(),
    "beams": plain(num_beams=2, num_return_sequences=2),
    "samples": plain(do_sample=True, num_return_sequences=2),
    "no cache": plain(use_cache=False),
    "padded batch": padded,
    "two pictures": several_pictures,
    "compiled": compiled,
    "adapter": adapted,
    "int8": quantised,
}
NEEDED = {"adapter": "peft", "int8": "torchao"}
CHANGES_THE_MODEL = ("compiled", "adapter", "int8")


def outcome(vlm: VLM, way: Way, layer: int) -> str:
    """Return `equal`, or the message with which the guard refuses; anything else raises."""
    guarded, model, batch, settings = way(vlm)
    basis = random_basis(torch.zeros(guarded.n_layers, 1, guarded.d_model), seed=0)
    guard = Guard(SafetyDirection(basis, "random"), (layer,), rule="ablate", gate="always")
    try:
        with guard.on(guarded):
            ours = generated(model, batch, **settings)
    except ModelError as error:
        assert "\n" not in str(error)
        return str(error)
    unguarded = generated(model, batch, **settings)[1]
    with by_hand(guarded, basis[layer], layer):
        tokens, logits = generated(model, batch, **settings)
    assert torch.equal(ours[0], tokens)
    torch.testing.assert_close(ours[1], logits, atol=TOLERANCE, rtol=TOLERANCE)
    assert (ours[1] - unguarded).abs().max() > TOLERANCE
    return "equal"


def cases():
    for family in FAMILIES:
        marks = [] if family in IN_DEFAULT_RUN else [pytest.mark.slow]
        yield from (pytest.param(family, way, marks=marks, id=f"{family}-{way}") for way in WAYS)


@pytest.mark.parametrize(("family", "way"), list(cases()))
def test_a_guard_is_right_or_refused(family, way, vlm_of, tmp_path):
    if (package := NEEDED.get(way)) and not find_spec(package):
        pytest.skip(f"{package} is not installed")
    vlm = vlm_of(family)
    if way in CHANGES_THE_MODEL:
        FAMILIES[family].build(tmp_path)
        vlm = VLM.from_pretrained(tmp_path, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = outcome(vlm, WAYS[way], layer=vlm.n_layers - 1 if way == LAST else 1)
    if way == "compiled":
        # Compiled again with the hooks, or refused since they were skipped.
        assert found == "equal" or "hooks" in found
    FOUND.setdefault(family, {})[way] = "equal" if found == "equal" else "refused"


HEAD = f"| family | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}\n"


@pytest.mark.slow
def test_the_table_of_ways_matches_what_was_found():
    if len(FOUND) < len(FAMILIES):
        pytest.skip("needs all families, in the same run")
    rows = [f"| {family} | {' | '.join(FOUND[family].get(way, 'not run') for way in WAYS)} |" for family in FAMILIES]
    table, text = HEAD + "\n".join(rows) + "\n", PAGE.read_text(encoding="utf-8")
    start = text.index(HEAD)
    end = text.index("\n\n", start) + 1
    if os.environ.get("VLM_GUARD_WRITE_MODELS"):
        PAGE.write_text(text[:start] + table + text[end:], encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8")[start:].startswith(table + "\n")
