// --- pictures: zoom, hover, keyboard; each follows the others ---

const MOST = 12; // times as large as the whole picture fits
const LARGEST = 1.9; // pixels per point that a small picture is shown in

class Picture {
  constructor(figure, index) {
    Object.assign(this, data.pictures[index], { figure, index });
    this.svg = figure.querySelector("svg");
    this.home = this.svg.viewBox.baseVal;
    this.home = { x: this.home.x, y: this.home.y, width: this.home.width, height: this.home.height };
    this.byName = new Map(this.nodes.map((node) => [node.name, node]));
    this.svg.removeAttribute("width");
    this.svg.removeAttribute("height");
    this.svg.style.maxWidth = `${this.home.width * LARGEST}px`;
    this.svg.setAttribute("role", "group");
    this.svg.setAttribute("aria-label", this.title);
    this.svg.querySelector(":scope > title").remove();
    for (const node of this.nodes) this.prepare(node);
    this.nodes[0]?.group.setAttribute("tabindex", 0);
    for (const kind of ["edges", "blocks"]) {
      for (const title of this.svg.querySelectorAll(`.${kind} title`)) title.remove(); // tooltips would hide the details
    }
    this.fit();
  }

  prepare(node) {
    node.group = document.getElementById(`${this.prefix}node-${node.name}`);
    const box = node.group.querySelector("rect");
    const [x, y, width, height] = ["x", "y", "width", "height"].map((name) => Number(box.getAttribute(name)));
    node.middle = [x + width / 2, y + height / 2];
    node.group.querySelector("title").remove();
    node.group.setAttribute("role", "button");
    node.group.setAttribute("tabindex", -1);
    node.group.setAttribute("aria-label", `${node.lines.join(", ")}${node.block ? `, in ${node.block}` : ""}`);
  }

  // pixels per unit of the picture
  get resolution() {
    return (this.svg.clientWidth / this.home.width) * this.scale;
  }

  fit() {
    this.scale = 1;
    this.look(this.home.x + this.home.width / 2, this.home.y + this.home.height / 2);
  }

  look(x, y, scale = this.scale) {
    this.scale = Math.min(MOST, Math.max(1, scale));
    const width = this.home.width / this.scale, height = this.home.height / this.scale;
    const inside = (value, low, room, size) => Math.min(low + size - room / 2, Math.max(low + room / 2, value));
    this.middle = [
      inside(x, this.home.x, width, this.home.width),
      inside(y, this.home.y, height, this.home.height),
    ];
    this.svg.setAttribute("viewBox", `${this.middle[0] - width / 2} ${this.middle[1] - height / 2} ${width} ${height}`);
    this.svg.classList.toggle("zoomed", this.scale > 1);
  }

  // what is under (clientX, clientY) stays there; without them, what is pinned or focused comes to the middle
  zoom(factor, clientX, clientY) {
    const scale = Math.min(MOST, Math.max(1, this.scale * factor));
    if (clientX === undefined) {
      const chosen = (pinned && this.like(pinned)[0]) ?? this.nodeAt(document.activeElement);
      this.look(...(chosen ? chosen.middle : this.middle), scale);
    } else {
      const frame = this.svg.getBoundingClientRect();
      const away = [clientX - frame.x - frame.width / 2, clientY - frame.y - frame.height / 2];
      const left = (1 - this.scale / scale) / this.resolution;
      this.look(this.middle[0] + away[0] * left, this.middle[1] + away[1] * left, scale);
    }
    lead(this);
  }

  show(node) {
    const [width, height] = [this.home.width / this.scale, this.home.height / this.scale];
    const outside = [0, 1].some((axis) => Math.abs(node.middle[axis] - this.middle[axis]) > [width, height][axis] * 0.45);
    if (outside) {
      this.look(...node.middle);
      lead(this);
    }
  }

  nodeAt(target) {
    const group = target.closest?.(".node[id]");
    return group && this.svg.contains(group) ? this.byName.get(group.dataset.name) : undefined;
  }

  like(node) {
    return this.nodes.filter((other) => other.keys.some((key) => node.keys.includes(key)));
  }

