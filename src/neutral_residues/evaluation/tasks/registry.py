"""Finds the tasks for the names that users give: suites, files, cloze tasks and tasks of lm-eval.

    paper-fr            the paper's five benchmarks in English and, if lm-eval has them, in French
    minimal-pairs-fr    all files of minimal pairs in French, each a task: clams-fr
    cloze               cloze-NAME for all evaluation sets; cloze-NAME for one of them
    quick               all that needs no network: minimal pairs in English and in the languages
                        after which evaluation sets are named, and cloze tasks
    files, files-fr     all files in the user's folder; those in French
    hellaswag_en        one of them
    file:PATH           any file; for its form and name see `task_files.py`
    letters-NAME        a file, NAME or file:PATH, with the choices listed in the query as A, B, ...
    arc_fr, mmlu, ...   any task, tag or group of lm-eval

Languages are two-letter codes. Whether a benchmark exists in a language is looked up in the index
of the installed lm-eval: `BENCHMARKS` lists the possible names in order of preference, and missing
benchmarks are reported. Nothing here imports lm-eval.

Where we choose: the number of few-shot examples in the paper is not known. We use none for
ARC-challenge, HellaSwag and Belebele (whose examples would come from its own test questions), and
five for MMLU and CommonsenseQA, whose answers are letters, so that a model without instruction
tuning sees what is asked. Tasks whose configuration says 0 keep it, as in lm-eval, and tasks that
could only take examples from the items on which they are evaluated get none. The record has the
number. The main score is acc_norm (likelihood per character) if a task has it and its answers are
not letters, else acc.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from neutral_residues.config.data import Role
from neutral_residues.errors import UserError, nearest
from neutral_residues.evaluation.tasks.cloze import cloze_task
from neutral_residues.evaluation.tasks.item_forms import LETTERS, Form
from neutral_residues.evaluation.tasks.languages import ENGLISH, LANGUAGES, language_of_set
from neutral_residues.evaluation.tasks.local_task import LocalTask, MakeTask, Materials
from neutral_residues.evaluation.tasks.task_files import (
    SHIPPED,
    file_task,
    language_of,
    task_files,
    task_name,
)

PAIRS, PAPER, CLOZE = "minimal-pairs-", "paper-", "cloze-"
FILES, IN_LETTERS, AT = "files-", "letters-", "file:"


@dataclass(frozen=True)
class Benchmark:
    """One of the paper's five benchmarks."""

    title: str
    english: str  # name of the English version in lm-eval
    # Names in other languages, of which the first that exists is used: {code} is replaced by "fr",
    # {long} by "fra_Latn".
    patterns: tuple[str, ...]
    num_fewshot: int  # few-shot examples before each item
    irregular: Mapping[str, str] = field(default_factory=dict)  # language -> name in lm-eval

    def name_in(self, language: str, index: Collection[str]) -> str | None:
        """Name of the benchmark in lm-eval for a language; None if lm-eval does not have it."""
        long = LANGUAGES[language][1]
        names = [pattern.format(code=language, long=long) for pattern in self.patterns]
        names.append(self.irregular.get(language, ""))
        names = [self.english] if language == ENGLISH else names
        return next((name for name in names if name in index), None)


