"""The work of the stages: measure, advise, try, export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from potstill.data import ChatTokenizer
from potstill.decoding.cached_model import CachedModel
from potstill.decoding.drafts import LookupDraft
from potstill.decoding.generator import stop_token_ids
from potstill.decoding.speculative import SpeculativeDecoder
from potstill.decoding.tree import Path as Node
from potstill.decoding.tree import Tree, best_nodes
from potstill.errors import RecipeError
from potstill.frequent import count_tokens
from potstill.measures import Interval
from potstill.policy.duties import write_papers
from potstill.policy.gate import rulings_on
from potstill.recipe.speculate import StudentDraft
from potstill.recipe.teachers import LocalTeacher
from potstill.speculate.advice import advise, fit_shortest, fit_threshold, fit_tree, hopeless
from potstill.speculate.costs import REPETITIONS, Timed, compare, measure, run_in_turn
from potstill.speculate.export import export_draft
from potstill.speculate.forecast import DRAWS, LEVEL, Floats, Timing, Trace
from potstill.speculate.opening import OpenDraft, Target, open_draft, open_target
from potstill.speculate.prompts import read_prompts, tokens_of_data
from potstill.speculate.stored import StoredTexts
from potstill.speculate.traces import (
    Agreement,
    Ranks,
    Text,
    accuracies,
    agreement,
    chain_accuracies,
    head_ranks,
    lookups,
    ranks_ahead,
    sampler_of,
    trace_of,
    write_text,
)
from potstill.speculation import Advice, Piece, Speculation, Trial, save_speculation
from potstill.stage import Context

_TRIED = 8
"""Prompts of a trial."""


class Speculating:
    """One of the stages at work.

    Args:
        context: of `speculate.advice` or `speculate`.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.recipe = context.recipe
        self.settings = context.recipe.required_speculate
        self.before = "speculate.train" not in context.inputs and self.settings.train is not None
        settings = self.recipe.teachers[self.settings.target]
        assert isinstance(settings, LocalTeacher)
        changed = self._trained / "model" if self.settings.trains_target and self._trained is not None else None
        self.target: Target = open_target(settings, self.settings.dtype, context.console, changed)
        self.chat = ChatTokenizer.from_transformers(self.target.tokenizer)
        self.stops = stop_token_ids(self.target.model, self.chat.eos_id)
        self.draft: OpenDraft = open_draft(self.settings, self.target, self._trained, self._counts, context.console)
        self.notes: list[str] = []

    def run(self) -> None:
        """Write `speculation.json`, and the exported draft.

        Raises:
            PotstillError: models that cannot decode together, prompts that are missing, a draft that is not worth
                training, an export that is not the draft.
        """
        found = self._measure()
        context = self.context
        for advice in found.advice:
            mode = "greedy" if advice.temperature == 0 else f"T = {advice.temperature:g}"
            context.console.say(f"{mode}, batch {advice.batch_size}: {advice.reason}", advice=advice.use)
        for trial in found.trials:
            mode = "greedy" if trial.temperature == 0 else f"T = {trial.temperature:g}"
            context.console.say(
                f"{mode}, gamma {trial.gamma}: measured {trial.speedup.value:.2f} ×, forecast "
                f"{trial.predicted.value:.2f} ×"
            )
        save_speculation(found, context.out)
        context.work.facts["use"] = found.advice[0].use
        if self.before and not self.settings.train_anyway and self.is_hopeless:
            raise RecipeError(
                f"a draft of this shape cannot make {found.target} faster here, however well it is trained: "
                f"{found.advice[0].reason}",
                where="speculate.train",
                fix="give it fewer layers (speculate.draft.layers) or fewer tokens (speculate.draft.frequent), or "
                "set speculate.train_anyway: true",
            )

    # ---- what is measured ----------------------------------------------------------------------------------------

    def _measure(self) -> Speculation:
        settings, context = self.settings, self.context
        prompts = read_prompts(self.recipe, self.chat, self.target.cached.limit, context.work)
        self._note_a_short_context(max(map(len, prompts)) + settings.max_new_tokens)
        stored = self._stored()
        if stored is None:
            texts = {temperature: self._write(prompts, temperature) for temperature in settings.temperatures}
            agreed = {t: self._agree(texts[t], t) for t in settings.temperatures}
        else:
            self.notes.append("acceptance is measured on texts of the signal store, without running the target")
            texts = dict.fromkeys(settings.temperatures, stored.texts)
            agreed = {t: self._agree_with_store(stored, t) for t in settings.temperatures}
        ranks = {t: self._rank(texts[t], agreed[t]) for t in settings.temperatures}
        shares = {t: self._accuracies(found) for t, found in ranks.items() if found}
        of_heads = self.draft.heads is not None
        self.nodes: dict[float, tuple[Node, ...]] = {
            t: best_nodes(found, settings.most) for t, found in shares.items() if of_heads
        }
        timed = {(t, 1): self._time(texts[t], t, 1) for t in settings.temperatures}
        traces = self._traces(texts, agreed, ranks)
        if self.draft.lookup is not None and self.draft.fits_lookup:
            self._fit_lookup(self.draft.lookup.longest, texts, agreed, ranks, timed)
            traces = self._traces(texts, agreed, ranks)
        chains: dict[tuple[float, int], Timing] = {}
        for t in () if of_heads else shares:
            chains[t, 1] = timed[t, 1].medians()
            self.nodes[t] = fit_tree(traces[t], ranks[t], chains[t, 1], settings.most, self.draft.choices)
            if self.nodes[t]:
                timed[t, 1] = self._time(texts[t], t, 1)
            else:
                self.notes.append(f"{_key(t)}: no tree is better than a chain on these texts")
        if chains:
            traces = self._traces(texts, agreed, ranks)
        for t in settings.temperatures:
            for batch in settings.batch_sizes:  # one row too: a batch has fewer once some have ended
                if batch > 1:
                    timed[t, batch] = self._time(texts[t], t, batch)
        advice = tuple(
            self._advise(traces[temperature], timed, temperature, batch)
            for temperature in settings.temperatures
            for batch in settings.batch_sizes
        )
        first = settings.temperatures[0]
        heads = self.draft.heads.heads if self.draft.heads is not None else None
        # Of a tree its chain is what training may change.
        possible = chains or {key: found.medians() for key, found in timed.items()}
        self.is_hopeless = all(hopeless(timing, settings.most, heads) for timing in possible.values())
        self._note_what_is_lossy()
        trials = () if self.before else tuple(self._try(prompts, advice, traces, timed))
        exported = None
        if settings.export and not self.before:
            gamma = advice[0].best
            if self.draft.heads is None and (nodes := self.nodes.get(first)):
                gamma = Tree(nodes[:gamma]).depth
            exported = export_draft(
                context.out, self.target, self.draft, texts[first], sampler_of(first, settings.top_p), gamma
            )
            if exported.folder:
                for undone in write_papers(
                    context.out / exported.folder, self.recipe, rulings_on(self.recipe, "draft")
                ):
                    context.work.warn(undone)
        return Speculation(
            target=self.target.source.name,
            draft=self.draft.label,
            dtype=self.target.dtype,
            prompts=len(texts[first]),
            tokens=sum(len(text.written) for text in texts[first]),
            alphas={_key(t): _mean(of_t) for t in texts if (of_t := _alphas(agreed[t], ranks[t]))},
            by_position=_by_position(_alphas(agreed[first], ranks[first])),
            accuracies={_key(t): found for t, found in shares.items()},
            nodes={_key(t): nodes for t, nodes in self.nodes.items() if nodes},
            costs=tuple(timed[first, batch].costs(batch) for batch in settings.batch_sizes),
            advice=advice,
            trials=trials,
            text=() if self.before else self._coloured(prompts[0], advice[0]),
            exported=exported,
            notes=tuple(self.notes),
        )

    def _note_what_is_lossy(self) -> None:
        if self.draft.typical is not None and any(self.settings.temperatures):
            self.notes.append(
                "typical acceptance is on, which is lossy: what is sampled with it is not distributed as the target's "
                "text; forecasts are for exact acceptance, trials at T > 0 are with it"
            )
            self.context.work.warn(self.notes[-1])
        if self.settings.trains_target and not self.before:
            self.notes.append(
                "the target was trained with its heads (Medusa-2): texts and speed-ups are of the trained target, and "
                "that is another model than the teacher"
            )

    def _note_a_short_context(self, needed: int) -> None:
        limit = self.draft.reader.limit if self.draft.reader is not None else None
        if limit is not None and limit < needed:
            self.notes.append(
                f"the draft's context has {limit:,} tokens, and prompts with answers up to {needed:,}: behind its "
                "context the target writes alone"
            )
            self.context.work.warn(self.notes[-1])

    def _write(self, prompts: Sequence[Sequence[int]], temperature: float) -> list[Text]:
        """What the target writes by itself."""
        decoder = SpeculativeDecoder(self.target.cached)
        sampler = sampler_of(temperature, self.settings.top_p)
        texts = []
        with self.context.console.task(f"{_key(temperature)}: the target writes", len(prompts), "texts") as task:
            for seed, prompt in enumerate(prompts):
                texts.append(write_text(decoder, prompt, self.settings.max_new_tokens, self.stops, sampler, seed))
                task.advance(1)
        return texts

    def _agree(self, texts: Sequence[Text], temperature: float) -> list[Agreement]:
        if (reader := self.draft.reader) is None:
            return []
        sampler, found = sampler_of(temperature, self.settings.top_p), []
        with self.context.console.task(f"{_key(temperature)}: the draft reads", len(texts), "texts") as task:
            for text in texts:
                found.append(agreement(self.target.cached, reader, text, sampler, self.target.device))
                task.advance(1)
        return found

    def _stored(self) -> StoredTexts | None:
        """The texts of the store, if the recipe measures on them."""
        if self.settings.texts is None:
            return None
        inputs = self.context.inputs
        return StoredTexts(
            inputs["capture"].path / "store",
            inputs["generate"].path / "records.parquet",
            self.chat,
            most=self.settings.prompts,
            longest=self.settings.max_new_tokens,
            captured=self.recipe.captured_length,
            target=self.target,
            work=self.context.work,
        )

    def _agree_with_store(self, stored: StoredTexts, temperature: float) -> list[Agreement]:
        if (reader := self.draft.reader) is None:
            return []
        if reader.lends:  # with keys and values of its own, since the target reads nothing
            reader = CachedModel(reader.model, reader.vocabulary)
        sampler = sampler_of(temperature, self.settings.top_p)
        return [stored.agreement(number, reader, sampler) for number in range(len(stored.texts))]

    def _rank(self, texts: Sequence[Text], agreed: Sequence[Agreement]) -> list[Ranks]:
        """The ranks of each text's next tokens among the choices of a tree; nothing for a draft that has none."""
        draft, most = self.draft, self.settings.most
        if draft.heads is not None:
            return [head_ranks(self.target.model, draft.heads, text, draft.choices) for text in texts]
        return [ranks_ahead(found.ranks, most, draft.choices) for found in agreed] if draft.choices > 1 else []

    def _accuracies(self, ranks: Sequence[Ranks]) -> tuple[tuple[float, ...], ...]:
        """By depth and rank."""
        choices = self.draft.choices
        return accuracies(ranks, choices) if self.draft.heads is not None else chain_accuracies(ranks, choices)

    def _time(self, texts: Sequence[Text], temperature: float, batch: int) -> Timed:
        rows = [[*texts[i % len(texts)].prompt, *texts[i % len(texts)].written] for i in range(batch)]
        most = self.settings.most
        # A text that is too short to be read in blocks begins again.
        rows = [row * (1 + (most + 2) // len(row)) if len(row) < most + 2 else row for row in rows]
        prompt_tokens = round(float(np.mean([len(text.prompt) for text in texts])))
        with self.context.console.task(f"{_key(temperature)}: times, batch {batch}", REPETITIONS, "rounds") as task:
            return measure(
                self.target.cached,
                self.draft.timed(self.nodes.get(temperature, ())),
                rows,
                prompt_tokens,
                sampler_of(temperature, self.settings.top_p),
                most,
                self.target.device,
                task.advance,
            )

    def _traces(
        self,
        texts: Mapping[float, Sequence[Text]],
        agreed: Mapping[float, Sequence[Agreement]],
        ranks: Mapping[float, Sequence[Ranks]],
    ) -> dict[float, list[Trace]]:
        """What forecasts need of the texts of each temperature, with the lookup and the trees as they are now."""
        lookup, settings = self.draft.lookup, self.settings
        vocab_size = self.target.cached.vocab_size
        return {
            t: [
                trace_of(
                    text,
                    settings.max_new_tokens,
                    agreed[t][number] if agreed[t] else None,
                    lookups(lookup, text, settings.most, vocab_size) if lookup is not None else None,
                    ranks[t][number] if self.nodes.get(t) else None,
                    self.nodes.get(t, ()),
                )
                for number, text in enumerate(of_t)
            ]
            for t, of_t in texts.items()
        }

    def _fit_lookup(
        self,
        longest: int,
        texts: Mapping[float, Sequence[Text]],
        agreed: Mapping[float, Sequence[Agreement]],
        ranks: Mapping[float, Sequence[Ranks]],
        timed: Mapping[tuple[float, int], Timed],
    ) -> None:
        """Take the lookup whose shortest n-gram has the best forecast, before what comes behind it is a tree."""
        found = {}
        for shortest in range(1, longest + 1):
            self.draft = replace(self.draft, lookup=LookupDraft(longest, shortest))
            found[shortest] = list(self._traces(texts, agreed, ranks).values())
        best = fit_shortest(found, [timed[t, 1].medians() for t in texts], self.settings.most)
        self.draft = replace(self.draft, lookup=LookupDraft(longest, best))
        self.notes.append(f"the lookup compares {best} to {longest} tokens: that has the best forecast on these texts")

    def _advise(
        self, traces: Sequence[Trace], timed: dict[tuple[float, int], Timed], temperature: float, batch: int
    ) -> Advice:
        threshold, most = self.draft.threshold, self.settings.most
        timings = {
            rows: [found.medians(), *found.resampled(seed=0)]
            for (own, rows), found in timed.items()
            if own == temperature and rows <= batch
        }
        medians = {rows: found[0] for rows, found in timings.items()}
        fitted = fit_threshold(traces, medians, most, batch) if threshold == "fit" else float(threshold)
        return advise(traces, timings, most, fitted, temperature, batch)

    # ---- what is tried -------------------------------------------------------------------------------------------

    def _try(
        self,
        prompts: Sequence[Sequence[int]],
        advice: Sequence[Advice],
        traces: dict[float, list[Trace]],
        timed: dict[tuple[float, int], Timed],
    ) -> list[Trial]:
        """Decode with the recommended gamma and one on each side of it, row by row, and with the target alone."""
        settings, trials = self.settings, []
        tried = prompts[:_TRIED]
        for temperature in settings.temperatures:
            found = next(
                (a for a in advice if a.temperature == temperature and a.batch_size == 1),
                None,
            )
            if found is None:
                continue
            gamma = settings.gamma or found.best
            gammas = sorted({gamma, max(1, gamma // 2), min(settings.most, gamma + 2)})
            decoders = [SpeculativeDecoder(self.target.cached)]
            nodes = self.nodes.get(temperature, ())
            decoders += [
                SpeculativeDecoder(
                    self.target.cached,
                    self.draft.drafting(found.threshold, nodes),
                    gamma=g,
                    typical=self.draft.typical,
                )
                for g in gammas
            ]
            with self.context.console.task(f"{_key(temperature)}: trials", len(tried), "prompts") as task:
                alone, *drafted = run_in_turn(
                    decoders,
                    tried,
                    settings.max_new_tokens,
                    self.stops,
                    sampler_of(temperature, settings.top_p),
                    task.advance,
                )
            for g, runs in zip(gammas, drafted, strict=True):
                predicted = next(f.speedup for f in found.forecasts if f.gamma == g)
                trials.append(
                    compare(
                        alone,
                        runs,
                        temperature=temperature,
                        gamma=g,
                        threshold=found.threshold,
                        predicted=predicted,
                    )
                )
        return trials

    def _coloured(self, prompt: Sequence[int], advice: Advice) -> tuple[Piece, ...]:
        """One answer in pieces, by who wrote them."""
        from potstill.decoding.acceptance import Chance
        from potstill.decoding.speculative import Request

        draft = self.draft.drafting(advice.threshold, self.nodes.get(advice.temperature, ()))
        decoder = SpeculativeDecoder(self.target.cached, draft, gamma=advice.best)
        sampler = sampler_of(advice.temperature, self.settings.top_p)
        request = Request([list(prompt)], self.settings.max_new_tokens, self.stops, sampler)
        authored: list[tuple[int, str]] = []
        for news in decoder.rounds(request, Chance(0, self.target.device)):
            accepted = decoder.account.accepted_by_round[-1][1] if decoder.account.rounds else 0
            authored += [(token, "draft" if i < accepted else "target") for i, token in enumerate(news[0])]
        return _pieces(authored, self.chat)

    # ---- what it needs -------------------------------------------------------------------------------------------

    @cached_property
    def _trained(self) -> Path | None:
        """The artifact of the training that made the draft."""
        name = "train" if isinstance(self.settings.model_draft, StudentDraft) else "speculate.train"
        artifact = self.context.inputs.get(name)
        return artifact.path if artifact is not None else None

    def _counts(self) -> Counter[int]:
        generated = self.context.inputs.get("generate")
        records = generated.path / "records.parquet" if generated is not None else None
        return count_tokens(tokens_of_data(self.recipe, self.chat, records))


def _key(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T={temperature:g}"


def _mean(values: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]) -> Interval:
    """The mean over all positions of all texts, with a bootstrap interval over texts."""
    sums = np.array([[found.sum(), len(found)] for found in values])
    picks = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    drawn = sums[picks].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(sums[:, 0].sum() / sums[:, 1].sum()), float(low), float(high))


def _alphas(agreed: Sequence[Agreement], ranks: Sequence[Ranks]) -> list[Floats]:
    """The acceptance of one drafted token at each position of each text; of heads, of the first one's best choice."""
    return [found.alpha for found in agreed] or [(found[:, 0] == 0).astype(float) for found in ranks]


def _by_position(alphas: Sequence[Floats]) -> tuple[float, ...]:
    longest = max((len(alpha) for alpha in alphas), default=0)
    return tuple(float(np.mean([alpha[t] for alpha in alphas if len(alpha) > t])) for t in range(longest))


def _pieces(authored: Sequence[tuple[int, str]], chat: ChatTokenizer) -> tuple[Piece, ...]:
    """Tokens as text. A character of several tokens goes to the author of the last."""
    pieces: list[Piece] = []
    held: list[int] = []
    for number, (token, author) in enumerate(authored):
        held.append(token)
        text = chat.decode(held, skip_special_tokens=True)
        if text.endswith("\ufffd") and number + 1 < len(authored):
            continue
        held = []
        if text:
            pieces.append(Piece(text, "draft" if author == "draft" else "target"))
    return tuple(pieces)
