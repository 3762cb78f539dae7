"""One evaluation, from a student's folder to the files of the artifact. Only one model is in memory at a time."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.data import ChatTokenizer
from potstill.evaluate.answers import Written, write_answers
from potstill.evaluate.compared_models import ComparedModel, ComparedModels, size_of
from potstill.evaluate.documents import (
    Document,
    blanked,
    documents_of,
    examples_of,
    neighbours_of,
    save_documents,
    save_examples,
    save_tokens,
)
from potstill.evaluate.fidelity import Batches, Responses, TeacherRows, measure, measure_teacher
from potstill.evaluate.held_out import HeldOut, Question, question_of, read_held_out, training_counts
from potstill.evaluate.measures.base import Asked, Asks, Draws, Measure, Pass, Rereads, Setting, Settles, Table
from potstill.evaluate.neighbours import Embedded, embed, nearest, pairs_of, score_neighbours
from potstill.evaluate.scores import Scores
from potstill.evaluate.speed import NEW_TOKENS, forward_of, measure_speed, speed_dtype, writing_of
from potstill.evaluate.stored import StoredResponses
from potstill.evaluate.summary import Size, summarise
from potstill.evaluate.teacher_memory import TeacherMemory
from potstill.evaluate.texts import TargetTexts
from potstill.measures import Speed
from potstill.quantities import counted
from potstill.recipe.measures import unmeasured
from potstill.registry import build
from potstill.stage import Context
from potstill.tasks import SPECS
from potstill.teachers.base import OpenTeacher

_WORK = "checkpoints"
"""Folder of temporary files: it does not become part of the artifact."""


class Evaluation:
    """The measurements of one run, accumulated model by model."""

    def __init__(self, context: Context) -> None:
        recipe = context.recipe
        self.context, self.settings, self.task = context, recipe.required_evaluate, recipe.task
        self.scores: dict[str, list[Scores]] = {}
        self.measures: tuple[Measure, ...] = tuple(map(build, self.settings.measures_for(SPECS[self.task])))
        self.columns = tuple(dict.fromkeys(column for measure in self.measures for column in measure.columns))
        self.teacher_rows: Responses | None = None
        self.teacher_vectors: Embedded | None = None
        self.sizes: dict[str, Size] = {}
        trained = context.inputs["train"].path
        self.held_out = self._held_out()
        self.models = ComparedModels(context, self.held_out.classes, context.out / _WORK)
        self.notes = [self._how(), *self._best, *self._cut, *self._seeds, *self.models.notes]
        self.batches = Batches(self.held_out, self.settings.tokens_per_batch)
        self.stored = self._stored()
        writes = SPECS[self.task].has_vocabulary
        self.chat = ChatTokenizer.from_folder(trained / "model") if writes else None
        self.documents: list[Document] = []
        self.passes: tuple[Pass, ...] = ()
        if self.chat is not None:
            folder = context.out / _WORK
            setting = Setting(
                recipe, self.chat, context.work, context.console, self.held_out, folder, context.run, self._generated
            )
            self.passes = tuple(measure.begin(setting) for measure in self.measures if isinstance(measure, Asks))

    @property
    def _generated(self) -> Path | None:
        """The records of the stage `generate`, if there is one."""
        generated = self.context.inputs.get("generate")
        return None if generated is None else generated.path / "records.parquet"

    def _stored(self) -> StoredResponses | None:
        """The teacher's side from the store, if the recipe reads it there, with a note."""
        captured, served = self.context.inputs.get("capture"), self.models.teacher_is_served
        if captured is None or (self.models.teacher is None and not served):
            return None
        stored = StoredResponses(captured.path / "store", self.batches)
        if served:
            if without := stored.targets_without:
                why = f"its server gave no distribution at {without:,} of the {self.batches.targets:,} held-out targets"
                self.notes.append(self.models.without_teacher(why))
                return None
            own = [stored.batch(index).stored["target_log_prob"] for index in range(len(self.batches))]
            nll = -float(torch.cat(own).double().mean())
            self.notes.append(
                "The teacher is a server: its likeliest tokens are read from the store of capture. KL is that of these "
                f"and all others as one, a lower bound. Its own NLL of the held-out targets is {nll:.3f} nats; it has "
                "no size, no rates and no answers here."
            )
            return stored
        kept = "whole distributions" if stored.whole else "the entries that it keeps of each distribution"
        what = f"{kept}, " * SPECS[self.task].has_response + "not measured again"
        self.notes.append(
            f"The teacher's side is read from the store of capture ({what}); its weights were not opened, so its "
            "rates, and answers to questions, are missing (evaluate.teacher: live measures them)."
        )
        return stored

    def _held_out(self) -> HeldOut:
        student = self.context.inputs["train"].path / "model"
        held_out = read_held_out(self.context.recipe, self._generated, student, self.context.work)
        if SPECS[self.task].has_vocabulary:
            self.context.work.count("target tokens", int(held_out.starts[-1]))
        if SPECS[self.task].reads_images:
            self.context.work.facts["image_shape"] = list(held_out.collate(held_out.rows[:1])["pixel_values"].shape[1:])
        return held_out

    @property
    def _cut(self) -> list[str]:
        cut, records = self.held_out.cut, self.held_out.measured_records
        return [f"{cut:,} of {counted(records, 'held-out record')} were cut at train.max_length."] if cut else []

    @property
    def _seeds(self) -> list[str]:
        """A note on several seeds, if there are several."""
        seeds = self.context.recipe.required_train.seeds
        if seeds == 1:
            return []
        return [
            f"Student and controls were trained {seeds} times, by seeds that differ in initialisation, order and "
            "dropout, on the same data. Values are means over the seeds, and intervals are over seeds and groups. "
            "Sizes, rates, answers and worst records are of the first; so is the untrained student."
        ]

    @property
    def _unmeasured(self) -> tuple[str, ...]:
        spec = SPECS[self.task]
        speed = () if self.settings.speed else ("speed and memory (evaluate.speed)",)
        return (*unmeasured(spec, self.settings.measures_for(spec)), *speed)

    @property
    def _best(self) -> list[str]:
        """A note on how the weights were chosen, if they are not the last ones."""
        train = self.context.recipe.train
        if train is None or not train.keeps_best:
            return []
        by = "NLL" if SPECS[self.task].has_response else "objectives"
        return [
            f"Students and controls are their best checkpoints, all chosen by the lowest {by} on a third of the "
            "held-out groups. Figures are of the other held-out groups."
        ]

    def _how(self) -> str:
        """A note on how it was measured."""
        if SPECS[self.task].has_response:
            how = "All models were measured in fp32 and evaluation mode; KL and agreement at temperature 1."
            masked = " The same tokens are masked for all of them." if SPECS[self.task].masks else ""
            return how + masked
        return (
            "All models were measured in fp32 and evaluation mode. An example's embedding is its last hidden states, "
            f"pooled ({self.context.recipe.required_train.pooling}) and of length 1; its nearest neighbour is the "
            "held-out example of another group with the largest cosine."
        )

    # ---- measuring -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Measure everything and write the artifact's files."""
        teacher = self.models.teacher
        if teacher is not None:
            self._measure_teacher(teacher)
        elif self.stored is not None:
            self.context.work.facts["teacher"] = "read from the store"
            self.teacher_rows = self.stored
        for compared in self.models.students:
            self._measure(compared)
        self.teacher_rows = self.teacher_vectors = None
        rereading = [asking for asking in self.passes if isinstance(asking, Rereads)]
        if teacher is not None and self.stored is None and (self._asks or rereading):
            with self._opened(teacher) as model:
                if self._asks:
                    self._answer(teacher, model)
                for reading in rereading:
                    reading.reread(Asked("teacher", model, self.sizes["teacher"].positions))
            del model
        for settling in [asking for asking in self.passes if isinstance(asking, Settles)]:
            gc.collect()
            settling.settle()
        self._save(self._speed())

    @property
    def _asks(self) -> bool:
        """Whether models are asked to write answers."""
        return SPECS[self.task].writes and self.settings.samples_shown > 0

    def _measure_teacher(self, teacher: ComparedModel) -> None:
        """Scores of the teacher, what the others are compared with, and its answers: kept ones where there are any."""
        recipe = self.context.recipe
        pooling = None if SPECS[self.task].has_response else [recipe.required_train.pooling, recipe.seed]
        memory = TeacherMemory(teacher, self.batches, [self.columns, pooling], self.context.console)
        if self.stored is not None:
            self._read_teacher(self.stored, teacher, memory)
            return
        with ExitStack() as stack:

            @cache
            def opened() -> OpenTeacher:
                return stack.enter_context(self._opened(teacher))

            kept = memory.load()
            self.context.work.facts["teacher"] = "measured" if kept is None else "kept from an earlier measurement"
            if kept is None:
                scores, rows = self._teacher_scores(teacher, opened())
                rows = memory.save(scores, rows, self.sizes["teacher"])
            else:
                scores, rows, self.sizes["teacher"] = kept
                self.context.console.say("the teacher was measured on these records before, and is not measured again")
            self.scores["teacher"] = [scores]
            if isinstance(rows, TeacherRows):
                self.teacher_rows = rows
            else:
                self.teacher_vectors = rows
            for asking in self.passes:
                if (answers := memory.answers(asking.identity)) is None:
                    answers = asking.ask(Asked("teacher", opened(), self.sizes["teacher"].positions))
                    if answers is None:
                        continue
                    memory.keep_answers(asking.identity, answers)
                asking.take("teacher", answers)

    def _read_teacher(self, stored: StoredResponses, teacher: ComparedModel, memory: TeacherMemory) -> None:
        """What the store knows of the teacher, and answers that are kept from an earlier run."""
        self.context.work.facts["teacher"] = "read from the store"
        facts = json.loads((self.context.inputs["capture"].path / "fidelity.json").read_text(encoding="utf-8"))
        self.sizes["teacher"] = Size(**facts["teacher_size"])
        with self._progress(teacher) as advance:
            if SPECS[self.task].has_response:
                self.scores["teacher"] = [stored.scores(advance, self.columns)]
                self.teacher_rows = stored
            else:
                vectors = stored.vectors(self.context.recipe.required_train.pooling, advance)
                scores, self.teacher_vectors = self._neighbours(vectors)
                self.scores["teacher"] = [scores]
        for asking in self.passes:
            if (answers := memory.answers(asking.identity)) is not None:
                asking.take("teacher", answers)

    def _teacher_scores(self, teacher: ComparedModel, model: OpenTeacher) -> tuple[Scores, TeacherRows | Embedded]:
        with self._progress(teacher) as advance:
            if SPECS[self.task].has_response:
                folder = self.context.out / _WORK / "teacher"
                return measure_teacher(model, self.batches, folder, advance, self.columns)
            return self._embedded(model, "teacher", advance)

    def _measure(self, compared: ComparedModel) -> None:
        """Scores and answers of one model. The student comes first: its scores determine which documents are shown."""
        name = compared.name
        with self._opened(compared) as model:
            with self._progress(compared) as advance:
                if SPECS[self.task].has_response:
                    scores = measure(model, self.batches, self.teacher_rows, advance, name, self.columns)
                else:
                    scores, _ = self._embedded(model, name, advance)
            self.scores.setdefault(name, []).append(scores)
            if name == "student" and compared.is_first:
                self.documents = self._documents()
            if self._asks and compared.is_first and name != "untrained":
                self._answer(compared, model)
            self._ask(compared, model)

    def _ask(self, compared: ComparedModel, model: OpenTeacher) -> None:
        """Put the questions of all passes to one model."""
        for asking in self.passes:
            answers = asking.ask(Asked(compared.name, model, self.sizes[compared.name].positions))
            if answers is not None:
                asking.take(compared.name, answers)

    def _embedded(self, model: OpenTeacher, name: str, advance: Any) -> tuple[Scores, Embedded]:
        return self._neighbours(embed(model, self.batches, self.context.recipe.required_train.pooling, advance, name))

    def _neighbours(self, vectors: Tensor) -> tuple[Scores, Embedded]:
        recipe, groups = self.context.recipe, self.held_out.target_groups
        found = Embedded(vectors, nearest(vectors, groups))
        pairs = pairs_of(groups, recipe.seed)
        return score_neighbours(found, self.teacher_vectors, self.held_out.target_ids, pairs), found

    @contextmanager
    def _opened(self, compared: ComparedModel) -> Iterator[OpenTeacher]:
        # The previous model is unreferenced by now, except for reference cycles.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        model = compared.open("float32")
        if compared.is_first:
            self.sizes[compared.name] = size_of(model, compared)
        yield model

    @contextmanager
    def _progress(self, compared: ComparedModel) -> Iterator[Any]:
        unit = SPECS[self.task].scored_unit
        with self.context.console.task(f"measuring {compared.label}", self.batches.targets, unit) as task:
            yield task.advance

    # ---- what a person reads -------------------------------------------------------------------------------------

    def _documents(self) -> list[Document]:
        """Records of tokens, worst first. Other tasks show examples, which are made at the end."""
        if self.chat is None:
            return []
        chat, held_out = self.chat, self.held_out
        if SPECS[self.task].masks:
            decode = partial(chat.decode, skip_special_tokens=True)
            questions = [blanked(held_out, i, decode) for i in range(len(held_out.rows))]
        else:
            rows = zip(held_out.records, held_out.rows, strict=True)
            questions = [question_of(record, row, chat) for record, row in rows]
        return documents_of(held_out, questions, self.scores["student"][0], self._first("teacher"))

    def _first(self, name: str) -> Scores | None:
        """The scores of a model (of its first seed); None if it was not measured."""
        return next(iter(self.scores.get(name, ())), None)

    def _answer(self, compared: ComparedModel, opened: OpenTeacher) -> None:
        """Answers of one model to the questions of the first documents; each question once."""
        shown, model = self.documents[: self.settings.samples_shown], opened.modules[0]
        if not shown or self.chat is None:
            return
        if compared.is_ensemble or not isinstance(model, PreTrainedModel):
            return  # the members of an ensemble do not write jointly
        questions: dict[tuple[int, ...], Question] = {document.question.ids: document.question for document in shown}
        with self.context.console.task(f"answers of {compared.name}", len(questions), "prompts") as task:
            written = write_answers(
                model,
                list(questions),
                self.chat,
                max_new_tokens=self.settings.sample_tokens,
                advance=task.advance,
            )
        by_question: dict[tuple[int, ...], Written] = dict(zip(questions, written, strict=True))
        for document in shown:
            document.answers[compared.name] = by_question[document.question.ids]

    # ---- rates ---------------------------------------------------------------------------------------------------

    def _speed(self) -> Mapping[str, Speed]:
        if not self.settings.speed:
            return {}
        teacher, student = self.models.teacher, self.models.student
        if teacher is not None and teacher.is_ensemble and SPECS[self.task].writes:
            teacher = None  # its members do not write jointly
        if self.stored is not None:
            teacher = None  # its weights are not opened
        models = [student] if teacher is None else [teacher, student]
        work: Any
        if SPECS[self.task].writes:
            positions = [size.positions for model in models if (size := self.sizes[model.name]).positions is not None]
            work = writing_of(self.held_out, min(filter(None, positions), default=None))
            what = (
                f"one sequence, a prompt of {len(work.prompt)} tokens and {NEW_TOKENS} written behind it with a cache"
            )
        else:
            length = self.held_out.max_length
            work = forward_of(self.held_out, self.context.out / _WORK / "batch.safetensors")
            images = SPECS[self.task].reads_images
            what = f"a batch of {work.examples} {'images' if images else f'texts of {length} tokens'}, forward only"
        dtype = speed_dtype(student)
        rates = measure_speed(models, work, dtype, self.context.console)
        how = (
            f"{what}, median of {rates.repetitions} repetitions taken in turn, in {dtype}, threads: "
            f"{torch.get_num_threads()}"
        )
        self.context.work.facts["speed"] = how
        self.notes.append(f"Rates: {how}. Peak memory is that of {rates.peak_of}.")
        return rates.speeds

    def _table(self, draws: Draws) -> Table:
        """All values per target, for the measures."""
        held_out, recipe = self.held_out, self.context.recipe
        student = self.context.inputs["train"].path / "model"
        return Table(
            task=SPECS[self.task],
            groups=held_out.target_groups,
            ids=held_out.target_ids,
            names=held_out.classes,
            positions=np.array([place for targets in held_out.targets for place, _ in targets], dtype=np.int64),
            lengths=np.repeat(held_out.counts, held_out.counts),
            scores=self.scores,
            draws=draws,
            counts=partial(training_counts, recipe, self._generated, student),
            texts=TargetTexts(held_out, self.chat) if SPECS[self.task].reads_text else None,
        )

    def _save(self, speeds: Mapping[str, Speed]) -> None:
        recipe, out = self.context.recipe, self.context.out
        draws = Draws(self.settings.resamples, self.settings.confidence, recipe.seed)
        table = self._table(draws)
        of_examples = self.chat is None
        for asking in self.passes:
            asking.save(out)
        measures = summarise(
            self.scores,
            self.sizes,
            speeds,
            self.held_out.target_groups,
            task=self.task,
            labels=np.asarray(self.held_out.target_ids) if of_examples else None,
            records=self.held_out.measured_records,
            draws=draws,
            notes=self.notes,
            measures=self.measures,
            table=table,
            asked=[asking.found(draws, table) for asking in self.passes],
        )
        taught = any(o.needs().teacher for o in recipe.required_train.all_objectives)
        replace(
            measures,
            taught=taught,
            unmeasured=self._unmeasured,
            teacher_unmeasured=self.models.teacher_unmeasured,
        ).save(out / "measures.json")
        scores = {name: of_model[0] for name, of_model in self.scores.items()}
        others = {f"{name}_seed{i}": s for name, of_model in self.scores.items() for i, s in enumerate(of_model) if i}
        if of_examples:
            make = examples_of if SPECS[self.task].has_classes else neighbours_of
            save_documents(out / "documents.json", make(self.held_out, scores))
            save_examples(out / "examples.parquet", self.held_out, scores | others)
        else:
            save_documents(out / "documents.json", [document.to_dict() for document in self.documents])
            save_tokens(out / "tokens.parquet", self.held_out, scores | others)
