"""What happens to one large and two small classes as the penalty grows: the pictures of docs/idea.md.

Usage: python examples/walk.py [FOLDER]        writes walk.png there (default: the present folder)
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

import collapsar as cs
from collapsar.report import png_bytes, styled
from collapsar.report.class_plane import class_means_plane
from collapsar.report.plots import heatmap

NAMES = ["cat", "lynx", "puma"]
COUNTS = {"balanced": (500, 500, 500), "imbalanced": (500, 100, 100)}
LAMBDA_B = 0.02


def panels() -> list[tuple[str, cs.Problem]]:
    """Five problems: balanced; then imbalanced, with the penalty growing through all its thresholds."""
    problem = cs.Problem(COUNTS["imbalanced"], lambda_z=0.005, lambda_b=LAMBDA_B)
    t = cs.thresholds(problem)
    merge, vanish, complete = t.merge[-1], t.vanish[-1], t.complete  # the last two are one: cat is alone in its kind
    steps = [0.3 * merge, 0.9 * merge, (merge + vanish) / 2, 1.05 * complete]
    words = ["small penalty", "just below the threshold", "merged", "everything vanishes"]
    first = [("balanced classes", cs.Problem(COUNTS["balanced"], lambda_z=0.3 * merge, lambda_b=LAMBDA_B))]
    return first + [
        (word, cs.Problem(COUNTS["imbalanced"], lambda_z=lam, lambda_b=LAMBDA_B))
        for word, lam in zip(words, steps, strict=True)
    ]


def figure() -> Figure:
    """Class means above, mean predictions below."""
    with styled():
        drawing = Figure(figsize=(9.0, 4.0), layout="constrained")
        axes = drawing.subplots(2, 5)
        for (words, problem), top, bottom in zip(panels(), axes[0], axes[1], strict=True):
            solution = cs.solve(problem)
            _, features, _ = solution.factors(3)
            states = solution.class_states
            merged = [k for k in range(3) if states[k] == "merged"]
            record = {"class_means": features.T, "class_names": NAMES, "clusters": [[0], [1, 2]], "states": states}
            class_means_plane({**record, "groups": [merged] if merged else []}, top)
            top.set_title(words)
            heatmap(solution.Z, bottom, clusters=[[0], [1, 2]], class_names=NAMES, vmax=5.0)
            if bottom is not axes[1, 0]:
                bottom.set_yticks([])
            bottom.set_xlabel(f"λ = {problem.lambda_z:.4f}")
    return drawing


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "walk.png").write_bytes(png_bytes(figure()))
    for words, problem in panels():
        print(f"{words:>26}: {', '.join(cs.solve(problem).class_states)}")
