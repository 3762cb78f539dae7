"""The whole recipe: one typed document with a section per stage. A stage runs if its section is present."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, model_validator

from potstill.errors import RecipeError
from potstill.recipe.base import LONGEST_NAME, Cosmetic, KindSettings, PartIfSet, Settings, one_of
from potstill.recipe.capture import CaptureSettings, TopKCapture
from potstill.recipe.data import DataSettings, ImageSettings, expand_data
from potstill.recipe.evaluate import EvaluateSettings, ReportSettings
from potstill.recipe.export import AdapterExport, ExportSettings
from potstill.recipe.generate import GenerateSettings, SequenceProgram
from potstill.recipe.objectives import ObjectiveSettings, why_not
from potstill.recipe.policy import PolicySettings
from potstill.recipe.response import Medusa
from potstill.recipe.schedules import schedule_text
from potstill.recipe.speculate import OtherModelDraft, SpeculateSettings, StudentDraft
from potstill.recipe.students import Pruned, StudentSettings
from potstill.recipe.teachers import EndpointTeacher, LocalTeacher, TeacherSettings, members_of
from potstill.recipe.train import TrainSettings
from potstill.tasks import SPECS, Task, TaskSpec
from potstill.types import Capability

S = TypeVar("S")


class Recipe(Settings):
    """The description of a run. `task` is the student's and the teacher's task. `teacher: {…}` is short for `teachers:
    {main: {…}}`. A report is made whenever there is an evaluation or a speculation; its section only changes how."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)
    seed: int = Field(0, ge=0, lt=2**32)
    task: Task = "causal_lm"
    teachers: dict[str, one_of(TeacherSettings)] = {}  # type: ignore[valid-type]
    student: one_of(StudentSettings) | None = None  # type: ignore[valid-type]
    data: one_of(DataSettings)  # type: ignore[valid-type]
    generate: one_of(GenerateSettings) | None = None  # type: ignore[valid-type]
    capture: one_of(CaptureSettings) | None = None  # type: ignore[valid-type]
    train: TrainSettings | None = None
    evaluate: EvaluateSettings | None = None
    report: ReportSettings = ReportSettings()
    speculate: Annotated[SpeculateSettings | None, PartIfSet()] = None
    export: tuple[one_of(ExportSettings), ...] = ()  # type: ignore[valid-type]
    policy: Annotated[PolicySettings, Cosmetic()] = PolicySettings()

    @property
    def spec(self) -> TaskSpec:
        """The properties of its task."""
        return SPECS[self.task]

    @property
    def required_train(self) -> TrainSettings:
        """The section `train`, for stages that need one. Raises RecipeError if it is missing."""
        return _present("train", self.train)

    @property
    def required_student(self) -> StudentSettings:
        """The section `student`, likewise."""
        return _present("student", cast("StudentSettings | None", self.student))

    @property
    def required_generate(self) -> GenerateSettings:
        """The section `generate`, likewise."""
        return _present("generate", cast("GenerateSettings | None", self.generate))

    @property
    def required_capture(self) -> CaptureSettings:
        """The section `capture`, likewise."""
        return _present("capture", cast("CaptureSettings | None", self.capture))

    def of_teacher(self, number: int) -> Recipe:
        """The recipe by which a teacher of `capture` is captured: 0 is `capture.teacher`, others are of `also`."""
        capture = self.required_capture
        alone = capture.model_copy(update={"teacher": capture.teachers[number], "also": ()})
        return self.model_copy(update={"capture": alone})

    @property
    def captured_length(self) -> int:
        """Maximum tokens of a captured record."""
        length: int | None = self.required_capture.max_length
        return length or (self.train.max_length if self.train is not None else TrainSettings().max_length)

    @property
    def evaluates_stored(self) -> bool:
        """Whether the teacher's side of an evaluation is read from the store: by default if the store can give it."""
        evaluate = self.evaluate
        return evaluate is not None and evaluate.teacher != "live" and self._why_not_stored() is None

    def _why_not_stored(self) -> str | None:
        """Why the store cannot give the teacher's side of an evaluation, with a fix; None if it can."""
        capture = self.capture
        if capture is None:
            return "there is no section capture: add one, or drop evaluate.teacher"
        if self.train is not None and capture.teacher != self.train.teacher:
            return "the store is of another teacher: set capture.teacher to train.teacher"
        if self.spec.has_response:
            if not capture.response:
                return "the store keeps no responses: set evaluate.teacher: live"
            if capture.temperature != 1.0:
                return "the store is not at temperature 1, where models are compared: set evaluate.teacher: live"
        elif capture.features != "asked" and not any(n.startswith("pooled.") for n in capture.features):
            return "the store keeps no embeddings: set capture.features: asked, or evaluate.teacher: live"
        return None

    @property
    def required_evaluate(self) -> EvaluateSettings:
        """The section `evaluate`, likewise."""
        return _present("evaluate", self.evaluate)

    @property
    def required_speculate(self) -> SpeculateSettings:
        """The section `speculate`, likewise."""
        return _present("speculate", self.speculate)

    @property
    def models(self) -> tuple[KindSettings, ...]:
        """The settings of all models that it names: teachers, an ensemble's members in place of the ensemble, the
        student, and a draft that is another model."""
        teachers = tuple(found for teacher in self.teachers.values() for found in members_of(teacher))
        draft = self.speculate.model_draft if self.speculate is not None else None
        others = (self.student, draft if isinstance(draft, OtherModelDraft) else None)
        return (*teachers, *(other for other in others if other is not None))

    @property
    def draft_training(self) -> Recipe:
        """The recipe by which `speculate.train` trains the draft: over the tokens that it will draft, unless the store
        that it learns from has samples of all."""
        speculate, draft = self.required_speculate, self.required_speculate.model_draft
        _present("speculate.train", speculate.train)
        of_all = self.capture is not None and "top_logprobs" in self.capture.gives
        update = {"teacher": speculate.target, "frequent": None if draft is None or of_all else draft.frequent}
        train = speculate.training.model_copy(update=update)
        target = cast(LocalTeacher, self.teachers[speculate.target])  # `_can_speculate` refuses others
        alone = {"evaluate": None, "speculate": None, "export": ()}
        return self.model_copy(update={"student": speculate.student(target), "train": train, **alone})

    @model_validator(mode="before")
    @classmethod
    def _sugar(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if "teacher" in value:
            if "teachers" in value:
                raise ValueError("give either teacher or teachers, not both")
            value["teachers"] = {"main": value.pop("teacher")}
        if "data" in value:
            value["data"] = expand_data(value["data"])
        for section in ("train", "evaluate", "report", "speculate", "policy"):
            # `evaluate:` without a value is an empty section, and present.
            if section in value and value[section] is None:
                value[section] = {}
        return value

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if long := next((name for name in self.teachers if len(name) > LONGEST_NAME), None):
            raise ValueError(f"the name of a teacher has at most {LONGEST_NAME} characters, and one has {len(long)}")
        if "" in self.teachers:
            raise ValueError("a teacher has no name: give it one (main, say)")
        captured = self.capture.teachers if self.capture is not None else ()
        judges = self.evaluate.asked if self.evaluate is not None else ()
        for name in (*_asked(self.generate), *captured, *_asked(self.train), *judges):
            if name not in self.teachers:
                known = ", ".join(sorted(self.teachers)) or "none"
                raise ValueError(f"teacher {name!r} is not among the teachers ({known}): add it, or name one of them")
        self._store_gives_what_is_asked()
        self._teachers_give_what_is_asked()
        if self.generate is not None and self.generate.asks:
            self.generate.check_teachers(self.teachers)
        self._task_allows()
        if self.speculate is not None:
            self._can_speculate(self.speculate)
        if self.train is not None and self.train.frequent is not None:
            self._learns_for_a_draft(self.train.frequent)
        if self.train is not None and any(isinstance(o, Medusa) and o.states for o in self.train.all_objectives):
            raise ValueError(
                "medusa with states: stored trains heads of the store's model, so in speculate.train: drop it"
            )
        if self.train is not None and self.student is None:
            raise ValueError("train needs a student: add `student: {kind: from_teacher}`, or drop the train section")
        for stage, needed in (("evaluate", self.evaluate), ("export", self.export)):
            if needed and self.train is None:
                raise ValueError(f"{stage} reads what train makes: add a train section, or drop {stage}")
        stored = self.evaluate is not None and self.evaluate.teacher == "stored"
        if stored and (reason := self._why_not_stored()) is not None:
            raise ValueError(f"evaluate.teacher: stored: {reason}")
        for settings in self.export:
            if isinstance(settings, AdapterExport) and (reason := settings.why_not_of(self.student)):
                raise ValueError(reason)
        if self.evaluate is not None and self.data.held_out == 0:
            raise ValueError("evaluate needs held-out records: set data.held_out above 0 (0.1, say)")
        return self

    def _task_allows(self) -> None:
        """Refuse sections and objectives that the task cannot use, with alternatives.

        Raises:
            ValueError: there is one.
        """
        spec, train = SPECS[self.task], self.train
        if isinstance(self.data, ImageSettings) != spec.reads_images:
            needed = "data of images (kind: arrays, idx or digits)" if spec.reads_images else "image_classification"
            raise ValueError(f"data of kind {self.data.kind!r} do not go with task {self.task!r}: use {needed}")
        if self.capture is not None:
            self._can_capture(self.capture)
        if self.generate is not None and not spec.writes:
            raise ValueError(
                f"generate needs a model that writes text, and the task is {self.task!r}: drop generate, or set "
                "task: causal_lm"
            )
        if self.evaluate is not None and self.evaluate.solve is not None and not spec.writes:
            raise ValueError(
                f"evaluate.solve has models write answers, and the task is {self.task!r}: drop it, or set task: "
                "causal_lm"
            )
        for measure in (self.evaluate.measures or ()) if self.evaluate is not None else ():
            if reason := measure.why_not(spec):
                raise ValueError(reason)
        if isinstance(self.student, Pruned) and not spec.writes:
            raise ValueError(
                f"a pruned student is a model that writes, and the task is {self.task!r}: use a student from_teacher"
            )
        if train is None:
            return
        if train.quantize is not None and not spec.reads_text:
            raise ValueError(
                f"train.quantize rounds the matrices of models of text, and the task is {self.task!r}: drop it"
            )
        if train.quantize is not None and self.student is not None and self.student.lora is not None:
            raise ValueError(
                "train.quantize rounds the weights that are trained, and lora trains others: drop student.lora, or "
                "quantize"
            )
        if train.packing and not spec.writes:
            raise ValueError("packing is for causal language models: set train.packing: false")
        if (train.refusals is not None or train.refusal_weight is not None) and not spec.writes:
            raise ValueError(
                f"train.refusals are for models that write, and the task is {self.task!r}: drop refusals and "
                "refusal_weight"
            )
        for objective in train.all_objectives:
            if reason := why_not(self.task, objective, packing=train.packing):
                raise ValueError(reason)
        if train.teacher_system is not None:
            self._views_may_differ(train)
        if train.controls and not spec.has_response:
            raise ValueError(
                "the control text_only learns the next words or the classes of the data, and a sentence embedding has "
                "neither: drop train.controls"
            )

    def _can_capture(self, capture: CaptureSettings) -> None:
        """Refuse a store of what the task's models do not give, or give differently every time.

        Raises:
            ValueError: it is one.
        """
        spec = self.spec
        if spec.masks:
            raise ValueError(
                f"{self.task} masks texts anew in every epoch, and a store is of one masking: drop capture"
            )
        if not spec.has_response and capture.response:
            raise ValueError(f"the models of task {self.task!r} give no logits: set capture.kind: features")
        teacher = self.teachers[capture.teacher]
        if isinstance(teacher, EndpointTeacher):
            _can_capture_of_server(capture, teacher)
        if spec.has_classes and capture.response - {"dense"}:
            raise ValueError(f"logits of classes are few: set capture.kind: dense, not {capture.kind}")

    def _learns_for_a_draft(self, frequent: int) -> None:
        """
        Raises:
            ValueError: a student that knows frequent tokens alone is no draft, drafts others, or learns from samples.
        """
        draft = self.speculate.model_draft if self.speculate is not None else None
        if not isinstance(draft, StudentDraft) or draft.frequent != frequent:
            raise ValueError(
                f"a student that learns {frequent:,} tokens alone is good as a draft of these: add speculate: {{draft: "
                f"{{kind: student, frequent: {frequent}}}}}, or drop train.frequent"
            )
        if self.capture is not None and "top_logprobs" in self.capture.gives:
            raise ValueError(
                f"train.frequent cuts the teacher's output layer, and a store of kind {self.capture.kind!r} has "
                "samples of all tokens: set capture: {kind: hidden}, or drop train.frequent"
            )

    def _can_speculate(self, speculate: SpeculateSettings) -> None:
        """Refuse a target that is no single local model that writes, and a draft that nothing makes.

        Raises:
            ValueError: it is one.
        """
        if not self.spec.writes:
            raise ValueError(f"speculate needs a model that writes text, and the task is {self.task!r}: drop speculate")
        if speculate.target not in self.teachers:
            known = ", ".join(sorted(self.teachers)) or "none"
            raise ValueError(f"speculate.target {speculate.target!r} is not among the teachers ({known}): name one")
        target = self.teachers[speculate.target]
        if not isinstance(target, LocalTeacher):
            raise ValueError(
                f"speculate.target is a {target.kind!r} teacher, whose layers and caches are not here: use kind: local"
            )
        if target.quantization != "none":
            raise ValueError(
                f"speculate.target has quantization: {target.quantization}, and a target decodes as its files have it: "
                "name a teacher without quantization (another one in teachers, if this is needed elsewhere)"
            )
        if isinstance(speculate.model_draft, StudentDraft) and self.train is None:
            raise ValueError("speculate.draft is the student, and nothing trains one: add a train section")
        if (heads := speculate.heads) is not None and heads.states is not None and self.capture is None:
            raise ValueError("states: stored needs a store of states: add a section capture, {kind: hidden}")
        if speculate.texts == "stored" and (reason := self._why_no_stored_texts(speculate)) is not None:
            raise ValueError(f"speculate.texts: stored: {reason}")

    def _why_no_stored_texts(self, speculate: SpeculateSettings) -> str | None:
        """Why acceptance cannot be measured on stored texts, with a fix; None if it can: the target wrote them as it
        will write, and the store has what is compared."""
        wrote, capture = self.generate, self.capture
        if not isinstance(wrote, SequenceProgram) or wrote.teacher != speculate.target:
            return f"nothing says what {speculate.target!r} writes: add a section generate of kind sequence, by it"
        if wrote.beams > 1 or wrote.top_k or wrote.verify is not None:
            return (
                "the texts are not as the target writes them: drop generate.beams, generate.top_k and generate.verify"
            )
        if speculate.temperatures != (wrote.temperature,) or speculate.top_p != wrote.top_p:
            return (
                f"the texts are at temperature {wrote.temperature:g} with top_p {wrote.top_p:g}: set "
                f"speculate.temperatures: [{wrote.temperature:g}] and speculate.top_p: {wrote.top_p:g}"
            )
        if capture is None or capture.teacher != speculate.target or not capture.response:
            return f"no store has responses of {speculate.target!r}: add a section capture of it (kind: hidden, say)"
        if not capture.any_temperature and wrote.temperature and (wrote.temperature != 1.0 or wrote.top_p < 1):
            return (
                f"a store of kind {capture.kind!r} has probabilities at temperature 1, without top_p: set "
                "capture.kind: hidden, or generate.temperature: 1 without generate.top_p"
            )
        if speculate.heads_draft is not None:
            return "heads are measured on the target's states, as it writes: leave texts out"
        return None

    def _views_may_differ(self, train: TrainSettings) -> None:
        """A system prompt for the teacher alone needs a text model, and objectives on what both views share.

        Raises:
            ValueError: the task has no such model, or an objective compares token with token.
        """
        if not self.spec.writes:
            raise ValueError(f"train.teacher_system is for causal language models, and the task is {self.task!r}")
        if not any(objective.needs().teacher for objective in train.all_objectives):
            raise ValueError("train.teacher_system: no objective reads the teacher: add forward_kl, or drop it")
        for objective in train.all_objectives:
            over = getattr(objective, "over", None)
            if over == "tokens" or (objective.needs().student & {"attention"} and objective.needs().teacher):
                fix = (
                    "set over: targets" if over == "tokens" else "use an objective on the response or on hidden states"
                )
                raise ValueError(
                    f"{objective.kind} compares every token of the student with the teacher's, and with "
                    f"train.teacher_system they see different ones: {fix}"
                )

    def asked_of_teachers(self) -> Iterator[tuple[str, str, frozenset[Capability]]]:
        """The recipe's requirements of its teachers: who requires it, which teacher, and capabilities of which one
        suffices."""
        for name in _asked(self.generate):
            yield f"generate ({getattr(self.generate, 'kind', '')})", name, frozenset({"generate"})
        for name in self.evaluate.asked if self.evaluate is not None else ():
            yield "evaluate.measures (judged)", name, frozenset({"generate"})
        if self.capture is not None:
            if isinstance(self.teachers[self.capture.teacher], EndpointTeacher):
                return  # see `_can_capture_of_server`
            for name in self.capture.teachers if self.capture.response else ():
                yield f"capture ({self.capture.kind})", name, frozenset({"head", "dense"})
            if self.capture.features:
                yield "capture.features", self.capture.teacher, frozenset({"taps"})
            return  # objectives read the store: see `_store_gives_what_is_asked`
        for objective in self.train.all_objectives if self.train is not None else ():
            for alternatives in objective.needs().teacher:
                yield objective.kind, self.required_train.teacher, alternatives

    def _store_gives_what_is_asked(self) -> None:
        """Objectives read from the store what its estimator permits, at its temperature, of its teacher.

        Raises:
            ValueError: an objective needs something else; the error names a fix.
        """
        capture, speculate = self.capture, self.speculate
        if capture is not None and capture.features == "asked" and self.train is None:
            raise ValueError(
                "capture.features: asked keeps what the objectives of train read, and there is no train: name what is "
                "kept (features: [hidden.2]), or drop features"
            )
        if capture is not None and self.train is not None:
            self._store_gives(capture, self.train, self.train.teacher)
        if capture is not None and speculate is not None and speculate.train is not None:
            self._store_gives(capture, speculate.train, speculate.target)

    def _store_gives(self, capture: CaptureSettings, train: TrainSettings, teacher: str) -> None:
        """As `_store_gives_what_is_asked`, of one training and its teacher."""
        if not any(o.needs().teacher for o in train.all_objectives):
            return
        if capture.teacher != teacher:
            raise ValueError(
                f"capture stores {capture.teacher!r}, and {teacher!r} is learned from: name the same teacher in "
                "capture.teacher and train.teacher (of a draft: speculate.target)"
            )
        for objective in train.all_objectives:
            if not all(alternatives & capture.gives for alternatives in objective.needs().teacher):
                raise ValueError(
                    f"{objective.kind} needs more of its teacher than a store of kind {capture.kind!r} keeps: "
                    + _fix_of_store(objective, capture)
                )
            at = getattr(objective, "temperature", 1.0)
            if objective.needs().teacher and not capture.any_temperature and at != capture.temperature:
                raise ValueError(
                    f"{objective.kind} is at temperature {schedule_text(at)}, and the store at {capture.temperature:g}:"
                    " set capture.temperature to the objective's (a sample has one temperature)"
                )

    def _teachers_give_what_is_asked(self) -> None:
        for who, name, alternatives in self.asked_of_teachers():
            teacher = self.teachers[name]
            if reason := cannot_give(who, teacher, alternatives, teacher.capabilities):
                raise ValueError(reason)


def cannot_give(
    who: str, teacher: TeacherSettings, alternatives: frozenset[Capability], given: frozenset[Capability]
) -> str | None:
    """Why a teacher with capabilities `given` cannot serve `who`, which needs one of `alternatives`; None if it
    can."""
    if alternatives & given:
        return None
    gives = ", ".join(sorted(given)) or "nothing"
    return (
        f"{who} needs {' or '.join(sorted(alternatives))} of its teacher, and a {teacher.kind!r} teacher gives "
        f"{gives}: use a teacher that runs here (kind: local), or an objective that learns from text (hard_ce)"
    )


def _can_capture_of_server(capture: CaptureSettings, teacher: EndpointTeacher) -> None:
    """Refuse what a server does not give.

    Raises:
        ValueError: it is asked for.
    """
    if not isinstance(capture, TopKCapture) or capture.features:
        raise ValueError("a server gives its likeliest tokens alone: set capture.kind: topk, without features")
    if teacher.prompt_logprobs is None and teacher.answer_logprobs is None:
        raise ValueError(
            "capture asks the server for log-probabilities of texts: set prompt_logprobs on the teacher (vllm, sglang, "
            "llamacpp); or answer_logprobs, if the server writes the answers itself"
        )
    if teacher.tokenizer is None:
        raise ValueError("capture asks a server by token ids: name the model's folder as the teacher's tokenizer")
    if capture.k > (most := teacher.answer_logprobs or teacher.top_logprobs):
        raise ValueError(
            f"capture.k {capture.k} is more than the server gives a token ({most}): lower it, or set "
            "top_logprobs on the teacher to what the server was started with (vLLM: --max-logprobs)"
        )
    if capture.temperature != 1.0:
        raise ValueError("a server gives log-probabilities at temperature 1: leave capture.temperature out")


def _fix_of_store(objective: ObjectiveSettings, capture: CaptureSettings) -> str:
    """What a store would have to keep for an objective."""
    alternatives = frozenset[Capability]().union(*objective.needs().teacher)
    if "taps" in alternatives:
        return "set capture.features: asked, which keeps the layers that objectives read"
    if not capture.response:
        return "set capture.kind to one that keeps responses (threshold, hidden; of classes dense)"
    return (
        "use forward_kl or soft_ce, which are linear in the teacher's probabilities, set capture.kind: hidden, which "
        "keeps whole distributions, or drop the section capture, so that the teacher runs in training"
    )


def _present(name: str, section: S | None) -> S:
    if section is None:
        raise RecipeError(f"the recipe has no {name} section", fix=f"add `{name}:` to it")
    return section


def _asked(section: GenerateSettings | TrainSettings | None) -> tuple[str, ...]:
    """The names of the teachers that a section uses."""
    if isinstance(section, TrainSettings):
        return (section.teacher,) if any(o.needs().teacher for o in section.all_objectives) else ()
    return section.asked if section is not None else ()
