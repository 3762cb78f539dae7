from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from train.small import Gradients, arguments, conversations, largest_difference, trainer, weights_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.data.chat import ChatTokenizer
from potstill.data.reader import reader_for
from potstill.errors import CapabilityError, DataError, ModelError, RecipeError, UserError
from potstill.frequent import forget_others
from potstill.recipe import ForwardKL, HardCE, HiddenCosine
from potstill.signals import Batch, ModelDims, Signals
from potstill.train import DistillTrainer
from potstill.train.rows import rows_of
from tiny_models import make_tiny_causal_lm, make_tiny_tokenizer, tiny_model


def naive_losses(student: Any, teacher: Any, rows: list[Any], projector: nn.Module | None = None) -> list[Tensor]:
    """Σ values and count of forward_kl (T = 2, times T²), hard_ce and hidden_cosine over tokens, from whole logits, row
    by row, written without anything of ours but the rows."""
    kl, ce, cosine, targets, tokens = 0.0, 0.0, 0.0, 0, 0
    for row in rows:
        ids = torch.tensor([row.input_ids])
        ours = student(ids, output_hidden_states=True, use_cache=False)
        with torch.no_grad():
            theirs = teacher(ids, output_hidden_states=True, use_cache=False)
        learned = [t for t in range(1, len(row.labels)) if row.labels[t] != -100]
        at = torch.tensor(learned) - 1
        wanted = ids[0, learned]
        q, p = ours.logits[0, at], theirs.logits[0, at]
        kl = kl + 4 * nn.functional.kl_div(
            (q / 2).log_softmax(-1), (p / 2).log_softmax(-1), log_target=True, reduction="sum"
        )
        ce = ce + nn.functional.cross_entropy(q, wanted, reduction="sum")
        states = ours.hidden_states[-1][0]
        states = states if projector is None else projector(states)
        cosine = cosine + (1 - nn.functional.cosine_similarity(states, theirs.hidden_states[-1][0], dim=-1)).sum()
        targets, tokens = targets + len(learned), tokens + len(row.input_ids)
    return [kl / targets, ce / targets, cosine / tokens]


# ---- the loss (rules 1, 2, 4, 8) -----------------------------------------------------------------------------


def test_the_first_step_is_that_of_naive_losses(tmp_path: Path) -> None:
    kept = Gradients()
    made = trainer(
        tmp_path, callbacks=[kept], per_device_train_batch_size=3, gradient_accumulation_steps=2, max_steps=1
    )
    student, projector = copy.deepcopy(made.student), copy.deepcopy(made.module.projectors["hidden_cosine"])
    rows = [made.train_rows[i] for i in made.step_source().order(0)[0]]
    made.train()

    teacher = made.module.teacher.model
    losses = naive_losses(student, teacher, rows, projector[0])
    total = 2.0 * losses[0] + 1.0 * losses[1] + 1.5 * losses[2]
    total.backward()
    naive = {f"student.{n}": p.grad for n, p in student.named_parameters()}
    naive |= {f"projectors.hidden_cosine.{n}": p.grad for n, p in projector.named_parameters()}
    assert largest_difference(kept.steps[0], naive) < 1e-5

    logged = made.state.log_history[0]
    assert logged["loss"] == pytest.approx(total.item(), rel=1e-5)
    for name, loss, weight in zip(("forward_kl", "hard_ce", "hidden_cosine"), losses, (2.0, 1.0, 1.5), strict=True):
        assert logged[f"{name}/value"] == pytest.approx(loss.item(), rel=1e-5)
        assert logged[f"{name}/weight"] == weight
    assert logged["hidden_cosine/count"] == sum(len(row) for row in rows)
    assert logged["hard_ce/count"] == logged["forward_kl/count"] == sum(len(row.learned) for row in rows)
    assert logged["tokens"] == sum(len(row) for row in rows)


@pytest.mark.parametrize("split", [(4, 2), (2, 4), (1, 8)])
def test_a_batch_split_differently_gives_the_same_gradient(tmp_path: Path, split: tuple[int, int]) -> None:
    def gradients(batch: int, accumulation: int) -> list[dict[str, Tensor]]:
        kept = Gradients()
        # 22 rows: two steps of 8 and one of 6, so that the last step has fewer micro-batches.
        trainer(
            tmp_path, callbacks=[kept], per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            learning_rate=0.0,
        ).train()  # fmt: skip
        return kept.steps

    whole, parts = gradients(8, 1), gradients(*split)
    assert len(whole) == len(parts) == 3
    for ours, theirs in zip(parts, whole, strict=True):
        assert largest_difference(ours, theirs) <= 1e-6


