"""Origin of the numbers: the facts at the top of the page, and its last section."""

import json
from collections.abc import Iterator, Mapping

from studies.report.results import Results


def facts(results: Results, n: str = "") -> list[tuple[str, str]]:
    """Return terms and values for the top of the page, collected from all folders.

    Args:
        results: what the page is about.
        n: how many requests the headline is about.
    """
    provenance = list(results.provenance.values())
    records = [*results.configs.values(), *provenance]

    def all_values(key: str, records: list[dict]) -> str | None:
        """Join the different values of several folders."""
        return ", ".join(dict.fromkeys(str(record[key]) for record in records if record.get(key) is not None)) or None

    versions = all_values("vlm-guard", [record.get("versions", {}) for record in provenance])
    listed = {
        "Requests": n or None,
        "Split": all_values("split", records),
        "Scale": all_values("scale", records),
        "Machine": all_values("machine", provenance),
        "Date": all_values("date", provenance),
        "Toolkit": f"vlm-guard {versions}" if versions else None,
    }
    return [(term, value) for term, value in listed.items() if value is not None]


def origin(results: Results) -> Iterator[dict]:
    """Yield for each folder its name, config and provenance, and its tables with a flag for those that changed."""
    names = [folder.name for folder in results.folders]
    for folder in results.folders:
        config, run = results.configs.get(folder, {}), dict(results.provenance.get(folder, {}))
        changed = {path.name for path in results.changed if path.parent == folder}
        yield {
            # Paths on the author's disk stay private; only folders of the same name need more than their last part.
            "folder": folder.name if names.count(folder.name) == 1 else str(folder),
            "config": list(_flat(config)),
            "lacks": [name for name in ("date", "machine") if "inputs" in run and name not in run],
            "tables": _table_rows(run.pop("tables", {}), changed),
            "run": list(_flat(run)),
        }


def _table_rows(tables: Mapping[str, Mapping], changed: set[str]) -> list[tuple[str, str, bool]]:
    return [(name, str(entry.get("sha256", "unknown")), name in changed) for name, entry in sorted(tables.items())]


def _flat(content: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings one by one, with keys such as `a.b`."""
    for key, value in sorted(content.items()):
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
