"""The cards of models, directions and guards in Jupyter; importing this file registers them for `display.html`."""

from collections.abc import Callable

from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor, nn

from interp import families
from interp.directions import SafetyDirection
from interp.display import HARMFUL, HARMLESS, Line, card, chart, folded, formula, html, layers_in_words, table
from interp.errors import ModelError
from interp.estimators import ESTIMATORS
from interp.guard import Guard
from interp.projection import rule_named
from interp.tracing.forward import DECODER_SITES, VISION_SITES
from interp.vlm import VLM

POSITION_NAMES = {
    "last_prefill": "last prompt token",
    "generated": "generated tokens",
    "last": "last prompt token, generated tokens",
    "text": "prompt tokens other than pictures",
    "all": "all tokens",
}
"""Readable names of a guard's positions."""
UNITS = ((1e9, " B"), (1e6, " M"), (1e3, " k"))
MANY_ROWS = 12
"""A table with this many rows or more is folded."""


@html.register(VLM)
def vlm_card(vlm: VLM) -> str:
    """Return the parts of a model with their sites, and the peculiarities of its family."""
    model, config = vlm.model, vlm.model.config
    facts = {
        "model": f"{type(model).__name__} ({config.model_type}), {_counted(model)} parameters",
        "weights": f"{_short(model.dtype)} on {vlm.device}",
        "pictures": f"{vlm.picture_size} x {vlm.picture_size} pixels",
        "family": _family(vlm),
    }
    rows = [
        _part("vision tower", lambda: vlm.vision_blocks, VISION_SITES[:1]),
        _part("projector", lambda: vlm.projector, VISION_SITES[1:]),
        _part("language model", lambda: vlm.blocks, DECODER_SITES, vlm.d_model),
    ]
    columns = ("part", "module", "layers", "d_model", "parameters", "sites")
    return card("VLM", vlm.name, facts, table(columns, rows))


def _part(
    name: str, get: Callable[[], nn.Module], sites: tuple[str, ...], width: int | None = None
) -> tuple[object, ...]:
    """Return a row about a part, or why this model does not have the part."""
    try:
        part = get()
    except (ModelError, AttributeError) as error:
        return name, f"not found: {error}", "", "", "", ""
    # Towers are lists of equal blocks: the class of the first is the class of all.
    is_list = isinstance(part, nn.ModuleList)
    kind = type(part[0] if is_list else part).__name__
    return name, kind, len(part) if is_list else "", width or "", _counted(part), ", ".join(sites)


def _family(vlm: VLM) -> str:
    """Return what the structure of a model does not show."""
    family = vlm.family
    facts = ["pictures in the sequence" if family.pictures_in_sequence else "pictures through cross-attention"]
    facts.append("causal" if family.is_causal else "a prompt attends to itself in both directions")
    if stacked := families.deepstack_layers(vlm.model.config):
        facts.append(f"visual features are added after layers 0 to {max(stacked)}")
    if vlm.processor is None:
        facts.append("no processor: prompts can't be converted to model inputs")
    return "; ".join(facts)


def _counted(module: nn.Module) -> str:
    n = sum(parameter.numel() for parameter in module.parameters())
    size, unit = next(((size, unit) for size, unit in UNITS if n >= size), (1, ""))
    return f"{n / size:.3g}{unit}"


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


@html.register(SafetyDirection)
def direction_card(direction: SafetyDirection) -> str:
    """Return estimator and anchors, and by layer the explained variance and the class means."""
    n_layers, rank, d_model = direction.basis.shape
    facts = {
        "basis": f"{n_layers} layers, rank {rank}, d_model {d_model}",
        "fitted on": f"anchors {direction.anchors or 'unknown'}, states at token '{direction.token}'",
    }
    if direction.estimator in ESTIMATORS:
        facts["fitted by"] = ESTIMATORS[direction.estimator].formula
    if direction.harmful is None:
        facts["class means"] = "none: the direction was not fitted"
        return card("SafetyDirection", direction.estimator, facts)
    midpoints = [direction.midpoint(layer) for layer in range(n_layers)]
    explained = _explained(direction)
    columns = ("layer", "variance explained", "harmless μ₋", "midpoint", "harmful μ₊")
    numbers = zip(
        explained, direction.harmless[:, 0].tolist(), midpoints, direction.harmful[:, 0].tolist(), strict=True
    )
    by_layer = table(columns, [(layer, *row) for layer, row in enumerate(numbers)])
    lines = [Line("along the basis", range(n_layers), explained)]
    return card(
        "SafetyDirection",
        direction.estimator,
        facts,
        chart("Share of the anchors' variance by layer", lines),
        _classes(direction),
        folded("by layer", by_layer) if n_layers >= MANY_ROWS else by_layer,
    )


