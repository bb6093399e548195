from __future__ import annotations

import pytest

from fewbits.spec.tags import canonical_tag

TAG = "recipe-0123456789ab"


@pytest.mark.parametrize("runtime", ["llamacpp", "scripted"])
def test_a_recipe_tag_has_one_spelling(runtime: str) -> None:
    assert canonical_tag(TAG.upper(), runtime, "quants[0]") == (TAG, None)


def test_a_server_names_its_variants_freely() -> None:
    assert canonical_tag(TAG.upper(), "ollama", "quants[0]") == (TAG.upper(), None)


@pytest.mark.parametrize("tag", ["recipe-0123", "recipe-0123456789xy", "recipe"])
def test_what_is_nearly_one_is_an_unknown_tag(tag: str) -> None:
    found, problem = canonical_tag(tag, "llamacpp", "quants[0]")
    assert found == tag
    assert problem is not None
    assert "unknown quant tag" in problem.message
