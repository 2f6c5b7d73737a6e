"""The command line: reads arguments and calls one function.

The result goes to stdout and everything else to stderr. Exit codes: 0 done; 2 the user's input is wrong; 3 stopped, and
the same command goes on; 1 a bug of ours.

Whatever is raised below ends here in one sentence on stderr. Its traceback is in the run's log. Imports wait for the
command that needs them, and for its settings to be read: --help and a mistake in a file are answered at once.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tailor_ray.errors import Bug, Stopped, masked
from tailor_ray.rounds import watch as cluster_watch

if TYPE_CHECKING:
    from tailor_ray.config import RunConfig

app = typer.Typer(
    name="tailor-ray",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Distil a large model's reasoning into a small one, in rounds, on Ray.",
    epilog="Start with `tailor-ray run jobs/demo.yaml`; the same command goes on where it stopped.",
)

ledger_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, total, export and import what the teacher was asked.",
    epilog="Example: tailor-ray ledger total runs/demo",
)
app.add_typer(ledger_app, name="ledger")

LedgerFile = Annotated[Path, typer.Argument(metavar="FILE", help="Parquet file of ledger rows.")]
ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", default_factory=list, show_default=False, metavar="a.b=c", help="Override one setting; repeatable."
    ),
]
StorageOption = Annotated[str | None, typer.Option(help="Folder or filesystem URI for runs; overrides `storage`.")]
NameOption = Annotated[str | None, typer.Option(help="Name of the run; overrides `name`.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Local folder, hub id, or `tiny`.")]
TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="arithmetic, gsm8k, svamp, … or jsonl.")]
OutOption = Annotated[str, typer.Option(help="Folder for the attempts and the figures.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Run folder: a local path or a filesystem URI.")]


def _config(path: Path, overrides: list[str], storage: str | None, name: str | None) -> RunConfig:
    from tailor_ray.config import load_config

    extra = [f"{key}={value}" for key, value in (("storage", storage), ("name", name)) if value is not None]
    return load_config(path, [*overrides, *extra])


def _alone(model: str, task: str, overrides: list[str], out: str) -> RunConfig:
    from tailor_ray.config import load_config

    folder = Path(out)
    where = [f"storage={folder.parent}", f"name={folder.name}", f"student.model={model}", f"task.name={task}"]
    return load_config(None, [*where, *overrides])


@app.command(epilog="Example: tailor-ray run jobs/gsm8k.yaml --name try2 --set training.epochs=3")
def run(config: ConfigArgument, set_: Overrides, storage: StorageOption = None, name: NameOption = None) -> None:
    """Start a run, or go on where it stopped: the same command."""
    settings = _config(config, set_, storage, name)
    from tailor_ray.rounds.loop import run as run_rounds

    typer.echo(run_rounds(settings))


@app.command(epilog="Example: tailor-ray plan jobs/gsm8k.yaml --set teacher.model=gpt-4o-mini")
def plan(config: ConfigArgument, set_: Overrides, storage: StorageOption = None, name: NameOption = None) -> None:
    """Forecast requests, tokens, money and time; calls nobody."""
    settings = _config(config, set_, storage, name)
    from tailor_ray.ops.plan import plan as forecast

    typer.echo(forecast(settings))


@app.command(epilog="Example: tailor-ray status runs/demo")
def status(
    run: RunArgument,
    watch: Annotated[bool, typer.Option(help="Show it again every two seconds, until nobody holds the run.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object in place of text.")] = False,
) -> None:
    """What is done, what is under way, since when and how fast, and what it cost; of a live run or a dead one."""
    from tailor_ray.ops.status import show_status

    show_status(run, watch, json, typer.echo)


@app.command(epilog="Example: tailor-ray logs runs/demo --follow")
def logs(
    run: RunArgument,
    lines: Annotated[int, typer.Option(min=0, help="The last so many lines.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
) -> None:
    """The end of a run's log."""
    from tailor_ray.ops.status import show_log

    show_log(run, lines, follow, typer.echo)


@app.command(epilog="Example: tailor-ray report runs/demo; tailor-ray report runs/a runs/b --out compared")
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="One run folder, or several to compare.")],
    out: Annotated[str, typer.Option(help="Folder of a comparison's page.")] = "report",
) -> None:
    """(Re)write a run's report; of several runs, one page side by side."""
    from tailor_ray.layout import REPORT_PAGE
    from tailor_ray.observe.report import comparison_table, rounds_table, write_comparison, write_report
    from tailor_ray.storage import Store

    stores = [Store.open(run) for run in runs]
    if len(stores) == 1:
        typer.echo(rounds_table(write_report(stores[0])))
        typer.echo(f"report: {stores[0].uri}/{REPORT_PAGE}")
    else:
        typer.echo(comparison_table(write_comparison(stores, Store.open(out))))
        typer.echo(f"report: {Store.open(out).uri}/comparison.html")


