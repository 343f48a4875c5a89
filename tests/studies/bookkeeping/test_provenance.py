import json
from datetime import UTC, datetime

from studies.bookkeeping.provenance import file_hash, write_provenance


def test_a_folder_is_hashed_as_all_files_in_it(tmp_path):
    """A dataset that was saved to a folder is one data file."""
    (tmp_path / "inner").mkdir()
    files = [tmp_path / name for name in ("b.arrow", "a.json")]
    for file in files:
        file.write_text(file.name)
    before = file_hash([tmp_path])
    assert before == file_hash(files) == file_hash(reversed(files)) and len(before) == 16
    files[0].write_text("changed")
    assert file_hash([tmp_path]) != before


def test_a_run_records_its_day_and_the_machine_it_ran_on(tmp_path):
    before = datetime.now(UTC).date().isoformat()
    write_provenance(tmp_path, {"model": "m"}, 0)
    run = json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))
    assert before <= run["date"] <= datetime.now(UTC).date().isoformat()
    assert run["machine"] and run["machine"] != "None CPU cores"
