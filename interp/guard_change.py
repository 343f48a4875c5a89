"""How a guard changes the states of a layer: the formula of `projection`, with mask, gate and control."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.directions import SafetyDirection
from interp.projection import (
    RuleInputs,
    centred_cosine,
    coordinates,
    restore_norm,
    rule_named,
    set_coordinates,
    target_coordinates,
)


@runtime_checkable
class ChangeSettings(Protocol):
    """The fields of a guard that decide how it changes a state; `interp.guard.Guard` documents them."""

    direction: SafetyDirection
    rule: str
    strength: float
    gate_scope: str
    keeps_norm: bool
    control: str | None

    def basis(self, layer: int) -> Float[Tensor, "rank d_model"]: ...

    def fitted_at(self, layer: int) -> int: ...

    def random_direction(self, layer: int) -> Float[Tensor, " d_model"]: ...


def change(
    guard: ChangeSettings,
    resid: Float[Tensor, "batch pos d_model"],
    layer: int,
    reference: Float[Tensor, "batch d_model"] | None,
    mask: Bool[Tensor, "batch pos"],
    is_open: Bool[Tensor, " batch"] | None = None,
    unguarded: Float[Tensor, "batch d_model"] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Apply the formula, in float32, where the mask is True and the gate is open.

    Args:
        guard: rule, strength, gate scope and control.
        resid, layer, reference, mask, is_open, unguarded: see `Guard.change`.
    """
    # Nothing before the first masked position is computed, so a long prompt costs no more than its last token.
    first = _first_position(mask)
    if first is None:
        return resid
    later = _changed(guard, resid[:, first:], layer, reference, mask[:, first:], is_open, unguarded)
    return torch.cat([resid[:, :first], later], dim=1) if first else later


def _first_position(mask: Bool[Tensor, "batch pos"]) -> int | None:
    """Return the first position that changes in any row, or None if nothing changes.

    A mask on an accelerator gives 0, because waiting for it would take longer than changing every position.
    """
    if mask.device.type != "cpu":
        return 0
    positions = mask.any(0).nonzero()
    return int(positions[0]) if len(positions) else None


def _changed(
    guard: ChangeSettings,
    resid: Tensor,
    layer: int,
    reference: Tensor | None,
    mask: Tensor,
    is_open: Tensor | None,
    unguarded: Tensor | None,
) -> Tensor:
    basis, precise, mask = guard.basis(layer).to(resid.device), resid.float(), mask.to(resid.device)
    # A frozen shift is measured on the unguarded state and then added to the current one.
    start = precise if unguarded is None else unguarded.to(resid.device).float()[:, None]
    inputs = _rule_inputs(guard, layer, start, basis, reference)
    target = target_coordinates(guard.rule, coordinates(start, basis), inputs, guard.strength)
    if is_open is not None:
        is_open = is_open.to(resid.device)[:, None]
        if guard.gate_scope == "change":
            mask = mask & is_open
        else:
            # A closed gate still projects the state, but inserts nothing.
            target = torch.where(is_open[..., None], target, 0)
    changed = set_coordinates(start, basis, target)
    if unguarded is not None:
        changed = precise + (changed - start)
    changed = _controlled(guard, changed, precise, layer, reference)
    if guard.keeps_norm:
        changed = restore_norm(changed, precise)
    # Positions outside the mask keep their exact bits.
    return torch.where(mask[..., None], changed.to(resid.dtype), resid)


def _controlled(guard: ChangeSettings, changed: Tensor, resid: Tensor, layer: int, reference: Tensor | None) -> Tensor:
    """Return the states that the guard's control gives instead of the changed ones."""
    if guard.control == "sign_flipped":
        return resid - (changed - resid)
    if guard.control == "full_state":
        return (guard.strength * reference.to(resid.device).float()[:, None]).expand_as(resid)
    if guard.control == "random":
        size = (changed - resid).norm(dim=-1, keepdim=True)
        return resid + size * guard.random_direction(layer).to(resid.device)
    return changed


def _rule_inputs(
    guard: ChangeSettings, layer: int, resid: Tensor, basis: Tensor, reference: Tensor | None
) -> RuleInputs:
    """Return the inputs that the guard's rule needs, on the device of the states."""
    needs, fitted_at, inputs = rule_named(guard.rule).needs, guard.fitted_at(layer), {}
    if "reference" in needs and reference is not None:
        inputs["reference"] = coordinates(reference.to(resid.device).float(), basis)[:, None]
    if "harmful" in needs:
        inputs["harmful"] = guard.direction.harmful[fitted_at].to(resid.device)
        inputs["harmless"] = guard.direction.harmless[fitted_at].to(resid.device)
    if "cosine" in needs:
        inputs["length"] = resid.norm(dim=-1, keepdim=True)
        inputs["cosine"] = centred_cosine(resid, basis, guard.direction.centre[fitted_at].to(resid.device))
    if "readout" in needs:
        readout, centre = (
            tensor[fitted_at].to(resid.device) for tensor in (guard.direction.readout, guard.direction.centre)
        )
        inputs["readout"] = coordinates(resid - centre, readout)
    return RuleInputs(**inputs)
