"""Languages of tasks: two-letter codes, names, and the codes that benchmarks use. No torch."""

import csv
from pathlib import Path

ENGLISH = "en"
with (Path(__file__).parent / "data" / "languages.csv").open(encoding="utf-8") as _file:
    LANGUAGES = {code: (name, long) for code, name, long in csv.reader(_file)}
"""Two-letter code -> English name, and ISO 639-3 code with script, as in the names of Belebele's
tasks."""


def language_name(code: str | None) -> str | None:
    """English name of a language; the code itself if it is not listed."""
    return None if code is None else LANGUAGES.get(code, (code, ""))[0]


def language_of_set(name: str) -> str | None:
    """Language code at the beginning of the name of a set ("fr", "fr-novels" and "fr.test" are
    French), or None."""
    code = name.replace(".", "-").replace("_", "-").partition("-")[0]
    return code if code in LANGUAGES else None
