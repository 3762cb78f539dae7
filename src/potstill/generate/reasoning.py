"""Chain of thought with rejection sampling: the teacher reasons, a verifier judges, and accepted chains are learned.

Ho et al. 2022 (arXiv 2212.10071): several chains a problem, of which those with the right answer are kept. DeepSeek-R1
(2501.12948, §2.3.3): further filters on the chain. STaR (2203.14465): if no chain is right, the answer is given as a
hint, and the chain is learned without the hint; its rounds are several recipes, each with the last one's student as
teacher.

Problems are solved a thousand at a time, in rounds: no more samples are requested once a problem has enough accepted
chains.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from potstill.answering.base import Answered, Answering, Failure, ask_all
from potstill.artifacts import Work
from potstill.data.problems import with_reference
from potstill.data.spans import Unlearnable, assistant_turns
from potstill.data.split import SplitSide
from potstill.data.thinking import CLOSE, OPEN
from potstill.generate.program import Item, SideOfRecord, asked_of, failed, of_sample, provenance_of, with_answer
from potstill.generate.reasoning_chains import Chain, ChainFilter, chain_of, choose, next_samples
from potstill.generate.verifying import Verification
from potstill.recipe.reasoning import ReasoningProgram
from potstill.registry import implements
from potstill.types import Answer, Reason, Record, Reject, Request, Sampling, Verdict, digest
from potstill.verify.answer_extraction import final_value, marked
from potstill.verify.base import references
from potstill.verify.preconditions import refuse_unjudgeable

Form = Literal["reasoning_content", "think"]


@dataclass
class Problem:
    """A problem, and the outcomes of its samples so far.

    Attributes:
        prompt: the problem as a record, without an answer.
        asked: number of samples requested.
        answered: number of samples answered, of which `passed` were accepted.
        texts: digests of chains, with the first sample of each.
        results: by sample, its record or its reject.
        chains: those that may be kept, all different.
    """

    prompt: Record
    asked: int = 0
    answered: int = 0
    passed: int = 0
    texts: dict[str, int] = field(default_factory=dict)
    results: dict[int, Record | Reject] = field(default_factory=dict)
    chains: list[Chain] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        """The number of different accepted chains, with or without a hint."""
        return sum(chain.accepted for chain in self.chains)

    def add(self, chain: Chain, record: Record) -> None:
        """Add a chain that may be kept."""
        self.chains.append(chain)
        self.results[chain.sample] = record


def render_request(
    template: str | None, prompt: Record, sampling: Sampling, sample: int, reference: str = ""
) -> Request:
    """The request for one sample of a problem.

    Args:
        template: the prompt; its `{problem}` becomes the last turn's text, `{reference}` the reference. None: the
            problem itself.

    Raises:
        ValueError: the last turn is not a text.
    """
    messages, plain = prompt.messages, prompt.prompt
    if template is not None:
        if messages is None:
            plain = _filled(template, plain or "", reference)
        else:
            content = messages[-1].get("content")
            if not isinstance(content, str):
                raise ValueError("the problem is not a text")
            messages = (*messages[:-1], {**messages[-1], "content": _filled(template, content, reference)})
    return Request(sampling, messages, plain, prompt.tools, sample)


def _filled(template: str, problem: str, reference: str) -> str:
    # Braces in a problem are no placeholders.
    return problem.join(part.replace("{reference}", reference) for part in template.split("{problem}"))


def reference_of(prompt: Record, key: str) -> str | None:
    """The reference for a hint, or None."""
    return next(iter(references(prompt, key)), None)


def form_for(answering: Answering) -> tuple[Form, bool]:
    """The form of reasoning that the teacher's chat template keeps, and whether it keeps any. An unknown template is
    assumed to read `reasoning_content`."""
    chat = getattr(answering, "chat", None) or getattr(getattr(answering, "teacher", None), "chat", None)
    if chat is None or chat.template is None:
        return "reasoning_content", True
    user = {"role": "user", "content": "Two and two?"}
    thought = Answer("It is four.", "stop", 1, 1, "Two twice.")
    try:
        assistant_turns([user, {"role": "assistant", "content": thought.text}], None, chat)
    except Unlearnable:
        return "reasoning_content", True  # it drops the answer, with or without reasoning
    forms: tuple[Form, ...] = ("reasoning_content", "think")
    for form in forms:
        try:
            assistant_turns([user, _message(thought, form)], None, chat)
        except Unlearnable:
            continue
        return form, True
    return "reasoning_content", False


def answer_only(answer: Answer) -> str | None:
    """The final answer alone: the marked one, else everything after separate reasoning, else the value at the end of
    the text. None if there is none."""
    found = marked(answer.text)
    if found is None:
        found = answer.text if answer.reasoning else final_value(answer.text)
    return found.strip() or None if found is not None else None


def learned(
    prompt: Record,
    answered: Answered,
    answer: Answer,
    target: Literal["chain", "answer"],
    form: Form,
    verdict: Verdict,
    identity: Mapping[str, Any],
) -> Record | None:
    """The record of an accepted chain; None if only the answer is wanted and none is found."""
    if target == "answer":
        text = answer_only(answer)
        if text is None:
            return None
        answer = replace(answer, text=text, reasoning=None)
    record = with_answer(prompt, answered.request, answer, provenance_of(prompt, answered, identity))
    if answer.reasoning is not None:
        if record.messages is None:
            # A plain text has no separate field for reasoning.
            record = replace(record, completion=_inline(answer))
        else:
            record = replace(record, messages=(*record.messages[:-1], _message(answer, form)))
    return replace(record, verdicts=(*record.verdicts, verdict))


def _message(answer: Answer, form: Form) -> dict[str, str]:
    if form == "think":
        return {"role": "assistant", "content": _inline(answer)}
    return {"role": "assistant", "content": answer.text, "reasoning_content": answer.reasoning or ""}


def _inline(answer: Answer) -> str:
    return f"{OPEN}\n{answer.reasoning}\n{CLOSE}\n\n{answer.text}"


_AT_ONCE = 1024
"""Number of problems solved together; only these are held in memory."""
_SPEAKS_OF_HINT = re.compile(
    r"\bhint(?:s|ed)?\b|\b(?:given|provided|stated|known)\s+(?:final\s+)?answer\b", re.IGNORECASE
)

Sampled = tuple[Problem, Answered, Answer]
"""A problem, the outcome of one request, and the answer in it."""


@implements(ReasoningProgram)
class Reasoning:
    """The program of `kind: reasoning`."""

    def __init__(self, settings: ReasoningProgram) -> None:
        self.settings = settings
        self.sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k)
        self.filter = ChainFilter(settings.filters)

    def write(
        self, records: Iterable[Item], answering: Answering, *, side_of: SideOfRecord, work: Work
    ) -> Iterator[Item]:
        """Solve every problem.

        Raises:
            DataError: the verifier can judge none of the (first thousand) problems, because none has what it needs.
            Besides as the teacher, the journal, the budget and the verifier do.

            The samples of a problem are adjacent, each as a record or a reject.
        """
        settings, form = self.settings, self._form(answering, work)
        rates: Counter[str] = Counter()
        with Verification(settings.verify, partial(ask_all, answering, settings.teacher)) as verification:
            solver = _Solver(self, answering, verification, side_of, work, form)
            for block in self._blocks(records, answering, work):
                problems = [item for item in block if isinstance(item, Problem)]
                if problems and not (solver.began or settings.accept_all or settings.unjudged == "accept"):
                    # A later problem might have what the verifier needs, but a thousand without it should cost
                    # nothing.
                    called = f"{'first ' if len(problems) == _AT_ONCE else ''}{len(problems):,} problems"
                    asked = [problem.prompt for problem in problems]
                    refuse_unjudgeable(settings.verify, asked, called=called, where="generate")
                solver.solve(problems)
                for item in block:
                    yield from (item,) if isinstance(item, Reject) else self._kept(item, work, rates)
            work.facts["verifier"] = dict(verification.verifier.identity)
        samples, passed = rates["samples"], rates["passed"]
        work.facts["chains"] = {
            "pass_rate": round(passed / samples, 4) if samples else None,
            "problems_by_pass_rate": {k: rates[k] for k in _BANDS if rates[k]},
        }

    # ---- reading ------------------------------------------------------------------------------------------------

    def _blocks(
        self, records: Iterable[Record | Reject], answering: Answering, work: Work
    ) -> Iterator[list[Problem | Reject]]:
        seen: set[int] = set()
        block: list[Problem | Reject] = []
        problems = 0
        for record in records:
            item = record if isinstance(record, Reject) else self._problem(record, answering, seen, work)
            block.append(item)
            problems += isinstance(item, Problem)
            if problems == _AT_ONCE or len(block) == 4 * _AT_ONCE:
                yield block
                block, problems = [], 0
        if block:
            yield block

    def _problem(self, record: Record, answering: Answering, seen: set[int], work: Work) -> Problem | Reject:
        """The record as a problem, with its own answer as the reference if there is no other; or why it is not
        sent."""
        put = partial(render_request, self.settings.instruction, sampling=self.sampling, sample=0)
        prompt = asked_of(record, answering, seen, work, put)
        if isinstance(prompt, Reject):
            return prompt
        work.count("problems")
        return Problem(with_reference(prompt, record, self.settings.reference))

    def _form(self, answering: Answering, work: Work) -> Form:
        if self.settings.reasoning != "auto":
            return self.settings.reasoning
        form, kept = form_for(answering)
        if not kept and self.settings.target == "chain":
            work.warn(
                "the teacher's chat template drops reasoning in every form: a student with the same template cannot "
                "learn it, and train rejects such records. Give the student a template that keeps it, or set "
                "target: answer"
            )
        return form

    # ---- what is kept -------------------------------------------------------------------------------------------

    def _kept(self, problem: Problem, work: Work, rates: Counter[str]) -> Iterator[Record | Reject]:
        """The samples of a solved problem, in order."""
        settings, results = self.settings, problem.results
        rate = problem.passed / problem.answered if problem.answered else None
        rates.update({"samples": problem.answered, "passed": problem.passed})
        if rate is not None:
            rates[_band(rate)] += 1
        low, high = settings.pass_rate
        if settings.windowed and (rate is None or not low <= rate <= high):
            detail = "no sample was answered" if rate is None else f"{problem.passed} of {problem.answered} accepted"
            work.count("problems outside the pass rates")
            for chain in problem.chains:
                results[chain.sample] = Reject.of(problem.prompt, Reason.OUTSIDE_PASS_RATE, chain.text, detail)
        else:
            self._choose(problem)
        if not any(isinstance(result, Record) for result in results.values()):
            work.count("problems without a chain")
        for sample in sorted(results):
            result = results[sample]
            if isinstance(result, Record):
                facts = {**result.metadata.get("chain", {}), "passed": problem.passed, "answered": problem.answered}
                result = replace(result, metadata={**result.metadata, "chain": facts})
            yield result

    def _choose(self, problem: Problem) -> None:
        """Keep the chosen chains; the others become rejects."""
        results = problem.results
        chosen, others = choose(problem.chains, self.settings.keep, self.settings.kept)
        texts = {chain.sample: chain.text for chain in problem.chains}
        for sample in others:
            detail = of_sample(sample, f"keep: {self.settings.keep}: {len(chosen)} of {len(problem.chains)} are kept")
            results[sample] = Reject.of(problem.prompt, Reason.NOT_CHOSEN, texts[sample], detail)
        first_of: dict[str, int] = {}
        for sample in chosen:
            record = results[sample]
            first = first_of.setdefault(digest(record.content), sample) if isinstance(record, Record) else sample
            if first != sample:
                # Chains differ, but the learned text may not: a final answer can be the same for all.
                detail = f"sample {sample} as sample {first}"
                results[sample] = Reject.of(problem.prompt, Reason.REPEATED_ANSWER, texts[sample], detail)


class _Solver:
    """Solves problems: requests, filters, verifies."""

    def __init__(
        self,
        program: Reasoning,
        answering: Answering,
        verification: Verification,
        side_of: Callable[[Record], SplitSide],
        work: Work,
        form: Form,
    ) -> None:
        self.program, self.answering, self.verification = program, answering, verification
        self.side_of, self.work, self.form = side_of, work, form
        self.settings = program.settings
        self.began = False
        self.over = False  # no further request is answered: a preview has ended

    def solve(self, problems: Sequence[Problem]) -> None:
        """Rounds of requests, until each problem has enough accepted chains, or all its samples."""
        of = self.settings
        self.began = self.began or bool(problems)
        open_problems: Sequence[Problem] = problems
        while open_problems and not self.over:
            wanted = []
            for problem in open_problems:
                more = next_samples(
                    problem.asked,
                    problem.accepted,
                    samples=of.samples,
                    at_once=of.samples_at_once,
                    stop_at=of.stop_at,
                )
                problem.asked += len(more)
                wanted += [
                    (problem, render_request(of.instruction, problem.prompt, self.program.sampling, s)) for s in more
                ]
            self._round(wanted, hinted=False)
            open_problems = [p for p, request in wanted if request.sample == p.asked - 1]
        if saved := sum(of.samples - problem.asked for problem in problems):
            self.work.count("samples not needed", saved)
        if of.hint is not None and not self.over:
            self._hint([problem for problem in problems if not problem.accepted], of.hint)

    def _hint(self, problems: Sequence[Problem], template: str) -> None:
        """STaR: request the unsolved problems again, with the answer as a hint."""
        of = self.settings
        hinted: list[Problem] = []
        wanted: list[tuple[Problem, Request]] = []
        for problem in problems:
            reference = reference_of(problem.prompt, of.reference)
            if reference is None:
                self.work.count("no hint, since there is no reference")
                continue
            try:
                requests = [
                    render_request(template, problem.prompt, self.program.sampling, of.samples + number, reference)
                    for number in range(of.hint_samples)
                ]
            except ValueError:
                self.work.count("no hint, since the problem is not a text")
                continue
            # So far, problems were checked against the context without a hint.
            most, tokens = self.answering.context_length, self.answering.prompt_tokens(requests[0])
            if most is not None and tokens is not None and tokens >= most:
                self.work.count("hints that fill the teacher's context")
                continue
            hinted.append(problem)
            wanted += [(problem, request) for request in requests]
        self._round(wanted, hinted=True)
        self.work.count("problems solved with a hint", sum(bool(problem.accepted) for problem in hinted))

    def _round(self, wanted: Sequence[tuple[Problem, Request]], *, hinted: bool) -> None:
        """Send some requests, and add each outcome to its problem."""
        if not wanted:
            return
        self.work.count("samples asked with a hint" if hinted else "samples asked", len(wanted))
        answered = self._answered(wanted, hinted)
        candidates: Iterable[Sampled] = (
            # A judge sends requests too, and must not while another is under way.
            list(answered) if self.verification.asks else answered
        )
        under_way: deque[Sampled] = deque()

        def items() -> Iterator[tuple[Record, Answer]]:
            for problem, found, answer in candidates:
                under_way.append((problem, found, answer))
                yield problem.prompt, answer

        for verdict in self.verification.verdicts(items()):
            self._enter(*under_way.popleft(), verdict, hinted)

    def _answered(self, wanted: Sequence[tuple[Problem, Request]], hinted: bool) -> Iterator[Sampled]:
        """The answers to verify; the others become rejects here."""
        owners = {id(request): problem for problem, request in wanted}
        found = self.answering.answers(
            (request for _, request in wanted), side_of=lambda request: self.side_of(owners[id(request)].prompt)
        )
        came = 0
        for (problem, request), answered in zip(wanted, found, strict=False):  # a preview answers fewer
            came += 1
            # Answers to hints, and requests without an answer, do not count in the pass rate.
            problem.answered += answered.raw is not None and not hinted
            result = answered.result
            if isinstance(result, Failure):
                problem.results[request.sample] = failed(problem.prompt, request, result)
            elif (fault := self._fault(problem, request, result, hinted)) is not None:
                problem.results[request.sample] = fault
            else:
                yield problem, answered, result
        self.over = came < len(wanted)

    def _fault(self, problem: Problem, request: Request, answer: Answer, hinted: bool) -> Reject | None:
        """The reject of an answer that is not worth verifying, or None."""
        text = chain_of(answer)
        fault = self.program.filter.fault(problem.prompt, answer)
        if fault is None and hinted and (match := _SPEAKS_OF_HINT.search(text)):
            fault = Reason.SPEAKS_OF_HINT, match.group()
        if fault is None:
            return None
        reason, detail = fault
        return Reject.of(problem.prompt, reason, text, of_sample(request.sample, detail))

    def _enter(self, problem: Problem, answered: Answered, answer: Answer, verdict: Verdict, hinted: bool) -> None:
        """Add a verified answer, or its reject."""
        of, sample, text = self.settings, answered.request.sample, chain_of(answer)
        accepted = verdict.outcome == "accept" or (verdict.outcome == "cannot_judge" and of.unjudged == "accept")
        problem.passed += accepted and not hinted

        def refuse(reason: Reason, detail: str) -> None:
            problem.results[sample] = Reject.of(problem.prompt, reason, text, of_sample(sample, detail))

        if not accepted and not of.accept_all:
            refuse(Reason.WRONG if verdict.outcome == "reject" else Reason.UNJUDGED, verdict.reason)
            return
        earlier = problem.texts.setdefault(digest(text), sample)
        if earlier != sample:
            refuse(Reason.REPEATED_CHAIN, f"as sample {earlier}")
            return
        record = learned(problem.prompt, answered, answer, of.target, self.form, verdict, self.answering.identity)
        if record is None:
            refuse(Reason.NO_FINAL_ANSWER, verdict.reason)
            return
        facts: dict[str, Any] = {"tokens": answer.completion_tokens} | ({"hinted": True} if hinted else {})
        record = replace(record, metadata={**record.metadata, "chain": facts})
        problem.add(Chain(sample, text, answer.completion_tokens, accepted, verdict.score), record)


_BANDS = ("0", "below 1/4", "1/4 to 1/2", "1/2 to 3/4", "3/4 and above", "1")


def _band(rate: float) -> str:
    return _BANDS[0] if rate == 0 else _BANDS[-1] if rate == 1 else _BANDS[1 + int(4 * rate)]
