"""What a run would do, without doing it."""

from dataclasses import dataclass

from neutral_residues.data.run_data import text_sizes
from neutral_residues.data.text_size import TextSize
from neutral_residues.training.cost import WeightCount, peak_memory_bytes
from neutral_residues.training.setup import Setup, ranks


@dataclass(frozen=True)
class Description:
    """A run in numbers.

    Attributes:
        weights: of the backbone, new, and trained.
        learning_rate: its peak.
        rows_per_step: of an optimiser step, on all ranks.
        num_tokens: that the whole training reads.
        train, evaluate: sizes of the texts, some of them estimated.
        memory_bytes: a rough estimate of the peak while training.
        disk_bytes: of checkpoints and extension.
        num_ranks: processes that train together.
    """

    weights: WeightCount
    learning_rate: float
    rows_per_step: int
    num_tokens: int
    train: tuple[TextSize, ...]
    evaluate: tuple[TextSize, ...]
    memory_bytes: int
    disk_bytes: int
    num_ranks: int


def describe(setup: Setup) -> Description:
    """Count what a run would do.

    Raises:
        UserError: for text that cannot be read, or is too short where it was counted.
    """
    config, weights = setup.config, setup.weights
    train, evaluate, _ = text_sizes(config.data, setup.tokenizer)
    if all(size.is_exact for size in (*train, *evaluate)):
        setup.prepare()
    text_config = setup.model_config.get_text_config()
    memory = weights.training_memory_bytes(config, model_config=text_config, bf16=setup.bf16)
    if setup.device.type == "cpu":
        memory += peak_memory_bytes(setup.device)  # libraries and tokenizer, which the run needs
    checkpoints = weights.checkpoint_bytes() * (config.training.keep_checkpoints + 1)
    return Description(
        weights=weights,
        learning_rate=setup.learning_rate,
        rows_per_step=setup.rows_per_step,
        num_tokens=setup.num_tokens,
        train=train,
        evaluate=evaluate,
        memory_bytes=memory,
        disk_bytes=checkpoints + weights.num_new_weights * 4,
        num_ranks=ranks().num_processes,
    )
