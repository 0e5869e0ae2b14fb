"""How `neutral evaluate RUN --into-record` changes the record of a finished run. No torch.

Task scores and chat answers are added. If the extension has other thresholds than when the record
was measured, everything in it is replaced, so that no record mixes numbers of two extensions.
"""

from collections.abc import Collection

from neutral_residues.errors import UserError
from neutral_residues.results.promise import Promise
from neutral_residues.results.record import Record


def check_renewal(
    own: Record, promise: Promise | None, *, tasks: Collection[str], with_chat: bool, with_kl: bool
) -> None:
    """Raise a UserError if nothing would be added to `own`, or if thresholds have changed and not
    everything in it will be measured again; for KL, if they have not, as texts are then not read.

    Args:
        own: the record of the run.
        promise: the current promise of the extension, which depends on its thresholds.
        tasks: names of the tasks that will be measured.
        with_chat: whether chat prompts will be answered.
        with_kl: whether KL is asked for.
    """
    if promise == own.measured_promise:
        if not tasks and not with_chat:
            what = "--into-record has nothing to add: thresholds are as when the run was measured"
            raise UserError(what, do="add --tasks or --chat")
        if with_kl:
            what = "--kl has no effect: --into-record measures no text again"
            raise UserError(what, do="leave it out, or use --output")
        return
    names = [task.name for task in own.main_scores if task.name not in tasks]
    options = [f"--tasks {','.join(names)}"] if names else []
    if own.chat and not with_chat:
        options.append("--chat FILE")
    if options:
        what = "thresholds have changed since the record was measured, so all of it is replaced"
        do = "add it, or keep this measurement apart with --output"
        raise UserError(what, got=f"nothing for {' and '.join(options)}", do=do)


def renewed(own: Record, new: Record) -> Record:
    """`own` with the task scores and chat answers of `new`. If thresholds have changed in between,
    all measurements are those of `new`."""
    measured = {task.name for task in new.tasks}
    tasks = [task for task in own.tasks if task.name not in measured] + new.tasks
    parts: dict[str, object] = {"tasks": tasks, "chat": new.chat or own.chat}
    if new.measured_promise != own.measured_promise:
        names = ("sets", "beginnings", "spliced", "samples", "gates", "promise", "measured_promise")
        parts |= {name: getattr(new, name) for name in names}
    return own.model_copy(update=parts)
