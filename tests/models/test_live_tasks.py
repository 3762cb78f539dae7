"""Signals beyond causal language models: each is the model's own numbers, at the rows asked."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.models.anatomy import dims
from potstill.models.live import check_head, live_signals
from potstill.models.tasks import is_causal, task_of
from potstill.signals import Ask, Batch, ImageView, ModelDims, View
from tiny_models import ENCODER_VOCAB, ENCODERS, EncoderFamily, tiny_convnet, tiny_encoder, tiny_model

LENGTHS = (9, 6, 7)
RESPONSE = Ask(response=True)


def view_of(lengths: tuple[int, ...] = LENGTHS, width: int = 9) -> View:
    """Rows of random tokens, padded on the right."""
    ids = torch.randint(5, ENCODER_VOCAB, (len(lengths), width), generator=torch.Generator().manual_seed(3))
    segments = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    return View(ids * segments, torch.arange(width).expand(len(lengths), -1), segments)


def batch_of(view: View | ImageView, positions: list[int], are: Any = "tokens") -> Batch:
    rows = torch.tensor(positions)
    ids = view.input_ids.flatten()[rows] if isinstance(view, View) and are == "tokens" else torch.zeros_like(rows)
    return Batch(view, view, ids, {"student": rows, "teacher": rows}, are)


MASKED = batch_of(view_of(), [1, 4, 11, 20])
EXAMPLES = batch_of(view_of(), [2, 0], "examples")
IMAGES = batch_of(ImageView(torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))), [2, 0], "examples")


def own(model: Any, view: View) -> Tensor:
    logits: Tensor = model(input_ids=view.input_ids, attention_mask=view.attention_mask).logits
    return logits


# ---- masked language models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ENCODERS)
def test_a_masked_head_gives_the_models_own_logits_at_the_masked_positions(family: EncoderFamily) -> None:
    model = tiny_encoder(family, "masked_lm")
    head = live_signals(model, MASKED, "student", RESPONSE).head
    assert head is not None and head.hidden.shape == (4, 32)
    expected = own(model, view_of()).flatten(0, 1)[MASKED.target_positions["student"]]
    torch.testing.assert_close(head.logits(), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize("family", ENCODERS)
def test_no_logits_of_the_whole_vocabulary_are_made(family: EncoderFamily) -> None:
    model = tiny_encoder(family, "masked_lm")
    layer = model.get_output_embeddings()
    strides: list[tuple[int, ...]] = []
    handle = layer.register_forward_hook(lambda module, args, output: strides.append(output.stride()))
    live_signals(model, MASKED, "student", RESPONSE)
    handle.remove()
    assert strides == [(0, 0, 0)], "one number that stands for all, which takes no memory"
    assert "forward" not in vars(layer), "the output layer is as it was"
    assert own(model, view_of()).std() > 0.1


@pytest.mark.parametrize("family", ENCODERS)
def test_a_masked_head_has_the_gradients_of_the_models_own_logits(family: EncoderFamily) -> None:
    model = tiny_encoder(family, "masked_lm").train()
    found, expected = [], []
    for gradients in (found, expected):
        model.zero_grad()
        if gradients is found:
            head = live_signals(model, MASKED, "student", RESPONSE).head
            assert head is not None
            logits = head.logits()
        else:
            logits = own(model, view_of()).flatten(0, 1)[MASKED.target_positions["student"]]
        logits.log_softmax(-1)[:, 7].sum().backward()
        gradients += [(n, p.grad.clone()) for n, p in model.named_parameters() if p.grad is not None]
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ENCODERS)
def test_check_head_accepts_encoders_in_fp32_and_bf16(family: EncoderFamily) -> None:
    assert check_head(tiny_encoder(family, "masked_lm"), MASKED) < 1e-5
    assert check_head(tiny_encoder(family, "masked_lm").bfloat16(), MASKED) < 3e-2


def test_check_head_catches_what_an_encoder_does_behind_its_head() -> None:
    model = tiny_encoder("bert", "masked_lm")
    model.cls.register_forward_hook(lambda module, args, output: output * 0.9)
    with pytest.raises(ModelError, match=r"0\.9\d* times as large"):
        check_head(model, MASKED)


@pytest.mark.parametrize("task", ["sequence_classification", "sentence_embedding"])
def test_check_head_has_nothing_to_compare_where_the_logits_are_the_models_own(task: Any) -> None:
    assert check_head(tiny_encoder("bert", task), EXAMPLES) == 0.0
    assert check_head(nn.Flatten(), IMAGES) == 0.0


def test_lora_on_an_encoder_equals_the_merged_model_and_trains() -> None:
    torch.manual_seed(5)
    config = LoraConfig(target_modules=["query", "dense", "decoder"], init_lora_weights=False)
    model = get_peft_model(tiny_encoder("bert", "masked_lm", tie_word_embeddings=False), config)
    head = live_signals(model, MASKED, "student", RESPONSE).head
    assert head is not None
    head.logits().log_softmax(-1)[:, 7].sum().backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert any("decoder.lora_B" in name for name in trained) and all("lora_" in name for name in trained)
    merged = copy.deepcopy(model).merge_and_unload()
    expected = own(merged, view_of()).flatten(0, 1)[MASKED.target_positions["student"]]
    torch.testing.assert_close(head.logits(), expected, rtol=1e-4, atol=1e-4)


def test_a_masked_head_that_cannot_be_taken_apart_falls_back_to_dense_and_says_so() -> None:
    torch.manual_seed(5)
    config = LoraConfig(target_modules=["decoder"], use_dora=True, init_lora_weights=False)
    model = get_peft_model(tiny_encoder("bert", "masked_lm", tie_word_embeddings=False), config)
    with pytest.warns(UserWarning, match="DoraLinearVariant"):
        signals = live_signals(model, MASKED, "student", RESPONSE)
    assert signals.head is None and signals.dense is not None
    expected = own(model, view_of()).flatten(0, 1)[MASKED.target_positions["student"]]
    torch.testing.assert_close(signals.dense.logits, expected, rtol=1e-5, atol=1e-5)


# ---- classifiers and encoders of texts ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", ENCODERS)
def test_a_classifier_gives_its_own_logits_of_the_examples_asked_in_their_order(family: EncoderFamily) -> None:
    model = tiny_encoder(family, "sequence_classification")
    signals = live_signals(model, EXAMPLES, "student", Ask(True, frozenset({"hidden.4"})))
    assert signals.head is None and signals.dense is not None
    assert torch.equal(signals.dense.logits, own(model, view_of())[[2, 0]])
    assert signals.taps["hidden.4"].shape == (3, 9, 32)


@pytest.mark.parametrize("task", ["masked_lm", "sequence_classification", "sentence_embedding"])
@pytest.mark.parametrize("family", ENCODERS)
def test_padding_changes_no_real_state_of_an_encoder(family: EncoderFamily, task: Any) -> None:
    model, view = tiny_encoder(family, task), view_of()
    asked = Ask(taps=frozenset({"hidden.4"}))
    together = live_signals(model, batch_of(view, [0], "examples"), "student", asked).taps["hidden.4"]
    for row, length in enumerate(LENGTHS):
        cut = View(*(t[row : row + 1, :length] for t in (view.input_ids, view.position_ids, view.segment_ids)))
        alone = live_signals(model, batch_of(cut, [0], "examples"), "student", asked).taps["hidden.4"]
        torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=1e-4, atol=1e-5)


def test_an_encoder_sees_what_comes_after() -> None:
    model, view = tiny_encoder("bert"), view_of((9, 9, 9))
    asked = Ask(taps=frozenset({"hidden.4"}))
    before = live_signals(model, batch_of(view, [0], "examples"), "student", asked).taps["hidden.4"]
    view.input_ids[:, -1] = 5
    after = live_signals(model, batch_of(view, [0], "examples"), "student", asked).taps["hidden.4"]
    assert float((before - after)[:, 0].abs().max()) > 1e-3


def test_an_encoder_without_head_gives_states_and_no_response() -> None:
    model = tiny_encoder("bert")
    with pytest.raises(ModelError, match="BertModel has no head, and so no response"):
        live_signals(model, EXAMPLES, "student", RESPONSE)


@pytest.mark.parametrize("task", ["masked_lm", "sequence_classification", "sentence_embedding"])
def test_the_head_runs_only_where_it_is_asked(task: Any) -> None:
    model = tiny_encoder("bert", task)
    ran: list[str] = []
    heads = [part for part in model.children() if part is not model.base_model] if task != "sentence_embedding" else []
    for part in heads:
        part.register_forward_hook(lambda *_: ran.append("head"))
    live_signals(model, EXAMPLES, "student", Ask(taps=frozenset({"hidden.2", "queries.0"})))
    assert ran == []


def test_a_part_of_the_head_can_be_tapped_without_a_response() -> None:
    model = tiny_encoder("bert", "sequence_classification")
    found = live_signals(model, EXAMPLES, "student", Ask(taps=frozenset({"module:classifier"})))
    assert found.dense is None
    assert torch.equal(found.taps["module:classifier"], own(model, view_of()))


def test_packed_rows_are_refused_by_an_encoder() -> None:
    view = view_of()
    view.segment_ids[0, 5:] = 2
    with pytest.raises(ModelError, match="packed rows"):
        live_signals(tiny_encoder("bert", "masked_lm"), batch_of(view, [1]), "student", RESPONSE)


# ---- images and modules of one's own -----------------------------------------------------------------------------


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


def test_an_image_classifier_of_transformers_gives_its_own_logits() -> None:
    model = tiny_convnet()
    signals = live_signals(model, IMAGES, "student", Ask(True, frozenset({"module:convnext.encoder.stages.0"})))
    view = IMAGES.student
    assert isinstance(view, ImageView) and signals.dense is not None
    whole = model(pixel_values=view.pixels)
    assert torch.equal(signals.dense.logits, whole.logits[[2, 0]])
    assert signals.taps["module:convnext.encoder.stages.0"].shape[:2] == (3, 8)


class Wrapped(nn.Module):
    """A net that gives its logits in some other form."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.net, self.form = small_net(), form

    def forward(self, pixels: Tensor) -> Any:
        return self.form(self.net(pixels))


