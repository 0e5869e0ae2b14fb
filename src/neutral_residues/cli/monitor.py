"""`neutral monitor`: compares new text with the calibration of an extension."""

import json
from pathlib import Path

from rich.console import Console
from rich.text import Text

from neutral_residues.calibration.monitor import TextGates, thresholds_of, unlike, watch
from neutral_residues.cli.tables import new_table
from neutral_residues.config.data import Corpus
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.errors import UserError
from neutral_residues.evaluation.evaluate_saved import evaluation_streams, windows_for
from neutral_residues.evaluation.saved import Saved, load_saved
from neutral_residues.files import write_text
from neutral_residues.results.calibration import read_calibration
from neutral_residues.training.progress import RunProgress

LEVEL = 0.05
MOST_SHOWN = 5


def monitor_file(folder: Path, file: Path, output: Path | None) -> None:
    """Print how often gates open on the documents of a file, and which documents are unlike the
    calibration text. Writes a line of JSON per document to `output`, if given."""
    console, saved = Console(), load_saved(folder)
    if not hasattr(saved.model, "peft_config"):
        raise UserError(f"{folder} is not an extension with gates")
    thresholds = thresholds_of(saved.model)
    calibration = read_calibration(saved.weights, weights=thresholds.weights)
    corpus = Corpus.model_validate({"name": "text", "role": "source", "path": file})
    (stream,) = evaluation_streams(saved, [corpus], RunProgress(console).tokenising)
    found = watch(saved.model, stream, windows_for(saved, None, None), calibration)
    if output is not None:
        write_text(output, "".join(f"{line}\n" for line in _lines(found)))
    console.print(f"[bold]{calibration.promise.sentence}[/bold]\n", highlight=False)
    for line in summary(found):
        console.print(line, highlight=False)
    _print_most_unlike(saved, stream, found, console)


def summary(found: list[TextGates]) -> list[str]:
    """Summarise open gates and p-values of all documents in one or two lines."""
    num_tokens = sum(text.num_tokens for text in found)
    is_open = sum(text.open_share * text.num_tokens for text in found)
    mean = sum(text.open_share for text in found) / len(found)
    compared = sum(text.p_value is not None for text in found)
    lines = [
        f"{len(found):,} documents, {num_tokens:,} tokens; a gate opens on"
        f" {100 * is_open / num_tokens:.2f} % of them, {100 * mean:.2f} % of a document on average"
    ]
    if compared:
        share = len(unlike(found, LEVEL)) / compared
        lines.append(
            f"unlike what was calibrated on (p up to {LEVEL:g}): {100 * share:.1f} % of documents,"
            f" {100 * LEVEL:g} % at most if they were like it"
        )
    return lines


def _print_most_unlike(
    saved: Saved, stream: TokenStream, found: list[TextGates], console: Console
) -> None:
    worst = unlike(found, LEVEL)[:MOST_SHOWN]
    if not worst:
        return
    table = new_table("most unlike", ["begins"], ["document", "p", "open", "tokens"])
    for number in worst:
        text = found[number]
        begin = Text(stream.document_text(number, saved.tokenizer, max_tokens=16))
        share = f"{100 * text.open_share:.1f} %"
        table.add_row(begin, f"{number}", f"{text.p_value:.4f}", share, f"{text.num_tokens:,}")
    console.print(table)


def _lines(found: list[TextGates]) -> list[str]:
    """A line of JSON for each document."""
    return [json.dumps({"document": number, **vars(text)}) for number, text in enumerate(found)]
