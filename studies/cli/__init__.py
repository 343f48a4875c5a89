"""The command `vlm-guard`, one file a verb. What a verb prints is in its file.

| verb | file | what it does |
|---|---|---|
| `repro` | `repro.py` | the whole argument of the paper, on one model |
| `reproduce` | `reproduce.py` | a published experiment, held to its numbers |
| `check` | `check.py` | what the toolkit reads and changes, proved on a model |
| `trace` | `trace.py` | activations into a store |
| `store` | `store.py` | what a store holds, and whether it is damaged |
| `probe` | `probe.py` | where harmful and harmless come apart |
| `sweep` | `sweep.py` | where and how to guard |
| `defend` | `defend.py`, `benchmark_run.py` | published benchmarks under every defence |
| `equal-strength` | `equal_strength.py` | methods at their own best, and at equal KL |
| `detect` | `detect.py` | detectors of harmful requests, next to the guard |
| `attack` | `attack.py` | the guard against somebody who knows it |
| `stress` | `stress.py` | the guard with sampled, longer and later answers |
| `judge` | `judge.py` | saved answers, of this or another program, judged |
| `judges` | `agreement.py` | how far judges agree with people; `judges list` |
| `figures` | `figures.py` | figures and tables of saved results |
| `seeds` | `seeds.py` | the built-in model's results on other trainings of it |
| `compare` | `compare.py` | the claims on several models, side by side |
| `report` | `report.py` | saved results as one page |
| `data check`, `list` | `data.py` | what the files of a benchmark hold; the benchmarks |
| `defences list` | `lists.py` | the defences, and what `judges list` prints |
| `guard fit`, `show`, `apply` | `guard.py`, `side_by_side.py` | a guard fitted, shown, and answering |
| `model get` | `model.py` | a model that the project provides, built |

`__main__.py` checks first that the packages are ours (`shadowing.py`), and only then imports `app.py`, which puts the
verbs together and turns errors into exit codes; `errors.py` says which errors are about input. `verbs.py` gives every
verb `--json`, `--quiet` and `--verbose`: a verb prints for people, and returns a `VerbResult` for programs.
`options.py` holds the options that verbs share, `run_options.py` those of all that run a study, `arguments.py` checks
what was typed, `grid_options.py`, `judge_options.py`, `benchmark_options.py` and `preset_options.py` read options with
a syntax of their own, and `messages.py` prints paths.
Verb files import heavy modules inside functions, so that `vlm-guard --help` answers at once.
"""
