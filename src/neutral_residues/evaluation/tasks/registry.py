"""From names a person gives to tasks: suites, minimal pairs, cloze, and whatever lm-eval knows.

    paper-fr            the paper's five benchmarks in English and, as far as lm-eval has them, in French
    minimal-pairs-fr    every file of minimal pairs in French, each a task: clams-fr
    cloze               cloze-NAME for every evaluation set; cloze-NAME for one of them
    quick               minimal pairs of English and of the languages that sets are named by, and cloze: no network
    arc_fr, mmlu, ...   any task, tag or group of lm-eval

Languages are two-letter codes. Which benchmark exists in which language is looked up in the index
of the installed lm-eval: `BENCHMARKS` only says under which names to look, the first that is there
is taken, and what is missing is named. Nothing here imports lm-eval or torch.

Where we choose: the paper's shot counts are not known. Ours: none for ARC-challenge, HellaSwag and
Belebele (whose examples would come from its own test questions); five for MMLU and CommonsenseQA,
whose answers are letters, so that a model without instruction training sees what is asked. A task
whose own configuration says 0 keeps it, as in lm-eval, and one that could only take examples from
its own questions gets none. The record says how many there were. ARC-challenge and HellaSwag are
scored by acc_norm (likelihood per character), the rest by acc, where a task has both.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from neutral_residues.config.run import Role
from neutral_residues.errors import UserError, nearest
from neutral_residues.evaluation.tasks.languages import ENGLISH, LANGUAGES, language_of_set
from neutral_residues.evaluation.tasks.minimal_pairs import language_of, pair_files

PAIRS, PAPER, CLOZE = "minimal-pairs-", "paper-", "cloze-"


@dataclass(frozen=True)
class Benchmark:
    """One of the paper's five.

    Attributes:
        title: how people call it.
        english: lm-eval's name of the English one.
        patterns: its names in other languages, the first that exists is taken; {code} is "fr",
            {long} "fra_Latn".
        num_fewshot: solved examples in front of each item.
        own_names: language -> name, where no pattern holds.
    """

    title: str
    english: str
    patterns: tuple[str, ...]
    num_fewshot: int
    own_names: Mapping[str, str] = field(default_factory=dict)

    def name_in(self, language: str, index: Collection[str]) -> str | None:
        """lm-eval's name for it in that language; None where it has none."""
        if language == ENGLISH:
            return self.english if self.english in index else None
        names = [
            pattern.format(code=language, long=LANGUAGES[language][1]) for pattern in self.patterns
        ]
        names += [self.own_names[language]] if language in self.own_names else []
        return next((name for name in names if name in index), None)


BENCHMARKS = (
    Benchmark("ARC-challenge", "arc_challenge", ("arc_{code}", "arc_challenge_mt_{code}"), 0),
    Benchmark("HellaSwag", "hellaswag", ("hellaswag_{code}",), 0),
    Benchmark("MMLU", "mmlu", ("m_mmlu_{code}", "global_mmlu_full_{code}", "global_mmlu_{code}"), 5),
    Benchmark(
        "CommonsenseQA", "commonsense_qa", (), 5,
        {"nb": "norcommonsenseqa_nob_p0", "ja": "ja_leaderboard_jcommonsenseqa", "bn": "bangla_commonsenseqa"},
    ),
    Benchmark("Belebele", "belebele_eng_Latn", ("belebele_{long}",), 0),
)  # fmt: skip


@dataclass(frozen=True)
class AskedTask:
    """One task to be given to both sides.

    Attributes:
        name: what tables call it; for an lm-eval task its name there.
        kind: where its items come from.
        suite: the suite that brought it in; None if it was named itself.
        language: two-letter code; None where not known.
        role: whether that is what the backbone knows or what it was to learn.
        num_fewshot: solved examples; None leaves it to lm-eval's configuration of the task.
        file: of minimal pairs.
        set: name of the evaluation set behind a cloze task.
    """

    name: str
    kind: Literal["lm-eval", "pairs", "cloze"]
    suite: str | None = None
    language: str | None = None
    role: Role | Literal["none"] = "none"
    num_fewshot: int | None = None
    file: Path | None = None
    set: str | None = None


