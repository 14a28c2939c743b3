"use strict";
// Tables are sorted by a click on a head, or by its key; a second one turns the order round.
const number = (text) => Number(text.replace(/,/g, ""));
const value = (row, i) => row.cells[i].textContent.trim();
function compare(one, other, numeric) {
  return numeric ? number(one) - number(other) : one.localeCompare(other);
}
function sort(table, heads, i) {
  const head = heads[i], body = table.tBodies[0];
  const numeric = !head.classList.contains("text");
  const before = head.getAttribute("aria-sort");
  // numbers begin with the lowest: the worst class is what one looks for
  const down = before === "ascending";
  const rows = [...body.rows].map((row, place) => ({ row, place, text: value(row, i) }));
  rows.sort((a, b) => (down ? -1 : 1) * compare(a.text, b.text, numeric) || a.place - b.place);
  body.append(...rows.map((each) => each.row));
  for (const each of heads) each.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
}
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, heads, i));
    head.append(button);
    head.setAttribute("aria-sort", "none");
  });
}
