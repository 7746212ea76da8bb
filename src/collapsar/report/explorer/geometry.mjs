// The class means in space. Every class is a column of G^(1/2), G the Gram matrix of features, head or predictions,
// which is unique up to an isometry. One fixed linear projection for all: the classes of a group on a regular
// polygon, the groups at different heights. So a group that merges shrinks to a point, and one that vanishes falls into the origin.

import { symmetricRoot } from "./linalg.mjs";
import { arrow, byId, draggable, plural, svg } from "./dom.mjs";
import { groupsOf, NAMES } from "./state.mjs";

const SIZE = 400,
  REACH = 172,
  MOST_POINTS = 60;
const view = { yaw: 0.5, pitch: 0.55 };

/** Where the classes of every group lie in three dimensions, in the units of the Gram matrix's roots. */
export function positionsOf(gram, groups) {
  const G = groups.length,
    root = symmetricRoot(gram.between, G),
    centre = groupCentres(groups);
  return groups.map((group, g) => {
    const middle = [0, 1, 2].map((axis) => {
      let x = 0;
      for (let i = 0; i < G; i++) x += root[i * G + g] * Math.sqrt(groups[i].k / group.k) * centre[i][axis];
      return x;
    });
    const radius = group.k > 1 ? Math.sqrt(Math.max(gram.within[g], 0)) : 0;
    const points = Array.from({ length: group.k }, (_, i) => {
      const angle = (2 * Math.PI * (i + g / 2)) / group.k;
      return [middle[0] + radius * Math.cos(angle), middle[1] + radius * Math.sin(angle), middle[2]];
    });
    return { middle, radius, points };
  });
}

/** Directions of the groups: heights for two, a triangle for three; weighted by class numbers they sum to zero. */
function groupCentres(groups) {
  const raw = groups.map((_, g) =>
    groups.length < 3
      ? [0, 0, 1 - 2 * g]
      : [
          [0, 0, 1],
          [-0.9, 0, -0.6],
          [0.9, 0, -0.6],
        ][g],
  );
  const K = groups.reduce((sum, g) => sum + g.k, 0);
  const mean = [0, 1, 2].map((axis) => groups.reduce((sum, g, i) => sum + (g.k * raw[i][axis]) / K, 0));
  return raw.map((x) => x.map((value, axis) => (groups.length === 1 ? 0 : value - mean[axis])));
}

/** The largest distance from the origin, for the scale of the picture. */
export function reachOf(positions) {
  return Math.max(...positions.flatMap(({ points }) => points.map((x) => Math.hypot(...x))), 1e-300);
}

function onScreen([x, y, z], scale) {
  const { yaw, pitch } = view,
    a = x * Math.cos(yaw) - y * Math.sin(yaw),
    b = x * Math.sin(yaw) + y * Math.cos(yaw);
  const up = z * Math.cos(pitch) - b * Math.sin(pitch),
    near = -(z * Math.sin(pitch) + b * Math.cos(pitch));
  return { x: SIZE / 2 + scale * a, y: SIZE / 2 - scale * up, near: (scale * near) / REACH };
}

/** What the picture says, for those who do not see it. */
function geometryInWords(state, solution) {
  const { used } = groupsOf(state);
  const parts = used.map((g, i) => {
    const name = `group ${NAMES[g]} (${plural(state.k[g], "class")})`;
    if (solution.states[i] === "vanished") return `${name} at the origin`;
    return solution.states[i] === "merged"
      ? `${name} on one point away from the origin`
      : `${name} on ${state.k[g]} separate points`;
  });
  return `Class means, projected: ${parts.join("; ")}.`;
}

/**
 * Draws them. reach: what fills the picture. The zoom follows a little when classes shrink, so that they
 * can be seen shrinking and still be seen.
 */
