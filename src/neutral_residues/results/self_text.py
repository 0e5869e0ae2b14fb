"""What a backbone wrote itself as source text, and how. No torch."""

from typing import Any, Literal

from pydantic import Field

from neutral_residues.results.base import Part


class SelfText(Part):
    """The text that a backbone wrote for a run."""

    format: Literal["neutral-residues/self-text"] = "neutral-residues/self-text"
    """Says that the file is ours."""
    version: Literal[1] = 1
    """Version of this schema."""
    made_from: dict[str, Any]
    """What decides the text: the backbone's digest, the tokenizer's key, `data.self_replay`."""
    device: str
    """What it was written on: the same settings give another text on another kind of device."""
    num_documents: int = Field(ge=1)
    """Documents that are not empty."""
    num_tokens: int = Field(ge=1)
    """Their tokens, prompts and ends of documents counted."""
    num_bytes: int = Field(ge=1)
    """Their UTF-8 bytes."""
    num_empty: int = Field(ge=0)
    """Documents that the backbone ended at once; they are left out."""
    num_cut: int = Field(ge=0)
    """Documents that were not at their end after `document_tokens`."""
    repeated_share: float = Field(ge=0, le=1)
    """Of all sequences of 16 tokens, those that came before, in this document or another."""

    @property
    def sentence(self) -> str:
        """How much there is of it, and how it was written, for people."""
        names = ("temperature", "top_p", "document_tokens")
        temperature, top_p, longest = (self.made_from.get(name) for name in names)
        prompts = " from prompts" if self.made_from.get("prompts") else ""
        return (
            f"{self.num_documents:,} documents, {self.num_tokens:,} tokens, written by the backbone"
            f"{prompts} at temperature {temperature}, top_p {top_p}; {self.num_cut:,} cut at"
            f" {longest} tokens, {100 * self.repeated_share:.1f} % repeated"
        )


class SelfTextBatch(Part):
    """Documents that were written at a time."""

    format: Literal["neutral-residues/self-text-batch"] = "neutral-residues/self-text-batch"
    """Says that the file is ours."""
    version: Literal[1] = 1
    """Version of this schema."""
    documents: list[str]
    """Those that are not empty."""
    num_tokens: int = Field(ge=0)
    """As in `SelfText`, and so are the others."""
    num_empty: int = Field(ge=0)
    num_cut: int = Field(ge=0)
