// The convex program of one problem with J <= 3 clusters of classes:
//
//   min_{Z,b}  sum_k q_k [ lse(u_k) - <y_k, u_k> ]  +  lambda_Z ||Z M^(1/2)||  +  (lambda_b / 2) ||b||^2,
//   u_k = tau_k delta o (z_k + b) + iota,     y_k = (1 - eps) e_k + (eps / K) 1.
//
// Unknowns: v (J x J), row c < J - 1 and column j: the cluster part S sqrt(m) in an orthonormal basis of the complement
// of its left null vector sqrt(k) / delta; last row: y_j = alpha_j sqrt(m_j (k_j - 1)), the part inside cluster j; and
// beta (J - 1), the bias in the same basis. For a sample of cluster j the logit of a class of cluster i exceeds its
// own by d_ij = <a_ij, zeta_j> + iota_i - iota_j, zeta_j = v_j / sqrt(k_j m_j) + (beta, 0).

const INSIDE = 1 - 1e-13; // strictly feasible, whatever the last digit of a norm
const BALANCED = 1e-14; // what may be left of the dual's equality constraint where the bias is free

import { symmetricEigen, thinSvd } from "./linalg.mjs";

/** q: {k, share, mass, delta, tau, iota} per cluster; {eps, lambdaZ, lambdaB, features}. */
export function modelOf(q) {
  const J = q.k.length,
    K = q.k.reduce((a, b) => a + b, 0),
    p = J - 1;
  const basis = complement(q.k.map((k, j) => Math.sqrt(k) / q.delta[j]));
  const slope = new Float64Array(J * J * J),
    shift = new Float64Array(J * J),
    others = new Float64Array(J * J);
  for (let i = 0; i < J; i++)
    for (let j = 0; j < J; j++) {
      const row = (l, c) => (q.delta[l] / Math.sqrt(q.k[l])) * basis[l * p + c];
      const at = (i * J + j) * J;
      for (let c = 0; c < p; c++) slope[at + c] = q.tau[j] * (row(i, c) - row(j, c));
      const contrast = q.k[j] > 1 ? q.delta[j] / Math.sqrt(1 - 1 / q.k[j]) : 0;
      slope[at + p] = -q.tau[j] * contrast * (1 - 1 / q.k[j] + (i === j ? 1 / q.k[j] : 0));
      shift[i * J + j] = q.iota[i] - q.iota[j];
      others[i * J + j] = q.k[i] - (i === j ? 1 : 0);
    }
  return {
    ...q,
    J,
    K,
    p,
    basis,
    slope,
    shift,
    others,
    weight: q.share.map((s, j) => s * q.k[j]), // loss share of a cluster
    root: q.k.map((k, j) => Math.sqrt(k * q.mass[j])),
    smooth: q.eps / K,
    biased: q.lambdaB < Infinity,
    price: q.lambdaB < Infinity ? q.lambdaB : 0,
  };
}

/** Orthonormal columns (J x (J - 1)) orthogonal to a vector with positive entries: a Householder reflection. */
function complement(normal) {
  const J = normal.length,
    size = Math.hypot(...normal),
    w = normal.map((x) => x / size);
  w[J - 1] += 1;
  const basis = new Float64Array(J * (J - 1));
  for (let i = 0; i < J; i++)
    for (let c = 0; c < J - 1; c++) basis[i * (J - 1) + c] = (i === c ? 1 : 0) - (w[i] * w[c]) / w[J - 1];
  return basis;
}

/** Predictions and loss: miss_j = 1 - p_own, other_ij = probability of one other class of cluster i. */
export function softmax(m, v, beta) {
  const { J, p } = m,
    miss = new Float64Array(J),
    other = new Float64Array(J * J),
    d = new Float64Array(J);
  let loss = 0;
  for (let j = 0; j < J; j++) {
    let top = 0,
      missed = 0,
      aim = 0;
    for (let i = 0; i < J; i++) {
      let x = m.shift[i * J + j];
      for (let c = 0; c < J; c++)
        x += m.slope[(i * J + j) * J + c] * (v[c * J + j] / m.root[j] + (c < p ? beta[c] : 0));
      d[i] = x;
      if (x > top) top = x;
      aim += m.others[i * J + j] * x;
    }
    for (let i = 0; i < J; i++) {
      other[i * J + j] = Math.exp(d[i] - top);
      missed += m.others[i * J + j] * other[i * J + j];
    }
    const own = Math.exp(-top),
      total = own + missed;
    for (let i = 0; i < J; i++) other[i * J + j] /= total;
    miss[j] = missed / total;
    const lse = top + Math.log1p(top === 0 ? missed : total - 1); // minus the own logit
    loss += m.weight[j] * (lse - m.smooth * aim);
  }
  return { miss, other, loss };
}

/** Loss and the bias's price. */
export function smoothValue(m, P, beta) {
  return P.loss + 0.5 * m.price * beta.reduce((sum, x) => sum + x * x, 0);
}

/** Derivatives of loss and the bias's price in (v, beta). */
export function gradientOf(m, P, beta) {
  const { J, p } = m,
    g = new Float64Array(J * J + p);
  for (let j = 0; j < J; j++)
    for (let c = 0; c < J; c++) {
      let push = 0;
      for (let i = 0; i < J; i++)
        push += m.others[i * J + j] * (P.other[i * J + j] - m.smooth) * m.slope[(i * J + j) * J + c];
      push *= m.weight[j];
      g[c * J + j] = push / m.root[j];
      if (c < p && m.biased) g[J * J + c] += push;
    }
  if (m.biased) for (let c = 0; c < p; c++) g[J * J + c] += m.price * beta[c];
  return g;
}

