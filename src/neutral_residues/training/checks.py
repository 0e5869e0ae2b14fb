"""Checks of a run file against its model, before texts are read and weights are loaded. Each
function raises a UserError."""

from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.integrations import get_reporting_integration_callbacks

from neutral_residues.backbone import context_length
from neutral_residues.config.data import DataSettings
from neutral_residues.config.run import EvaluationSettings, RunConfig, TrainingSettings
from neutral_residues.data.chat import chat_template
from neutral_residues.errors import UserError, first_line
from neutral_residues.evaluation.both import SAMPLE_TOKENS
from neutral_residues.evaluation.chat import check_prompts, read_prompts
from neutral_residues.evaluation.generate import check_prompt
from neutral_residues.files import read_text


def check_context(config: RunConfig, model_config: PretrainedConfig) -> None:
    """Check that training rows and evaluation windows fit the model's context."""
    longest = context_length(model_config)
    settings = {
        "data.block_tokens": config.data.block_tokens,
        "evaluation.context_tokens": config.context_tokens,
    }
    for key, tokens in settings.items():
        if longest is not None and tokens > longest:
            what = f"{key} is longer than the model's context"
            raise UserError(what, got=tokens, allowed=f"at most {longest}")


def check_samples(
    evaluation: EvaluationSettings,
    model_config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Check that prompts and chat prompts can be read, and fit the model's context together with
    their answers."""
    for prompt in evaluation.prompts:
        check_prompt(model_config, tokenizer, prompt, max_new_tokens=SAMPLE_TOKENS)
    if evaluation.chat:
        prompts, longest = read_prompts(evaluation.chat), evaluation.chat_tokens
        check_prompts(prompts, model_config, tokenizer, max_new_tokens=longest)


def prepare_chats(tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> None:
    """Set the run's chat template on the tokenizer; a UserError if there are chats and no
    template."""
    if data.chat_template:
        tokenizer.chat_template = read_text(data.chat_template)
    if any(corpus.chat for corpus in data.corpora):
        chat_template(tokenizer)


def check_trackers(training: TrainingSettings) -> None:
    """Check that each tracker of `training.report_to` is known and installed."""
    try:
        for callback in get_reporting_integration_callbacks(list(training.report_to)):
            callback()
    except (ImportError, RuntimeError, ValueError) as error:
        do = "install it, or remove it"
        raise UserError("training.report_to", got=first_line(error), do=do) from error
