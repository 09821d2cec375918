"""The settings of a training run: dataclasses, filled from one YAML file, where the command line wins.

    model, data, training = parse(["configs/quickstart.yaml", "--learning_rate", "1e-4"])

Relative paths, also those inside YAML files, are relative to the directory that the command is started from.
"""

from .base import BaseTrainingArguments
from .parsing import CONFIG_NAME, parse, save_config
from .sa2va import ARGUMENTS, LLM_LINEARS, DataArguments, ModelArguments, Sa2VATrainingArguments

__all__ = [
    "ARGUMENTS",
    "CONFIG_NAME",
    "LLM_LINEARS",
    "BaseTrainingArguments",
    "DataArguments",
    "ModelArguments",
    "Sa2VATrainingArguments",
    "parse",
    "save_config",
]
