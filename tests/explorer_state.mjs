// Links and Python text of states given as JSON: node tests/explorer_state.mjs SOURCES STATES
// and what the classes do alone, without cures and presets: node tests/explorer_state.mjs SOURCES STATES --classes
import { pathToFileURL } from "node:url";

const [sources, states, part] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${sources}/${name}.mjs`));
const { changed, DEFAULTS, fromFragment, groupsOf, problemOf, toFragment, toPython } = await load("state");
const { entryOf, solve } = await load("solve");
const { leastCure, isApart, thresholds } = await load("thresholds");
const { FIGURES, OTHERS, TOUR } = await load("presets");
const text = (x) => JSON.parse(JSON.stringify(x, (_, value) => (value === Infinity ? "inf" : value)));

const answers = JSON.parse(states).map((patch) => {
  const state = changed(DEFAULTS, patch),
    problem = problemOf(state),
    s = solve(problem),
    { groups } = problem;
  if (part === "--classes") return { states: s.states };
  const { used, small } = groupsOf(state),
    i = used.indexOf(small);
  const cure = (field, to) =>
    isApart(problem, i) ? null : leastCure((x) => problemOf(changed(state, { [field]: x })), i, state[field], to);
  return text({
    state,
    fragment: toFragment(state),
    again: fromFragment(toFragment(state)),
    python: toPython(state),
    own: groups.map((_, g) => entryOf(s, groups, g, g, true)),
    states: s.states,
    closed: s.closed,
    thresholds: thresholds(problem),
    cures: { s: cure("s", 300), w: cure("w", 300), l: cure("l", 10), d: cure("d", 10) },
    small: i,
  });
});
const panels = part === "--classes" ? [] : [
  ...Object.values(FIGURES).flatMap((f) => f.panels.map((p) => p.patch)),
  ...Object.values(OTHERS).map((o) => o.patch),
  ...TOUR.map((t) => t.patch),
];
console.log(
  JSON.stringify({ answers, panels: panels.map((patch) => solve(problemOf(changed(DEFAULTS, patch))).closed) }),
);
