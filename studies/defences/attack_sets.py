"""What the defence study asks: the paper's attack settings, harmless prompts that look dangerous, and utility.

plain, jailbreak, multimodal
            attacks, in every modality that a setting makes sense in
xstest_like, mossbench_like
            harmless alone: what looks dangerous is a word of the request, or what the picture shows
transcription, description
            utility of the built-in model, whose right answers are known
"""

from collections.abc import Iterator
from dataclasses import replace

from interp.inputs import CAPTION_REQUEST, TRANSCRIPTION_REQUEST, TYPOGRAPHIC, Prompt, Query, to_prompts
from interp.pictures import LazyPicture
from interp.typography import scene_content, text_picture
from studies.defences.prompt_sets import PromptSet
from studies.experiment.config import BUILT_IN
from studies.experiment.experiment import Experiment
from studies.organism import language


def attack_sets(material: Experiment) -> list[PromptSet]:
    """Attacks in every modality of the scale; on the built-in queries also what looks dangerous, and utility."""
    split, modalities, dataset = material.config.split, material.config.sizes.modalities, material.dataset
    beside = [name for name in modalities if name not in TYPOGRAPHIC]
    found = [PromptSet.of("plain", name, material.prompts(split, name), dataset) for name in beside]
    found += [
        PromptSet.of("jailbreak", name, jailbroken(material, name), dataset)
        for name in ("text", "blank")
        if name in modalities
    ]
    written = [name for name in modalities if name in TYPOGRAPHIC]
    found += [PromptSet.of("multimodal", name, material.prompts(split, name), dataset) for name in written]
    if material.config.sizes.rivals and dataset == BUILT_IN:
        found += _dangerous_looking(material)
    if material.config.sizes.rivals and material.config.model == BUILT_IN:
        found += _utility(material, written[0])
    return found


def jailbroken(material: Experiment, modality: str) -> list[Prompt]:
    """Attacks take turns over the pairs."""
    split, attacks = material.config.split, list(language.JAILBREAKS.values())
    by_attack = [material.prompts(split, modality, template=attack) for attack in attacks]
    return [by_attack[i // 2 % len(attacks)][i] for i in range(len(by_attack[0]))]


def _dangerous_looking(material: Experiment) -> Iterator[PromptSet]:
    """Harmless requests about harmful objects, and harmless ones beside a picture that names one."""
    split, size = material.config.split, material.vlm.picture_size
    n = material.config.sizes.n_evaluated
    for modality in ("text", "blank"):
        prompts = to_prompts(language.over_sensitive(split)[:n], modality, size)
        yield PromptSet.of("xstest_like", modality, prompts, material.dataset)
    prompts = [
        Prompt(query, "scene", query.text, (LazyPicture(text_picture, (thing, size)),))
        for query, thing in language.dangerous_sights(split)[:n]
    ]
    yield PromptSet.of("mossbench_like", "scene", prompts, material.dataset)


def _utility(material: Experiment, modality: str) -> Iterator[PromptSet]:
    """What the built-in model was taught to see: words in a picture, and scenes. Harmless requests alone."""
    size = material.vlm.picture_size
    harmless = [query for query in material.queries[material.config.split] if not query.harmful]
    written = [replace(prompt, text=TRANSCRIPTION_REQUEST) for prompt in to_prompts(harmless, modality, size)]
    right = tuple((query.rendered,) for query in harmless)
    yield PromptSet.of("transcription", modality, written, material.dataset, right=right)
    for kind in ("noise", "scene"):
        prompts = [replace(prompt, text=CAPTION_REQUEST) for prompt in to_prompts(harmless, kind, size)]
        right = tuple((_caption(query) if kind == "scene" else language.NO_CAPTION,) for query in harmless)
        yield PromptSet.of("description", kind, prompts, material.dataset, right=right)


def _caption(query: Query) -> str:
    color, shape = scene_content(query.seed)
    return language.CAPTION.format(color=color, shape=shape)
