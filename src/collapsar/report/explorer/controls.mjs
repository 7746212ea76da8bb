// Sliders with number fields. Each control reads one number of the state and writes it back.

import { byId, el, shown, withSubscripts } from "./dom.mjs";
import { FIGURES, OTHERS } from "./presets.mjs";
import { groupsOf, NAMES, written } from "./state.mjs";

const total = (state) => state.k.reduce((a, b) => a + b, 0);
/** K classes in all, of which A and C have theirs: B takes what is left. */
const split = (state, K, a, c) => ({
  k: [
    Math.min(a, K),
    Math.max(0, K - Math.min(a, K) - Math.min(c, K - Math.min(a, K))),
    Math.min(c, K - Math.min(a, K)),
  ],
});
const logarithmic = (low, high) => ({ low, high, log: true });
const linear = (low, high, step) => ({ low, high, step });

/** One number of the state under its own name. */
const entry = (box, id, words, range) => ({ id, box, words, ...range, read: (s) => s[id], write: (x) => ({ [id]: x }) });
const samplesPerClass = (g, words) => ({
  id: `n${NAMES[g]}`,
  box: "classes",
  words,
  ...logarithmic(10, 10000),
  integer: true,
  read: (s) => s.n[g],
  write: (x) => ({ n: { [g]: x } }),
  off: (s) => s.k[g] === 0,
});
const classes = (id, words, range, read, write) => ({ id, box: "classes", words, ...range, read, write });

/** id, words, slider range, read, write; `off`: not shown when it says so. */
const CONTROLS = [
  classes("K", () => "K, classes in all", linear(2, 40), total, (x, s) => split(s, Math.max(2, x), s.k[0], s.k[2])),
  classes(
    "kA",
    () => "k_A, classes of A",
    linear(1, (s) => Math.max(2, total(s) - s.k[2])),
    (s) => s.k[0],
    (x, s) => split(s, Math.max(total(s), x + s.k[2]), x, s.k[2]),
  ),
  samplesPerClass(0, () => "n_A, samples in each"),
  samplesPerClass(1, (s) => `n_B, samples in each of B's ${s.k[1]}`),
  classes(
    "kC",
    () => "k_C, classes of a third group",
    linear(0, (s) => Math.max(1, total(s) - s.k[0])),
    (s) => s.k[2],
    (x, s) => split(s, Math.max(total(s), s.k[0] + x), s.k[0], x),
  ),
  samplesPerClass(2, () => "n_C, samples in each"),
  entry("penalties", "b", () => "λ_b, penalty of the bias (0: free, inf: no bias)", {
    ...logarithmic(1e-4, 10),
    ends: true,
  }),
  entry("remedies", "s", (s) => `oversampling of ${few(s)}`, logarithmic(1, 50)),
  entry("remedies", "w", (s) => `loss weight of ${few(s)}`, logarithmic(1, 50)),
  entry("remedies", "t", () => "logit adjustment τ", linear(0, 2, 0.01)),
  entry("remedies", "d", (s) => `logit scale δ of ${few(s)} (CDT)`, logarithmic(0.3, 3)),
  entry("remedies", "l", (s) => `temperature of ${few(s)}'s samples (LDT)`, logarithmic(0.3, 3)),
  entry("remedies", "e", () => "label smoothing ε", linear(0, 0.5, 0.005)),
  entry("remedies", "c", () => "weight decay of the head, factor", logarithmic(0.01, 10)),
];
const few = (state) => NAMES[groupsOf(state).small];
const bound = (x, state) => (typeof x === "function" ? x(state) : x);

/** Slider positions run from 0 to 1 for logarithmic ranges; the ends of lambda_b mean 0 and infinity. */
function toSlider(control, x) {
  if (!control.log) return x;
  if (control.ends && (x === 0 || x === Infinity)) return x === 0 ? 0 : 1;
  const place = Math.log(x / control.low) / Math.log(control.high / control.low);
  return control.ends ? 0.04 + 0.92 * Math.min(1, Math.max(0, place)) : place;
}

