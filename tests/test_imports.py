"""What is not needed is not imported: in one process for all, since what any step imports stays for those after it."""

from __future__ import annotations

import subprocess
import sys

FRAMEWORKS = {"torch", "lightning", "transformers", "sklearn", "pandas"}
DRAWING = {"matplotlib", "jinja2"}
STEPS = (
    ("import collapsar as cs", FRAMEWORKS | DRAWING),
    ("import collapsar.report", FRAMEWORKS | DRAWING),
    ("import collapsar.metrics.separation, collapsar.metrics as m", FRAMEWORKS | DRAWING),
    ("assert set(dir(m)) == set(m.__all__)", FRAMEWORKS | DRAWING),
    ("cs.audit([[1.0, 0.0], [0.0, 1.0]])", FRAMEWORKS | DRAWING),
    # verbs stay functions beside the rooms of their names
    ("import collapsar.diagnose.words, collapsar.advise.advice", FRAMEWORKS | DRAWING),
    ("from collapsar.diagnose import measure", FRAMEWORKS | DRAWING),
    ("assert callable(cs.diagnose) and callable(cs.advise) and callable(measure)", FRAMEWORKS | DRAWING),
    ("from collapsar.report import demo_page, demo_figure, png_bytes", FRAMEWORKS | {"matplotlib.pyplot"}),
)
CODE = """
import sys
space = {}
for step, heavy in STEPS:
    exec(step, space)
    assert not heavy & sys.modules.keys(), (step, heavy & sys.modules.keys())
"""


def test_no_step_imports_what_it_does_not_need() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"STEPS = {STEPS!r}{CODE}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
