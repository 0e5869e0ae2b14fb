"""Which tasks a name stands for: suites, minimal pairs, cloze, and everything that lm-eval knows.

    paper-fr            the paper's five benchmarks in English and, where lm-eval has them, French
    minimal-pairs-fr    every file of minimal pairs in French, each a task: clams-fr
    cloze               cloze-NAME for every evaluation set; cloze-NAME for one of them
    quick               what needs no network: minimal pairs of English and of the languages that
                        the evaluation sets are named by, and cloze
    arc_fr, mmlu, ...   any task, tag or group of lm-eval

Languages are two-letter codes. Which benchmark exists in which language is looked up in the index
of the installed lm-eval: `BENCHMARKS` only lists the names to look for, in order of preference, and
what is missing is reported. Nothing here imports lm-eval.

Where we choose: the paper's shot counts are not known. Ours: none for ARC-challenge, HellaSwag and
Belebele (whose examples would come from its own test questions); five for MMLU and CommonsenseQA,
whose answers are letters, so that a model without instruction training sees what is asked. A task
whose own configuration says 0 keeps it, as in lm-eval, and one that could only take examples from
its own questions gets none. The record says how many there were. ARC-challenge and HellaSwag are
scored by acc_norm (likelihood per character), the rest by acc, where a task has both.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from neutral_residues.config.run import Role
from neutral_residues.errors import UserError, nearest
from neutral_residues.evaluation.tasks.cloze import cloze_task
from neutral_residues.evaluation.tasks.languages import ENGLISH, LANGUAGES, language_of_set
from neutral_residues.evaluation.tasks.local_task import MakeTask
from neutral_residues.evaluation.tasks.minimal_pairs import language_of, pair_files, pairs_task

PAIRS, PAPER, CLOZE = "minimal-pairs-", "paper-", "cloze-"


@dataclass(frozen=True)
class Benchmark:
    """One of the paper's five."""

    title: str
    english: str  # lm-eval's name of the English version
    # In other languages the first that exists; {code} is "fr", {long} "fra_Latn".
    patterns: tuple[str, ...]
    num_fewshot: int  # solved examples in front of each item
    irregular: Mapping[str, str] = field(default_factory=dict)  # language -> name without pattern

    def name_in(self, language: str, index: Collection[str]) -> str | None:
        """lm-eval's name for it in that language; None where it has none."""
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
    """One task for both models."""

    name: str  # as in tables; lm-eval's name for its tasks
    make: MakeTask | None = None  # makes it of items of ours; None for a task of lm-eval
    suite: str | None = None  # that it is part of; None if asked for by its own name
    language: str | None = None  # two-letter code; None where not known
    role: Role | Literal["none"] = "none"  # whether the backbone knows that language or learns it
    num_fewshot: int | None = None  # solved examples; None leaves it to lm-eval's configuration


def find_tasks(
    names: Sequence[str],
    *,
    sets: Mapping[str, Role],
    index: Callable[[], Collection[str]],
    task_data: Path | None = None,
) -> tuple[list[Task], list[str]]:
    """The tasks behind `names`, each once, in order; and what lm-eval lacks of a suite, a line for
    each suite. A UserError for an unknown task, language or set names the nearest, or all.

    Args:
        sets: evaluation set -> role.
        index: returns the names that lm-eval knows; called only for names that are not ours.
        task_data: folder with minimal pairs.
    """
    registry = _Registry(sets, pair_files(task_data), index)
    found: dict[str, Task] = {}
    for name in names:
        for task in registry.tasks(name):
            found.setdefault(task.name, task)
    return list(found.values()), registry.missing


def paper_suite(language: str, index: Collection[str]) -> tuple[list[Task], list[str]]:
    """The paper's benchmarks in English and `language` (a UserError if `LANGUAGES` lacks it), and
    the titles of those that lm-eval lacks."""
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
    """All names: of evaluation sets, of files of minimal pairs, of lm-eval."""

    sets: Mapping[str, Role]
    files: Mapping[str, Path]
    index: Callable[[], Collection[str]]
    missing: list[str] = field(default_factory=list)

    def tasks(self, name: str) -> list[Task]:
        """What one name stands for."""
        if name in self.files:
            return [self._pairs(name)]
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

    def _pairs(self, name: str) -> Task:
        language = language_of(name)
        roles = (role for other, role in self.sets.items() if language_of_set(other) == language)
        file, role = self.files[name], next(roles, None) or "none"
        return Task(name, lambda _: pairs_task(name, file), None, language, role, num_fewshot=0)

    def _pairs_in(self, language: str | None, *, required: bool = False) -> list[Task]:
        tasks = [self._pairs(name) for name in self.files if language_of(name) == language]
        if required and not tasks:
            allowed = ", ".join(sorted({language_of(name) for name in self.files}))
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
        """A name of ours or of lm-eval, or all of ours; lm-eval has thousands."""
        ours = {
            "quick",
            "cloze",
            *self.files,
            *(f"{CLOZE}{set_name}" for set_name in self.sets),
            *(f"{PAPER}{code}" for code in LANGUAGES),
            *(f"{PAIRS}{language_of(file)}" for file in self.files),
        }
        hint = nearest(name, sorted(ours | set(self.index())))
        known = f"known: {', '.join(sorted(ours))}, and lm-eval's own"
        return hint if hint.startswith("did you mean") else known
