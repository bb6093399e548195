"""Recipes by tag, below the cache: what `--quant-tags recipe-<12 digits>` is looked up in.

<root>/recipes/<tag>.json             the recipe
<root>/recipes/imatrix/<sha256>       importance matrices that recipes were quantized with
"""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path

from fewbits.core.codec import decode, encode_pretty
from fewbits.core.engines import cache_root
from fewbits.core.errors import SpecError, StoreError
from fewbits.core.files import safe_name, sha256_file
from fewbits.records.recipe import Recipe
from fewbits.records.schemes import find_recipe_tag, recipe_tag
from fewbits.store.shelf import PART_SUFFIX, explained, put_in_place, write_note


class RecipeShelf:
    """The recipes below one cache folder. Safe to share between processes; the folder is created on first write."""

    def __init__(self, root: Path | None = None) -> None:
        self._folder = (root if root is not None else cache_root()) / "recipes"

    def put(self, recipe: Recipe, imatrix: Path | None) -> str:
        """Keep a recipe, and a copy of the importance matrix that it names; returns its tag.

        Raises `StoreError` (cannot be written, or the matrix is missing or not the one that the recipe names).
        """
        self._keep_imatrix(recipe, imatrix)
        tag = recipe_tag(recipe)
        write_note(self._folder / f"{tag}.json", encode_pretty(recipe))
        return tag

    def get(self, tag: str) -> Recipe:
        """Return a recipe. Raises `SpecError` for a tag that is not here, naming the nearest; `StoreError` for a damaged one."""
        wanted = find_recipe_tag(tag)
        path = self._folder / f"{wanted}.json"
        if wanted is None or not path.exists():
            raise SpecError.single(f"quant tag {tag}", f"there is no such recipe in {self._folder}", self._hint(tag))
        with explained(path, doing="read"):
            data = path.read_bytes()
        recipe = decode(data, Recipe, str(path))
        if recipe_tag(recipe) != wanted:
            msg = f"{path} holds {recipe_tag(recipe)}, not {wanted}: it was changed. Search again, or remove it."
            raise StoreError(msg)
        return recipe

    def imatrix_of(self, recipe: Recipe) -> Path | None:
        """Return the importance matrix that a recipe was quantized with; `None` when it needs none.

        Raises `StoreError` when the copy is missing or has other bytes.
        """
        if recipe.imatrix_sha256 is None:
            return None
        path = self._imatrix_path(recipe.imatrix_sha256)
        with explained(path, doing="read"):
            if sha256_file(path) == recipe.imatrix_sha256:
                return path
        msg = f"{path} has other bytes than the importance matrix of {recipe_tag(recipe)}. Remove it and search again."
        raise StoreError(msg)

    def _imatrix_path(self, sha256: str) -> Path:
        return self._folder / "imatrix" / safe_name(sha256)

    def _keep_imatrix(self, recipe: Recipe, imatrix: Path | None) -> None:
        if recipe.imatrix_sha256 is None:
            return
        if imatrix is None:
            msg = f"{recipe_tag(recipe)} was quantized with an importance matrix, and none was given to keep beside it."
            raise StoreError(msg)
        final = self._imatrix_path(recipe.imatrix_sha256)
        with explained(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary = final.with_name(final.name + PART_SUFFIX)
            shutil.copyfile(imatrix, temporary)
            if sha256_file(temporary) != recipe.imatrix_sha256:
                temporary.unlink()
                msg = f"{imatrix} is not the importance matrix that {recipe_tag(recipe)} was quantized with."
                raise StoreError(msg)
        put_in_place(temporary, final)

    def _hint(self, tag: str) -> str:
        known = sorted(path.stem for path in self._folder.glob("recipe-*.json"))
        close = difflib.get_close_matches(tag.lower(), known, n=2, cutoff=0.7)
        return f"did you mean {' or '.join(close)}?" if close else "make one with `fewbits recipe`"
