"""Tasks from files: those in this package, in a folder of the user, and single files.

A file contains JSON lines, an item in each, all in the same form (`item_forms.py`), plain or
compressed with gzip. A task is named after its file, whose name ends with the language:

    NAME_LANG.jsonl.gz            the task NAME_LANG, for example hellaswag_en
    NAME.LANG.jsonl.gz            minimal pairs: the task NAME-LANG, for example clams-fr
    NAME_LANG.examples.jsonl.gz   few-shot examples of that task

The package contains a sample of BLiMP (English) and CLAMS (English, French, German) as minimal
pairs; files in the user's folder take precedence.

Where we choose: few-shot examples come from the file of examples if there is one, as lm-eval takes
them from a training or validation split; else from the other items of the file, as lm-eval does if
fewshot_split is the test split. The item itself is never among them. Items keep their order, so
that a limit selects the same ones as in lm-eval; minimal pairs, which are sorted by construction,
are shuffled with a fixed seed, so that a limit selects a random sample.
"""

import random
import re
from pathlib import Path

from neutral_residues.data.lines import iter_lines, iter_objects
from neutral_residues.errors import UserError
from neutral_residues.evaluation.tasks.item_forms import FORMS, LETTERS, MINIMAL_PAIR, Form, form_of
from neutral_residues.evaluation.tasks.local_task import (
    EXAMPLES,
    ITEMS,
    Item,
    LocalTask,
    task_config,
)
from neutral_residues.files import MOST_BYTES, disk_errors

SHIPPED = Path(__file__).parent / "data"
FILE = re.compile(r"\w+[._][a-z]{2,3}\.jsonl(\.gz)?")
LANGUAGE = re.compile(r"[-_]([a-z]{2,3})$")
SEED = 0


def file_task(file: Path, name: str, *, form: Form | None = None) -> LocalTask:
    """The task with the items of one file, and few-shot examples from its file of examples, if
    there is one.

    Args:
        name: name of the task.
        form: how items are asked; default: the form of the first item.

    Raises:
        UserError: if a file cannot be read, fields of an item are missing or invalid, items have
            different forms, or there are fewer than two.
    """
    form, items = read_items(file, form)
    asked = dict(form.asked)
    examples: list[Item] = []
    if form is MINIMAL_PAIR:
        random.Random(SEED).shuffle(items)
    else:
        if (beside := _examples_file(file)) is not None:
            _, examples = read_items(beside, form)
        asked |= {"num_fewshot": None, "fewshot_split": EXAMPLES if examples else ITEMS}
    return LocalTask(task_config(name, metrics=form.metrics, **asked), items, examples)


def read_items(file: Path, form: Form | None = None) -> tuple[Form, list[Item]]:
    """Read all items of a file and their form; arguments and errors as in `file_task`."""
    found = list(iter_objects(iter_lines(file, at_most=MOST_BYTES)))
    if len(found) < 2:
        got, do = f"{len(found)} items", "name another file"
        raise UserError(f"too few items in {file}", got=got, allowed="two or more", do=do)
    form = form or _form_at(*found[0])
    for where, item in found:
        own = form_of(item)
        if form is not LETTERS and own is not None and own is not form:
            what, do = f"{where} has another form than the items before it", "use one file for each"
            raise UserError(what, got=own.title, allowed=form.title, do=do)
        form.check(item, where)
    return form, [_kept(item, form) for _, item in found]


def task_files(folder: Path) -> dict[str, Path]:
    """Name of each task in a folder -> its file. Raises a UserError if `folder` is not a folder or
    has no task files."""
    allowed = "a folder with files NAME_LANG.jsonl or .jsonl.gz, for example hellaswag_en.jsonl.gz"
    if not folder.is_dir():
        raise UserError("task_data is not a folder", got=str(folder), allowed=allowed)
    with disk_errors(folder):
        files = [path for path in sorted(folder.iterdir()) if FILE.fullmatch(path.name)]
    if not files:
        raise UserError(f"no tasks in {folder}", allowed=allowed)
    return {task_name(path): path for path in files}


def task_name(file: Path) -> str:
    """The name of the task in a file: "clams.fr.jsonl.gz" -> "clams-fr"."""
    return file.name.partition(".jsonl")[0].replace(".", "-")


def language_of(task: str) -> str | None:
    """The language code at the end of a task's name; None if there is none."""
    match = LANGUAGE.search(task)
    return match[1] if match else None


def _examples_file(file: Path) -> Path | None:
    stem = file.name.partition(".jsonl")[0]
    beside = (file.with_name(f"{stem}.examples.jsonl{end}") for end in ("", ".gz"))
    return next((path for path in beside if path.is_file()), None)


def _form_at(where: str, item: Item) -> Form:
    form = form_of(item)
    if form is None:
        forms = "; ".join(", ".join(known.fields) for known in FORMS)
        got = ", ".join(item) or "no fields"
        raise UserError(f"{where} is not an item of a task", got=got, allowed=forms)
    return form


def _kept(item: Item, form: Form) -> Item:
    """The item with only the fields of its form and others that are text; fields of other types may
    differ between items, which a `datasets` column does not allow."""
    return {key: v for key, v in item.items() if key in form.fields or isinstance(v, str)}
