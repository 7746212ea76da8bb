// Where classes merge, vanish and collapse, as values of lambda_Z, and the least mitigation that prevents it.
//
// Merging (signed features) has a closed form: tau delta (1 - eps) q / sqrt(m), sqrt(n) / N without mitigations (Hong &
// Ling, JMLR 25(192), 2024, Cor. 4). A part of Z vanishes where lambda_Z reaches the norm of the residual on it, at the
// optimum that holds this part at zero.

import { rootBetween, symmetricEigen } from "./linalg.mjs";
import { columnNorms, dualNorm, modelOf, residualGram, residualOf, spectralNorm } from "./model.mjs";
import { minimise } from "./newton.mjs";
import { clustersOf, solve } from "./solve.mjs";

const FLOOR = 1e-3; // how far below its guess a root is looked for
const CLOSED = 1e-9; // the certificate of nonnegative features counts as closed up to this

/**
 * {merge, gradual, vanish, exact} per group and complete; NaN where a class has no such transition. A class alone in its
 * cluster merges with none: `gradual` is about where its features no longer raise its own score most (signed features).
 */
export function thresholds(problem) {
  const { q, of } = clustersOf(problem),
    t = q.features === "signed" ? signed(q) : nonnegative(q);
  return {
    merge: of.map((j) => t.merge[j]),
    gradual: of.map((j) => (q.features === "signed" && q.k[j] === 1 ? gradual(q, j, t.complete) : NaN)),
    vanish: of.map((j) => t.vanish[j]),
    exact: of.map((j) => t.exact[j]),
    complete: t.complete,
  };
}

/** A function of lambda_Z: the optimum with a part held at zero, each started from the last. */
function heldAt(q, held) {
  let warm = null;
  return (lambdaZ) => {
    const m = modelOf({ ...q, lambdaZ }),
      point = minimise(m, { held, warm });
    warm = point;
    return { m, P: point.P };
  };
}

const withinStrength = (q, j) => (q.tau[j] * q.delta[j] * (1 - q.eps) * q.share[j]) / Math.sqrt(q.mass[j]);
const mergeOf = (q) => q.k.map((k, j) => (k > 1 ? withinStrength(q, j) : NaN));

/** Two columns are opposite until both vanish, unless labels are smoothed and logits offset at once. */
function gradual(q, j, complete) {
  const opposite = q.k.length === 2 && q.k[1 - j] === 1 && !(q.eps > 0 && q.iota.some((x) => x !== 0));
  return opposite ? complete : Math.min(withinStrength(q, j), complete);
}

function signed(q) {
  const J = q.k.length,
    merge = mergeOf(q),
    top = Math.max(0, ...merge.filter((x) => !Number.isNaN(x)));
  const between = ({ m, P }) => spectralNorm(residualOf(m, P).between, m.p, J);
  let part = J === 1 ? 0 : between(heldAt(q, { all: true })(1));
  if (J > 1 && part < top) {
    const at = heldAt(q, { between: true });
    const guess = Math.max(part, ...merge.filter((x) => x < top));
    part = largestRoot((lambdaZ) => between(at(lambdaZ)) - lambdaZ, top, guess);
  }
  const vanish = merge.map((x) => (Number.isNaN(x) || part > x ? part : x));
  return { merge, vanish, exact: merge.map(() => true), complete: Math.max(...vanish) };
}

function nonnegative(q) {
  const J = q.k.length,
    rest = heldAt(q, { all: true })(1),
    norms = columnNorms(rest.m, rest.P),
    top = Math.max(...norms);
  const bounds = gaugeBounds(rest.m, rest.P),
    single = bounds.upper <= top * (1 + 1e-12);
  const vanish = Array.from(norms),
    exact = norms.map(() => bounds.upper <= top * (1 + CLOSED));
  let opening = exact[0] ? 0 : bounds.upper; // classes share a direction from here down, as far as is seen
  for (let j = 0; j < J; j++) {
    if (norms[j] >= top) continue;
    const at = heldAt(q, { column: j });
    if (q.lambdaB < Infinity) {
      vanish[j] = largestRoot(
        (lambdaZ) => {
          const { m, P } = at(lambdaZ);
          return columnNorms(m, P)[j] - lambdaZ;
        },
        top,
        norms[j],
      );
    }
    const value = Number.isNaN(vanish[j]) ? FLOOR * norms[j] : vanish[j],
      { m, P } = at(value);
    exact[j] = dualNorm(m, P) <= value * (1 + CLOSED);
    if (!exact[j]) opening = Math.max(opening, value);
  }
  // what shares above may outlive its own threshold
  for (let j = 0; j < J; j++) exact[j] = exact[j] && !((Number.isNaN(vanish[j]) ? 0 : vanish[j]) < opening);
  return { merge: q.k.map(() => NaN), vanish, exact, complete: single ? top : bounds.best };
}

