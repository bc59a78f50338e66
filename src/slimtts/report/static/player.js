"use strict";
// Playing: a Clip is one recording with its pictures; `player` sees to it that only one sounds at a time.

const content = JSON.parse(document.getElementById("content").textContent);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const seconds = (value) => value.toFixed(1) + " s";

class Clip {
  // `span` is the length of the row's time axis in seconds; without it there are no pictures.
  constructor(sound, label, span) {
    this.sound = sound;
    this.label = label;
    this.audio = null;
    this.button = element("button", { type: "button", class: "play", "aria-label": "Play " + label });
    this.time = element("span", { class: "time" }, seconds(sound.seconds));
    this.controls = element("div", { class: "controls" }, this.button, this.time);
    this.button.addEventListener("click", () => player.toggle(this));
    if (span) this.draw(span);
  }

  draw(span) {
    this.canvas = element("canvas", { class: "wave", "aria-hidden": "true" });
    this.head = element("span", { class: "playhead", hidden: true });
    const spectrogram = element("img", {
      class: "spectrogram", src: this.sound.picture, alt: "Spectrogram: " + this.label, loading: "lazy", draggable: "false",
    });
    this.picture = element("div", { class: "picture" }, this.canvas, spectrogram, this.head);
    this.picture.style.width = 100 * Math.min(1, this.sound.seconds / span) + "%";
    this.picture.addEventListener("click", (event) => {
      const box = this.picture.getBoundingClientRect();
      player.seek(this, (event.clientX - box.left) / box.width);
    });
    outlines.observe(this.canvas);
    this.canvas.clip = this;
  }

  element() {
    if (!this.audio) {
      this.audio = new Audio(this.sound.audio);
      this.audio.addEventListener("ended", () => player.ended(this));
      this.audio.addEventListener("error", () => player.failed(this));
    }
    return this.audio;
  }

  get playing() { return this.audio !== null && !this.audio.paused && !this.audio.ended; }

  get share() { return this.audio ? Math.min(1, this.audio.currentTime / this.sound.seconds) : 0; }

  show() {
    const name = this.playing ? "Pause " : "Play ";
    if (this.button.getAttribute("aria-label") !== name + this.label) this.button.setAttribute("aria-label", name + this.label);
    this.button.classList.toggle("on", this.playing);
    const at = this.audio && this.audio.currentTime > 0 && !this.audio.ended;
    this.time.textContent = at ? this.audio.currentTime.toFixed(1) + " / " + seconds(this.sound.seconds) : seconds(this.sound.seconds);
    if (this.canvas) {
      this.head.hidden = !at;
      this.head.style.left = 100 * this.share + "%";
      this.paint();
    }
  }

  paint() {
    const scale = window.devicePixelRatio || 1;
    const width = Math.round(this.canvas.clientWidth * scale);
    const height = Math.round(this.canvas.clientHeight * scale);
    if (!width || !height) return;
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    const style = getComputedStyle(this.canvas);
    const pen = this.canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    const bar = width / this.sound.outline.length;
    this.sound.outline.forEach((peak, place) => {
      const played = place / this.sound.outline.length < this.share;
      pen.fillStyle = style.getPropertyValue(played ? "--wave-played" : "--wave");
      const tall = Math.max(scale, (peak / 255) * height);
      pen.fillRect(place * bar, (height - tall) / 2, Math.max(1, bar * 0.75), tall);
    });
  }
}

const outlines = new ResizeObserver((entries) => entries.forEach((entry) => entry.target.clip.paint()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  document.querySelectorAll("canvas.wave").forEach((canvas) => canvas.clip.paint());
});

const player = {
  current: null,
  queue: [], // what is still to be played after the current clip
  onchange: () => {},

  play(clip, queue = []) {
    if (this.current && this.current !== clip) this.rewind(this.current);
    this.current = clip;
    this.queue = queue;
    const started = clip.element().play();
    if (started) started.catch(() => clip.show());
    this.changed();
    this.follow();
  },

  toggle(clip) {
    if (clip.playing) this.pause();
    else this.play(clip, clip === this.current ? this.queue : []);
  },

  seek(clip, share) {
    const audio = clip.element();
    const place = () => { audio.currentTime = Math.max(0, Math.min(0.999, share)) * clip.sound.seconds; };
    if (audio.readyState) place();
    else audio.addEventListener("loadedmetadata", place, { once: true });
    this.play(clip, clip === this.current ? this.queue : []);
  },

  pause() {
    if (this.current && this.current.audio) this.current.audio.pause();
    this.changed();
  },

  resume() {
    if (this.current) this.play(this.current, this.queue);
  },

  stop() {
    this.queue = [];
    if (this.current) this.rewind(this.current);
    this.changed();
  },

  rewind(clip) {
    if (!clip.audio) return;
    clip.audio.pause();
    clip.audio.currentTime = 0;
    clip.show();
  },

  ended(clip) {
    this.rewind(clip);
    if (clip === this.current) this.next();
  },

  failed(clip) {
    clip.controls.replaceChildren(element("span", { class: "missing" }, "audio is missing"));
    if (clip === this.current) this.next();
  },

  next() {
    const [following, ...later] = this.queue;
    if (following) this.play(following, later);
    else this.changed();
  },

  changed() {
    if (this.current) this.current.show();
    this.onchange(this.current);
  },

  follow() {
    const clip = this.current;
    clip.show();
    if (clip.playing) requestAnimationFrame(() => { if (this.current === clip) this.follow(); });
  },
};