def _explained(direction: SafetyDirection) -> list[float]:
    """Return the share of variance by layer, summed over the rows of the basis."""
    if direction.explained is None:
        return [float("nan")] * len(direction.basis)
    return direction.explained.sum(-1).tolist()


def _classes(direction: SafetyDirection, marked: tuple[int, ...] = ()) -> Markup:
    """Return a chart of the mean coordinates of both classes."""
    if direction.harmful is None:
        return Markup("")
    means: list[tuple[str, Float[Tensor, "layer rank"], str, str]] = [
        ("harmful anchors", direction.harmful, HARMFUL, ""),
        ("harmless anchors", direction.harmless, HARMLESS, "5 2"),
    ]
    lines = [Line(name, range(len(own)), own[:, 0].tolist(), color, dash) for name, own, color, dash in means]
    return chart("Mean coordinate on the first row by layer", lines, marked)


@html.register(Guard)
def guard_card(guard: Guard) -> str:
    """Return the formula with the guard's settings, where and when it acts, and its numbers on validation."""
    direction = guard.direction
    fitted_at = "" if guard.direction_layer is None else f", of layer {guard.direction_layer}"
    layers = layers_in_words(guard.layers)
    facts = {
        "direction V": f"{direction.estimator}, rank {direction.rank}, read at '{direction.token}'{fitted_at}",
        "acts at": f"{layers} (of 0 to {len(direction.basis) - 1}), {POSITION_NAMES[guard.positions]}",
    }
    if guard.needs_reference:
        reader = "the model itself, without the picture" if guard.source == "vlm_text" else "the aligned LLM"
        facts["reference q"] = f"{guard.reference}, read by {reader}"
    if rule_named(guard.rule).has_strength:
        facts["strength α"] = f"{guard.strength:g}"
    facts |= {"gate": _gate(guard)} | _extras(guard)
    measured = Markup("")
    if guard.validation:
        measured = table(("on validation", ""), list(guard.validation.items()))
        measured = folded("numbers on validation", measured) if len(guard.validation) >= MANY_ROWS else measured
    title = f"{guard.rule}, for {guard.model}" if guard.model else guard.rule
    # The chart is about the direction, so it marks where that was fitted.
    marked = guard.layers if guard.direction_layer is None else (guard.direction_layer,)
    return card("Guard", title, facts, formula(formula_of(guard)), measured, _classes(direction, marked))


def formula_of(guard: Guard) -> str:
    """Return the formula with the guard's rule, strength and control in it."""
    target = rule_named(guard.rule).formula
    # A factor of 1 is left out, except in a sum such as (1 + α).
    target = target.replace("α ", "") if guard.strength == 1 else target
    target = target.replace("α", f"{guard.strength:g}")
    if guard.control == "full_state":
        return f"h* = {target.replace('c_q', 'h_q')}"
    change = f"{target} − c" if target != "0" else "0 − c"
    return f"h* = h {'−' if guard.control == 'sign_flipped' else '+'} ({change}) V"


def _gate(guard: Guard) -> str:
    condition = {
        "always": "always open",
        "sign": "sign: open if the reference's coordinate is above 0",
        "threshold": f"threshold: open if the reference's coordinate is above {guard.threshold:.3g}",
        "probe": "probe: open if a probe classifies the reference as harmful",
    }[guard.gate]
    if guard.gate == "always":
        return condition
    effect = "nothing changes" if guard.gate_scope == "change" else "states are still projected (c_target = 0)"
    return f"{condition}; if it is closed, {effect}"


def _extras(guard: Guard) -> dict[str, str]:
    """Return the settings that differ from their defaults."""
    options = {
        "changed states keep their norm": guard.keeps_norm,
        "the change is measured on the unguarded run": guard.frozen_shift,
        "all writes of a block are changed": guard.all_writes,
    }
    enabled = [description for description, is_set in options.items() if is_set]
    control = {
        None: "",
        "random": f"random: a change of the same size along a random vector (seed {guard.control_seed})",
        "sign_flipped": "sign_flipped: the opposite change",
        "full_state": "full_state: the whole state of the reference is inserted",
    }[guard.control]
    return ({"also": "; ".join(enabled)} if enabled else {}) | ({"control": control} if control else {})
