// The two prices of Z: who lives, and how the price bends. Both are weighted sums of lengths of groups of coordinates,
// but for the nuclear norm of three clusters. A group (or a singular value) lives or is exactly zero.

import { spectralNorm } from "./model.mjs";
import { thinSvd } from "./linalg.mjs";

const ROUNDING = 1e-13; // relative: nothing is called to life by less

/**
 * The price that a problem puts on Z. Held parts stay zero: `held.between` the whole cluster part of signed features,
 * `held.column` one column of nonnegative ones, `held.all` everything.
 */
export function priceOf(m, held = {}) {
  const { J, p } = m,
    at = (c, j) => c * J + j,
    range = (n) => Array.from({ length: n }, (_, i) => i);
  if (m.features === "nonnegative") {
    return groupPrice(
      range(J).map((j) => ({
        at: range(J).map((c) => at(c, j)),
        weight: m.lambdaZ * Math.sqrt(m.k[j]),
        held: held.all || held.column === j,
      })),
    );
  }
  const within = range(J).map((j) => ({
    at: [at(p, j)],
    weight: m.lambdaZ * Math.sqrt(m.k[j] - 1),
    held: held.all || m.k[j] === 1,
  }));
  if (p === 0) return groupPrice(within);
  if (held.between || held.all) return groupPrice([{ at: range(p * J), weight: m.lambdaZ, held: true }, ...within]);
  if (p === 1) return groupPrice([{ at: range(J), weight: m.lambdaZ, held: false }, ...within]);
  return nuclearPrice(m, groupPrice(within));
}

function lengthOf(x, at) {
  let square = 0;
  for (const a of at) square += x[a] * x[a];
  return Math.sqrt(square);
}

function groupPrice(groups) {
  return {
    value(v) {
      let total = 0;
      for (const g of groups) total += g.weight * lengthOf(v, g.at);
      return total;
    },
    /** The proximal-gradient step from v, and whether it changes who lives. bend: curvature or more. */
    proximal(v, slope, bend) {
      const out = Float64Array.from(v);
      let changed = false;
      for (const { at, weight, held } of groups) {
        let steepest = 0,
          square = 0;
        for (const a of at) steepest += bend[a];
        const size = steepest > 0 ? 1 / steepest : 1;
        for (const a of at) square += (v[a] - size * slope[a]) ** 2;
        const length = Math.sqrt(square),
          lives = !held && length > size * weight * (1 + ROUNDING) && weight > 0;
        changed ||= lives !== at.some((a) => v[a] !== 0);
        for (const a of at) out[a] = lives ? (1 - (size * weight) / length) * (v[a] - size * slope[a]) : 0;
      }
      return { v: out, changed };
    },
    /** The quadratic model on what lives; a living length bends by (I - x x' / ||x||^2) / ||x||. */
    frame(v, gradient, hessian) {
      const n = gradient.length,
        g = Float64Array.from(gradient),
        H = Float64Array.from(hessian);
      const alive = new Uint8Array(n).fill(1);
      for (const { at, weight } of groups) {
        const length = lengthOf(v, at);
        for (const a of at) {
          alive[a] = length > 0 ? 1 : 0;
          if (!(length > 0)) continue;
          g[a] += (weight * v[a]) / length;
          if (at.length > 1)
            for (const b of at)
              H[a * n + b] += (weight / length) * ((a === b ? 1 : 0) - (v[a] / length) * (v[b] / length));
        }
      }
      return { g, H, alive, turn: null };
    },
    /** v + step; what would pass through zero stops there, where the price has its kink. */
    retract(v, step) {
      const out = v.map((x, i) => x + step[i]);
      for (const { at } of groups) {
        let along = 0;
        for (const a of at) along += v[a] * out[a];
        if (along < 0) for (const a of at) out[a] = 0;
      }
      return out;
    },
  };
}

const living = (sigma) => Array.from(sigma, (s) => s > ROUNDING * Math.max(sigma[0], 1e-300));

