"""Where tests find files of the checkout."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PACKAGE = ROOT / "src" / "neutral_residues"
DEMO_BACKBONE = PACKAGE / "demo" / "data" / "backbone"
RECORDS = ROOT / "docs" / "records"
COMPARISONS = ROOT / "docs" / "comparisons"
SHARED = ROOT.parent / "shared"
