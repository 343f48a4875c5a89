from functools import cache

import pytest

from interp.vlm import VLM
from tests.families.all_families import DEEP, FOLDERS


@pytest.fixture(scope="module")
def vlm_of(tmp_path_factory):
    """A function from the name of a family to a tiny random model, each built once per test module."""
    families = {family.name: family for family in (*DEEP, *FOLDERS)}

    @cache
    def build(name: str) -> VLM:
        folder = tmp_path_factory.mktemp("family")
        families[name].build(folder)
        return VLM.from_pretrained(folder, device="cpu")

    return build
