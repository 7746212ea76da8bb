// A guided tour: a card with a few sentences, beside pictures that move.

import { byId, glide, withSubscripts } from "./dom.mjs";
import { forgetPreset, PLAIN } from "./controls.mjs";
import { TOUR } from "./presets.mjs";

const SWEEP = 3200; // ms
let step = -1,
  stop = () => {};

export function bindTour(onChange) {
  const card = byId("tour");
  const leave = () => {
    stop();
    step = -1;
    card.hidden = true;
    mark(null);
    byId("start-tour").focus();
  };
  const go = (to) => {
    if (to >= TOUR.length) return leave();
    step = Math.max(0, to);
    const { title, text, patch, sweep, look, see } = TOUR[step];
    stop();
    card.hidden = false;
    byId("tour-title").textContent = title;
    byId("tour-text").replaceChildren(...withSubscripts(text));
    byId("tour-count").textContent = `${step + 1} of ${TOUR.length}`;
    byId("tour-back").disabled = step === 0;
    byId("tour-next").textContent = step + 1 < TOUR.length ? "Next" : "Done";
    mark(look, see);
    onChange({ ...PLAIN, ...patch });
    if (sweep && isStill()) onChange({ z: sweep });
    else if (sweep) stop = glide(patch.z, sweep, SWEEP, (z) => onChange({ z }));
    byId("tour-next").focus({ preventScroll: true });
  };
  byId("start-tour").addEventListener("click", () => {
    forgetPreset();
    go(0);
  });
  byId("tour-next").addEventListener("click", () => go(step + 1));
  byId("tour-back").addEventListener("click", () => go(step - 1));
  byId("tour-end").addEventListener("click", leave);
  card.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leave();
    else if (event.key === "ArrowRight") go(step + 1);
    else if (event.key === "ArrowLeft") go(step - 1);
  });
}

/** The panel that the step speaks of gets a frame; what there is to see comes into view. */
function mark(look, see = look) {
  for (const panel of document.querySelectorAll("[data-panel]"))
    panel.classList.toggle("marked", panel.dataset.panel === look);
  document
    .querySelector(`[data-panel="${see}"]`)
    ?.scrollIntoView({ block: "nearest", behavior: isStill() ? "auto" : "smooth" });
}

const isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
