"use strict";
// The keyboard in the comparison: moving from clip to clip, and playing.

const keys = {
  at() {
    const clip = player.current;
    const row = clip && table.shown.includes(clip.row) ? clip.row : null;
    return { row, column: row ? [...row.clips].find(([, known]) => known === clip)[0] : null };
  },

  // The sentence `step` further, in the same column where it has sound.
  sentence(step) {
    const { row, column } = this.at();
    const place = row ? table.shown.indexOf(row) + step : step > 0 ? 0 : table.shown.length - 1;
    const next = table.shown[place];
    if (next) this.play(next.clips.get(column || ours) || [...next.clips.values()][0]);
  },

  system(step) {
    const { row, column } = this.at();
    if (!row) return this.sentence(1);
    const names = [...row.clips.keys()];
    this.play(row.clips.get(names[(names.indexOf(column) + step + names.length) % names.length]));
  },

  column(place) {
    const row = this.at().row || table.shown[0];
    const column = content.columns[place];
    if (row && column) this.play(row.clips.get(column.name));
  },

  play(clip) {
    if (clip) player.play(clip);
  },

  space() {
    if (player.current && (player.current.cell || player.current.share > 0)) player.toggle(player.current);
    else this.sentence(1);
  },

  help() {
    get("help").hidden = !get("help").hidden;
    get("open-help").setAttribute("aria-expanded", String(!get("help").hidden));
    table.fit();
  },

  press(event) {
    const actions = {
      " ": () => this.space(), ArrowLeft: () => this.system(-1), ArrowRight: () => this.system(1),
      ArrowUp: () => this.sentence(-1), ArrowDown: () => this.sentence(1), p: () => this.sentence(-1), n: () => this.sentence(1),
      a: () => table.playRows(table.shown), Escape: () => player.stop(), "/": () => get("filter-text").focus(), "?": () => this.help(),
      v: () => { const row = this.at().row || table.shown[0]; this.play(row && row.voice); },
    };
    const action = /^[1-9]$/.test(event.key) ? () => this.column(Number(event.key) - 1) : actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  },
};

// Keys that a control needs for itself stay its own.
function belongsToControl(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return true;
  if (event.target.matches("input, select, textarea")) return !(event.key === "Escape" && event.target.id === "filter-text");
  if (event.key === "Enter" && event.target.matches("[data-field]")) return false;
  return event.target.matches("button, summary, a[href]") && (event.key === " " || event.key === "Enter");
}

document.addEventListener("keydown", (event) => {
  if (belongsToControl(event)) return;
  if (!get("blind").hidden) blind.press(event);
  else {
    if (event.target.id === "filter-text") event.target.blur();
    keys.press(event);
  }
});
get("open-help").addEventListener("click", () => keys.help());
