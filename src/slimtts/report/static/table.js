"use strict";
// The table of sentences: a row each, a cell a column; sorted and filtered without being drawn again.

const NUMBERS = {
  wer: { label: content.metric, worst: "high" },
  similarity: { label: "similarity", worst: "low" },
  mos: { label: "MOS", worst: "low" },
  behind: { label: content.metric + " minus teacher", worst: "high" },
  seconds: { label: "length", worst: "high" },
};
const ORDERS = { worst: { high: "worst first", seconds: "longest first" }, best: { high: "best first", seconds: "shortest first" } };
const ours = (content.columns.find((column) => column.ours) || content.columns[content.columns.length - 1]).name;
const get = (id) => document.getElementById(id);

function number(sentence, name, column) {
  const cell = sentence.cells[column];
  if (!cell) return null;
  if (name === "seconds") return cell.sound ? cell.sound.seconds : null;
  if (name === "behind") {
    const teacher = sentence.cells.teacher;
    return cell.wer === null || !teacher || teacher.wer === null ? null : cell.wer - teacher.wer;
  }
  return cell[name];
}

const wrong = (cell) => cell && (cell.wer > 0 || !cell.ended || !silentless(cell));
const silentless = (cell) => cell.sound !== null && cell.sound.seconds > 0;
const FILTERS = {
  all: ["every sentence", () => true],
  ours: ["errors of the " + ours, (s) => wrong(s.cells[ours])],
  behind: [ours + " worse than teacher", (s) => number(s, "behind", ours) > 0],
  ahead: [ours + " better than teacher", (s) => number(s, "behind", ours) < 0],
  any: ["errors of any system", (s) => Object.values(s.cells).some(wrong)],
  failed: ["endless or silent", (s) => Object.values(s.cells).some((c) => !c.ended || !silentless(c))],
  random: ["drawn at random", (s) => s.chosen === "random"],
  worst: ["kept as the worst", (s) => s.chosen === "worst"],
};

function wordNodes(words) {
  const line = element("p", { class: "words" });
  const told = { substitution: (w) => `heard ${w[2]} for ${w[1]}`, deletion: (w) => `${w[1]} not heard`, insertion: (w) => `${w[2]} not written` };
  for (const word of words) {
    const [mark, expected, heard] = word;
    if (mark === "hit") line.append(expected, " ");
    else {
      const shown = element("span", { class: "word " + mark, title: told[mark](word) });
      shown.append(element("span", { class: "hidden" }, "[error: " + told[mark](word) + "]"));
      if (expected) shown.append(element("del", { "aria-hidden": "true" }, expected));
      if (heard) shown.append(element("ins", { "aria-hidden": "true" }, heard));
      line.append(shown, " ");
    }
  }
  return line;
}

function numbersOf(sentence, column) {
  const cell = sentence.cells[column.name];
  const list = element("ul", { class: "measures" });
  const add = (label, value, strong) => list.append(element("li", strong ? { class: "strong" } : {}, element("span", {}, label), " " + value));
  if (cell.wer !== null) add(content.metric, (100 * cell.wer).toFixed(0) + " %", cell.wer > 0);
  if (cell.similarity !== null) add("sim", cell.similarity.toFixed(2));
  if (cell.mos !== null) add("MOS", cell.mos.toFixed(2));
  return list;
}

class Row {
  constructor(sentence) {
    this.sentence = sentence;
    this.clips = new Map();
    this.body = element("tbody", { class: "sentence", "data-id": sentence.id });
    const span = Math.max(...Object.values(sentence.cells).map((cell) => (cell.sound ? cell.sound.seconds : 0)));
    this.title = element("th", { scope: "rowgroup", colspan: content.columns.length, id: "s-" + sentence.id });
    const play = element("button", { type: "button", class: "row", "aria-label": "Play this sentence by every system" }, "Play row");
    play.addEventListener("click", () => table.playRows([this]));
    this.title.append(element("span", { class: "text" }, sentence.text), element("span", { class: "meta" }, play, this.prompt(), this.tags()));
    this.cells = element("tr", { class: "cells" });
    for (const column of content.columns) this.cells.append(this.cell(column, span));
    this.body.append(element("tr", { class: "title" }, this.title), this.cells);
    this.haystack = [sentence.text, sentence.voice, sentence.id, ...Object.values(sentence.cells).flatMap((cell) => (cell.words || []).map((w) => w[2]))].join(" ").toLowerCase();
  }

  prompt() {
    const { prompt, prompt_text: text, voice } = this.sentence;
    const shown = element("span", { class: "prompt", title: text ? "Prompt: " + text : "" });
    if (prompt && prompt.seconds > 0) {
      this.voice = new Clip(prompt, "the prompt of voice " + voice);
      shown.append(this.voice.controls);
    }
    shown.append("voice " + (voice || "unknown"));
    return shown;
  }

  tags() {
    const kind = this.sentence.chosen;
    return element("span", { class: "tag " + kind, title: kind === "worst" ? "kept because the student erred most here" : "drawn at random" }, kind);
  }

