"""The tokens that occur often are those of the data, and a model that learned them alone says which they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from potstill.errors import ModelError
from potstill.frequent import FILE, count_tokens, forget_others, frequent_tokens, learned_tokens, save_tokens
from tiny_models import tiny_model


def test_the_most_frequent_tokens_ascend_and_unseen_ones_follow_in_their_order() -> None:
    counts = count_tokens([[7, 7, 3], [3, 7, 9]])
    assert frequent_tokens(counts, 2, 10).tolist() == [3, 7]
    assert frequent_tokens(counts, 5, 10).tolist() == [0, 1, 3, 7, 9]


def test_a_model_says_which_tokens_it_learned(tmp_path: Path) -> None:
    assert learned_tokens(tmp_path) is None
    save_tokens(torch.tensor([1, 5, 8]), tmp_path)
    found = learned_tokens(tmp_path)
    assert found is not None and found.tolist() == [1, 5, 8]


def test_what_a_model_did_not_learn_has_no_logit_whether_or_not_its_output_layer_has_a_bias() -> None:
    tokens, model = torch.tensor([1, 5, 8]), tiny_model()
    model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    before = model(torch.tensor([[3, 4]])).logits
    forget_others(model, tokens)
    after = model(torch.tensor([[3, 4]])).logits
    others = torch.ones(after.shape[-1], dtype=torch.bool)
    others[tokens] = False
    assert torch.equal(after[..., tokens], before[..., tokens]) and not after[..., others].any()


@pytest.mark.parametrize("text", ["", "{}", "[]", "[3, 1]", "[1, 1]", "[-1, 2]", "[[1], [2]]", '["a"]', "[1.5, null]"])
def test_a_damaged_list_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ModelError, match=FILE):
        learned_tokens(tmp_path)
