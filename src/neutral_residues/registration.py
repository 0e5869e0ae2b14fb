"""Registers the tuner with PEFT as soon as PEFT is there, without importing PEFT (and torch) before
anybody needs it.

PEFT has no plugin entry point: its dictionaries must be filled before it reads a saved extension.
`import neutral_residues` must do that, and must also stay light, because `neutral --help` and the
report run without torch. So: if PEFT is loaded, register now; else register right after somebody
imports it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TUNER_MODULES = ("neutral_residues.tuner.model", "neutral_residues.methods.disel")


class _RegisterAfterPeft(MetaPathFinder):
    """Finds `peft` as the other finders would, and has our tuner imported when PEFT's own import is
    done.

    Transformers asks for PEFT's spec long before it imports it, so this finder stays until PEFT has
    really been loaded.
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
    """PEFT's own loader, which imports our tuner afterwards and then leaves no trace of itself."""

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
    """Make PEFT know our tuners: now if it is imported already, otherwise when it is."""
    if "peft" in sys.modules:
        _import_tuners()
    else:
        sys.meta_path.insert(0, _RegisterAfterPeft())


def enter_in_peft(peft_type: str, *, config: type, tuner: type, prefix: str) -> None:
    """Enter a tuner in PEFT's dictionaries. Safe to call again.

    Raises:
        RuntimeError: if another package has taken the name. Nothing is entered then.
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
