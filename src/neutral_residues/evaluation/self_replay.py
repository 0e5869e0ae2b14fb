"""Generates source text with the backbone of a run, for a corpus with `path: self`.

The backbone, its tokenizer and `data.self_replay` determine a text of any length, of which the
cache contains the beginning:

    self-batches-KEY/00000.json    documents of one batch, which has its own seed
    self-KEY/                      as many of the first batches as a run needs
        text.jsonl                 their documents, as a corpus
        self-text.json             settings of the generation, and statistics (`SelfText`)
        SHA256SUMS

Ctrl-C therefore loses at most one batch, a resumed generation gives the same text, and a longer run
reads a longer text with the same beginning. A document begins as in pretraining: with the token
that the tokenizer adds before a text, or else with the end-of-text token.

A UserError is raised for useless text: if most documents are empty, or if too many sequences of 16
tokens are repeated, in one document (loops) or in several (copies). In real text, up to 11 % of
the sequences are repeated (LaTeX source); in generated text none at temperature 0.3 and above, 48 %
at 0.1, and 98 % with greedy decoding (LAB.md, "source text that the backbone writes").
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from neutral_residues.backbone import (
    backbone_key,
    context_length,
    device_name,
    load_config,
    pick_device,
    quantised,
)
from neutral_residues.config.data import DataSettings, SelfReplaySettings
from neutral_residues.config.run import RunConfig
from neutral_residues.data.encode import encoder
from neutral_residues.data.tokenise import (
    Tokenising,
    end_of_text_id,
    tokenizer_key,
    without_display,
)
from neutral_residues.digest import check_digests, from_cache, short_hash, write_digests
from neutral_residues.errors import UserError
from neutral_residues.evaluation.generate import continued, end_tokens, generation_settings
from neutral_residues.evaluation.saved import measured_backbone, measured_dtype
from neutral_residues.files import default_cache_folder, locked, read_text, whole_folder, write_text
from neutral_residues.results.base import read_part, write_part
from neutral_residues.results.self_text import SelfText, SelfTextBatch

logger = logging.getLogger(__name__)

VERSION = 1
"""Part of the cache key; increase it when the same settings give another text."""
TEXT, SUMMARY = "text.jsonl", "self-text.json"
REPEATED_TOKENS, MOST_REPEATED, MOST_EMPTY = 16, 0.3, 0.5


@dataclass(frozen=True)
class SelfReplay:
    """The text that the backbone of a run generates; created by `SelfReplay.of`."""

    config: RunConfig
    tokenizer: PreTrainedTokenizerBase  # the backbone's
    model_config: PretrainedConfig
    prompts: tuple[tuple[int, ...], ...]  # token ids with which documents begin, used in turn

    @classmethod
    def of(
        cls, config: RunConfig, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
    ) -> "SelfReplay | None":
        """The text for a run; None if no corpus has `path: self`. Raises a UserError if the file of
        prompts is empty or cannot be read, or if documents are longer than the model's context."""
        if config.data.self_corpus is None:
            return None
        settings = config.data.self_replay
        prompts = _prompts(settings, tokenizer, config.data.end_of_text)
        longest, limit = max(map(len, prompts)), context_length(model_config)
        if limit is not None and longest + settings.document_tokens > limit:
            what = "data.self_replay.document_tokens do not fit the model's context"
            got = f"{settings.document_tokens} behind a prompt of {longest}"
            raise UserError(what, got=got, allowed=f"up to {limit} in all")
        return cls(config, tokenizer, model_config, prompts)

    @property
    def settings(self) -> SelfReplaySettings:
        """The settings of generation."""
        return self.config.data.self_replay

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """Everything that determines the text, except its length."""
        return {
            "version": VERSION,
            "backbone": backbone_key(self.config.model, self.model_config),
            "quantised": quantised(self.config.training),
            "tokenizer_key": tokenizer_key(self.tokenizer),
            "end_of_text": self.config.data.end_of_text,
            "prompts": short_hash(self.prompts) if self.settings.prompts else None,
            **self.settings.model_dump(mode="json", exclude={"tokens", "prompts"}),
        }

    @property
    def folder(self) -> Path:
        """Folder of the corpus in the cache; it may not exist yet."""
        return self._cached("self", self.config.self_tokens)

    def _cached(self, kind: str, *more: object) -> Path:
        cache = self.config.data.cache or default_cache_folder()
        return cache / f"{kind}-{short_hash(self.made_from, *more)}"

    def read(self) -> SelfText | None:
        """Facts about the text in the cache; None if it is missing or damaged."""
        return from_cache(self.folder, self._checked)

    def _checked(self) -> SelfText:
        check_digests(self.folder, required=True)
        return read_part(SelfText, self.folder / SUMMARY, "summary of a text")

    def as_file(self) -> RunConfig:
        """The run configuration with the generated file instead of `path: self`."""
        data, path = self.config.data, self.folder / TEXT
        train = (c.model_copy(update={"path": path}) if c.is_self else c for c in data.train)
        changed = data.model_copy(update={"train": tuple(train)})
        return self.config.model_copy(update={"data": changed})

    def without(self) -> DataSettings:
        """The data settings of the run without the corpus that has `path: self`."""
        train = tuple(corpus for corpus in self.config.data.train if not corpus.is_self)
        return self.config.data.model_copy(update={"train": train})

    # ---- writing ----

    def write(self, tokenising: Tokenising = without_display) -> SelfText:
        """Generate the text, unless it is in the cache. If another process is generating it, wait
        for that.

        Raises:
            UserError: for useless text, a model that cannot be loaded, or a full disk.
            KeyboardInterrupt: after Ctrl-C; finished batches are kept.
        """
        batches = self._cached("self-batches")
        waiting = "waiting for another process whose backbone writes source text"
        lock = batches.with_name(f".{batches.name}.lock")
        with locked(lock, on_wait=lambda: logger.warning(waiting)):
            if (found := self.read()) is None:
                found = self._join(self._batches(batches, tokenising))
        return found

    def _batches(self, folder: Path, tokenising: Tokenising) -> list[SelfTextBatch]:
        """Batches with as many tokens as the run needs; those not in the cache are generated."""
        wanted, written, model = self.config.self_tokens, 0, None
        found: list[SelfTextBatch] = []
        what = f"{Path(self.config.model).name} writes {wanted:,} tokens of source text"
        with tokenising(what) as advance:
            while written < wanted:
                number, file = len(found), folder / f"{len(found):05}.json"
                batch = from_cache(file, partial(read_part, SelfTextBatch, file, "text"))
                if batch is None:
                    model = model or self._load()
                    batch = self._write_batch(model, number, so_far=written)
                    write_part(file, batch)
                found.append(batch)
                written += batch.num_tokens
                self._check_empty(found)
                if number == 0:
                    self._check_repeated(found)
                advance(sum(len(text.encode()) for text in batch.documents))
        return found

    def _load(self) -> PreTrainedModel:
        """Load the backbone, as it is loaded for evaluation."""
        device = pick_device()
        dtype = measured_dtype(self.config, device)
        return measured_backbone(
            self.config.model, self.config, dtype, device, revision=self.config.revision
        )

    def _write_batch(self, model: PreTrainedModel, number: int, *, so_far: int) -> SelfTextBatch:
        settings, rows = self.settings, self.settings.batch_rows
        places = range(number * rows, (number + 1) * rows)
        prompts = [self.prompts[place % len(self.prompts)] for place in places]
        ends = end_tokens(model, self.tokenizer, _end_of_text(self.config, self.tokenizer))
        sampling = generation_settings(
            ends, ends[0], settings.document_tokens, settings.temperature, settings.top_p
        )
        seed = int(short_hash(settings.seed, number)[:12], 16)
        try:
            written = continued(model, [list(it) for it in prompts], sampling, seed)
        except KeyboardInterrupt:
            so_far_of = f"{so_far:,} of {self.config.self_tokens:,} tokens of source text"
            what = f"stopped with {so_far_of} written; the same command goes on"
            raise KeyboardInterrupt(what) from None
        documents = [tokens[1:] for tokens in written]  # without the token that begins a text
        return self._batch(documents, [len(prompt) - 1 for prompt in prompts], set(ends))

    def _batch(
        self, documents: Sequence[list[int]], prompted: Sequence[int], ends: set[int]
    ) -> SelfTextBatch:
        """Decode a batch of documents, of which `prompted` tokens each are their prompts; leaves
        out documents that contain nothing else."""
        texts, num_tokens, num_cut = [], 0, 0
        for tokens, start in zip(documents, prompted, strict=True):
            is_cut = tokens[-1] not in ends
            written = tokens if is_cut else tokens[:-1]
            text = str(self.tokenizer.decode(written, skip_special_tokens=True))
            if len(written) == start or not text.strip():
                continue
            texts.append(text)
            num_tokens += len(written) + 1
            num_cut += is_cut
        num_empty = len(documents) - len(texts)
        return SelfTextBatch(
            documents=texts, num_tokens=num_tokens, num_empty=num_empty, num_cut=num_cut
        )

    # ---- checking, and writing the corpus ----

    def _join(self, batches: Sequence[SelfTextBatch]) -> SelfText:
        """Check the text and write it to the cache as a corpus."""
        texts = [text for batch in batches for text in batch.documents]
        found = SelfText(
            made_from=self.made_from,
            device=device_name(pick_device()),
            num_documents=len(texts),
            num_tokens=sum(batch.num_tokens for batch in batches),
            num_bytes=sum(len(text.encode()) for text in texts),
            num_empty=sum(batch.num_empty for batch in batches),
            num_cut=sum(batch.num_cut for batch in batches),
            repeated_share=self._check_repeated(batches),
        )
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
        with whole_folder(self.folder) as folder:
            write_text(folder / TEXT, "".join(f"{line}\n" for line in lines))
            write_part(folder / SUMMARY, found)
            write_digests(folder)
        return found

    def _check_empty(self, batches: Sequence[SelfTextBatch]) -> None:
        num_empty = sum(batch.num_empty for batch in batches)
        num_documents = num_empty + sum(len(batch.documents) for batch in batches)
        if num_empty > MOST_EMPTY * num_documents:
            raise UserError(
                f"{self.config.model} writes no text of its own",
                got=f"{num_empty:,} of {num_documents:,} documents empty",
                do="give data.self_replay.prompts, or source text",
            )

    def _check_repeated(self, batches: Sequence[SelfTextBatch]) -> float:
        """Share of repeated sequences. Raises a UserError if it is above `MOST_REPEATED`."""
        encode = encoder(self.tokenizer, _end_of_text(self.config, self.tokenizer))
        share = repeated_share(encode([text for batch in batches for text in batch.documents]))
        if share > MOST_REPEATED:
            raise UserError(
                f"{self.config.model} writes text that repeats itself",
                got=f"{100 * share:.0f} % of all sequences of {REPEATED_TOKENS} tokens",
                allowed=f"up to {100 * MOST_REPEATED:.0f} %",
                do="raise data.self_replay.temperature and top_p, or give prompts, or source text",
            )
        return share


