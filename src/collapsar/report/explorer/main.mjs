// The page: one state; every change solves the problem again and draws everything from the solution.

import { bindControls, bindPresets, showControls } from "./controls.mjs";
import { byId } from "./dom.mjs";
import { bindGeometry, drawGeometry, positionsOf, reachOf } from "./geometry.mjs";
import { bindHeatmap, drawHeatmap } from "./heatmap.mjs";
import { drawAngles, drawCures, drawVerdict } from "./panels.mjs";
import { bindPhase, drawPhase } from "./phase.mjs";
import { entryOf, solve } from "./solve.mjs";
import { changed, fromFragment, problemOf, toFragment, toPython } from "./state.mjs";
import { bindStrip, drawStrip, fitScale } from "./strip.mjs";
import { thresholds } from "./thresholds.mjs";
import { bindTour } from "./tour.mjs";

const REFERENCE = 0.12; // of complete collapse: the penalty whose optimum sets the scale of the pictures
const QUIET = 120; // ms without a change before what takes longer is computed

const page = {
  state: fromFragment(location.hash),
  problem: null,
  solution: null,
  limits: null,
  reference: null,
  key: "",
  ms: 0, // of the last solve
  settled: false, // whether link, cures and Python text have followed the last change
};
let waiting = false,
  quiet = 0;

function change(patch) {
  page.state = changed(page.state, patch);
  page.settled = false;
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    render();
  });
}

/** Thresholds and scales, which do not depend on lambda_Z. Thresholds are in units of the nominal lambda_Z. */
function refresh(state) {
  const key = JSON.stringify({ ...state, z: 0, x: 0 }, (_, x) => (x === Infinity ? "inf" : x));
  if (key === page.key) return;
  page.key = key;
  const limits = thresholds(page.problem),
    unit = 1 / Math.sqrt(state.c),
    scaled = (list) => list.map((z) => z * unit);
  page.limits = {
    merge: scaled(limits.merge),
    gradual: scaled(limits.gradual),
    vanish: scaled(limits.vanish),
    exact: limits.exact,
    complete: limits.complete * unit,
  };
  const weak = { ...page.problem, lambdaZ: REFERENCE * limits.complete },
    solution = solve(weak);
  page.reference = {
    reach: reachOf(positionsOf(solution.grams[state.v], weak.groups)),
    full: Math.max(...solution.norms),
  };
}

function render() {
  page.settled = false;
  const { state } = page;
  page.problem = problemOf(state);
  const begin = performance.now();
  page.solution = solve(page.problem);
  page.ms = performance.now() - begin;
  refresh(state);
  const { problem, solution, limits, reference } = page;
  fitScale(limits.complete, state.z);
  showControls(state);
  drawStrip(state, limits);
  drawVerdict(state, solution);
  drawGeometry(state, problem, solution, reference.reach);
  drawHeatmap(state, problem, solution, reference.full);
  drawAngles(state, problem, solution);
  drawPhase(state);
  clearTimeout(quiet);
  quiet = setTimeout(() => {
    drawCures(page.state, page.limits, page.solution, change);
    byId("python").textContent = toPython(page.state);
    const fragment = `#${toFragment(page.state)}`;
    if (location.hash !== fragment) history.replaceState(null, "", fragment);
    byId("announce").textContent = byId("verdict").textContent;
    page.settled = true;
  }, QUIET);
}

async function copy(text, button) {
  const words = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = words), 1500);
}

function bindTheme() {
  const button = byId("theme"),
    root = document.documentElement;
  button.addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    render();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
}

bindControls(() => page.state, change);
bindPresets(change);
bindStrip(
  (z) => change({ z: Number(z.toPrecision(4)) }),
  () => page.limits,
);
bindGeometry(() => drawGeometry(page.state, page.problem, page.solution, page.reference.reach));
bindHeatmap();
bindPhase(() => page.state, change);
bindTour(change);
bindTheme();
byId("copy-python").addEventListener("click", (event) => copy(toPython(page.state), event.currentTarget));
byId("copy-link").addEventListener("click", (event) =>
  copy(location.href.split("#")[0] + `#${toFragment(page.state)}`, event.currentTarget),
);
// What was asked for, not location.hash: by now the timer above may have put the state before it there.
addEventListener("hashchange", (event) => change(fromFragment(new URL(event.newURL).hash)));
addEventListener("resize", render);
render();

/** For the browser's console, and for tests: the state, the problem, its solution and thresholds; and the solver. */
globalThis.explorer = Object.assign(page, { solve, thresholds, entryOf });
