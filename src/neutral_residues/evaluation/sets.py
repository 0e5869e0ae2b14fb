"""What a record says of the texts that were measured."""

from typing import Literal

from neutral_residues.data.run_data import RunData
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.results.record import EvaluationSet


def evaluation_set(
    stream: TokenStream, use: Literal["evaluate", "validate"] = "evaluate"
) -> EvaluationSet:
    """A text by name, size and content."""
    return EvaluationSet(
        name=stream.name,
        role=stream.role,
        use=use,
        key=stream.content_hash(),
        num_bytes=stream.num_bytes,
        num_tokens=stream.num_tokens,
        num_documents=stream.num_documents,
    )


def evaluation_sets(data: RunData) -> list[EvaluationSet]:
    """Everything that a run measures."""
    return [
        *(evaluation_set(stream, "evaluate") for stream in data.evaluate),
        *(evaluation_set(stream, "validate") for stream in data.validate),
    ]
