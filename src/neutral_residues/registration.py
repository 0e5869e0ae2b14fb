"""Registers the tuner with PEFT as soon as PEFT is there, without importing PEFT (and torch) before anybody needs it.

PEFT has no plugin entry point: its dictionaries must be filled before it reads a saved extension. `import neutral_residues`
must do that, and must also stay light, because `neutral --help` and the report run without torch. So: if PEFT is loaded, register
now; else register right after somebody imports it.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TUNER_MODULE = "neutral_residues.adapters.attach"


class _RegisterAfterPeft(MetaPathFinder):
    """Finds `peft` once, as the others would, and imports our tuner when PEFT's own import is done."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoadThenRegister(spec.loader)
        return spec


class _LoadThenRegister(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module(TUNER_MODULE)


def register_with_peft() -> None:
    """Make PEFT know neutral residues: now if it is imported already, otherwise when it is."""
    if "peft" in sys.modules:
        importlib.import_module(TUNER_MODULE)
    else:
        sys.meta_path.insert(0, _RegisterAfterPeft())
