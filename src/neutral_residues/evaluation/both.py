"""A backbone with its extended model, and everything that is measured on both: at the end of a run,
and for a saved extension."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from neutral_residues.config.run import EvaluationSettings
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.chat import answer_both
from neutral_residues.evaluation.evaluate import OnProgress, evaluate
from neutral_residues.evaluation.gate_maps import default_texts, gate_texts
from neutral_residues.evaluation.generate import generate_both
from neutral_residues.evaluation.possible import Pieces
from neutral_residues.evaluation.spliced import measure_spliced
from neutral_residues.evaluation.tasks.runner import TaskPlan, measure_tasks
from neutral_residues.evaluation.windows import Windows
from neutral_residues.results.record import GateText, Sample, TaskScore
from neutral_residues.results.set_result import SetResult
from neutral_residues.results.spliced import Spliced
from neutral_residues.vocabulary.vocabulary import Vocabulary

SAMPLE_TOKENS = 60
"""Tokens generated after each prompt of `evaluation.prompts`."""
BEGINNING_TOKENS, MOST_BEGINNINGS = 64, 64
"""Tokens of a text that is read by itself, and such texts of each set."""


class TextResults(NamedTuple):
    """Results of both models on evaluation sets; the fields are those of `Record`."""

    sets: dict[str, SetResult]  # by the names of the sets
    beginnings: dict[str, SetResult]  # the same for the beginnings of their documents
    spliced: Spliced | None  # on text that alternates between a source and a target set


@dataclass(frozen=True)
class BothModels:
    """A backbone with its extended model, and their tokenizers."""

    model: nn.Module  # the extended model
    reference: nn.Module | None  # the backbone; None if disabling the extension gives it
    tokenizer: PreTrainedTokenizerBase  # the tokenizer of the extended model
    backbone_tokenizer: PreTrainedTokenizerBase  # the same, unless the extension has new tokens
    vocabulary: Vocabulary | None  # the new tokens, if there are any
    end_of_text: int  # id of the token that ends a document
    evaluation: EvaluationSettings
    seed: int  # seed of sampled continuations

    @property
    def pieces(self) -> Pieces:
        """For each new token, the backbone's tokens that spell the same text."""
        return self.vocabulary.pieces if self.vocabulary else ()

    def texts(
        self,
        streams: Sequence[TokenStream],
        windows: Windows,
        *,
        backbone_streams: Sequence[TokenStream] = (),
        kl: bool = False,
        on_progress: OnProgress | None = None,
    ) -> TextResults:
        """Everything that a record holds on evaluation sets; arguments and errors as in
        `evaluate`. Without sets nothing is checked."""
        if not streams:
            return TextResults({}, {}, None)
        sets = evaluate(
            self.model,
            streams,
            windows,
            reference=self.reference,
            backbone_streams=backbone_streams,
            pieces=self.pieces,
            kl=kl,
            tokenizer=self.tokenizer,
            on_progress=on_progress,
        )
        beginnings = self.beginnings(
            streams, windows, backbone_streams=backbone_streams, on_progress=on_progress
        )
        spliced = measure_spliced(
            self.model,
            streams,
            context_tokens=windows.context_tokens,
            num_windows=self.evaluation.num_spliced(windows.context_tokens),
            reference=self.reference,
            pieces=self.pieces,
            on_progress=on_progress,
        )
        return TextResults(sets, beginnings, spliced)

    def beginnings(
        self,
        streams: Sequence[TokenStream],
        windows: Windows,
        *,
        backbone_streams: Sequence[TokenStream] = (),
        on_progress: OnProgress | None = None,
    ) -> dict[str, SetResult]:
        """Name of each set -> results of both models, KL among them, on the first
        `BEGINNING_TOKENS` tokens of its first documents, each read by itself as a prompt is;
        windows of running text show nearly only later tokens. An extension with new tokens reads
        source text in the backbone's tokens, and no target text. Chats are left out, and sets
        without a document of this length."""
        num_tokens = max(1, min(BEGINNING_TOKENS, windows.context_tokens - 1))
        own = {stream.name: stream for stream in backbone_streams} if self.vocabulary else {}
        found = [
            own.get(it.name, it).beginnings(num_tokens, max_documents=MOST_BEGINNINGS)
            for it in streams
            if it.predicted is None and not (own and it.role == "target")
        ]
        one_text = Windows(self.end_of_text, num_tokens + 1, num_tokens + 1, windows.batch_rows)

        def on_alone(name: str, done: int, total: int) -> None:
            if on_progress is not None:
                on_progress(f"{name}, beginnings", done, total)

        return evaluate(
            self.model,
            [it for it in found if it.num_documents],
            one_text,
            reference=self.reference,
            pieces=self.pieces,
            kl=True,
            on_progress=on_alone,
        )

    def tasks(self, plan: TaskPlan, **settings: Any) -> list[TaskScore]:
        """Scores of both models on tasks; `settings` are those of `measure_tasks`."""
        return measure_tasks(self.model, plan, reference=self.reference, **settings)

    def completions(self, prompts: Sequence[str], **settings: Any) -> list[Sample]:
        """Completions of the prompts by both models; `settings` are those of `generate_both`."""
        return generate_both(
            self.model,
            self.tokenizer,
            prompts,
            reference=self.reference,
            backbone_tokenizer=self.backbone_tokenizer,
            end_of_text=self.end_of_text,
            **settings,
        )

    def samples(self) -> list[Sample]:
        """Continuations of the prompts in `evaluation.prompts` by both models."""
        if not self.evaluation.prompts:
            return []
        return self.completions(
            self.evaluation.prompts,
            max_new_tokens=SAMPLE_TOKENS,
            temperature=self.evaluation.temperature,
            seed=self.seed,
        )

    def chat(self, prompts: Sequence[str], on_progress: OnProgress | None = None) -> list[Sample]:
        """Greedy answers of both models to chat prompts; see `answer_both`."""
        return answer_both(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=self.evaluation.chat_tokens,
            batch_rows=self.evaluation.batch_rows,
            reference=self.reference,
            backbone_tokenizer=self.backbone_tokenizer,
            end_of_text=self.end_of_text,
            on_progress=on_progress,
        )

    def gates(self, streams: Sequence[TokenStream]) -> list[GateText]:
        """Gates on the beginnings of a source and of a target set, on a mixture of both, and on the
        texts in `evaluation.gate_texts`; empty for a model without gates."""
        texts = default_texts(streams, self.tokenizer, self.evaluation.gate_texts)
        return gate_texts(self.model, self.tokenizer, texts, end_of_text=self.end_of_text)