  cell(column, span) {
    const cell = this.sentence.cells[column.name];
    const made = element("td", { class: column.ours ? "ours" : "", "data-column": column.name });
    made.append(element("span", { class: "name" }, column.label));
    if (cell.sound && cell.sound.seconds > 0) {
      const clip = new Clip(cell.sound, column.label + ": " + this.sentence.text, span);
      this.clips.set(column.name, clip);
      made.append(clip.controls, element("div", { class: "axis" }, clip.picture));
      clip.cell = made;
      clip.row = this;
    } else {
      const why = cell.sound ? "silent: nothing was said" : "audio is missing";
      made.append(element("p", { class: "missing" }, why));
    }
    if (cell.words) made.append(wordNodes(cell.words));
    if (!cell.ended) made.append(element("p", { class: "flag" }, "never ended"));
    made.append(numbersOf(this.sentence, column));
    return made;
  }
}

const table = {
  rows: content.sentences.map((sentence) => new Row(sentence)),
  shown: [],

  build() {
    const heads = content.columns.map((column, place) => {
      const button = element("button", { type: "button", title: "Sort by " + column.label },
        element("b", {}, column.label), element("span", { class: "about" }, column.about), place < 9 ? element("kbd", {}, String(place + 1)) : null);
      button.addEventListener("click", () => {
        if (get("sort-column").value === column.name) this.reverse();
        else { get("sort-column").value = column.name; this.arrange(); }
      });
      return element("th", { scope: "col", class: column.ours ? "ours" : "", "data-column": column.name }, button);
    });
    this.heads = heads;
    this.made = element("table", { class: "compare" }, element("caption", { class: "hidden" }, "Every sentence by every system"),
      element("thead", {}, element("tr", {}, ...heads)), ...this.rows.map((row) => row.body));
    get("table").append(this.made);
    const options = (select, pairs) => select.append(...pairs.map(([value, label]) => element("option", { value }, label)));
    options(get("sort-number"), Object.entries(NUMBERS).map(([name, { label }]) => [name, label]));
    options(get("sort-column"), content.columns.map((column) => [column.name, column.label]));
    get("sort-column").value = ours;
    const voices = [...new Set(content.sentences.map((s) => s.voice))].sort();
    options(get("filter-voice"), [["", "all"], ...voices.map((voice) => [voice, voice])]);
    options(get("filter-errors"), Object.entries(FILTERS).map(([name, [label]]) => [name, label]));
    for (const id of ["sort-number", "sort-column", "filter-voice", "filter-errors"]) get(id).addEventListener("change", () => this.arrange());
    get("filter-text").addEventListener("input", () => this.arrange());
    get("sort-direction").addEventListener("click", () => this.reverse());
    get("play-all").addEventListener("click", () => this.playRows(this.shown));
    get("pause-all").addEventListener("click", () => (player.current && !player.current.playing ? player.resume() : player.pause()));
    get("stop-all").addEventListener("click", () => player.stop());
    const random = content.sentences.filter((s) => s.chosen === "random").length;
    get("kept").textContent = `${content.sentences.length} of the ${content.utterances} test sentences: ${random} drawn at random, ` +
      `${content.sentences.length - random} of the others on which the student erred most. The numbers above are of all.`;
    new ResizeObserver(() => this.fit()).observe(get("table"));
    this.direction = "worst";
    this.arrange();
  },

  // Columns that would become too narrow are stacked instead.
  fit() {
    this.made.classList.toggle("stacked", get("table").clientWidth < 172 * content.columns.length);
    document.documentElement.style.setProperty("--toolbar", getComputedStyle(get("toolbar")).position === "sticky" ? get("toolbar").offsetHeight + "px" : "0px");
  },

  reverse() {
    this.direction = this.direction === "worst" ? "best" : "worst";
    this.arrange();
  },

  arrange() {
    const name = get("sort-number").value, column = get("sort-column").value;
    const descending = (NUMBERS[name].worst === "high") === (this.direction === "worst");
    const value = (row) => number(row.sentence, name, column);
    const similarity = (row) => number(row.sentence, "similarity", column) ?? 1;
    this.rows.sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === null || b === null) return (a === null) - (b === null);
      return (descending ? b - a : a - b) || similarity(one) - similarity(other) || (one.sentence.id < other.sentence.id ? -1 : 1);
    });
    const voice = get("filter-voice").value, keep = FILTERS[get("filter-errors").value][1], sought = get("filter-text").value.trim().toLowerCase();
    this.shown = [];
    for (const row of this.rows) {
      const shows = (!voice || row.sentence.voice === voice) && keep(row.sentence) && row.haystack.includes(sought);
      row.body.hidden = !shows;
      row.body.classList.toggle("odd", this.shown.length % 2 === 0);
      if (shows) this.shown.push(row);
    }
    this.made.append(...this.rows.map((row) => row.body));
    get("sort-direction").textContent = ORDERS[this.direction][name === "seconds" ? "seconds" : "high"];
    for (const head of this.heads) {
      if (head.dataset.column === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    get("count").textContent = `${this.shown.length} of ${this.rows.length} shown`;
    get("nothing").hidden = this.shown.length > 0;
    get("nothing").textContent = this.rows.length ? "No sentence fits the filter." : "No audio was kept.";
  },

  playRows(rows) {
    const [first, ...others] = rows.flatMap((row) => [...row.clips.values()]);
    if (first) player.play(first, others);
  },
};

player.onchange = (clip) => {
  document.querySelectorAll(".current").forEach((marked) => marked.classList.remove("current"));
  get("pause-all").textContent = clip && !clip.playing && clip.share > 0 ? "Resume" : "Pause all";
  if (clip && clip.cell) {
    clip.cell.classList.add("current");
    clip.row.body.classList.add("current");
    if (clip.playing) clip.cell.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }
};

table.build();
