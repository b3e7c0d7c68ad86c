"""Recipes of families that cannot be made."""

from pathlib import Path

import pytest

from dispatch_rl.errors import UserError
from dispatch_rl.pocket.__main__ import main


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--threads=0", "threads: 0 is not at least 1"),
        ("--window=-5", "window: -5 is not at least 1"),
        ("--target.layers=0", r"target\.layers: 0 is not at least 1"),
        ("--target.heads=7", r"target\.heads: 7 heads do not have an even share of hidden_size, 160, each"),
    ],
)
def test_a_recipe_that_makes_no_models_is_one_line(tmp_path: Path, option: str, said: str) -> None:
    """Before anything is read or written."""
    with pytest.raises(UserError, match=f"^{said}$"):
        main([f"--output={tmp_path}/family", option])
    assert list(tmp_path.iterdir()) == []
