from studies.bookkeeping.provenance import file_hash


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
