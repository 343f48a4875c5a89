"""Detectors as a study runs them: sets of prompts, what is read of each, fits, and defences that rest on a detector."""
