"use strict";
// Filters, sorts and pages the rows that are in the page already; builds no markup, so no text can become any.
const PAGE_ROWS = 50;
const body = document.getElementById("rows");
const rows = Array.from(body.rows);
const field = (id) => document.getElementById(id);
const value = (id) => (field(id) ? field(id).value : "");
const number = (row, name, missing) => (name in row.dataset ? Number(row.dataset[name]) : missing);
const starts = new Map(rows.map((row, index) => [row, index]));
// Rows without a value or a gain come last, whichever way the others are sorted.
const ORDERS = {
  start: (row) => starts.get(row),
  worst: (row) => number(row, "s", Infinity),
  best: (row) => -number(row, "s", -Infinity),
  gain: (row) => -number(row, "g", -Infinity),
  loss: (row) => number(row, "g", Infinity),
  order: () => 0,
};
const texts = new Map();
let shown = PAGE_ROWS;

function textOf(row) {
  if (!texts.has(row)) {
    texts.set(row, row.textContent.toLowerCase());
  }
  return texts.get(row);
}

function matches(row, words, category, kind) {
  return (
    (!category || row.dataset.c === category) &&
    (!kind || row.dataset.k.split(" ").includes(kind)) &&
    words.every((word) => textOf(row).includes(word))
  );
}

function showRows() {
  const words = value("search").toLowerCase().split(/\s+/).filter(Boolean);
  let place = 0;
  for (const row of rows) {
    const match = matches(row, words, value("category"), value("kind"));
    row.classList.toggle("match", match);
    row.classList.toggle("on", match && place < shown);
    place += match ? 1 : 0;
  }
  const visible = Math.min(shown, place);
  const format = (count) => count.toLocaleString("en");
  const answers = `${format(place)} answer${place === 1 ? "" : "s"}`;
  field("count").textContent = place
    ? `${visible === place ? "" : `${format(visible)} of `}${answers}${place === rows.length ? "" : ` (${format(rows.length)} in all)`}`
    : "No answer matches.";
  field("more").parentElement.hidden = visible === place;
  field("all").textContent = `Show all ${format(place)}`;
}

function sortRows() {
  const key = ORDERS[value("sort")];
  const keys = new Map(rows.map((row) => [row, key(row)]));
  // Two rows without a value compare as NaN (infinity minus infinity); the test order then decides.
  rows.sort((a, b) => keys.get(a) - keys.get(b) || number(a, "i") - number(b, "i"));
  body.append(...rows);
}

function restart() {
  shown = PAGE_ROWS;
  showRows();
}

let waiting;
field("search").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(restart, 120);
});
for (const id of ["category", "kind"]) {
  field(id)?.addEventListener("change", restart);
}
field("sort").addEventListener("change", () => {
  sortRows();
  restart();
});
field("more").addEventListener("click", () => {
  shown += PAGE_ROWS;
  showRows();
});
field("all").addEventListener("click", () => {
  shown = Infinity;
  showRows();
});
document.querySelector("form.tools").addEventListener("submit", (event) => event.preventDefault());
for (const link of document.querySelectorAll("[data-pick]")) {
  link.addEventListener("click", () => {
    if (field("category")) {
      field("category").value = link.dataset.pick;
      restart();
    }
  });
}
// A browser that goes back to the page restores the fields: show what they say.
window.addEventListener("pageshow", () => {
  if (value("sort") !== field("sort").options[0].value) {
    sortRows();
  }
  showRows();
});
