"""Calibrates a saved extension: checks the text, finds thresholds, measures their cost on target
text, and writes the promise.

calibration.json      next to the weights: the promise, and what later text is compared with
adapter_config.json   the thresholds, which are part of the extension from then on
README.md             the promise in one sentence, as in the record of the run if there is one
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from neutral_residues.calibration.calibrate import Found, Wanted, calibrate
from neutral_residues.calibration.units import Units
from neutral_residues.config.data import Corpus
from neutral_residues.data.documents import iter_groups
from neutral_residues.data.run_data import RunData
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import Tokenising
from neutral_residues.digest import changing
from neutral_residues.errors import UserError
from neutral_residues.evaluation.by_document import OnTokens, ignore
from neutral_residues.evaluation.evaluate import evaluate
from neutral_residues.evaluation.evaluate_saved import evaluation_streams
from neutral_residues.evaluation.saved import Saved
from neutral_residues.evaluation.self_replay import as_was_read
from neutral_residues.evaluation.windows import Windows
from neutral_residues.files import disk_errors, read_json, write_json, write_text
from neutral_residues.results.calibration import FILE, Calibration, write_calibration
from neutral_residues.results.model_card import with_promise
from neutral_residues.results.promise import TargetCost
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.results.store import read_record, write_record
from neutral_residues.tuner.gates import check_gates, under_thresholds
from neutral_residues.tuner.saved_adapter import CONFIG
from neutral_residues.tuner.thresholds import Thresholds


def calibrate_saved(
    saved: Saved,
    corpora: Sequence[Corpus],
    windows: Windows,
    wanted: Wanted,
    *,
    tokenising: Tokenising,
    group_by: str | None = None,
    cost_on: Sequence[Corpus] = (),
    on_tokens: OnTokens = ignore,
    on_unknown: Callable[[str], object] = lambda why: None,
) -> tuple[Found, Calibration]:
    """Find thresholds for a saved extension, and what they promise and cost; nothing is written.

    Args:
        corpora: source text that the promise is about.
        group_by: the field that names the source of each document; None: each document is a source
            of its own.
        cost_on: target text to measure the cost on; default: that of the run, if there is one.
        on_unknown: called with the reason if it is not known whether the extension was trained on
            this text.

    Raises:
        UserError: for target text, text that was trained on, an extension without gates, and as
            `calibrate`.
    """
    _check_kind(saved)
    for corpus in corpora:
        if corpus.role != "source":
            what = f"{corpus.name} is target text, and the promise is about what must not change"
            raise UserError(what, got="--on target:...", allowed="source text")
    streams = evaluation_streams(saved, corpora, tokenising)
    checked = _check_unseen(saved, streams, tokenising, on_unknown)
    texts = [
        Units.of(stream, iter_groups(corpus, group_by) if group_by else None, group_by)
        for stream, corpus in zip(streams, corpora, strict=True)
    ]
    found = calibrate(saved.model, texts, windows, wanted, on_tokens=on_tokens)
    costs = target_costs(saved, cost_on, windows, found, tokenising)
    return found, found.calibration(costs, training_text_checked=checked)


def _check_kind(saved: Saved) -> None:
    if saved.composition is not None:
        what = "a composition has no gates of its own to calibrate"
        do = "calibrate each extension, and compose them then"
        raise UserError(what, got=", ".join(saved.composition.names), do=do)
    method = saved.config.method if saved.config else "?"
    if not isinstance(saved.model, PeftModel) or saved.reference is not None:
        what = "only an extension with gates can be calibrated"
        raise UserError(what, got=f"method {method}", do="train one with method neutral")
    check_gates(saved.model)


# ---- text that was trained on ----


def _check_unseen(
    saved: Saved,
    streams: Sequence[TokenStream],
    tokenising: Tokenising,
    on_unknown: Callable[[str], object],
) -> bool:
    """Raise a UserError if the extension was trained on one of these documents. Returns False if
    the training text is not known."""
    if saved.config is None:
        on_unknown("this is an extension without its run, so its training text is not known")
        return False
    try:
        data = as_was_read(saved.config, saved.backbone_tokenizer).data
        train = RunData.of(data, saved.tokenizer, tokenising=tokenising).train
    except UserError as error:
        on_unknown(f"the training text cannot be read: {error}")
        return False
    known = {key for stream in train for key in _documents(stream)}
    for stream in streams:
        seen = [number for number, key in enumerate(_documents(stream)) if key in known]
        if seen:
            begin = stream.document_text(seen[0], saved.tokenizer, max_tokens=12)
            raise UserError(
                f"{stream.name} is text that the extension was trained on",
                got=f"{len(seen):,} of its {stream.num_documents:,} documents, first {begin!r}",
                do="give text that was held out: on what was trained on, a promise says nothing",
            )
    return True


def _documents(stream: TokenStream) -> Iterator[bytes]:
    """Hashes of the tokens of all documents."""
    for number in range(stream.num_documents):
        tokens = stream.document(number).astype("<i8").tobytes()
        yield hashlib.blake2b(tokens, digest_size=16).digest()


# ---- the cost ----


def target_costs(
    saved: Saved, cost_on: Sequence[Corpus], windows: Windows, found: Found, tokenising: Tokenising
) -> list[TargetCost]:
    """Bits per byte of each target text under the backbone and the extension, without and with the
    thresholds; empty without target text."""
    streams = _targets(saved, cost_on, tokenising)
    if not streams:
        return []
    own = _targets(saved, cost_on, tokenising, of_backbone=True) if saved.vocabulary else []
    options: dict[str, Any] = {
        "reference": saved.reference,
        "backbone_streams": own,
        "pieces": saved.pieces,
    }
    with under_thresholds(saved.model, None):
        trained = evaluate(saved.model, streams, windows, **options)
    nats = {name: result.backbone_nats for name, result in trained.items()}
    with under_thresholds(saved.model, found.thresholds()):
        calibrated = evaluate(saved.model, streams, windows, **options, backbone_nats=nats)
    return [
        TargetCost(
            name=name,
            backbone=result.backbone_bits_per_byte,
            trained=result.extended_bits_per_byte,
            calibrated=calibrated[name].extended_bits_per_byte,
        )
        for name, result in trained.items()
    ]


def _targets(
    saved: Saved, cost_on: Sequence[Corpus], tokenising: Tokenising, *, of_backbone: bool = False
) -> list[TokenStream]:
    streams = evaluation_streams(saved, cost_on, tokenising, of_backbone=of_backbone)
    return [stream for stream in streams if stream.role == "target"]


# ---- the files ----


def save_calibration(saved: Saved, found: Found, calibration: Calibration) -> None:
    """Make the thresholds part of the saved extension, and write the promise into all its files."""
    with changing(saved.weights):
        write_calibration(saved.weights, calibration)
        _write_thresholds(saved.weights, found.thresholds(calibration.promise.sentence))
    _write_promise(saved, calibration)


def remove_calibration(saved: Saved) -> None:
    """Restore the saved extension as it was trained; a UserError if it is not calibrated."""
    file = saved.weights / FILE
    if not file.is_file():
        raise UserError(f"the extension in {saved.weights} is not calibrated", got=f"no {FILE}")
    with changing(saved.weights):
        _write_thresholds(saved.weights, None)
        with disk_errors(file):
            file.unlink()
    _write_promise(saved, None)


def _write_thresholds(folder: Path, thresholds: Thresholds | None) -> None:
    values = read_json(folder / CONFIG, "adapter configuration")
    values["thresholds"] = None if thresholds is None else thresholds.to_dict()
    write_json(folder / CONFIG, values)


def _write_promise(saved: Saved, calibration: Calibration | None) -> None:
    """Write the promise into the model card and the record of the run."""
    promise = None if calibration is None else calibration.promise
    card, run = saved.weights / "README.md", RunFolder(saved.folder)
    if card.is_file():
        with disk_errors(card):
            text = card.read_text(encoding="utf-8")
        write_text(card, with_promise(text, promise))
    if run.is_finished:
        record = read_record(run.record)
        write_record(run.record, record.model_copy(update={"promise": promise}))