/** The nuclear norm of the first p rows of v, p = 2, and the parts inside the clusters beside it. */
function nuclearPrice(m, within) {
  const { J, p, lambdaZ } = m,
    block = p * J;
  const rebuilt = (out, { A, B }, sigma) => {
    for (let i = 0; i < p; i++)
      for (let j = 0; j < J; j++) {
        out[i * J + j] = 0;
        for (let r = 0; r < p; r++) out[i * J + j] += A[i * p + r] * sigma[r] * B[r * J + j];
      }
    return out;
  };
  return {
    value: (v) => lambdaZ * thinSvd(v, p, J).sigma.reduce((a, b) => a + b, 0) + within.value(v),
    proximal(v, slope, bend) {
      const { v: out, changed } = within.proximal(v, slope, bend);
      let steepest = 0;
      for (let i = 0; i < block; i++) steepest = Math.max(steepest, bend[i] * J);
      const size = steepest > 0 ? 1 / steepest : 1,
        edge = size * lambdaZ;
      const f = thinSvd(
        Float64Array.from({ length: block }, (_, i) => v[i] - size * slope[i]),
        p,
        J,
      );
      const kept = f.sigma.map((s) => (s > edge * (1 + ROUNDING) ? s - edge : 0));
      const count = (list) => list.filter(Boolean).length;
      const before = count(living(thinSvd(v, p, J).sigma));
      return { v: rebuilt(out, f, kept), changed: changed || count(Array.from(kept)) !== before };
    },
    frame: (v, gradient, hessian) => singularFrame(m, v, within.frame(v, gradient, hessian)),
    /** The nearest matrix of the same rank, less what would pass through zero. */
    retract(v, step) {
      const out = within.retract(v, step),
        old = thinSvd(v, p, J),
        lives = living(old.sigma);
      let rank = 0;
      for (let r = 0; r < p; r++) {
        let along = 0;
        for (let i = 0; i < p; i++)
          for (let j = 0; j < J; j++) along += old.A[i * p + r] * out[i * J + j] * old.B[r * J + j];
        if (lives[r] && along > 0) rank++;
      }
      const f = thinSvd(out, p, J);
      return rebuilt(
        out,
        f,
        f.sigma.map((s, r) => (r < rank ? s : 0)),
      );
    },
  };
}

/** The quadratic model in the frame of the singular vectors of the first p rows, on the matrices of their rank. */
function singularFrame({ J, p, lambdaZ }, v, inner) {
  const n = inner.g.length,
    block = p * J,
    f = thinSvd(v, p, J),
    lives = [...living(f.sigma), false];
  const turn = new Float64Array(n * n); // columns: the axes a_r b_t' of the singular frame
  for (let i = block; i < n; i++) turn[i * n + i] = 1;
  for (let i = 0; i < p; i++)
    for (let j = 0; j < J; j++)
      for (let r = 0; r < p; r++)
        for (let t = 0; t < J; t++) turn[(i * J + j) * n + r * J + t] = f.A[i * p + r] * f.B[t * J + j];
  const H = turned(inner.H, turn, n),
    g = new Float64Array(n),
    dead = new Float64Array(block);
  for (let a = 0; a < n; a++) for (let b = 0; b < n; b++) g[b] += turn[a * n + b] * inner.g[a];
  for (let i = 0; i < p; i++) for (let j = 0; j < J; j++) if (!lives[i] && !lives[j]) dead[i * J + j] = g[i * J + j];
  // beyond lambda_Z it should live, which is the proximal step's to find: here it would only spoil convexity
  const over = Math.min(1, lambdaZ / Math.max(spectralNorm(dead, p, J), 1e-300)),
    within = dead.map((x) => x * over);
  addBend(H, f.sigma, lives, within, lambdaZ);
  for (let i = 0; i < p; i++) {
    if (lives[i]) g[i * J + i] += lambdaZ;
    for (let j = 0; j < J; j++) inner.alive[i * J + j] = lives[i] || lives[j] ? 1 : 0;
  }
  return { g, H, alive: inner.alive, turn };
}

function turned(H, turn, n) {
  const half = new Float64Array(n * n),
    out = new Float64Array(n * n);
  for (let a = 0; a < n; a++)
    for (let b = 0; b < n; b++) for (let c = 0; c < n; c++) half[a * n + c] += H[a * n + b] * turn[b * n + c];
  for (let a = 0; a < n; a++)
    for (let b = 0; b < n; b++)
      if (turn[a * n + b] !== 0) for (let c = 0; c < n; c++) out[b * n + c] += turn[a * n + b] * half[a * n + c];
  return out;
}

/**
 * Second derivative of the nuclear norm along matrices of the same rank, times lambda_Z, in the singular frame. Between
 * two living directions only their rotation costs, (D_ij - D_ji)^2 / (sigma_i + sigma_j); towards a dead one it is
 * (D_ij^2 + D_ji^2) / sigma_i; turning both sides at once moves the dead part by the product, against its slope.
 */
function addBend(H, sigma, lives, dead, lambdaZ) {
  const n = Math.sqrt(H.length);
  const p = sigma.length,
    J = p + 1;
  for (let i = 0; i < p; i++) {
    const share = lives[i] ? lambdaZ / sigma[i] : 0;
    for (let j = 0; j < J; j++) {
      const ij = i * J + j,
        ji = j * J + i;
      if (i < j && j < p && lives[i] && lives[j]) {
        const twist = lambdaZ / (sigma[i] + sigma[j]);
        H[ij * n + ij] += twist;
        H[ji * n + ji] += twist;
        H[ij * n + ji] -= twist;
        H[ji * n + ij] -= twist;
      }
      if (!lives[j]) H[ij * n + ij] += share;
      if (j < p) {
        if (!lives[j]) H[ji * n + ji] += share;
        for (let r = 0; r < J; r++) {
          const pull = (dead[j * J + r] * share) / lambdaZ;
          H[ji * n + i * J + r] += pull;
          H[(i * J + r) * n + ji] += pull;
        }
      }
    }
  }
}
