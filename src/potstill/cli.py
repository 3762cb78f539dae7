"""The command line: one thin verb per stage. Imports nothing heavy, so that `--help` answers at once.

Exit codes: 0 done; 2 a mistake of the user; 3 refused by the gate on licences and terms; 1 a defect of potstill;
130 interrupted; 141 nobody reads standard output any more.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TextIO, cast

import typer

from potstill.console import GuardedOutput, emit, emit_json
from potstill.errors import MissingExtra, OutputClosed, OutputError, PotstillError, RecipeError, UserError, printable

if TYPE_CHECKING:
    from potstill.console import Console
    from potstill.pipeline import Status
    from potstill.recipe import Recipe

app = typer.Typer(
    name="potstill",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it: train.objectives.0.weight=3", show_default=False),
]
RunFolder = Annotated[Path | None, typer.Option("--run", metavar="DIR", help="The run's folder [default: runs/<name>]")]
Force = Annotated[bool, typer.Option("--force", help="Run fresh stages again.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Compare every byte of what earlier stages wrote with its digest.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines, one object a line; the result last.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        emit(f"potstill {version('potstill')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Distil a model into a smaller one, and say what was lost on the way."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to put recipe.yaml and prompts.jsonl.")] = Path(),
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME", help="A recipe that comes with potstill, with the files it names."),
    ] = None,
) -> None:
    """Write a recipe to start from, and a few prompts."""
    from potstill.init import write_starter

    for path in write_starter(folder, recipe):
        emit(f"wrote {path}")
    emit(f"next: potstill check {folder / 'recipe.yaml'}")


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    run: RunFolder = None,
    probe: Annotated[bool, typer.Option("--probe", help="Load the models and try one batch.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say beforehand whether a recipe works, and what it costs."""
    from potstill.check import check_recipe, probe_recipe
    from potstill.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    findings = check_recipe(loaded)
    if probe and not findings.errors:
        findings += probe_recipe(loaded, _console(json, quiet))
    if json:
        emit_json(findings.to_dict())
    else:
        emit(findings.text())
    if findings.errors:
        raise typer.Exit(findings.exit_code)


