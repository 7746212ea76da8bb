// Small dense matrices, row by row in flat arrays. At most 11 x 11, so plain loops are the fast way.

/** x of H x = right, H symmetric positive definite (n x n), with a ridge where H is singular. */
export function choleskySolve(H, right) {
  const n = right.length,
    L = Float64Array.from(H),
    x = Float64Array.from(right);
  let trace = 0;
  for (let i = 0; i < n; i++) trace += H[i * n + i];
  const least = 1e-30 * trace + Number.MIN_VALUE;
  for (let j = 0; j < n; j++) {
    const floor = Math.max(1e-14 * H[j * n + j], least);
    for (let i = j; i < n; i++) {
      for (let c = 0; c < j; c++) L[i * n + j] -= L[i * n + c] * L[j * n + c];
    }
    const pivot = Math.sqrt(Math.max(L[j * n + j], floor));
    for (let i = j + 1; i < n; i++) L[i * n + j] /= pivot;
    L[j * n + j] = pivot;
  }
  for (let j = 0; j < n; j++) {
    for (let c = 0; c < j; c++) x[j] -= L[j * n + c] * x[c];
    x[j] /= L[j * n + j];
  }
  for (let j = n - 1; j >= 0; j--) {
    for (let i = j + 1; i < n; i++) x[j] -= L[i * n + j] * x[i];
    x[j] /= L[j * n + j];
  }
  return x;
}

/** Eigenvalues and eigenvectors (columns of V) of a symmetric n x n matrix: Jacobi's rotations. */
export function symmetricEigen(matrix, n) {
  const G = Float64Array.from(matrix),
    V = new Float64Array(n * n);
  for (let i = 0; i < n; i++) V[i * n + i] = 1;
  for (let sweep = 0; sweep < 30; sweep++) {
    let off = 0,
      on = 0;
    for (let i = 0; i < n; i++)
      for (let j = 0; j < n; j++) i === j ? (on += G[i * n + i] ** 2) : (off += G[i * n + j] ** 2);
    if (off <= 1e-32 * on || off === 0) break;
    for (let p = 0; p < n; p++)
      for (let r = p + 1; r < n; r++) {
        if (G[p * n + r] === 0) continue;
        const theta = (G[r * n + r] - G[p * n + p]) / (2 * G[p * n + r]);
        const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
        const c = 1 / Math.hypot(t, 1),
          s = t * c;
        for (let i = 0; i < n; i++) turn(G, i * n + p, i * n + r, c, s);
        for (let i = 0; i < n; i++) turn(G, p * n + i, r * n + i, c, s);
        for (let i = 0; i < n; i++) turn(V, i * n + p, i * n + r, c, s);
      }
  }
  return { values: Float64Array.from({ length: n }, (_, i) => G[i * n + i]), V };
}

function turn(X, a, b, c, s) {
  const x = X[a],
    y = X[b];
  X[a] = c * x - s * y;
  X[b] = s * x + c * y;
}

/** The positive semidefinite square root of a symmetric n x n matrix. */
export function symmetricRoot(G, n) {
  const { values, V } = symmetricEigen(G, n),
    root = new Float64Array(n * n);
  for (let e = 0; e < n; e++) {
    const size = Math.sqrt(Math.max(values[e], 0));
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) root[i * n + j] += size * V[i * n + e] * V[j * n + e];
  }
  return root;
}

/**
 * Singular values of a p x J matrix, p = J - 1 <= 2, falling, with all singular vectors: columns of A (p x p) and
 * rows of B (J x J). Two rows are made orthogonal by one rotation, which keeps small singular values accurate.
 */
export function thinSvd(X, p, J) {
  const R = Float64Array.from(X),
    A = new Float64Array(p * p),
    sigma = new Float64Array(p),
    B = new Float64Array(J * J);
  for (let i = 0; i < p; i++) A[i * p + i] = 1;
  if (p === 2) {
    for (let pass = 0; pass < 3; pass++) {
      const a = dot(R, 0, R, 0, J),
        b = dot(R, J, R, J, J),
        c = dot(R, 0, R, J, J);
      if (c === 0 || Math.abs(c) <= 1e-17 * Math.sqrt(a * b)) break;
      const theta = (b - a) / (2 * c),
        t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
      const co = 1 / Math.hypot(t, 1),
        s = t * co;
      for (let j = 0; j < J; j++) turn(R, j, J + j, co, s);
      turn(A, 0, 1, co, s);
      turn(A, 2, 3, co, s);
    }
    if (dot(R, 0, R, 0, J) < dot(R, J, R, J, J)) {
      for (let j = 0; j < J; j++) turn(R, j, J + j, 0, -1);
      turn(A, 0, 1, 0, -1);
      turn(A, 2, 3, 0, -1);
    }
  }
  for (let i = 0; i < J; i++) {
    if (i < p) sigma[i] = Math.sqrt(dot(R, i * J, R, i * J, J));
    const known = i < p && sigma[i] > 1e-280 && sigma[i] > 1e-15 * sigma[0];
    if (known) for (let j = 0; j < J; j++) B[i * J + j] = R[i * J + j] / sigma[i];
    else completeRow(B, i, J);
  }
  return { A, sigma, B };
}

/** Row i becomes a unit vector orthogonal to the rows before it. */
function completeRow(B, i, J) {
  let best = null,
    longest = -1;
  for (let e = 0; e < J; e++) {
    const x = new Float64Array(J);
    x[e] = 1;
    for (let pass = 0; pass < 2; pass++)
      for (let r = 0; r < i; r++) {
        const along = dot(B, r * J, x, 0, J);
        for (let j = 0; j < J; j++) x[j] -= along * B[r * J + j];
      }
    const size = Math.sqrt(dot(x, 0, x, 0, J));
    if (size > longest) [best, longest] = [x, size];
  }
  for (let j = 0; j < J; j++) B[i * J + j] = best[j] / longest;
}

function dot(x, a, y, b, n) {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += x[a + i] * y[b + i];
  return sum;
}

/** The root of f between a and b, where it changes sign: regula falsi that halves the weight of an end that stays. */
export function rootBetween(f, a, b, fa, fb) {
  let stayed = 0;
  for (let i = 0; i < 120; i++) {
    let x = i % 4 === 3 ? (a + b) / 2 : (a * fb - b * fa) / (fb - fa);
    if (!(x > Math.min(a, b) && x < Math.max(a, b))) x = (a + b) / 2;
    const fx = f(x);
    if (Math.abs(fx) <= 1e-13 * Math.abs(x) || Math.abs(b - a) <= 1e-12 * Math.abs(x)) return x;
    if (fx > 0 === fa > 0) {
      [a, fa, fb] = [x, fx, stayed === 1 ? fb / 2 : fb];
      stayed = 1;
    } else {
      [b, fb, fa] = [x, fx, stayed === -1 ? fa / 2 : fa];
      stayed = -1;
    }
  }
  return (a + b) / 2;
}
