"""Chain of thought with rejection sampling: the teacher reasons, a verifier decides, and the right chains are learned.

Ho et al. 2022 (arXiv 2212.10071): several chains a problem, those with the right answer kept. DeepSeek-R1 (2501.12948,
§2.3.3): more is filtered than the answer. STaR (2203.14465): where no chain is right, the answer is given as a hint,
and the chain is learned without it; its rounds are several recipes, each with the last one's student as teacher.

Problems are worked on a thousand at a time, in rounds: who has enough accepted chains is not asked for more.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from potstill.artifacts import Work
from potstill.data.problems import with_reference
from potstill.data.split import Side
from potstill.data.stream import Seen
from potstill.generate.answering import Answered, Answering, ask_all
from potstill.generate.chains_filters import ChainFilter, chain_of
from potstill.generate.chains_keep import Chain, choose, next_samples
from potstill.generate.chains_record import Form, Problem, form_for, learned, put_by, reference_of
from potstill.generate.prompts import asked_of
from potstill.generate.records import failed, of_sample, reject
from potstill.generate.verification import Verification
from potstill.recipe.reasoning import ReasoningProgram
from potstill.registry import implements
from potstill.types import Answer, Record, Reject, Request, Sampling, Verdict, digest
from potstill.verify.preconditions import refuse_unjudgeable

_AT_ONCE = 1024
"""Problems worked on together: what is held in memory is theirs."""
_SPEAKS_OF_HINT = re.compile(
    r"\bhint(?:s|ed)?\b|\b(?:given|provided|stated|known)\s+(?:final\s+)?answer\b", re.IGNORECASE
)

Sampled = tuple[Problem, Answered]


@implements(ReasoningProgram)
class Reasoning:
    """The program of `kind: reasoning`."""

    def __init__(self, settings: ReasoningProgram) -> None:
        self.settings = settings
        self.sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k)
        self.filter = ChainFilter(settings.filters)

    def write(
        self,
        records: Iterable[Record | Reject],
        answering: Answering,
        *,
        side_of: Callable[[Record], Side],
        work: Work,
    ) -> Iterator[Record | Reject]:
        """Have every problem solved.

        Raises:
            DataError: the verifier can judge none of the (first thousand) problems, since what it needs is in none.
            Besides as the teacher, the journal, the budget and the verifier do.

        Samples of a problem come out side by side, each as its record or as the reject that it is.
        """
        settings, form = self.settings, self._form(answering, work)
        rates: Counter[str] = Counter()
        with Verification(settings.verify, partial(ask_all, answering, settings.teacher)) as verification:
            task = _Task(self, answering, verification, side_of, work, form)
            for block in self._blocks(records, answering, work):
                problems = [item for item in block if isinstance(item, Problem)]
                if problems and not (task.began or settings.accept_all or settings.unjudged == "accept"):
                    # A later one might have what it needs; a block without is no data to pay for.
                    called = f"{'first ' if len(problems) == _AT_ONCE else ''}{len(problems):,} problems"
                    asked = [problem.prompt for problem in problems]
                    refuse_unjudgeable(settings.verify, asked, called=called, where="generate")
                task.solve(problems)
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
        seen = Seen()
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

    def _problem(self, record: Record, answering: Answering, seen: Seen, work: Work) -> Problem | Reject:
        """The record as a problem, its own answer the reference if it has no other; or why it is not asked."""
        put = partial(put_by, self.settings.instruction, sampling=self.sampling, sample=0)
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
        """The samples of a problem that was worked on, in order."""
        settings, results = self.settings, problem.results
        rate = problem.passed / problem.answered if problem.answered else None
        rates.update({"samples": problem.answered, "passed": problem.passed})
        if rate is not None:
            rates[_band(rate)] += 1
        low, high = settings.pass_rate
        if settings.windowed and (rate is None or not low <= rate <= high):
            said = "no sample was answered" if rate is None else f"{problem.passed} of {problem.answered} accepted"
            work.count("problems outside the pass rates")
            for chain in problem.chains:
                results[chain.sample] = reject(problem.prompt, "pass rate outside the window", chain.text, said)
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
        """Leave only the chains that are kept; the others become rejects."""
        results = problem.results
        chosen, others = choose(problem.chains, self.settings.keep, self.settings.kept)
        texts = {chain.sample: chain.text for chain in problem.chains}
        for sample in others:
            said = f"sample {sample}: {len(chosen)} of {len(problem.chains)} are kept"
            results[sample] = reject(problem.prompt, f"not chosen (keep: {self.settings.keep})", texts[sample], said)
        learnt: dict[str, int] = {}
        for sample in chosen:
            record = results[sample]
            assert isinstance(record, Record)
            first = learnt.setdefault(digest(record.content), sample)
            if first != sample:
                # Chains differ, and what is learned of them may not: a final answer is the same for all.
                said = f"sample {sample} as sample {first}"
                results[sample] = reject(problem.prompt, "same answer as an earlier sample", texts[sample], said)


class _Task:
    """Works on problems: asks, filters, verifies."""

    def __init__(
        self,
        program: Reasoning,
        answering: Answering,
        verification: Verification,
        side_of: Callable[[Record], Side],
        work: Work,
        form: Form,
    ) -> None:
        self.program, self.answering, self.verification = program, answering, verification
        self.side_of, self.work, self.form = side_of, work, form
        self.settings = program.settings
        self.began = False
        self.over = False  # nobody answers any more: a preview has seen enough

    def solve(self, problems: Sequence[Problem]) -> None:
        """Round after round, until each problem has enough accepted chains, or all its samples."""
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
                wanted += [(problem, put_by(of.instruction, problem.prompt, self.program.sampling, s)) for s in more]
            self._round(wanted, hinted=False)
            open_problems = [p for p, request in wanted if request.sample == p.asked - 1]
        if saved := sum(of.samples - problem.asked for problem in problems):
            self.work.count("samples not needed", saved)
        if of.hint is not None and not self.over:
            self._hint([problem for problem in problems if not problem.accepted])

    def _hint(self, problems: Sequence[Problem]) -> None:
        """STaR: the unsolved ones again, with the answer as a hint."""
        of = self.settings
        hinted: list[Problem] = []
        wanted: list[tuple[Problem, Request]] = []
        assert of.hint is not None
        for problem in problems:
            reference = reference_of(problem.prompt, of.reference)
            if reference is None:
                self.work.count("no hint, since there is no reference")
                continue
            try:
                requests = [
                    put_by(of.hint, problem.prompt, self.program.sampling, of.samples + number, reference)
                    for number in range(of.hint_samples)
                ]
            except ValueError:
                self.work.count("no hint, since the problem is not a text")
                continue
            # Problems were held against the context as they are put without a hint.
            most, tokens = self.answering.context_length, self.answering.prompt_tokens(requests[0])
            if most is not None and tokens is not None and tokens >= most:
                self.work.count("hints that fill the teacher's context")
                continue
            hinted.append(problem)
            wanted += [(problem, request) for request in requests]
        self._round(wanted, hinted=True)
        self.work.count("problems solved with a hint", sum(bool(problem.accepted) for problem in hinted))

    def _round(self, wanted: Sequence[tuple[Problem, Request]], *, hinted: bool) -> None:
        """Ask some requests, and enter what becomes of each with its problem."""
        if not wanted:
            return
        self.work.count("samples asked with a hint" if hinted else "samples asked", len(wanted))
        answered = self._answered(wanted, hinted)
        candidates: Iterable[Sampled] = (
            # A judge asks too, and not while another question is under way.
            list(answered) if self.verification.asks else answered
        )
        under_way: deque[Sampled] = deque()

        def items() -> Iterator[tuple[Record, Answer]]:
            for problem, found in candidates:
                assert found.answer is not None
                under_way.append((problem, found))
                yield problem.prompt, found.answer

        for verdict in self.verification.verdicts(items()):
            problem, found = under_way.popleft()
            self._enter(problem, found, verdict, hinted)

    def _answered(self, wanted: Sequence[tuple[Problem, Request]], hinted: bool) -> Iterator[Sampled]:
        """The answers that are to be verified; the others become rejects here."""
        owners = {id(request): problem for problem, request in wanted}
        found = self.answering.answers(
            (request for _, request in wanted), side_of=lambda request: self.side_of(owners[id(request)].prompt)
        )
        came = 0
        for (problem, request), answered in zip(wanted, found, strict=False):  # a preview asks fewer
            came += 1
            # An answer to a hint says nothing of how hard the problem is; nor does a request that was never answered.
            problem.answered += answered.raw is not None and not hinted
            fault = self._fault(problem, request, answered, hinted)
            if fault is None:
                yield problem, answered
            else:
                problem.results[request.sample] = fault
        self.over = came < len(wanted)

    def _fault(self, problem: Problem, request: Request, answered: Answered, hinted: bool) -> Reject | None:
        """Why an answer is not even verified."""
        answer = answered.answer
        if answer is None:
            return failed(problem.prompt, answered)
        text = chain_of(answer)
        fault = self.program.filter.fault(problem.prompt, answer)
        if fault is None and hinted and (spoken := _SPEAKS_OF_HINT.search(text)):
            fault = "speaks of the hint", spoken.group()
        if fault is not None:
            reason, detail = fault
            return reject(problem.prompt, reason, text, of_sample(request.sample, detail))
        return None

    def _enter(self, problem: Problem, answered: Answered, verdict: Verdict, hinted: bool) -> None:
        """Take a verified answer, or reject it."""
        of, sample, answer = self.settings, answered.request.sample, answered.answer
        assert answer is not None
        text = chain_of(answer)
        accepted = verdict.outcome == "accept" or (verdict.outcome == "cannot_judge" and of.unjudged == "accept")
        problem.passed += accepted and not hinted

        def refuse(reason: str, detail: str) -> None:
            problem.results[sample] = reject(problem.prompt, reason, text, f"sample {sample}: {detail}")

        if not accepted and not of.accept_all:
            refuse("wrong answer" if verdict.outcome == "reject" else "cannot be judged", verdict.reason)
            return
        earlier = problem.texts.setdefault(digest(text), sample)
        if earlier != sample:
            refuse("same chain as an earlier sample", f"as sample {earlier}")
            return
        record = learned(problem.prompt, answered, of.target, self.form, verdict, self.answering.identity)
        if record is None:
            refuse("no final answer is found", verdict.reason)
            return
        facts: dict[str, Any] = {"tokens": answer.completion_tokens} | ({"hinted": True} if hinted else {})
        record = replace(record, metadata={**record.metadata, "chain": facts})
        problem.add(Chain(sample, text, answer.completion_tokens, accepted, verdict.score), record)


_BANDS = ("0", "below 1/4", "1/4 to 1/2", "1/2 to 3/4", "3/4 and above", "1")


def _band(rate: float) -> str:
    return _BANDS[0] if rate == 0 else _BANDS[-1] if rate == 1 else _BANDS[1 + int(4 * rate)]
