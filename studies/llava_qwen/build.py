"""Build `llava-qwen-0.5b`: the LLM's file and the weights that ship -> ordinary folders in Hugging Face format."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
)

from studies import llava_qwen
from studies.llava_qwen import EYES, base_model, networks
from studies.llava_qwen.base_model import BaseModelError
from studies.llava_qwen.updates import add_updates


def get(base: Path | None = None, variant: str = llava_qwen.DEFAULT) -> Path:
    """Return the folder of a variant, building it and the untouched LLM if they are not there.

    A folder appears only when it is complete, so that an interrupted build leaves nothing half done.

    Args:
        base: file of the LLM; by default it is looked for and downloaded.
        variant: one of `llava_qwen.VARIANTS`.

    Raises:
        BaseModelError: the weights that are trained here are missing; see also `base_model.find`.
    """
    if not (llava_qwen.WEIGHTS / EYES).exists():
        raise BaseModelError(
            f"{llava_qwen.WEIGHTS / EYES} does not exist: the weights of {llava_qwen.ALIAS} are not part of this "
            "version; train them with `python -m studies.llava_qwen`"
        )
    vlm_folder, llm_folder = llava_qwen.path(variant), llava_qwen.llm_path()
    if not llm_folder.exists():
        file = base_model.find(llava_qwen.cache() / llava_qwen.ALIAS, base)
        llm, tokenizer = dequantised(file)
        _write(llm_folder, lambda folder: (llm.save_pretrained(folder), tokenizer.save_pretrained(folder)))
    if not vlm_folder.exists():
        llm = AutoModelForCausalLM.from_pretrained(llm_folder, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(llm_folder)
        vlm = join(llm, tokenizer, llava_qwen.WEIGHTS, variant)
        processor = networks.build_processor(networks.VisionSizes(), tokenizer)
        _write(vlm_folder, lambda folder: (vlm.save_pretrained(folder), processor.save_pretrained(folder)))
    return vlm_folder


def dequantised(file: Path) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase]:
    """Return the LLM in bfloat16, and its tokenizer."""
    where = {"gguf_file": file.name}
    llm = AutoModelForCausalLM.from_pretrained(
        file.parent, **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    return llm, AutoTokenizer.from_pretrained(file.parent, **where)


def join(
    llm: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    weights: Path,
    variant: str,
    sizes: networks.VisionSizes | None = None,
) -> LlavaForConditionalGeneration:
    """Return the VLM: the LLM with its updates added, vision tower and projector.

    Args:
        llm: the aligned LLM; its weights are used, and changed by the updates.
        tokenizer: its tokenizer.
        weights: folder that `train.train` has written.
        variant: name of the file with the updates; without one the LLM stays as it is.
        sizes: those of the vision tower; by default those that ship.
    """
    vlm = networks.build_vlm(sizes or networks.VisionSizes(), llm, tokenizer).to(torch.bfloat16)
    eyes = nn.ModuleDict(
        {"vision_tower": vlm.model.vision_tower, "multi_modal_projector": vlm.model.multi_modal_projector}
    )
    eyes.load_state_dict(load_file(weights / EYES))
    if (path := weights / f"{variant}.safetensors").exists():
        add_updates(vlm, load_file(path))
    return vlm


def _write(folder: Path, save: Callable[[Path], object]) -> None:
    """Write a folder under another name, and rename it when it is complete."""
    unfinished = folder.with_name(f"{folder.name}.part{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        save(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
