// A problem in groups of classes, as the page states it, and its certified optimum.
//
// problem: {groups: [{k, n, share, mass, delta, tau, iota}], eps, lambdaZ, lambdaB, features}. Groups that the program
// cannot tell apart are one cluster (Hong & Ling, JMLR 25(192), 2024, Thm 2b): solved as one, told apart again after.

import { symmetricRoot } from "./linalg.mjs";
import { modelOf } from "./model.mjs";
import { minimise, relativeGap } from "./newton.mjs";

export const TOL = 1e-9;
const TIE = 1e-6; // entries of a column this close, relatively, are equal

/** The clusters of a problem: {q, of}, of[g] the cluster of group g. */
export function clustersOf(problem) {
  const q = { k: [], share: [], mass: [], delta: [], tau: [], iota: [] },
    keys = [],
    of = [];
  for (const g of problem.groups) {
    const key = [g.n, g.share, g.mass, g.delta, g.tau, g.iota].map((x) => x.toPrecision(14)).join();
    let j = keys.indexOf(key);
    if (j < 0) {
      j = keys.push(key) - 1;
      q.k.push(0);
      for (const name of ["share", "mass", "delta", "tau", "iota"]) q[name].push(g[name]);
    }
    q.k[j] += g.k;
    of.push(j);
  }
  const { eps, lambdaZ, lambdaB, features } = problem;
  return { q: { ...q, eps, lambdaZ, lambdaB, features }, of };
}

/**
 * The optimum: per group alpha, state, norm; C and b (Z is alpha (I - J/k) + C inside a group, C between);
 * primal, dual, gap, closed (whether the certificate is), rank, and the Gram matrices of head, features and predictions.
 */
export function solve(problem) {
  const { q, of } = clustersOf(problem),
    m = modelOf(q),
    point = minimise(m, { tol: TOL }),
    { J, p } = m;
  const alpha = m.k.map((k, j) => (k > 1 ? point.v[p * J + j] / (m.root[j] * Math.sqrt(1 - 1 / k)) : 0));
  const S = new Float64Array(J * J),
    b = new Float64Array(J);
  for (let i = 0; i < J; i++)
    for (let c = 0; c < p; c++) {
      b[i] += (m.basis[i * p + c] * point.beta[c]) / Math.sqrt(m.k[i]);
      for (let j = 0; j < J; j++) S[i * J + j] += m.basis[i * p + c] * point.v[c * J + j];
    }
  if (m.biased && m.price === 0) centre(b, m);
  const C = S.map((x, at) => x / (Math.sqrt(m.k[(at / J) | 0]) * m.root[at % J]));
  const states = m.k.map((k, j) => {
    const alive = Array.from({ length: J }, (_, c) => point.v[c * J + j]).some((x) => x !== 0);
    return (k > 1 ? alpha[j] > 0 : alive && ownMost(C, j, J)) ? "separated" : alive ? "merged" : "vanished";
  });
  const grams = gramsOf(m, alpha, C);
  const gap = relativeGap(point.primal, point.dual);
  const solution = onGroups(problem, of, m, { alpha, C, b, states, grams });
  return { ...solution, primal: point.primal, dual: point.dual, gap, closed: gap <= TOL, steps: point.steps };
}

/** Whether a class alone in its cluster has a direction of its own: its features raise its own logit most. */
function ownMost(C, j, J) {
  const column = Array.from({ length: J }, (_, i) => C[i * J + j]),
    own = column.splice(j, 1)[0];
  return own > Math.max(...column) + TIE * Math.max(Math.abs(own), ...column.map(Math.abs));
}

/** With a free bias a shift of b along 1/delta changes nothing: the one with sum_k b_k / delta_k = 0. */
function centre(b, m) {
  let along = 0,
    size = 0;
  for (let j = 0; j < m.J; j++) {
    along += (m.k[j] / m.delta[j]) * b[j];
    size += m.k[j] / m.delta[j] ** 2;
  }
  for (let j = 0; j < m.J; j++) b[j] -= along / size / m.delta[j];
}

/** The length of the column of Z of a class of cluster j. */
function columnLength({ J, k }, alpha, C, j) {
  let square = alpha[j] ** 2 * (1 - 1 / k[j]);
  for (let i = 0; i < J; i++) square += k[i] * C[i * J + j] ** 2;
  return Math.sqrt(square);
}

/**
 * W'W and H'H for lambda_w = lambda_h (JMLR Thm 2d) as {within (J), between (J x J, on 1_j / sqrt(k_j))}.
 * Signed: from the singular vectors of Z M^(1/2); nonnegative: every class owns one direction.
 */
