// --- the pass log, and timings ---

function table(columns, rows) {
  const head = html("tr", {}, ...columns.map(([title, number]) => html("th", { scope: "col", class: number ? "number" : null }, title)));
  const body = rows.map((cells) => html("tr", {}, ...cells.map((cell, index) => html("td", { class: columns[index][1] ? "number" : null }, cell))));
  return html("div", { class: "wide" }, html("table", {}, html("thead", {}, head), html("tbody", {}, ...body)));
}

function remarks(found) {
  return html("dl", {}, ...found.flatMap((remark) => [
    html("dt", {}, remark.subject),
    html("dd", {}, `${remark.reason}.${remark.remedy ? ` To change it: ${remark.remedy}.` : ""}`),
  ]));
}

function folded(count, noun, content) {
  if (!count) return "";
  return html("details", {}, html("summary", {}, `${count} ${noun}${count === 1 ? "" : "s"}`), content);
}

for (const [index, log] of data.passes.entries()) {
  const rows = log.passes.map((pass) => [
    pass.name,
    pass.changed ? "yes" : "no",
    folded(pass.applied.length, "place", html("p", {}, pass.applied.join(", "))),
    folded(pass.refused.length, "refusal", remarks(pass.refused)),
    folded(pass.notes.length, "note", remarks(pass.notes)),
  ]);
  const columns = [["Pass"], ["Changed the graph"], ["Applied to"], ["Left as it is"], ["Noticed"]];
  section(index ? `passes-${index + 1}` : "passes", data.passes.length > 1 ? `Passes: ${log.title}` : "Passes", table(columns, rows));
}

function spread(times, digits) {
  return `${times.median.toFixed(digits)} (${times.p10.toFixed(digits)} to ${times.p90.toFixed(digits)})`;
}

if (data.bench) {
  const tables = data.bench.models.flatMap((one) => {
    const most = Math.max(...one.rows.map((row) => row.ratio.median));
    const bar = (row) => svg("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { width: (100 * row.ratio.median) / most, height: 10 }));
    const rows = one.rows.map((row) => [row.name, spread(row.ratio, 2), bar(row), spread(row.milliseconds, 3), row.peak_mib === null ? "" : row.peak_mib.toFixed(0)]);
    const columns = [["Contender"], [`Times as fast as ${one.reference}`, true], [""], ["ms per image", true], ["Peak MiB", true]];
    return [html("h3", {}, `Threads: ${one.threads}, batch: ${one.batch}, rounds: ${one.rounds}`), table(columns, rows)];
  });
  const machine = html("p", { class: "faint" }, `${data.bench.machine}. Medians (10th to 90th percentile).`);
  section("timings", "Timings", machine, ...tables, ...data.bench.notes.map((note) => html("p", { class: "faint" }, note)));
}
