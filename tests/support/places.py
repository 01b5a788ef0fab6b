"""Where things are in the repository, for tests of any folder."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
SUPPORT = TESTS / "support"
ROOT = TESTS.parent
CASES = TESTS / "data" / "cases"
BENCHMARKS = ROOT / "benchmarks"
EXAMPLES = ROOT / "examples"
VIEWER = ROOT / "viewer"
