"""Minimal pairs: two sentences that differ in one point of grammar; the model should find the right
one more likely.

A file is JSON lines, NAME.LANGUAGE.jsonl or .jsonl.gz, each line {"good": ..., "bad": ..., "uid":
...}: `uid` names the construction. With the package comes a sample of BLiMP (English) and CLAMS
(English, French, German); a folder with full files, or files of one's own, goes before it.
`clams.fr.jsonl.gz` is the task clams-fr.

Where we choose: a sentence's score is its whole log-likelihood, its first token included, after the
token that starts a text (lm-eval: a choice after an empty prompt and an empty delimiter). The wrong
sentence stands first, so that a model which cannot tell the two apart gets 0, not 1. Items are
shuffled with a fixed seed, so that a limit takes a fair sample. No torch.
"""

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neutral_residues.errors import UserError
from neutral_residues.files import disk_errors

SHIPPED = Path(__file__).parent / "data"
FILE = re.compile(r"(?P<name>\w+)\.(?P<language>[a-z]{2,3})\.jsonl(\.gz)?")
FIELDS = ("good", "bad", "uid")
SEED = 0


def pair_files(folder: Path | None = None) -> dict[str, Path]:
    """Task name, for example "clams-fr", -> its file; those in `folder` go before those that ship.

    Raises:
        UserError: if `folder` is none, or holds no pairs.
    """
    shipped = _pair_files_in(SHIPPED)
    if folder is None:
        return shipped
    if not folder.is_dir():
        raise UserError(
            "task_data is no folder",
            got=str(folder),
            allowed="a folder with NAME.LANGUAGE.jsonl.gz files",
        )
    with disk_errors(folder):
        own = _pair_files_in(folder)
    if not own:
        raise UserError(
            f"no minimal pairs in {folder}", allowed="files NAME.LANGUAGE.jsonl or .jsonl.gz"
        )
    return shipped | own


def language_of(task: str) -> str:
    """The language of a task of minimal pairs, as two letters."""
    return task.rpartition("-")[2]


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """All pairs of a file, shuffled with a fixed seed.

    Raises:
        UserError: if it cannot be read, a line is no pair, or there are fewer than two.
    """
    items = [
        _pair(path, number, line)
        for number, line in enumerate(_lines(path), start=1)
        if line.strip()
    ]
    if len(items) < 2:
        raise UserError(
            f"no items in {path}",
            got=f"{len(items)} pairs",
            allowed="two or more",
            do="name another file",
        )
    random.Random(SEED).shuffle(items)
    return items


def pairs_task(name: str) -> dict[str, Any]:
    """The configuration of an lm-eval task over such pairs, without its data."""
    return {
        "task": name,
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "",
        "target_delimiter": "",
        "doc_to_choice": lambda doc: [doc["bad"], doc["good"]],
        "doc_to_target": 1,
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }


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


def _pair(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise UserError(
            f"{path} line {number} is no JSON", got=str(error), do="mend that line"
        ) from error
    if not isinstance(item, dict) or not all(
        isinstance(item.get(key), str) and item[key].strip() for key in FIELDS
    ):
        raise UserError(
            f"{path} line {number} is no pair",
            got=line.strip()[:60],
            allowed='{"good": ..., "bad": ..., "uid": ...}',
        )
    return {key: value for key, value in item.items() if isinstance(value, str)}
