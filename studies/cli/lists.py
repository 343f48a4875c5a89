"""Lists that `vlm-guard judges list` and `vlm-guard defences list` print: one line for each judge and defence."""

from studies.cli.verbs import VerbResult, Verbs

app = Verbs(help="The defences that `vlm-guard defend` can run.", no_args_is_help=True)

RULE = "needs no model"
ANY_CHAT = "any chat model: NAME=MODEL, or NAME=MODEL@URL"
JUDGES = {
    "keywords": ("refusal phrases at the start of an answer", "this project", "MIT", RULE),
    "xstest": ("string match of XSTest", "arXiv:2308.01263", "CC BY 4.0", RULE),
    "gcg": ("test_prefixes of GCG", "arXiv:2307.15043", "phrases only", RULE),
    "jailbreakbench": ("phrases of JailbreakBench", "arXiv:2404.01318", "phrases only", RULE),
    "vlguard": ("reject list of VLGuard", "arXiv:2402.02207", "phrases only", RULE),
    "lmms_eval": (
        "phrases of lmms-eval's red-teaming task",
        "EvolvingLMMs-Lab/lmms-eval",
        "phrases only",
        RULE,
    ),
    "adashield": ("phrases of AdaShield", "arXiv:2403.09513", "phrases only", RULE),
    "full_completion": (
        "refusals, and answers that take themselves back",
        "IQ-QI214/geometry-of-refusal",
        "phrases only",
        RULE,
    ),
    "exact": ("answers of the built-in model, whose form is known", "this project", "MIT", RULE),
    "llama_guard": (
        "harmful or not, by Llama Guard",
        "arXiv:2312.06674",
        "the model's own",
        "llama_guard=meta-llama/Llama-Guard-3-8B, gated",
    ),
    "harmbench": (
        "harmful or not, by HarmBench's classifier",
        "arXiv:2402.04249",
        "MIT",
        "harmbench=cais/HarmBench-Llama-2-13b-cls",
    ),
    "wildguard": (
        "refused? harmful? by WildGuard",
        "arXiv:2406.18495",
        "Apache-2.0",
        "wildguard=allenai/wildguard, gated",
    ),
    "strongreject_anew": (
        "three questions and a score after StrongREJECT",
        "arXiv:2402.10260",
        "own wording, MIT",
        ANY_CHAT,
    ),
    "xstest_prompt": ("XSTest's three classes", "arXiv:2308.01263", "CC BY 4.0", ANY_CHAT),
    "qwen_guard": (
        "refused? harmful? by Qwen3Guard",
        "arXiv:2510.14276",
        "the model's own",
        "qwen_guard=Qwen/Qwen3Guard-Gen-8B",
    ),
    "classifier": (
        "any sequence classifier",
        "your model",
        "the model's own",
        "classifier=MODEL --label LABEL=MEANING",
    ),
}
"""Judge -> what it is, its source, its licence, and how to get it."""

ALWAYS, GUARD, ANCHORS = "always there", "needs --guard", "needs anchors, of the guard or --anchors"
CONE = "needs --cone and anchors"
OWN_WORDING = "own wording, MIT"
DEFENCES = {
    "unguarded": ("the model alone", "this project", "MIT", "always run"),
    "self_reminder": (
        "reminders around the request",
        "Xie et al., Nature Machine Intelligence 2023",
        OWN_WORDING,
        ALWAYS,
    ),
    "goal_priority": ("safety before help, with two examples", "arXiv:2311.09096", OWN_WORDING, ALWAYS),
    "adashield_s": ("look at the picture first, then refuse", "arXiv:2403.09513", OWN_WORDING, ALWAYS),
    "safety_prompt": ("a system prompt about safety", "this project", "MIT", ALWAYS),
    "ecso": (
        "answers again from a caption if the first answer is unsafe",
        "arXiv:2403.09572",
        OWN_WORDING,
        ALWAYS,
    ),
    "caption_only": ("answers from a caption alone", "this project", "MIT", ALWAYS),
    "text_verdict": ("bound: refuses what the text alone is refused", "this project", "MIT", ALWAYS),
    "text_score_verdict": ("bound: refuses by the text's refusal score", "this project", "MIT", ALWAYS),
    "guard": ("the guard", "VLM-Guard, arXiv:2502.10486", "MIT", GUARD),
    "gate_refuser": ("bound: refuses if the guard's gate opens", "this project", "MIT", GUARD),
    "guard_always": ("control: the guard, its gate always open", "this project", "MIT", GUARD),
    "guard_full_state": ("bound: the whole state of the reference", "this project", "MIT", GUARD),
    "shift_dc": ("ShiftDC, untuned", "arXiv:2502.13095", "rewritten, MIT", ANCHORS),
    "cmrm": ("CMRM, untuned", "arXiv:2410.09047", "rewritten, MIT", ANCHORS),
    "infer_aligner": ("InferAligner, untuned", "arXiv:2401.11206", "rewritten, MIT", ANCHORS),
    "astra": ("ASTRA, untuned", "arXiv:2411.16721", "rewritten, MIT", ANCHORS),
    "tbop": ("TBOP, untuned", "arXiv:2603.14825", "after its description, MIT", ANCHORS),
    "alpha_steer": ("AlphaSteer, untuned", "arXiv:2506.07022", "rewritten, MIT", ANCHORS),
    "null_steer": ("NullSteer, untuned", "arXiv:2603.22094", "after its description, MIT", ANCHORS),
    "re_gap": ("ReGap's correction, untuned", "arXiv:2605.18104", "after its description, MIT", ANCHORS),
    "angular_steering": ("angular steering, untuned", "Vu and Nguyen, NeurIPS 2025", "rewritten, MIT", ANCHORS),
    "refusal_cone": ("vectors of a refusal cone, untuned", "arXiv:2502.17420", "rewritten, MIT", CONE),
}
"""Defence -> what it is, its source, its licence, and when it can be run."""


def print_list(kind: str, listed: dict[str, tuple[str, ...]]) -> VerbResult:
    """Print a line for each name."""
    for name, parts in listed.items():
        print(f"{name:<20} {' | '.join(parts)}")
    fields = ("what", "source", "licence", "needs")
    rows = [{"name": name, **dict(zip(fields, parts, strict=True))} for name, parts in listed.items()]
    return VerbResult({kind: rows})


@app.command("list")
def defences_list() -> VerbResult:
    """List the defences: what each is, its source, its licence, and what it needs."""
    return print_list("defences", DEFENCES)


@app.callback()
def defences() -> None:
    """List the defences that `vlm-guard defend` can run."""
