"use strict";

// Everything that is shown is set as text, never as markup: passages and queries may hold anything.

const at = (id) => document.getElementById(id);
const AUTO = 250; // milliseconds after the last key before the page asks by itself

let facts = null;
let asked = 0;
let timer = 0;

function make(tag, kind, text) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
}

function say(text, error = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", error);
}

async function call(path, body) {
  const headers = {};
  if (at("key").value) headers.authorization = `Bearer ${at("key").value}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const options = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const answer = await response.json().catch(() => ({}));
  if (response.status === 401) at("key-field").hidden = false;
  if (!response.ok) throw new Error(answer.error?.message ?? `the server answered ${response.status}`);
  return answer;
}

async function learn() {
  if (facts) return true;
  try {
    facts = await call("page.json");
  } catch (error) {
    say(error.message, true);
    return false;
  }
  for (const name of facts.tasks) at("task").append(new Option(name.toLowerCase().replaceAll("_", " "), name));
  at("task").value = facts.default;
  const most = Math.max(...facts.models.map((model) => model.dim));
  Object.assign(at("dim"), { min: 1, max: most });
  at("dim").value = most;
  showDim();
  at("passages-field").hidden = facts.passages !== null;
  const names = facts.models.map((model) => model.name).join(" and ");
  at("about").textContent =
    facts.passages === null ? `${names} over your passages` : `${names} over ${facts.passages.toLocaleString("en")} passages`;
  say("");
  return true;
}

function showDim() {
  at("dim-value").textContent = at("dim").value;
}

async function search() {
  clearTimeout(timer);
  if (!(await learn())) return;
  const query = at("query").value.trim();
  const body = { query, task: at("task").value, dimensions: Number(at("dim").value) };
  if (facts.passages === null) {
    body.passages = at("passages").value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (query && !body.passages.length) return say("Give some passages, one a line.");
  }
  const turn = ++asked;
  if (!query) {
    at("results").replaceChildren();
    return say("");
  }
  const began = performance.now();
  try {
    const answer = await call("search", body);
    if (turn !== asked) return; // a newer question is on its way
    show(answer.results);
    const found = answer.results[0].hits.length;
    say(`${found} passage${found === 1 ? "" : "s"} a model, ${Math.round(performance.now() - began)} ms`);
  } catch (error) {
    if (turn === asked) say(error.message, true);
  }
}

function show(results) {
  const first = new Map(results[0].hits.map((hit) => [`${hit.title}\n${hit.text}`, hit.rank]));
  at("results").replaceChildren(
    ...results.map((result, column) => {
      const section = make("section");
      const heading = make("h2", "", `${result.model} `);
      heading.id = `model-${column}`;
      heading.append(make("small", "", `${result.dimensions} dimensions`));
      const list = make("ol");
      list.setAttribute("aria-labelledby", heading.id);
      for (const hit of result.hits) list.append(item(hit, column, first));
      section.append(heading, list);
      return section;
    })
  );
}

function item(hit, column, first) {
  const row = make("li");
  const head = make("div", "head");
  head.append(make("span", "rank", hit.rank), make("span", "title", hit.title));
  if (column) {
    const before = first.get(`${hit.title}\n${hit.text}`);
    const move = before === undefined ? "new" : before === hit.rank ? "=" : before > hit.rank ? `↑ ${before - hit.rank}` : `↓ ${hit.rank - before}`;
    head.append(make("span", `move ${before === undefined || before > hit.rank ? "up" : before < hit.rank ? "down" : ""}`, move));
  }
  head.append(make("span", "score", hit.score.toFixed(3)));
  const text = make("div", "text", hit.text);
  text.tabIndex = 0; // focus shows all of a long passage
  row.append(head, text);
  return row;
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
at("query").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(search, AUTO);
});
at("task").addEventListener("change", search);
at("dim").addEventListener("input", showDim);
at("dim").addEventListener("change", search);
learn();
