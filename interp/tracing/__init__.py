"""How a trace is run; `interp.trace.trace` is the public entry.

- `forward`: one pass through the model and the states read in it; the only file that imports nnsight.
- `prefix`: prompts about the same picture share everything before their requests, which is run once.
- `request`: the sites, tokens and layers that a trace asks for, checked before anything runs.
- `runner`: runs batches of prompts, with a shared prefix where possible and in halves where memory runs out.
- `distributed`: spreads the batches of one store over the workers of a Ray cluster.
- `cluster`: Ray workers for any job that is divided into pieces.
"""
