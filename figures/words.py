"""Names from tables, in the words of readers."""

__all__ = ["MODALITIES", "NAMES", "in_words", "place_in_words"]

MODALITIES = {
    "text": "text only",
    "blank": "blank picture",
    "noise": "noise picture",
    "scene": "scene picture",
    "typographic": "text in picture",
    "typographic_scene": "text on scene",
}
NAMES: dict[str, dict[str, str]] = {
    "modality": MODALITIES,
    "model": {
        "built-in": "built-in toy model",
        "llava-qwen-0.5b": "real LLM (llava-qwen-0.5b)",
    },
    "setting": {"multimodal": "attack by picture"},
    "defence": {
        "self_reminder": "Self-Reminder",
        "goal_priority": "Goal Priority",
        "adashield_s": "AdaShield-S",
        "ecso": "ECSO",
        "caption_only": "caption in place of the picture",
        "shift_dc": "ShiftDC",
        "cmrm": "CMRM",
        "infer_aligner": "InferAligner",
        "astra": "ASTRA",
        "tbop": "TBOP",
        "alpha_steer": "AlphaSteer",
        "null_steer": "NullSteer",
        "re_gap": "ReGap",
        "angular_steering": "angular steering",
        "refusal_cone": "refusal cone",
        "text_verdict": "text verdict",
        "text_score_verdict": "text score",
        "gate_refuser": "gate alone",
        "guard_always": "guard, gate open",
        "guard_full_state": "full state patched",
        "guard_stronger": "guard, twice as strong",
        "guard_more_layers": "guard, three layers",
        "guard_references": "guard, three references",
        "guard_random_layer": "guard, random layer",
        "guard_bigrams": "guard, pairs of words",
        "guard_perplexity": "guard, perplexity",
        "guard_detector": "guard, detector",
        "guard_text_score": "guard, text score",
        "own_text": "guard, own text",
        "oracle": "guard, true request",
    },
    "detector": {
        "hidden_detect": "HiddenDetect",
        "mcd": "MCD",
        "kcd": "KCD",
        "ssd_coordinate": "SSD coordinate",
        "text_refusal_score": "refusal score of the text",
        "gate": "the guard's gate",
    },
    "reference": {
        "request_text": "the request's text",
        "prompt_text": "the prompt's text",
        "prompt_text+transcription": "prompt and transcription",
        "prompt_text+caption": "prompt and caption",
        "oracle": "true request (bound)",
    },
    "token": {"last": "last token", "instruction": "last token of the request", "all": "all tokens"},
    "positions": {
        "last_prefill": "last prompt token",
        "generated": "generated tokens",
        "last": "last prompt and generated",
        "text": "text of the prompt",
        "all": "all tokens",
    },
    "source": {"vlm_text": "the VLM without picture", "llm": "the aligned LLM"},
    "estimator": {
        "paired_svd": "paired SVD",
        "mean_diff": "mean difference",
        "pca": "PCA",
        "lda": "LDA",
        "logistic": "logistic",
    },
    "control": {
        "text_verdict": "text verdict (bound)",
        "random": "random directions",
        "full_state": "full state patched (bound)",
    },
    "selection_rule": {
        "kl_and_refusal_score": "Arditi's rule",
        "sas": "AutoSteer's rule",
        "shift_cosine": "ShiftDC's rule",
        "probe_auroc": "best probe",
        "separability_drop": "largest loss to a picture",
        "patching": "patching",
        "validation": "sweep on validation",
        "fixed": "middle layer",
        "middle_to_last": "second half",
        "random": "random layer",
        "best_on_test": "best on test (bound)",
    },
    "judge": {
        "exact": "exact sentences",
        "keywords": "our keywords",
        "xstest": "XSTest",
        "gcg": "GCG",
        "jailbreakbench": "JailbreakBench",
        "vlguard": "VLGuard",
        "lmms_eval": "LMMs-Eval",
        "adashield": "AdaShield",
        "full_completion": "whole answer",
        "linear": "linear model",
    },
}
"""Words for the values of each column of a table; values that are words already are not listed."""


def in_words(value, column: str) -> str:
    """Return the value of a column in words that need no manual."""
    name = str(value)
    # Versions of judges are in the table.
    key = name.partition("@")[0] if column == "judge" else name
    return NAMES.get(column, {}).get(key, key.replace("_", " "))


def place_in_words(setting: str, modality: str) -> str:
    """Name a setting and a modality; settings that go without saying are left out."""
    is_in_picture = str(modality).startswith("typographic")
    words = in_words(modality, "modality")
    if setting == ("multimodal" if is_in_picture else "plain"):
        return words
    return f"{in_words(setting, 'setting')}, {words}"
