"use strict";
(() => {
  const source = document.getElementById("record").textContent;
  const record = JSON.parse(source);

  document.getElementById("download").addEventListener("click", () => {
    const about = record.data ?? record.source ?? record.runs?.map((run) => run.name).join("-");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(record, null, 1)], { type: "application/json" }));
    link.download = `collapsar-${[record.kind, about].filter(Boolean).join("-").slice(0, 80)}.json`.replace(/[^\w.-]+/g, "_");
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

  // What a map says of a cell. One with many cells is a picture, and its values stand in the record.
  const readerOf = (map) => {
    const cells = [...map.querySelectorAll(".cell")]; // column by column
    const { values, order, words } = map.dataset;
    if (!values) return { size: Math.sqrt(cells.length), text: (column, row) => cells[Math.sqrt(cells.length) * column + row].textContent };
    const found = [record]; // the record, and what it holds along the path to the matrix
    for (const key of values.split(".")) found.push(found.at(-1)[key]);
    const scores = found.at(-1), names = found.findLast((part) => part.class_names).class_names, classes = JSON.parse(order);
    const written = (x) => (x === null ? "–" : String(Number(x.toPrecision(3))).replace("-", "−"));
    const text = (column, row) =>
      `${words.replace(/{(column|row)}/g, (_, which) => names[classes[which === "row" ? row : column]])}: ${written(scores[classes[row]][classes[column]])}`;
    return { size: classes.length, text };
  };

  // The maps of a run share one cursor: pointer, touch or arrow keys choose a cell, all its values are read out.
  for (const run of document.querySelectorAll(".run")) {
    const group = run.querySelector(".maps");
    const readout = run.querySelector(".readout");
    const maps = [...group.querySelectorAll("svg[data-side]")];
    if (!maps.length) continue;
    const readers = maps.map(readerOf);
    const size = readers[0].size;
    let at = [0, 0];
    const show = (column, row) => {
      at = [column, row];
      // "images of “a”, score for “b”: 1.2"; the value is what follows the last colon
      const texts = readers.map(({ text }) => text(column, row));
      const cut = texts[0].lastIndexOf(": ");
      const values = texts.map((text, i) => `${maps[i].dataset.side} ${text.slice(text.lastIndexOf(": ") + 2)}`);
      readout.textContent = `${texts[0][0].toUpperCase()}${texts[0].slice(1, cut)}: ${values.join(", ")}.`;
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
