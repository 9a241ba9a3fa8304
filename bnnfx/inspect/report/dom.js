"use strict";

// Text from the model only ever becomes a text node or the value of an attribute, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function section(id, title, ...children) {
  const heading = html("h2", { id: `${id}-title` }, title);
  document.querySelector("main").append(html("section", { id, "aria-labelledby": `${id}-title` }, heading, ...children));
}

function short(number) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(number) >= size) return `${(number / size).toFixed(2)} ${unit}`;
  }
  return String(Number(number.toFixed(2)));
}

const percent = (digits) => (share) => `${(100 * share).toFixed(digits)} %`;
const fixed = (digits) => (number) => number.toFixed(digits);

// --- light and dark ---

const theme = document.getElementById("theme");
const darkByPreference = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.style.colorScheme;
  return chosen ? chosen === "dark" : darkByPreference.matches;
}

function nameTheme() {
  theme.textContent = isDark() ? "Light colours" : "Dark colours";
}

theme.addEventListener("click", () => {
  document.documentElement.style.colorScheme = isDark() ? "light" : "dark";
  nameTheme();
});
darkByPreference.addEventListener("change", nameTheme);
nameTheme();
