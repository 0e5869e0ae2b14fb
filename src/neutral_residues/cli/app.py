"""The command line `neutral`. Commands import what they need when they run, so `--help` is fast.

Errors caused by user input are one line on standard error and exit code 2; Ctrl-C is 130.
"""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.status import Status

from neutral_residues.errors import Stopped, UserError

if TYPE_CHECKING:
    from neutral_residues.config.run import RunConfig

app = typer.Typer(
    name="neutral",
    help="Add a language or a domain to a pretrained language model without losing what it already"
    " knows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _argument(text: str) -> Any:
    return typer.Argument(help=text, show_default=False)


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text)


def _loading() -> Status:
    """Display of "loading libraries ..." for terminals, during imports, which take seconds."""
    return Console(stderr=True).status("loading libraries ...")


def _announce(line: str) -> None:
    """Print one line, before imports that take seconds; under torchrun, only in the main
    process."""
    if os.environ.get("RANK", "0") == "0":
        Console(stderr=True).print(line, highlight=False, markup=False)


RunFile = Annotated[Path, _argument("The run file (YAML).")]
Overrides = Annotated[
    list[str] | None, _argument("Settings to change, for example training.steps=200.")
]
Folder = Annotated[Path, _argument("Output folder of a run, or an extension folder.")]


@app.command()
def extend(
    run: RunFile,
    overrides: Overrides = None,
    advice: Annotated[bool, _option("Check the texts of a new run first; takes seconds.")] = True,
) -> None:
    """Train an extension as the run file says; the same command resumes it."""
    with _loading():
        config = _load_run(run, overrides)
        _announce(f"{config.method} on {config.model}, to {config.output}")
        from neutral_residues.advice.text_statistics import text_warnings
        from neutral_residues.cli.tables import print_summary, print_warnings
        from neutral_residues.results.run_folder import RunFolder
        from neutral_residues.run import extend as extend_
        from neutral_residues.training.progress import RunProgress
        from neutral_residues.training.setup import Setup, ranks

    is_main = ranks().is_main_process
    progress = RunProgress(quiet=not is_main)
    setup = Setup.of(config, tokenising=progress.tokenising)
    folder = RunFolder(setup.config.output)
    if advice and is_main and not folder.config.is_file():
        folder.check(setup.config)
        setup.prepare()
        print_warnings(text_warnings(setup), console=progress.console)
    record = extend_(setup, progress=progress)
    if is_main:
        print_summary(record, setup.config.output)


@app.command()
def compare(
    comparison: Annotated[Path, _argument("The comparison file (YAML).")],
    overrides: Annotated[
        list[str] | None,
        _argument("Settings to change, for example seeds=[0,1] or set.training.steps=200."),
    ] = None,
    plan: Annotated[
        bool, _option("Print the runs, their time and disk space; start none.", "--plan")
    ] = False,
) -> None:
    """Run every method on the same budget, rows and evaluation; the same command resumes it."""
    with _loading():
        _quiet()
        from neutral_residues.config.comparison import load_comparison

        config = load_comparison(comparison, tuple(overrides or ()))
        from neutral_residues.cli.compare import CompareDisplay, print_outcome, print_plan

    if plan:
        print_plan(config)
        return
    from neutral_residues.compare.runner import compare as compare_

    with CompareDisplay() as display:
        outcome = compare_(config, callback=display)
    print_outcome(outcome, config)
    raise typer.Exit(1 if outcome.failures else 0)


@app.command()
def methods() -> None:
    """List the methods: what trains, what a budget means, and what can be done afterwards."""
    _quiet()
    from neutral_residues.cli.methods import print_methods

    print_methods()


@app.command()
def describe(run: RunFile, overrides: Overrides = None) -> None:
    """Print what a run would do (weights, tokens, steps, memory, disk) without training."""
    with _loading():
        config = _load_run(run, overrides)
        from neutral_residues.cli.describe import print_description
    print_description(config)


@app.command()
def advise(
    run: RunFile,
    overrides: Overrides = None,
    trial_steps: Annotated[int, _option("Training steps to try; 0: none.")] = 20,
    output: Annotated[Path | None, _option("Where to write the advice (JSON).")] = None,
) -> None:
    """Estimate a run's cost and flag problems of its texts before training."""
    with _loading():
        config = _load_run(run, overrides)
        from neutral_residues.cli.advise import advise_run

    advise_run(config, trial_steps=trial_steps, output=output)


@app.command()
def vocabulary(run: RunFile, overrides: Overrides = None) -> None:
    """Print how many tokens new ones save in target text, and how many source documents change."""
    with _loading():
        config = _load_run(run, overrides)
        from neutral_residues.cli.vocabulary import print_vocabulary
    print_vocabulary(config)


