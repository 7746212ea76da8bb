// What the numbers say: the verdict in one sentence, its certificate, angles, and cures.

import { byId, el, listed, plural, raised, shown, SYMBOLS, withSubscripts } from "./dom.mjs";
import { batchDecayOf, cosineOf } from "./solve.mjs";
import { changed, groupsOf, NAMES, problemOf } from "./state.mjs";
import { onsetOf } from "./strip.mjs";
import { leastCure } from "./thresholds.mjs";

const sizeWord = (state, g) => {
  const { small, large } = groupsOf(state);
  return small === large || state.n[small] === state.n[large]
    ? ""
    : g === small
      ? "small "
      : g === large
        ? "large "
        : "middle ";
};
const several = (state, g) => state.k[g] > 1;
const groupWords = (state, g) =>
  several(state, g)
    ? `the ${state.k[g]} ${sizeWord(state, g)}classes of ${NAMES[g]}`
    : `the ${sizeWord(state, g)}class of ${NAMES[g]}`;

/** The state of every group in one or two sentences. */
export function verdict(state, solution) {
  const { used } = groupsOf(state);
  const hedge = solution.closed ? "" : "With one direction per class (not proved): ";
  const by = Object.fromEntries(
    ["separated", "merged", "vanished"].map((name) => [name, used.filter((_, i) => solution.states[i] === name)]),
  );
  if (by.vanished.length === used.length) {
    return "Everything has collapsed: no class has a prediction of its own, and only the bias is left.";
  }
  if (by.separated.length === used.length) {
    const K = used.reduce((sum, g) => sum + state.k[g], 0);
    return `${hedge}All ${K} classes are separated: the network can distinguish each from all others.`;
  }
  const name = (groups) => listed(groups.map((g) => groupWords(state, g))).replace(/^t/, "T");
  const many = (groups) => groups.length > 1 || several(state, groups[0]);
  const parts = [];
  const pooled = by.merged.filter((g) => several(state, g)),
    alone = by.merged.filter((g) => !several(state, g));
  if (pooled.length) {
    const each = pooled.length > 1 ? "each " : "";
    parts.push(`${name(pooled)} have ${each}merged into one point: the head cannot distinguish them.`);
  }
  if (alone.length) {
    const [has, its] = alone.length > 1 ? ["have", "their"] : ["has", "its"];
    parts.push(`${name(alone)} ${has} merged with others: ${its} features raise another class's score as much.`);
  }
  if (by.vanished.length) {
    parts.push(
      `${name(by.vanished)} ${many(by.vanished) ? "have" : "has"} vanished: only the bias is left of them.`,
    );
  }
  if (by.separated.length) parts.push(`${name(by.separated)} ${many(by.separated) ? "are" : "is"} separated.`);
  return hedge + parts.join(" ");
}

export function drawVerdict(state, solution) {
  const { used } = groupsOf(state),
    text = verdict(state, solution);
  if (byId("verdict").textContent !== text) byId("verdict").textContent = text;
  byId("chips").replaceChildren(
    ...used.map((g, i) =>
      el(
        "li",
        { class: `chip s-${solution.states[i]}` },
        el("b", { class: `name g${NAMES[g]}` }, NAMES[g]),
        ` ${plural(state.k[g], "class")} of ${shown(state.n[g], 6)} `,
        el("span", { class: "symbol", "aria-hidden": "true" }, SYMBOLS[solution.states[i]]),
        ` ${solution.states[i]}`,
      ),
    ),
  );
  const proof = byId("proof");
  proof.className = solution.closed ? "small" : "small open";
  proof.textContent = solution.closed ? proved(solution.gap) : notProved(solution.gap);
}

function proved(gap) {
  const bound = gap > 1e-12 ? shown(gap, 1) : `10${raised(-12)}`;
  return `Exact: this point is proved to be the optimum (relative duality gap below ${bound}).`;
}

function notProved(gap) {
  return (
    "Not proved: at the true optimum classes share a feature direction, a case that this page does not search. The " +
    `picture is the best with one direction per class, at most ${shown(100 * gap, 2)} % above the optimum. ` +
    "The Python package finds the true one."
  );
}

