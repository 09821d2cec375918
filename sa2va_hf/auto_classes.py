"""Registration of Sa2VA with the Auto classes of transformers, without importing transformers or the model.

`AutoModel.register` needs the class itself, and with it torch, transformers and sam2, which a program that only parses
its arguments should not wait for. The tables of transformers hold names instead: "sa2va" -> "Sa2VAConfig", to be
imported from `transformers.models.sa2va` at the first lookup. Here that module is this package, and the names are
entered as soon as transformers has created its tables: at once, or when it is imported later.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MODEL_TYPE = "sa2va"
CONFIG_CLASS = "Sa2VAConfig"
MODULE = f"transformers.models.{MODEL_TYPE}"
AUTO = "transformers.models.auto"
TABLES = {  # module of transformers: its tables of names, and the name that ours gets in each
    f"{AUTO}.configuration_auto": {"CONFIG_MAPPING_NAMES": CONFIG_CLASS},
    f"{AUTO}.modeling_auto": {
        "MODEL_MAPPING_NAMES": "Sa2VAForConditionalGeneration",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "Sa2VAForConditionalGeneration",
    },
    f"{AUTO}.processing_auto": {"PROCESSOR_MAPPING_NAMES": "Sa2VAProcessor"},
}
# Older transformers need a title for every config while the Auto classes are created; newer ones have no such table.
TITLES, TITLE = "MODEL_NAMES_MAPPING", "Sa2VA"


def register() -> None:
    """Enters Sa2VA into the tables of transformers, now or when they are created. Idempotent."""
    sys.modules.setdefault(MODULE, sys.modules[__package__])
    for name in TABLES:
        if name in sys.modules:
            _enter(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _enter(module: ModuleType) -> None:
    for table, name in TABLES[module.__name__].items():
        getattr(module, table)[MODEL_TYPE] = name
    if hasattr(module, TITLES):
        getattr(module, TITLES)[MODEL_TYPE] = TITLE
    for mapping in list(vars(module).values()):  # those that were created before the config's name was in its table
        if hasattr(mapping, "_reverse_config_mapping"):
            mapping._reverse_config_mapping[CONFIG_CLASS] = MODEL_TYPE


class _AfterImport(MetaPathFinder):
    """Calls `_enter` after a module of `TABLES` was executed; all else about its import is as usual."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in TABLES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_enter(module: ModuleType) -> None:
            execute(module)
            _enter(module)

        spec.loader.exec_module = execute_and_enter
        return spec