  framesOf(block) {
    for (let path = block; path; path = path.includes(".") ? path.slice(0, path.lastIndexOf(".")) : "") {
      const frames = [...this.svg.querySelectorAll(".block[id]")].filter((frame) => frame.dataset.path === path);
      if (frames.length) return frames;
    }
    return [];
  }
}

const pictures = [...document.querySelectorAll("#pictures figure")].map((figure, index) => new Picture(figure, index));
const details = document.getElementById("details");
let linked = true;
let active = pictures[0]; // the picture that buttons act on
let pinned = null; // { keys, picture, node }

// The others look at what corresponds to the node nearest to the middle of this one, equally large.
function lead(picture) {
  active = picture;
  if (!linked) return;
  for (const other of pictures) {
    if (other === picture || other.figure.hidden) continue;
    if (picture.scale === 1) {
      other.fit();
      continue;
    }
    const away = (node) => Math.hypot(node.middle[0] - picture.middle[0], node.middle[1] - picture.middle[1]);
    const near = picture.nodes.filter((node) => other.like(node).length).sort((a, b) => away(a) - away(b))[0];
    if (!near) continue;
    const [match] = other.like(near);
    const [x, y] = [0, 1].map((axis) => match.middle[axis] + picture.middle[axis] - near.middle[axis]);
    other.look(x, y, (other.scale * picture.resolution) / other.resolution);
  }
}

// --- what is looked at ---

function clear() {
  for (const marked of document.querySelectorAll(".hot, .linked")) marked.classList.remove("hot", "linked");
}

function highlight(keys, picture = null, node = null) {
  clear();
  for (const shown of pictures) {
    const found = shown === picture ? [node] : shown.like({ keys });
    for (const match of found) match.group.classList.add(shown === picture ? "hot" : "linked");
    const names = new Set(found.map((match) => match.name));
    for (const line of shown.svg.querySelectorAll(".edge[id]")) {
      if (names.has(line.dataset.source) || names.has(line.dataset.target)) line.classList.add("linked");
    }
    if (!found.length && node) shown.framesOf(node.block).forEach((frame) => frame.classList.add("linked"));
  }
  for (const row of document.querySelectorAll("#layers tbody tr")) {
    row.classList.toggle("linked", keys.includes(`layer ${row.dataset.layer}`));
  }
  describe(keys, picture, node);
}

function describe(keys, picture, node) {
  details.replaceChildren(...pictures.filter((shown) => !shown.figure.hidden).map((shown) => {
    const found = shown === picture ? [node] : shown.like({ keys });
    const empty = html("p", { class: "faint" }, "Nothing in this graph corresponds to it by name.");
    const column = found.length ? found.slice(0, 3).map((match) => card(shown, match)) : [empty];
    if (found.length > 3) column.push(html("p", { class: "faint" }, `and ${found.length - 3} more`));
    return html("div", {}, html("h3", {}, shown.title), ...column);
  }));
}

function card(picture, node) {
  const values = (edges) => [...new Set(edges.map((edge) => (edge.bytes === null ? edge.label : `${edge.label}, ${edge.bytes.toLocaleString("en")} bytes`)))];
  const rows = [
    ["block", node.block],
    ["reads", values(picture.edges.filter((edge) => edge.target === node.name)).join("; ")],
    ["gives", values(picture.edges.filter((edge) => edge.source === node.name)).join("; ")],
    ...Object.entries(node.details),
  ].filter(([, text]) => text);
  const items = rows.flatMap(([caption, text]) => [html("dt", {}, caption), html("dd", {}, text)]);
  return html("div", {}, html("p", {}, html("b", {}, node.name), ` ${node.lines.slice(1).join(" ")}`), html("dl", {}, ...items));
}

function release() {
  pinned = null;
  details.classList.remove("pinned");
  for (const node of document.querySelectorAll(".node.pinned")) node.classList.remove("pinned");
  clear();
  details.replaceChildren(html("p", { class: "faint" }, HELP));
}

function pin(keys, picture, node) {
  release();
  pinned = { keys, picture, node };
  highlight(keys, picture, node);
  details.classList.add("pinned");
  for (const shown of pictures) shown.like({ keys }).forEach((match) => match.group.classList.add("pinned"));
}

