"""What a model, a direction and a guard show of themselves in Jupyter."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor, nn

from interp.display import HARMFUL, HARMLESS, Line, card, chart, folded, formula, table
from interp.families import ModelError
from interp.projection import RULES
from interp.tracing.forward import DECODER_SITES, VISION_SITES

if TYPE_CHECKING:
    from interp.directions import SafetyDirection
    from interp.guard import Guard
    from interp.vlm import VLM

PLACES = {
    "last_prefill": "last prompt token",
    "generated": "generated tokens",
    "last": "last prompt token, generated tokens",
    "text": "prompt tokens but for pictures",
    "all": "all tokens",
}
UNITS = ((1e9, " B"), (1e6, " M"), (1e3, " k"))
MANY_LAYERS = 12
"""From which on a table by layer is folded."""


def of_vlm(vlm: "VLM") -> str:
    """Parts with their sites, and what is particular about the family."""
    model, config = vlm.model, vlm.model.config
    facts = {
        "model": f"{type(model).__name__} ({config.model_type}), {_counted(model)} parameters",
        "kept as": f"{_short(model.dtype)} on {vlm.device}",
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
    name: str, found: Callable[[], nn.Module], sites: tuple[str, ...], width: int | None = None
) -> tuple[object, ...]:
    """A row; of a part that this model lacks, why."""
    try:
        part = found()
    except (ModelError, AttributeError) as error:
        return name, f"not found: {error}", "", "", "", ""
    is_list = isinstance(part, nn.ModuleList)
    kind = type(part[0] if is_list else part).__name__
    return name, kind, len(part) if is_list else "", width or "", _counted(part), ", ".join(sites)


def _family(vlm: "VLM") -> str:
    """What a model's structure does not show."""
    family = vlm.family
    told = ["pictures in the sequence" if family.pictures_in_sequence else "pictures through cross-attention"]
    told.append("causal" if family.is_causal else "a prompt attends to itself in both directions")
    if not family.is_sum:
        told.append("gates scale what attention and MLP put out")
    if vlm.deepstack_layers:
        told.append(f"visual features are added after layers 0 to {vlm.deepstack_layers[-1]}")
    if vlm.processor is None:
        told.append("no processor: nothing can be made from prompts")
    return "; ".join(told)


def _counted(module: nn.Module) -> str:
    n = sum(one.numel() for one in module.parameters())
    size, unit = next((one for one in UNITS if n >= one[0]), (1, ""))
    return f"{n / size:.3g}{unit}"


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def of_direction(direction: "SafetyDirection") -> str:
    """Estimator and anchors; by layer the explained variance, and where the classes lie."""
    n_layers, rank, d_model = direction.basis.shape
    facts = {
        "basis": f"{n_layers} layers, rank {rank}, d_model {d_model}",
        "fitted on": f"anchors {direction.anchors or 'unknown'}, states at token '{direction.token}'",
    }
    if direction.harmful is None:
        facts["class means"] = "none: it was not fitted"
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
        chart("Share of the anchors' variance, by layer", lines),
        _classes(direction),
        folded("by layer", by_layer) if n_layers >= MANY_LAYERS else by_layer,
    )


def _explained(direction: "SafetyDirection") -> list[float]:
    """All rows of the basis together."""
    if direction.explained is None:
        return [float("nan")] * len(direction.basis)
    return direction.explained.sum(-1).tolist()


def _classes(direction: "SafetyDirection", marked: tuple[int, ...] = ()) -> Markup:
    """Mean coordinates of both classes."""
    if direction.harmful is None:
        return Markup("")
    means: list[tuple[str, Float[Tensor, "layer rank"], str, str]] = [
        ("harmful anchors", direction.harmful, HARMFUL, ""),
        ("harmless anchors", direction.harmless, HARMLESS, "5 2"),
    ]
    lines = [Line(name, range(len(own)), own[:, 0].tolist(), color, dash) for name, own, color, dash in means]
    return chart("Mean coordinate on the first row, by layer", lines, marked)


def of_guard(guard: "Guard") -> str:
    """The formula as it is set, where and when it acts, what it is for, and what it was chosen by."""
    direction = guard.direction
    fitted_at = "" if guard.direction_layer is None else f", of layer {guard.direction_layer}"
    facts = {
        "direction V": f"{direction.estimator}, rank {direction.rank}, read at '{direction.token}'{fitted_at}",
        "acts at": f"{_layers(guard.layers)} (of 0 to {len(direction.basis) - 1}), {PLACES[guard.positions]}",
    }
    if guard.needs_reference:
        whose = "the model itself, without the picture" if guard.source == "vlm_text" else "the aligned LLM"
        facts["reference q"] = f"{guard.reference}, read by {whose}"
    if RULES[guard.rule].has_strength:
        facts["strength α"] = f"{guard.strength:g}"
    facts |= {"gate": _gate(guard)} | _extras(guard)
    measured = Markup("")
    if guard.validation:
        measured = table(("on validation", ""), list(guard.validation.items()))
        measured = folded("numbers on validation", measured) if len(guard.validation) >= MANY_LAYERS else measured
    title = f"{guard.rule}, for {guard.model}" if guard.model else guard.rule
    marked = guard.layers if guard.direction_layer is None else (guard.direction_layer,)
    return card("Guard", title, facts, formula(written(guard)), measured, _classes(direction, marked))


def written(guard: "Guard") -> str:
    """The formula with the guard's rule and strength in it."""
    target = RULES[guard.rule].written
    # A factor of one needs no writing, unless something is added to it.
    target = target.replace("α ", "") if guard.strength == 1 else target
    target = target.replace("α", f"{guard.strength:g}")
    if guard.control == "full_state":
        return f"h* = {target.replace('c_q', 'h_q')}"
    change = f"{target} − c" if target != "0" else "0 − c"
    return f"h* = h {'−' if guard.control == 'sign_flipped' else '+'} ({change}) V"


def _layers(layers: tuple[int, ...]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    is_window = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"layers {layers[0]} to {layers[-1]}" if is_window else f"layers {', '.join(map(str, layers))}"


def _gate(guard: "Guard") -> str:
    opens = {
        "always": "always open",
        "sign": "sign: open where the reference's coordinate is above 0",
        "threshold": f"threshold: open where the reference's coordinate is above {guard.threshold:.3g}",
        "probe": "probe: open where a probe finds the reference harmful",
    }[guard.gate]
    if guard.gate == "always":
        return opens
    held = "nothing is changed" if guard.gate_scope == "change" else "coordinates are taken out all the same"
    return f"{opens}; where it is shut, {held}"


def _extras(guard: "Guard") -> dict[str, str]:
    """What is not as usual."""
    set_ = {
        "changed states keep their length": guard.keeps_norm,
        "measured on the unguarded run": guard.frozen_shift,
        "all writes of a block are changed": guard.all_writes,
    }
    told = [words for words, is_set in set_.items() if is_set]
    control = {
        None: "",
        "random": f"random: as long a change along a random vector (seed {guard.control_seed})",
        "sign_flipped": "sign_flipped: the change goes the other way",
        "full_state": "full_state: the reference's whole state is put in",
    }[guard.control]
    return ({"also": "; ".join(told)} if told else {}) | ({"control": control} if control else {})
