"""Minimal pairs: two sentences that differ in one point of grammar; the model should find the right
one more likely.

A file is JSON lines, NAME.LANGUAGE.jsonl or .jsonl.gz, each line {"good": ..., "bad": ..., "uid":
...}: `uid` names the construction. The package contains a sample of BLiMP (English) and CLAMS
(English, French, German); files in a folder of the user's take precedence. `clams.fr.jsonl.gz` is
the task clams-fr.

Where we choose: a sentence's score is its whole log-likelihood, its first token included, after the
token that starts a text (lm-eval: a choice after an empty prompt and an empty delimiter). The wrong
sentence comes first, so that a model which cannot tell the two apart gets 0, not 1. Items are
shuffled with a fixed seed, so that a limit takes a fair sample.
"""

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from neutral_residues.errors import UserError
from neutral_residues.evaluation.tasks.local_task import Item, LocalTask, multiple_choice
from neutral_residues.files import disk_errors

SHIPPED = Path(__file__).parent / "data"
FILE = re.compile(r"(?P<name>\w+)\.(?P<language>[a-z]{2,3})\.jsonl(\.gz)?")
FIELDS = ("good", "bad", "uid")
SEED = 0


def pairs_task(name: str, file: Path) -> LocalTask:
    """The task over one file of pairs; errors as of `read_pairs`."""
    config = multiple_choice(
        name, prompt="", choices=lambda item: [item["bad"], item["good"]], answer=1
    )
    return LocalTask(config, read_pairs(file))


def read_pairs(file: Path) -> list[Item]:
    """All pairs of a file, shuffled with a fixed seed; a UserError if it cannot be read, a line is
    not a pair, or there are fewer than two."""
    lines = enumerate(_lines(file), start=1)
    pairs = [_pair(file, number, line) for number, line in lines if line.strip()]
    if len(pairs) < 2:
        got, do = f"{len(pairs)} pairs", "name another file"
        raise UserError(f"no items in {file}", got=got, allowed="two or more", do=do)
    random.Random(SEED).shuffle(pairs)
    return pairs


def pair_files(folder: Path | None = None) -> dict[str, Path]:
    """Task name, for example "clams-fr", -> its file; those in `folder` replace those that ship. A
    UserError if it is not a folder, or holds no pairs."""
    shipped = _pair_files_in(SHIPPED)
    if folder is None:
        return shipped
    if not folder.is_dir():
        allowed = "a folder with NAME.LANGUAGE.jsonl.gz files"
        raise UserError("task_data is not a folder", got=str(folder), allowed=allowed)
    with disk_errors(folder):
        own = _pair_files_in(folder)
    if not own:
        allowed = "files NAME.LANGUAGE.jsonl or .jsonl.gz"
        raise UserError(f"no minimal pairs in {folder}", allowed=allowed)
    return shipped | own


def language_of(task: str) -> str:
    """The language of a task of minimal pairs, as two letters."""
    return task.rpartition("-")[2]


def _pair_files_in(folder: Path) -> dict[str, Path]:
    matches = [(FILE.fullmatch(path.name), path) for path in sorted(folder.iterdir())]
    return {f"{match['name']}-{match['language']}": path for match, path in matches if match}


def _lines(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with disk_errors(path), opened(path, "rt", encoding="utf-8") as file:
            yield from file
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged", got=str(error), do="fetch it again") from error


def _pair(path: Path, number: int, line: str) -> Item:
    where = f"{path} line {number}"
    try:
        item = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON", got=str(error), do="fix this line") from error
    entries = item.items() if isinstance(item, dict) else ()
    texts = {key: text for key, text in entries if isinstance(text, str)}
    if not all(texts.get(field, "").strip() for field in FIELDS):
        allowed = '{"good": ..., "bad": ..., "uid": ...}'
        raise UserError(f"{where} is not a pair", got=line.strip()[:60], allowed=allowed)
    return texts
