// Newton's method on the quotient. A step is a proximal-gradient step where that changes which parts of Z live, and
// elsewhere a Newton step on the living part, along which objective and price are smooth.

import { choleskySolve, thinSvd } from "./linalg.mjs";
import { gradientOf, hessianOf, lowerBound, smoothValue, softmax } from "./model.mjs";
import { priceOf } from "./price.mjs";

const NOISE = 1e-15; // relative rounding of the objective
const CONVERGED = 1e-22; // Newton decrement, relative to the objective: Z itself is good to ten digits
const LONGEST = 6; // of a logit difference in one step, nats: beyond it the quadratic model of a softmax says nothing
const PATIENCE = 2; // a converged point whose certificate stays open this often is no optimum of the whole problem
const GAP_FLOOR = 2e-3; // nats: the gap is relative to max(|primal|, this)
const MAX_STEPS = 80;

/**
 * The best point of a problem, with a lower bound of its optimum.
 *
 * m: from modelOf. held: parts that stay zero (see priceOf); the lower bound is then without meaning.
 * warm: {v, beta} of a near problem. Returns {v, beta, P, primal, dual, steps}.
 */
export function minimise(m, { held = null, warm = null, tol = 1e-9 } = {}) {
  const price = priceOf(m, held ?? {});
  const work = { m, price, stretch: 1, idle: false, ...bestStart(m, price, held, warm) };
  let dual = -Infinity,
    steps = 1,
    tries = 0;
  for (; steps <= MAX_STEPS; steps++) {
    if (!iterate(work)) continue;
    if (held) break;
    dual = lowerBound(m, work.P);
    if (relativeGap(work.value, dual) <= tol || ++tries > PATIENCE) break;
  }
  if (!held && dual === -Infinity) dual = lowerBound(m, work.P);
  return { v: work.v, beta: work.beta, P: work.P, primal: work.value, dual, steps: Math.min(steps, MAX_STEPS) };
}

/** What the tolerance bounds: gap / max(|primal|, 2e-3). */
export function relativeGap(primal, dual) {
  return Math.max(primal - dual, 0) / Math.max(Math.abs(primal), GAP_FLOOR);
}

function evaluated(m, price, v, beta) {
  const P = softmax(m, v, beta);
  return { v, beta, P, value: smoothValue(m, P, beta) + price.value(v) };
}

/** The best of a given point and a few multiples of the asymptotic form of the optimum. */
function bestStart(m, price, held, warm) {
  const { J, p } = m,
    zero = new Float64Array(p),
    form = held?.all ? new Float64Array(J * J) : asymptotic(m);
  if (held?.between) form.fill(0, 0, p * J);
  if (held?.column !== undefined) for (let c = 0; c < J; c++) form[c * J + held.column] = 0;
  let best = null;
  const consider = (v, beta) => {
    const trial = evaluated(m, price, v, beta);
    if (best === null || trial.value < best.value) best = trial;
  };
  if (warm) consider(Float64Array.from(warm.v), m.biased ? Float64Array.from(warm.beta) : zero);
  else
    for (const factor of [1, 0.5, 0.1, 0])
      consider(
        form.map((x) => factor * x),
        zero,
      );
  return best;
}

/** As the penalty weakens, the log-odds of the wrong classes tend to those of lambda_Z times a polar factor. */
function asymptotic(m) {
  const { J, p, k, K } = m,
    root = k.map(Math.sqrt),
    mass = m.mass.map(Math.sqrt),
    v = new Float64Array(J * J);
  const polar = polarOfCentring(k, mass),
    wrong = new Float64Array(J * J);
  let mean = 0;
  for (let i = 0; i < J; i++)
    for (let j = 0; j < J; j++) {
      const at = i * J + j;
      wrong[at] = i === j ? (1 - polar[at]) / k[j] : -polar[at] / (root[i] * root[j]);
      mean += Math.abs(wrong[at]) / (J * J);
    }
  for (let j = 0; j < J; j++) {
    const P = new Float64Array(J),
      z = new Float64Array(J);
    let miss = 0;
    for (let i = 0; i < J; i++) {
      const odds = 2 * Math.max(wrong[i * J + j], mean);
      P[i] = (odds * m.lambdaZ * mass[j]) / (m.tau[j] * m.share[j] * m.delta[i]) + m.smooth;
      miss += m.others[i * J + j] * P[i];
    }
    const cap = Math.min(1, (1 - 1.5 / K) / miss);
    for (let i = 0; i < J; i++)
      z[i] = (Math.log(P[i] * cap) - Math.log1p(-miss * cap) - m.shift[i * J + j]) / (m.tau[j] * m.delta[i]);
    if (k[j] === 1) z[j] = 0;
    const alpha = Math.max(-z[j], 0);
    z[j] = -alpha * (1 - 1 / k[j]);
    for (let c = 0; c < p; c++)
      for (let i = 0; i < J; i++) v[c * J + j] += m.basis[i * p + c] * root[i] * root[j] * mass[j] * z[i];
    v[p * J + j] = alpha * mass[j] * Math.sqrt(k[j] - 1);
  }
  return v;
}

