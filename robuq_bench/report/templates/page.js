"use strict";
// Click a column: ascending, descending, the order it came in. Cells without a number stay last.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const groups = original.map((row) => row.className);
  const heads = [...table.tHead.rows[0].cells];

  const key = (row, column) => {
    if ("diverged" in row.dataset && column > 1) return { number: NaN, text: "" }; // one cell spans its figures
    const cell = row.cells[column];
    const text = cell.textContent.trim();
    const number = Number(cell.dataset.value ?? (text === "" ? NaN : text.replaceAll(",", "")));
    return { number, text };
  };
  const compare = (column, sign) => (a, b) => {
    const [x, y] = [key(a, column), key(b, column)];
    if (Number.isNaN(x.number) !== Number.isNaN(y.number)) return Number.isNaN(x.number) ? 1 : -1;
    return sign * (Number.isNaN(x.number) ? x.text.localeCompare(y.text) : x.number - y.number);
  };
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort];
      heads.forEach((other) => (other.ariaSort = "none"));
      head.ariaSort = next;
      original.forEach((row, i) => (row.className = next === "none" ? groups[i] : ""));
      const rows = next === "none" ? original : [...original].sort(compare(column, next === "ascending" ? 1 : -1));
      body.append(...rows);
    });
  });
}
