"""Words: what no merge can cross, as old tokens."""

from collections import Counter

from neutral_residues.vocabulary.spelling import Spelling
from neutral_residues.vocabulary.words import count_words, split_at_spaces
from tiny_run import byte_tokenizer
from two_scripts import ENGLISH, UKRAINIAN, documents

TEXTS = [*documents(UKRAINIAN), *documents(ENGLISH), "<|eos|>the  cat\n\n sat", "日本 😀"]


def test_words_are_the_tokens_of_the_text(any_bpe) -> None:
    spelling = Spelling.of(any_bpe)
    words = count_words(TEXTS, any_bpe, spelling)
    ids = any_bpe(TEXTS, add_special_tokens=False)["input_ids"]
    counted: Counter[int] = Counter()
    for word, count in words.counts.items():
        for id in word:
            counted[id] += count
    assert counted == Counter(id for text in ids for id in text)
    assert words.num_tokens == sum(map(len, ids))
    assert words.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert words.num_spaced_words == sum(len(text.split()) for text in TEXTS)
    # No word holds a space inside: nothing is learnt across words.
    texts = [spelling.text_of_word(word) for word in words.counts]
    assert [text for text in texts if " " in text.strip()] == []


def test_runs_of_spaces_stay_whole() -> None:
    tokenizer = byte_tokenizer()  # its pre-tokeniser leaves a document in one piece
    spelling = Spelling.of(tokenizer)
    ids = tuple(tokenizer("a  bc d")["input_ids"])
    words = split_at_spaces(ids, spelling)
    assert [spelling.text_of_word(word) for word in words] == ["a", "  bc", " d"]


def test_two_texts_add_up(demo) -> None:
    spelling = Spelling.of(demo)
    one, other = (count_words(part, demo, spelling) for part in (TEXTS[:30], TEXTS[30:]))
    assert one + other == count_words(TEXTS, demo, spelling)


def test_progress_is_told_every_byte(demo) -> None:
    told: list[int] = []
    words = count_words(TEXTS, demo, Spelling.of(demo), advance=told.append)
    assert sum(told) == words.num_bytes


def test_what_an_earlier_call_left_in_the_tokenizer_is_no_part_of_it(demo) -> None:
    spelling = Spelling.of(demo)
    before = count_words(TEXTS, demo, spelling)
    demo("some text", truncation=True, padding="max_length", max_length=2)
    assert count_words(TEXTS, demo, spelling) == before
