// Panels of the figures of Hong & Ling (JMLR 25(192), 2024), whose networks were trained at these settings, and more.

const five = { k: [5, 5, 0], n: [500, 100, 200], b: 0.02 };
const three = { k: [3, 7, 0], n: [500, 100, 200], b: 0.02 };
const figure = (name, base, values, patchAt, label, note) => ({
  name,
  note,
  panels: values.map((x) => ({ label: label(x), patch: { ...base, ...patchAt(x) } })),
});
const byPenalty = (x) => ({ z: x });
const byMajority = (base) => (x) => ({ n: [x, 100, base.n[2]], z: 0.005 });
const lambda = (x) => `λ_Z = ${x}`;
const samples = (x) => `n_A = ${x}`;

export const FIGURES = {
  5: figure(
    "Fig. 5: 5 large, 5 small classes",
    five,
    [0.0027, 0.003, 0.0033, 0.0039, 0.0045, 0.0051, 0.0057, 0.0063, 0.0069, 0.0075],
    byPenalty,
    lambda,
    "ResNet18 on CIFAR-10: the small classes had collapsed at λ_Z = .0033, everything between .0063 and .0069.",
  ),
  6: figure(
    "Fig. 6: 3 large, 7 small classes",
    three,
    [0.0037, 0.0041, 0.0045, 0.0053, 0.0062, 0.007, 0.0078, 0.0086, 0.0094, 0.0102],
    byPenalty,
    lambda,
    "ResNet18 on CIFAR-10: the small classes had collapsed at λ_Z = .0045, everything between .0086 and .0094.",
  ),
  7: figure(
    "Fig. 7: 5 large classes grow",
    five,
    [100, 200, 300, 400, 600, 800, 1000, 1100, 1200, 1400],
    byMajority(five),
    samples,
    "ResNet18 on CIFAR-10: the small classes had collapsed by n_A = 300, everything between 1000 and 1100.",
  ),
  8: figure(
    "Fig. 8: 3 large classes grow",
    three,
    [100, 400, 450, 500, 700, 1000, 1600, 2200, 2500, 2800],
    byMajority(three),
    samples,
    "ResNet18 on CIFAR-10: the small classes had collapsed by n_A = 450, not yet at 400; everything by 2500.",
  ),
  9: figure(
    "Fig. 9: more data, same ratio",
    five,
    [500, 1000, 1500, 2500, 3500, 5500],
    (x) => ({ n: [x, x / 2, 200], z: 0.1 / (7.5 * x), v: "Z" }),
    samples,
    "N λ_Z = 0.1 and n_A / n_B = 2 held: all angles between predictions creep towards the simplex's, cosine −1/9.",
  ),
};

export const OTHERS = {
  balanced: {
    name: "Balanced: a simplex",
    patch: { k: [5, 5, 0], n: [300, 300, 200], z: 0.001, b: 0.02, f: "signed" },
  },
  three: {
    name: "Three groups: 4, 2 and 4 classes",
    patch: { k: [4, 2, 4], n: [5000, 1000, 3000], z: 0.0009, b: 0.02, f: "signed" },
  },
  tail: {
    name: "Long tail: classes that share a direction",
    patch: { k: [5, 5, 0], n: [500, 20, 200], z: 0.0018, b: 0.001, f: "nonnegative" },
  },
};

/** Steps of the guided tour: what to say and where to go. `sweep` moves lambda_Z there slowly. */
export const TOUR = [
  {
    patch: { ...OTHERS.balanced.patch, v: "H", x: "nA" },
    look: "geometry",
    title: "Ten classes, all alike",
    text:
      "A network trained to the end shrinks every class to one point. With balanced data the ten points " +
      "stand as far apart as they can: a simplex, all angles equal. Drag the picture to turn it.",
  },
  {
    patch: { ...five, z: 0.001, f: "signed" },
    look: "geometry",
    title: "Now five classes have fewer samples",
    text:
      "Group A has 500 samples per class, group B only 100. The symmetry is gone: inside A the angles grow " +
      "to 100°, inside B they fall to 92°. See the table below the pictures.",
  },
  {
    patch: { ...five, z: 0.001, f: "signed" },
    sweep: 0.0037,
    look: "strip",
    see: "geometry",
    title: "Stronger weight decay",
    text:
      "λ_Z = √(λ_W λ_H) is the penalty on predictions. Watch B while it grows: at √n_B / N = 0.0033 the five " +
      "small classes fall onto one point. The head can no longer distinguish them, however long you train.",
  },
  {
    patch: { ...five, z: 0.0037, f: "signed" },
    sweep: 0.0045,
    look: "heatmap",
    title: "Then they vanish",
    text:
      "Merged, they still had a common prediction. Above 0.0040 it is zero as well: their columns in the " +
      "heat map are empty. Only the bias is left of these classes.",
  },
  {
    patch: { ...five, z: 0.0045, f: "signed" },
    sweep: 0.008,
    look: "strip",
    see: "geometry",
    title: "In the end everything goes",
    text: "At 0.0075 the large classes follow. The network now predicts class frequencies for every sample.",
  },
  {
    patch: { ...five, z: 0.0025, f: "nonnegative" },
    sweep: 0.0042,
    look: "geometry",
    title: "What real networks do",
    text:
      "Features behind a ReLU cannot be negative: every class has its own direction, at right angles to the " +
      "others. Small classes then do not merge first; each slides into the origin on its own, a little " +
      "earlier. This is what trained networks show.",
  },
  {
    patch: { ...five, z: 0.0037, f: "signed", x: "nA" },
    look: "phase",
    title: "The whole map",
    text:
      "Every point of the diagram is one training run: imbalance across, penalty upwards. Drag the point. " +
      "Classes are separated only below the lowest curve.",
  },
  {
    patch: { ...five, z: 0.0037, f: "signed" },
    look: "cures",
    title: "What would cure it?",
    text:
      "Each row is the least change that brings the small classes back. Press one and see the picture open " +
      "up. Then set your own numbers; the link in the address bar carries them.",
  },
];
