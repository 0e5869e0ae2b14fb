"""Facts about source text that a backbone generated (`path: self`). No torch."""

from typing import Any, Literal

from pydantic import Field

from neutral_residues.results.base import Part


class SelfText(Part):
    """Facts about the source text that the backbone of a run generated."""

    format: Literal["neutral-residues/self-text"] = "neutral-residues/self-text"
    """Identifies the kind of file."""
    version: Literal[1] = 1
    """Version of this schema."""
    made_from: dict[str, Any]
    """Everything that determines the text: digest of the backbone, key of the tokenizer, and the
    settings `data.self_replay`."""
    device: str
    """Device that generated it; the same settings give another text on another kind of device."""
    num_documents: int = Field(ge=1)
    """Number of documents, without empty ones."""
    num_tokens: int = Field(ge=1)
    """Number of their tokens, including prompts and end-of-text tokens."""
    num_bytes: int = Field(ge=1)
    """Number of their UTF-8 bytes."""
    num_empty: int = Field(ge=0)
    """Number of documents that the backbone ended at once; they are left out."""
    num_cut: int = Field(ge=0)
    """Number of documents that the backbone had not ended after `document_tokens`."""
    repeated_share: float = Field(ge=0, le=1)
    """Share of the sequences of 16 tokens that occurred before, in the same document or another."""

    @property
    def sentence(self) -> str:
        """A sentence for reports: the amount of text, and the settings of its generation."""
        names = ("temperature", "top_p", "document_tokens")
        temperature, top_p, longest = (self.made_from.get(name) for name in names)
        prompts = " from prompts" if self.made_from.get("prompts") else ""
        return (
            f"{self.num_documents:,} documents, {self.num_tokens:,} tokens, written by the backbone"
            f"{prompts} at temperature {temperature}, top_p {top_p}; {self.num_cut:,} cut at"
            f" {longest} tokens, {100 * self.repeated_share:.1f} % repeated"
        )


class SelfTextBatch(Part):
    """Documents that were generated in one batch."""

    format: Literal["neutral-residues/self-text-batch"] = "neutral-residues/self-text-batch"
    """Identifies the kind of file."""
    version: Literal[1] = 1
    """Version of this schema."""
    documents: list[str]
    """The texts of the documents, without empty ones."""
    num_tokens: int = Field(ge=0)
    """As in `SelfText`, like the fields below."""
    num_empty: int = Field(ge=0)
    num_cut: int = Field(ge=0)
