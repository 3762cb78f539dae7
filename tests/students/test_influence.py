"""Influence against cosines that are worked out the plain way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from potstill.console import Console
from potstill.errors import DataError
from potstill.recipe.students import ByInfluence, FromTeacher
from potstill.signals import Batch
from potstill.students import BuiltStudent
from potstill.students.from_teacher import layer_influence
from tiny_models import FAMILIES, VOCAB, Family, tiny_model

from .conftest import TeacherMaker

QUIET = Console("quiet")


def batch(lengths: list[int], seed: int = 0) -> Batch:
    """Random rows, padded on the right with the end token."""
    width = max(lengths)
    ids = torch.randint(3, VOCAB, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    segments = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.where(segments > 0, ids, 2)
    positions = torch.arange(width).expand(len(lengths), -1).contiguous()
    return Batch.from_inputs({"input_ids": ids, "labels": ids, "position_ids": positions, "segment_ids": segments})


@pytest.mark.parametrize("family", FAMILIES)
def test_influence_is_one_minus_the_cosine_of_in_and_out(family: Family) -> None:
    model, rows = tiny_model(family, layers=3), batch([5, 9])
    states = []
    layers = model.base_model.h if family == "gpt2" else model.base_model.layers
    with torch.no_grad():
        for row, length in zip(rows.teacher.input_ids, (5, 9), strict=True):
            states.append(model(row[None, :length], output_hidden_states=True, use_cache=False).hidden_states)
            before_norm: list[torch.Tensor] = []
            handle = layers[-1].register_forward_hook(lambda m, a, out, kept=before_norm: kept.append(out))
            model(row[None, :length], use_cache=False)
            handle.remove()
            states[-1] = (*states[-1][:-1], before_norm[0] if torch.is_tensor(before_norm[0]) else before_norm[0][0])
    expected = [
        torch.cat([1 - cosine_similarity(s[k][0], s[k + 1][0], dim=-1) for s in states]).mean().item() for k in range(3)
    ]
    assert layer_influence(model, [rows], records=2, console=QUIET) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == 3


def test_padding_has_no_influence() -> None:
    model = tiny_model()
    wide = batch([6, 6])
    padded = Batch.from_inputs(
        {
            "input_ids": torch.cat([wide.teacher.input_ids, torch.full((2, 7), 2)], 1),
            "labels": torch.full((2, 13), -100),
            "position_ids": torch.arange(13).expand(2, -1).contiguous(),
            "segment_ids": torch.cat([wide.teacher.segment_ids, torch.zeros(2, 7, dtype=torch.long)], 1),
        }
    )
    assert layer_influence(model, [padded], records=2, console=QUIET) == pytest.approx(
        layer_influence(model, [wide], records=2, console=QUIET), abs=1e-6
    )


def test_no_more_records_are_read_than_asked() -> None:
    model, read = tiny_model(), []

    def batches() -> Iterator[Batch]:
        for seed in range(9):
            read.append(seed)
            yield batch([4, 4], seed)

    found = layer_influence(model, batches(), records=3, console=QUIET)
    assert read == [0, 1]
    first, second = batch([4, 4], 0).teacher.input_ids, batch([4, 4], 1).teacher.input_ids[:1]
    three = torch.cat([first, second])
    positions = torch.arange(4).expand(3, -1).contiguous()
    whole = Batch.from_inputs(
        {"input_ids": three, "labels": three, "position_ids": positions, "segment_ids": torch.ones_like(three)}
    )
    assert found == pytest.approx(layer_influence(model, [whole], records=3, console=QUIET), abs=1e-6)


def test_without_records_there_is_nothing_to_measure() -> None:
    with pytest.raises(DataError, match="no records"):
        layer_influence(tiny_model(), [], records=3, console=QUIET)


def test_measuring_leaves_no_hooks_behind() -> None:
    model = tiny_model()
    layer_influence(model, [batch([4])], records=1, console=QUIET)
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_a_layer_that_does_nothing_is_the_one_left_out(
    teacher_of: TeacherMaker, build: Callable[..., BuiltStudent], tmp_path: Path
) -> None:
    source = teacher_of()
    lazy = AutoModelForCausalLM.from_pretrained(source.path)
    with torch.no_grad():  # its two ways into the residual stream are closed
        lazy.model.layers[2].self_attn.o_proj.weight.zero_()
        lazy.model.layers[2].mlp.down_proj.weight.zero_()
    lazy.save_pretrained(tmp_path)
    built = build(
        FromTeacher(layers=ByInfluence(by_influence=3)),
        replace(source, path=tmp_path),
        tokenizer_source=source.path,
        influence_batches=lambda: [batch([6, 8])],
    )
    assert built.facts["layers"] == [0, 1, 3]
    assert built.facts["influence"][2] == pytest.approx(0, abs=1e-6)