def asked_tasks(
    names: Sequence[str],
    *,
    sets: Mapping[str, Role],
    index: Callable[[], Collection[str]],
    task_data: Path | None = None,
) -> list[AskedTask]:
    """The tasks behind `names`, each once, in order.

    Args:
        sets: evaluation set -> role.
        index: gives the names that lm-eval knows; called only where a name is not one of ours.
        task_data: folder with minimal pairs.

    Raises:
        UserError: for an unknown task, language or set; names the nearest, or what there is.
    """
    files = pair_files(task_data)
    found: dict[str, AskedTask] = {}
    for name in names:
        for task in _expanded(name, sets, index, files):
            found.setdefault(task.name, task)
    return list(found.values())


def paper_suite(language: str, index: Collection[str]) -> tuple[list[AskedTask], list[str]]:
    """The paper's benchmarks in English and in `language`, and the titles of those that lm-eval
    lacks in it.

    Raises:
        UserError: for a language that `LANGUAGES` lacks.
    """
    suite = f"{PAPER}{language}"
    if language not in LANGUAGES:
        raise UserError(
            f"unknown language in {suite}", got=language, allowed=", ".join(sorted(LANGUAGES))
        )
    tasks, missing = [], []
    for code in dict.fromkeys((ENGLISH, language)):
        for benchmark in BENCHMARKS:
            name = benchmark.name_in(code, index)
            if name is None:
                missing.append(f"{benchmark.title} ({code})")
            else:
                role: Role = "source" if code == ENGLISH else "target"
                tasks.append(AskedTask(name, "lm-eval", suite, code, role, benchmark.num_fewshot))
    return tasks, missing


def _expanded(
    name: str,
    sets: Mapping[str, Role],
    index: Callable[[], Collection[str]],
    files: Mapping[str, Path],
) -> list[AskedTask]:
    if name == "quick":
        languages = dict.fromkeys([ENGLISH, *filter(None, map(language_of_set, sets))])
        tasks = [task for language in languages for task in _pairs(language, sets, files)]
        return [replace(task, suite=name) for task in [*tasks, *map(_cloze, sets, sets.values())]]
    if name in files:
        return [_pair_task(name, sets, files)]
    if name.startswith(PAIRS):
        tasks = _pairs(name.removeprefix(PAIRS), sets, files)
        if not tasks:
            allowed = ", ".join(sorted({language_of(task) for task in files}))
            raise UserError(
                "no minimal pairs in that language", got=name.removeprefix(PAIRS), allowed=allowed
            )
        return [replace(task, suite=name) for task in tasks]
    if name.startswith(PAPER):
        return paper_suite(name.removeprefix(PAPER), index())[0]
    if name == "cloze" and not sets:
        raise UserError(
            "cloze is made from evaluation sets, and there are none",
            do="add --set target:NAME=FILE",
        )
    if name == "cloze":
        return [replace(_cloze(set, role), suite=name) for set, role in sets.items()]
    if name.startswith(CLOZE):
        set = name.removeprefix(CLOZE)
        if set not in sets:
            raise UserError(
                f"unknown evaluation set in {name}",
                do=nearest(set, sets) if sets else "there are no sets",
            )
        return [_cloze(set, sets[set])]
    known = index()
    if name not in known:
        ours = [
            "quick",
            "cloze",
            *files,
            *(f"{CLOZE}{set}" for set in sets),
            *(f"{PAPER}{code}" for code in LANGUAGES),
        ]
        ours += [f"{PAIRS}{language_of(task)}" for task in files]
        raise UserError(f"unknown task {name}", do=_few(nearest(name, [*ours, *known]), ours))
    return [AskedTask(name, "lm-eval")]


def _few(help: str, ours: Sequence[str]) -> str:
    """lm-eval knows thousands of names, too many to list."""
    return (
        help
        if help.startswith("did you mean")
        else f"known: {', '.join(sorted(set(ours)))}, and lm-eval's own"
    )


def _pairs(language: str, sets: Mapping[str, Role], files: Mapping[str, Path]) -> list[AskedTask]:
    return [_pair_task(task, sets, files) for task in files if language_of(task) == language]


def _pair_task(name: str, sets: Mapping[str, Role], files: Mapping[str, Path]) -> AskedTask:
    language = language_of(name)
    roles = [role for set, role in sets.items() if language_of_set(set) == language]
    return AskedTask(
        name, "pairs", None, language, roles[0] if roles else "none", 0, file=files[name]
    )


def _cloze(set: str, role: Role) -> AskedTask:
    return AskedTask(f"{CLOZE}{set}", "cloze", None, language_of_set(set), role, 0, set=set)
