"""Promises of calibrated runs: a row for each text, a sentence, and what it costs."""

from neutral_residues.report.page import shown_section
from neutral_residues.report.promises import promises_table
from neutral_residues.results.model_card import model_card, with_promise
from neutral_residues.results.promise import CalibratedSet, Promise, TargetCost
from synthetic import make_record, make_section

PUBMED = CalibratedSet(
    name="pubmed",
    key="key",
    group_by="source",
    num_documents=1000,
    num_tuning_units=100,
    num_units=900,
    loss=0.004,
    trained_loss=0.06,
    exact_share=0.996,
    trained_exact_share=0.94,
)
PROMISE = Promise(
    kind="tokens",
    at_most=0.01,
    confidence=0.95,
    form="cut",
    over=32,
    dial=0.005,
    sets=[PUBMED],
    costs=[TargetCost(name="fr", backbone=4.0, trained=2.0, calibrated=2.03)],
    training_text_checked=True,
)


def test_the_sentence() -> None:
    assert PROMISE.sentence == (
        "For text like pubmed (900 sources), the gates open on at most 1 % of the tokens"
        " (mean over sources), with 95 % confidence; nothing is promised for other text."
    )
    about_documents = PROMISE.model_copy(
        update={"kind": "documents", "rise_percent": 1.0, "training_text_checked": False}
    )
    assert "at most 1 % of the documents get worse by more than 1 % in bits per byte" in (
        about_documents.sentence
    )
    assert "(900 sources), if it was not trained on, at most" in about_documents.sentence


def test_the_table() -> None:
    assert promises_table(make_section(make_record())) is None
    section = make_section(make_record(promise=PROMISE), make_record("lora"))
    table = promises_table(section)
    assert table is not None
    (row,) = table.rows
    assert row.name == "neutral, pubmed"
    texts = [column.cells[0].text for column in table.columns]
    before = "as trained, before it was calibrated"
    assert texts == [PROMISE.sentence, "6.00 → 0.40", "94.00 → 99.60", "1.5", before]
    assert shown_section(section)["promises_table"] == table


def test_with_which_thresholds_a_record_was_measured() -> None:
    other = PROMISE.model_copy(update={"over": 8})
    for promise, measured, said in (
        (PROMISE, PROMISE, "with these thresholds"),
        (PROMISE, other, "with earlier thresholds"),
        (None, PROMISE, "with these thresholds, removed since"),
    ):
        record = make_record(promise=promise, measured_promise=measured)
        table = promises_table(make_section(record))
        assert table is not None
        assert table.columns[-1].cells[0].text == said


def test_the_card() -> None:
    card = model_card(make_record(), "load")
    promised = with_promise(card, PROMISE)
    assert promised == model_card(make_record(promise=PROMISE), "load")
    assert f"## Calibrated\n\n{PROMISE.sentence}\n" in promised
    assert "99.6 % (94.0 % as trained)" in promised
    assert "1.5 % of what was learnt on fr is lost" in promised
    assert with_promise(promised, None) == card
