"""Measures an extension that a language detector enables or disables for each document (a switch).

    pip install lingua-language-detector
    python recipes/switch.py en fr runs/small/french runs/small/french-adapter

Arguments are the source and the target language, as ISO 639-1 codes, and output folders of finished
runs. Each run is measured on the documents of its evaluation sets, one by one, and on mixed
documents, in which a source and a target document alternate. Printed are bits per byte with the
extension

    backbone    disabled
    extended    enabled
    switch      enabled for documents that the detector assigns to the target language
    best        enabled for documents on which it is better: the optimum of any such switch

and

    wrong       the share of documents that the detector assigns to the other language

A method that keeps the backbone's weights (LoRA, an adapter) forgets nothing if the switch is
always right.
"""

import argparse
import itertools
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from neutral_residues.config.data import Role
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import without_display
from neutral_residues.errors import UserError
from neutral_residues.evaluation.evaluate import evaluate
from neutral_residues.evaluation.evaluate_saved import evaluation_streams, windows_for
from neutral_residues.evaluation.saved import Saved, load_saved

Detector = Callable[[str], Role]
SEGMENT_CHARS = 200
"""Maximum number of characters of a segment of a mixed document, which ends between words."""


@dataclass(frozen=True)
class Document:
    """Results of one document."""

    num_bytes: int
    backbone_nats: float
    extended_nats: float
    detected: Role


@dataclass(frozen=True)
class Row:
    """Results of one set: bits per byte, and the share of documents assigned to the other
    language."""

    name: str
    backbone: float
    extended: float
    switch: float
    best: float
    wrong: float | None  # None for mixed documents, which are in both languages


def measure(saved: Saved, detect: Detector) -> list[Row]:
    """A row for each evaluation set of the run, and one for mixed documents."""
    streams = evaluation_streams(saved, (), without_display)
    rows = []
    for stream in streams:
        texts = texts_of(stream, saved.tokenizer)
        documents = [measure_document(saved, text, detect) for text in texts]
        wrong = sum(document.detected != stream.role for document in documents) / len(documents)
        rows.append(row(stream.name, documents, wrong))
    source, target = (next(s for s in streams if s.role == role) for role in ("source", "target"))
    pairs = zip(*(texts_of(s, saved.tokenizer) for s in (source, target)), strict=False)
    mixed = [measure_document(saved, take_turns(*pair), detect) for pair in pairs]
    return [*rows, row(f"{source.name} and {target.name} mixed", mixed, None)]


def texts_of(stream: TokenStream, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    return (stream.document_text(i, tokenizer) for i in range(stream.num_documents))


def take_turns(first: str, second: str) -> str:
    """Segments of both texts in turn, until one of them ends."""
    segments = [textwrap.wrap(text, SEGMENT_CHARS) for text in (first, second)]
    return " ".join(itertools.chain.from_iterable(zip(*segments, strict=False)))


def measure_document(saved: Saved, text: str, detect: Detector) -> Document:
    ids = [*saved.tokenizer(text)["input_ids"], saved.end_of_text]
    ends, num_bytes = np.array([len(ids)]), len(text.encode())
    stream = TokenStream("document", "source", np.array(ids), ends, np.array([num_bytes]))
    windows = windows_for(saved, None, None)
    found = evaluate(saved.model, [stream], windows, reference=saved.reference)["document"]
    return Document(num_bytes, found.backbone_nats, found.extended_nats, detect(text))


def row(name: str, documents: Sequence[Document], wrong: float | None) -> Row:
    bits = math.log(2) * sum(document.num_bytes for document in documents)
    switched = (d.extended_nats if d.detected == "target" else d.backbone_nats for d in documents)
    return Row(
        name,
        backbone=sum(d.backbone_nats for d in documents) / bits,
        extended=sum(d.extended_nats for d in documents) / bits,
        switch=sum(switched) / bits,
        best=sum(min(d.backbone_nats, d.extended_nats) for d in documents) / bits,
        wrong=wrong,
    )


def language_detector(source: str, target: str) -> Detector:
    """A detector that chooses between these two languages, by the package lingua. Raises a
    UserError if it is not installed, or does not know a language."""
    try:
        import lingua
    except ImportError as error:
        do = "pip install lingua-language-detector"
        raise UserError("the language detector is not installed", do=do) from error
    known = {language.iso_code_639_1.name.lower() for language in lingua.Language.all()}
    for code in (source, target):
        if code not in known:
            raise UserError("language", got=code, allowed=", ".join(sorted(known)))
    codes = [lingua.IsoCode639_1.from_str(code) for code in (source, target)]
    detector = lingua.LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()

    def detect(text: str) -> Role:
        language = detector.detect_language_of(text)
        return "target" if language and language.iso_code_639_1 == codes[1] else "source"

    return detect


def main() -> None:
    """Print a table for each run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("runs", nargs="+", type=Path)
    arguments = parser.parse_args()
    detect = language_detector(arguments.source, arguments.target)
    for folder in arguments.runs:
        print(f"\n{folder}\n\n| set | backbone | extended | switch | best | wrong |")
        print("|---|---|---|---|---|---|")
        for found in measure(load_saved(folder), detect):
            numbers = (found.backbone, found.extended, found.switch, found.best)
            bits = " | ".join(f"{number:.4f}" for number in numbers)
            wrong = "–" if found.wrong is None else f"{100 * found.wrong:.1f} %"
            print(f"| {found.name} | {bits} | {wrong} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