def test_packed_rows_give_the_same_gradient_as_rows_of_their_own(tmp_path: Path) -> None:
    def gradient(packing: bool) -> dict[str, Tensor]:
        kept = Gradients()
        settings = {"packing": packing, "max_length": 256}
        made = trainer(
            tmp_path, callbacks=[kept], trainer_settings=settings, per_device_train_batch_size=32, max_steps=1
        )
        assert (len(made.train_rows) < 22) == packing
        made.train()
        return kept.steps[0]

    assert largest_difference(gradient(True), gradient(False)) < 1e-5


def test_the_teacher_has_no_dropout_even_if_somebody_trains_it(tmp_path: Path) -> None:
    teacher = tiny_model("gpt2", layers=2, seed=2, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    made = trainer(tmp_path, student=tiny_model("gpt2", layers=1, seed=1), teacher=teacher)
    batch = Batch.from_inputs(made.collate(made.train_rows[:4]))
    ask = made.module.asks["teacher"]
    assert ask.response and ask.taps
    quiet = made.module.teacher.signals(batch, ask)
    teacher.train()
    made.module.train()
    again = made.module.teacher.signals(batch, ask)
    assert torch.equal(quiet.head.hidden, again.head.hidden)
    assert not again.head.hidden.requires_grad


def test_the_student_is_back_in_training_mode_after_every_evaluation(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.module.train()
    made.evaluate(conversations(3))
    assert all(module.training for module in made.module.modules())
    made.module.eval()
    made.evaluate(conversations(3))
    assert not any(module.training for module in made.module.modules())


def test_the_teacher_is_no_part_of_what_is_trained_or_saved(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    names = set(made.module.state_dict())
    assert names == {f"student.{n}" for n in made.student.state_dict()} | {"projectors.hidden_cosine.0.weight"}
    before = weights_of(made.module.teacher.model)
    made.train()
    assert largest_difference(weights_of(made.module.teacher.model), before) == 0


# ---- evaluation ----------------------------------------------------------------------------------------------


def test_evaluation_is_that_of_naive_logits(tmp_path: Path) -> None:
    held_out = conversations(7)
    made = trainer(tmp_path, per_device_eval_batch_size=2)
    found = made.evaluate(held_out)
    rows = rows_of(held_out, reader_for("causal_lm", tokenizer=make_tiny_tokenizer()))
    kl, nll, agree, targets = 0.0, 0.0, 0, 0
    for row in rows:
        ids = torch.tensor([row.input_ids])
        at = torch.tensor([t - 1 for t in range(1, len(row.labels)) if row.labels[t] != -100])
        with torch.no_grad():
            q = made.student.eval()(ids).logits[0, at].log_softmax(-1)
            p = made.module.teacher.model(ids).logits[0, at].log_softmax(-1)
        kl += float((p.exp() * (p - q)).sum())
        nll -= float(q[torch.arange(len(at)), ids[0, at + 1]].sum())
        agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        targets += len(at)
    assert found["eval_targets"] == targets
    assert found["eval_kl"] == pytest.approx(kl / targets, rel=1e-5)
    assert found["eval_nll"] == pytest.approx(nll / targets, rel=1e-5)
    assert found["eval_top1_agreement"] == pytest.approx(agree / targets)


def test_the_best_checkpoint_is_that_of_the_least_held_out_kl(tmp_path: Path) -> None:
    # A learning rate so high that the student gets worse after a while.
    made = trainer(
        tmp_path, rows=conversations(12), learning_rate=2.0, max_steps=8, eval_strategy="steps", eval_steps=2,
        save_strategy="steps", save_steps=2, save_total_limit=2, load_best_model_at_end=True,
        trainer_settings={"eval_dataset": conversations(5)},
    )  # fmt: skip
    made.train()
    curve = {entry["step"]: entry["eval_kl"] for entry in made.state.log_history if "eval_kl" in entry}
    assert len(curve) == 4 and min(curve.values()) < curve[8], "the test needs a student that got worse"
    assert made.evaluate()["eval_kl"] == pytest.approx(min(curve.values()), rel=1e-6)


def test_held_out_sets_are_measured_by_name(tmp_path: Path) -> None:
    found = trainer(tmp_path).evaluate({"near": conversations(3), "far": conversations(5)})
    assert {"eval_near_kl", "eval_far_kl", "eval_near_nll", "eval_far_top1_agreement"} <= found.keys()


# ---- objectives and gradient norms ---------------------------------------------------------------------------


def test_logging_gradient_norms_changes_nothing_else(tmp_path: Path) -> None:
    def train(log: bool) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        student = tiny_model("gpt2", layers=2, seed=1, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)
        teacher = tiny_model("gpt2", layers=2, seed=2)
        made = trainer(
            tmp_path, student=student, teacher=teacher, trainer_settings={"log_gradient_norms": log}, max_steps=3
        )
        made.train()
        return weights_of(made.module), made.state.log_history

    (with_norms, logged), (without, plain) = train(True), train(False)
    assert largest_difference(with_norms, without) == 0
    norms = {f"{name}/grad_norm" for name in ("forward_kl", "hard_ce", "hidden_cosine")}
    assert norms <= logged[0].keys() and not norms & plain[0].keys()


def test_a_gradient_norm_is_that_of_the_objective_alone(tmp_path: Path) -> None:
    made = trainer(tmp_path, trainer_settings={"log_gradient_norms": True}, per_device_train_batch_size=32, max_steps=1)
    student, projector = copy.deepcopy(made.student), copy.deepcopy(made.module.projectors["hidden_cosine"])
    rows, teacher = list(made.train_rows), made.module.teacher.model
    made.train()
    for index, (name, weight) in enumerate((("forward_kl", 2.0), ("hard_ce", 1.0), ("hidden_cosine", 1.5))):
        student.zero_grad(), projector.zero_grad()
        (weight * naive_losses(student, teacher, rows, projector[0])[index]).backward()
        parameters = [*student.parameters(), *projector.parameters()]
        norm = sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None) ** 0.5
        assert made.state.log_history[0][f"{name}/grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_an_objective_of_weight_0_is_logged_and_teaches_nothing(tmp_path: Path) -> None:
    def train(objectives: list[dict[str, Any]]) -> DistillTrainer:
        made = trainer(tmp_path, objectives=objectives, max_steps=2)
        made.train()
        return made

    watched = train([{"kind": "hard_ce"}, {"kind": "forward_kl", "weight": 0.0}])
    alone = train([{"kind": "hard_ce"}])
    assert largest_difference(weights_of(watched.student), weights_of(alone.student)) == 0
    assert watched.state.log_history[0]["forward_kl/value"] > 0


def test_two_objectives_of_a_kind_have_names_of_their_own(tmp_path: Path) -> None:
    objectives = [{"kind": "forward_kl", "temperature": 1.0}, {"kind": "forward_kl", "temperature": 4.0}]
    assert trainer(tmp_path, objectives=objectives).module.names == ("forward_kl", "forward_kl_2")


def test_hidden_states_alone_need_no_head(tmp_path: Path) -> None:
    made = trainer(tmp_path, objectives=[{"kind": "hidden_cosine", "layers": [[1, 2], [2, 3]]}], max_steps=1)
    before = weights_of(made.student)
    made.train()
    assert largest_difference(weights_of(made.student), before) > 0


def test_training_lowers_the_held_out_kl_in_bf16_with_fp32_masters(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, optim="adamw_torch", learning_rate=5e-3, bf16=True, num_train_epochs=4,
        teacher=tiny_model(layers=3, hidden=48, seed=2).bfloat16(),
    )  # fmt: skip
    before = made.evaluate(conversations(6))["eval_kl"]
    made.train()
    assert made.evaluate(conversations(6))["eval_kl"] < 0.8 * before
    assert {p.dtype for p in made.module.parameters()} == {torch.float32}


# ---- alone, as users of transformers expect it ---------------------------------------------------------------


def test_it_serves_alone_from_folders_to_a_plain_model(tmp_path: Path) -> None:
    teacher = make_tiny_causal_lm(tmp_path / "teacher", layers=4)
    student = make_tiny_causal_lm(tmp_path / "student", layers=2, seed=1)
    made = DistillTrainer(
        model=str(student),
        teacher=str(teacher),
        args=arguments(tmp_path / "out", max_steps=2),
        objectives=[ForwardKL(weight=5.0, temperature=2.0), HardCE(weight=2.0), HiddenCosine(weight=1.0)],
        train_dataset=Dataset.from_list(conversations(8)),
    )
    made.train()
    made.save_model(str(tmp_path / "saved"))
    assert not {p.suffix for p in (tmp_path / "saved").iterdir()} & {".bin", ".pt", ".pth"}, "no pickle is exported"
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert opened.config.use_cache and opened.config.num_hidden_layers == 2
    assert largest_difference(weights_of(opened), weights_of(made.student)) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.chat_template == make_tiny_tokenizer().chat_template


@pytest.mark.parametrize(
    "rows",
    [
        conversations(6),
        [{"prompt": f"say {i}", "completion": "x" * (i + 1)} for i in range(6)],
        [
            {
                "prompt": [{"role": "user", "content": f"say {i}"}],
                "completion": [{"role": "assistant", "content": "x" * (i + 1)}],
            }
            for i in range(6)
        ],
        [{"text": "a text of some words " * (i + 1)} for i in range(6)],
        [{"input_ids": [5, 6, 7, 8, 2], "labels": [-100, -100, 7, 8, 2]} for _ in range(6)],
    ],
    ids=["messages", "prompt and completion", "conversational", "text", "tokenised"],
)
@pytest.mark.parametrize("as_dataset", [False, True])
def test_it_reads_the_rows_that_users_have(tmp_path: Path, rows: list[dict[str, Any]], as_dataset: bool) -> None:
    made = trainer(tmp_path, rows=Dataset.from_list(rows) if as_dataset else rows)
    assert len(made.train_rows) == 6
    chat = ChatTokenizer.from_transformers(make_tiny_tokenizer())
    if "completion" in rows[0]:
        learned = chat.decode(made.train_rows[3].learned)
        assert learned == "xxxx<|im_end|>"


def test_padding_of_a_tokenised_data_set_is_not_learned(tmp_path: Path) -> None:
    row = {"input_ids": [2, 5, 6, 7, 2], "labels": [-100, 5, 6, 7, 2], "attention_mask": [0, 1, 1, 1, 0]}
    made = trainer(tmp_path, rows=[row])
    assert made.train_rows[0].input_ids == [5, 6, 7]


def test_the_end_token_is_learned_where_it_is_also_the_pad_token(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    made = trainer(
        tmp_path, objectives=[{"kind": "hard_ce"}], optim="adamw_torch", learning_rate=2e-2, num_train_epochs=30,
        rows=[{"prompt": "a", "completion": "bc"}, {"prompt": "a question", "completion": "bc"}], logging_steps=100,
    )  # fmt: skip
    made.train()
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = made.student.eval().generate(**asked, max_new_tokens=8, do_sample=False, pad_token_id=2)
    assert tokenizer.decode(answer[0, asked["input_ids"].shape[1] :]) == "bc<|im_end|>"


def test_the_embedding_of_a_pad_token_learns_where_it_is_also_the_end_token(tmp_path: Path) -> None:
    kept = Gradients()
    student = tiny_model(layers=1, seed=1, tied=False)
    assert student.get_input_embeddings().padding_idx == student.config.pad_token_id == 2
    trainer(tmp_path, student=student, callbacks=[kept], max_steps=1).train()
    # The user's turn ends with it, and the answer is predicted from what follows.
    assert kept.steps[0]["student.model.embed_tokens.weight"][2].abs().sum() > 0


def test_the_users_arguments_and_model_stay_as_they_were(tmp_path: Path) -> None:
    args, student = arguments(tmp_path, save_total_limit=1), tiny_model(layers=2, seed=1)
    before = copy.deepcopy(args.to_dict())
    DistillTrainer(
        model=student, teacher=tiny_model(seed=2), args=args, train_dataset=conversations(4),
        processing_class=make_tiny_tokenizer(),
    )  # fmt: skip
    assert args.to_dict() == before
    assert student.config.use_cache


def test_a_bf16_student_is_trained_in_fp32(tmp_path: Path) -> None:
    made = trainer(tmp_path, student=tiny_model(layers=2, seed=1).bfloat16(), max_steps=1)
    assert {p.dtype for p in made.module.parameters()} == {torch.float32}
    made.train()


# ---- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"fp16": True}, "fp16"),
        ({"bf16_full_eval": True}, "bf16_full_eval"),
        ({"label_smoothing_factor": 0.1}, "label smoothing"),
        ({"use_liger_kernel": True}, "use_liger_kernel"),
        ({"train_sampling_strategy": "batch_rebalance"}, "by length"),
    ],
)
def test_arguments_that_the_loss_cannot_honour_are_refused(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what) as refused:
        trainer(tmp_path, **changes)
    assert "fix:" in str(refused.value)


def test_data_parallel_is_refused_with_the_launcher_to_use(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(UserError, match="torchrun --nproc-per-node 2"):
        DistillTrainer(model=tiny_model(), teacher=tiny_model(), args=args)


def test_metrics_over_whole_batch_logits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="compute_metrics"):
        trainer(tmp_path, trainer_settings={"compute_metrics": lambda prediction: {}})
    with pytest.raises(UserError, match="predict"):
        trainer(tmp_path).predict(conversations(2))


def test_a_teacher_that_shares_modules_with_the_student_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(UserError, match="deepcopy"):
        trainer(tmp_path, student=model, teacher=model)


class TextOnlyTeacher:
    """A teacher as an endpoint would be."""

    capabilities = frozenset({"generate"})
    identity = {"model": "endpoint"}
    dims = ModelDims(vocab=259, hidden=32, layers=2, heads=4, kv_heads=2)
    tokenizer = None

    def signals(self, batch: Batch, needs: Any) -> Signals:
        raise AssertionError("it cannot")

    def generate(self, requests: Any, *, seed: int, wrote: Any = None) -> list[Any]:
        return []


def test_an_objective_that_needs_what_the_teacher_cannot_give_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="forward_kl needs a teacher that gives dense or head"):
        trainer(tmp_path, teacher=TextOnlyTeacher())
    trainer(tmp_path, teacher=TextOnlyTeacher(), objectives=[{"kind": "hard_ce"}])


def test_a_forgotten_teacher_is_named(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="there is none"):
        DistillTrainer(model=tiny_model(), args=arguments(tmp_path), processing_class=make_tiny_tokenizer())


@pytest.mark.parametrize(
    ("objectives", "what"),
    [
        ([{"kind": "forward_lk"}], "did you mean 'forward_kl'"),
        ([{"kind": "forward_kl", "temprature": 2}], "did you mean 'temperature'"),
        ([{"kind": "forward_kl", "temperature": -1}], "temperature"),
        ([], "nothing to learn"),
    ],
)
def test_objectives_that_cannot_be_read_are_named(tmp_path: Path, objectives: list[Any], what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        trainer(tmp_path, objectives=objectives)


QUESTION = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([], "nothing to learn"),
        ([{"question": "a", "answer": "b"}], "answer, question"),
        ([{"prompt": "a"}], "without an answer"),
        ([{"messages": [{"role": "user", "content": "a"}]}], "without an answer"),
        ([{"input_ids": [1, 2]}], "without labels"),
        ([{"input_ids": [1, 2], "labels": [1]}], "2 input_ids and 1 labels"),
        ([{"input_ids": [1, 2], "labels": [-100, -1]}], "label -1 is neither a token id nor -100"),
        ([{"messages": [QUESTION, {"role": "assistant", "content": " "}]}], "1 empty completion"),
        ([{"prompt": "a", "completion": ""}], "1 empty completion"),
        ([{"prompt": [QUESTION], "completion": [{"role": "assistant"}]}], "1 empty completion"),
        (iter(conversations(2)), "no length"),
    ],
)
def test_rows_that_cannot_be_learned_are_named(tmp_path: Path, rows: Any, what: str) -> None:
    with pytest.raises(DataError, match=what):
        trainer(tmp_path, rows=rows)


