from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fewbits.core.errors import SpecError, StoreError
from fewbits.core.files import sha256_file
from fewbits.records.recipe import Recipe
from fewbits.records.schemes import find_recipe_tag, recipe_tag
from fewbits.store.recipes import RecipeShelf

RECIPE = Recipe(source_sha256="a" * 64, tensor_types={"output.weight": "Q6_K", "blk.0.attn_q.weight": "Q4_0"})


@pytest.fixture
def shelf(tmp_path: Path) -> RecipeShelf:
    return RecipeShelf(tmp_path)


def test_a_recipe_comes_back_under_its_tag(shelf: RecipeShelf, tmp_path: Path) -> None:
    tag = shelf.put(RECIPE, None)
    assert tag == recipe_tag(RECIPE) == find_recipe_tag(f" {tag.upper()} ")
    assert (tmp_path / "recipes" / f"{tag}.json").is_file()
    assert RecipeShelf(tmp_path).get(tag.upper()) == RECIPE
    assert shelf.put(RECIPE, None) == tag
    assert shelf.imatrix_of(RECIPE) is None


def test_the_tag_depends_on_everything_but_the_order_of_tensors() -> None:
    again = msgspec.structs.replace(RECIPE, tensor_types=dict(reversed(RECIPE.tensor_types.items())))
    assert recipe_tag(again) == recipe_tag(RECIPE)
    others = [
        msgspec.structs.replace(RECIPE, source_sha256="b" * 64),
        msgspec.structs.replace(RECIPE, imatrix_sha256="c" * 64),
        msgspec.structs.replace(RECIPE, tensor_types={"output.weight": "Q6_K"}),
    ]
    assert len({recipe_tag(recipe) for recipe in (RECIPE, *others)}) == 4


@pytest.mark.parametrize("tag", ["recipe-", "recipe-12345678901g", "recipe-0000000000001", "../recipe-000000000000", "Q4_K_M"])
def test_what_is_no_tag_never_becomes_a_path(shelf: RecipeShelf, tag: str) -> None:
    assert find_recipe_tag(tag) is None
    with pytest.raises(SpecError, match="there is no such recipe"):
        shelf.get(tag)


def test_an_unknown_tag_names_the_nearest(shelf: RecipeShelf) -> None:
    tag = shelf.put(RECIPE, None)
    wrong = tag[:-1] + ("0" if tag[-1] != "0" else "1")
    with pytest.raises(SpecError, match=f"did you mean {tag}"):
        shelf.get(wrong)


def test_a_recipe_that_was_changed_is_refused(shelf: RecipeShelf, tmp_path: Path) -> None:
    tag = shelf.put(RECIPE, None)
    path = tmp_path / "recipes" / f"{tag}.json"
    path.write_text(path.read_text().replace("Q6_K", "Q2_K"))
    with pytest.raises(StoreError, match="it was changed"):
        shelf.get(tag)
    path.write_text('{"tensor_types": 3}')
    with pytest.raises(StoreError, match=tag):
        shelf.get(tag)


class TestImportance:
    @pytest.fixture
    def matrix(self, tmp_path: Path) -> Path:
        path = tmp_path / "imatrix.gguf"
        path.write_bytes(b"values")
        return path

    @pytest.fixture
    def recipe(self, matrix: Path) -> Recipe:
        return msgspec.structs.replace(RECIPE, imatrix_sha256=sha256_file(matrix))

    def test_a_copy_is_kept(self, shelf: RecipeShelf, recipe: Recipe, matrix: Path) -> None:
        shelf.put(recipe, matrix)
        matrix.unlink()
        kept = shelf.imatrix_of(recipe)
        assert kept is not None
        assert kept.read_bytes() == b"values"

    def test_another_matrix_or_none_is_refused(self, shelf: RecipeShelf, recipe: Recipe, matrix: Path, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="none was given"):
            shelf.put(recipe, None)
        matrix.write_bytes(b"others")
        with pytest.raises(StoreError, match="is not the importance matrix"):
            shelf.put(recipe, matrix)
        assert not list((tmp_path / "recipes").rglob("*.*"))

    def test_a_damaged_copy_is_told(self, shelf: RecipeShelf, recipe: Recipe, matrix: Path) -> None:
        shelf.put(recipe, matrix)
        kept = shelf.imatrix_of(recipe)
        assert kept is not None
        kept.write_bytes(b"damaged")
        with pytest.raises(StoreError, match="other bytes"):
            shelf.imatrix_of(recipe)
        kept.unlink()
        with pytest.raises(StoreError, match="cannot read"):
            shelf.imatrix_of(recipe)
