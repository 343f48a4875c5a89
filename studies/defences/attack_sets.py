"""Prompt sets of the defence comparison: attacks, harmless prompts that look dangerous, and utility.

plain, jailbreak, multimodal
            attacks, in every modality in which the setting makes sense
xstest_like, mossbench_like
            harmless prompts only; a word of the request, or the content of the picture, looks dangerous
transcription, description
            utility of the built-in model, for which the correct answers are known
"""

from collections.abc import Iterator
from dataclasses import replace

from interp import CAPTION_REQUEST, TRANSCRIPTION_REQUEST, TYPOGRAPHIC, Prompt, Query, to_prompts
from interp.pictures import LazyPicture
from interp.typography import scene_content, text_picture
from studies.defences.prompt_sets import PromptSet
from studies.experiment.config import BUILT_IN
from studies.experiment.experiment import Experiment
from studies.organism import language


def attack_sets(experiment: Experiment) -> list[PromptSet]:
    """Return attacks in every modality of the scale; for the built-in queries also over-refusal and utility sets."""
    config, dataset = experiment.config, experiment.dataset
    split, modalities = config.split, experiment.sizes.modalities
    typographic = [name for name in modalities if name in TYPOGRAPHIC]
    others = [name for name in modalities if name not in TYPOGRAPHIC]
    prompt_sets = [PromptSet.of("plain", name, experiment.prompts(split, name), dataset) for name in others]
    prompt_sets += [
        PromptSet.of("jailbreak", name, jailbroken(experiment, name), dataset)
        for name in ("text", "blank")
        if name in modalities
    ]
    prompt_sets += [PromptSet.of("multimodal", name, experiment.prompts(split, name), dataset) for name in typographic]
    if experiment.sizes.rivals and dataset == BUILT_IN:
        prompt_sets += _dangerous_looking(experiment)
    if experiment.sizes.rivals and config.model == BUILT_IN:
        prompt_sets += _utility(experiment, typographic[0])
    return prompt_sets


def jailbroken(experiment: Experiment, modality: str) -> list[Prompt]:
    """Return the queries in jailbreak templates; successive pairs use successive templates."""
    split, attacks = experiment.config.split, list(language.JAILBREAKS.values())
    by_attack = [experiment.prompts(split, modality, template=attack) for attack in attacks]
    return [by_attack[i // 2 % len(attacks)][i] for i in range(len(by_attack[0]))]


def _dangerous_looking(experiment: Experiment) -> Iterator[PromptSet]:
    """Yield harmless requests about harmful objects, and harmless ones with a picture that names such an object."""
    split, size = experiment.config.split, experiment.vlm.picture_size
    n = experiment.sizes.n_evaluated
    for modality in ("text", "blank"):
        prompts = to_prompts(language.over_sensitive(split)[:n], modality, size)
        yield PromptSet.of("xstest_like", modality, prompts, experiment.dataset)
    prompts = [
        Prompt(query, "scene", query.text, (LazyPicture(text_picture, (thing, size)),))
        for query, thing in language.dangerous_sights(split)[:n]
    ]
    yield PromptSet.of("mossbench_like", "scene", prompts, experiment.dataset)


def _utility(experiment: Experiment, modality: str) -> Iterator[PromptSet]:
    """Yield what the built-in model was taught to see, words and scenes in pictures, for harmless requests only."""
    size = experiment.vlm.picture_size
    harmless = [query for query in experiment.queries[experiment.config.split] if not query.harmful]
    written = [replace(prompt, text=TRANSCRIPTION_REQUEST) for prompt in to_prompts(harmless, modality, size)]
    right = tuple((query.rendered,) for query in harmless)
    yield PromptSet.of("transcription", modality, written, experiment.dataset, right=right)
    for kind in ("noise", "scene"):
        prompts = [replace(prompt, text=CAPTION_REQUEST) for prompt in to_prompts(harmless, kind, size)]
        right = tuple((_caption(query) if kind == "scene" else language.NO_CAPTION,) for query in harmless)
        yield PromptSet.of("description", kind, prompts, experiment.dataset, right=right)


def _caption(query: Query) -> str:
    color, shape = scene_content(query.seed)
    return language.CAPTION.format(color=color, shape=shape)