/** The polar factor of C_K M^(1/2) on the cluster directions, J x J. */
function polarOfCentring(k, mass) {
  const J = k.length,
    p = J - 1,
    K = k.reduce((a, b) => a + b, 0),
    polar = new Float64Array(J * J);
  if (p === 0) return polar;
  // rows of an orthonormal basis of the complement of sqrt(k): C = basis' basis
  const w = k.map((x) => Math.sqrt(x / K));
  w[p] += 1;
  const basis = new Float64Array(p * J),
    X = new Float64Array(p * J);
  for (let c = 0; c < p; c++)
    for (let i = 0; i < J; i++) {
      basis[c * J + i] = (i === c ? 1 : 0) - (w[i] * w[c]) / w[p];
      X[c * J + i] = basis[c * J + i] * mass[i];
    }
  const { A, B } = thinSvd(X, p, J);
  for (let i = 0; i < J; i++)
    for (let j = 0; j < J; j++)
      for (let c = 0; c < p; c++)
        for (let r = 0; r < p; r++) polar[i * J + j] += basis[c * J + i] * A[c * p + r] * B[r * J + j];
  return polar;
}

/** One step; says whether the point has converged. */
function iterate(work) {
  const slope = gradientOf(work.m, work.P, work.beta),
    H = hessianOf(work.m, work.P);
  return proximalStep(work, slope, H) ? false : newtonStep(work, slope, H);
}

/** Where it changes who lives, or where Newton's method is stuck; says whether it helped. */
function proximalStep(work, slope, H) {
  const { m } = work,
    { J, p } = m,
    n = J * J + p,
    bend = new Float64Array(n);
  for (let i = 0; i < n; i++) bend[i] = H[i * n + i] / work.stretch;
  for (let c = 0; c < J; c++)
    for (let j = 0; j < J; j++) {
      let reach = 0;
      for (let i = 0; i < J; i++) reach = Math.max(reach, Math.abs(m.slope[(i * J + j) * J + c]));
      bend[c * J + j] = Math.max(bend[c * J + j], (Math.abs(slope[c * J + j]) * reach) / (LONGEST * m.root[j]));
    }
  const trial = work.price.proximal(work.v, slope, bend);
  if (!trial.changed && !work.idle) return false;
  let steepest = 0;
  for (let c = 0; c < p; c++) steepest += bend[J * J + c];
  const beta = work.beta.map((x, c) => x - (work.idle ? slope[J * J + c] / (steepest > 0 ? steepest : 1) : 0));
  const next = evaluated(m, work.price, trial.v, beta),
    before = work.value;
  const noise = NOISE * Math.max(Math.abs(before), GAP_FLOOR),
    good = next.value <= before + noise;
  if (good) Object.assign(work, next);
  work.stretch = good ? Math.min(4 * work.stretch, 1) : work.stretch / 8;
  work.idle = false;
  return next.value < before - noise; // a change lost in rounding does not keep a problem from ending
}

/** A damped Newton step on the living part; says whether the decrement is negligible. */
function newtonStep(work, slope, hessian) {
  const { m } = work,
    { J, p } = m,
    n = J * J + p,
    { g, H, alive, turn } = work.price.frame(work.v, slope, hessian);
  for (let c = 0; c < p; c++) alive[J * J + c] = m.biased ? 1 : 0;
  const down = new Float64Array(n);
  for (let a = 0; a < n; a++) {
    down[a] = alive[a] ? -g[a] : 0;
    for (let b = 0; b < n; b++) if (!alive[a] || !alive[b]) H[a * n + b] = a === b ? 1 : 0;
  }
  let step = choleskySolve(H, down),
    fall = 0;
  for (let a = 0; a < n; a++) fall += down[a] * step[a];
  if (turn) step = Float64Array.from(step, (_, a) => step.reduce((sum, x, b) => sum + turn[a * n + b] * x, 0));
  const dv = step.subarray(0, J * J),
    dBeta = step.subarray(J * J),
    scale = Math.max(Math.abs(work.value), GAP_FLOOR);
  const done = fall <= CONVERGED * scale;
  let length = Math.min(1, LONGEST / Math.max(longestMove(m, dv, dBeta), 1e-300));
  for (;;) {
    const v = work.price.retract(
      work.v,
      dv.map((x) => length * x),
    );
    const next = evaluated(
      m,
      work.price,
      v,
      work.beta.map((x, c) => x + length * dBeta[c]),
    );
    if (next.value <= work.value - 1e-4 * length * fall + NOISE * scale) {
      Object.assign(work, next);
      break;
    }
    length *= 0.3;
    if (!(length > 1e-8)) {
      work.idle = true;
      break;
    }
  }
  return done || (work.idle && fall <= 1e-12 * scale);
}

/** The largest change of a logit difference, by the whole step or by the bias alone. */
function longestMove(m, dv, dBeta) {
  const { J, p } = m;
  let longest = 0;
  for (let i = 0; i < J; i++)
    for (let j = 0; j < J; j++) {
      let whole = 0,
        bias = 0;
      for (let c = 0; c < J; c++) {
        const a = m.slope[(i * J + j) * J + c],
          b = c < p ? a * dBeta[c] : 0;
        whole += (a * dv[c * J + j]) / m.root[j] + b;
        bias += b;
      }
      longest = Math.max(longest, Math.abs(whole), Math.abs(bias));
    }
  return longest;
}
