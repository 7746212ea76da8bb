// The thresholds on a line, with the slider of lambda_Z on it: you are here.

import { byId, glide, shown, svg } from "./dom.mjs";
import { groupsOf, NAMES } from "./state.mjs";

const LENGTH = 1000,
  THICKNESS = 46,
  PLAY = 9000; // ms
export const scale = { low: 1e-4, high: 1e-1 };

/** The range of the line: from a fiftieth of complete collapse to a bit beyond it, and always with "here" inside. */
export function fitScale(complete, here) {
  scale.low = Math.min(complete / 20, here / 1.05);
  scale.high = Math.max(complete * 1.5, here * 1.05);
}

/** From where on a group's classes are not separated; about, for a class alone. */
export const onsetOf = ({ merge, gradual, vanish }, i) =>
  [merge[i], gradual[i], vanish[i], 0].find((x) => !Number.isNaN(x));

/** The zones of the smallest classes along lambda_Z: [{state, from, to}], "all" beyond complete collapse. */
export function zonesOf(limits, small) {
  const { vanish, complete } = limits,
    gone = Number.isNaN(vanish[small]) ? 0 : vanish[small];
  const onset = Math.min(onsetOf(limits, small), gone);
  const zones = [
    { state: "separated", from: 0, to: onset },
    { state: "merged", from: onset, to: gone },
    { state: "vanished", from: gone, to: complete },
    { state: "all", from: complete, to: Infinity },
  ];
  return zones.filter((zone) => zone.to > zone.from * (1 + 1e-9));
}

/** What the zones are called, in their order; `name`: the group of the smallest classes. */
export const zoneWords = (name) => ({
  separated: `${name} separated`,
  merged: `${name} merged`,
  vanished: `${name} vanished`,
  all: "all collapsed",
});

export function drawStrip(state, limits) {
  const { used, small, large } = groupsOf(state),
    box = byId("strip"),
    slider = byId("strip-z");
  const where = (x) =>
    (LENGTH * Math.log(Math.min(scale.high, Math.max(scale.low, x)) / scale.low)) / Math.log(scale.high / scale.low);
  const pixels = box.clientWidth || LENGTH,
    nodes = [];
  const words = zoneWords(NAMES[small]);
  if (used.length === 1 || small === large) words.separated = "all separated";
  for (const zone of zonesOf(limits, used.indexOf(small))) {
    const from = where(zone.from),
      to = where(zone.to);
    if (!(to > from)) continue;
    nodes.push(svg("rect", { class: `zone z-${zone.state}`, x: from, y: 0, width: to - from, height: THICKNESS }));
    const half = ((words[zone.state].length * 3.9 + 6) * LENGTH) / pixels,
      x = clearOf(where(state.z), from, to, half);
    if (x !== null)
      nodes.push(svg("text", { x, y: 28, "text-anchor": "middle", class: "zone-name" }, words[zone.state]));
  }
  box.setAttribute("viewBox", `0 0 ${LENGTH} ${THICKNESS}`);
  // text keeps its shape although the line is stretched to the page's width
  for (const node of nodes)
    if (node.tagName === "text") {
      const x = Number(node.getAttribute("x"));
      node.setAttribute("transform", `translate(${x} 28) scale(${LENGTH / pixels} 1) translate(${-x} -28)`);
    }
  box.replaceChildren(...nodes);
  slider.value = Math.log(state.z / scale.low) / Math.log(scale.high / scale.low);
  slider.setAttribute("aria-valuetext", `${shown(state.z)}: ${words[stateAt(limits, used.indexOf(small), state.z)]}`);
  drawTicks(state, limits, where);
}

/** The middle of a name inside its zone, beside the slider's thumb; null where there is no room. */
function clearOf(here, from, to, half) {
  const near = half * 1.25,
    middle = (from + to) / 2;
  const places = [middle, (here + to) / 2, (from + here) / 2].filter(
    (x) => x - half >= from && x + half <= to && Math.abs(x - here) >= near,
  );
  return places[0] ?? null;
}

function stateAt(limits, small, z) {
  return zonesOf(limits, small).find((zone) => z < zone.to)?.state ?? "all";
}

/** The values themselves below the line, those too close to one another left out. */
function drawTicks(state, limits, where) {
  const { used } = groupsOf(state),
    ticks = [{ x: limits.complete, text: "everything collapses" }];
  used.forEach((g, i) => {
    const stays = limits.merge[i] < limits.vanish[i] * (1 - 1e-9);
    if (stays) ticks.push({ x: limits.merge[i], text: `${NAMES[g]} merges` });
    if (limits.gradual[i] < limits.vanish[i] * (1 - 1e-9))
      ticks.push({ x: limits.gradual[i], text: `${NAMES[g]} loses its own direction`, open: true });
    if (limits.vanish[i] < limits.complete * (1 - 1e-9))
      ticks.push({ x: limits.vanish[i], text: `${NAMES[g]} vanishes`, open: !limits.exact[i] });
  });
  ticks.sort((a, b) => a.x - b.x);
  byId("ticks").replaceChildren(
    ...ticks.map((tick) => {
      const item = document.createElement("li"),
        left = where(tick.x) / LENGTH;
      item.style.setProperty("--at", left.toFixed(4));
      item.textContent = `${tick.text} at ${shown(tick.x)}${tick.open ? " (about)" : ""}`;
      return item;
    }),
  );
}

/** The slider, and the button that moves it from where all is apart to where nothing is left. */
export function bindStrip(onChange, getLimits) {
  const button = byId("play");
  let stop = null;
  const end = () => {
    stop?.();
    stop = null;
    button.textContent = "Play";
  };
  button.addEventListener("click", () => {
    if (stop) return end();
    const { merge, gradual, vanish, complete } = getLimits(),
      first = Math.min(complete, ...[...merge, ...gradual, ...vanish].filter((x) => x > 0));
    button.textContent = "Stop";
    stop = glide(first / 4, complete * 1.15, PLAY, onChange, end);
  });
  for (const node of [byId("strip-z"), byId("f-z")])
    for (const name of ["pointerdown", "keydown"]) node.addEventListener(name, end);
  byId("strip-z").addEventListener("input", (event) =>
    onChange(scale.low * (scale.high / scale.low) ** Number(event.target.value)),
  );
}
