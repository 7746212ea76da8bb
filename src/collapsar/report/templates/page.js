"use strict";
(() => {
  const source = document.getElementById("record").textContent;
  const record = JSON.parse(source);

  document.getElementById("download").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(record, null, 1)], { type: "application/json" }));
    link.download = `collapsar-${record.kind}-${record.data ?? record.source}.json`.replace(/[^\w.-]+/g, "_");
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // A link to a definition opens it.
  const open = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", open);
  open();

  // The maps of a run share one cursor: pointer, touch or arrow keys choose a cell, both its values are read out.
  const number = (x) => (x === null ? "undefined" : (x < 0 ? "−" : "") + Math.abs(x).toPrecision(3).replace(/e([+-])(\d+)/, " × 10^$1$2"));
  const order = (record.clusters ?? []).flat();
  const size = order.length;
  for (const run of document.querySelectorAll(".run")) {
    const group = run.querySelector(".maps");
    const readout = run.querySelector(".readout");
    const maps = [...group.querySelectorAll("svg[data-cell]")];
    if (!maps.length) continue;
    const { measured, predicted } = record.runs[Number(run.dataset.run)];
    let at = [0, 0];
    const show = (column, row) => {
      at = [column, row];
      const [k, l] = [order[column], order[row]];
      const names = record.class_names;
      readout.textContent =
        `Images of “${names[k]}”, score for “${names[l]}”: network ${number(measured.Z[l][k])}, ` +
        `theory ${number(predicted.Z[l][k])}.`;
      for (const map of maps) {
        const cursor = map.querySelector(".cursor");
        cursor.setAttribute("x", column * map.dataset.cell);
        cursor.setAttribute("y", row * map.dataset.cell);
        cursor.style.visibility = "visible";
      }
    };
    const point = (event) => {
      const cells = event.target.closest("svg")?.querySelector(".frame");
      if (!cells) return;
      const box = cells.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * size);
      const row = Math.floor(((event.clientY - box.top) / box.height) * size);
      if (column >= 0 && column < size && row >= 0 && row < size) show(column, row);
    };
    group.addEventListener("pointermove", point);
    group.addEventListener("pointerdown", point);
    group.tabIndex = 0;
    group.addEventListener("focus", () => { if (group.matches(":focus-visible")) show(...at); });
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    group.addEventListener("keydown", (event) => {
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      show(...at.map((x, i) => Math.min(size - 1, Math.max(0, x + move[i]))));
    });
  }
})();
