"""What is not needed is not imported, and nothing asks for what is missing.

In one process for all, since starting one takes longer than most steps: what any step imports stays for those after it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import collapsar as cs
from networks import samples, signed_network

NUMBERS = {"numpy", "scipy"}
FRAMEWORKS = {"torch", "lightning", "transformers", "sklearn", "pandas", "dask"}
DRAWING = {"matplotlib", "jinja2"}
LIGHT = (
    ["--version"],
    ["--help"],
    ["solve"],
    ["reproduce"],
    ["reproduce", "fig0"],
    ["reproduce", "fig1", "--preset", "big"],
    ["report", "nothing-here"],
    ["train", "--counts", "5x2", "--out", "x"],
    ["train", "--counts", "?", "--lambda-z", "1", "--out", "x"],
    ["no-such-command"],
)
SOLVE = ["solve", "500x5,100x5", "--lambda-z", "0.0037", "--lambda-b", "0.02", "--json"]
ADVISE = ["--lambda-w", "5e-4", "--lambda-h", "0.025", "--lambda-b", "0.02"]
ADVICE = f"""
code, out, err = command("advise", labels, *{ADVISE!r})
assert code == 0, err
assert "torch" not in err
assert len(out.splitlines()) <= 48
assert "penalties" in out
"""
DIAGNOSIS = """
from collapsar.diagnose.readers import diagnose
d = diagnose(features)
assert d.num_collapsed == 5 and d.effective.agree
assert any("need torch" in note for note in d.notes)
"""
STEPS = (
    ("from collapsar.cli import main", NUMBERS | FRAMEWORKS | DRAWING),
    *((f"command(*{arguments!r})", {"scipy", "matplotlib"} | FRAMEWORKS) for arguments in LIGHT),
    ("import collapsar as cs", FRAMEWORKS | DRAWING),
    ("import collapsar.report", FRAMEWORKS | DRAWING),
    ("import collapsar.metrics.separation, collapsar.metrics as m", FRAMEWORKS | DRAWING),
    ("assert set(dir(m)) == set(m.__all__)", FRAMEWORKS | DRAWING),
    ("cs.audit([[1.0, 0.0], [0.0, 1.0]])", FRAMEWORKS | DRAWING),
    # verbs stay functions beside the rooms of their names
    ("import collapsar.diagnose.words, collapsar.advise.advice", FRAMEWORKS | DRAWING),
    ("from collapsar.diagnose import measure", FRAMEWORKS | DRAWING),
    ("assert callable(cs.diagnose) and callable(cs.advise) and callable(measure)", FRAMEWORKS | DRAWING),
    # the one step that is heard: nothing else is written beside its record
    (f"sys.argv = ['collapsar', *{SOLVE!r}]\ntry: main()\nexcept SystemExit as e: assert not e.code", FRAMEWORKS),
    ("missing.update(('torch', 'torchmetrics', 'matplotlib', 'jinja2'))", FRAMEWORKS | DRAWING),
    (ADVICE, FRAMEWORKS | DRAWING),
    (DIAGNOSIS, FRAMEWORKS | DRAWING),
    ("missing.clear()", FRAMEWORKS | DRAWING),
    ("from collapsar.report import demo_page, demo_figure, png_bytes", FRAMEWORKS | {"matplotlib.pyplot"}),
)
CODE = """
import contextlib, io, sys
missing = set()

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in missing:
            raise ModuleNotFoundError("missing: " + name, name=name)

def command(*arguments):
    sys.argv, code = ["collapsar", *arguments], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue(), err.getvalue()

sys.meta_path.insert(0, Missing())
labels, features = sys.argv[1:]
for step, heavy in STEPS:
    exec(step, globals())
    assert not heavy & sys.modules.keys(), (step, heavy & sys.modules.keys())
"""


def test_no_step_imports_what_it_does_not_need(tmp_path: Path) -> None:
    labels, features = tmp_path / "labels.txt", tmp_path / "features.npz"
    labels.write_text("\n".join(["a"] * 500 + ["b"] * 500 + ["c"] * 60 + ["d"] * 60))
    counts, W, H, b = signed_network(lambda_z=0.0045)
    X, y = samples(counts, H, noise=1e-3)
    np.savez_compressed(features, features=X.astype(np.float32), labels=y, weight=W, bias=b)
    command = [sys.executable, "-c", f"STEPS = {STEPS!r}{CODE}", str(labels), str(features)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    s = cs.solve(cs.Problem("500x5,100x5", 0.0037, 0.02))
    assert np.allclose(json.loads(done.stdout)["Z"], s.Z)
