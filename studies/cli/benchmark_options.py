"""Benchmarks typed as `NAME=PATH` or `PATH`."""

from pathlib import Path

from studies.defences.benchmark_sets import BenchmarkFile


def benchmark_file(text: str) -> BenchmarkFile:
    """Split `NAME=PATH`; a text that is a path, or has no `=`, is the path of a benchmark to be recognised."""
    if "=" in text and not Path(text).exists():
        name, _, path = text.partition("=")
        return BenchmarkFile(path, name or None)
    return BenchmarkFile(text)
