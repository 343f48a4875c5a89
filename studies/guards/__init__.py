"""Configurations of a guard: fitted (`anchor_fits`), combined (`*_grid`), run, measured and chosen (`choice`)."""