@pytest.mark.parametrize(
    "form",
    [lambda z: z, lambda z: (z, None), lambda z: {"loss": None, "logits": z}, lambda z: SimpleNamespace(logits=z)],
    ids=["tensor", "tuple", "mapping", "object"],
)
def test_a_module_of_ones_own_gives_logits_in_any_usual_form(form: Any) -> None:
    model = Wrapped(form).eval()
    view = IMAGES.student
    assert isinstance(view, ImageView)
    signals = live_signals(model, IMAGES, "student", RESPONSE)
    assert signals.dense is not None and torch.equal(signals.dense.logits, model.net(view.pixels)[[2, 0]])


def test_pixels_take_the_modules_own_precision() -> None:
    signals = live_signals(small_net().bfloat16(), IMAGES, "student", RESPONSE)
    assert signals.dense is not None and signals.dense.logits.dtype == torch.bfloat16


def test_logits_that_are_not_one_row_per_example_are_refused_by_their_shape() -> None:
    with pytest.raises(ModelError, match=r"Wrapped gives logits of shape \[3, 1, 3\] for 3 examples"):
        live_signals(Wrapped(lambda z: z[:, None]), IMAGES, "student", RESPONSE)
    with pytest.raises(ModelError, match="gives no logits"):
        live_signals(Wrapped(lambda z: "seven"), IMAGES, "student", RESPONSE)


