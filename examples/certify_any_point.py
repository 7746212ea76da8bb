"""Check somebody else's answer: any mean predictions and bias have a computable distance from the optimum."""

import numpy as np

import collapsar as cs

problem = cs.Problem("500x5,100x5", lambda_z=0.0027, lambda_b=0.02)
best = cs.solve(problem)

# Pretend that a network was trained and that its mean predictions are a little off.
rng = np.random.default_rng(0)
Z = best.Z + 0.05 * rng.standard_normal(best.Z.shape)
certificate = cs.certify(problem, Z, best.b)

print(f"loss with penalties at this point: {certificate.primal:.6f}")
print(f"no point can be below:             {certificate.dual:.6f}")
print(f"the optimum:                       {best.certificate.primal:.6f}")