function fromSlider(control, place) {
  if (!control.log) return place;
  if (control.ends && (place < 0.02 || place > 0.98)) return place < 0.02 ? 0 : Infinity;
  const inner = control.ends ? Math.min(1, Math.max(0, (place - 0.04) / 0.92)) : place;
  const x = control.low * (control.high / control.low) ** inner;
  return control.integer ? Math.round(x) : Number(x.toPrecision(3));
}

/** Builds every control; getState and onChange connect them to the page. */
export function bindControls(getState, onChange) {
  for (const control of CONTROLS) {
    const change = (x) => !Number.isNaN(x) && onChange(control.write(x, getState()));
    control.label = el("label", { for: `f-${control.id}` });
    control.slider = el("input", {
      type: "range",
      id: `r-${control.id}`,
      min: bound(control.log ? 0 : control.low, getState()),
      max: 1,
      step: control.log ? 0.005 : (control.step ?? 1),
      oninput: (event) => change(fromSlider(control, Number(event.target.value))),
    });
    control.field = el("input", {
      type: "text",
      inputmode: "decimal",
      id: `f-${control.id}`,
      autocomplete: "off",
      onchange: (event) => {
        const text = event.target.value.trim().toLowerCase().replace("∞", "inf");
        change(text === "inf" ? Infinity : text === "" ? NaN : Number(text));
        showControls(getState());
      },
    });
    control.row = el("div", { class: "control" }, control.label, control.slider, control.field);
    byId(control.box).append(control.row);
  }
  byId("f-z").addEventListener("change", (event) => {
    const z = Number(event.target.value);
    if (z > 0) onChange({ z });
    showControls(getState());
  });
  for (const radio of document.querySelectorAll("[data-choice]")) {
    radio.addEventListener("change", () => onChange({ [radio.name]: radio.value }));
  }
  byId("held").addEventListener("change", (event) => onChange({ held: event.target.checked }));
  byId("x").addEventListener("change", (event) => onChange({ x: event.target.value }));
}

/** Everything as the state says. A field that is being typed in is left alone. */
export function showControls(state) {
  for (const control of CONTROLS) {
    const { slider, field, label, row } = control,
      x = control.read(state);
    row.hidden = control.off?.(state) ?? false;
    const words = control.words(state);
    if (words !== slider.getAttribute("aria-label")) {
      label.replaceChildren(...withSubscripts(words));
      slider.setAttribute("aria-label", words);
    }
    if (!control.log) slider.max = bound(control.high, state);
    slider.value = toSlider(control, x);
    slider.setAttribute("aria-valuetext", shown(x, 6));
    if (document.activeElement !== field) field.value = written(x, 6);
  }
  if (document.activeElement !== byId("f-z")) byId("f-z").value = written(state.z, 4);
  for (const radio of document.querySelectorAll("[data-choice]")) radio.checked = state[radio.name] === radio.value;
  byId("held").checked = state.held;
  byId("x").value = state.x;
}

/** The menu of figures, and the panels of the chosen one. */
export function bindPresets(onChange) {
  const menu = byId("preset");
  for (const [key, { name }] of [...Object.entries(FIGURES), ...Object.entries(OTHERS)])
    menu.append(el("option", { value: key }, name));
  menu.addEventListener("change", () => {
    const figure = FIGURES[menu.value];
    byId("panels").replaceChildren(
      ...(figure?.panels ?? []).map(({ label, patch }, i) =>
        el(
          "button",
          {
            type: "button",
            "aria-pressed": i === 0,
            onclick: (event) => {
              for (const button of byId("panels").children)
                button.setAttribute("aria-pressed", button === event.currentTarget);
              onChange({ ...PLAIN, ...patch });
            },
          },
          ...withSubscripts(label),
        ),
      ),
    );
    byId("preset-note").replaceChildren(...withSubscripts(figure?.note ?? ""));
    const first = figure ? { f: "nonnegative", ...figure.panels[0].patch } : OTHERS[menu.value]?.patch;
    if (first) onChange({ ...PLAIN, ...first });
  });
}

/** The menu without a choice: what is shown came from elsewhere. */
export function forgetPreset() {
  byId("preset").value = "";
  byId("panels").replaceChildren();
  byId("preset-note").replaceChildren();
}

/** No mitigation. */
export const PLAIN = { s: 1, held: false, w: 1, t: 0, d: 1, l: 1, e: 0, c: 1 };