def test_rows_that_are_cut_or_left_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*conversations(4), {"prompt": "a", "completion": "b" * 100}, {"prompt": "c" * 100, "completion": "d"}]
    made = trainer(tmp_path, rows=rows, trainer_settings={"max_length": 90})
    assert len(made.train_rows) == 5
    assert "of 6 rows, 1 nothing to learn left out, 1 cut at 90 tokens" in caplog.text


def test_a_model_whose_logits_are_not_understood_is_found_before_the_first_step(tmp_path: Path) -> None:
    student = tiny_model(layers=2, seed=1)
    student.lm_head.register_forward_hook(lambda module, args, output: output * 1.5)
    with pytest.raises(ModelError, match="in a way that potstill does not know"):
        trainer(tmp_path, student=student).train()


# ---- frequent tokens alone -------------------------------------------------------------------------------------------


def test_a_student_of_frequent_tokens_is_measured_as_it_is_saved(tmp_path: Path) -> None:
    rows, kl = conversations(8), [{"kind": "forward_kl"}]
    made = trainer(tmp_path, objectives=kl, rows=rows, trainer_settings={"eval_dataset": rows, "frequent": 30})
    tokens = made.module.tokens
    assert tokens is not None and len(tokens) == 30
    made.train()
    during = made.evaluate()
    forget_others(made.student, tokens)
    saved = trainer(tmp_path, objectives=kl, rows=rows, student=made.student, trainer_settings={"eval_dataset": rows})
    after = saved.evaluate()
    assert {name: during[name] for name in ("eval_kl", "eval_nll")} == pytest.approx(
        {name: after[name] for name in ("eval_kl", "eval_nll")}, rel=1e-5
    )