def test_texts_given_to_a_module_of_arrays_are_refused() -> None:
    with pytest.raises(ModelError, match="Sequential takes arrays, and these data are texts"):
        live_signals(small_net(), EXAMPLES, "student", RESPONSE)


# ---- what models are ---------------------------------------------------------------------------------------------


def test_what_a_model_is_for_is_read_off_it() -> None:
    tasks = ("masked_lm", "sequence_classification", "sentence_embedding")
    for family in ENCODERS:
        assert [task_of(tiny_encoder(family, task)) for task in tasks] == list(tasks)  # type: ignore[arg-type]
        assert not any(is_causal(tiny_encoder(family, task)) for task in tasks)  # type: ignore[arg-type]
    assert task_of(tiny_model("gpt2")) == "causal_lm" and is_causal(tiny_model("gpt2"))
    assert is_causal(tiny_model("llama").model), "a decoder without head is still one"
    assert task_of(tiny_convnet()) == task_of(small_net()) == "image_classification"
    wrapped = get_peft_model(tiny_encoder("bert", "masked_lm"), LoraConfig(target_modules=["query"]))
    assert task_of(wrapped) == "masked_lm"


def test_sizes_are_found_for_every_task() -> None:
    for family in ENCODERS:
        base = {"hidden": 32, "layers": 4, "heads": 4, "kv_heads": 4, "causal": False}
        assert dims(tiny_encoder(family)) == ModelDims(vocab=0, **base)  # type: ignore[arg-type]
        assert dims(tiny_encoder(family, "masked_lm")) == ModelDims(vocab=ENCODER_VOCAB, **base)  # type: ignore[arg-type]
        assert dims(tiny_encoder(family, "sequence_classification")) == ModelDims(vocab=3, **base)  # type: ignore[arg-type]
    assert dims(tiny_convnet()).vocab == dims(small_net()).vocab == 3
    assert dims(small_net()) == ModelDims(vocab=3, hidden=0, layers=0, heads=0, kv_heads=0, causal=False)
