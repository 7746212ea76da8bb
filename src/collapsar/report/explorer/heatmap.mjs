// Mean predictions as colours: a column for every class of samples, a row for every class's score. Blue speaks for,
// orange against. The strength is |z|^0.6, which shows the one large entry of a column and the many small ones.

import { arrow, byId, colour, shown } from "./dom.mjs";
import { entryOf } from "./solve.mjs";
import { groupsOf, NAMES } from "./state.mjs";

const EXPONENT = 0.6,
  EDGE = 26; // room for the groups' letters, in the units of 400
const cursor = { column: 0, row: 0, visible: false };
let present = null;

/** The group of each class, in order. */
const labelsOf = (groups) => groups.flatMap((g, i) => Array(g.k).fill(i));

/** Draws the map; full: the magnitude in nats that gets the full colour. */
export function drawHeatmap(state, problem, solution, full) {
  present = { state, problem, solution, full };
  const canvas = byId("heatmap"),
    { used } = groupsOf(state),
    labels = labelsOf(problem.groups),
    K = labels.length;
  const ratio = window.devicePixelRatio || 1,
    side = Math.round(canvas.clientWidth * ratio) || 400;
  if (canvas.width !== side) canvas.width = canvas.height = side;
  const pen = canvas.getContext("2d"),
    edge = (EDGE / 400) * side,
    cell = (side - edge - 2 * ratio) / K;
  const page = colour("page"),
    ends = { for: colour("for"), against: colour("against") },
    ink = `rgb(${colour("ink")})`;
  pen.clearRect(0, 0, side, side);
  const at = (i) => edge + Math.round(i * cell);
  for (let k = 0; k < K; k++)
    for (let l = 0; l < K; l++) {
      const z = entryOf(solution, problem.groups, labels[l], labels[k], l === k);
      const strength = Math.min(Math.abs(z) / full, 1) ** EXPONENT,
        end = z < 0 ? ends.against : ends.for;
      pen.fillStyle = `rgb(${page.map((x, c) => Math.round(x + (end[c] - x) * strength))})`;
      pen.fillRect(at(k), at(l), at(k + 1) - at(k), at(l + 1) - at(l));
    }
  pen.strokeStyle = pen.fillStyle = ink;
  pen.lineWidth = ratio;
  pen.font = `600 ${Math.round(13 * ratio)}px system-ui, sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  let first = 0;
  problem.groups.forEach((group, i) => {
    const middle = at(first + group.k / 2),
      name = NAMES[used[i]];
    pen.fillText(name, middle, edge / 2);
    pen.fillText(name, edge / 2, middle);
    first += group.k;
    if (first < K)
      for (const [x, y, w, h] of [
        [at(first), edge, ratio, at(K) - edge],
        [edge, at(first), at(K) - edge, ratio],
      ])
        pen.fillRect(x, y, w, h);
  });
  pen.strokeRect(edge, edge, at(K) - edge, at(K) - edge);
  if (cursor.visible && cursor.column < K && cursor.row < K) {
    pen.lineWidth = 2.5 * ratio;
    pen.strokeRect(
      at(cursor.column),
      at(cursor.row),
      at(cursor.column + 1) - at(cursor.column),
      at(cursor.row + 1) - at(cursor.row),
    );
    readOut(labels);
  }
  canvas.setAttribute("aria-label", mapInWords(state, problem, solution));
  byId("heatmap-scale").textContent = `full colour: ±${shown(full, 2)} nats`;
}

function readOut(labels) {
  const { state, problem, solution } = present,
    { used } = groupsOf(state),
    { column, row } = cursor;
  const z = entryOf(solution, problem.groups, labels[row], labels[column], row === column);
  const name = (i) => `${NAMES[used[labels[i]]]}${i - labels.indexOf(labels[i]) + 1}`;
  const score = row === column ? "its own score" : `score for class ${name(row)}`;
  byId("heatmap-readout").textContent = `Samples of class ${name(column)}, ${score}: ${shown(z)}`;
}

function mapInWords(state, problem, solution) {
  const { used } = groupsOf(state),
    parts = used.map((g, j) => {
      const own = shown(entryOf(solution, problem.groups, j, j, true)),
        others = used.map((h, i) => {
          if (i !== j) return `${shown(entryOf(solution, problem.groups, i, j, false))} for ${NAMES[h]}`;
          return state.k[g] > 1 ? `${shown(entryOf(solution, problem.groups, j, j, false))} for a sibling` : "";
        });
      return `samples of ${NAMES[g]}: ${own} for their own class, ${others.filter(Boolean).join(", ")}`;
    });
  return `Mean predictions in nats. ${parts.join("; ")}.`;
}

/** Pointer and arrow keys choose a cell, whose value is read out. */
export function bindHeatmap() {
  const canvas = byId("heatmap");
  const show = (column, row) => {
    const K = labelsOf(present.problem.groups).length,
      inside = (x) => Math.min(K - 1, Math.max(0, x));
    Object.assign(cursor, { column: inside(column), row: inside(row), visible: true });
    redraw();
  };
  const redraw = () => drawHeatmap(present.state, present.problem, present.solution, present.full);
  const point = (event) => {
    const box = canvas.getBoundingClientRect(),
      K = labelsOf(present.problem.groups).length,
      edge = EDGE / 400;
    const place = (x, size) => Math.floor(((x / size - edge) / (1 - edge)) * K);
    const column = place(event.clientX - box.left, box.width),
      row = place(event.clientY - box.top, box.height);
    if (column >= 0 && row >= 0) show(column, row);
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && show(cursor.column, cursor.row));
  canvas.addEventListener("keydown", (event) => {
    const way = arrow(event);
    if (way) show(cursor.column + way[0], cursor.row - way[1]);
  });
  const leave = () => {
    cursor.visible = false;
    redraw();
  };
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("blur", leave);
}
