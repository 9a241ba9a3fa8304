// --- the table of layers ---

// [key, title, how to write it, what it says]; numbers are right-aligned, and a column without any value is left out
const COLUMNS = [
  ["name", "Layer"],
  ["kind", "Kind"],
  ["became", "Became"],
  ["operands", "Weight × activation"],
  ["input", "Input"],
  ["output", "Output"],
  ["parameters", "Parameters", short],
  ["mbit_before", "Mbit before", fixed(3)],
  ["mbit", "Mbit", fixed(3)],
  ["macs", "MACs", short],
  ["packed_bytes", "Packed bytes", short],
  ["cosine", "Cosine", fixed(3), "of what the forward pass binarizes and its bits, mean over the filters"],
  ["angle", "Angle", (degrees) => `${degrees.toFixed(1)}°`],
  ["since_start", "Flipped since start", percent(1)],
  ["step", "Flips per step", percent(3)],
  ["milliseconds", "ms", fixed(3), "median over the runs of the benchmark"],
  ["why", "Why, and what would change it"],
];

function layerTable(rows) {
  const columns = COLUMNS.filter(([key]) => rows.some((row) => row[key] !== null && row[key] !== ""));
  const head = html("tr");
  const body = html("tbody");
  const draw = (sorted) => body.replaceChildren(...sorted.map((row) => tableRow(row, columns)));
  columns.forEach(([key, title, write, says], index) => {
    const cell = html("th", { scope: "col", class: write ? "number" : null, "aria-sort": index ? "none" : "ascending" });
    const sort = () => {
      const down = cell.getAttribute("aria-sort") === "ascending";
      for (const other of head.children) other.setAttribute("aria-sort", "none");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      draw(sortedBy(rows, index ? key : "order", down));
    };
    cell.append(html("button", { type: "button", onclick: sort, title: says }, title));
    head.append(cell);
  });
  draw(rows);
  return html("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Layers" },
    html("table", { class: "sortable" }, html("thead", {}, head), body, totals(columns)));
}

// what is missing comes last, in either direction
function sortedBy(rows, key, down) {
  const missing = (value) => value === null || value === "";
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  return [...rows].sort((a, b) => {
    if (missing(a[key]) || missing(b[key])) return missing(a[key]) - missing(b[key]);
    return (down ? -1 : 1) * compare(a[key], b[key]);
  });
}

function tableRow(row, columns) {
  const keys = [`layer ${row.name}`];
  const cells = columns.map(([key, , write], index) => {
    const text = row[key] === null ? "" : write ? write(row[key]) : row[key];
    if (index) return html("td", { class: write ? "number" : key, title: write && row[key] !== null ? row[key].toLocaleString("en") : null }, text);
    const show = () => {
      const picture = pictures.find((shown) => !shown.figure.hidden && shown.like({ keys }).length);
      if (!picture) return;
      const [node] = picture.like({ keys });
      document.getElementById("graphs").scrollIntoView();
      pin(node.keys, picture, node);
      picture.show(node);
    };
    return html("th", { scope: "row" }, html("button", { type: "button", class: "link", onclick: show, title: "Show it in the graphs" }, text || "(the model)"));
  });
  const look = () => pinned || highlight(keys);
  return html("tr", { "data-layer": row.name, onpointerenter: look, onpointerleave: () => pinned || release() }, ...cells);
}

function totals(columns) {
  const cells = columns.map(([key, , write], index) => {
    if (!index) return html("th", { scope: "row" }, "whole model");
    const total = data.totals[key] ?? null;
    return html("td", { class: write ? "number" : null }, total === null ? "" : write(total));
  });
  return html("tfoot", {}, html("tr", {}, ...cells));
}

if (data.layers.length) {
  const notes = data.notes.map((note) => html("p", { class: "faint" }, note));
  section("layers", "Layers", html("p", { class: "faint" }, "A click on a heading sorts, a click on a layer shows it in the graphs."), layerTable(data.layers), ...notes);
}
