// What the explorer's JavaScript says of every stored case, as JSON: node tests/explorer_cases.mjs SOURCES CASES
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [sources, cases] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${sources}/${name}.mjs`));
const { batchDecayOf, cosineOf, entryOf, solve } = await load("solve");
const { thresholds } = await load("thresholds");
const { positionsOf } = await load("geometry");

function answer(problem) {
  const s = solve(problem),
    t = thresholds(problem);
  const { groups } = problem,
    each = (f) => groups.map((_, g) => f(g)),
    pairs = (f) => each((g) => each((h) => f(g, h)));
  return {
    own: each((g) => entryOf(s, groups, g, g, true)),
    other: pairs((g, h) => entryOf(s, groups, g, h, g === h && groups[g].k === 1)),
    b: Array.from(s.b),
    norms: s.norms,
    states: s.states,
    primal: s.primal,
    dual: s.dual,
    closed: s.closed,
    merge: t.merge,
    vanish: t.vanish,
    exact: t.exact,
    complete: t.complete,
    batchDecay: batchDecayOf(problem, s),
    cosines: Object.fromEntries(
      ["W", "H", "Z"].map((name) => [name, pairs((g, h) => cosineOf(s.grams[name], groups, g, h))]),
    ),
    positions: Object.fromEntries(
      ["W", "H"].map((name) => [name, positionsOf(s.grams[name], groups).flatMap(({ points }) => points)]),
    ),
  };
}

const problems = JSON.parse(readFileSync(cases)).map(({ problem }) => ({
  ...problem,
  lambdaB: problem.lambdaB === "inf" ? Infinity : problem.lambdaB,
}));
console.log(JSON.stringify(problems.map(answer)));
