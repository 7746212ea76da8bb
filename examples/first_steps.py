"""From class counts and penalties to the geometry of a trained classifier, in a dozen lines."""

import collapsar as cs

# Five classes with 500 training samples each, five with 100. The penalties: (lambda_w / 2)|W|^2 on the head,
# (lambda_h / 2) sum of |h|^2 over all samples on the features, (lambda_b / 2)|b|^2 on the bias.
problem = cs.Problem.from_penalties("500x5,100x5", lambda_w=1e-2, lambda_h=1.4e-3, lambda_b=0.02)
print(f"lambda_z = {problem.lambda_z:.5f}")

# Where does the network stop telling the small classes apart?
thresholds = cs.thresholds(problem)
print(f"small classes merge from {thresholds.merge[-1]:.5f}, vanish from {thresholds.vanish[-1]:.5f}")
print(f"everything collapses from {thresholds.complete:.5f}")

# The exact optimum, with a proof of how exact it is.
solution = cs.solve(problem)
print("classes 0 and 9 are", solution.class_states[0], "and", solution.class_states[9])
print("certified to 1e-9:", solution.certificate.gap < 1e-9 * solution.certificate.primal)

# A network with a ReLU before its head has nonnegative features, and collapses a little earlier.
relu = cs.Problem("500x5,100x5", lambda_z=1e-3, lambda_b=0.02, features="nonnegative")
print(f"with a ReLU: vanish from {cs.thresholds(relu).vanish[-1]:.5f}")
