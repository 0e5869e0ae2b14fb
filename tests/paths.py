"""Where tests find files of the checkout, and scripts of it as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PACKAGE = ROOT / "src" / "neutral_residues"
DEMO_BACKBONE = PACKAGE / "demo" / "data" / "backbone"
RECORDS = ROOT / "docs" / "records"
COMPARISONS = ROOT / "docs" / "comparisons"
SHARED = ROOT.parent / "shared"


def load_script(path: Path) -> ModuleType:
    """The module in a file that is not on Python's path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
