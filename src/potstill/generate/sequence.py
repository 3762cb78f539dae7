"""Sequence-level distillation: the teacher answers each prompt, and the student learns its answers.

Kim & Rush 2016, arXiv 1606.07947 (by beam search in the paper). Greedy, sampled or by beams, one answer a prompt or
several. If a record has an answer already, the teacher's replaces it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from potstill.answering.base import Answered, Answering, Failure
from potstill.artifacts import Work
from potstill.data.problems import with_reference
from potstill.data.split import SplitSide
from potstill.generate.program import Item, SideOfRecord, asked_of, failed, of_sample, provenance_of, with_answer
from potstill.recipe import SequenceProgram
from potstill.recipe.verify import references_of
from potstill.registry import implements
from potstill.types import Answer, Reason, Record, Reject, Request, Sampling


@implements(SequenceProgram)
class Sequence:
    """The program of `kind: sequence`."""

    def __init__(self, settings: SequenceProgram) -> None:
        self.settings = settings
        self.sampling = Sampling(
            settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k, settings.beams
        )
        self.references = references_of(settings.verify)

    def write(
        self, records: Iterable[Item], answering: Answering, *, side_of: SideOfRecord, work: Work
    ) -> Iterator[Item]:
        """Answer every record's prompt. Raises as the teacher, the journal and the budget do."""
        places: deque[Reject | Record] = deque()  # read and not yet yielded, in order
        owners: dict[int, Record] = {}  # by identity of the request, which lives as long as its entry

        def requests() -> Iterator[Request]:
            seen: set[int] = set()
            for record in records:
                prompt = record if isinstance(record, Reject) else self._prompt(record, answering, seen, work)
                if isinstance(prompt, Reject):
                    places.append(prompt)
                    continue
                for request in (self._request(prompt, sample) for sample in range(self.settings.samples)):
                    places.append(prompt)
                    owners[id(request)] = prompt
                    yield request

        def side(request: Request) -> SplitSide:
            return side_of(owners[id(request)])

        for answered in answering.answers(requests(), side_of=side):
            while isinstance(first := places.popleft(), Reject):
                yield first
            owners.pop(id(answered.request), None)
            yield self._kept(first, answered, answering.identity)
        yield from (place for place in places if isinstance(place, Reject))

    def _prompt(self, record: Record, answering: Answering, seen: set[int], work: Work) -> Record | Reject:
        """The record without its answer, or why it is not sent."""
        prompt = asked_of(record, answering, seen, work, lambda prompt: self._request(prompt, 0))
        if isinstance(prompt, Reject):
            return prompt
        prompt = with_reference(prompt, record, *self.references)
        if not record.is_prompt:
            work.count("reference answers dropped")
        work.count("prompts")
        return prompt

    def _kept(self, prompt: Record, answered: Answered, identity: Mapping[str, Any]) -> Record | Reject:
        """The record with its answer, or why it is not kept."""
        request, result = answered.request, answered.result
        if isinstance(result, Failure):
            return failed(prompt, request, result)
        reason = self._fault(result)
        if reason is not None:
            return Reject.of(prompt, reason, result.text, of_sample(request.sample, ""))
        return with_answer(prompt, request, result, provenance_of(prompt, answered, identity))

    def _request(self, prompt: Record, sample: int) -> Request:
        return Request(self.sampling, prompt.messages, prompt.prompt, prompt.tools, sample)

    def _fault(self, answer: Answer) -> Reason | None:
        """Why an answer is not kept, or None."""
        if not answer.text.strip():
            return Reason.EMPTY
        if answer.finish == "length" and not self.settings.keep_unfinished:
            return Reason.UNFINISHED
        return None
