"""The tokens that occur often are those of the data, and a model that learned them alone says which they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from potstill.errors import ModelError
from potstill.frequent import FILE, count_tokens, frequent_tokens, learned_tokens, save_tokens


def test_the_most_frequent_tokens_ascend_and_unseen_ones_follow_in_their_order() -> None:
    counts = count_tokens([[7, 7, 3], [3, 7, 9]])
    assert frequent_tokens(counts, 2, 10).tolist() == [3, 7]
    assert frequent_tokens(counts, 5, 10).tolist() == [0, 1, 3, 7, 9]


def test_a_model_says_which_tokens_it_learned(tmp_path: Path) -> None:
    assert learned_tokens(tmp_path) is None
    save_tokens(torch.tensor([1, 5, 8]), tmp_path)
    found = learned_tokens(tmp_path)
    assert found is not None and found.tolist() == [1, 5, 8]


@pytest.mark.parametrize("text", ["", "{}", "[]", "[3, 1]", "[1, 1]", "[-1, 2]", "[[1], [2]]", '["a"]', "[1.5, null]"])
def test_a_damaged_list_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ModelError, match=FILE):
        learned_tokens(tmp_path)
