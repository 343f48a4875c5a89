"""The start of every study: its settings, the loaded model and queries, reference states, refusal openings."""
