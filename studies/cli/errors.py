"""Errors that are about the user's input: the command line shows them in one line, without a traceback."""


def is_about_input(error: Exception) -> bool:
    """Return whether an error is about input; all other errors are bugs, and keep their traceback."""
    # Imported when something has failed, so that `--help` answers at once.
    from interp import AnchorError, GuardFileError, ModelError, PictureError, StoreError, TraceError
    from studies.attacks.search import AttackSetupError
    from studies.bookkeeping.tables import TableError
    from studies.datasets import QueryFileError
    from studies.defences.answer_log import AnswerLogError
    from studies.experiment.config import ConfigError
    from studies.guards.sweep_grid import GridError
    from studies.judges import EndpointError
    from studies.judges.by_name import JudgeNameError
    from studies.llava_qwen.base_model import BaseModelError
    from studies.presets.preset import PresetError
    from studies.probing.settings import ProbeError

    about_models = (AnchorError, BaseModelError, GuardFileError, ModelError, PictureError, StoreError, TraceError)
    about_files = (OSError, QueryFileError, AnswerLogError, TableError)
    about_settings = (
        AttackSetupError,
        ConfigError,
        GridError,
        PresetError,
        ProbeError,
        EndpointError,
        JudgeNameError,
    )
    return isinstance(error, about_models + about_files + about_settings)
