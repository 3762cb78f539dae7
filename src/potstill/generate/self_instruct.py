"""New instructions, with answers, from a few that people wrote.

Self-Instruct (Wang et al. 2022, arXiv 2212.10560) and Alpaca (Taori et al. 2023): the teacher sees some tasks and
writes more; those that are too similar to earlier ones, or unusable, are left out; the rest joins the pool.

The work is done in rounds. The prompts of a round depend only on its number, the seed, and the tasks kept in earlier
rounds; so an interrupted run sends the same requests again, and the journal answers them.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from potstill.answering.base import Answered, Answering, Failure
from potstill.artifacts import Work
from potstill.errors import DataError
from potstill.generate.program import Item, SideOfRecord, provenance_of
from potstill.generate.rouge import Pool
from potstill.generate.self_instruct_text import (
    InstructionTask,
    Unreadable,
    classification_prompt,
    examples_prompt,
    instructions_prompt,
    labelled_examples_prompt,
    read_examples,
    read_instructions,
    read_tasks,
    says_yes,
    tasks_prompt,
)
from potstill.quantities import counted
from potstill.recipe.programs import SelfInstructProgram
from potstill.registry import implements
from potstill.types import Message, Provenance, Reason, Record, Reject, Request, Sampling, digest, group_of


def fault_of_instruction(instruction: str, settings: SelfInstructProgram) -> tuple[str, str] | None:
    """Reason and detail, or None for an instruction that may be kept."""
    words = len(instruction.split())
    if words < settings.least_words:
        return "instruction too short", f"{words} words"
    if words > settings.most_words:
        return "instruction too long", f"{words} words"
    if instruction[0] in string.punctuation:
        return "instruction begins with punctuation", instruction[0]
    if settings.ascii_start and not instruction[0].isascii():
        return "instruction begins outside ASCII", instruction[0]
    for opening in settings.without_openings:
        # Such instructions do not say whether to write the program or to give its result.
        if instruction.lower().startswith(opening.lower()):
            return "unwanted opening", opening
    for word in settings.blacklist:
        if _whole_word(word).search(instruction):
            return "asks for what a language model cannot do", word
    return None


def fault_of_example(given: str, output: str) -> str | None:
    """Why one input with its output is left out, or None."""
    if not output.strip():
        return "empty output"
    if given.strip() == output.strip():
        return "output equals input"
    if given.strip().endswith(":") or output.strip().endswith(":"):
        return "example breaks off at a colon"
    return None


def fault_of_examples(examples: Sequence[tuple[str, str]]) -> str | None:
    """Why all examples of an instruction are left out, or None: then none of its outputs can be trusted."""
    outputs: dict[str, str] = {}
    for given, output in examples:
        if given and outputs.setdefault(given, output) != output:
            return "same input with different outputs"
    return None


@cache
def _whole_word(word: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)


SOURCE = "self_instruct"
SHOWN_EXAMPLES = 4
"""Seeds that show what an example is."""


@dataclass(frozen=True)
class _Call:
    """A call for tasks: its number, from 1, and the seeds and generated tasks (by row) that it shows."""

    number: int
    seeds: tuple[int, ...]
    generated: tuple[int, ...]


@dataclass(frozen=True)
class _Wanted:
    """An accepted instruction, from the `place`-th task of a call; with its example if it has one."""

    call: _Call
    place: int
    task: InstructionTask


@implements(SelfInstructProgram)
class SelfInstruct:
    """The program of `kind: self_instruct`."""

    def __init__(self, settings: SelfInstructProgram) -> None:
        self.settings = settings
        temperature, top_p = settings.sampled_at
        self.sampling = Sampling(settings.max_new_tokens, temperature, top_p, settings.top_k)
        self.pool = Pool()
        self.seeds: list[InstructionTask] = []
        self.seed_rows: list[int] = []
        self.kept: list[InstructionTask] = []
        self.row = 0
        self.over = False
        self.came = 0
        self.origin = Provenance(source=SOURCE)
        self.system: tuple[Message, ...] = ()

    def write(
        self, records: Iterable[Item], answering: Answering, *, side_of: SideOfRecord, work: Work
    ) -> Iterator[Item]:
        """Rejected seeds, then every task that the teacher wrote, kept or not, in the order of the calls.

        Raises:
            DataError: there are fewer seeds than a prompt shows, or the prompt fills the teacher's context.
        """
        of = self.settings
        yield from self._read_seeds(records, work)
        calls = 0
        while len(self.kept) < of.target and calls < of.calls and not self.over:
            asked = [self._call(calls + number) for number in range(1, 1 + min(of.calls_per_round, of.calls - calls))]
            calls += len(asked)
            before = self.came
            work.count("calls for tasks", len(asked))
            if of.style == "alpaca":
                yield from self._whole_tasks(asked, answering)
            else:
                yield from self._instructions_first(asked, answering)
            if self.came == before:
                return  # no further request is answered: a preview has ended
        work.count("instructions kept", len(self.kept))
        if len(self.kept) < of.target:
            why = "the budget was used up" if self.over else f"all {calls} calls had been made"
            fix = "raise the budget" if self.over else "raise generate.calls"
            work.warn(
                f"{len(self.kept)} of {of.target} instructions when {why}: {fix}, or see in the reject ledger "
                "what was left out"
            )

    # ---- seeds and prompts ------------------------------------------------------------------------------------

    def _read_seeds(self, records: Iterable[Record | Reject], work: Work) -> Iterator[Reject]:
        licences: dict[str, None] = {}
        sources: dict[str, None] = {}
        for record in records:
            if isinstance(record, Reject):
                yield record
                continue
            seed = seed_of(record)
            if seed is None:
                yield Reject.of(record, "no seed: it has no instruction with its output")
                continue
            self.seeds.append(seed)
            self.seed_rows.append(record.row)
            self.pool.add(seed.instruction)
            licences.setdefault(record.provenance.licence)
            sources.setdefault(record.provenance.source)
            if record.messages and record.messages[0]["role"] == "system":
                self.system = (record.messages[0],)
        needed = self.settings.shown  # the first round has no generated ones
        if len(self.seeds) < needed:
            raise DataError(
                f"{counted(len(self.seeds), 'seed')}, and a prompt shows {needed}",
                where="data",
                fix="give more seeds with instruction and output (recipes/seeds.jsonl has some), or lower "
                "generate.demonstrations",
            )
        work.count("seeds", len(self.seeds))
        licence = " AND ".join(name for name in licences if name)
        self.origin = Provenance(source=f"{SOURCE} of {', '.join(sources)}", licence=licence)

    def _call(self, number: int) -> _Call:
        drawn = self._drawn("call", number)
        generated = drawn.sample(range(len(self.kept)), min(self.settings.shown_generated, len(self.kept)))
        seeds = drawn.sample(range(len(self.seeds)), self.settings.shown - len(generated))
        return _Call(number, tuple(seeds), tuple(generated))

    def _drawn(self, what: str, number: int) -> random.Random:
        return random.Random(digest([what, self.settings.seed, number]))

    def _request(self, call: _Call, answering: Answering) -> Request:
        shown = [self.seeds[index] for index in call.seeds] + [self.kept[index] for index in call.generated]
        self._drawn("order", call.number).shuffle(shown)
        make = tasks_prompt if self.settings.style == "alpaca" else instructions_prompt
        # The call's number serves as sample number: two calls with the same prompt are two requests.
        request = Request(self.sampling, prompt=make(shown, self.settings.tasks), sample=call.number)
        tokens = answering.prompt_tokens(request)
        if tokens is not None and answering.context_length is not None and tokens >= answering.context_length:
            raise DataError(
                f"a prompt of {tokens:,} tokens fills the teacher's context of {answering.context_length:,}",
                where="generate.demonstrations",
                fix="show fewer demonstrations, or shorter seeds",
            )
        return request

    # ---- Alpaca: whole tasks ----------------------------------------------------------------------------------

    def _whole_tasks(self, calls: Sequence[_Call], answering: Answering) -> Iterator[Record | Reject]:
        for call, answered in self._answered(calls, answering):
            text = yield from self._usable(call, answered)
            if text is None:
                continue
            cut = answered.answer is not None and answered.answer.finish == "length"
            found = read_tasks(text, self.settings.shown + 1)
            if not found:
                yield self._reject("not in the form asked for", call, 0, text)
            for place, task in enumerate(found, 1):
                if cut and place == len(found):
                    yield self._reject(Reason.CUT_OFF, call, place, _said(task))
                elif isinstance(task, Unreadable):
                    yield self._reject("not in the form asked for", call, place, task.text)
                elif (fault := self._fault(task.instruction)) is not None:
                    yield self._reject(fault[0], call, place, task.instruction, fault[1])
                elif (why := fault_of_example(task.input, task.output)) is not None:
                    yield self._reject(why, call, place, task.instruction)
                else:
                    self.pool.add(task.instruction)
                    self.kept.append(task)
                    yield self._record(_Wanted(call, place, task), task, answered, answering.identity)

    # ---- Self-Instruct: instructions first --------------------------------------------------------------------

    def _instructions_first(self, calls: Sequence[_Call], answering: Answering) -> Iterator[Record | Reject]:
        wanted: list[_Wanted] = []
        for call, answered in self._answered(calls, answering):
            text = yield from self._usable(call, answered)
            if text is None:
                continue
            found = read_instructions(text)
            if not found:
                yield self._reject("not in the form asked for", call, 0, text)
            for place, instruction in enumerate(found, 1):
                if (fault := self._fault(instruction, len(wanted))) is not None:
                    yield self._reject(fault[0], call, place, instruction, fault[1])
                else:
                    self.pool.add(instruction)
                    wanted.append(_Wanted(call, place, InstructionTask(instruction)))
        labels = self._are_classifications(wanted, answering)
        requests = [
            Request(
                Sampling(self.settings.max_new_tokens),
                prompt=labelled_examples_prompt(of.task.instruction)
                if by_label
                else examples_prompt(of.task.instruction, self._shown_examples()),
            )
            for of, by_label in zip(wanted, labels, strict=True)
        ]
        for of, by_label, answered in zip(wanted, labels, answering.answers(requests), strict=False):
            text = yield from self._usable(of.call, answered, of)
            if text is not None:
                yield from self._examples(of, text, by_label, answered, answering.identity)

    def _are_classifications(self, wanted: Sequence[_Wanted], answering: Answering) -> list[bool]:
        """Whether each is a classification; False without an answer."""
        if not self.settings.classification:
            return [False] * len(wanted)
        requests = [Request(Sampling(3), prompt=classification_prompt(of.task.instruction)) for of in wanted]
        classified = [a.answer is not None and says_yes(a.answer.text) for a in answering.answers(requests)]
        return classified + [False] * (len(wanted) - len(classified))  # a preview answers fewer

    def _shown_examples(self) -> list[InstructionTask]:
        """The same examples for every instruction: seeds with an input, and as many without, as far as there are
        any."""
        half = SHOWN_EXAMPLES // 2
        chosen = [seed for seed in self.seeds if seed.input][:half]
        return chosen + [seed for seed in self.seeds if not seed.input][: SHOWN_EXAMPLES - len(chosen)]

    def _examples(
        self, of: _Wanted, text: str, by_label: bool, answered: Answered, identity: Mapping[str, Any]
    ) -> Iterator[Record | Reject]:
        examples = read_examples(text, output_first=by_label)
        instruction = of.task.instruction
        if not examples:
            yield self._reject(
                "not in the form asked for", of.call, of.place, instruction, text[: Reject.EXCERPT_CHARACTERS]
            )
        if (why := fault_of_examples(examples)) is not None:
            for given, _ in examples:
                yield self._reject(why, of.call, of.place, instruction, given[: Reject.EXCERPT_CHARACTERS])
            return
        first = True
        seen: set[tuple[str, str]] = set()
        for given, output in examples:
            why = "exact duplicate" if (given, output) in seen else fault_of_example(given, output)
            seen.add((given, output))
            if why is not None:
                yield self._reject(why, of.call, of.place, instruction, given[: Reject.EXCERPT_CHARACTERS])
                continue
            task = InstructionTask(instruction, given, output)
            if first:
                self.kept.append(task)
                first = False
            yield self._record(of, task, answered, identity)

    # ---- both -------------------------------------------------------------------------------------------------

    def _answered(self, calls: Sequence[_Call], answering: Answering) -> Iterator[tuple[_Call, Answered]]:
        """Calls for tasks with their outcomes; a preview answers fewer."""
        requests = [self._request(call, answering) for call in calls]
        for call, answered in zip(calls, answering.answers(requests), strict=False):
            self.came += 1
            yield call, answered

    def _usable(
        self, call: _Call, answered: Answered, of: _Wanted | None = None
    ) -> Generator[Reject, None, str | None]:
        """Yields the reject of an unusable answer, else returns its text."""
        place, instruction = (of.place, of.task.instruction) if of is not None else (0, "")
        result = answered.result
        if isinstance(result, Failure):
            self.over = self.over or result.reason.is_budget
            yield self._reject(result.reason, call, place, instruction or result.text, result.detail)
            return None
        if result.finish == "length" and (of is not None or self.settings.cut_off == "whole"):
            detail = f"{result.completion_tokens} tokens"
            yield self._reject(Reason.CUT_OFF, call, place, instruction or result.text, detail)
            return None
        return result.text

    def _fault(self, instruction: str, waiting: int = 0) -> tuple[str, str] | None:
        """Reason and detail, or None. `waiting` counts instructions of the round that have no example yet."""
        fault = (
            fault_of_instruction(instruction, self.settings) if instruction else ("instruction too short", "0 words")
        )
        if fault is not None:
            return fault
        similar = self.pool.most_similar(instruction, self.settings.rouge_above)
        if similar is not None:
            return "too similar to another instruction", f"ROUGE-L {similar.f:.2f} with number {similar.index + 1}"
        if len(self.kept) + waiting >= self.settings.target:
            return "beyond the target", ""
        return None

    def _record(self, of: _Wanted, task: InstructionTask, answered: Answered, identity: Mapping[str, Any]) -> Record:
        self.row += 1
        question = f"{task.instruction}\n\n{task.input}" if task.input else task.instruction
        shown = {"seeds": [self.seed_rows[index] for index in of.call.seeds], "generated": list(of.call.generated)}
        metadata = {"call": of.call.number, "task": of.place, "shown": shown}
        record = Record(
            messages=(
                *self.system,
                {"role": "user", "content": question},
                {"role": "assistant", "content": task.output},
            ),
            # All examples of an instruction are on one side of the split.
            group=group_of(task.instruction),
            row=self.row,
            provenance=self.origin,
            metadata=metadata | ({"input": task.input} if task.input else {}),
        )
        return replace(record, provenance=provenance_of(record, answered, identity))

    def _reject(self, reason: str, call: _Call, place: int, text: str, detail: str = "") -> Reject:
        where = f"task {place}" if place else "the whole answer"
        return Reject(
            reason, SOURCE, call.number, text[: Reject.EXCERPT_CHARACTERS], f"{where}: {detail}" if detail else where
        )


def _said(task: InstructionTask | Unreadable) -> str:
    return task.text if isinstance(task, Unreadable) else task.instruction


def seed_of(record: Record) -> InstructionTask | None:
    """Instruction, input and output of a record, if it has the first and the last."""
    if record.prompt is not None and record.completion is not None:
        return InstructionTask(record.prompt, "", record.completion)
    turns = [m for m in record.messages or () if m["role"] != "system"]
    if [m["role"] for m in turns] != ["user", "assistant"]:
        return None
    given = str(record.metadata.get("input", ""))
    return InstructionTask(str(turns[0]["content"]).removesuffix(given).strip(), given, str(turns[1]["content"]))
