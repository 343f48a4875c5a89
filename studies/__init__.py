"""The experiments. One file per question on the top level: a configuration in, a tidy table out.

A study that also chooses something, or keeps its answers, returns a small value with the table and its choice.

Studies, in the order in which `repro.py` runs them:

    question                                                        file                      table
    Where do harmful and harmless requests come apart, and what     separability.py           separability.csv,
        does a picture cost?                                                                  points.csv
    Which layer, rule, gate and strength should a guard have?       layer_sweep.py            layer_sweep.csv
    How well do cheap rules choose the layer, next to the sweep?    layer_selection.py        layer_selection.csv
    Which reading of the paper works?                               readings.py               readings.csv
    Which attacks does each defence stop, and at what cost?         defence_comparison.py     defence.csv, answers.jsonl
    Is a guard's direction better than random ones?                 layer_sweep.py,           random_directions.csv
                                                                    readings.py,
                                                                    defence_comparison.py
    How did the guard change each prompt?                           prompt_changes.py         changes.csv
    How far do judges agree?                                        judge_agreement.py        judges.csv
    Which components write the safety signal, and where does a      signal_path.py            signal_path.csv
        picture suppress it?
    Which of the paper's claims hold?                               claims.py                 claims.csv

Around them:

    detection.py        which requests are detected, by what, and whether a detector does what the guard does
                        (`vlm-guard detect`; detection.csv, detector_defences.csv, detector_claims.csv)
    adaptive.py         attackers who know the guard, and what helps against them (`vlm-guard attack`; adaptive.csv)
    stress.py           the guard with sampled, longer and later answers (`vlm-guard stress`; stress.csv)
    repro.py            all studies in one run, and agreement with the committed results (`vlm-guard repro`)
    seeds.py            the same on other trainings of the built-in model, side by side (`vlm-guard seeds`)
    claims_by_model.py  the claims on several models, and on controls in which the outcome was planted
                        (`vlm-guard compare`)
    sweep.py            a finished layer sweep for notebooks: shows its finalists, saves its choice as a guard
    guard_choice.py     which guard a model gets: the choice of `layer_sweep`, saved (`vlm-guard guard fit`)
    benchmarks.py       published benchmarks, or your own files, under every defence (`vlm-guard defend`)
    equal_strength.py   steering methods at their own best and at equal KL (`vlm-guard equal-strength`)

Folders, from the bottom up; each imports only folders listed above it:

    bookkeeping/    what a run writes: tables, provenance, checkpoints, progress; estimates.py has rates with intervals
    datasets/       benchmark files and query files: find, read, check, split, search for leakage
    generation/     a model that answers: greedy answers, first-token scores, reference texts, a cache around them
    organism/       the built-in model: its language, training, and files
    judges/         refused or answered, harmful or not: one file per kind of judge, by_name.py finds them by name
    llava_qwen/     a VLM on an LLM that others aligned: how it is built, trained and measured
    llava_smollm2/  the same on an LLM that this project aligned, in two ways
    experiment/     the start of every study: configuration, loaded model and queries, references, refusal openings
    guards/         configurations of a guard: fitted, combined to grids, run, measured, chosen (choice_rule.py)
    probing/        states and settings of linear probes, and the rows they give
    defences/       defences, the prompt sets they answer, the log of answers, and rates, costs and ranking
    attacks/        searches for inputs that pass a defence, what is attacked, and how it is judged
    detectors/      sets that detectors are fitted on and applied to, their fits, and defences that rest on them
    report/         finished results: figures, LaTeX and Markdown tables, one HTML page
    cli/            the command line: one file per verb (sweep.py is `vlm-guard sweep` and what it prints)

Where to look:

    the layer is chosen                 guards/choice_rule.py, called by layer_sweep.py
    a rate's interval is computed       probes/intervals.py, called by bookkeeping/estimates.py
    a judge is added                    judges/: a phrase list in keywords.py, a rubric in rubrics.py, a new kind in a
                                        file of its own, which by_name.py finds by its name
    a defence is added                  defences/lineup.py
    the projection's formula            interp/projection.py
    prompts are batched                 interp/batches.py
"""