export function drawGeometry(state, problem, solution, reach) {
  const { used } = groupsOf(state),
    box = byId("geometry");
  const positions = positionsOf(solution.grams[state.v], problem.groups);
  const now = Math.max(reachOf(positions), 1e-4 * reach);
  const scale = Math.min(REACH / now, REACH / (reach ** 0.4 * now ** 0.6)); // nothing sticks out where they grow
  const size = Math.min(6.5, 90 / problem.groups.reduce((sum, group) => sum + group.k, 0));
  const drawn = positions.map((position, i) => {
    const name = NAMES[used[i]],
      tiny = position.radius * scale < 1.5;
    // a vanished class has no feature and no prediction; of its row in the head only the picture tells
    const short = state.v === "W" ? tiny : solution.states[i] !== "separated";
    const gone =
      state.v === "W" ? tiny && Math.hypot(...position.middle) * scale < 1.5 : solution.states[i] === "vanished";
    return drawGroup(name, position, scale, size, { merged: short && position.points.length > 1, gone });
  });
  const { x, y } = onScreen([0, 0, 0], scale),
    shapes = drawn.flatMap((group) => group.shapes);
  shapes.sort((a, b) => a.near - b.near);
  box.replaceChildren(
    svg("path", { class: "origin", d: `M${x - 7} ${y}h14M${x} ${y - 7}v14` }),
    ...shapes.map((shape) => shape.node),
    ...labelsApart(drawn.map((group) => group.label)),
  );
  box.setAttribute("aria-label", geometryInWords(state, solution));
}

/** The shapes of one group, each with how near it is, and its label. */
function drawGroup(name, { points, middle }, scale, size, { merged, gone }) {
  const kind = `g${name}`,
    at = (x) => onScreen(x, scale),
    origin = at([0, 0, 0]),
    c = at(middle),
    shapes = [];
  const add = (near, tag, attributes) => shapes.push({ near, node: svg(tag, attributes) });
  const spots = (merged || gone ? points.slice(0, 1) : points.slice(0, MOST_POINTS)).map(at);
  if (spots.length > 1) {
    const outline = spots.map((s, n) => `${n ? "L" : "M"}${s.x.toFixed(1)} ${s.y.toFixed(1)}`).join("") + "Z";
    add(-9, "path", { class: `hull ${kind}`, d: outline });
  }
  for (const s of gone ? [] : spots) {
    add(s.near - 0.01, "path", { class: `spoke ${kind}`, d: `M${origin.x} ${origin.y}L${s.x} ${s.y}` });
    const r = Math.max(2.2, size * (1 + 0.25 * s.near));
    add(s.near, "circle", { class: `class ${kind}`, cx: s.x, cy: s.y, r });
  }
  if (gone) add(8, "path", { class: `gone ${kind}`, d: `M${c.x - 8} ${c.y - 8}l16 16m0-16l-16 16` });
  else if (merged) add(8, "circle", { class: `ring ${kind}`, cx: c.x, cy: c.y, r: 14 });
  const text = gone ? "vanished" : merged ? `${points.length} classes on one point` : plural(points.length, "class");
  const heights = spots.map((s) => s.y),
    above = !gone && middle[2] > 0;
  const y = gone ? c.y + 28 : above ? Math.min(...heights) - 22 : Math.max(...heights) + 30;
  return { shapes, label: { kind, text: `${name}: ${text}`, x: c.x, y } };
}

/** Labels inside the picture, none over another: from above, each far enough below the last that it would touch. */
function labelsApart(labels) {
  const placed = [];
  const sorted = [...labels].sort((a, b) => a.y - b.y);
  for (const { kind, text, x, y } of sorted) {
    const half = text.length * 4.1,
      inside = Math.min(SIZE - half, Math.max(half, x));
    let line = Math.min(SIZE - 8, Math.max(16, y));
    for (const other of placed) {
      if (Math.abs(other.x - inside) < other.half + half && Math.abs(line - other.y) < 19) line = other.y + 19;
    }
    placed.push({ kind, text, x: inside, y: line, half });
  }
  return placed.map(({ kind, text, x, y }) =>
    svg("text", { class: `label ${kind}`, x, y, "text-anchor": "middle" }, text),
  );
}

/** Turning by pointer and arrow keys. */
export function bindGeometry(redraw) {
  const box = byId("geometry");
  let last = null;
  const turn = (right, up) => {
    view.yaw += right;
    view.pitch = Math.min(1.5, Math.max(-1.5, view.pitch + up));
    redraw();
  };
  draggable(
    box,
    (event) => {
      turn((event.clientX - last.clientX) * -0.01, (event.clientY - last.clientY) * 0.01);
      last = event;
    },
    (event) => (last = event),
  );
  box.addEventListener("keydown", (event) => {
    const way = arrow(event);
    if (way) turn(-0.1 * way[0], 0.1 * way[1]);
  });
}
