// The phase diagram: for every value of one parameter the thresholds of lambda_Z, hence the state of the smallest
// classes everywhere. The curves cost one computation of the thresholds each; they are found a few at a time, so that
// the page never waits.

import { arrow, byId, draggable, shown, svg, withSvgSubscripts } from "./dom.mjs";
import { changed, groupsOf, NAMES, problemOf } from "./state.mjs";
import { zonesOf, zoneWords } from "./strip.mjs";
import { thresholds } from "./thresholds.mjs";

const WIDTH = 420,
  HEIGHT = 320,
  LEFT = 66,
  RIGHT = 22,
  TOP = 12,
  BOTTOM = 46,
  COLUMNS = 36,
  BUDGET = 7; // ms
let job = null,
  drawn = null;

/** The parameters that can be on the horizontal axis: what it is called, its range, how to read and set it. */
export function axisOf(state) {
  const { small } = groupsOf(state),
    [nA, nB] = state.n,
    set = (g) => (x) => ({ n: { [g]: x } });
  switch (state.x) {
    case "nB":
      return { name: "n_B, samples per class of B", low: Math.max(1, nA / 500), high: nA, value: nB, patch: set(1) };
    case "b":
      return { name: "λ_b, penalty of the bias", low: 1e-4, high: 10, value: state.b, patch: (b) => ({ b }) };
    case "s":
      return { name: `oversampling of ${NAMES[small]}`, low: 1, high: 50, value: state.s, patch: (s) => ({ s }) };
    default: {
      const [low, high] = state.k[1] > 0 ? [nB, nB * 100] : [10, 10000];
      return { name: "n_A, samples per class of A", low, high, value: nA, patch: set(0) };
    }
  }
}

/** What the curves depend on: all but lambda_Z and the parameter itself. */
function keyOf(state, axis) {
  return JSON.stringify([{ ...changed(state, axis.patch(axis.low)), z: 0, v: 0 }, axis.low, axis.high], (_, x) =>
    x === Infinity ? "inf" : x,
  );
}

/** Starts over when the curves are others, and moves the point. */
export function drawPhase(state) {
  const axis = axisOf(state);
  axis.low = Math.min(axis.low, Math.max(axis.value, 1e-5));
  axis.high = Math.max(axis.high, Number.isFinite(axis.value) ? axis.value : 0, axis.low * 2);
  const key = keyOf(state, axis),
    { small } = groupsOf(state);
  if (job?.key !== key) {
    if (job) clearTimeout(job.timer);
    job = { key, state, axis, small, next: 0, curves: Array(COLUMNS + 1).fill(null), timer: 0 };
    work(job);
  }
  placePoint(state, axis);
}

function work(mine) {
  const end = performance.now() + BUDGET,
    { axis } = mine;
  while (mine.next <= COLUMNS && performance.now() < end) {
    const x = axis.low * (axis.high / axis.low) ** (mine.next / COLUMNS),
      there = changed(mine.state, axis.patch(x));
    const limits = thresholds(problemOf(there)),
      { used, small } = groupsOf(there),
      unit = 1 / Math.sqrt(there.c);
    const zones = zonesOf(limits, used.indexOf(small)),
      start = (name) => zones.find((zone) => zone.state === name)?.from;
    const complete = limits.complete,
      vanish = start("vanished") ?? complete,
      merge = start("merged") ?? vanish;
    mine.curves[mine.next++] = { x, merge: unit * merge, vanish: unit * vanish, complete: unit * complete };
  }
  if (mine.next > COLUMNS) paint(mine);
  else mine.timer = setTimeout(() => work(mine), 0);
}

const across = (x, axis) => LEFT + ((WIDTH - LEFT - RIGHT) * Math.log(x / axis.low)) / Math.log(axis.high / axis.low);
const upwards = (z, range) =>
  HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * Math.log(z / range.low)) / Math.log(range.high / range.low);

function paint(mine) {
  const { curves, axis } = mine,
    all = curves.flatMap((c) => [c.merge, c.vanish, c.complete]).filter((z) => z > 0);
  const range = { low: Math.min(...all) / 3, high: Math.max(...all) * 1.6 };
  const names = ["merge", "vanish", "complete"],
    bounds = [() => range.low, ...names.map((name) => (c) => c[name]), () => range.high];
  const lines = bounds.map((f) =>
    curves.map((c) => `${across(c.x, axis).toFixed(1)} ${upwards(Math.max(f(c), range.low), range).toFixed(1)}`),
  );
  const areas = Object.entries(zoneWords(NAMES[mine.small])); // each from one bound to the next
  const nodes = areas.map(([state], i) =>
    svg("path", { class: `zone z-${state}`, d: `M${lines[i].join("L")}L${[...lines[i + 1]].reverse().join("L")}Z` }),
  );
  nodes.push(...lines.slice(1, -1).map((line) => svg("path", { class: "curve", d: `M${line.join("L")}` })));
  nodes.push(
    ...areas.flatMap(([, words], i) => areaName(words, curves, axis, range, bounds[i], bounds[i + 1])),
    ...axes(axis, range),
  );
  byId("phase-map").replaceChildren(...nodes);
  drawn = { axis, range };
  placePoint(mine.state, axis);
}