@app.command(name="run")
def run_command(
    recipe: RecipePath,
    overrides: Overrides = None,
    run: RunFolder = None,
    force: Force = False,
    verify: Verify = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe's stages: skip fresh ones, continue the others."""
    _run(recipe, overrides, run, None, force, verify, json, quiet, dry_run)


@app.command()
def generate(
    recipe: RecipePath,
    overrides: Overrides = None,
    run: RunFolder = None,
    force: Force = False,
    verify: Verify = False,
    preview: Annotated[
        int | None,
        typer.Option("--preview", metavar="N", min=1, help="Show the first N prompts with their answers, and stop."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Have the teacher answer the prompts."""
    if preview is not None:
        _preview(recipe, overrides, run, preview, json, quiet)
        return
    _run(recipe, overrides, run, "generate", force, verify, json, quiet)


def _stage_verb(name: str, does: str) -> None:
    """Add a verb that runs a stage, and has no option of its own."""

    @app.command(name=name, help=does)
    def verb(
        recipe: RecipePath,
        overrides: Overrides = None,
        run: RunFolder = None,
        force: Force = False,
        verify: Verify = False,
        json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        _run(recipe, overrides, run, name, force, verify, json, quiet)


@app.command()
def capture(
    recipe: RecipePath,
    overrides: Overrides = None,
    run: RunFolder = None,
    force: Force = False,
    verify: Verify = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much an earlier store saves; do nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Store the teacher's distributions, to train without it."""
    _run(recipe, overrides, run, "capture", force, verify, json, quiet, dry_run)


_stage_verb("train", "Train the student, and its controls.")
_stage_verb("evaluate", "Measure on held-out records what was kept and what was lost.")


@app.command()
def report(
    recipe: RecipePath,
    overrides: Overrides = None,
    run: RunFolder = None,
    force: Force = False,
    verify: Verify = False,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Set finished runs side by side: potstill report --compare runs/a runs/b"),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the report page and the model card."""
    if compare:
        from potstill.sweep.side_by_side import compare_runs

        page = compare_runs([recipe, *map(Path, overrides or ())], run or Path("runs") / "comparison")
        if json:
            emit_json({"event": "result", "comparison": str(page)})
        else:
            emit(f"comparison: {page}")
        return
    _run(recipe, overrides, run, "report", force, verify, json, quiet)


_stage_verb("export", "Write the student in the formats that the recipe names.")


@app.command()
def speculate(
    recipe: RecipePath,
    overrides: Overrides = None,
    run: RunFolder = None,
    force: Force = False,
    verify: Verify = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make the teacher faster by a draft, or say why not."""
    _run(recipe, overrides, run, "speculate", force, verify, json, quiet, dry_run)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep, a YAML file.", show_default=False)],
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Where its runs are [default: runs/sweep/<name>]")
    ] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="ARM", help="Run this arm alone.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is there and what would run.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe in several arms and seeds: compare, or fit a law."""
    from potstill.sweep.file import load_sweep
    from potstill.sweep.runs import FOLDER, is_fresh, planned, run_sweep

    loaded = load_sweep(file)
    folder = run or FOLDER / loaded.name
    if dry_run:
        states = {made.folder.name: is_fresh(made) for made in planned(loaded, folder, only)[1]}
        if json:
            emit_json({"event": "result", "dry_run": True, "fresh": states})
        else:
            for name, fresh in states.items():
                emit(f"{name}: {'is there' if fresh else 'would run'}")
        return
    with _continued_later():
        result, text = run_sweep(loaded, _console(json, quiet), folder=folder, only=only)
    if json:
        emit_json({"event": "result", **result})
    else:
        emit(text)
        emit(f"result: {folder / 'result.json'}")
        emit(f"plot: {folder / 'plot.svg'}")


@app.command()
def show(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")], json: Json = False) -> None:
    """Print what is in a run."""
    from potstill.show import describe_run, print_run

    facts = describe_run(run)
    if json:
        emit_json(facts)
    else:
        print_run(facts)


@app.command()
def cost(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    given: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="Inputs: tokens_per_day=5e6", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Say what a token costs, and when distilling pays."""
    from potstill.cost.inputs import economics_of_run
    from potstill.cost.text import lines_of, to_dict

    economics = economics_of_run(run, given or ())
    if json:
        emit_json({"event": "result", "run": str(run), **to_dict(economics)})
    else:
        emit("\n".join(lines_of(economics)))


Sealed = Annotated[Path, typer.Argument(metavar="DIR", help="A folder, such as runs/x/export.huggingface.")]


@app.command()
def sign(
    folder: Sealed,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="PEM", help="Your private key; without one nothing is signed.")
    ] = None,
) -> None:
    """Write an export's bills of material, and sign it."""
    from potstill.sign.seal import seal

    for path in seal(folder, key):
        emit(f"wrote {path}")


@app.command(name="verify")
def verify_command(
    folder: Sealed,
    key: Annotated[Path | None, typer.Option("--key", metavar="PEM", help="The signer's public key.")] = None,
) -> None:
    """Say whether a signed export is as it was signed."""
    from potstill.sign.seal import verify

    for line in verify(folder, key):
        emit(line)


@app.command()
def chat(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a model's.")],
    prompt: Annotated[
        str | None, typer.Argument(help="Answer this and end; standard input where that is no terminal.")
    ] = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="The run's teacher answers beside its student.")] = False,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A system prompt.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="The most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Talk to a run's student in the terminal."""
    from potstill.chat.speaker import student_of, teacher_of
    from potstill.chat.terminal import show, talk, whole_characters
    from potstill.types import Sampling

    once = prompt is not None or json or not (sys.stdin.isatty() and sys.stdout.isatty())
    text = whole_characters(prompt if prompt is not None else sys.stdin.read().strip()) if once else ""
    if once and not text:
        raise UserError("there is nothing to answer", fix='potstill chat RUN "your text"')
    console, sampling = _console(json, quiet), Sampling(tokens, temperature)
    opened = [student_of(run, system, console)] + ([teacher_of(run, system, console)] if teacher else [])
    if json:
        emit_json({"event": "result", **{one.role: "".join(one.answer(text, sampling, seed)) for one in opened}})
    elif once:
        show(opened, text, sampling, seed)
    else:
        talk(opened, sampling, seed)


@app.command()
def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, a model's, or a GGUF file.")],
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="NAME", help="transformers or llama.cpp [default: what is there]")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port, on 127.0.0.1.")] = 8000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command, and start nothing.")] = False,
    json: Json = False,
) -> None:
    """Serve a run's student by transformers serve or llama.cpp."""
    from potstill.serve import run_server, server_for

    server = server_for(run, engine, port)
    if json:
        facts = {"command": server.command, "environment": server.environment, "dry_run": dry_run}
        emit_json({"event": "result", **facts, "address": server.address, "model": server.model})
    else:
        emit(f"{server.text}\naddress: {server.address}\nmodel: {server.model}")
    if not dry_run:
        run_server(server)


RunsFolder = Annotated[Path, typer.Argument(metavar="[RUNS]", help="The folder of runs; it is made if there is none.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="The port; where it is in use, the next one.")]
Open = Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")]


@app.command()
def studio(runs: RunsFolder = Path("runs"), port: Port = 8765, open_browser: Open = False) -> None:
    """Look at runs in the browser: live, side by side, in detail."""
    _serve(runs, port, "", open_browser)


learn = typer.Typer(
    invoke_without_command=True, help="Learn distillation by doing it: four lessons, labs, a test. In the browser."
)
app.add_typer(learn, name="learn")
LearnRuns = Annotated[
    Path, typer.Option("--runs", metavar="DIR", help="The folder of runs, and of what you have done.")
]


@learn.callback()
def learn_pages(
    context: typer.Context,
    runs: LearnRuns = Path("runs"),
    port: Port = 8765,
    open_browser: Open = False,
    tutor: Annotated[
        str | None,
        typer.Option(
            "--tutor",
            metavar="URL|local",
            help="An OpenAI-compatible server, up to /v1 (key: POTSTILL_TUTOR_KEY); or a model of this machine.",
        ),
    ] = None,
    tutor_model: Annotated[str, typer.Option("--tutor-model", metavar="NAME", help="The tutor's model.")] = "",
) -> None:
    """Learn distillation by doing it: four lessons, labs, a test. In the browser."""
    context.obj = runs
    if context.invoked_subcommand is None:
        _serve(runs, port, "learn", open_browser, tutor, tutor_model)


@learn.command(name="run")
def learn_run(
    context: typer.Context,
    lab: Annotated[int, typer.Argument(min=1, max=4, help="The lab's number.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    step: Annotated[list[str] | None, typer.Option("--step", help="This step alone; may be given again.")] = None,
    fields: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A field of a step.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Do the steps of a lab without a browser."""
    _studio_import()
    from potstill.studio.course.command import run_lab

    given = dict(field.partition("=")[::2] for field in fields or ())
    try:
        outcomes = run_lab(
            context.obj, lab, step or (), given, _console(json, quiet), ask=None if yes else typer.confirm
        )
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted", fix="the same command continues where it stopped") from error
    if json:
        emit_json({"event": "result", "lab": lab, "steps": outcomes})
    if not all(outcome["passed"] for outcome in outcomes.values()):
        raise typer.Exit(UserError.exit_code)


@learn.command(name="export")
def learn_export(
    context: typer.Context,
    lab: Annotated[int, typer.Argument(min=1, max=4, help="The lab's number.")],
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="A new folder [default: lab-N]")] = None,
) -> None:
    """Write what a lab trained as recipes, with their data and a script that runs them in order."""
    _studio_import()
    from potstill.studio.course.takeaway import export

    folder = to or Path(f"lab-{lab}")
    for path in export(context.obj, lab, folder):
        emit(f"wrote {path}")
    emit(f"next: cd {folder} && sh lab-{lab}.sh")


def _serve(
    runs: Path, port: int, first_page: str, open_browser: bool, tutor: str | None = None, tutor_model: str = ""
) -> None:
    _studio_import()
    from potstill.studio.server import serve
    from potstill.studio.tutor import Endpoint, LocalModel

    model: Endpoint | LocalModel | None = None
    if tutor == "local":
        model = LocalModel(tutor_model or "smollm2-135m-instruct")
    elif tutor is not None:
        if not tutor.startswith(("http://", "https://")) or not tutor_model:
            raise UserError(
                "the tutor needs an address and a model",
                fix="--tutor http://…/v1 --tutor-model NAME, or --tutor local for a model of this machine",
            )
        model = Endpoint(tutor, tutor_model)
    serve(runs, port, first_page, open_browser=open_browser, tutor=model)


def _studio_import() -> None:
    """Raises: MissingExtra."""
    from importlib.util import find_spec

    for package in ("starlette", "uvicorn", "markdown_it", "bm25s"):
        if find_spec(package) is None:
            raise MissingExtra(package, "studio", "the studio")


def _preview(recipe: Path, overrides: list[str] | None, run: Path | None, count: int, json: bool, quiet: bool) -> None:
    from potstill.generate.preview import preview, preview_text
    from potstill.pipeline import default_run, open_run, prepare_models
    from potstill.policy.gate import rulings_on
    from potstill.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    if loaded.generate is None:
        raise RecipeError("the recipe has no generate section", where=str(recipe), fix="add `generate:` to it")
    rulings_on(loaded, "records").refuse()
    folder, console = run or default_run(loaded), _console(json, quiet)
    with open_run(loaded, folder):
        if prepare_models(loaded, console):
            rulings_on(loaded, "records").refuse()
        found = preview(loaded, folder, count, console)
    if json:
        emit_json({"event": "result", **found})
    else:
        emit(preview_text(found))


class Interrupted(PotstillError):
    """Ctrl-C while a stage was at work."""

    exit_code = 130


@contextmanager
def _continued_later() -> Iterator[None]:
    """Turns Ctrl-C into an error that says how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted", fix="the same command continues where it stopped") from error


def _run(
    recipe: Path,
    overrides: list[str] | None,
    run: Path | None,
    verb: str | None,
    force: bool,
    verify: bool,
    json: bool,
    quiet: bool,
    dry_run: bool = False,
) -> None:
    from potstill.pipeline import default_run, plan, run_recipe
    from potstill.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    folder = run or default_run(loaded)
    lines: list[str] = []
    if dry_run:
        every = plan(loaded, folder)
        statuses = [s for s in every if verb in (None, s.stage.partition(".")[0])]
        lines = _forecasts(loaded, folder, every) if verb == "capture" else []
    else:
        with _continued_later():
            statuses = run_recipe(loaded, folder, console=_console(json, quiet), verb=verb, force=force, verify=verify)
    if json:
        stages = [{"stage": s.stage, "state": s.state, "seconds": round(s.seconds, 1)} for s in statuses]
        found = _speculation(folder) if verb == "speculate" and not dry_run else {}
        forecasts = {"forecasts": lines} if lines else {}
        emit_json({"event": "result", "run": str(folder), "dry_run": dry_run, "stages": stages, **found, **forecasts})
        return
    if dry_run:
        for status in statuses:
            emit(f"{status.stage:<24} {'skip: fresh' if status.state == 'fresh' else 'would run: ' + status.state}")
        for line in lines:
            emit(line)
        return
    page = folder / "report" / "report.html"
    if verb in (None, "report") and page.is_file():
        emit(f"report: {page}")
    for exported in sorted(folder.glob("export.*")) if verb in (None, "export") else ():
        emit(f"export: {exported}")


def _forecasts(recipe: Recipe, run: Path, statuses: Sequence[Status]) -> list[str]:
    """What each capture that is not fresh takes over. Nothing before its records are written."""
    from potstill.capture.stage import forecast

    if recipe.capture is None or any(s.stage == "generate" and s.state != "fresh" for s in statuses):
        return []
    due = {s.stage for s in statuses if s.state != "fresh"}
    return [forecast(recipe, run, n) for n, name in enumerate(recipe.capture.stages) if name in due]


def _speculation(folder: Path) -> dict[str, object]:
    from dataclasses import asdict

    from potstill.speculation import load_speculation

    return {"speculation": asdict(load_speculation(folder / "speculate"))}


def _console(json: bool, quiet: bool) -> Console:
    from potstill.console import Console

    return Console("json" if json else "quiet" if quiet else None)


def main(arguments: list[str] | None = None) -> None:
    """The entry point. A mistake of the user never prints a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal or locale that cannot show a character gets its escape, not an exception.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with redirect_stdout(cast(TextIO, GuardedOutput(sys.stdout))) if sys.stdout is not None else nullcontext():
            app(arguments)
    except PotstillError as error:
        _fail(error, wants_json="--json" in (arguments if arguments is not None else sys.argv))
    except Exception:  # noqa: BLE001 - everything else is a defect of potstill, and says so
        print(printable(traceback.format_exc()), file=sys.stderr, end="")
        print("this is a defect of potstill: please report it with the lines above", file=sys.stderr)
        sys.exit(1)
    finally:
        _close_broken_stdout()


def _fail(error: PotstillError, *, wants_json: bool) -> NoReturn:
    if isinstance(error, OutputClosed):
        sys.exit(error.exit_code)
    if wants_json and not isinstance(error, OutputError):
        with suppress(OutputClosed, OutputError):
            facts = {"event": "error", "what": error.what, "where": error.where, "fix": error.fix}
            emit_json({**facts, "exit_code": error.exit_code})
    else:
        print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def _close_broken_stdout() -> None:
    """Flush standard output now: Python flushes once more at exit and would print a second message about the same
    error."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
