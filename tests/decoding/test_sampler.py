"""Claims about the distribution that is sampled from: its precision, and which row a processor is for."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.generation.logits_process import LogitsProcessor

from potstill.decoding.rows import Rows
from potstill.decoding.sampler import Sampler

CPU = torch.device("cpu")


def test_probabilities_of_bfloat16_logits_are_of_single_precision() -> None:
    logits = torch.randn(1, 2, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = Sampler([TemperatureLogitsWarper(0.7)]).distributions(logits, Rows([[1]], 2, 50, CPU), 0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (logits.float() / 0.7).softmax(-1))


def test_a_processor_with_a_value_for_each_row_of_the_batch_has_it_after_others_have_ended() -> None:
    """Row 1 ignores its first two tokens, row 0 none; row 0 has ended."""
    rows = Rows([[3, 4], [3, 4, 5]], 2, 8, CPU)
    rows.keep([1])
    penalty = RepetitionPenaltyLogitsProcessor(2.0, prompt_ignore_length=torch.tensor([0, 2]))
    best = Sampler([penalty]).distributions(torch.ones(1, 1, 8), rows, 0)[0, 0]
    assert best[3] == best[4] == best[7] > best[5]


def test_history_is_that_of_the_row_with_its_padding_and_its_drafted_tokens() -> None:
    rows = Rows([[3, 4], [5]], 4, 8, CPU, padding=[[0], [1, 1]])
    rows.keep([1])
    rows.draft(0, torch.tensor([6]))
    rows.draft(1, torch.tensor([7]))
    assert [rows.history(0, drafted).tolist() for drafted in (0, 1, 2)] == [
        [[1, 1, 5]],
        [[1, 1, 5, 6]],
        [[1, 1, 5, 6, 7]],
    ]


def test_tokens_that_a_draft_does_not_have_get_no_probability_however_little_the_others_have() -> None:
    """Logits far below 0 too, with a processor that reads the text and one that truncates."""
    rows, logits = Rows([[3, 4]], 2, 8, CPU), torch.tensor([[[-90.0, -91.0, -92.0]]])
    processors = [RepetitionPenaltyLogitsProcessor(1.1), TopPLogitsWarper(0.99)]
    for given in ([], processors):
        found = Sampler(given).distributions(logits, rows, 0, torch.tensor([6, 1, 5]))[0, 0]
        assert found[[0, 2, 3, 4, 7]].tolist() == [0.0] * 5
        torch.testing.assert_close(found[[6, 1, 5]], logits[0, 0].softmax(-1))


class InPlace(LogitsProcessor):
    """Forbids token 2 after token 7, in place, as users write them."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids[0, -1] == 7:
            scores[:, 2] = -torch.inf
        return scores


def test_a_processor_that_writes_in_place_leaves_the_targets_logits_as_they_are() -> None:
    """They are judged again, by the watcher say."""
    rows = Rows([[3, 7]], 2, 8, CPU)
    logits = torch.zeros(1, 1, 8)
    assert Sampler([InPlace()]).distributions(logits, rows, 0)[0, 0, 2] == 0
    assert bool((logits == 0).all())