const HELP =
  "Point at a node, or reach it with Tab and the arrow keys (up and down along the graph, left and right in the order " +
  "of execution): its details appear here, and what it has become is marked in the other graphs. Enter or a click pins " +
  "it, Escape lets go. Ctrl and the wheel, or + and −, zoom; a zoomed picture can be dragged; 0 shows all of it.";

function move(picture, node, step) {
  const order = picture.nodes.indexOf(node);
  const next = {
    ArrowRight: () => picture.nodes[order + 1],
    ArrowLeft: () => picture.nodes[order - 1],
    ArrowDown: () => picture.byName.get(picture.edges.find((edge) => edge.source === node.name)?.target),
    ArrowUp: () => picture.byName.get(picture.edges.find((edge) => edge.target === node.name)?.source),
    Home: () => picture.nodes[0],
    End: () => picture.nodes.at(-1),
  }[step]?.();
  if (!next) return false;
  node.group.setAttribute("tabindex", -1);
  next.group.setAttribute("tabindex", 0);
  next.group.focus();
  return true;
}

for (const picture of pictures) {
  const look = (event) => {
    const node = picture.nodeAt(event.target);
    active = picture;
    if (node && !pinned) highlight(node.keys, picture, node);
  };
  picture.svg.addEventListener("pointerover", look);
  picture.svg.addEventListener("pointerleave", () => pinned || release());
  // not on the picture itself: Chromium lets whatever hears of the focus have it
  picture.figure.addEventListener("focusin", (event) => {
    look(event);
    const node = picture.nodeAt(event.target);
    if (node) picture.show(node);
  });
  picture.svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    picture.zoom(Math.exp(-event.deltaY / 300), event.clientX, event.clientY);
  }, { passive: false });
  picture.figure.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const node = picture.nodeAt(event.target);
    const done = { "+": () => picture.zoom(1.5), "=": () => picture.zoom(1.5), "-": () => picture.zoom(1 / 1.5), 0: () => picture.zoom(0) }[event.key];
    if (done) done();
    else if (node && (event.key === "Enter" || event.key === " ")) pin(node.keys, picture, node);
    else if (!node || !move(picture, node, event.key)) return;
    event.preventDefault();
  });
  let grabbed = null;
  picture.svg.addEventListener("pointerdown", (event) => {
    grabbed = event.button === 0 ? { x: event.clientX, y: event.clientY, middle: picture.middle, moved: false } : null;
  });
  picture.svg.addEventListener("pointermove", (event) => {
    if (!grabbed || picture.scale === 1) return;
    const [x, y] = [event.clientX - grabbed.x, event.clientY - grabbed.y];
    if (!grabbed.moved && Math.hypot(x, y) < 4) return;
    if (!grabbed.moved) picture.svg.setPointerCapture(event.pointerId);
    grabbed.moved = true;
    picture.look(grabbed.middle[0] - x / picture.resolution, grabbed.middle[1] - y / picture.resolution);
    lead(picture);
  });
  picture.svg.addEventListener("pointerup", () => setTimeout(() => (grabbed = null)));
  picture.svg.addEventListener("click", (event) => {
    if (grabbed?.moved) return;
    const node = picture.nodeAt(event.target);
    if (node) pin(node.keys, picture, node);
    else release();
  });
}

document.addEventListener("keydown", (event) => event.key === "Escape" && release());

// --- buttons ---

function toolbar() {
  const button = (text, name, act) => html("button", { type: "button", "aria-label": name, title: name, onclick: act }, text);
  const check = (text, act) => {
    const box = html("input", { type: "checkbox", checked: true, onchange: () => act(box.checked) });
    return html("label", {}, box, ` ${text}`);
  };
  document.getElementById("toolbar").append(
    button("+", "Zoom in", () => active.zoom(1.5)),
    button("−", "Zoom out", () => active.zoom(1 / 1.5)),
    button("Fit", "Show all", () => active.zoom(0)),
    ...(pictures.length > 1 ? [check("linked", (on) => (linked = on)), html("span", { class: "faint" }, "Show:")] : []),
    ...(pictures.length > 1 ? pictures.map((picture) => check(picture.title, (on) => (picture.figure.hidden = !on))) : []),
  );
}

toolbar();
release();