/** Cosines inside and between the groups, of features, head and predictions. */
export function drawAngles(state, problem, solution) {
  const { used } = groupsOf(state),
    { groups } = problem,
    K = groups.reduce((sum, g) => sum + g.k, 0),
    rows = [];
  used.forEach((g, i) =>
    used.slice(i).forEach((h, j) => {
      if (g !== h || state.k[g] > 1)
        rows.push([g === h ? `inside ${NAMES[g]}` : `${NAMES[g]} and ${NAMES[h]}`, i, i + j]);
    }),
  );
  const cell = (gram, i, j) => {
    const cosine = cosineOf(gram, groups, i, j);
    return el("td", {}, Number.isNaN(cosine) ? "–" : `${((Math.acos(cosine) * 180) / Math.PI).toFixed(1)}°`);
  };
  const { W, H, Z } = solution.grams;
  byId("angles").replaceChildren(
    ...rows.map(([name, i, j]) =>
      el("tr", {}, el("th", { scope: "row" }, name), cell(H, i, j), cell(W, i, j), cell(Z, i, j)),
    ),
  );
  const balanced = state.f === "signed" ? (Math.acos(-1 / (K - 1)) * 180) / Math.PI : 90;
  byId("angle-note").textContent =
    `Balanced classes: all ${balanced.toFixed(1)}° between features. – : a vector is zero.`;
  const decay = batchDecayOf(problem, solution);
  byId("batchnorm").replaceChildren(
    ...withSubscripts(
      Number.isNaN(decay)
        ? ""
        : `Behind a BatchNorm, with weight decay on the head alone, this is the optimum at λ_W = ${shown(decay, 4)} ρ²; ρ ` +
            "is the length of the features, the root of the width without a gain.",
    ),
  );
}

/** The least change that brings the smallest classes back: [{words, patch}], patch null where it cannot. */
export function curesOf(state, limits) {
  const { used, small } = groupsOf(state),
    i = used.indexOf(small),
    name = NAMES[small];
  const edge = onsetOf(limits, i);
  const at = (field) => (x) => problemOf(changed(state, { [field]: x })),
    up = (x) => Number((x * 1.0005).toPrecision(4));
  const search = (field, to) => leastCure(at(field), i, state[field], to);
  const cures = [],
    one = (words, x, field, none) =>
      cures.push(
        x === null ? { words: none, patch: null } : { words: words(shown(up(x), 4)), patch: { [field]: up(x) } },
      );
  // where the threshold is approximate the optimum decides
  const below = Number.isNaN(limits.gradual[i]) ? edge : leastCure(at("z"), i, state.z, Math.min(edge, state.z) / 10);
  const lower = below > 0 ? Number((below * 0.999).toPrecision(4)) : null;
  cures.push(
    lower
      ? {
          words: `λ_Z down to ${shown(lower, 4)}: penalties ${shown(state.z / lower, 4)} times weaker`,
          patch: { z: lower },
        }
      : { words: "No λ_Z helps", patch: null },
  );
  if (lower)
    cures.push({
      words: `weight decay of the head times ${shown(state.c * (lower / state.z) ** 2, 4)}`,
      patch: { c: Number((state.c * (lower / state.z) ** 2).toPrecision(6)) },
    });
  one((x) => `loss weight of ${name} ${x}`, search("w", 300), "w", "No loss weight helps");
  one(
    (x) => `oversampling of ${name} ${x} times`,
    search("s", 300),
    "s",
    "No oversampling helps: copies pay the feature penalty too",
  );
  one((x) => `temperature of ${name}'s samples ${x} (LDT)`, search("l", 10), "l", "No temperature up to 10 helps");
  one(
    (x) => `logit scale of ${name} ${x} (CDT the other way round)`,
    search("d", 10),
    "d",
    "No logit scale up to 10 helps",
  );
  if (Number.isFinite(limits.merge[i]))
    cures.push({ words: "Logit adjustment moves decisions, but not this threshold", patch: null });
  return cures;
}

export function drawCures(state, limits, solution, onChange) {
  const { used, small } = groupsOf(state),
    i = used.indexOf(small),
    list = byId("cure-list"),
    name = NAMES[small];
  const edge = onsetOf(limits, i),
    about = Number.isNaN(limits.gradual[i]) ? "" : "about ";
  if (solution.states[i] === "separated") {
    const whose = `${groupWords(state, small)} ${several(state, small) ? "are" : "is"} separated`;
    const times = `${shown(edge / state.z, 3)} times the present one`,
      reach = edge > state.z ? `, ${about}up to λ_Z = ${shown(edge, 4)}, ${times}` : "";
    byId("cure-lead").replaceChildren(...withSubscripts(`Nothing to cure: ${whose}${reach}.`));
    list.replaceChildren();
    return;
  }
  byId("cure-lead").textContent = `Any one of these, and ${name}'s classes separate again:`;
  list.replaceChildren(
    ...curesOf(state, limits).map(({ words, patch }) =>
      el(
        "li",
        {},
        patch
          ? el("button", { type: "button", class: "cure", onclick: () => onChange(patch) }, ...withSubscripts(words))
          : el("span", { class: "none" }, ...withSubscripts(words)),
      ),
    ),
  );
}