@app.command()
def evaluate(
    folder: Folder,
    sets: Annotated[
        list[str] | None,
        _option("role:name=file, such as source:en=en.jsonl.gz; default: the run's own.", "--set"),
    ] = None,
    context: Annotated[int | None, _option("Tokens in a window.")] = None,
    stride: Annotated[int | None, _option("New tokens scored in each window.")] = None,
    output: Annotated[Path | None, _option("Where to write the record (JSON).")] = None,
    tasks: Annotated[
        str | None,
        _option(
            "Tasks and suites, comma-separated: quick, minimal-pairs-fr, cloze, paper-fr,"
            " file:mine_fr.jsonl, ..."
        ),
    ] = None,
    limit: Annotated[int | None, _option("At most this many items of each task.")] = None,
    num_fewshot: Annotated[int | None, _option("Solved examples before each item.")] = None,
    task_data: Annotated[
        Path | None,
        _option(
            "Folder with tasks of your own, such as mine_fr.jsonl; all of them unless --tasks"
            " names some."
        ),
    ] = None,
    chat: Annotated[
        Path | None,
        _option('Chat prompts (JSON lines with a key "prompt"); counts unchanged answers.'),
    ] = None,
    kl: Annotated[
        bool,
        _option("Measure the KL divergence from the backbone, even if the run did not.", "--kl"),
    ] = False,
    into_record: Annotated[
        bool, _option("Put what is measured into the finished run's own record.", "--into-record")
    ] = False,
) -> None:
    """Measure backbone and extended model on sets of text and on tasks; finished tasks are kept."""
    with _loading():
        _quiet()
        from neutral_residues.cli import evaluate as command

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    options: dict[str, Any] = {"tasks": names, "limit": limit, "task_data": task_data}
    options |= {"num_fewshot": num_fewshot, "chat": chat}
    apart = {"--set": sets, "--context": context, "--stride": stride}
    command.check_options(folder, **options, into_record=into_record, apart=apart)
    windows: dict[str, Any] = {"context": context, "stride": stride}
    options |= windows | {"into_record": into_record}
    record = command.evaluate_folder(folder, sets=sets or (), kl=kl, **options)
    command.save(record, folder, output, into_record=into_record)


@app.command()
def generate(
    folder: Folder,
    prompt: Annotated[str, _argument("Prompt to complete.")],
    max_new_tokens: Annotated[int, _option("Tokens to add.")] = 60,
    temperature: Annotated[float, _option("0 is greedy.")] = 0.0,
    top_p: Annotated[float, _option("Nucleus sampling, when temperature is above 0.")] = 1.0,
    seed: Annotated[int, _option("Seed of the sampling; the same for both.")] = 0,
    chat: Annotated[
        bool, _option("The prompt is the user's message in the chat template.", "--chat")
    ] = False,
) -> None:
    """Complete a prompt with the backbone and with the extended model, side by side."""
    with _loading():
        _quiet()
        from neutral_residues.cli.generate import print_both

    settings: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed}
    print_both(folder, prompt, max_new_tokens=max_new_tokens, chat=chat, **settings)


@app.command()
def compose(
    extensions: Annotated[
        list[str],
        _argument(
            "Output folders of runs or extension folders, or name=folder; or a folder of several."
        ),
    ],
    how: Annotated[str, typer.Option(help="route, inhibit, sum or average.", show_default=False)],
    output: Annotated[Path, typer.Option(help="New folder to write.", show_default=False)],
    over: Annotated[
        int | None, _option("Tokens over which gates are compared; default: 32, for inhibit 1.")
    ] = None,
) -> None:
    """Combine several extensions of one backbone in a folder that the other commands can use.

    \b
    route     at each token, the one with the largest gate over the last tokens
    inhibit   at each token, the one with the largest gate at this token
    sum       the sum of all, each with its own gate
    average   one extension with their mean weights, if all have the same start
    """
    with _loading():
        _quiet()
        from neutral_residues.cli.compose import compose_folders

    compose_folders(extensions, output, how=how, over=over)


@app.command()
def export(
    folder: Folder,
    to: Annotated[str, typer.Option("--to", help="Name of a form above.", show_default=False)],
    output: Annotated[Path, typer.Option(help="New folder to write.", show_default=False)],
    dtype: Annotated[
        str, _option("Type of the stored weights: float32, bfloat16, float16.")
    ] = "float32",
    text: Annotated[
        str, _option("Target text for the check; needed where random tokens open no gate.")
    ] = "",
) -> None:
    """Write an extension in a form that other programs load, and check it against the live model.

    \b
    transformers   any extension, as a model folder with its own code
    qwen2_moe      a stock model: neutral-sigmoid with head_rank: 0,
                   on Llama, Mistral, Ministral, Qwen2 or Gemma
    qwen3_next     the same on Qwen3
    dense          the backbone's own architecture: a gate-less adapter, or LoRA
    safetensors    the adapter alone, with its formula
    """
    with _loading():
        _quiet()
        from neutral_residues.cli.export import export_folder

    export_folder(folder, output, to=to, dtype=dtype, text=text)


