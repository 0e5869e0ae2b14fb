"""Registers the tuners with PEFT when PEFT is imported, without importing PEFT (and torch) itself.

PEFT has no plugin entry point: its dictionaries must be filled before it reads a saved extension.
`import neutral_residues` does this, but must also be fast, because `neutral --help` and the report
work without torch. So tuners are registered at once if PEFT is already imported, and otherwise
right after PEFT is imported.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TUNER_MODULES = ("neutral_residues.tuner.model", "neutral_residues.methods.disel")


class _RegisterAfterPeft(MetaPathFinder):
    """Import finder that finds `peft` as other finders do, with a loader that imports our tuners
    after PEFT.

    Transformers asks for the spec of PEFT long before it imports it, so that the finder stays in
    `sys.meta_path` until PEFT is loaded.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(
            (spec for finder in others if (spec := finder.find_spec(fullname, path, target))), None
        )
        if spec is not None and spec.loader is not None:
            spec.loader = _LoadThenRegister(spec.loader, self)
        return spec


class _LoadThenRegister(Loader):
    """PEFT's loader, wrapped: imports our tuners after PEFT, and then removes itself and the
    finder."""

    def __init__(self, loader: Loader, finder: MetaPathFinder) -> None:
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        _import_tuners()


def _import_tuners() -> None:
    for module in TUNER_MODULES:
        importlib.import_module(module)


def register_with_peft() -> None:
    """Register our tuners with PEFT: now if it is already imported, else when it is imported."""
    if "peft" in sys.modules:
        _import_tuners()
    else:
        sys.meta_path.insert(0, _RegisterAfterPeft())


def enter_in_peft(peft_type: str, *, config: type, tuner: type, prefix: str) -> None:
    """Add a tuner to PEFT's dictionaries; can be called more than once.

    Args:
        peft_type: its name in PEFT's registries.
        config: its class of configurations.
        tuner: its class of models.
        prefix: the prefix of its parameter names.

    Raises:
        RuntimeError: if another package has registered this name; nothing is added then.
    """
    from peft import mapping

    entries: tuple[tuple[dict[str, object], object], ...] = (
        (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, config),
        (mapping.PEFT_TYPE_TO_TUNER_MAPPING, tuner),
        (mapping.PEFT_TYPE_TO_PREFIX_MAPPING, prefix),
    )
    for registry, entry in entries:
        if registry.get(peft_type, entry) != entry:
            raise RuntimeError(
                f"another package has registered {prefix!r} with PEFT, as {registry[peft_type]!r}"
            )
    for registry, entry in entries:
        registry[peft_type] = entry