function gramsOf(m, alpha, C) {
  const { J, k, mass } = m,
    W = { within: new Float64Array(J), between: new Float64Array(J * J) };
  const H = { within: new Float64Array(J), between: new Float64Array(J * J) };
  const X = C.map((x, at) => x * Math.sqrt(k[(at / J) | 0] * k[at % J])); // the cluster part of Z
  const product = (f) => {
    const out = new Float64Array(J * J);
    for (let i = 0; i < J; i++) for (let j = 0; j < J; j++) for (let l = 0; l < J; l++) out[i * J + j] += f(i, j, l);
    return out;
  };
  if (m.features === "signed") {
    const root = mass.map(Math.sqrt),
      Y = X.map((x, at) => x * root[at % J]);
    W.within.set(alpha.map((a, j) => Math.abs(a) * root[j]));
    H.within.set(alpha.map((a, j) => Math.abs(a) / root[j]));
    W.between = symmetricRoot(
      product((i, j, l) => Y[i * J + l] * Y[j * J + l]),
      J,
    );
    H.between = symmetricRoot(
      product((i, j, l) => Y[l * J + i] * Y[l * J + j]),
      J,
    ).map((x, at) => x / (root[(at / J) | 0] * root[at % J]));
  } else {
    for (let j = 0; j < J; j++) {
      const norm = columnLength(m, alpha, C, j),
        root = Math.sqrt(mass[j]);
      H.within[j] = H.between[j * J + j] = norm / root;
      if (!(norm > 0)) continue;
      W.within[j] = (alpha[j] ** 2 * root) / norm;
      for (let i = 0; i < J; i++)
        for (let l = 0; l < J; l++) W.between[i * J + l] += (X[i * J + j] * X[l * J + j] * root) / norm;
    }
  }
  const Z = { within: alpha.map((a) => a * a), between: product((i, j, l) => X[l * J + i] * X[l * J + j]) };
  return { W, H, Z };
}

/** Per group what is known per cluster. A group that is part of a larger cluster has the same entries. */
function onGroups(problem, of, m, { alpha, C, b, states, grams }) {
  const { groups } = problem,
    G = groups.length,
    { J } = m;
  const split = (within, between) => {
    // entries of the K x K matrix: one class with itself, with a sibling, with a class of another cluster
    const sibling = (i, j) => between[i * J + j] / Math.sqrt(m.k[i] * m.k[j]) - (i === j ? within[i] / m.k[i] : 0);
    const out = { within: groups.map((_, g) => within[of[g]]), between: new Float64Array(G * G) };
    for (let g = 0; g < G; g++)
      for (let h = 0; h < G; h++) {
        const [i, j] = [of[g], of[h]];
        out.between[g * G + h] = Math.sqrt(groups[g].k * groups[h].k) * sibling(i, j) + (g === h ? within[i] : 0);
      }
    return out;
  };
  const whole = split(
    alpha,
    C.map((x, at) => x * Math.sqrt(m.k[(at / J) | 0] * m.k[at % J])),
  );
  const root = (g, h) => Math.sqrt(groups[g].k * groups[h].k);
  return {
    alpha: Float64Array.from(groups, (g, i) => (g.k > 1 ? whole.within[i] : 0)),
    C: whole.between.map((x, at) => x / root((at / G) | 0, at % G)),
    b: Float64Array.from(groups, (_, g) => b[of[g]]),
    states: groups.map((_, g) => states[of[g]]),
    norms: of.map((j) => columnLength(m, alpha, C, j)),
    grams: {
      W: split(grams.W.within, grams.W.between),
      H: split(grams.H.within, grams.H.between),
      Z: split(grams.Z.within, grams.Z.between),
    },
  };
}

/**
 * lambda_w / rho^2 at which this point is also the optimum behind a BatchNorm, mean ||h||^2 = rho^2 over the samples seen,
 * with decay of the head alone: there lambda_w ||W||^2 = lambda_z S and lambda_h sum_k m_k ||h_k||^2 = lambda_z S, S the
 * trace of W'W for lambda_w = lambda_h, so lambda_w = lambda_z rho^2 sum_k m_k / S. NaN where Z = 0.
 */
export function batchDecayOf(problem, solution) {
  const { groups, lambdaZ } = problem,
    { within, between } = solution.grams.W;
  let trace = 0,
    mass = 0;
  groups.forEach(({ k, mass: each }, g) => {
    trace += within[g] * (k - 1) + between[g * groups.length + g];
    mass += k * each;
  });
  return trace > 0 ? (lambdaZ * mass) / trace : NaN;
}

/** Z for a class of group j and the score of a class of group i: the own class, a sibling, a foreign one. */
export function entryOf(solution, groups, i, j, same) {
  const G = groups.length,
    base = solution.C[i * G + j];
  if (i !== j) return base;
  return base + solution.alpha[j] * ((same ? 1 : 0) - 1 / groups[j].k);
}

/** Cosine of the angle between two different classes of groups i and j by a Gram matrix; NaN where a vector is zero. */
export function cosineOf(gram, groups, i, j) {
  const G = groups.length;
  const square = (g) => gram.between[g * G + g] / groups[g].k + gram.within[g] * (1 - 1 / groups[g].k);
  const largest = Math.max(...groups.map((_, g) => square(g)));
  const [a, b] = [square(i), square(j)];
  if (!(a > 1e-18 * largest && b > 1e-18 * largest) || (i === j && groups[i].k < 2)) return NaN;
  const product =
    gram.between[i * G + j] / Math.sqrt(groups[i].k * groups[j].k) - (i === j ? gram.within[i] / groups[i].k : 0);
  return Math.min(1, Math.max(-1, product / Math.sqrt(a * b)));
}
