"""Adaptive attacks on a guard by somebody who knows it, to measure what it withstands: defensive evaluation only."""
