"""Which programs draw pictures on this machine; tests that need one which is missing are skipped, saying so."""

import shutil
import sysconfig

import pytest

from crosstrace.graphs import graphviz_program

DOT = shutil.which("dot")
PURE = shutil.which("graphviz-pure", path=sysconfig.get_path("scripts")) or shutil.which("graphviz-pure")

needs_dot = pytest.mark.skipif(DOT is None, reason="Graphviz's own dot is not installed")
needs_pure = pytest.mark.skipif(PURE is None, reason="graphviz-pure has no wheel for this machine")
needs_graphviz = pytest.mark.skipif(graphviz_program() is None, reason="neither dot nor graphviz-pure is installed")
BOTH = [pytest.param(DOT, marks=needs_dot, id="dot"), pytest.param(PURE, marks=needs_pure, id="graphviz-pure")]
"""The programs' paths, as parameters of a test."""
