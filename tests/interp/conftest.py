from functools import cache

import pytest

from interp.vlm import VLM
from tests.families import deep, folders


@pytest.fixture(scope="module")
def vlm_of(tmp_path_factory):
    """Tiny random models by the name of their family, each made once for a module."""
    families = {family.name: family for family in deep.FAMILIES + folders.FAMILIES}

    @cache
    def of(name: str) -> VLM:
        folder = tmp_path_factory.mktemp("family")
        families[name].build(folder)
        return VLM.from_pretrained(folder, device="cpu")

    return of