@app.command()
def calibrate(
    folder: Folder,
    on: Annotated[
        list[str] | None,
        _option("source:name=file, held-out text like what must not change; can be repeated."),
    ] = None,
    at_most: Annotated[str, _option("Largest share that is allowed, as 1% or 0.01.")] = "1%",
    confidence: Annotated[
        str,
        _option(
            "How sure the bound is, as 95% or 0.95; average: it holds on average over"
            " calibrations, which needs less text."
        ),
    ] = "95%",
    promise: Annotated[
        str,
        _option(
            "What is bounded: tokens on which a gate opens, or documents that get worse by more"
            " than --rise."
        ),
    ] = "tokens",
    rise: Annotated[
        float,
        _option("With --promise documents: rise of bits per byte, in %, from which one is worse."),
    ] = 1.0,
    group_by: Annotated[
        str | None,
        _option("Field that names a document's source (book, article, site), the unit counted."),
    ] = None,
    cost_on: Annotated[
        list[str] | None, _option("target:name=file to measure the cost on; default: the run's.")
    ] = None,
    form: Annotated[
        str, _option("cut: an open gate keeps its size; shift: it loses the threshold.")
    ] = "cut",
    over: Annotated[
        int | None,
        _option(
            "Compare the mean gate over this many tokens with the threshold; default: 32 for a"
            " gate that reads the text, else 1."
        ),
    ] = None,
    context: Annotated[int | None, _option("Tokens in a window.")] = None,
    stride: Annotated[int | None, _option("New tokens scored in each window.")] = None,
    remove: Annotated[bool, _option("Remove the thresholds again.", "--remove")] = False,
) -> None:
    """Set thresholds on a finished extension's gates that bound how often they open on source text.

    The bound comes with stated confidence; nothing is trained.
    """
    with _loading():
        _quiet()
        from neutral_residues.calibration.calibrate import wanted_of
        from neutral_residues.cli import calibrate as command

    if remove:
        command.remove(folder)
        return
    wanted = wanted_of(
        at_most=command.share_of(at_most, "--at-most"),
        confidence=command.confidence_of(confidence),
        kind=promise,
        rise_percent=rise,
        form=form,
        over=over,
    )
    texts: dict[str, Any] = {"on": on or (), "group_by": group_by, "cost_on": cost_on or ()}
    command.calibrate_folder(folder, wanted, **texts, context=context, stride=stride)


@app.command()
def monitor(
    folder: Folder,
    file: Annotated[Path, _argument("Text: .txt, .jsonl, .tsv (also .gz, .zst) or .parquet.")],
    output: Annotated[
        Path | None, _option("Where to write a line of JSON for each document.")
    ] = None,
) -> None:
    """Compare new text with a calibration: how often gates open, which documents are unlike it."""
    with _loading():
        _quiet()
        from neutral_residues.cli.monitor import monitor_file

    monitor_file(folder, file, output)


@app.command()
def report(
    paths: Annotated[list[Path], _argument("Records, benchmarks, folders of runs or comparisons.")],
    output: Annotated[
        Path | None,
        _option("Output folder; default: report/ in the folder given, else runs/report."),
    ] = None,
) -> None:
    """Write an HTML page about runs: learning, forgetting, cost. Needs no network and no torch."""
    from neutral_residues.cli.lines import print_line
    from neutral_residues.report.build import write_report

    written, console = write_report(paths, output), Console()
    for verdict in written.verdicts:
        console.print(verdict, highlight=False, markup=False)
    if written.num_unfinished:
        console.print(f"{written.num_unfinished} runs failed or are not done", highlight=False)
    print_line(f"\npage: {written.page}", console=console)


@app.command()
def demo(
    output: Annotated[Path, _option("Folder for the demo's runs.")] = Path("runs/demo"),
) -> None:
    """Teach an English model French with neutral residues and by fine-tuning, and show both."""
    _quiet()
    from neutral_residues.demo.run import run_demo

    run_demo(output)


def _load_run(run: Path, overrides: list[str] | None) -> "RunConfig":
    _quiet()
    from neutral_residues.config.run import load_run

    return load_run(run, tuple(overrides or ()))


def _quiet() -> None:
    """Turn off progress bars and warnings of libraries, which would disturb our own display."""
    import logging
    import warnings

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Set explicitly, because tokenizers otherwise warns when data loader processes are forked.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    for name in ("torch.distributed", "bitsandbytes", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def main() -> None:
    """Entry point: prints errors caused by user input in one line, and handles SIGTERM like
    Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, Stopped) as stopped:
        print(str(stopped) or "stopped", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
