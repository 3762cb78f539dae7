"""One evaluation, from a student's folder to the files of the artifact. Models are opened one after the other."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from potstill.data import ChatTokenizer
from potstill.errors import TokenizerMismatch
from potstill.evaluate.answers import Written, write_answers
from potstill.evaluate.controls import build_untrained
from potstill.evaluate.documents import Document, documents_of, save_documents, save_tokens
from potstill.evaluate.fidelity import Batches, TeacherRows, TokenScores, measure, measure_teacher
from potstill.evaluate.held_out import HeldOut, Question, question_of, read_held_out
from potstill.evaluate.measured import Measured, Size, measured_folder, measured_teacher, size_of
from potstill.evaluate.speed import NEW_TOKENS, measure_speed, prompt_of, speed_dtype
from potstill.evaluate.summary import summarise
from potstill.evaluate.teacher import teacher_name
from potstill.measures import Measures, Speed
from potstill.models import resolve
from potstill.models.tokenizers import check_same_tokenizer
from potstill.recipe import LocalTeacher
from potstill.stage import Context

_WORK = "checkpoints"
"""Folder of what is needed for a while: it does not become part of the artifact."""


class Evaluation:
    """What is measured of one run, and what has been found so far."""

    def __init__(self, context: Context) -> None:
        recipe = context.recipe
        assert recipe.train is not None and recipe.evaluate is not None
        self.context, self.settings = context, recipe.evaluate
        self.notes = ["All models were measured in fp32 and evaluation mode; KL and agreement at temperature 1."]
        self.scores: dict[str, TokenScores] = {}
        self.sizes: dict[str, Size] = {}

        trained = context.inputs["train"].path
        self.facts: Mapping[str, Any] = json.loads((trained / "student.json").read_text(encoding="utf-8"))
        self.chat = ChatTokenizer.from_folder(trained / "model")
        self.teacher = self._teacher(trained / "model")
        self.student = self._folder("student", trained / "model")
        self.held_out = self._held_out()
        self.batches = Batches(self.held_out, self.settings.tokens_per_batch, self.chat.pad_id)

    # ---- what is measured ----------------------------------------------------------------------------------------

    @cached_property
    def teacher_settings(self) -> LocalTeacher | None:
        """The recipe's teacher, where its weights can be opened here."""
        name = teacher_name(self.context.recipe)
        settings = None if name is None else self.context.recipe.teachers[name]
        return settings if isinstance(settings, LocalTeacher) else None

    @cached_property
    def controls(self) -> list[Measured]:
        """`text_only` where training made it, and `untrained`."""
        found = []
        if (text_only := self.context.inputs.get("train.text_only")) is not None:
            found.append(self._folder("text_only", text_only.path / "model"))
        if "untrained" in self.settings.controls:
            found.append(self._folder("untrained", self._untrained()))
        return found

    def _teacher(self, student: Path) -> Measured | None:
        """The teacher, unless there is none that the student can be compared with token by token, which is said."""
        settings = self.teacher_settings
        if settings is None:
            why = "the recipe has no teacher whose weights can be opened here"
        else:
            source = resolve(
                settings.model,
                revision=settings.revision,
                trust_remote_code=settings.trust_remote_code,
                console=self.context.console,
            )
            try:
                check_same_tokenizer(source.path, student)
            except TokenizerMismatch as mismatch:
                why = mismatch.what
            else:
                self.notes += [f"The teacher: {note}." for note in source.notes]
                return measured_teacher(settings, source)
        text = f"Nothing was compared with the teacher (no KL, no agreement): {why}."
        self.context.work.warn(text)
        self.notes.append(text)
        return None

    def _folder(self, name: str, folder: Path) -> Measured:
        trusted = bool(getattr(self.context.recipe.student, "trust_remote_code", False))
        return measured_folder(name, folder, self.teacher_settings, trust_remote_code=trusted)

    def _untrained(self) -> Path:
        recipe, settings = self.context.recipe, self.teacher_settings
        assert recipe.student is not None
        source = None
        if settings is not None:
            source = resolve(settings.model, revision=settings.revision, console=self.context.console)
        return build_untrained(
            recipe.student,
            teacher=source,
            tokenizer_source=self.student.source.path,
            seed=recipe.seed,
            facts=self.facts,
            folder=self.context.out / _WORK / "untrained",
            console=self.context.console,
            trust_remote_code=settings is not None and settings.trust_remote_code,
        )

    def _held_out(self) -> HeldOut:
        generated = self.context.inputs.get("generate")
        records = None if generated is None else generated.path / "records.parquet"
        held_out = read_held_out(self.context.recipe, records, self.chat, self.context.work)
        self.context.work.count("target tokens", int(held_out.starts[-1]))
        if cut := sum(row.cut for row in held_out.rows):
            self.notes.append(f"{cut} of {len(held_out.rows)} held-out records were cut at train.max_length.")
        return held_out

    # ---- measuring -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Measure everything and write the artifact's files."""
        teacher_rows = self._measure_teacher() if self.teacher is not None else None
        documents: list[Document] = []
        for measured in (self.student, *self.controls):
            documents = self._measure(measured, teacher_rows, documents)
        del teacher_rows
        if self.teacher is not None and self.settings.samples_shown:
            with self._opened(self.teacher) as model:
                self._answer(self.teacher, model, documents)
            del model
        self._save(documents, self._speed())

    def _measure_teacher(self) -> TeacherRows:
        assert self.teacher is not None
        with self._opened(self.teacher) as model, self._progress(self.teacher) as advance:
            folder = self.context.out / _WORK / "teacher"
            self.scores["teacher"], rows = measure_teacher(model, self.batches, folder, advance)
        return rows

    def _measure(self, measured: Measured, teacher: TeacherRows | None, documents: list[Document]) -> list[Document]:
        """Scores and answers of one model. The student comes first: its scores say which documents are shown."""
        with self._opened(measured) as model:
            with self._progress(measured) as advance:
                self.scores[measured.name] = measure(model, self.batches, teacher, advance, measured.name)
            documents = documents or self._documents()
            if measured.name != "untrained":
                self._answer(measured, model, documents)
        return documents

    @contextmanager
    def _opened(self, measured: Measured) -> Iterator[PreTrainedModel]:
        # The model before it is gone by now, but for what refers to itself.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        model = measured.open("float32")
        self.sizes[measured.name] = size_of(model, measured.source.path)
        yield model

    @contextmanager
    def _progress(self, measured: Measured) -> Iterator[Any]:
        with self.context.console.task(f"measuring {measured.name}", self.batches.targets, "tokens") as task:
            yield task.advance

    def _documents(self) -> list[Document]:
        rows = zip(self.held_out.records, self.held_out.rows, strict=True)
        questions = [question_of(record, row, self.chat) for record, row in rows]
        return documents_of(self.held_out, questions, self.scores["student"], self.scores.get("teacher"))

    def _answer(self, measured: Measured, model: PreTrainedModel, documents: list[Document]) -> None:
        """Answers of one model to the questions of the first documents; each question once."""
        shown = documents[: self.settings.samples_shown]
        if not shown:
            return
        questions: dict[tuple[int, ...], Question] = {document.question.ids: document.question for document in shown}
        with self.context.console.task(f"answers of {measured.name}", len(questions), "prompts") as task:
            written = write_answers(
                model,
                list(questions),
                self.chat,
                max_new_tokens=self.settings.sample_tokens,
                advance=task.advance,
            )
        by_question: dict[tuple[int, ...], Written] = dict(zip(questions, written, strict=True))
        for document in shown:
            document.answers[measured.name] = by_question[document.question.ids]

    def _speed(self) -> Mapping[str, Speed]:
        if not self.settings.speed:
            return {}
        models = [self.student] if self.teacher is None else [self.teacher, self.student]
        positions = [size.positions for model in models if (size := self.sizes[model.name]).positions is not None]
        prompt = prompt_of([row.input_ids for row in self.held_out.rows], min(filter(None, positions), default=None))
        dtype = speed_dtype(self.student)
        rates = measure_speed(models, prompt, dtype, self.context.console)
        how = (
            f"one sequence, a prompt of {len(prompt)} tokens and {NEW_TOKENS} written behind it with a cache, median "
            f"of {rates.repetitions} repetitions taken in turn, in {dtype}, threads: {torch.get_num_threads()}"
        )
        self.context.work.facts["speed"] = how
        self.notes.append(f"Rates: {how}. Peak memory is that of {rates.peak_of}.")
        return rates.speeds

    def _save(self, documents: list[Document], speeds: Mapping[str, Speed]) -> None:
        measures: Measures = summarise(
            self.scores,
            self.sizes,
            speeds,
            self.held_out.target_groups,
            records=len(self.held_out.rows),
            resamples=self.settings.resamples,
            confidence=self.settings.confidence,
            seed=self.context.recipe.seed,
            notes=self.notes,
        )
        out = self.context.out
        measures.save(out / "measures.json")
        save_tokens(out / "tokens.parquet", self.held_out, self.scores)
        save_documents(out / "documents.json", documents)