def repeated_share(documents: Sequence[Sequence[int]]) -> float:
    """Share of all sequences of 16 tokens that occurred before, in the same document or another; a
    shorter document counts as one sequence."""
    multipliers = np.random.default_rng(0).integers(2**63, size=REPEATED_TOKENS, dtype=np.uint64)
    keys = []
    for tokens in documents:
        padded = [*tokens, *[-1] * (REPEATED_TOKENS - len(tokens))]
        windows = sliding_window_view(np.array(padded, np.int64).astype(np.uint64), REPEATED_TOKENS)
        keys.append((windows * (2 * multipliers + 1)).sum(axis=1, dtype=np.uint64))
    every = np.concatenate(keys) if keys else np.zeros(0)
    return 1 - len(np.unique(every)) / len(every) if len(every) else 0.0


def _end_of_text(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    return end_of_text_id(tokenizer, config.data.end_of_text)


def _prompts(
    settings: SelfReplaySettings, tokenizer: PreTrainedTokenizerBase, end_of_text: str | None
) -> tuple[tuple[int, ...], ...]:
    """Token ids with which documents begin: the first token of a text, and a prompt."""
    first = tokenizer.bos_token_id
    if first is None or first not in tokenizer("")["input_ids"]:
        first = end_of_text_id(tokenizer, end_of_text)
    if settings.prompts is None:
        return ((first,),)
    lines = [line for line in read_text(settings.prompts).splitlines() if line.strip()]
    if not lines:
        what = f"data.self_replay.prompts: no line with text in {settings.prompts}"
        raise UserError(what, do="give some words or beginnings, one in each line")
    tokens = tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"]
    return tuple((first, *line) for line in tokens)


def as_was_read(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> RunConfig:
    """The configuration of a finished run with the generated file instead of `path: self`. Raises a
    UserError if the text is no longer in the cache.

    Args:
        tokenizer: the tokenizer of the backbone.
    """
    if config.data.self_corpus is None:
        return config
    replay = SelfReplay.of(config, tokenizer, load_config(config.model, **config.hub_options))
    if replay is None or replay.read() is None:
        what, do = "the text that the backbone wrote is not in the cache", "give texts to measure"
        raise UserError(what, got=config.model, do=do)
    return replay.as_file()
