// The state of the page: what the controls set, what a link carries, and the problem it stands for.

export const NAMES = ["A", "B", "C"];

export const DEFAULTS = {
  k: [5, 5, 0], // classes per group; C is off at 0
  n: [500, 100, 200], // samples per class
  z: 0.0037, // lambda_Z
  b: 0.02, // lambda_b; 0: free bias, Infinity: none
  f: "signed", // or "nonnegative"
  s: 1, // oversampling of the smallest classes
  held: false, // copies do not pay the feature penalty again
  w: 1, // loss weight of the smallest classes
  t: 0, // logit adjustment: offsets t log prior
  d: 1, // CDT: logit scale of the smallest classes
  l: 1, // LDT: temperature of their samples
  e: 0, // label smoothing
  c: 1, // factor of the head's weight decay
  x: "nA", // what the phase diagram has on its horizontal axis
  v: "H", // what the geometry shows: features H, head W, predictions Z
};

/** Range of every number: [least, most, whole]. */
export const RANGES = {
  k: [0, 200, true],
  n: [1, 1e6, false],
  z: [1e-9, 10, false],
  b: [0, Infinity, false],
  s: [1, 1000, false],
  w: [0.01, 1000, false],
  t: [0, 5, false],
  d: [0.1, 10, false],
  l: [0.1, 10, false],
  e: [0, 0.9, false],
  c: [1e-4, 100, false],
};

const CHOICES = { f: ["signed", "nonnegative"], x: ["nA", "nB", "b", "s"], v: ["H", "W", "Z"] };

function number(name, text, fallback) {
  const value = text === "inf" ? Infinity : Number(text),
    [low, high, whole] = RANGES[name];
  if (text === "" || Number.isNaN(value)) return fallback;
  const inside = Math.min(high, Math.max(low, value));
  return whole ? Math.round(inside) : inside;
}

/** The state with some entries changed, every number inside its range; at least two classes, A never empty. */
export function changed(state, patch) {
  const next = { ...state };
  for (const [name, value] of Object.entries(patch)) {
    if (name === "k" || name === "n")
      next[name] = state[name].map((old, g) => number(name, String(value[g] ?? old), old));
    else if (name in RANGES) next[name] = number(name, String(value), state[name]);
    else if (name === "held") next.held = Boolean(value);
    else if (CHOICES[name]?.includes(value)) next[name] = value;
  }
  next.k[0] = Math.max(1, next.k[0]);
  if (next.k.reduce((a, b) => a + b, 0) < 2) next.k[1] = 1;
  return next;
}

export const written = (x, digits = 10) => (x === Infinity ? "inf" : String(Number(x.toPrecision(digits))));

/** The part of a link behind the #: what differs from the defaults, and always counts and penalties. */
export function toFragment(state) {
  const groups = state.k[2] > 0 ? 3 : 2,
    list = (name) => state[name].slice(0, groups).map((x) => written(x)).join(",");
  const parts = [`k=${list("k")}`, `n=${list("n")}`, `z=${written(state.z)}`, `b=${written(state.b)}`, `f=${state.f}`];
  for (const name of ["s", "held", "w", "t", "d", "l", "e", "c", "x", "v"]) {
    const value = state[name];
    if (value !== DEFAULTS[name])
      parts.push(`${name}=${typeof value === "number" ? written(value) : value === true ? "1" : value}`);
  }
  return parts.join("&");
}

/** The state of a link; what cannot be read keeps its default. */
export function fromFragment(text) {
  const patch = {};
  for (const part of text.replace(/^#/, "").split("&")) {
    const [name, value = ""] = part.split("=");
    if (name === "k" || name === "n") patch[name] = value.split(",");
    else if (name === "held") patch.held = value === "1";
    else if (name in RANGES || name in CHOICES) patch[name] = value;
  }
  return changed(DEFAULTS, patch);
}

/** The indices of the groups that have classes, and the one with the fewest samples per class (the last of equals). */
export function groupsOf(state) {
  const used = [0, 1, 2].filter((g) => state.k[g] > 0);
  const small = used.reduce((best, g) => (state.n[g] <= state.n[best] ? g : best), used[0]);
  const large = used.reduce((best, g) => (state.n[g] > state.n[best] ? g : best), used[0]);
  return { used, small, large };
}

/** The program of the state, in the form that solve and thresholds take. */
export function problemOf(state) {
  const { used, small } = groupsOf(state),
    { k, n } = state,
    only = (g, x) => (g === small ? x : 1);
  const sum = (f) => used.reduce((total, g) => total + k[g] * f(g), 0);
  const N = sum((g) => n[g]),
    q = (g) => only(g, state.s * state.w) * n[g],
    m = (g) => only(g, state.s) * n[g];
  const perSample = state.held ? N / sum(m) : 1,
    total = sum(q);
  return {
    groups: used.map((g) => ({
      k: k[g],
      n: n[g],
      share: q(g) / total,
      mass: m(g) * perSample,
      delta: only(g, state.d),
      tau: only(g, state.l),
      iota: state.t * Math.log(n[g] / N),
    })),
    eps: state.e,
    lambdaZ: state.z * Math.sqrt(state.c),
    lambdaB: state.b,
    features: state.f,
  };
}

/** The same in Python. */
export function toPython(state) {
  const { used } = groupsOf(state),
    problem = problemOf(state),
    { groups } = problem;
  const short = (x) => (x === Infinity ? 'float("inf")' : String(Number(x.toPrecision(12))));
  const list = (f) => groups.map((g, i) => `[${short(f(g, i))}] * ${g.k}`).join(" + ");
  const differs = (name, plain) => groups.some((g) => g[name] !== plain);
  const whole = used.every((g) => Number.isInteger(state.n[g]));
  const N = groups.reduce((sum, g) => sum + g.k * g.n, 0),
    loss = [];
  const weighted = !whole || groups.some((g) => Math.abs((g.share * N) / g.n - 1) > 1e-12);
  if (weighted) loss.push(`class_weights=${list((g) => (g.share * N) / (whole ? g.n : 1))}`);
  if (differs("iota", 0)) loss.push(`offsets=${list((g) => g.iota)}`);
  if (differs("delta", 1)) loss.push(`scales=${list((g) => g.delta)}`);
  if (differs("tau", 1)) loss.push(`temperatures=${list((g) => g.tau)}`);
  if (state.e) loss.push(`smoothing=${short(state.e)}`);
  const lines = [
    `class_counts=${list((g) => (whole ? g.n : 1))}`,
    `lambda_z=${short(problem.lambdaZ)}`,
    `lambda_b=${short(state.b)}`,
  ];
  if (loss.length) lines.push(`loss=cs.Loss(\n        ${loss.join(",\n        ")},\n    )`);
  if (!whole || groups.some((g) => g.mass !== g.n)) lines.push(`feature_mass=${list((g) => g.mass)}`);
  lines.push(`features="${state.f}"`);
  return [
    "import collapsar as cs\n",
    `problem = cs.Problem(\n    ${lines.join(",\n    ")},\n)`,
    "solution = cs.solve(problem)",
    "print(solution.class_states)",
    "print(solution.Z.round(4))",
    "print(solution.certificate.relative_gap)",
    "print(cs.thresholds(problem))\n",
  ].join("\n");
}