/** The largest ||Rh|| over unit h >= 0: the best found by projected power steps, and the bound of the certificate. */
function gaugeBounds(m, P) {
  const { J, k } = m,
    upper = dualNorm(m, P),
    { gram, siblings } = residualGram(m, P),
    norms = columnNorms(m, P);
  let best = Math.max(...norms);
  if (upper <= best * (1 + 1e-12)) return { upper, best };
  // one class of a cluster takes part, or all of them where their columns make an acute angle
  const used = k.map((x, j) => (siblings[j] > 0 ? x : 1)),
    form = new Float64Array(J * J);
  for (let i = 0; i < J; i++)
    for (let j = 0; j < J; j++) {
      form[i * J + j] =
        i === j
          ? norms[j] ** 2 + (used[j] - 1) * siblings[j]
          : (gram[i * J + j] / Math.sqrt(k[i] * k[j])) * Math.sqrt(used[i] * used[j]);
    }
  const { V } = symmetricEigen(form, J),
    starts = [Array(J).fill(1)];
  for (let e = 0; e < J; e++)
    starts.push(
      k.map((_, i) => Math.abs(V[i * J + e])),
      k.map((_, i) => (i === e ? 1 : 1e-3)),
    );
  for (const start of starts) {
    let h = start;
    for (let i = 0; i < 300; i++) {
      const next = k.map((_, r) =>
        Math.max(
          0,
          h.reduce((sum, x, c) => sum + form[r * J + c] * x, 0),
        ),
      );
      const size = Math.hypot(...next);
      if (!(size > 0)) break;
      h = next.map((x) => x / size);
    }
    const size = Math.hypot(...h);
    let square = 0;
    for (let r = 0; r < J; r++) for (let c = 0; c < J; c++) square += (h[r] * form[r * J + c] * h[c]) / (size * size);
    best = Math.max(best, Math.sqrt(Math.max(square, 0)));
  }
  return { upper, best };
}

/** The largest root below top, where excess is negative: walk down to a change of sign. NaN where there is none. */
function largestRoot(excess, top, guess) {
  let high = top,
    low = Math.min(guess, top * (1 - 1e-9)),
    factor = 0.9,
    above = excess(top),
    value = excess(low);
  while (value < 0) {
    factor *= factor;
    [high, above] = [low, value];
    low = Math.min(value + low, factor * low);
    if (low < FLOOR * guess) return NaN;
    value = excess(low);
  }
  return value === 0 ? low : rootBetween(excess, low, high, value, above);
}

/** Whether the classes of a group are separated at the problem's own lambda_Z. No root is needed. */
export function isApart(problem, group) {
  const { q, of } = clustersOf(problem),
    j = of[group];
  if (q.features === "nonnegative") {
    const { m, P } = heldAt(q, { column: j })(q.lambdaZ);
    return columnNorms(m, P)[j] > q.lambdaZ * (1 + 1e-12);
  }
  if (q.k[j] > 1) return mergeOf(q)[j] > q.lambdaZ;
  return solve(problem).states[group] === "separated";
}

/**
 * The least change of one parameter that keeps a group apart, from a value where it is not.
 * problemAt(x): the problem for x. The range is scanned in equal ratios, then halved. null where nothing in it helps.
 */
export function leastCure(problemAt, group, from, to, points = 16) {
  let low = from;
  for (let i = 1; i <= points; i++) {
    let high = from * (to / from) ** (i / points);
    if (isApart(problemAt(high), group)) {
      for (let step = 0; step < 22; step++) {
        const middle = Math.sqrt(low * high);
        if (isApart(problemAt(middle), group)) high = middle;
        else low = middle;
      }
      return high;
    }
    low = high;
  }
  return null;
}