/** The name of an area where it is tallest, if it fits. */
function areaName(text, curves, axis, range, lower, upper) {
  const spots = curves.slice(5, -5).map((c) => {
    const [low, high] = [lower, upper].map((f) => upwards(Math.max(f(c), range.low), range));
    return { x: across(c.x, axis), y: (low + high) / 2, tall: low - high };
  });
  const best = spots.reduce((a, b) => (b.tall > a.tall ? b : a)),
    half = text.length * 3.6;
  if (best.tall < 17) return [];
  const x = Math.min(WIDTH - RIGHT - half, Math.max(LEFT + half, best.x));
  return [svg("text", { class: "area-name", x, y: best.y + 4, "text-anchor": "middle" }, text)];
}

function axes(axis, range) {
  const text = (kind, x, y, anchor, words, turn = null) =>
    svg("text", { class: kind, x, y, "text-anchor": anchor, transform: turn }, ...words);
  const middle = (TOP + HEIGHT - BOTTOM) / 2,
    below = HEIGHT - BOTTOM + 16;
  return [
    ...decades(axis.low, axis.high).map((x) => text("tick", across(x, axis), below, "middle", [shown(x, 1)])),
    ...decades(range.low, range.high).map((z) => text("tick", LEFT - 6, upwards(z, range) + 4, "end", [shown(z, 1)])),
    text("axis", (LEFT + WIDTH) / 2, HEIGHT - 8, "middle", withSvgSubscripts(axis.name)),
    text("axis", 11, middle, "middle", withSvgSubscripts("λ_Z"), `rotate(-90 11 ${middle})`),
  ];
}

/** 1, 2 and 5 times powers of ten, as many as there is room for. */
function decades(low, high) {
  const list = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const head of Math.log10(high / low) > 2.2 ? [1] : Math.log10(high / low) > 1.2 ? [1, 3] : [1, 2, 5]) {
      const x = Number(`${head}e${power}`);
      if (x >= low * 0.999 && x <= high * 1.001) list.push(x);
    }
  }
  return list;
}

function placePoint(state, axis) {
  if (!drawn) return;
  const { range } = drawn,
    point = byId("phase-point"),
    clip = (x, low, high) => Math.min(high, Math.max(low, x));
  const x = clip(axis.value, axis.low, axis.high),
    z = clip(state.z, range.low, range.high);
  point.setAttribute("transform", `translate(${across(x, axis)} ${upwards(z, range)})`);
  byId("phase").setAttribute(
    "aria-label",
    `Phase diagram. The point: ${axis.name} ${shown(axis.value)}, lambda Z ${shown(state.z)}. Arrow keys move it.`,
  );
}

/** Dragging the point, and arrow keys. */
export function bindPhase(getState, onChange) {
  const box = byId("phase");
  const go = (x, z) => {
    const { axis, range } = drawn,
      inside = Math.min(axis.high, Math.max(axis.low, x));
    const round = (value) =>
      state.x === "nA" || state.x === "nB" ? Math.max(1, Math.round(value)) : Number(value.toPrecision(4));
    const state = getState();
    onChange({
      ...axisOf(state).patch(round(inside)),
      z: Number(Math.min(range.high, Math.max(range.low, z)).toPrecision(4)),
    });
  };
  draggable(box, (event) => {
    if (!drawn) return;
    const { axis, range } = drawn,
      area = box.getBoundingClientRect();
    const x = ((event.clientX - area.left) / area.width) * WIDTH,
      y = ((event.clientY - area.top) / area.height) * HEIGHT;
    const right = (x - LEFT) / (WIDTH - LEFT - RIGHT),
      up = (HEIGHT - BOTTOM - y) / (HEIGHT - BOTTOM - TOP);
    go(axis.low * (axis.high / axis.low) ** right, range.low * (range.high / range.low) ** up);
  });
  box.addEventListener("keydown", (event) => {
    const way = arrow(event),
      state = getState();
    if (!way || !drawn) return;
    const { axis, range } = drawn,
      present = Math.min(axis.high, Math.max(axis.low, axisOf(state).value));
    const moved = present * (axis.high / axis.low) ** (way[0] / 60),
      least = present + Math.sign(way[0]);
    const whole = state.x === "nA" || state.x === "nB",
      x = way[0] === 0 ? present : whole && Math.abs(moved - present) < 1 ? least : moved;
    go(x, state.z * (range.high / range.low) ** (way[1] / 80));
  });
}