BENCHMARKS = (
    Benchmark("ARC-challenge", "arc_challenge", ("arc_{code}", "arc_challenge_mt_{code}"), 0),
    Benchmark("HellaSwag", "hellaswag", ("hellaswag_{code}",), 0),
    Benchmark(
        "MMLU", "mmlu", ("m_mmlu_{code}", "global_mmlu_full_{code}", "global_mmlu_{code}"), 5
    ),
    Benchmark(
        "CommonsenseQA", "commonsense_qa", (), 5,
        {
            "nb": "norcommonsenseqa_nob_p0",
            "ja": "ja_leaderboard_jcommonsenseqa",
            "bn": "bangla_commonsenseqa",
        },
    ),
    Benchmark("Belebele", "belebele_eng_Latn", ("belebele_{long}",), 0),
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A task that is measured on both models."""

    name: str  # name in tables, and in lm-eval for its tasks
    make: MakeTask | None = None  # makes a local task; None for a task of lm-eval
    suite: str | None = None  # the suite through which it was chosen; None if by its own name
    language: str | None = None  # two-letter code; None if not known
    role: Role | Literal["none"] = "none"  # whether it is the source or target language
    num_fewshot: int | None = None  # few-shot examples; None: as lm-eval's configuration says
    file: Path | None = None  # file of its items


def find_tasks(
    names: Sequence[str],
    *,
    sets: Mapping[str, Role],
    index: Callable[[], Collection[str]],
    task_data: Path | None = None,
) -> tuple[list[Task], list[str]]:
    """Find the tasks for `names`.

    Args:
        names: names as in the module docstring.
        sets: name of each evaluation set -> its role.
        index: returns the names of lm-eval; called only if a name is not found elsewhere.
        task_data: folder with the user's task files.

    Returns:
        The tasks, without duplicates, in the order of `names`; and a line for each suite about
        benchmarks that lm-eval does not have.

    Raises:
        UserError: for an unknown task, language or set; suggests the nearest name or lists all.
    """
    own = {} if task_data is None else task_files(task_data)
    registry = _Registry(sets, task_files(SHIPPED) | own, list(own), index)
    found: dict[str, Task] = {}
    for name in names:
        for task in registry.tasks(name):
            if found.setdefault(task.name, task).file != task.file:
                do = "rename a file, or measure them one after the other"
                raise UserError(f"two different tasks are called {task.name}", do=do)
    return list(found.values()), registry.missing


def paper_suite(language: str, index: Collection[str]) -> tuple[list[Task], list[str]]:
    """The paper's benchmarks in English and in `language`, and the titles of those that lm-eval
    does not have. Raises a UserError for a language that is not in `LANGUAGES`."""
    if language not in LANGUAGES:
        known = ", ".join(sorted(LANGUAGES))
        raise UserError(f"unknown language in {PAPER}{language}", got=language, allowed=known)
    tasks, missing = [], []
    for code in dict.fromkeys((ENGLISH, language)):
        role: Role = "source" if code == ENGLISH else "target"
        for benchmark in BENCHMARKS:
            name = benchmark.name_in(code, index)
            if name is None:
                missing.append(f"{benchmark.title} ({code})")
            else:
                tasks.append(Task(name, None, None, code, role, benchmark.num_fewshot))
    return tasks, missing


@dataclass(frozen=True)
class _Registry:
    """Everything that names can refer to: evaluation sets, files, and tasks of lm-eval."""

    sets: Mapping[str, Role]
    files: Mapping[str, Path]
    own: Collection[str]  # names of those files that are in the user's folder
    index: Callable[[], Collection[str]]
    missing: list[str] = field(default_factory=list)

    def tasks(self, name: str) -> list[Task]:
        """The tasks for one name."""
        if (file := name.removeprefix(IN_LETTERS)) in self.files or file.startswith(AT):
            return [self._file(file, in_letters=file != name)]
        if name.startswith(CLOZE):
            return [self._cloze(name.removeprefix(CLOZE))]
        if name == "quick":
            languages = dict.fromkeys([ENGLISH, *map(language_of_set, self.sets)])
            tasks = [task for language in languages for task in self._pairs_in(language)]
            tasks += map(self._cloze, self.sets)
        elif name == "cloze":
            if not self.sets:
                do = "add --set target:NAME=FILE"
                raise UserError("cloze is made from evaluation sets, and there are none", do=do)
            tasks = list(map(self._cloze, self.sets))
        elif name == "files":
            tasks = self._own_files()
        elif name.startswith(FILES):
            tasks = self._own_files(name.removeprefix(FILES))
        elif name.startswith(PAIRS):
            tasks = self._pairs_in(name.removeprefix(PAIRS), required=True)
        elif name.startswith(PAPER):
            tasks, titles = paper_suite(name.removeprefix(PAPER), self.index())
            if titles:
                self.missing.append(f"{name}: lm-eval has no {', '.join(titles)}")
        elif name in self.index():
            return [Task(name)]
        else:
            raise UserError(f"unknown task {name}", do=self._nearest(name))
        return [replace(task, suite=name) for task in tasks]

    def _file(self, name: str, *, in_letters: bool = False) -> Task:
        file = Path(name.removeprefix(AT)) if name.startswith(AT) else self.files[name]
        _check_exists(file)
        form, prefix = (LETTERS, IN_LETTERS) if in_letters else (None, "")
        task = prefix + task_name(file)
        language = language_of(task)
        roles = [role for other, role in self.sets.items() if language_of_set(other) == language]
        role = roles[0] if language and roles else "none"
        make = partial(_task_of, file, task, form)
        return Task(task, make, None, language, role, file=file.resolve())

    def _own_files(self, language: str | None = None) -> list[Task]:
        if not self.own:
            do = "name a folder: --task-data, or evaluation.task_data"
            raise UserError("there are no task files", do=do)
        languages = {name: language_of(name) for name in self.own}
        tasks = [self._file(name) for name, own in languages.items() if language in (None, own)]
        if not tasks:
            allowed = ", ".join(sorted(filter(None, set(languages.values()))))
            raise UserError("no task files in that language", got=language, allowed=allowed)
        return tasks

    def _pairs_in(self, language: str | None, *, required: bool = False) -> list[Task]:
        of_pairs = {name: language_of(name) for name in self.files if "-" in name}
        tasks = [self._file(name) for name, own in of_pairs.items() if own == language]
        if required and not tasks:
            allowed = ", ".join(sorted(filter(None, set(of_pairs.values()))))
            raise UserError("no minimal pairs in that language", got=language, allowed=allowed)
        return tasks

    def _cloze(self, set_name: str) -> Task:
        if set_name not in self.sets:
            do = nearest(set_name, self.sets) if self.sets else "there are no sets"
            raise UserError(f"unknown evaluation set in {CLOZE}{set_name}", do=do)
        name, language = f"{CLOZE}{set_name}", language_of_set(set_name)
        make = partial(cloze_task, name, set_name)
        return Task(name, make, None, language, self.sets[set_name], num_fewshot=0)

    def _nearest(self, name: str) -> str:
        """A hint with the nearest name, or else with all names except the thousands of lm-eval."""
        ours = {
            "quick",
            "cloze",
            *self.files,
            *(f"{CLOZE}{set_name}" for set_name in self.sets),
            *(f"{PAPER}{code}" for code in LANGUAGES),
            *(f"{PAIRS}{language_of(file)}" for file in self.files if "-" in file),
        }
        hint = nearest(name.removeprefix(IN_LETTERS), sorted(ours | set(self.index())))
        known = f"known: {', '.join(sorted(ours))}, and lm-eval's own"
        return hint if hint.startswith("did you mean") else known


def _task_of(file: Path, name: str, form: Form | None, _: Materials) -> LocalTask:
    return file_task(file, name, form=form)


def _check_exists(file: Path) -> None:
    """Raise a UserError if the file does not exist, which suggests the nearest name in its
    folder."""
    if file.is_dir():
        do = "for all files of a folder use --task-data, or evaluation.task_data"
        raise UserError(f"{file} is a folder", allowed=f"{AT}PATH of a file", do=do)
    if not file.is_file():
        beside = [path.name for path in file.parent.iterdir()] if file.parent.is_dir() else []
        hint = nearest(file.name, beside)
        do = hint if hint.startswith("did you mean") else "check the path"
        raise UserError(f"no such file: {file}", do=do)
