"""Build a model: the LLM's file and the weights that ship -> ordinary folders in Hugging Face format."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from studies.bookkeeping.provenance import write_json
from studies.llava_qwen import base_model, networks
from studies.llava_qwen.base_model import BaseModelError
from studies.llava_qwen.built_model import EYES, MADE_OF, BuiltModel, is_made_of
from studies.llava_qwen.updates import add_updates


def get(model: BuiltModel, variant: str, base: Path | None = None) -> Path:
    """Return the folder of a variant, building it and its aligned LLM if they are not there.

    A folder appears only when it is complete, so that an interrupted build leaves nothing half done.

    Args:
        model: what is built.
        variant: one of the model's variants.
        base: file of the LLM; by default it is looked for and downloaded.

    Raises:
        BaseModelError: the weights that are trained here are missing; see also `base_model.find`.
    """
    try:
        llm_parts, vlm_parts = (model.made_of(variant, with_eyes) for with_eyes in (False, True))
    except FileNotFoundError as error:
        raise BaseModelError(str(error)) from None
    vlm_folder, llm_folder = model.path(variant), model.llm_path(variant)
    if not is_made_of(llm_folder, llm_parts):
        llm, tokenizer = dequantised(base_model.find(model.folder, model.base, base))
        if model.own_alignment:
            add_updates(llm, _updates(model, variant))
        _write(llm_folder, llm_parts, lambda folder: (llm.save_pretrained(folder), tokenizer.save_pretrained(folder)))
    if not is_made_of(vlm_folder, vlm_parts):
        llm = AutoModelForCausalLM.from_pretrained(llm_folder, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(llm_folder)
        vlm = join(model, llm, tokenizer, None if model.own_alignment else variant)
        processor = networks.build_processor(networks.VisionSizes(), tokenizer, model.chat)
        _write(vlm_folder, vlm_parts, lambda folder: (vlm.save_pretrained(folder), processor.save_pretrained(folder)))
    return vlm_folder


def dequantised(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the LLM in bfloat16, and its tokenizer, which pads on the left."""
    where = {"gguf_file": file.name}
    llm = AutoModelForCausalLM.from_pretrained(
        file.parent, **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    return llm, AutoTokenizer.from_pretrained(file.parent, **where, padding_side="left")


def join(
    model: BuiltModel,
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    variant: str | None,
    sizes: networks.VisionSizes | None = None,
) -> LlavaForConditionalGeneration:
    """Return the VLM: the LLM, vision tower and projector, in bfloat16.

    Args:
        model: what is built.
        llm: the aligned LLM; its weights are used, and changed by the variant's updates.
        tokenizer: its tokenizer.
        variant: the variant whose updates came with the eyes; None for none.
        sizes: those of the vision tower; by default those that ship.
    """
    vlm = networks.build_vlm(sizes or networks.VisionSizes(), llm, tokenizer, model.chat).to(torch.bfloat16)
    tower = load_file(model.tower) if model.tower else {}
    tower = {name: value for name, value in tower.items() if name.startswith("vision_tower.")}
    networks.eyes_of(vlm).load_state_dict(tower | load_file(model.weights / EYES))
    if variant is not None:
        add_updates(vlm, _updates(model, variant))
    return vlm


def _updates(model: BuiltModel, variant: str) -> dict[str, torch.Tensor]:
    """Return the updates of a variant; none if it leaves the LLM as it is."""
    path = model.updates_path(variant)
    return load_file(path) if path else {}


def _write(folder: Path, made_of: Mapping[str, str], save: Callable[[Path], object]) -> None:
    """Write a folder under another name, and give it its own when it is complete, in place of an older one."""
    unfinished, old = (folder.with_name(f"{folder.name}.{word}{os.getpid()}") for word in ("part", "old"))
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        save(unfinished)
        write_json(unfinished / MADE_OF, dict(made_of))
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
