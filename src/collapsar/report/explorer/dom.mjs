// Elements, numbers and words, the same everywhere on the page.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

/** A number for people: three digits, a true minus sign, no exponent where it can be helped. */
export function shown(x, digits = 3) {
  if (Number.isNaN(x) || x === null) return "–";
  if (x === Infinity) return "∞";
  const size = Math.abs(x);
  if (size !== 0 && (size < 1e-5 || size >= 1e7)) {
    const [mantissa, power] = x.toExponential(digits - 1).split("e");
    return `${mantissa.replace("-", "−")}·10${raised(Number(power))}`;
  }
  const text = size >= 10 ** (digits - 1) ? String(Math.round(x)) : String(Number(x.toPrecision(digits)));
  return text.replace("-", "−");
}

/** A power as superscript digits. */
export const raised = (power) => String(power).replace(/./g, (c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));

/** Text with subscripts: "k_A" becomes k and a small A. In SVG the small letter is lowered by hand. */
export function withSubscripts(text) {
  return text.split(/(_\w)/).map((part) => (/^_\w$/.test(part) ? el("sub", {}, part[1]) : part));
}
export function withSvgSubscripts(text) {
  return text
    .split(/(_\w)/)
    .filter(Boolean)
    .flatMap((part, i, parts) => {
      if (/^_\w$/.test(part)) return [svg("tspan", { dy: 3, "font-size": "0.78em" }, part[1])];
      return [svg("tspan", { dy: i > 0 && parts[i - 1][0] === "_" ? -3 : null }, part)];
    });
}

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : word.endsWith("s") ? "es" : "s"}`;

/** "A", "A and B", "A, B and C". */
export function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

/** A colour of the page in its present theme, as [r, g, b]. */
export function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

export const SYMBOLS = { separated: "●", merged: "■", vanished: "✖" };

/** Arrow keys as [right, up]; null for other keys. Shift: five times as far. */
export function arrow(event) {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
  if (!way || event.altKey || event.ctrlKey || event.metaKey) return null;
  event.preventDefault();
  return way.map((x) => x * (event.shiftKey ? 5 : 1));
}

/** step(x) for x from one value to another, evenly in logarithm, slow at both ends. Returns what stops it. */
export function glide(from, to, duration, step, done = () => {}) {
  const begin = performance.now();
  let on = true;
  const frame = (now) => {
    if (!on) return;
    const part = Math.min(1, Math.max(0, (now - begin) / duration)),
      eased = part * part * (3 - 2 * part);
    step(Number((from * (to / from) ** eased).toPrecision(5)));
    if (part < 1) requestAnimationFrame(frame);
    else done();
  };
  requestAnimationFrame(frame);
  return () => (on = false);
}

/** Calls move(event) while the pointer is down, from the first touch on. */
export function draggable(node, move, begin = () => {}) {
  node.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    node.setPointerCapture(event.pointerId);
    begin(event);
    move(event);
  });
  node.addEventListener("pointermove", (event) => {
    if (node.hasPointerCapture(event.pointerId)) move(event);
  });
}
