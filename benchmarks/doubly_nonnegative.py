"""Features >= 0 whose classes share directions: ``cs.solve`` against Clarabel on the same doubly nonnegative dual.

    python benchmarks/doubly_nonnegative.py [number of classes, 20]

max D(S) over stochastic columns S and N >= 0 with zero diagonal, R(S)'R(S) + N <= lambda_Z^2 I, as a user of cvxpy
writes it down, on long tails exp:5000:10:K. Both times are processor seconds of this run; the two values must agree.
"""

from __future__ import annotations

import sys
import time
import warnings

import cvxpy as cp
import numpy as np

import collapsar as cs

LAMBDAS_B = (0.0, 1e-4, 1e-3)
LAMBDAS_Z = (4e-5, 1e-4)


def dual(p: cs.Problem) -> cp.Problem:
    """The program for plain training: no weights, scales, temperatures, offsets or smoothing."""
    K, lam, q = p.num_classes, p.lambda_z, p.loss_share
    S, N = cp.Variable((K, K), nonneg=True), cp.Variable((K, K), symmetric=True)
    miss = np.eye(K) - S
    R = miss @ np.diag(q / np.sqrt(p.mass)) / lam
    constraints = [cp.sum(S, axis=0) == 1, N >= 0, cp.diag(N) == 0]
    constraints.append(cp.bmat([[np.eye(K), R], [R.T, np.eye(K) - N]]) >> 0)
    value = q @ cp.sum(cp.entr(S), axis=0)
    if p.lambda_b == 0:
        constraints.append(miss @ q == 0)
    else:
        value -= cp.sum_squares(miss @ q) / (2 * p.lambda_b)
    return cp.Problem(cp.Maximize(value), constraints)


def main() -> None:
    K = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    few = cs.Problem("exp:50:10:3", 1e-2, 0.0, features="nonnegative")
    cs.solve(few)  # what is imported at the first use is no part of either time
    dual(few).solve(solver="CLARABEL")
    for lambda_b in LAMBDAS_B:
        for lambda_z in LAMBDAS_Z:
            p = cs.Problem(f"exp:5000:10:{K}", lambda_z, lambda_b, features="nonnegative")
            begin = time.process_time()
            s = cs.solve(p, throw=False)
            ours = time.process_time() - begin
            begin = time.process_time()
            program = dual(p)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    program.solve(solver="CLARABEL")
                    answer = f"{program.status} {program.value:.10f}"
                except cp.error.SolverError as error:
                    answer = type(error).__name__
            theirs = time.process_time() - begin
            print(
                f"lambda_b {lambda_b:g}, lambda_z {lambda_z:g}: ours {ours:.3f} s, {s.certificate.primal:.10f}, gap "
                f"{s.certificate.relative_gap:.0e}; Clarabel {theirs:.1f} s, {answer}; ratio {theirs / ours:.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