@app.command(epilog="Example: tailor-ray exam ./my-model gsm8k --set task.path=data/gsm8k --set task.limit_train=100")
def exam(model: ModelArgument, task: TaskArgument, set_: Overrides, out: OutOption = "runs/exam") -> None:
    """Sample a model on a task's training questions and grade it: one stage alone, resumable like a run."""
    settings = _alone(model, task, set_, out)
    from tailor_ray.rounds.loop import exam_alone

    typer.echo(exam_alone(settings))


@app.command(epilog="Example: tailor-ray evaluate ./my-model svamp --set task.path=data/svamp")
def evaluate(model: ModelArgument, task: TaskArgument, set_: Overrides, out: OutOption = "runs/evaluate") -> None:
    """Greedy accuracy of a model on a task's validation and test questions: one stage alone."""
    settings = _alone(model, task, set_, out)
    from tailor_ray.rounds.loop import evaluate_alone

    typer.echo(evaluate_alone(settings))


@app.command(epilog="Example: tailor-ray grade outputs.jsonl --kind choice --column output=completion")
def grade(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSONL, CSV or parquet: question, gold, output, [label].")
    ],
    column: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=COLUMN",
            default_factory=list,
            show_default=False,
            help="Where question, gold, output, label, choices or finish_reason is found; repeatable.",
        ),
    ],
    kind: Annotated[
        str, typer.Option(help="As task.answer_kind: number, choice, yes_no, text, regex, math or python.")
    ] = "number",
    function: Annotated[str | None, typer.Option(help="For kind python: package.module:function.")] = None,
    brief: Annotated[bool, typer.Option(help="Counts and disagreements alone, no line per row.")] = False,
) -> None:
    """Grade recorded outputs, to see how the grader reads your model before anything is spent."""
    from tailor_ray.ops.grade import answer_kind, grade_file

    grade_file(file, answer_kind(kind), function, column, brief, typer.echo)


@ledger_app.command("list", epilog="Example: tailor-ray ledger list runs/demo --limit 5")
def ledger_list(
    run: RunArgument, limit: Annotated[int, typer.Option(min=0, help="Rows shown, the newest.")] = 20
) -> None:
    """The newest requests and how they ended, one JSON object per line."""
    from tailor_ray.ops import ledger

    typer.echo(ledger.list_rows(run, limit))


@ledger_app.command("total", epilog="Example: tailor-ray ledger total runs/demo")
def ledger_total(run: RunArgument) -> None:
    """Requests, tokens and dollars by round, model and outcome, one JSON object per line."""
    from tailor_ray.ops import ledger

    typer.echo(ledger.total(run))


@ledger_app.command("export", epilog="Example: tailor-ray ledger export runs/demo rows.parquet")
def ledger_export(run: RunArgument, path: LedgerFile) -> None:
    """Write all rows to one parquet file."""
    from tailor_ray.ops import ledger

    typer.echo(ledger.export(run, path))


@ledger_app.command("import", epilog="Example: tailor-ray ledger import runs/new rows.parquet")
def ledger_import(run: RunArgument, path: LedgerFile) -> None:
    """Take in another run's replies, so that the same requests are not paid for again."""
    from tailor_ray.ops import ledger

    typer.echo(ledger.take_in(run, path))


@ledger_app.command("forget", epilog="Example: tailor-ray ledger forget runs/new content_filter length")
def ledger_forget(
    run: RunArgument, outcomes: Annotated[list[str], typer.Argument(help="As `ledger total` names them.")]
) -> None:
    """Drop replies by their outcome, so that the same requests are asked again."""
    from tailor_ray.ops import ledger

    typer.echo(ledger.forget(run, outcomes))


@app.command(epilog="Example: tailor-ray submit jobs/gsm8k.yaml --address http://head:8265 --storage s3://bucket/runs")
def submit(
    config: ConfigArgument,
    set_: Overrides,
    address: Annotated[str, typer.Option(help="The Jobs API: the dashboard's address.")],
    storage: StorageOption = None,
    name: NameOption = None,
    follow: Annotated[bool, typer.Option(help="Follow the job's log to its end.")] = True,
) -> None:
    """Start or resume the same run as a Ray job."""
    settings = _config(config, set_, storage, name)
    from tailor_ray.ops.submit import submit as submit_job

    typer.echo(submit_job(settings, address, follow, lambda text: typer.echo(text, err=True)))


@app.command(epilog="Example: tailor-ray serve runs/demo --reload; tailor-ray serve runs/demo@2 --port 8001")
def serve(
    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", help="RUN[@ROUND], or a model: local folder, hub id[@REVISION] or storage URI."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the API.")] = 8000,
    route: Annotated[str, typer.Option(help="Path before /v1, to serve several students on one cluster.")] = "/",
    reload: Annotated[bool, typer.Option(help="Follow the run: go on to each newer round.")] = False,
    replicas: Annotated[int, typer.Option(min=1, help="Engines that share the requests.")] = 1,
) -> None:
    """Serve a run's student, or any model, behind an OpenAI-compatible API (Ray Serve, vLLM), until it is stopped."""
    from tailor_ray.ops.serve import serve as serve_until_stopped

    serve_until_stopped(what, host, port, route, reload, replicas, typer.echo)


