// The table of all problems: rows are built from the data in the page. Texts enter the document as text nodes only.
"use strict";
const data = JSON.parse(document.getElementById("problem-data").textContent);
const byId = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};
const controls = ["find", "show", "by", "steps", "file"].map(byId);
const page = 50;
let shown = page;
const state = new URLSearchParams(location.hash.slice(1));
for (const control of controls) if (state.has(control.id)) control.value = state.get(control.id);
function matches(row) {
  const [find, show, by, steps, file] = controls.map((control) => control.value);
  const mine = row[4][Number(by)];
  const first = row[4].find((side) => side);
  if (file !== "" && row[3] !== Number(file)) return false;
  if (steps !== "" && row[2] !== Number(steps)) return false;
  if (show === "right" && !(mine && mine[1])) return false;
  if (show === "wrong" && !(mine && !mine[1])) return false;
  if (show === "flipped" && !row[4].some((side) => side && side[1] !== first[1])) return false;
  const text = find.trim().toLowerCase();
  return !text || row[0].toLowerCase().includes(text) || row[1].toLowerCase() === text;
}
function card(row) {
  const details = make("details", "problem");
  const summary = make("summary");
  row[4].forEach((side, i) => {
    if (!side) return;
    const mark = make("span", side[1] ? "mark right" : "mark", side[1] ? "\u2713" : "\u2717");
    mark.title = data.columns[i] + (side[1] ? ": right" : ": wrong");
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", mark.title);
    summary.append(mark);
  });
  summary.append(make("span", "question", row[0]));
  details.append(summary);
  details.addEventListener("toggle", () => {
    if (details.childElementCount > 1) return;
    const facts = [data.files[row[3]], row[2] === null ? "" : row[2] + " steps"].filter(Boolean);
    const answer = make("p", "", "Right answer: ");
    answer.append(make("strong", "", row[1]), facts.length ? " (" + facts.join(", ") + ")" : "");
    const list = make("dl", "votes wide");
    row[4].forEach((side, i) => {
      if (!side) return;
      const said = make("dd");
      said.append(make("span", side[1] ? "plain right" : "plain", side[0]));
      for (const [text, count, right] of side[2])
        said.append(make("span", right ? "vote right" : "vote", text + " \u00d7 " + count));
      list.append(make("dt", "", data.columns[i]), said);
    });
    details.append(answer, list);
  });
  return details;
}
function draw() {
  const found = data.rows.filter(matches);
  byId("problem-list").replaceChildren(...found.slice(0, shown).map(card));
  byId("problem-count").textContent =
    found.length + " of " + data.rows.length + " problems" + (found.length > shown ? ", the first " + shown : "");
  byId("problem-more").hidden = found.length <= shown;
}
for (const control of controls) control.addEventListener("input", () => {
  shown = page;
  const kept = controls.filter((control) => control.value !== control.dataset.start);
  const hash = new URLSearchParams(kept.map((control) => [control.id, control.value])).toString();
  history.replaceState(null, "", "#" + hash);
  draw();
});
byId("problem-more").addEventListener("click", () => {
  const next = shown;
  shown += page;
  draw();
  byId("problem-list").children[next]?.querySelector("summary").focus();
});
draw();
