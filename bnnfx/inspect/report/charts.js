// --- weights: histograms and the course of flips, a card for each binary layer ---

const WIDTH = 240, HEIGHT = 84, FOOT = 14;

function stepped(counts, most) {
  const x = (index) => (WIDTH * index) / counts.length;
  const y = (count) => HEIGHT - (HEIGHT * count) / most;
  const steps = counts.map((count, index) => `L${x(index)} ${y(count)}L${x(index + 1)} ${y(count)}`);
  return `M0 ${HEIGHT}${steps.join("")}L${WIDTH} ${HEIGHT}`;
}

function chart(label, ...parts) {
  return svg("svg", { class: "chart", viewBox: `0 -4 ${WIDTH} ${HEIGHT + FOOT + 4}`, role: "img", "aria-label": label }, ...parts);
}

function axis(low, middle, high) {
  const texts = [[0, "start", low], [WIDTH / 2, "middle", middle], [WIDTH, "end", high]];
  return svg("g", { class: "axis" }, svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }),
    ...texts.map(([x, anchor, text]) => svg("text", { x, y: HEIGHT + 11, "text-anchor": anchor }, text)));
}

function histogram(name, histograms) {
  const most = Math.max(...Object.values(histograms).flatMap((one) => one.counts)) || 1;
  const end = Object.values(histograms)[0].edges.at(-1);
  const paths = Object.entries(histograms).map(([kind, one]) => svg("path", { class: `series ${kind}`, d: stepped(one.counts, most) }));
  const zero = svg("line", { class: "zero", x1: WIDTH / 2, x2: WIDTH / 2, y1: 0, y2: HEIGHT });
  return chart(`Histogram of the weights of ${name}`, zero, ...paths, axis((-end).toPrecision(2), "0", end.toPrecision(2)));
}

function course(name, updates, shares, most) {
  const x = (index) => (updates.length > 1 ? (WIDTH * index) / (updates.length - 1) : WIDTH / 2);
  const y = (share) => HEIGHT - (HEIGHT * share) / most;
  const points = shares.map((share, index) => (share === null ? null : `${x(index)},${y(share)}`)).filter(Boolean);
  const line = svg("polyline", { class: "course", points: points.join(" ") });
  const top = svg("text", { class: "axis", x: 2, y: 8 }, `${(100 * most).toPrecision(2)} %`);
  return chart(`Flips per step of ${name}`, line, top, axis(String(updates[0]), "updates", String(updates.at(-1))));
}

function weightCard(layer, most) {
  const alignments = [["weight", "before rotation"], ["random", "random rotation"], ["rotated", "rotated"], ["used", "binarized"]];
  const rows = alignments.filter(([kind]) => layer.error?.[kind] && (layer.error.rotated || kind === "weight")).map(([kind, caption]) => {
    const found = layer.error[kind];
    const swatch = html("span", { class: `swatch ${kind}`, "aria-hidden": "true" });
    return html("tr", {}, html("th", { scope: "row" }, swatch, layer.error.rotated ? caption : "weight"),
      html("td", { class: "number" }, found.cosine.toFixed(3)), html("td", { class: "number" }, `${found.angle.toFixed(1)}°`),
      html("td", { class: "number" }, found.error.toFixed(3)));
  });
  const head = html("tr", {}, ...["", "cosine", "angle", "error"].map((title) => html("th", { scope: "col", class: "number" }, title)));
  const keys = [`layer ${layer.name}`];
  return html("article", { class: "card", onpointerenter: () => pinned || highlight(keys), onpointerleave: () => pinned || release() },
    html("h3", {}, layer.name || "(the model)"),
    layer.error ? histogram(layer.name, layer.error.histograms) : null,
    rows.length ? html("table", {}, html("thead", {}, head), html("tbody", {}, ...rows)) : null,
    layer.flips ? course(layer.name, data.flips.updates, layer.flips.step, most) : null);
}

function weights(models, flips) {
  const errors = models.map((model) => model.layers);
  const names = [...new Set([...errors.flatMap((layers) => layers.map((layer) => layer.name)), ...Object.keys(flips?.layers ?? {})])];
  const most = Math.max(...Object.values(flips?.layers ?? {}).flatMap((layer) => layer.step)) || 1;
  const parts = models.length ? models : [{ title: "", layers: [], gaussian_cosine: null }];
  return parts.flatMap((model, index) => [
    parts.length > 1 ? html("h3", {}, model.title) : null,
    html("div", { class: "cards" }, ...names.map((name) => ({
      name,
      error: model.layers.find((layer) => layer.name === name),
      flips: index === 0 ? flips?.layers[name] : undefined,
    })).filter((layer) => layer.error || layer.flips).map((layer) => weightCard(layer, most))),
  ]).filter(Boolean);
}

if (data.weights.length || data.flips) {
  const said = [];
  if (data.weights.length) {
    said.push("Filters against their bits: the cosine of the angle to the binary vertex (mean over the filters), and the " +
      `relative error that the best scale per filter leaves. Gaussian weights have a cosine of ${data.weights[0].gaussian_cosine.toFixed(3)}; ` +
      "a random rotation brings any filter near that, so what a learned rotation adds is the difference to it.");
  }
  if (data.flips) said.push("Below: the share of bits that changed from one update to the next, all layers on one scale.");
  section("weights", "Weights", ...said.map((text) => html("p", { class: "faint" }, text)), ...weights(data.weights, data.flips));
}
