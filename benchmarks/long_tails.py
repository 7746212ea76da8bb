"""Long tails exp:5000:10:K with features >= 0, as plain training gives them: seconds and gap for sixteen penalties.

    python benchmarks/long_tails.py K [relative tolerance, 1e-9] [lambda_b ...]

lambda_Z of 2.2e-5 to 1e-4 are typical of weight decays of 5e-4 to 1e-3. Processor seconds of this process; the peak of
its memory so far stands beside them. Where the tolerance is missed, the status says so beside the gap.
"""

from __future__ import annotations

import resource
import sys
import time

import collapsar as cs

LAMBDAS_B = (0.0, 1e-4, 1e-3, 1e-2)
LAMBDAS_Z = (2.2e-5, 4e-5, 6e-5, 1e-4)


def main() -> None:
    K = int(sys.argv[1])
    tol = float(sys.argv[2]) if len(sys.argv) > 2 else 1e-9
    for lambda_b in map(float, sys.argv[3:]) if len(sys.argv) > 3 else LAMBDAS_B:
        for lambda_z in LAMBDAS_Z:
            p = cs.Problem(f"exp:5000:10:{K}", lambda_z, lambda_b, features="nonnegative")
            begin = time.process_time()
            s = cs.solve(p, tol=tol, throw=False)
            seconds = time.process_time() - begin
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"K {K}, lambda_b {lambda_b:g}, lambda_z {lambda_z:g}: {seconds:.2f} s, "
                f"gap {s.certificate.relative_gap:.0e}, {s.status.name}, {peak:.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
