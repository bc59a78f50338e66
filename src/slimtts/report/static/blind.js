"use strict";
// The blind test: two unnamed voices a sentence, in an order that the listener's name decides; votes leave as a file.

const utf8 = new TextEncoder();

// As slimtts.report.votes.scramble: the ballots are checked against it.
function scramble(text) {
  let value = 0x811c9dc5;
  for (const byte of utf8.encode(text)) value = Math.imul(value ^ byte, 0x01000193) >>> 0;
  for (const [shift, factor] of [[16, 0x85ebca6b], [13, 0xc2b2ae35]]) value = Math.imul(value ^ (value >>> shift), factor) >>> 0;
  return (value ^ (value >>> 16)) >>> 0;
}

// Some frames have no storage: then votes last as long as the page.
const memory = {
  read(key) {
    try { return JSON.parse(localStorage.getItem(key) || "null"); } catch { return null; }
  },
  write(key, value) {
    try { localStorage.setItem(key, JSON.stringify(value)); return true; } catch { return false; }
  },
};

const CHOICES = [["a", "A is better"], ["none", "no preference"], ["b", "B is better"]];
const OPINIONS = ["bad", "poor", "fair", "good", "excellent"];

const blind = {
  facts: content.blind,
  root: get("blind"),

  open() {
    player.stop();
    get("compare").hidden = true;
    this.root.hidden = false;
    if (location.hash !== "#blind") history.replaceState(null, "", "#blind");
    this.welcome();
    scrollTo(0, 0);
  },

  close() {
    player.stop();
    this.root.hidden = true;
    get("compare").hidden = false;
    history.replaceState(null, "", location.pathname + location.search);
  },

  show(...parts) {
    const back = element("button", { type: "button" }, "Back to the comparison");
    back.addEventListener("click", () => this.close());
    this.root.replaceChildren(element("div", { class: "panel" }, ...parts, element("p", { class: "back" }, back)));
  },

  welcome() {
    this.step = null;
    const pairs = this.facts.pairs;
    if (window.self !== window.top) return this.show(element("h2", {}, "Blind test"), element("p", {}, "This page is shown inside another one, which lets no votes out. Download this file and open it by itself."));
    if (!pairs.length) return this.show(element("h2", {}, "Blind test"), element("p", {}, "This run has nothing to compare: no audio of two systems was kept."));
    const name = element("input", { id: "listener", type: "text", maxlength: "60", required: true, autocomplete: "off", placeholder: "for example anna" });
    const pair = element("select", { id: "pair" }, ...pairs.map((entry, place) => element("option", { value: place }, `${entry.pair[0]} and ${entry.pair[1]}, ${entry.ids.length} sentences`)));
    const form = element("form", {}, element("label", {}, "Your name or a number ", name), element("label", {}, "What to compare ", pair), element("button", { type: "submit", class: "primary", id: "start" }, "Start, or go on"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (name.value.trim()) this.begin(name.value.trim(), pairs[Number(pair.value)]);
    });
    this.show(element("h2", {}, "Blind test"), element("p", {}, "You hear each sentence twice, by two systems that are not named. Say which is better, and rate both from 1 to 5. The sentences were drawn at random. Use headphones."), form);
    name.focus();
  },

  begin(listener, { pair, ids }) {
    const seed = [this.facts.key, listener, ...pair].join("|");
    const rank = new Map(ids.map((id) => [id, scramble(`${seed}|order|${id}`)]));
    const order = [...ids].sort((one, other) => rank.get(one) - rank.get(other) || (one < other ? -1 : 1));
    const tasks = order.map((id) => {
      const swapped = scramble(`${seed}|side|${id}`) & 1;
      return { id, a: pair[swapped ? 1 : 0], b: pair[swapped ? 0 : 1] };
    });
    this.session = { listener, pair, tasks, key: "slimtts-ballot|" + seed };
    const kept = memory.read(this.session.key);
    this.session.votes = Array.isArray(kept) ? kept.slice(0, tasks.length) : [];
    this.ask(Math.min(this.session.votes.length, tasks.length));
  },

  ask(step) {
    const { tasks, votes } = this.session;
    player.stop();
    if (step >= tasks.length) return this.finish();
    this.step = step;
    const task = tasks[step];
    const sentence = content.sentences.find((known) => known.id === task.id);
    this.vote = { id: task.id, a: task.a, b: task.b, choice: null, score_a: null, score_b: null, ...votes[step] };
    this.clips = Object.fromEntries(["a", "b"].map((side) => [side, new Clip(sentence.cells[task[side]].sound, "voice " + side.toUpperCase())]));
    this.last = "a";
    const prompt = sentence.prompt && sentence.prompt.seconds > 0 ? new Clip(sentence.prompt, "the voice to imitate") : null;
    this.choices = element("div", { class: "choices", role: "group", "aria-label": "Which is better" }, ...CHOICES.map(([value, label]) => this.option("choice", value, label)));
    this.next = element("button", { type: "button", class: "primary", id: "next" }, step + 1 < tasks.length ? "Next" : "Finish");
    this.next.addEventListener("click", () => this.answer());
    const before = element("button", { type: "button", id: "before", disabled: step === 0 }, "Before");
    before.addEventListener("click", () => this.ask(step - 1));
    const leave = element("button", { type: "button", id: "export-now" }, "Export what is done");
    leave.addEventListener("click", () => this.export());
    leave.disabled = !votes.length;
    this.show(
      element("h2", {}, "Blind test"),
      element("progress", { max: tasks.length, value: step, "aria-label": "Sentences done" }),
      element("p", { class: "small", id: "step" }, `Sentence ${step + 1} of ${tasks.length}`),
      element("blockquote", {}, sentence.text),
      prompt ? element("p", { class: "prompt" }, prompt.controls, "the voice that both imitate") : null,
      element("div", { class: "sides" }, this.side("a"), this.side("b")),
      this.choices,
      element("p", { class: "nav" }, before, this.next, leave),
      element("p", { class: "small help" }, ...["a", "b"].flatMap((key) => [element("kbd", {}, key), ` play ${key.toUpperCase()} `]), element("kbd", {}, "1"), " to ", element("kbd", {}, "5"), " rate the one played last ", element("kbd", {}, "\u2190"), element("kbd", {}, "\u2193"), element("kbd", {}, "\u2192"), " A, neither, B ", element("kbd", {}, "enter"), " next"),
    );
    this.mark();
  },

  side(side) {
    const upper = side.toUpperCase();
    const clip = this.clips[side];
    clip.button.addEventListener("click", () => { this.last = side; this.mark(); });
    const scores = OPINIONS.map((word, place) => this.option("score_" + side, place + 1, String(place + 1), `${upper}: ${place + 1}, ${word}`));
    return element("div", { class: "side", "data-side": side }, element("h3", {}, upper), clip.controls,
      element("div", { class: "scores", role: "group", "aria-label": "How good is " + upper }, ...scores), element("p", { class: "small ends" }, element("span", {}, "1 bad"), element("span", {}, "5 excellent")));
  },

  option(field, value, label, spoken) {
    const button = element("button", { type: "button", "data-field": field, "data-value": value, "aria-pressed": "false", "aria-label": spoken });
    button.append(label);
    button.addEventListener("click", () => this.set(field, value));
    return button;
  },

  set(field, value) {
    this.vote[field] = value;
    this.mark();
  },

  mark() {
    for (const button of this.root.querySelectorAll("[data-field]")) {
      button.setAttribute("aria-pressed", String(String(this.vote[button.dataset.field]) === button.dataset.value));
    }
    for (const box of this.root.querySelectorAll(".side")) box.classList.toggle("last", box.dataset.side === this.last);
    this.next.disabled = !this.complete();
  },

  complete() {
    return Boolean(this.vote.choice && this.vote.score_a && this.vote.score_b);
  },

  answer() {
    if (!this.complete()) return;
    this.session.votes[this.step] = this.vote;
    this.session.isKept = memory.write(this.session.key, this.session.votes);
    this.ask(this.step + 1);
  },

  finish() {
    this.step = null;
    const { votes } = this.session;
    const save = element("button", { type: "button", class: "primary", id: "export" }, "Export the votes");
    save.addEventListener("click", () => this.export());
    const again = element("button", { type: "button", id: "before" }, "Before");
    again.addEventListener("click", () => this.ask(votes.length - 1));
    this.show(element("h2", {}, "Thank you"), element("p", {}, `All ${votes.length} sentences are done. Export your votes and hand over the file.`), element("p", { class: "nav" }, save, again),
      element("p", { class: "small" }, "They are read by ", element("code", {}, `slimtts report --run runs/${content.run} --votes FILE [FILE ...]`)));
    save.focus();
  },

  ballot() {
    const { listener, pair, votes } = this.session;
    const told = votes.map((v) => [v.id, v.a, v.b, v.choice, v.score_a, v.score_b].join(","));
    const checksum = scramble([this.facts.key, listener, ...pair, ...told].join("|"));
    const { test_set_sha256, weights_sha256 } = this.facts;
    return { format: "slimtts-ballot-1", test_set_sha256, weights_sha256, listener, pair, votes, checksum };
  },

  export() {
    const file = new Blob([JSON.stringify(this.ballot(), null, 1) + "\n"], { type: "application/json" });
    const address = URL.createObjectURL(file);
    const name = this.session.listener.replace(/[^\p{L}\p{N}_-]+/gu, "-");
    element("a", { href: address, download: `votes-${content.run}-${name}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  },

  press(event) {
    if (this.step === null) return;
    const play = (side) => { this.last = side; this.mark(); player.toggle(this.clips[side]); };
    const actions = {
      a: () => play("a"), b: () => play("b"), " ": () => play(this.last), Enter: () => this.answer(), Escape: () => player.stop(),
      ArrowLeft: () => this.set("choice", "a"), ArrowRight: () => this.set("choice", "b"), ArrowDown: () => this.set("choice", "none"),
    };
    const action = /^[1-5]$/.test(event.key) ? () => this.set("score_" + this.last, Number(event.key)) : actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  },
};

get("open-blind").addEventListener("click", () => blind.open());
addEventListener("hashchange", () => { if (location.hash === "#blind") blind.open(); });
if (location.hash === "#blind") blind.open();
