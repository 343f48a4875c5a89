"""Defences of a model, the prompts that they answer, and the tables that compare them.

The interface and the kinds: `defence`. Defences: `prompt_wordings`, `detours`, `guarded`, `related`; all of a run:
`lineup`. What is asked: `prompt_sets`, `attack_sets`, `benchmark_sets`. Answers on disk: `answer_log`.
From answers to tables: `arms`, `rates`, `comparisons`, `fluency`, `ranking`, `correctness`, `costs`; to verdicts:
`defence_claims`.
"""