/** Second derivative in (v, beta), n x n with n = J^2 + J - 1. */
export function hessianOf(m, P) {
  const { J, p } = m,
    n = J * J + p,
    H = new Float64Array(n * n),
    mean = new Float64Array(J);
  for (let j = 0; j < J; j++) {
    mean.fill(0);
    for (let i = 0; i < J; i++)
      for (let c = 0; c < J; c++) mean[c] += m.others[i * J + j] * P.other[i * J + j] * m.slope[(i * J + j) * J + c];
    for (let c = 0; c < J; c++)
      for (let d = 0; d < J; d++) {
        let G = -mean[c] * mean[d];
        for (let i = 0; i < J; i++) {
          const at = (i * J + j) * J;
          G += m.others[i * J + j] * P.other[i * J + j] * m.slope[at + c] * m.slope[at + d];
        }
        G *= m.weight[j];
        const tied = G / m.root[j];
        H[(c * J + j) * n + d * J + j] = tied / m.root[j];
        if (d < p) H[(c * J + j) * n + J * J + d] = H[(J * J + d) * n + c * J + j] = tied;
        if (c < p && d < p) H[(J * J + c) * n + J * J + d] += G;
      }
  }
  for (let c = 0; c < p; c++) H[(J * J + c) * n + J * J + c] += m.price;
  return H;
}

/** The residual R in the coordinates of v, per part: {between (p x J), within (J)}. */
export function residualOf(m, P) {
  const { J, p } = m,
    R = gradientOf({ ...m, price: 0 }, P, new Float64Array(p));
  const within = m.k.map((k, j) => (k > 1 ? -R[p * J + j] / Math.sqrt(k - 1) : 0));
  return { between: R.subarray(0, p * J), within, bias: R.subarray(J * J) };
}

export function spectralNorm(X, p, J) {
  return p === 0 ? 0 : thinSvd(X, p, J).sigma[0];
}

/** ||r_k|| of one class of every cluster, shape (J). */
export function columnNorms(m, P) {
  const { J, p } = m,
    { between, within } = residualOf(m, P);
  return m.k.map((k, j) => {
    let square = within[j] ** 2 * (k - 1);
    for (let c = 0; c < p; c++) square += between[c * J + j] ** 2;
    return Math.sqrt(square / k);
  });
}

/** R'R summed onto the clusters (J x J); for two classes of one cluster e, for a class with itself e + within^2. */
export function residualGram(m, P) {
  const { J, p } = m,
    { between, within } = residualOf(m, P),
    gram = new Float64Array(J * J);
  for (let i = 0; i < J; i++)
    for (let j = 0; j < J; j++) for (let c = 0; c < p; c++) gram[i * J + j] += between[c * J + i] * between[c * J + j];
  const siblings = m.k.map((k, j) => (k > 1 ? (gram[j * J + j] - within[j] ** 2) / k : 0));
  return { gram, siblings, within };
}

/** The norm dual to the price of Z; for nonnegative features the bound sqrt(lambda_max([R'R]_+)) of max ||Rh||. */
export function dualNorm(m, P) {
  const { J, p } = m;
  if (m.features === "signed") {
    const { between, within } = residualOf(m, P);
    return Math.max(spectralNorm(between, p, J), ...within.map(Math.abs));
  }
  const { gram, siblings, within } = residualGram(m, P),
    positive = gram.map((x) => Math.max(x, 0));
  for (let j = 0; j < J; j++) {
    if (m.k[j] > 1) positive[j * J + j] = siblings[j] + within[j] ** 2 + (m.k[j] - 1) * Math.max(siblings[j], 0);
  }
  return Math.sqrt(Math.max(...symmetricEigen(positive, J).values));
}

/** A lower bound of the optimum from predictions P: D(S_t), S_t = Y + t (P - Y), the largest feasible t or 1. */
export function lowerBound(m, P) {
  const { J, p } = m,
    bias = gradientOf({ ...m, price: 0 }, P, new Float64Array(p)).subarray(J * J);
  const square = bias.reduce((sum, x) => sum + x * x, 0);
  if (m.biased && m.price === 0 && !(Math.sqrt(square) <= BALANCED)) return -Infinity;
  const norm = dualNorm(m, P),
    rest = m.smooth * (m.K - 1);
  let limit = norm > 0 ? (m.lambdaZ / norm) * INSIDE : Infinity;
  for (let j = 0; j < J; j++) {
    if (P.miss[j] > rest) limit = Math.min(limit, (1 - rest) / (P.miss[j] - rest));
    for (let i = 0; i < J; i++) {
      const fall = m.smooth - P.other[i * J + j];
      if (m.others[i * J + j] > 0 && fall > 0) limit = Math.min(limit, m.smooth / fall);
    }
  }
  if (limit === Infinity) limit = 1;
  return Math.max(dualAt(m, P, limit, square), dualAt(m, P, Math.min(limit, 1), square));
}

function dualAt(m, P, t, biasSquare) {
  const { J } = m,
    rest = m.smooth * (m.K - 1);
  let dual = m.price > 0 ? (-(t * t) * biasSquare) / (2 * m.price) : 0;
  for (let j = 0; j < J; j++) {
    const miss = rest + t * (P.miss[j] - rest),
      own = Math.max(1 - miss, 0);
    let entropy = own > 0 ? -own * Math.log1p(-Math.min(miss, 1)) : 0;
    for (let i = 0; i < J; i++) {
      const s = Math.max(m.smooth + t * (P.other[i * J + j] - m.smooth), 0);
      entropy += m.others[i * J + j] * ((s > 0 ? -s * Math.log(s) : 0) + (s - m.smooth) * m.shift[i * J + j]);
    }
    dual += m.weight[j] * entropy;
  }
  return dual;
}