@app.command(epilog="Example: tailor-ray doctor jobs/gsm8k.yaml --teacher")
def doctor(
    set_: Overrides,
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file of a run; optional.")] = None,
    teacher: Annotated[bool, typer.Option(help="Ask the teacher for one lesson too; one request is paid.")] = False,
) -> None:
    """Check what works here, and what to do where it does not: versions, engines, GPUs, storage, cluster, teacher.

    Of a CONFIG the student is asked one question; what it reads and writes, and its grade, are shown.
    """
    from tailor_ray.config import load_config

    settings = load_config(config, set_)
    from tailor_ray.ops.doctor import examine

    if not examine(settings, lambda line: typer.echo(str(line)), config is not None, teacher):
        raise typer.Exit(2)


@app.command("sandbox-teacher", hidden=True)  # its name until 0.2; read until 0.3
@app.command("mock-teacher", epilog="Example: tailor-ray mock-teacher --port 8765 --answers gsm8k/train.jsonl")
def mock_teacher(
    fault: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=SHARE", default_factory=list, show_default=False, help="A share of requests meets a fault."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8765,
    answers: Annotated[str | None, typer.Option(help="JSONL with question, answer, rationale to reply from.")] = None,
    latency: Annotated[float, typer.Option(help="Seconds before each reply.")] = 0.0,
    jitter: Annotated[float, typer.Option(help="Up to so many seconds more.")] = 0.0,
    wrong: Annotated[float, typer.Option(help="Share of requests answered wrongly.")] = 0.0,
    malformed: Annotated[float, typer.Option(help="Share of requests whose first reply is malformed.")] = 0.0,
    rpm: Annotated[float | None, typer.Option(help="Requests per minute; more get 429.")] = None,
    tpm: Annotated[float | None, typer.Option(help="Tokens per minute; more get 429.")] = None,
    key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key that clients must send.")
    ] = None,
    access_log: Annotated[str | None, typer.Option(help="JSONL file with a line per call.")] = None,
) -> None:
    """A local OpenAI-compatible teacher for demos and tests; prints its address, serves until it is stopped."""
    from tailor_ray.ops.serve import serve_mock_teacher

    serve_mock_teacher(
        host=host,
        port=port,
        faults=fault,
        key_env=key_env,
        answers=answers,
        latency_s=latency,
        jitter_s=jitter,
        wrong_share=wrong,
        malformed_share=malformed,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        access_log=access_log,
    )


@app.command("config-reference", epilog="Example: tailor-ray config-reference > settings.md")
def config_reference() -> None:
    """Print every setting with its default and what it does, as Markdown."""
    from tailor_ray.config.base import reference
    from tailor_ray.config.run import METHODS, RunConfig

    typer.echo(reference(RunConfig, METHODS))


def main() -> NoReturn:
    """Run the command line and exit with the code that design and README promise."""
    received: list[str] = []

    def stop(number: int, _: FrameType | None) -> NoReturn:
        received.append(signal.Signals(number).name)
        raise KeyboardInterrupt  # the one exception that Ray lets through from a handler

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    cluster_watch.process_is_ours = True
    threading.excepthook = sys.unraisablehook = _quietly
    try:
        if not {"", str(Path.cwd())} & set(sys.path):
            sys.path.append(str(Path.cwd()))  # where `python -m tailor_ray` finds an answer_function as well
        app(standalone_mode=True)
    except (KeyboardInterrupt, SystemExit):  # typer makes the one into the other
        if not received:
            raise
        _fail(f"stopped by {received[0]}; the same command goes on", Stopped.exit_code)
    except Exception as error:  # noqa: BLE001 — the one place where all of them end
        _explain(error)
    sys.exit(0)


def _explain(error: BaseException) -> NoReturn:
    """One sentence for a person; the traceback goes to the run's log, a bug's to a file of its own without one."""
    import logging
    import tempfile
    import traceback

    from tailor_ray.observe.faults import in_words
    from tailor_ray.observe.logs import run_log

    found, where = in_words(error), run_log()
    logging.getLogger(__name__).info("ended by %s", found, exc_info=error)
    text = str(found)
    if isinstance(found, Bug):
        if where is None:
            with tempfile.NamedTemporaryFile("w", prefix="tailor-ray-bug-", suffix=".txt", delete=False) as file:
                file.write("".join(traceback.format_exception(error)))
                where = Path(file.name)
        text += f"; please report it with {where}"
    _fail(text, found.exit_code)


def _quietly(args: Any) -> None:
    """A thread or a finalizer that failed: its frames go to the log file, for who waits for it raises the error."""
    import logging

    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        logging.getLogger(__name__).info("an error in the background", exc_info=args.exc_value)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"tailor-ray: {masked(message)}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
